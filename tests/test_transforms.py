"""Normalization: inverses, invalid sensors, and numbers of the predecessor."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xec_jax.errors import ConfigError
from xec_jax.transforms import PRESETS, SCHEMES, SensorTransform

GOLDEN = Path(__file__).parent / "golden" / "ref_normalization.npz"
AWKWARD = np.array([np.nan, np.inf, -np.inf, 1e10, 9.1e9, 0.0, -5.0, 1.0, 100.0, 1e5], np.float32)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(SCHEMES), st.floats(0.1, 1e6))
def test_npho_round_trip(scheme, photons):
    transform = SensorTransform(npho_scheme=scheme)
    back = transform.npho_inverse(transform.npho(jnp.float32(photons)))
    assert float(back) == pytest.approx(photons, rel=2e-5, abs=2e-4)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(sorted(PRESETS)), st.floats(-2e-7, 2e-7))
def test_time_round_trip(preset, seconds):
    transform = PRESETS[preset]
    back = float(transform.time_inverse(transform.time(jnp.float32(seconds))))
    assert back == pytest.approx(seconds, abs=3e-14)


def test_values_by_hand():
    new, legacy = PRESETS["new"], PRESETS["legacy"]
    assert float(new.npho(1e4)) == pytest.approx(np.log(11) / 4.08)
    assert float(new.npho(100.0)) == pytest.approx(0.02336, abs=1e-5)
    assert float(legacy.npho(1.0)) == pytest.approx(1.002, abs=1e-3)
    assert float(new.time(-1.1e-7 * 1.46 / 1.1 * 1.14)) == pytest.approx(-1.0, abs=0.01)


def test_awkward_values_under_the_positive_rule():
    x, valid = SensorTransform().encode(AWKWARD, np.zeros_like(AWKWARD))
    np.testing.assert_array_equal(valid[:, 0], [False] * 7 + [True] * 3)
    np.testing.assert_array_equal(valid[:, 1], valid[:, 0])
    assert np.isfinite(x).all()
    np.testing.assert_array_equal(x[:7], np.tile([0.0, -1.0], (7, 1)))


def test_awkward_times():
    npho = np.full_like(AWKWARD, 500)
    x, valid = SensorTransform().encode(npho, AWKWARD)
    assert valid[:, 0].all()
    np.testing.assert_array_equal(valid[:, 1], [False] * 5 + [True] * 5)
    assert (x[:5, 1] == -1).all()


def test_domain_rule_keeps_small_negatives_and_needs_photons_for_times():
    transform = SensorTransform(invalid_rule="domain", sentinel_npho=-1.0)
    npho = np.array([-5.0, -999.5, 0.0, 99.0, 100.0, 1e10], np.float32)
    x, valid = transform.encode(npho, np.zeros_like(npho))
    np.testing.assert_array_equal(valid[:, 0], [True] * 5 + [False])
    np.testing.assert_array_equal(valid[:, 1], [False] * 4 + [True, False])
    assert float(x[0, 0]) == pytest.approx(np.log1p(-0.005) / 4.08)
    assert float(x[1, 0]) == 0, "below the domain"
    assert float(x[5, 0]) == -1


def test_no_gradient_is_poisoned():
    def total(npho, time):
        return SensorTransform().encode(npho, time)[0].sum()

    for gradient in jax.grad(total, (0, 1))(jnp.array(AWKWARD), jnp.array(AWKWARD)):
        assert np.isfinite(gradient).all()


def test_wild_predictions_stay_finite():
    assert np.isfinite(SensorTransform().npho_inverse(np.float32(1e4)))


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_predecessor_seed_rule(preset):
    with np.load(GOLDEN) as golden:
        x, _ = PRESETS[preset].encode(golden["raw_npho"], golden["raw_time"])
        np.testing.assert_allclose(x[:, 0], golden[f"seedrule_{preset}_npho"], atol=2e-6)
        np.testing.assert_allclose(x[:, 1], golden[f"seedrule_{preset}_time"], atol=2e-6)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_predecessor_current_rule(preset):
    transform = dataclasses.replace(PRESETS[preset], invalid_rule="domain", sentinel_npho=-1.0)
    with np.load(GOLDEN) as golden:
        x, _ = transform.encode(golden["raw_npho"], golden["raw_time"])
        np.testing.assert_allclose(x, golden[f"currentrule_{preset}_x"], rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_predecessor_schemes(scheme):
    transform = SensorTransform(npho_scheme=scheme, npho_scale2=4.08)
    with np.load(GOLDEN) as golden:
        photons = golden["npho_in"]
        np.testing.assert_allclose(transform.npho(photons), golden[f"npho_{scheme}"], rtol=2e-6)
        back = transform.npho_inverse(golden[f"npho_{scheme}"])
        np.testing.assert_allclose(back, golden[f"npho_{scheme}_inv"], rtol=1e-5, atol=1e-2)
        assert float(transform.npho(100.0)) == pytest.approx(
            float(golden[f"thr100_{scheme}"]), rel=1e-6
        )


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("npho_scheme", "log", "log1p, sqrt"),
        ("invalid_rule", "seed", "positive, domain"),
        ("npho_scale", 0.0, "positive"),
        ("time_scale", 6.5e8, "1e-7"),
    ],
)
def test_bad_constants(key, value, message):
    with pytest.raises(ConfigError, match=message):
        SensorTransform(**{key: value})
