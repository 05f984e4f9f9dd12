"""Physical limits of events and sensors: known answers, draws, and the real bound once."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from scipy import stats

from xec_jax import simulate
from xec_jax.errors import DataError
from xec_jax.geometry import INNER_RADIUS_CM, INVALID, N_SENSORS
from xec_jax.kinematics import opening_angle, uvw_to_xyz, vector_to_angles
from xec_jax.sim import counting, fisher, limits
from xec_jax.sim.counting import counting_limit
from xec_jax.sim.limits import event_limits, expected_68, metrics_at_limit, sample_parameters
from xec_jax.sim.lxe_parameters import SIMULATION_VERSION, LxeParameters

DEFAULT = LxeParameters()
COUNTING = dataclasses.replace(
    DEFAULT,
    yield_spread=0.0,
    efficiency_spread=0.0,
    gain_spread=0.0,
    charge_spread=0.0,
    noise_phe=0,
)
C = 29.9792458


def truth_of(n, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "energyTruth": rng.uniform(0.015, 0.06, n).astype(np.float32),
        "uvwTruth": rng.uniform([-20, -60, 1], [20, 60, 15], (n, 3)).astype(np.float32),
        "timeTruth": rng.uniform(-10, 10, n).astype(np.float32),
        "xyzVTX": rng.normal(0, 1, (n, 3)).astype(np.float32),
    }


@pytest.fixture
def stub(monkeypatch):
    """A covariance that is easily computed by hand, in place of the calorimeter's."""
    calls = []

    def covariance(x, table, params, vertex, live, **other):
        calls.append({"x": x, "params": params, "vertex": vertex, "live": live, **other})
        dead = 1 + (~live).sum(1)
        scale = np.concatenate([0.01 * x[:, :1], 0.1 + 0.01 * x[:, 1:4] ** 2, x[:, :1]], 1)
        mixed = np.eye(5) + 0.3 * np.ones((5, 5))
        return scale[:, :, None] * scale[:, None] * mixed * dead[:, None, None]

    monkeypatch.setattr(fisher, "covariance", covariance)
    monkeypatch.setattr(fisher, "linear_covariance", covariance)
    monkeypatch.setattr(limits, "vertex_covariance", lambda _: np.diag([1.0, 2.0, 9.0]))
    return calls


# Events


def test_blocks_do_not_matter_and_have_one_shape(stub):
    truth, live = truth_of(150), np.random.default_rng(1).random((150, N_SENSORS)) < 0.9
    found = event_limits(truth, DEFAULT, live)
    assert {call["x"].shape for call in stub} == {(64, 5)}
    assert {call["live"].shape for call in stub} == {(64, N_SENSORS)}
    assert len(stub) == 3
    for i in (0, 63, 64, 149):
        one = event_limits({k: v[i : i + 1] for k, v in truth.items()}, DEFAULT, live[i : i + 1])
        for name, values in found.items():
            np.testing.assert_allclose(values[i : i + 1], one[name], rtol=1e-6, err_msg=name)
    with pytest.raises(DataError, match="at least one event"):
        event_limits(truth_of(0), DEFAULT)


def test_yield_and_calibration_are_taken_as_documented(stub):
    truth = truth_of(3)
    energy = np.asarray(truth["energyTruth"], float)
    found = event_limits(truth, DEFAULT)
    np.testing.assert_allclose(
        found["energy"], energy * np.hypot(0.01 * 1.3**0.5, 0.015), rtol=1e-5
    )
    np.testing.assert_allclose(found["relative_energy"], found["energy"] / energy, rtol=1e-6)
    assert stub[-1]["params"] == dataclasses.replace(DEFAULT, efficiency_spread=0, gain_spread=0)
    assert stub[-1]["live"].all()
    event_limits(truth, DEFAULT, known_sensors=False)
    assert stub[-1]["params"] == DEFAULT
    found = event_limits(truth, DEFAULT, showers=True, n_showers=7)
    np.testing.assert_allclose(found["energy"], energy * 0.01 * 1.3**0.5, rtol=1e-5)
    assert stub[-1]["n_showers"] == 7
    assert stub[-1]["x"].shape == (16, 5)


def test_direction_straight_ahead_is_position_over_distance(stub, monkeypatch):
    """At u = v = 0: u makes theta, v makes phi along the inner face, w and x make the time."""
    sigma = np.array([1e-3, 0.3, 0.2, 0.7, 0.05])
    monkeypatch.setattr(fisher, "covariance", lambda x, **_: np.tile(np.diag(sigma**2), (64, 1, 1)))
    truth = {k: v[:1] for k, v in truth_of(1).items()}
    truth |= {"uvwTruth": np.array([[0, 0, 5.0]]), "xyzVTX": np.zeros((1, 3))}
    found, far = event_limits(truth, DEFAULT), INNER_RADIUS_CM + 5
    known = np.rad2deg([0.3 / far, 0.2 / INNER_RADIUS_CM])
    np.testing.assert_allclose(found["angle_vertex"], [known], rtol=1e-4)
    np.testing.assert_allclose(found["opening_vertex"], [np.sort(known)], rtol=1e-4)
    unknown = [
        np.hypot(known[0], np.rad2deg(3 / far)),
        np.hypot(known[1], np.rad2deg(2**0.5 / far)),
    ]
    np.testing.assert_allclose(found["angle"], [unknown], rtol=1e-4)
    np.testing.assert_allclose(found["opening"], [np.sort(unknown)], rtol=1e-4)
    assert found["timing_vertex"][0] == pytest.approx(0.05)
    assert found["timing"][0] == pytest.approx(np.hypot(0.05, 1 / C))
    np.testing.assert_allclose(found["distance"], [[0.2, 0.3, 0.7]], rtol=1e-6)


def test_limits_are_those_of_drawn_estimates(stub):
    """Any place: estimates drawn with the covariance, vertices with theirs, directions exactly."""
    truth = truth_of(5, seed=4)
    found = event_limits(truth, DEFAULT)
    rng, n = np.random.default_rng(0), 40_000
    for i in range(5):
        x, vertex = stub[0]["x"][i], truth["xyzVTX"][i].astype(float)
        covariance = fisher.covariance(x[None], None, DEFAULT, None, np.ones((1, 1), bool))[0]
        drawn = 0.1 * rng.multivariate_normal(np.zeros(5), covariance, n)  # small: linear
        place = np.asarray(uvw_to_xyz(np.float64(x[1:4])), float)
        error = np.asarray(uvw_to_xyz(x[1:4] + drawn[:, 1:4]), float) - place
        away = 0.1 * rng.normal(0, [1, 2**0.5, 3], (n, 3))
        flight = place - vertex
        for suffix, moved in (("_vertex", 0.0), ("", 1.0)):
            direction = flight + error - moved * away
            angles = np.asarray(vector_to_angles(direction), float)
            np.testing.assert_allclose(angles.std(0) * 10, found[f"angle{suffix}"][i], rtol=0.03)
            psi = np.rad2deg(opening_angle(direction, flight))
            limit = expected_68(found[f"opening{suffix}"][i : i + 1])
            assert np.percentile(psi, 68) * 10 == pytest.approx(limit, rel=0.03)
            way = np.linalg.norm(flight - moved * away, axis=1) / C
            late = np.std(drawn[:, 4] + way)
            assert late * 10 == pytest.approx(found[f"timing{suffix}"][i], rel=0.03)
        length = np.percentile(np.linalg.norm(drawn[:, 1:4], axis=1), 68)
        assert length * 10 == pytest.approx(expected_68(found["distance"][i : i + 1]), rel=0.03)


def test_events_without_truth_are_left_out(stub):
    truth = truth_of(4)
    truth["uvwTruth"][1, 2], truth["xyzVTX"][2, 0], truth["energyTruth"][3] = np.nan, INVALID, 0
    found = event_limits(truth, DEFAULT)
    for name, values in found.items():
        np.testing.assert_array_equal(
            np.isfinite(values).reshape(4, -1).all(1), [True, False, False, False], err_msg=name
        )
    assert all(np.isfinite(value) for value in metrics_at_limit(found).values())
    del truth["xyzVTX"]
    with pytest.raises(DataError, match="uvwTruth"):
        event_limits(truth, DEFAULT)


def test_metrics_at_limit_are_percentiles_in_their_units(stub):
    found = event_limits(truth_of(1), DEFAULT)
    metrics = metrics_at_limit(found)
    assert metrics["energy_res_68pct"] == pytest.approx(0.99446 * found["energy"][0], rel=1e-4)
    for i, axis in enumerate("uvw"):
        wanted = 0.99446 * found["uvw"][0, i]
        assert metrics[f"uvw_{axis}_res_68pct"] == pytest.approx(wanted, rel=1e-4)
    for i, name in enumerate(("theta", "phi")):
        for suffix in ("", "_vertex"):
            wanted = 0.99446 * found[f"angle{suffix}"][0, i]
            assert metrics[f"{name}_res_68pct{suffix}"] == pytest.approx(wanted, rel=1e-4)
    assert metrics["angle_resolution_68pct"] > metrics["angle_resolution_68pct_vertex"]


def test_real_bound_of_pure_counting(monkeypatch):
    """Without knowing the place, energy is a little worse than one over the root of all counts."""
    monkeypatch.setattr(limits, "_POINTS_AT_ONCE", 6)
    truth = truth_of(3, seed=2)
    twice = {name: np.concatenate([values, values]) for name, values in truth.items()}
    live = np.ones((6, N_SENSORS), bool)
    live[3:] = np.random.default_rng(0).random((3, N_SENSORS)) < 0.5
    found = event_limits(twice, COUNTING, live)
    x = np.c_[truth["energyTruth"], truth["uvwTruth"], truth["timeTruth"]]
    respond = jax.jit(fisher.expected, static_argnums=2)
    counts = [float(respond(e, limits._design(), COUNTING).counts.sum()) for e in x]
    ratio = found["relative_energy"][:3] * np.sqrt(counts)
    assert (ratio > 0.999).all()
    assert (ratio < 1.5).all()
    for name, values in found.items():
        assert (values[3:] >= values[:3]).all(), name
    assert (found["energy"][3:] > 1.2 * found["energy"][:3]).all()


def test_vertices_are_those_of_a_spot_on_the_slanted_target():
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, DEFAULT.beam_sigma_cm, (2, 400_000))
    slant = np.deg2rad(DEFAULT.target_slant_deg)
    half_x = DEFAULT.target_half_length_cm * np.sin(slant)
    on_target = (x / half_x) ** 2 + (y / DEFAULT.target_half_height_cm) ** 2 < 1
    wanted = np.cov(np.stack([x, y, x / np.tan(slant)])[:, on_target])
    np.testing.assert_allclose(limits.vertex_covariance(DEFAULT), wanted, rtol=0.03, atol=0.1)


# Percentiles


@pytest.mark.parametrize("k", [1, 2, 3])
def test_equal_deviations_give_the_chi_distribution(k):
    wanted = stats.chi.ppf(0.68, k)
    assert expected_68(np.full((7, k), 2.5)) == pytest.approx(2.5 * wanted, rel=1e-5)
    assert expected_68(np.full(7, 1.0)) == pytest.approx(0.994458, rel=1e-5)
    assert expected_68(np.full((7, k), 1.0), 0.95) == pytest.approx(
        stats.chi.ppf(0.95, k), rel=1e-5
    )


@pytest.mark.parametrize("k", [1, 2, 3])
def test_unequal_deviations_give_the_percentile_of_draws(k):
    rng = np.random.default_rng(k)
    sigma = rng.exponential(1, (40, k)) * np.array([1, 0.1, 5])[:k] + 0.01
    sigma[0], sigma[1] = 1e6, 1e5  # nothing known
    drawn = np.linalg.norm(rng.normal(size=(20_000, 40, k)) * sigma, axis=-1)
    assert expected_68(sigma) == pytest.approx(np.percentile(drawn, 68), rel=0.01)
    assert expected_68(1e-9 * sigma) == pytest.approx(1e-9 * expected_68(sigma), rel=1e-6)


def test_events_that_do_not_count_in_a_percentile():
    sigma = np.array([1.0, np.nan, np.inf, 1.0])
    assert expected_68(sigma) == pytest.approx(0.994458, rel=1e-5)
    assert np.isnan(expected_68(sigma[1:3]))
    assert np.isnan(expected_68(np.zeros((0, 3))))
    assert expected_68(np.zeros(3)) == 0
    assert expected_68(np.array([0, 0, 0, 1.0])) == 0
    with pytest.raises(ValueError, match="4 components"):
        expected_68(np.ones((2, 4)))


# Sensors


def test_sensor_of_pure_counts_errs_as_poisson_numbers_do():
    mu = np.array([0.01, 0.3, 0.69, 0.7, 1.0, 4.5, 17.3, 29.9, 31.0, 4000.0])
    wanted = []
    for mean in mu:
        n = np.arange(stats.poisson.ppf(1 - 1e-14, mean) + 1)
        median = stats.poisson.median(mean)
        wanted.append((np.abs(n - median) * stats.poisson.pmf(n, mean)).sum())
    photons = np.zeros(N_SENSORS)
    photons[: len(mu)] = mu / COUNTING.sipm_efficiency
    found = counting_limit(photons, COUNTING)
    efficiency = COUNTING.sipm_efficiency
    np.testing.assert_allclose(found.mean_absolute[: len(mu)] * efficiency, wanted, rtol=6e-3)
    np.testing.assert_allclose(found.sigma[: len(mu)] * efficiency, np.sqrt(mu), rtol=1e-6)
    assert found.sigma[-1] == 0
    assert found.mean_absolute[-1] < 1e-5


def test_sensor_with_electronics_errs_as_drawn_charges_do():
    rng, mu = np.random.default_rng(0), np.array([0.0, 0.2, 1.0, 6.0, 25.0, 90.0, 3000.0])
    counts = rng.poisson(mu, (200_000, len(mu)))
    width = np.sqrt(DEFAULT.noise_phe**2 + DEFAULT.charge_spread**2 * counts)
    charge = counts + width * rng.normal(size=counts.shape)
    photons = np.zeros((2, N_SENSORS))
    photons[1, -len(mu) :] = mu / DEFAULT.pmt_efficiency
    found = counting_limit(photons, DEFAULT)
    here = np.s_[1, -len(mu) :]
    npho = charge / DEFAULT.pmt_efficiency
    np.testing.assert_allclose(found.sigma[here], npho.std(0), rtol=0.01)
    error = np.abs(npho - np.median(npho, 0)).mean(0)
    np.testing.assert_allclose(found.mean_absolute[here], error, rtol=0.01)
    assert found.mean_absolute[1, -1] == pytest.approx(np.sqrt(2 / np.pi) * found.sigma[1, -1])
    assert found.sigma.shape == photons.shape


def test_sensor_with_unknown_calibration_and_invalid_charges():
    photons = np.full(N_SENSORS, 1e5)
    photons[:4] = INVALID, np.nan, -np.inf, -30.0
    known, unknown = (
        counting_limit(photons, DEFAULT, known_sensors=value) for value in (True, False)
    )
    more = np.sqrt(unknown.sigma[5:] ** 2 - known.sigma[5:] ** 2)
    np.testing.assert_allclose(more, 1e5 * np.hypot(0.03, 0.01), rtol=1e-6)
    for found in (known, unknown):
        for values in found:
            assert np.isnan(values[:3]).all()
            assert np.isfinite(values[3:]).all()
        nothing = counting_limit(np.zeros(N_SENSORS), DEFAULT)
        assert found.sigma[3] == nothing.sigma[3] == pytest.approx(0.5 / 0.15)
    near = np.full(N_SENSORS, counting._EXACT_BELOW / DEFAULT.sipm_efficiency)
    for value in (True, False):  # no step where one formula follows the other
        ends = [
            counting_limit(near * f, DEFAULT, known_sensors=value)[1][0] for f in (0.9999, 1.0001)
        ]
        assert ends[0] == pytest.approx(ends[1], rel=2e-3)
    assert (unknown.mean_absolute[4:] > known.mean_absolute[4:]).all()


# Which detector it was


def test_parameters_come_back_from_a_sample(tmp_path, monkeypatch):
    def simulate_range(seed, start, stop, params, dead=None):
        return iter([{"event": np.arange(start, stop, dtype=np.int32)}])

    monkeypatch.setattr("xec_jax.sim.lxe.simulate_range", simulate_range)
    chosen = {"pileup_rate_hz": 1e6, "energy_mev": (20.0, 30.0), "solid_angle": True}
    paths = simulate.write_sample("lxe", tmp_path / "a", 4, files=2, parameters=chosen)
    wanted = LxeParameters(**chosen)
    assert sample_parameters(tmp_path / "a") == wanted
    assert sample_parameters(str(paths[1])) == wanted
    folder = simulate.cached_sample("lxe", 4, seed=0, cache_dir=tmp_path, parameters=chosen)
    assert sample_parameters(folder) == wanted


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"version": SIMULATION_VERSION + 1}, "version"),
        ({"kind": "muon"}, "'muon'"),
        ({"parameters": {"color": 1}}, "has no color"),
        ({"parameters": {"gain_spread": 7}}, "gain_spread"),
        ({"parameters": None}, "NoneType"),
        (None, "no entry 'kind'"),
        ("{", "Expecting"),
    ],
)
def test_samples_of_another_simulation_have_no_limits(tmp_path, caplog, change, why):
    assert sample_parameters(tmp_path) is None
    assert not caplog.text
    record = {"kind": "lxe", "version": SIMULATION_VERSION, "parameters": {}}
    (tmp_path / "sample.json").write_text(json.dumps(record))
    assert sample_parameters(tmp_path / "lxe_0000.root") == DEFAULT
    text = change if isinstance(change, str) else json.dumps(record | change if change else {})
    (tmp_path / "sample.json").write_text(text)
    assert sample_parameters(tmp_path) is None
    assert why in caplog.text
    assert "no physical limits" in caplog.text
