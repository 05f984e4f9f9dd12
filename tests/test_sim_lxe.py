"""The simulated calorimeter: optics against closed forms, statistics, truth, determinism."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import poisson

from xec_jax.errors import ConfigError
from xec_jax.geometry import FACES, INNER_RADIUS_CM, N_SIPM, PMT_RADIUS_CM, design_positions
from xec_jax.kinematics import angles_to_vector, uvw_to_xyz
from xec_jax.sim.lxe import INVALID, sample_truth, simulate_events, simulate_range
from xec_jax.sim.lxe_optics import expected_light
from xec_jax.sim.lxe_parameters import LxeParameters
from xec_jax.sim.poisson import sample_poisson
from xec_jax.sim.solid_angle import disc_solid_angle, rectangle_solid_angle, sipm_solid_angle

PARAMS = LxeParameters()
TABLE = design_positions()


def collect(*args, **options):
    chunks = list(simulate_range(*args, **options))
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


@pytest.fixture(scope="module")
def events():
    return collect(5, 0, 256)


@pytest.fixture(scope="module")
def ideal_events():
    """Point-like showers of one energy, no dead channels, no time jitter."""
    params = LxeParameters(
        energy_mev=(52.8, 52.8),
        n_deposits=1,
        yield_spread=0,
        time_resolution_ns=0,
        dead_fraction=0,
    )
    return collect(6, 0, 128, params)


# Solid angles


@pytest.mark.parametrize("height", [0.01, 0.5, 3.0, 40.0])
def test_disc_on_axis_is_a_cone(height):
    exact = 2 * np.pi * (1 - height / np.hypot(height, PMT_RADIUS_CM))
    tolerance = 1e-5 if height > 0.3 else 0.05
    assert disc_solid_angle(0.0, height, PMT_RADIUS_CM) == pytest.approx(exact, rel=tolerance)


def test_disc_off_axis_equals_a_fine_sum_over_its_area():
    edge = np.linspace(-1, 1, 2001)[:-1] + 5e-4
    x, y = np.meshgrid(edge, edge)
    x, y = x[x**2 + y**2 < 1], y[x**2 + y**2 < 1]
    for lateral, height in [(0.5, 0.8), (1.0, 0.8), (4.0, 0.7), (20.0, 3.0)]:
        cubed = ((x - lateral) ** 2 + y**2 + height**2) ** 1.5
        summed = (height / cubed).sum() * 1e-6
        assert disc_solid_angle(lateral, height, 1.0) == pytest.approx(summed, rel=1e-3)


@pytest.mark.parametrize("height", [0.01, 0.5, 3.0, 40.0])
def test_rectangle_on_axis_has_its_closed_form(height):
    a, b = 0.6, 1.1
    exact = 4 * np.arcsin(a * b / np.sqrt((a**2 + height**2) * (b**2 + height**2)))
    assert rectangle_solid_angle(0.0, 0.0, height, a, b) == pytest.approx(exact, rel=1e-5)


def test_rectangle_off_axis_equals_the_sum_of_four_corners():
    x, y, z = np.random.default_rng(0).normal(0, 15, (3, 1000))
    z = abs(z) + 0.1

    def corner(x, y):
        return np.arctan(x * y / (z * np.sqrt(x * x + y * y + z * z)))

    exact = sum(i * j * corner(i * 0.59 - x, j * 0.59 - y) for i in (-1, 1) for j in (-1, 1))
    found = rectangle_solid_angle(*(jnp.asarray(v, jnp.float32) for v in (x, y, z)), 0.59, 0.59)
    np.testing.assert_allclose(found, exact, rtol=2e-5)


def test_package_is_its_active_area_from_far_and_nothing_from_behind():
    assert sipm_solid_angle(0.0, 0.0, 200.0) == pytest.approx(4 * 0.59**2 / 200**2, rel=1e-4)
    assert sipm_solid_angle(0.1, 0.2, -1.0) == 0
    assert disc_solid_angle(0.3, -1.0, 2.25) == 0


def test_all_sensors_together_see_less_than_the_sphere():
    params = LxeParameters(diffuse_fraction=0, attenuation_cm=1e9)
    for uvw in [(0, 0, 2), (0, 0, 20), (20, 60, 10), (-10, -30, 35)]:
        light, _ = expected_light(uvw_to_xyz(np.array([uvw], float)), jnp.ones(1), TABLE, params)
        assert 0.2 < light.sum() < 1


def test_inner_wall_shadows_the_far_ends():
    params = LxeParameters(diffuse_fraction=0)
    ends = np.isin(TABLE.face, [FACES.index("top"), FACES.index("bot")])
    radius = np.hypot(*TABLE.positions[:, :2].T)

    def light_from(w):
        source = uvw_to_xyz(np.array([[0.0, 0.0, w]]))
        return np.asarray(expected_light(source, jnp.ones(1), TABLE, params)[0])

    # Tangents to the inner cylinder reach acos(R / r1) + acos(R / r2); the ends are at 62.8 deg.
    assert (light_from(1.0)[ends] == 0).all()
    assert (light_from(10.0)[ends & (radius < 70)] == 0).all()
    assert (light_from(10.0)[ends & (radius > 100)] > 0).all()
    assert (light_from(1.0)[TABLE.face == FACES.index("outer")] > 0).any()


# Statistics


@pytest.mark.parametrize("mean", [0.01, 0.3, 3.0, 15.9, 16.1, 40.0, 1000.0, 1e5])
def test_poisson_mean_and_variance(mean):
    n = 200_000
    drawn = np.asarray(sample_poisson(jax.random.key(1), jnp.full(n, mean)), float)
    assert (drawn >= 0).all()
    assert (drawn == np.round(drawn)).all()
    assert drawn.mean() == pytest.approx(mean, abs=5 * np.sqrt(mean / n))
    error = np.sqrt((2 * mean**2 + mean) / n)
    assert drawn.var() == pytest.approx(mean, abs=5 * error)


@pytest.mark.parametrize("mean", [2.5, 17.0])
def test_poisson_has_the_right_distribution(mean):
    n = 200_000
    drawn = np.asarray(sample_poisson(jax.random.key(2), jnp.full(n, mean)), int)
    expected = n * poisson.pmf(np.arange(80), mean)
    counts = np.bincount(drawn, minlength=80)[:80]
    filled = expected > 20
    chi2 = ((counts - expected) ** 2 / expected)[filled].sum()
    assert chi2 < filled.sum() + 5 * np.sqrt(2 * filled.sum())


def test_poisson_of_nothing_is_nothing():
    assert (sample_poisson(jax.random.key(0), jnp.zeros(1000)) == 0).all()


# Truth


def test_branches_have_their_types_shapes_and_ranges(events):
    shapes = {
        **dict.fromkeys(("npho", "time", "relative_npho", "relative_time"), (256, 4760)),
        **dict.fromkeys(("xyzVTX", "xyzTruth", "uvwTruth", "emiVec"), (256, 3)),
        "emiAng": (256, 2),
    }
    integers = {
        "run": "int32",
        "event": "int32",
        "ch_npho_max": "int16",
        "ch_time_min": "int16",
    }
    assert len(events) == 17
    for name, values in events.items():
        assert values.dtype == integers.get(name, "float32"), name
        assert values.shape == shapes.get(name, (256,)), name
        assert np.isfinite(values).all(), name
    energy, (u, v, w) = events["energyTruth"], events["uvwTruth"].T
    assert 0.015 <= energy.min() < 0.02 < 0.055 < energy.max() <= 0.060
    assert np.abs(events["timeTruth"]).max() <= 10
    assert np.abs(v).max() < 69
    assert np.abs(u).max() < 40
    assert w.min() > 0
    assert w.max() < 38.5
    assert 1.5 < np.median(w) < 3.5
    assert np.abs(events["xyzVTX"][:, :2]).max() <= 2.4
    assert 1 < events["xyzVTX"][:, 2].std() < 5
    assert events["emiAng"][:, 0].min() > 40
    assert events["emiAng"][:, 0].max() < 140
    np.testing.assert_array_equal(events["event"], np.arange(256))


def test_truth_is_consistent_with_itself(events):
    flight = events["xyzTruth"] - events["xyzVTX"]
    unit = flight / np.linalg.norm(flight, axis=1, keepdims=True)
    np.testing.assert_allclose(events["emiVec"], unit, atol=1e-5)
    np.testing.assert_allclose(angles_to_vector(events["emiAng"]), events["emiVec"], atol=1e-5)
    np.testing.assert_allclose(uvw_to_xyz(events["uvwTruth"]), events["xyzTruth"], atol=1e-3)


def test_conversion_depth_is_exponential_along_the_flight():
    truth = sample_truth(jax.random.key(3), 20_000, PARAMS)
    # The way from the inner face on; the cylinder is crossed at w = 0.
    xyz, direction = np.asarray(truth["xyzTruth"], float), np.asarray(truth["emiVec"], float)
    a = (direction[:, :2] ** 2).sum(1)
    b = (xyz[:, :2] * direction[:, :2]).sum(1)
    c = (xyz[:, :2] ** 2).sum(1) - INNER_RADIUS_CM**2
    path = (b - np.sqrt(np.maximum(b * b - a * c, 0))) / a
    assert path.mean() == pytest.approx(3.5, rel=0.03)
    assert np.median(path) == pytest.approx(3.5 * np.log(2), rel=0.04)


def test_energy_can_be_a_line_and_nonsense_is_refused(ideal_events):
    np.testing.assert_allclose(ideal_events["energyTruth"], 0.0528, rtol=1e-6)
    with pytest.raises(ConfigError, match="energy"):
        LxeParameters(energy_mev=(60, 15))
    with pytest.raises(ConfigError, match="dead_fraction"):
        LxeParameters(dead_fraction=1.0)


# Response


def test_light_grows_with_energy():
    key = jax.random.key(4)
    params = LxeParameters(yield_spread=0, dead_fraction=0, n_deposits=1)
    truth = sample_truth(key, 1, params)
    truth = {name: jnp.repeat(values, 4, 0) for name, values in truth.items()}
    energy = jnp.array([0.01, 0.02, 0.04, 0.06])
    truth |= {"energyTruth": energy, "event": jnp.arange(4)}
    light = np.asarray(simulate_events(key, truth, TABLE, params)["npho"], float).sum(1)
    np.testing.assert_allclose(light / energy, light[-1] / energy[-1], rtol=0.02)


def test_inner_light_sits_at_the_conversion(events):
    inner = np.where(events["npho"] < 9e9, events["npho"], 0)[:, :N_SIPM].clip(0) ** 2
    u = TABLE.positions[:N_SIPM, 2]
    v = -(np.arange(N_SIPM) // 44 - 46) * np.deg2rad(1.34968) * INNER_RADIUS_CM
    shallow = (events["uvwTruth"][:, 2] < 5) & (np.abs(events["uvwTruth"][:, 0]) < 22)
    for i, position in enumerate((u, v)):
        centroid = inner @ position / inner.sum(1)
        error = (centroid - events["uvwTruth"][:, i])[shallow]
        assert np.abs(np.median(error)) < 0.3
        assert np.percentile(np.abs(error), 68) < 1.5


def test_sizes_of_signals_are_realistic(events):
    live = events["npho"] < 9e9
    total = np.where(live, events["npho"], 0).sum(1)
    assert 1e5 < np.percentile(total, 1) < np.percentile(total, 99) < 2e6
    scaled = np.log1p(events["npho_max_used"] / 1000) / 4.08
    assert 0.5 < np.median(scaled) < 1.0
    faint = np.median(events["npho"][live])
    assert 1 < faint < 100
    for face in range(len(FACES)):
        assert (np.median(events["npho"][:, TABLE.face == face]) > 5).all()


def test_time_rises_with_distance_at_the_speed_of_light(ideal_events):
    source, position = ideal_events["xyzTruth"].astype(float), TABLE.positions
    for i in range(5):
        measured = ideal_events["time"][i] < 9e9
        distance = np.linalg.norm(position[measured] - source[i], axis=1)
        slope, start = np.polyfit(distance, ideal_events["time"][i][measured] * 1e9, 1)
        assert slope == pytest.approx(1.7 / 29.979, rel=1e-3)
        flight = np.linalg.norm(source[i] - ideal_events["xyzVTX"][i]) / 29.979
        assert start == pytest.approx(ideal_events["timeTruth"][i] + flight, abs=0.01)


def test_relative_branches_invert_to_the_absolute_ones(events):
    rows = np.arange(256)
    np.testing.assert_array_equal(
        events["npho"][rows, events["ch_npho_max"]], events["npho_max_used"]
    )
    np.testing.assert_array_equal(
        events["time"][rows, events["ch_time_min"]], events["time_min_used"]
    )
    live = events["npho"] < 9e9
    rebuilt = events["relative_npho"] * events["npho_max_used"][:, None]
    np.testing.assert_allclose(rebuilt[live], events["npho"][live], rtol=1e-5)
    assert events["relative_npho"][live].max() == 1
    has_time = events["time"] < 9e9
    rebuilt = events["relative_time"] + events["time_min_used"][:, None]
    np.testing.assert_allclose(rebuilt[has_time], events["time"][has_time], atol=1e-13)
    efficiency = np.where(np.arange(4760) < N_SIPM, 0.15, 0.16)
    bright = has_time & (events["npho"] * efficiency > 51)
    assert events["relative_time"][bright].min() == 0
    assert 1e-9 < np.median(events["relative_time"][bright]) < 3e-8
    assert not has_time[~live].any()
    for name in ("time", "relative_time"):
        assert (events[name][~has_time] == np.float32(INVALID)).all()


def test_dead_channels_last_a_run():
    params = LxeParameters(events_per_run=100, dead_fraction=0.05)
    sample = collect(7, 0, 200, params)
    dead = sample["npho"] == np.float32(INVALID)
    np.testing.assert_array_equal(sample["run"], np.repeat([1, 2], 100))
    assert (dead[:100] == dead[0]).all()
    assert (dead[100:] == dead[100]).all()
    assert (dead[0] != dead[100]).any()
    assert dead.mean() == pytest.approx(0.05, abs=5 * np.sqrt(0.05 / 9520))


# Determinism


def test_events_do_not_depend_on_the_range_they_are_asked_in(events):
    for start, stop in [(0, 3), (100, 140), (255, 256)]:
        part = collect(5, start, stop)
        for name, values in part.items():
            np.testing.assert_array_equal(values, events[name][start:stop], err_msg=name)
    assert list(simulate_range(5, 3, 3)) == []


def test_events_do_not_depend_on_the_chunk_size(events):
    key = jax.random.key(5)
    truth = sample_truth(key, 7, PARAMS, first_event=40)
    part = simulate_events(key, truth, TABLE, PARAMS) | truth
    for name, values in part.items():
        # Other shapes may round differently in the last bit, and more after a subtraction.
        wanted = events[name][40:47]
        close = np.isclose(values, wanted, rtol=1e-4, atol=1e-10 if "time" in name else 1e-3)
        assert close.mean() > 0.999, name


def test_seeds_differ(events):
    other = collect(6, 0, 2)
    assert (other["npho"] != events["npho"][:2]).mean() > 0.9
    assert (other["energyTruth"] != events["energyTruth"][:2]).all()
