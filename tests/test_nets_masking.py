"""Which sensors are hidden."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import load

from xec_jax.nets.masking import event_noise, hide_flat, hide_per_face, hide_sensors

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


def test_each_face_has_its_own_exact_share():
    rng = np.random.default_rng(0)
    face = rng.integers(0, 3, 500)
    maskable = rng.uniform(size=(6, 500)) < 0.8
    noise = event_noise(jax.random.key(0), jnp.arange(6), 500)
    hidden = np.asarray(hide_per_face(maskable, noise, {0: 0.1, 2: 0.5}, face))
    assert not (hidden & ~maskable).any()
    for code, share in ((0, 0.1), (1, 0.0), (2, 0.5)):
        on = maskable & (face == code)
        expected = (np.float32(on.sum(1)) * np.float32(share)).astype(int)
        np.testing.assert_array_equal((hidden & on).sum(1), expected)


def flat(maskable, photons, ratio, key=0):
    noise = event_noise(jax.random.key(key), jnp.arange(len(photons)), 2 * photons.shape[1])
    n = photons.shape[1]
    choose = jax.jit(hide_flat)
    return np.asarray(choose(maskable, noise[:, :n], ratio, photons, noise[:, n:]))


def test_flat_masks_take_one_sensor_of_each_step_of_the_logarithm():
    """By the definition, in plain numpy: every filled step is hit, counts are exact."""
    rng = np.random.default_rng(1)
    photons = np.exp(rng.normal(3, 2.5, (5, 400))).astype(np.float32)
    maskable = rng.uniform(size=photons.shape) < 0.9
    photons[~maskable] = rng.choice([np.nan, 1e10, -5.0], (~maskable).sum())
    hidden = flat(maskable, photons, 0.25)
    assert not (hidden & ~maskable).any()
    for event in range(5):
        k = int(np.float32(maskable[event].sum()) * np.float32(0.25))
        assert hidden[event].sum() == k
        value = np.log(np.maximum(photons[event][maskable[event]], 0.01))
        edges = np.linspace(np.log(0.01), value.max() + 1e-3, k + 1)
        filled = np.unique(np.searchsorted(edges, value, "right"))
        hit = np.log(np.maximum(photons[event][hidden[event]], 0.01))
        missed = set(filled) - set(np.searchsorted(edges, hit, "right"))
        assert len(missed) <= 1  # a value on an edge may fall either way in float32
    assert 20 < k < 100


def test_flat_masks_refill_evenly():
    """Where all sensors share a step, all have the same chance."""
    photons = np.ones((400, 50), np.float32)
    photons[:, 0] = 1e4
    hidden = flat(np.ones_like(photons, bool), photons, 0.2)
    assert (hidden.sum(1) == 10).all()
    assert hidden[:, 0].all()
    share = hidden[:, 1:].mean(0)
    assert abs(share - 9 / 49).max() < 4 * (9 / 49 * 40 / 49 / 400) ** 0.5


@pytest.mark.parametrize("photons", [0.0, -3.0, 1e4])
def test_flat_masks_of_odd_events(photons):
    values = np.full((2, 40), photons, np.float32)
    maskable = np.ones(values.shape, bool)
    maskable[1] = False
    hidden = flat(maskable, values, 0.5)
    np.testing.assert_array_equal(hidden.sum(1), [20, 0])
    assert not flat(maskable, values, 0.01).any()
