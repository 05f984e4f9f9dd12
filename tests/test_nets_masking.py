"""Which sensors are hidden."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import load

from xec_jax.nets.masking import event_noise, hide_sensors

ARRAYS = load("ref_masking.npz")


@pytest.mark.parametrize(
    ("want", "noise", "ratio", "favor"),
    [
        ("mask65", "noise", 0.65, 1),
        ("mask65_strat", "noise", 0.65, 2),
        ("mask10", "noise2", 0.1, 1),
    ],
)
def test_masks_are_those_of_the_predecessor(want, noise, ratio, favor):
    x = ARRAYS["x"]
    favored = x[..., 0] > ARRAYS["threshold_norm"]
    got = hide_sensors(x[..., 1] != -1, ARRAYS[noise], ratio, favored, favor)
    np.testing.assert_array_equal(got, ARRAYS[want])


def test_masks_without_the_time_channel():
    x = ARRAYS["x"]
    got = hide_sensors(x[..., 0] != -1, ARRAYS["noise"], 0.65)
    np.testing.assert_array_equal(got, ARRAYS["mask_nphoonly"])


def test_counts_are_exact_even_with_ties():
    rng = np.random.default_rng(0)
    choose = jax.jit(hide_sensors)
    for _ in range(200):
        n_valid, ratio = rng.integers(0, 41), np.float32(rng.choice([0, 1, rng.random()]))
        maskable = rng.permutation(np.arange(40) < n_valid)[None]
        noise = rng.integers(0, rng.integers(1, 40), (1, 40)).astype(np.float32)
        hidden = np.array(choose(maskable, noise, ratio))
        assert hidden.sum() == int(np.float32(n_valid) * ratio)
        assert not (hidden & ~maskable).any()


def test_favored_sensors_are_hidden_more_often():
    noise = event_noise(jax.random.key(0), jnp.arange(20), 1000)
    favored = jnp.broadcast_to(jnp.arange(1000) < 500, (20, 1000))
    hidden = np.array(hide_sensors(jnp.ones((20, 1000), bool), noise, 0.3, favored, 2.0))
    assert hidden[:, :500].mean() > 1.6 * hidden[:, 500:].mean()
    assert (hidden.sum(1) == 300).all()


def test_one_ratio_per_event():
    noise = event_noise(jax.random.key(0), jnp.arange(3), 100)
    hidden = hide_sensors(jnp.ones((3, 100), bool), noise, jnp.array([0.0, 0.5, 1.0]))
    np.testing.assert_array_equal(hidden.sum(1), [0, 50, 100])


def test_noise_belongs_to_the_event_and_not_to_the_batch():
    key = jax.random.key(3)
    whole = event_noise(key, jnp.arange(8), 50)
    parts = [event_noise(key, jnp.array(p), 50) for p in ([6, 1], [0, 2, 3], [4, 5, 7])]
    order = [6, 1, 0, 2, 3, 4, 5, 7]
    np.testing.assert_array_equal(jnp.concatenate(parts), whole[jnp.array(order)])
    assert len(np.unique(whole)) > 390
    assert (np.array(whole) != event_noise(jax.random.key(4), jnp.arange(8), 50)).any()
