"""Targets and their three forms, and the metrics of what is regressed."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xec_jax import metric_sums
from xec_jax.kinematics import angles_to_vector
from xec_jax.losses import ratio
from xec_jax.targets import QUANTITIES, Target
from xec_jax.train.step import Tally
from xec_jax.types import Mean

RNG = np.random.default_rng(0)
FOUR = ("angle", "energy", "timing", "uvwFI")


def target(name, loss_fn="l1", **options):
    return Target(name, QUANTITIES[name].branch or "n_gamma", loss_fn, **options)


def plain(sums):
    """Metrics as they are reported."""
    return metric_sums.derive(Tally.means([Tally.pack(sums)]))


# --- targets: raw numbers, outputs, physical values ---------------------------------------------


@pytest.mark.parametrize("name", FOUR)
@pytest.mark.parametrize("loss_fn", ["l1", "gaussian_nll", "quantile"])
def test_a_head_at_zero_predicts_the_mean(name, loss_fn):
    n = len(QUANTITIES[name].components)
    mean, std = tuple(range(1, n + 1)), tuple(range(2, n + 2))
    t = target(name, loss_fn, mean=mean, std=std)
    raw = jnp.zeros((2, t.n_raw))
    assert t.n_raw == n * {"gaussian_nll": 2, "quantile": 3}.get(loss_fn, 1)
    np.testing.assert_allclose(t.point(t.output(raw)), [mean, mean], rtol=1e-6)
    found = t.predictions(t.output(raw), {})
    if loss_fn == "gaussian_nll":
        np.testing.assert_allclose(np.ravel(found[f"pred_{name}_sigma"]), std * 2, rtol=1e-6)
    without = dataclasses.replace(t, mean=(), std=())
    raw = jnp.asarray(RNG.normal(size=(4, t.n_raw)), jnp.float32)
    if loss_fn != "quantile":
        np.testing.assert_array_equal(without.output(raw), raw)


def test_quantiles_cannot_cross():
    t = target(
        "uvwFI", "quantile", quantiles=(0.05, 0.16, 0.5, 0.84), mean=(1, 2, 3), std=(1, 1, 1)
    )
    raw = jnp.asarray(RNG.normal(size=(100, t.n_raw)) * 30, jnp.float32)
    levels = np.split(np.asarray(t.output(raw)), 4, -1)
    assert all((a <= b).all() for a, b in itertools.pairwise(levels))
    np.testing.assert_array_equal(t.point(t.output(raw)), levels[2])
    found = t.predictions(t.output(raw), {})
    np.testing.assert_array_equal(found["pred_uvwFI_low"], levels[0])
    np.testing.assert_array_equal(found["pred_uvwFI_high"], levels[3])


@pytest.mark.parametrize("loss_fn", ["smooth_l1", "l1", "mse", "gaussian_nll", "quantile"])
def test_azimuths_are_compared_without_whole_turns(loss_fn):
    t = target("angle", loss_fn)
    output = jnp.asarray(RNG.normal(90, 40, (16, t.n_raw)), jnp.float32)
    truth, weight = jnp.asarray(RNG.normal(90, 40, (16, 2)), jnp.float32), jnp.ones(16)
    turned = truth.at[:, 1].add(360.0 * RNG.integers(-2, 3, 16))
    want, slope = jax.value_and_grad(lambda o: ratio(t.loss(o, truth, weight)))(output)
    got, same = jax.value_and_grad(lambda o: ratio(t.loss(o, turned, weight)))(output)
    np.testing.assert_allclose(got, want, rtol=2e-4)
    np.testing.assert_allclose(same, slope, rtol=2e-3, atol=1e-4)
    direct = ratio(Mean(t.pointwise(output, truth).sum(), jnp.float32(32.0)))
    np.testing.assert_allclose(want, direct, rtol=1e-5)  # the predecessor's, for small differences
    copies, one = t.n_raw // 2, jnp.ones(1)
    across = t.loss(jnp.array([[90.0, 179.0] * copies]), jnp.array([[90.0, -179.0]]), one)
    inside = t.loss(jnp.array([[90.0, 9.0] * copies]), jnp.array([[90.0, 11.0]]), one)
    if loss_fn != "gaussian_nll":  # there the second number is a logarithm
        np.testing.assert_allclose(across.total, inside.total, rtol=1e-4)


@pytest.mark.parametrize("loss_fn", ["smooth_l1", "mse", "gaussian_nll", "quantile"])
def test_losses_in_standard_deviations_do_not_know_the_unit(loss_fn):
    """They are the losses of the head's raw numbers."""
    t = target("uvwFI", loss_fn, mean=(1.0, -20.0, 300.0), std=(0.01, 2.0, 50.0), in_std=True)
    raw = jnp.asarray(RNG.normal(size=(50, t.n_raw)), jnp.float32)
    truth = jnp.asarray(RNG.normal(size=(50, 3)), jnp.float32)
    got = t.loss(t.output(raw), jnp.asarray(t.mean) + jnp.asarray(t.std) * truth, jnp.ones(50))
    bare = dataclasses.replace(t, mean=(), std=())
    want = bare.loss(bare.output(raw), truth, jnp.ones(50))
    np.testing.assert_allclose(got.total, want.total, rtol=1e-3)
    assert got.weight == want.weight


def test_predicted_azimuths_are_within_half_a_turn():
    t = target("angle", "quantile")
    found = t.predictions(t.output(jnp.array([[88.0, 1.0, 90.0, 540.5, 1.0, 1.0]])), {})
    np.testing.assert_allclose(found["pred_angle"], [[90, -179.5]])
    assert found["pred_angle_low"][0, 1] < -179.5 < found["pred_angle_high"][0, 1]


def test_statistics_know_that_azimuths_are_periodic():
    phi = np.array([170.0, -170.0, 180.0, 180.0])
    mean, std = target("angle").statistics(np.stack([np.full(4, 60.0), phi], -1))
    assert mean == (60.0, 180.0)
    assert std == (60.0, pytest.approx(50**0.5, rel=1e-5))
    energies = np.array([[0.0528], [0.0528]])
    assert target("energy").statistics(energies) == ((0.0528,), (0.0528,)), "a line"


def test_the_logarithm_of_the_energy():
    t = target("energy", "gaussian_nll", log_transform=True)
    truth, is_known = t.truth({"energyTruth": np.array([0.0528, 0.0, 1e10])})
    np.testing.assert_allclose(np.exp(truth[:, 0]), [0.0528, 1e-6, 1.0], rtol=1e-5)
    np.testing.assert_array_equal(is_known, [True, True, False])
    found = t.predictions(jnp.log(jnp.array([[0.05, 0.01]])), {})
    np.testing.assert_allclose(found["pred_energy"], [0.05], rtol=1e-6)
    np.testing.assert_allclose(found["pred_energy_sigma"], [0.05 * 0.1], rtol=1e-5)


def test_classes():
    t = target("n_gamma", "cross_entropy")
    truth, is_known = t.truth({"n_gamma": np.array([0, 4, 5, -1], np.int32)})
    np.testing.assert_array_equal(is_known, [True, True, False, False])
    output = t.output(jnp.eye(5)[:4] * 9)
    assert np.isfinite(t.loss(output, truth, is_known * 1.0).total)
    found = t.predictions(output, {})
    np.testing.assert_array_equal(found["pred_n_gamma"], [0, 1, 2, 3])
    np.testing.assert_allclose(found["pred_n_gamma_probability"].sum(-1), 1, rtol=1e-6)
    score = metric_sums.class_sums(t, output, truth, is_known * 1.0)
    assert plain(score)["n_gamma_accuracy"] == 0.5


# --- metrics ------------------------------------------------------------------------------------


def test_metrics_against_plain_numpy():
    n = 4000
    t = target("angle", mean=(90.0, 170.0))
    truth = np.stack([RNG.normal(90, 15, n), RNG.uniform(100, 240, n)], -1)
    residual = RNG.normal([0.1, -0.2], [1.0, 2.0], (n, 2))
    weight = (np.arange(n) < 3900).astype(np.float32)
    wrapped = truth - [0, 360] * (truth > 180)
    found = plain(
        metric_sums.error_sums(t, *(jnp.float32(x) for x in (wrapped + residual, wrapped)), weight)
    )
    r = residual[:3900]
    for i, name in enumerate(("theta", "phi")):
        assert found[f"{name}_bias"] == pytest.approx(r[:, i].mean(), abs=1e-4)
        assert found[f"{name}_rms"] == pytest.approx(r[:, i].std(), rel=1e-3)
        m3 = ((r[:, i] - r[:, i].mean()) ** 3).mean()
        assert found[f"{name}_skew"] == pytest.approx(m3 / r[:, i].std() ** 3, abs=1e-3)
        skill = 1 - (r[:, i] ** 2).mean() / truth[:3900, i].var()
        assert found[f"{name}_skill"] == pytest.approx(skill, rel=1e-3)
        exact = np.percentile(np.abs(r[:, i]), 68)
        assert found[f"{name}_res_68pct"] == pytest.approx(exact, rel=0.02)
    a, b = (np.asarray(angles_to_vector(x))[:3900] for x in (truth + residual, truth))
    psi = np.rad2deg(np.arccos(np.clip((a * b).sum(-1), -1, 1)))
    exact = np.percentile(psi, 68)
    assert found["angle_resolution_68pct"] == pytest.approx(exact, rel=0.02)
    assert found["cos"] == pytest.approx((1 - np.cos(np.deg2rad(psi))).mean(), rel=1e-2)
    assert found["mse"] == pytest.approx(np.square(r).mean(), rel=1e-3)
    assert not [name for name in found if ":" in name]


@pytest.mark.parametrize("scale", [1e-3, 0.02, 3.0])
def test_percentiles_of_smooth_distributions_are_exact_to_a_percent(scale):
    error = np.float32(scale * RNG.normal(size=200_000))
    sums = metric_sums.percentile_sums("x", jnp.asarray(error), jnp.ones(len(error)), 100.0)
    exact = np.percentile(np.abs(error), 68)
    assert plain(sums)["x"] == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize(("value", "expected"), [(0.0, 1e-3), (1e9, 100.0), (np.nan, 100.0)])
def test_percentiles_beyond_the_thresholds(value, expected):
    sums = metric_sums.percentile_sums("x", jnp.full(5, value), jnp.ones(5), 100.0)
    assert plain(sums)["x"] == pytest.approx(expected)


def test_energy_time_and_position():
    truth, residual = np.full((1000, 1), 0.05), RNG.normal(0, 1e-3, (1000, 1))
    sums = metric_sums.error_sums(
        target("energy"), jnp.float32(truth + residual), jnp.float32(truth), jnp.ones(1000)
    )
    found = plain(sums)
    exact = np.percentile(np.abs(residual), 68)
    assert found["energy_res_68pct_mev"] == pytest.approx(1e3 * exact, rel=0.03)
    assert found["energy_rel_res_68pct"] == pytest.approx(exact / 0.05, rel=0.03)
    log = target("energy", log_transform=True)
    same = plain(
        metric_sums.error_sums(
            log, *(jnp.log(jnp.float32(x)) for x in (truth + residual, truth)), jnp.ones(1000)
        )
    )
    assert same["energy_rms"] == pytest.approx(found["energy_rms"], rel=1e-3)
    residual = RNG.normal(size=(1000, 3))
    found = plain(
        metric_sums.error_sums(
            target("uvwFI"), jnp.float32(residual), jnp.zeros((1000, 3)), jnp.ones(1000)
        )
    )
    distance = np.linalg.norm(residual, axis=-1)
    assert found["uvw_dist_mean"] == pytest.approx(distance.mean(), rel=1e-4)
    assert found["uvw_dist_68pct"] == pytest.approx(np.percentile(distance, 68), rel=0.03)
    assert set(metric_sums.units_of(target("timing"))) >= {"timing_rms", "timing_res_68pct_ps"}


def test_uncertainties_are_judged():
    truth = RNG.normal(size=(5000, 1))
    sigma = np.full((5000, 1), np.log(4.0))
    output = jnp.float32(np.concatenate([np.zeros_like(truth), sigma], -1))
    t = target("timing", "gaussian_nll")
    found = plain(metric_sums.error_sums(t, output, jnp.float32(truth), jnp.ones(5000)))
    assert found["timing_pull_rms"] == pytest.approx(0.5, rel=0.03)
    t = target("timing", "quantile")
    levels = jnp.tile(jnp.array([[-1.0, 0.0, 1.0]]), (5000, 1))
    found = plain(metric_sums.error_sums(t, levels, jnp.float32(truth), jnp.ones(5000)))
    assert found["timing_coverage"] == pytest.approx(0.683, abs=0.02)
