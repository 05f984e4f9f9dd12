"""One optimizer step: gradients of a sum of weighted means, over any cut of the batch.

The loss is sum_k total_k / W_k with W_k the weight of term k over all devices and
micro-batches. Weights never depend on the parameters, so they can be summed first; then one
device, many devices and gradient accumulation agree to float32 noise.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from xec_jax.losses import ratio
from xec_jax.train.mesh import EVENTS, MODEL, PMAP, Mode, replicated
from xec_jax.types import Array, ArrayLike, Batch, Key, LossFn, Mean, Metrics, Params, Terms


class TrainState(flax.struct.PyTreeNode):
    """All that changes while training; arrays only, so that it can be saved and donated.

    Attributes:
        step: int32, completed steps; skipped ones count, so that data and schedule go on.
        params: Parameters.
        opt_state: Optimizer state.
        ema: Exponential moving average of the parameters, or None.
        rng: uint32 (2,), the run's key; step keys are folded from it and never stored.
        skipped: int32, steps whose update was dropped as not finite.
        skipped_in_row: int32, how many of them were the last ones.
        plateau: State of a learning rate that depends on validation, or None.
    """

    step: Array
    params: Params
    opt_state: optax.OptState
    ema: Params | None
    rng: Array
    skipped: Array
    skipped_in_row: Array
    plateau: Any = None

    @property
    def eval_params(self) -> Params:
        """What validation, export and hand-over use: the average where there is one."""
        return self.params if self.ema is None else self.ema


def init_state(
    params: Params, tx: optax.GradientTransformation, *, seed: int, with_ema: bool
) -> TrainState:
    """Returns the state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        ema=jax.tree.map(jnp.copy, params) if with_ema else None,
        rng=jax.random.PRNGKey(seed),
        skipped=jnp.zeros((), jnp.int32),
        skipped_in_row=jnp.zeros((), jnp.int32),
    )


@flax.struct.dataclass
class Tally:
    """Named sums and weights packed into one array: one transfer to the host, not dozens.

    Attributes:
        values: float32 (n, 2), columns total and weight.
        names: Metric names in the order of the rows; loss terms are named `loss_{term}`.
        terms: Names of the loss terms, whose sum over means is the loss.
    """

    values: Array
    names: tuple[str, ...] = flax.struct.field(pytree_node=False)
    terms: tuple[str, ...] = flax.struct.field(pytree_node=False, default=())

    @classmethod
    def pack(cls, metrics: Metrics, terms: Terms | None = None) -> "Tally":
        """Packs {name: Mean}, and loss terms where the loss is to be made of them."""
        named = {f"loss_{name}": term for name, term in (terms or {}).items()}
        means = named | metrics
        rows = [jnp.stack([jnp.float32(m.total), jnp.float32(m.weight)]) for m in means.values()]
        return cls(jnp.stack(rows), tuple(means), tuple(named))

    @staticmethod
    def means(tallies: "list[Tally]") -> dict[str, float]:
        """Fetches tallies and divides once; sums in float64. Weight 0 gives NaN, or no loss."""
        if not tallies:
            return {}
        values = np.asarray(jax.device_get([t.values for t in tallies]), np.float64).sum(0)
        total, weight = values[:, 0], values[:, 1]
        ratio = np.where(weight != 0, total / np.where(weight != 0, weight, 1), np.nan)
        means = dict(zip(tallies[0].names, ratio.tolist(), strict=True))
        if tallies[0].terms:
            # Only a term without any event is left out: a NaN that counted stays a NaN.
            counted = dict(zip(tallies[0].names, weight != 0, strict=True))
            means["loss"] = float(sum(means[n] for n in tallies[0].terms if counted[n]))
        return means


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Tally]]
EvalStep = Callable[[Params, Batch, ArrayLike], Tally]


def make_train_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    *,
    mesh: Mesh,
    mode: Mode = "jit",
    accum_steps: int = 1,
    ema_decay: float | None = None,
    ema_warmup: bool = False,
    skip_nonfinite: bool = True,
    state_shardings: TrainState | None = None,
) -> TrainStep:
    """Builds the compiled training step.

    Args:
        loss_fn: Loss terms and metrics of a part of the batch.
        tx: Optimizer, including clipping and schedule.
        mesh: Devices (`make_mesh`); batches come from `batch_putter` of the same mesh and mode.
        mode: `jit` lays the batch over the mesh and leaves the rest to the compiler; `pmap`
            runs one program per device with explicit sums. JAX keeps pmap in maintenance mode;
            both give the same numbers, except for dropout, whose key is folded with the device.
        accum_steps: Micro-batches per step; must divide the events of a device.
        ema_decay: Decay of the parameter average, None for none. The first update copies.
        ema_warmup: Let the decay rise with the number t of updates: (1 + t) / (10 + t) at most.
        skip_nonfinite: Keep the old state when loss or gradient norm is not finite.
        state_shardings: How the state is divided over the devices (`mesh.state_shardings`); None
            if every device holds all of it.

    Returns:
        (state, batch) -> (state, tally). The old state's buffers are used for the new one.
    """
    whole = replicated(mesh)
    divided = state_shardings if mesh.shape[MODEL] > 1 else None
    over_devices = _psum if mode == "pmap" else lambda tree: tree
    optimizer = optax.with_extra_args_support(tx)  # the schedule reads `step`

    def loss_of(params: Params, batch: Batch, key: Key, weights: dict[str, Array] | None):
        if divided is not None:  # collected for use; their gradients are summed in parts again
            params = jax.lax.with_sharding_constraint(params, whole)
        terms, metrics = loss_fn(params, batch, key)
        if weights is None:
            weights = over_devices({name: term.weight for name, term in terms.items()})
        weights = jax.lax.stop_gradient(weights)
        parts = [ratio(Mean(term.total, weights[name])) for name, term in terms.items()]
        means = {f"loss_{name}": term for name, term in terms.items()}
        return sum(parts), means | metrics

    gradient = jax.value_and_grad(loss_of, has_aux=True)

    def gradient_over_micro_batches(params: Params, batch: Batch, key: Key):
        if accum_steps == 1:
            return gradient(params, batch, key, None)
        micro = jax.tree.map(lambda x: _split(x, accum_steps), batch)

        def weigh(sums, part):
            terms, _ = loss_fn(params, part, key)
            own = {name: term.weight for name, term in terms.items()}
            return jax.tree.map(jnp.add, sums, own), None

        def accumulate(sums, part):
            return jax.tree.map(jnp.add, sums, gradient(params, part, key, weights)), None

        # Every micro-batch gets the step's own key: event keys must not depend on the cut. Only
        # the weights are used in the first pass, so the network is dead code in it.
        first = jax.tree.map(lambda x: x[0], micro)
        (_, means), _ = shapes = jax.eval_shape(gradient, params, first, key, None)
        names = [name.removeprefix("loss_") for name in means if name.startswith("loss_")]
        no_weight = dict.fromkeys(names, jnp.float32(0))
        weights = over_devices(jax.lax.scan(weigh, no_weight, micro)[0])
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.scan(accumulate, zeros, micro)[0]

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Tally]:
        key = jax.random.fold_in(state.rng, state.step)
        sums = gradient_over_micro_batches(state.params, batch, key)
        (loss, metrics), grads = over_devices(sums)
        if divided is not None:
            grads = jax.lax.with_sharding_constraint(grads, divided.params)
        norm = optax.tree.norm(grads)
        extra = {"step": state.step, "plateau": state.plateau}
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, **extra)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay is not None:
            done = state.step - state.skipped
            rising = (1 + done) / (10 + done) if ema_warmup else ema_decay
            decay = jnp.where(done == 0, 0.0, jnp.minimum(ema_decay, rising))
            ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, ema, params)
        ok = jnp.isfinite(loss) & jnp.isfinite(norm) if skip_nonfinite else jnp.array(True)
        keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, old)  # noqa: E731
        bad = (~ok).astype(jnp.int32)
        state = state.replace(
            step=state.step + 1,
            params=keep(params, state.params),
            opt_state=keep(opt_state, state.opt_state),
            ema=keep(ema, state.ema),
            skipped=state.skipped + bad,
            skipped_in_row=(state.skipped_in_row + 1) * bad,
        )
        one = jnp.float32(1)
        metrics = {"loss": Mean(loss, one), "grad_norm": Mean(norm, one)} | metrics
        # A dropped step counts as such and leaves the averages of the others alone.
        metrics = jax.tree.map(lambda x: jnp.where(ok, x, 0), metrics)
        metrics["skipped"] = Mean(bad.astype(jnp.float32), one)
        return state, Tally.pack(metrics)

    if mode == "pmap":
        devices = list(mesh.devices.flat)
        return jax.pmap(
            train_step,
            PMAP,
            in_axes=(None, 0),
            out_axes=(None, None),
            devices=devices,
            donate_argnums=0,
        )
    held = whole if divided is None else divided
    return jax.jit(
        train_step,
        in_shardings=(held, NamedSharding(mesh, EVENTS)),
        out_shardings=(held, whole),
        donate_argnums=0,
    )


def make_eval_step(
    evaluate: LossFn, *, mesh: Mesh, mode: Mode = "jit", params_shardings: Params | None = None
) -> EvalStep:
    """Builds the compiled evaluation step: (params, batch, key) -> tally over the whole batch.

    Args:
        evaluate: Loss terms and metrics of a part of the batch.
        mesh: As for `make_train_step`.
        mode: As for `make_train_step`.
        params_shardings: How the parameters are divided over the devices, None if they are not.
    """
    whole = replicated(mesh)
    divided = params_shardings if mesh.shape[MODEL] > 1 else None

    def eval_step(params: Params, batch: Batch, key: Key) -> Tally:
        if divided is not None:
            params = jax.lax.with_sharding_constraint(params, whole)
        terms, metrics = evaluate(params, batch, key)
        if mode == "pmap":
            terms, metrics = _psum((terms, metrics))
        return Tally.pack(metrics, terms)

    if mode == "pmap":
        devices = list(mesh.devices.flat)
        return jax.pmap(eval_step, PMAP, in_axes=(None, 0, None), out_axes=None, devices=devices)
    held = whole if divided is None else divided
    return jax.jit(
        eval_step, in_shardings=(held, NamedSharding(mesh, EVENTS), whole), out_shardings=whole
    )


def bound_queue(tallies: list[Tally], depth: int = 2) -> None:
    """Waits until at most `depth` steps are unfinished.

    Dispatch runs ahead of the devices; without a bound every batch in the queue would hold its
    memory. The devices never wait for this: the next step is already theirs.
    """
    if len(tallies) > depth:
        jax.block_until_ready(tallies[-1 - depth].values)


def _psum(tree):
    return jax.lax.psum(tree, PMAP)


def _split(x: Array, parts: int) -> Array:
    """(b, ...) -> (parts, b / parts, ...), strided so that each part covers all devices."""
    return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)
