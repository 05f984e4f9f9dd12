"""Schedules against their closed form, and which parameters decay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from xec_jax.errors import ConfigError
from xec_jax.train.optim import make_optimizer, make_schedule, unmatched

LR, LOW, PER_EPOCH, EPOCHS, WARMUP = 2.5e-4, 1e-6, 10, 20, 3


def closed_form(e):
    if e < WARMUP:
        return LR * (0.01 + 0.99 * e / WARMUP)
    return LOW + 0.5 * (LR - LOW) * (1 + np.cos(np.pi * (e - WARMUP) / (EPOCHS - WARMUP)))


@pytest.mark.parametrize("per_step", [False, True])
def test_cosine(per_step):
    schedule = make_schedule(
        LR,
        scheduler="cosine",
        steps_per_epoch=PER_EPOCH,
        epochs=EPOCHS,
        warmup_epochs=WARMUP,
        lr_min=LOW,
        per_step=per_step,
    )
    for step in range(EPOCHS * PER_EPOCH):
        epoch = step / PER_EPOCH if per_step else step // PER_EPOCH
        assert float(schedule(step)) == pytest.approx(closed_form(epoch), rel=1e-4)


def test_constant():
    schedule = make_schedule(
        LR, scheduler=None, steps_per_epoch=PER_EPOCH, epochs=EPOCHS, warmup_epochs=WARMUP
    )
    assert {float(schedule(step)) for step in (0, 29, 10_000)} == {float(np.float32(LR))}


def test_rate_follows_the_step_not_the_updates():
    tx = make_optimizer(toy.config().optim, lambda step: 0.1 * step)
    params = {"kernel": jnp.array([0.0]), "bias": jnp.array([0.0])}
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = tx.update(ones, tx.init(params), params, step=7)
    np.testing.assert_allclose(updates["kernel"], -0.7, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheduler": "cosin"}, "perhaps cosine"),
        ({"scheduler": "cosine", "warmup_epochs": 20}, "warmup_epochs < train.epochs"),
    ],
)
def test_bad_schedules(options, message):
    with pytest.raises(ConfigError, match=message):
        make_schedule(LR, steps_per_epoch=PER_EPOCH, epochs=EPOCHS, **options)


def test_patterns_read_paths():
    params = {"encoder": {"norm": {"scale": 1, "bias": 2}, "dense": {"kernel": 3}}}
    assert unmatched(params, ("norm/", r"bias$")) == {
        "encoder": {"norm": {"scale": False, "bias": False}, "dense": {"kernel": True}}
    }


def test_adamw_first_step_by_hand():
    """Clip to norm 1, then lr (g/|g| + decay p): after one step Adam's ratio is the sign."""
    config = toy.config().optim
    params = {"kernel": jnp.array([2.0, -3.0]), "bias": jnp.array([1.0])}
    gradient = {"kernel": jnp.array([30.0, -40.0]), "bias": jnp.array([0.0])}
    tx = make_optimizer(config, lambda step: 0.1)
    updates, _ = tx.update(gradient, tx.init(params), params, step=0)
    new = optax.apply_updates(params, updates)
    expected = {
        "kernel": [2 - 0.1 * (1 + 0.01 * 2), -3 - 0.1 * (-1 + 0.01 * -3)],
        "bias": [1.0],
    }
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), new, expected)


def test_clipping_is_global():
    config = toy.config().optim
    config.grad_clip = 1.0
    tx = make_optimizer(config, lambda step: 1.0)
    clipped, _ = optax.clip_by_global_norm(1.0).update({"a": jnp.array([3.0, 4.0])}, None)
    np.testing.assert_allclose(clipped["a"], [0.6, 0.8], rtol=1e-6)
    state = tx.init({"a": jnp.zeros(2)})
    _, state = tx.update({"a": jnp.array([3.0, 4.0])}, state, {"a": jnp.zeros(2)}, step=0)
    first_moment = jax.tree.leaves(state)[1]
    np.testing.assert_allclose(first_moment, [0.06, 0.08], rtol=1e-5)
