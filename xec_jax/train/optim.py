"""Learning-rate schedules and the optimizer, from plain config values."""

import re
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from xec_jax.config import nearest
from xec_jax.errors import ConfigError
from xec_jax.types import Array, ArrayLike, Params

Schedule = Callable[[ArrayLike | int], Array]
SCHEDULERS = ("none", "cosine")


def make_schedule(
    lr: float,
    *,
    scheduler: str | None,
    steps_per_epoch: int,
    epochs: int,
    warmup_epochs: float = 0.0,
    lr_min: float = 0.0,
    per_step: bool = False,
) -> Schedule:
    """Builds the learning rate as a pure function of the step, so that resume needs no state.

    With e the epoch (whole, or fractional if `per_step`), E `epochs` and W `warmup_epochs`:
    `none` is lr throughout; `cosine` is lr (0.01 + 0.99 e/W) for e < W and then
    lr_min + (lr - lr_min) (1 + cos(pi (e - W)/(E - W))) / 2.

    Raises:
        ConfigError: Unknown scheduler, or a warm-up that is not shorter than the run.
    """
    name = scheduler or "none"
    if name not in SCHEDULERS:
        raise ConfigError(f"optim.lr_scheduler is {name!r}", expected=nearest(name, SCHEDULERS))
    if not 0 <= warmup_epochs < max(epochs, 1):
        raise ConfigError(
            f"optim.warmup_epochs is {warmup_epochs} in a run of {epochs} epochs",
            expected="0 <= warmup_epochs < train.epochs",
            remedy="set optim.warmup_epochs below train.epochs, 0 for none",
        )

    def schedule(step: ArrayLike | int) -> Array:
        epoch = jnp.asarray(step) / steps_per_epoch
        epoch = epoch if per_step else jnp.floor(epoch)
        if name == "none":
            return jnp.full_like(epoch, lr)
        warmup = lr * (0.01 + 0.99 * epoch / (warmup_epochs or 1))
        progress = jnp.clip((epoch - warmup_epochs) / (epochs - warmup_epochs), 0, 1)
        cosine = lr_min + 0.5 * (lr - lr_min) * (1 + jnp.cos(jnp.pi * progress))
        return jnp.where(epoch < warmup_epochs, warmup, cosine)

    return schedule


def make_optimizer(
    config: ConfigDict, schedule: Schedule, frozen: Sequence[str] = ()
) -> optax.GradientTransformation:
    """Builds clipping and AdamW (beta 0.9 / 0.999, epsilon 1e-8) from the `optim` group.

    Args:
        config: Keys `weight_decay`; `no_decay`, regular expressions searched in parameter paths
            like `encoder/fusion/layer0/norm1/scale`; `grad_clip`, global norm, 0 disables.
        schedule: Learning rate.
        frozen: Regular expressions; parameters whose path one of them finds stay as they are, and
            take neither part in the norm of the gradient nor memory in the optimizer.

    Raises:
        ConfigError: A pattern that is no regular expression.
    """
    for pattern in config.no_decay:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(
                f"optim.no_decay holds {pattern!r}: {error}", expected="regular expressions"
            ) from error
    clip = optax.clip_by_global_norm(config.grad_clip) if config.grad_clip > 0 else optax.identity()
    decay = optax.add_decayed_weights(
        config.weight_decay, mask=lambda params: unmatched(params, config.no_decay)
    )
    trained = optax.chain(clip, optax.scale_by_adam(), decay, scale_by_rate(schedule))
    if not frozen:
        return trained

    def label(params: Params) -> Params:
        is_trained = unmatched(params, frozen)
        return jax.tree.map(lambda yes: "trained" if yes else "frozen", is_trained)

    return optax.partition({"trained": trained, "frozen": optax.set_to_zero()}, label)


def scale_by_rate(schedule: Schedule) -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by minus the learning rate at the training step.

    optax counts updates itself, but a skipped update must not hold the schedule back, so the step
    comes from outside, as the extra argument `step`.
    """

    def update(updates, state, params=None, *, step, **_):
        rate = schedule(step)
        return jax.tree.map(lambda u: -rate * u, updates), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def parameter_path(path: Sequence) -> str:
    """Turns a tree path into `a/b/c`."""
    names = ("key", "name", "idx")
    return "/".join(str(next(getattr(p, n) for n in names if hasattr(p, n))) for p in path)


def unmatched(params: Params, patterns: Sequence[str]) -> Params:
    """Returns True for every parameter whose path none of the patterns finds."""

    def is_free(path: Sequence, _) -> bool:
        return not any(re.search(pattern, parameter_path(path)) for pattern in patterns)

    return jax.tree_util.tree_map_with_path(is_free, params)
