"""The Cramer-Rao bound and the fit that reaches it: closed forms, second ways, real events."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from xec_jax.errors import ConfigError
from xec_jax.geometry import INVALID, INVALID_ABOVE, N_SENSORS, SensorTable, design_positions
from xec_jax.kinematics import uvw_to_xyz
from xec_jax.plots.closure import bounds_figure, pulls_figure, ratio_figure
from xec_jax.sim import fisher, likelihood
from xec_jax.sim.fisher import information
from xec_jax.sim.lxe import photon_light, simulate_range
from xec_jax.sim.lxe_parameters import LxeParameters
from xec_jax.sim.lxe_readout import nominal_efficiency

DEFAULT = LxeParameters()
POINT = dataclasses.replace(DEFAULT, n_deposits=1, yield_spread=0.0, efficiency_spread=0.0)
COUNTING = dataclasses.replace(POINT, gain_spread=0.0, charge_spread=0.0, noise_phe=0.0)
DESIGN = design_positions()
TABLE = SensorTable(np.float32(DESIGN.positions), np.float32(DESIGN.normals), DESIGN.face)
EVENT = jnp.array([0.0528, 3.2, -11.0, 4.0, 1.5])
CENTERS = np.zeros((3, 3), np.float32)
OTHERS = jnp.array([[0.02, -20.0, 50.0, 1.2, -7.0], [0.05, 10.0, -30.0, 15.0, 9.0]])

respond = jax.jit(fisher.expected, static_argnums=2)
point_moments = jax.jit(fisher.point_moments, static_argnums=2)


def fit(npho, time, vertex=CENTERS):
    """Of three events: one compilation for all tests."""
    return likelihood.fit(npho, time, TABLE, POINT, vertex)


def random_case(seed, m=40, k=6):
    rng = np.random.default_rng(seed)
    slope, spread = rng.normal(size=(m, 5)), rng.normal(size=(k, m))
    return jnp.asarray(slope), jnp.asarray(rng.uniform(0.1, 3, m)), jnp.asarray(spread)


def as_files_have_it(at, charge=None):
    """Branches `npho` and `time` of one event whose sensors show exactly their means."""
    charge = at.counts if charge is None else charge
    npho = charge / nominal_efficiency(POINT)
    return npho[None], jnp.where(charge >= 5, at.time_ns * 1e-9, INVALID)[None]


# The information


def test_counts_that_scale_with_energy_give_one_over_the_root_of_their_sum():
    mu = jnp.array([3.0, 40.0, 500.0])
    found = information((mu / 0.05)[:, None], 1 / mu)
    assert 1 / jnp.sqrt(found[0, 0]) == pytest.approx(0.05 / np.sqrt(543.0), rel=1e-5)


def test_times_alone_give_the_error_of_a_weighted_mean():
    sigma = jnp.array([0.5, 1.0, 2.0])
    found = information(jnp.ones((3, 1)), sigma**-2)
    assert found[0, 0] == pytest.approx(4 + 1 + 0.25)


@pytest.mark.parametrize("seed", range(3))
def test_information_is_symmetric_positive_and_additive(seed):
    slope, weight, spread = random_case(seed)
    for matrix in (information(slope, weight), information(slope, weight, spread)):
        np.testing.assert_allclose(matrix, matrix.T, rtol=1e-4, atol=1e-4)
        assert (np.linalg.eigvalsh(matrix) > 0).all()
    parts = information(slope[:15], weight[:15]) + information(slope[15:], weight[15:])
    np.testing.assert_allclose(information(slope, weight), parts, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_common_errors_equal_the_inverse_of_the_full_covariance(seed):
    slope, weight, spread = (np.asarray(a, float) for a in random_case(seed))
    full = np.diag(1 / weight) + spread.T @ spread
    exact = slope.T @ np.linalg.inv(full) @ slope
    np.testing.assert_allclose(information(slope, weight, spread), exact, rtol=2e-3, atol=2e-3)


def test_inverse_survives_units_of_very_different_size():
    scale = np.array([1e4, 1e-3, 1.0, 30.0, 1e-2])
    matrix = np.asarray(information(*random_case(0)[:2]), float) * scale[:, None] * scale
    product = (
        fisher.invert(jnp.asarray(matrix))
        * scale[:, None]
        * scale
        @ (matrix / scale / scale[:, None])
    )
    np.testing.assert_allclose(product, np.eye(5), atol=1e-3)


# The calorimeter


def test_slopes_equal_differences():
    moments = point_moments(EVENT, TABLE, COUNTING)
    for k, step in enumerate([1e-3, 0.02, 0.02, 0.02, 0.1]):
        ends = [fisher.stack(respond(EVENT.at[k].add(s), TABLE, POINT)) for s in (step, -step)]
        difference = (ends[0] - ends[1]) / (2 * step)
        # The time walk of a mean is that of the measured charge, which these steps change.
        used = np.r_[np.ones(N_SENSORS, bool), np.full(N_SENSORS, k == 4)]
        scale = np.abs(moments.slope[:N_SENSORS, k]).max()
        np.testing.assert_allclose(
            moments.slope[used, k], difference[used], rtol=0.02, atol=0.01 * scale + 1e-3
        )


def test_energy_alone_is_as_good_as_its_photoelectrons():
    at, slope, _ = point_moments(EVENT, TABLE, COUNTING)
    weight = fisher.weights(at, COUNTING)[:N_SENSORS]
    found = information(slope[:N_SENSORS, :1], weight)[0, 0]
    assert 1 / np.sqrt(found) == pytest.approx(float(EVENT[0] / np.sqrt(at.counts.sum())), rel=1e-3)


def test_information_is_the_expected_curvature_of_the_likelihood():
    """For data at their means, second derivatives equal their expectation over all data."""
    at, slope, _ = point_moments(EVENT, TABLE, COUNTING)
    has_time = at.counts >= 5
    seen = likelihood.Measured(at.counts, jnp.ones(N_SENSORS, bool), at.time_ns, has_time)
    weight = jnp.concatenate([1 / at.counts, jnp.where(has_time, at.sigma_ns**-2, 0.0)])
    exact = information(slope, weight)
    steps = np.diag(1 / np.sqrt(np.diagonal(exact)))
    likely = jax.jit(likelihood.negative_log_likelihood, static_argnums=3)

    def value(step):
        return float(likely(EVENT + step, seen, TABLE, COUNTING))

    numeric = [
        [(value(a + b) - value(a - b) - value(b - a) + value(-a - b)) / 4 for a in steps]
        for b in steps
    ]
    np.testing.assert_allclose(numeric, steps @ np.asarray(exact) @ steps, atol=0.02)


def test_times_weigh_what_counts_above_the_threshold_do():
    mu = np.array([2.0, 5.0, 9.0, 60.0])
    counts = np.random.default_rng(0).poisson(mu, (400_000, 4))
    at = fisher.Response(jnp.asarray(mu), jnp.zeros(4), POINT.time_resolution_ns / np.sqrt(mu))
    mean = np.where(counts >= 5, counts, 0).mean(0) / POINT.time_resolution_ns**2
    np.testing.assert_allclose(fisher.weights(at, COUNTING)[4:], mean, rtol=0.01)


def test_bound_falls_with_light_and_rises_with_dead_sensors():
    events = jnp.stack([EVENT, *OTHERS])
    live = jnp.ones((3, N_SENSORS), bool)
    found = fisher.bound(events, TABLE, POINT, None, live)
    assert (found > 0).all()
    half = np.random.default_rng(0).random((3, N_SENSORS)) < 0.5
    assert (fisher.bound(events, TABLE, POINT, None, jnp.asarray(half)) > found).all()
    more = fisher.bound(events * jnp.array([2.0, 1, 1, 1, 1]), TABLE, POINT, None, live)
    assert (more[:, 1:] < found[:, 1:]).all()
    assert (more[:, 0] / 2 < found[:, 0]).all()


# Clouds


CLOUD = dataclasses.replace(DEFAULT, n_deposits=3)
SHOWERS = 6


@jax.jit
def draw_showers(x):
    """Charges and flight-corrected light paths of the showers that `cloud_moments` makes of x."""
    place = uvw_to_xyz(x[1:4])
    truth = {"xyzVTX": jnp.zeros(3), "xyzTruth": place, "energyTruth": x[0], "timeTruth": x[4]}
    truth["emiVec"] = place / jnp.linalg.norm(place)
    steady = dataclasses.replace(CLOUD, yield_spread=0.0)

    def one(key):
        flash, _ = photon_light(key, truth, TABLE, steady)
        way = flash.flight_cm + CLOUD.refractive_index * flash.path_cm
        return flash.photons * nominal_efficiency(CLOUD), flash.emission_ns + way / 29.9792458

    return jax.lax.map(one, jax.random.split(jax.random.key(0), SHOWERS))


def showers_at(x):
    return np.concatenate([np.asarray(a, float) for a in draw_showers(jnp.asarray(x))], axis=1)


def numeric_cloud():
    """Showers around EVENT and differences of their means, without `fisher`."""
    each = showers_at(EVENT)
    steps = np.diag([1e-3, 0.02, 0.02, 0.02, 0.1]).astype(np.float32)
    ends = [[showers_at(EVENT + sign * step).mean(0) for sign in (1, -1)] for step in steps]
    slope = np.stack([(a - b) / (2 * step.sum()) for (a, b), step in zip(ends, steps, strict=True)])
    by_yield = np.r_[CLOUD.yield_spread * each.mean(0)[:N_SENSORS], np.zeros(N_SENSORS)]
    return each, slope.T, by_yield


def test_linear_resolution_is_that_of_the_sample_covariance():
    """The whole of it a second time: differences, a covariance from numpy, a full inverse."""
    each, slope, by_yield = numeric_cloud()
    mu = each[:, :N_SENSORS].mean(0)
    sigma = CLOUD.time_resolution_ns / np.sqrt(np.maximum(mu, 1))
    at = fisher.Response(jnp.asarray(mu), jnp.zeros(N_SENSORS), jnp.asarray(sigma))
    weight = np.asarray(fisher.weights(at, CLOUD), float)
    # One sensor of eight: a full covariance that is quickly inverted.
    used = np.flatnonzero(weight[:N_SENSORS] > 1e-4)[::8]
    live = np.isin(np.arange(N_SENSORS), used)
    used = np.r_[used, used + N_SENSORS]
    full = np.cov(each[:, used].T) + np.outer(by_yield, by_yield)[np.ix_(used, used)]
    full[np.diag_indices_from(full)] += 1 / np.maximum(weight[used], 1e-12)
    wanted = slope[used].T @ np.linalg.solve(full, slope[used])
    wanted = np.sqrt(np.diagonal(np.linalg.inv(wanted)))
    key, events = jax.random.key(0), EVENT[None]
    found = fisher.linear_resolution(events, TABLE, CLOUD, key, None, live[None], SHOWERS)
    np.testing.assert_allclose(found[0], wanted, rtol=0.02)


@pytest.mark.slow  # a compilation of ten seconds
def test_moments_of_clouds_are_those_of_their_showers():
    each, slope, by_yield = numeric_cloud()
    compiled = jax.jit(fisher.cloud_moments, static_argnums=(2, 4))
    moments = compiled(EVENT, TABLE, CLOUD, jax.random.key(0), SHOWERS)
    spread = np.asarray(moments.spread, float)
    for weight in np.random.default_rng(0).normal(size=(9, 2 * N_SENSORS)) / each.std(0):
        wanted = (each @ weight).var(ddof=1) + (by_yield @ weight) ** 2
        assert ((spread @ weight) ** 2).sum() == pytest.approx(wanted, rel=1e-2)
    scale = np.abs(slope).max(0)
    np.testing.assert_allclose(moments.slope / scale, slope / scale, atol=0.01)
    weight = fisher.weights(moments.response, CLOUD)
    alone = np.asarray(information(moments.slope, weight))
    cloudy = np.asarray(information(moments.slope, weight, moments.spread))
    assert (np.diagonal(fisher.invert(cloudy)) > np.diagonal(fisher.invert(alone))).all()


# Likelihood and fit


@pytest.mark.parametrize("params", [COUNTING, POINT, DEFAULT], ids=["counts", "point", "all"])
@pytest.mark.parametrize(
    ("charge", "counts"), [(-0.8, 2.0), (0, 3.0), (7, 5.0), (900, 1000.0), (4e4, 39500.0)]
)
def test_deviance_is_the_integral_of_its_score(params, charge, counts):
    charge = charge if params.noise_phe > 0 else max(charge, 0)  # counts are not negative

    def score(t):
        return 2 * (t - charge) / float(fisher.charge_variance(jnp.array(t), params))

    exact, _ = quad(score, max(charge, 0), counts)
    found = likelihood.charge_deviance(jnp.array(float(charge)), jnp.array(counts), params)
    assert found == pytest.approx(exact, rel=2e-3, abs=1e-3)


def test_fit_of_perfect_data_gives_the_truth_also_with_dead_channels():
    events = jnp.stack([EVENT, *OTHERS])
    arrays = [as_files_have_it(respond(x, TABLE, POINT)) for x in events]
    npho, time = (np.array(jnp.concatenate(a)) for a in zip(*arrays, strict=True))
    npho[1, ::3], time[1, ::3], time[2, 5:] = INVALID, INVALID, np.nan
    npho[2, 7::5] = np.nan
    found = fit(npho, time)
    sigma = np.sqrt(np.diagonal(np.asarray(found.covariance), axis1=1, axis2=2))
    assert found.converged.all()
    assert (np.abs(found.estimate - events) < 0.05 * sigma).all()
    assert (found.chi2 < 0.05 * found.freedom).all()


def test_fit_stays_inside_the_walls_and_says_when_it_saw_nothing():
    shallow = EVENT.at[3].set(0.021)
    npho, time = as_files_have_it(respond(shallow, TABLE, POINT))
    npho, time = (jnp.tile(a, (3, 1)) for a in (npho, time))
    npho = npho.at[1].set(INVALID).at[2].set(0.0)
    time = time.at[1:].set(INVALID)
    found = fit(npho, time)
    assert np.isfinite(found.estimate).all()
    assert (found.estimate[:, 3] >= likelihood.LOWEST_DEPTH_CM).all()
    assert not found.converged[1]
    lost = np.array([[0, 0, 0], [0, 0, np.nan], [0, np.inf, 0]], np.float32)
    npho, time = (jnp.tile(a[:1], (3, 1)) for a in (npho, time))
    np.testing.assert_array_equal(fit(npho, time, lost).converged, [True, False, False])


def test_fit_of_drawn_events_is_as_good_as_the_bound_says():
    rng = np.random.default_rng(5)
    events = jnp.stack([EVENT, *OTHERS])
    at = jax.tree.map(lambda *a: np.stack(a), *(respond(x, TABLE, POINT) for x in events))
    limit = fisher.bound(events, TABLE, POINT, None, jnp.ones((3, N_SENSORS), bool))
    pulls = []
    for _ in range(4):
        counts = rng.poisson(at.counts)
        spread = np.sqrt(counts * POINT.charge_spread**2 + POINT.noise_phe**2)
        charge = counts + spread * rng.normal(size=counts.shape)
        # The time walk is that of each signal, not of the mean one.
        root, mean_root = np.sqrt(np.maximum(counts, 1)), np.sqrt(np.maximum(at.counts, 1))
        late = POINT.time_walk_ns * (1 / root - 1 / mean_root)
        jitter = POINT.time_resolution_ns / root * rng.normal(size=counts.shape)
        time = np.where(charge >= 5, (at.time_ns + late + jitter) * 1e-9, INVALID)
        npho = charge / nominal_efficiency(POINT)
        found = fit(npho.astype(np.float32), time.astype(np.float32))
        assert found.converged.all()
        assert np.abs(found.chi2 / found.freedom - 1).max() < 0.15
        pulls.append((found.estimate - events) / limit)
    total = (np.array(pulls) ** 2).sum()
    assert total == pytest.approx(60, abs=5 * np.sqrt(2 * 60))


def test_figures_show_every_number_even_those_beyond_the_axis():
    rng = np.random.default_rng(0)
    bins = [{"w": (k, k + 1), "n": 50, "ratio": np.array([1, 1.1, 0.9, 1, 9.0])} for k in range(3)]
    found = {"ratio": np.ones(5), "ratio_error": 0.02, "depth_bins": bins}
    ratios = ratio_figure({"a": found, "b": found}, 0.3)
    triangles = [line for line in ratios.axes[1].lines if line.get_marker() == "^"]
    drawn = np.concatenate([line.get_ydata() for line in triangles])
    assert len(drawn) == 3
    assert drawn.max() < ratios.axes[1].get_ylim()[1]
    line = {"w": np.arange(1, 5), "energy": np.arange(1, 4), "by_w": rng.uniform(1, 2, (4, 5))}
    line["by_energy"] = rng.uniform(1, 2, (3, 5))
    assert len(bounds_figure({"a": line, "b": line}).axes) == 8
    pulls = pulls_figure({"a": np.tile([[1.0], [3.0]], (50, 5))})
    assert pulls.axes[4].texts[0].get_text() == "+2.00 ± 1.00"


@pytest.mark.slow
@pytest.mark.parametrize("params", [COUNTING, POINT], ids=["counts", "electronics"])
def test_resolution_of_simulated_events_is_within_ten_percent_of_the_bound(params):
    """With 2000 events a width is known to 1.6 %: six standard deviations are 10 %."""
    pulls = []
    for block in simulate_range(3, 0, 2048, params):
        x = np.c_[block["energyTruth"], block["uvwTruth"], block["timeTruth"]]
        vertex, live = block["xyzVTX"], block["npho"] < INVALID_ABOVE
        found = likelihood.fit(block["npho"], block["time"], TABLE, params, vertex)
        limit = fisher.bound(x, TABLE, params, vertex, live)
        used = np.asarray(found.converged) & (x[:, 3] > 0.3)
        assert used.mean() > 0.85
        pulls.append(((found.estimate - x) / limit)[used])
    pulls = np.concatenate(pulls)
    assert len(pulls) > 1850
    np.testing.assert_allclose(np.sqrt((pulls**2).mean(0)), 1, atol=0.10)
    np.testing.assert_allclose(pulls.mean(0), 0, atol=0.10)


def test_parameters_of_another_shape_are_refused():
    with pytest.raises(ConfigError, match=r"shape \(1, 4\)"):
        fisher.bound(np.ones((1, 4)), TABLE, LxeParameters())
