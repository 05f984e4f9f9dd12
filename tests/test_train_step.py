"""The promise of the contract: one device = many devices = accumulation, to float32 noise."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from xec_jax import config as configs
from xec_jax.data.arrays import ArraySource
from xec_jax.losses import ratio
from xec_jax.tasks.base import example_batch, make_task
from xec_jax.train.evaluate import evaluate
from xec_jax.train.mesh import batch_putter, for_steps, make_mesh, replicated
from xec_jax.train.step import Tally, init_state, make_eval_step, make_train_step
from xec_jax.types import Mean

CUTS = [(4, "jit", 1), (4, "pmap", 1), (1, "jit", 4), (4, "jit", 2), (2, "pmap", 2)]


def run(task, batch, params, tx, cut, steps, loss_fn=None, **options):
    """Parameters and metrics after some steps with a given cut of the batch."""
    n_devices, mode, accum = cut
    mesh = make_mesh(n_devices)
    put = batch_putter(mesh, mode)
    state = init_state(jax.tree.map(jnp.copy, params), tx, seed=1, with_ema="ema_decay" in options)
    state = for_steps(jax.device_put(state, replicated(mesh)), mesh, mode)
    step = make_train_step(
        loss_fn or task.loss, tx, mesh=mesh, mode=mode, accum_steps=accum, **options
    )
    tallies = []
    for _ in range(steps):
        state, tally = step(state, put(batch))
        tallies.append(tally)
    return jax.device_get(state), Tally.means(tallies)


def worst(a, b):
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(np.abs(x - y).max()), a, b)))


def toy_batch(n=16, weight=None):
    batch = example_batch(toy.SPEC, n)
    batch["x"] = np.random.default_rng(2).normal(size=(n, 3)).astype(np.float32)
    # Uneven weights: the last events are padding, so a mean of device means would be wrong.
    batch["weight"] = (np.arange(n) < n - 5).astype(np.float32) if weight is None else weight
    return batch


@pytest.mark.parametrize("cut", CUTS)
def test_toy_is_the_same_however_it_is_cut(cut):
    task = toy.task()
    params = task.init(jax.random.PRNGKey(0), None)
    arguments = (task, toy_batch(), params, optax.adam(1e-2))
    one, metrics = run(*arguments, (1, "jit", 1), 6, ema_decay=0.9)
    many, others = run(*arguments, cut, 6, ema_decay=0.9)
    assert worst(one.params, many.params) < 1e-6
    assert worst(one.ema, many.ema) < 1e-6
    assert metrics == pytest.approx(others, rel=1e-5)


def test_gradient_is_that_of_the_summed_terms():
    """Against plain differentiation of sum_k total_k / W_k on the whole batch."""
    task, batch = toy.task(), toy_batch()
    params = task.init(jax.random.PRNGKey(0), None)

    def loss(params):
        terms, _ = task.loss(params, batch, jax.random.fold_in(jax.random.PRNGKey(1), 0))
        return sum(term.total / term.weight for term in terms.values())

    gradient = jax.grad(loss)(params)
    for cut in [(1, "jit", 1), *CUTS]:
        state, _ = run(task, batch, params, optax.sgd(1.0), cut, 1)
        found = jax.tree.map(lambda old, new: old - new, params, state.params)
        assert worst(found, gradient) < 2e-6


def test_mean_of_device_means_would_be_wrong():
    """Shows that the uneven weights of these tests can tell the two objectives apart."""
    task, batch = toy.task(), toy_batch()
    params = task.init(jax.random.PRNGKey(0), None)
    key = jax.random.fold_in(jax.random.PRNGKey(1), 0)

    def loss(params, part):
        terms, _ = task.loss(params, part, key)
        return sum(ratio(term) for term in terms.values())

    whole = jax.grad(loss)(params, batch)
    parts = [{k: v[i:j] for k, v in batch.items()} for i, j in ((0, 4), (4, 11))]
    averaged = jax.tree.map(lambda a, b: (a + b) / 2, *(jax.grad(loss)(params, p) for p in parts))
    assert worst(whole, averaged) > 1e-2


@pytest.fixture(scope="module")
def tiny_mae():
    overrides = ["train=x", "demo.kind=lxe"]
    config = configs.load("configs/mae.py:tiny", [f"--config.data.{text}" for text in overrides])
    with config.unlocked():
        config.model.dropout = 0.0
        config.model.encoder_dim = 32
        config.model.num_heads = 4
    task = make_task(config)
    rng = np.random.default_rng(5)
    batch = example_batch(task.spec, 8)
    batch["npho"] = np.exp(rng.normal(4, 2, (8, 4760))).astype(np.float32)
    batch["npho"][rng.uniform(size=(8, 4760)) < 0.1] = 1e10
    batch["time"] = rng.uniform(0, 5e-8, (8, 4760)).astype(np.float32)
    batch["weight"] = np.array([1, 1, 1, 1, 1, 1, 0, 0], np.float32)
    params = jax.jit(task.init)(jax.random.PRNGKey(0), batch)
    return task, batch, params


@pytest.fixture(scope="module")
def one_device(tiny_mae):
    task, batch, params = tiny_mae
    return run(task, batch, params, optax.sgd(1e-2), (1, "jit", 1), 2)


@pytest.mark.parametrize(
    "cut", [(4, "jit", 1), (4, "pmap", 1), pytest.param((1, "jit", 2), marks=pytest.mark.slow)]
)
def test_masked_autoencoder_is_the_same_however_it_is_cut(tiny_mae, one_device, cut):
    """The real loss, its twelve denominators and its random masks.

    Plain gradient steps, because Adam divides tiny gradients by their own size and would turn
    float32 noise into whole steps.
    """
    (task, batch, params), (one, metrics) = tiny_mae, one_device
    many, others = run(task, batch, params, optax.sgd(1e-2), cut, 2)
    assert worst(one.params, params) > 1e-3, "something was learned"
    assert worst(one.params, many.params) < 1e-6
    assert metrics == pytest.approx(others, rel=2e-5)


def test_nonfinite_step_is_skipped_and_counted():
    task = toy.task()
    params = task.init(jax.random.PRNGKey(0), None)
    good, bad = toy_batch(), toy_batch()
    bad["x"][3, 1] = np.nan
    mesh = make_mesh(1)
    step = make_train_step(task.loss, optax.adam(1e-2), mesh=mesh, ema_decay=0.9)
    state = init_state(params, optax.adam(1e-2), seed=1, with_ema=True)
    state, first = step(state, good)
    before = jax.device_get(state)
    state, second = step(state, bad)
    after = jax.device_get(state)
    assert worst(before.params, after.params) == 0
    assert worst(before.ema, after.ema) == 0
    assert worst(before.opt_state, after.opt_state) == 0
    assert (after.step, after.skipped, after.skipped_in_row) == (2, 1, 1)
    means = Tally.means([first, second])
    assert means["skipped"] == 0.5
    assert means["loss"] == pytest.approx(Tally.means([first])["loss"]), "averages left alone"
    state, _ = step(state, good)
    assert int(state.skipped_in_row) == 0


def test_ema_against_a_plain_loop():
    task, batch = toy.task(), toy_batch()
    params = task.init(jax.random.PRNGKey(0), None)
    history, average = [], None
    for steps in range(1, 5):
        state, _ = run(task, batch, params, optax.sgd(0.1), (1, "jit", 1), steps, ema_decay=0.8)
        history.append(state.params["kernel"])
    for kernel in history:
        average = kernel if average is None else 0.8 * average + 0.2 * kernel
    np.testing.assert_allclose(state.ema["kernel"], average, rtol=1e-5)


def test_warm_average_follows_quickly_at_first():
    task, batch = toy.task(), toy_batch()
    params = task.init(jax.random.PRNGKey(0), None)
    average = None
    for done in range(5):
        options = {"ema_decay": 0.25, "ema_warmup": True}
        state, _ = run(task, batch, params, optax.sgd(0.1), (1, "jit", 1), done + 1, **options)
        decay = min(0.25, (1 + done) / (10 + done))
        kernel = state.params["kernel"]
        average = kernel if average is None else decay * average + (1 - decay) * kernel
    np.testing.assert_allclose(state.ema["kernel"], average, rtol=1e-5)


def test_optimizer_is_told_step_and_plateau():
    def update(grads, state, params=None, *, step, plateau, **extra):
        rate = 0.1 * plateau * (step + 1)
        return jax.tree.map(lambda g: -rate * g, grads), state

    tx = optax.GradientTransformationExtraArgs(lambda params: (), update)
    task, batch = toy.task(), toy_batch()
    params = task.init(jax.random.PRNGKey(0), None)
    step = make_train_step(task.loss, tx, mesh=make_mesh(1))
    moved = []
    for plateau in (1.0, 0.0):
        start = init_state(jax.tree.map(jnp.copy, params), tx, seed=1, with_ema=False)
        state, _ = step(start.replace(plateau=jnp.float32(plateau)), batch)
        assert float(state.plateau) == plateau
        moved.append(worst(params, state.params))
    assert moved[0] > 0
    assert moved[1] == 0


def test_term_without_any_event_contributes_nothing():
    task, batch = toy.task(), toy_batch()
    batch["x"][:, 0] = -1.0  # nothing is bright
    params = task.init(jax.random.PRNGKey(0), None)
    state, metrics = run(task, batch, params, optax.sgd(0.1), (1, "jit", 1), 2)
    assert np.isfinite(metrics["loss"])
    assert np.isfinite(state.params["kernel"]).all()
    assert int(state.skipped) == 0


@pytest.mark.parametrize(("n_devices", "mode"), [(1, "jit"), (4, "jit"), (4, "pmap")])
def test_evaluation_sums_terms(n_devices, mode):
    task, batch = toy.task(), toy_batch()
    params = task.init(jax.random.PRNGKey(0), None)
    mesh, key = make_mesh(n_devices), jax.random.PRNGKey(9)
    step = make_eval_step(task.evaluate, mesh=mesh, mode=mode)
    tally = step(params, batch_putter(mesh, mode)(batch), key)
    terms, metrics = task.loss(params, batch, key)
    means = Tally.means([tally])
    by_hand = {k: float(t.total / t.weight) for k, t in terms.items()}
    assert means["loss"] == pytest.approx(sum(by_hand.values()), rel=1e-5)
    assert means["loss_bright"] == pytest.approx(by_hand["bright"], rel=1e-5)
    assert means["chosen"] == pytest.approx(float(metrics["chosen"].total / 11), rel=1e-5)


@pytest.mark.parametrize("cut", [(1, "jit"), (4, "jit"), (4, "pmap"), (3, "jit")])
@pytest.mark.parametrize("size", [12, 24])
def test_metrics_do_not_depend_on_batches_that_do_not_divide(cut, size):
    """1 to 25 events in batches of 12 or 24: what is padded must not count."""
    task, (n_devices, mode) = toy.task(), cut
    params = task.init(jax.random.PRNGKey(0), None)
    mesh, key = make_mesh(n_devices), jax.random.PRNGKey(9)
    step = make_eval_step(task.evaluate, mesh=mesh, mode=mode)
    put = batch_putter(mesh, mode)
    keys = frozenset({"x", "weight", "_position", "_step"})
    for n in (1, 2, 11, 12, 13, 25):
        batch = toy_batch(n, np.ones(n, np.float32)) | {"_position": np.arange(n, dtype=np.int32)}
        found = evaluate(
            step, params, ArraySource({"x": batch["x"]}), size=size, put=put, keys=keys, key=key
        )
        terms, metrics = task.loss(params, batch, key)
        assert found == pytest.approx(
            Tally.means([Tally.pack(metrics, terms)]), rel=1e-5, nan_ok=True
        )


def test_nan_that_counted_stays_nan():
    one, nan = Mean(jnp.float32(1), jnp.float32(1)), Mean(jnp.float32(np.nan), jnp.float32(2))
    none = Mean(jnp.float32(0), jnp.float32(0))
    assert np.isnan(Tally.means([Tally.pack({}, {"a": one, "b": nan})])["loss"])
    assert Tally.means([Tally.pack({}, {"a": one, "b": none})])["loss"] == 1


def test_tally_adds_before_it_divides():
    tallies = [
        Tally.pack({"a": Mean(jnp.float32(t), jnp.float32(w)), "b": Mean(0.0, 0.0)})
        for t, w in ((1, 1), (8, 2), (0, 1))
    ]
    means = Tally.means(tallies)
    assert means["a"] == pytest.approx(9 / 4)
    assert np.isnan(means["b"])
    assert Tally.means([]) == {}


def test_one_compilation_per_step_function():
    task, batch = toy.task(), toy_batch()
    count = 0

    def counted(params, batch, key):
        nonlocal count
        count += 1
        return task.loss(params, batch, key)

    params = task.init(jax.random.PRNGKey(0), None)
    run(task, batch, params, optax.sgd(0.1), (4, "jit", 1), 5, loss_fn=counted)
    assert count == 1
