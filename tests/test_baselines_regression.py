"""Classical reconstruction: events whose energy, place, time and direction are known by hand."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from xec_jax.baselines import reconstruction
from xec_jax.baselines.centroid import calibrate_centroid, centroid, light_moments
from xec_jax.baselines.earliest_time import absolute_time, earliest_time
from xec_jax.baselines.fill_dead import face_ids, fill_dead
from xec_jax.baselines.light_sum import calibrate_light_sum, face_sums, light_sum
from xec_jax.baselines.neighbors import touching_average
from xec_jax.baselines.reconstruction import calibrate
from xec_jax.baselines.vertex_direction import vertex_direction
from xec_jax.errors import DataError
from xec_jax.geometry import INVALID, N_SENSORS, make_detector
from xec_jax.kinematics import uvw_to_xyz, vector_to_angles, xyz_to_uvw
from xec_jax.sim.lxe_parameters import LxeParameters
from xec_jax.sim.lxe_readout import nominal_efficiency

DETECTOR = make_detector()
TABLE = DETECTOR.sensors
PARAMS = LxeParameters()
EFFICIENCY = nominal_efficiency(PARAMS)
LIGHT_CM_PER_NS = 29.9792458


def toy_events(n, seed=0):
    """Points without any fluctuation: an own model of light and times, in plain numpy."""
    rng = np.random.default_rng(seed)
    uvw = rng.uniform([-20, -55, 1], [20, 55, 12], (n, 3))
    energy, start = rng.uniform(0.015, 0.06, n), rng.uniform(-10, 10, n)
    vertex = rng.normal(0, 1, (n, 3))
    place = np.asarray(uvw_to_xyz(uvw), float)
    away = place[:, None] - TABLE.positions
    distance = np.sqrt((away**2).sum(-1))
    height = np.maximum((away * TABLE.normals).sum(-1), 0)
    area = np.where(DETECTOR.is_pmt, 15.9, 1.39)
    photons = 46.3e6 * energy[:, None] * area * height / distance**3 / (4 * np.pi)
    photons *= np.exp(-distance / 60)
    charge = photons * EFFICIENCY
    flight = np.linalg.norm(place - vertex, axis=1)
    way = flight[:, None] + PARAMS.refractive_index * distance
    time = start[:, None] + way / LIGHT_CM_PER_NS + 1 / np.sqrt(np.maximum(charge, 1))
    return {
        "npho": photons,
        "time": np.where(charge >= 5, time * 1e-9, INVALID),
        "xyzVTX": vertex,
        "uvwTruth": uvw,
        "energyTruth": energy,
        "timeTruth": start,
        "emiAng": np.asarray(vector_to_angles(place - vertex)),
    }


@functools.cache
def calibrated():
    return calibrate(toy_events(240), DETECTOR)


@functools.cache
def others():
    return toy_events(60, seed=1)


def with_dead(events, share, seed=2):
    dead = np.random.default_rng(seed).random(events["npho"].shape) < share
    hidden = {key: np.where(dead, INVALID, events[key]) for key in ("npho", "time")}
    return events | hidden


def p68(values):
    return np.percentile(np.abs(values), 68)


# Dead sensors


def test_dead_sensors_get_the_average_of_those_that_touch_them():
    events = with_dead({k: others()[k][:5] for k in ("npho", "time")}, 0.1)
    npho = events["npho"]
    live = npho < 9e9
    expected, _ = jax.jit(functools.partial(touching_average, DETECTOR))(npho, live)
    found = fill_dead(DETECTOR, npho)
    np.testing.assert_array_equal(found[live], npho[live])
    np.testing.assert_allclose(found[~live], np.asarray(expected)[~live], rtol=1e-5)


def test_an_island_of_dead_sensors_gets_the_median_and_a_dead_face_nothing():
    npho = np.tile(np.arange(N_SENSORS, dtype=np.float32), (2, 1))
    npho[0, :4000] = np.nan  # rows of 44 on the inner face
    npho[1, face_ids(DETECTOR)[4]] = INVALID
    found = fill_dead(DETECTOR, npho)
    assert found[0, 10] == np.median(np.arange(4000, 4092))
    assert np.isnan(found[1, face_ids(DETECTOR)[4]]).all()
    assert np.isfinite(found[1]).sum() == N_SENSORS - 73


# Light sum


def test_weights_of_the_faces_are_found_exactly():
    rng = np.random.default_rng(0)
    weights = np.array([4e-8, 9e-8, 8e-8, 1.8e-7, 7e-8, 6e-8])
    photons = rng.uniform(10, 100, (40, N_SENSORS))
    sums = face_sums(DETECTOR, photons)
    by_hand = sum(w * photons[:, DETECTOR.sensor_face == k].sum(1) for k, w in enumerate(weights))
    np.testing.assert_allclose(calibrate_light_sum(sums, by_hand), weights, rtol=1e-9)
    np.testing.assert_allclose(light_sum(sums, weights), by_hand, rtol=1e-12)


def test_energy_scales_with_the_light():
    sums = np.random.default_rng(0).uniform(1, 2, (3, 6))
    uvw, constants = np.array([[1.0, 2, 3]] * 3), np.arange(1.0, 16)
    once = light_sum(sums, constants, uvw)
    np.testing.assert_allclose(light_sum(2 * sums, constants, uvw), 2 * once, rtol=1e-14)


def test_the_correction_takes_off_what_depends_on_the_place():
    rng = np.random.default_rng(0)
    uvw = rng.uniform([-20, -60, 0], [20, 60, 20], (200, 3))
    energy, shares = rng.uniform(0.01, 0.06, 200), rng.dirichlet(np.ones(6), 200)
    collected = 1 / (1 + 0.02 * uvw[:, 2] + 1e-4 * uvw[:, 0] ** 2)
    sums = (1e7 * energy * collected)[:, None] * shares
    plain = light_sum(sums, calibrate_light_sum(sums, energy))
    corrected = light_sum(sums, calibrate_light_sum(sums, energy, uvw), uvw)
    assert p68(plain / energy - 1) > 0.02
    np.testing.assert_allclose(corrected, energy, rtol=1e-9)


# Centroid


def spot(u, v, sigma_u, sigma_v):
    """Gaussian light on the inner face."""
    place = np.asarray(xyz_to_uvw(TABLE.positions[:4092]), float)
    light = np.exp(-((place[:, 0] - u) ** 2) / 2 / sigma_u**2)
    photons = np.zeros(N_SENSORS)
    photons[:4092] = 1e3 * light * np.exp(-((place[:, 1] - v) ** 2) / 2 / sigma_v**2)
    return photons


def test_moments_of_a_gaussian_spot_are_known():
    photons = np.stack([spot(3.3, -20.2, 4.0, 6.0), 7 * spot(-5.0, 31.0, 3.0, 5.0)])
    found = light_moments(DETECTOR, photons, powers=(1, 2, 4))
    for k, (u, v, a, b) in enumerate([(3.3, -20.2, 4, 6), (-5, 31, 3, 5)]):
        for i, power in enumerate((1, 2, 4)):
            expected = [u, v, a * a / power, b * b / power]
            np.testing.assert_allclose(found[k, i], expected, rtol=2e-3, atol=2e-3)


def test_noise_below_zero_counts_as_no_light_and_other_faces_do_not_count():
    photons = spot(3.3, -20.2, 4.0, 6.0)
    noisy = np.where(photons < 1e-3, -5.0, photons)
    noisy[4092:] = 1e9
    first, second = light_moments(DETECTOR, np.stack([photons, noisy]))
    np.testing.assert_allclose(first, second, atol=1e-4)


def test_one_bright_sensor_is_where_the_light_is():
    photons = np.zeros((1, N_SENSORS))
    photons[0, 1234] = 5.0
    found = light_moments(DETECTOR, photons)[0]
    uv = np.asarray(xyz_to_uvw(TABLE.positions[1234]))[:2]
    np.testing.assert_allclose(found, [[*uv, 0, 0]] * 2, atol=1e-9)


def test_depth_comes_from_the_width_and_stays_in_the_range_of_the_calibration():
    rng = np.random.default_rng(0)
    uvw = rng.uniform([-8, -40, 2], [8, 40, 5], (60, 3))
    moments = light_moments(DETECTOR, np.stack([spot(u, v, w, w) for u, v, w in uvw]))
    constants = calibrate_centroid(moments, uvw)
    np.testing.assert_allclose(centroid(moments, constants), uvw, atol=0.01)
    wide, narrow = (light_moments(DETECTOR, spot(0, 0, w, w)[None]) for w in (9.0, 0.5))
    assert centroid(wide, constants)[0, 2] == pytest.approx(uvw[:, 2].max(), abs=0.1)
    assert centroid(narrow, constants)[0, 2] == pytest.approx(uvw[:, 2].min(), abs=0.1)


# Time and direction


def test_the_time_is_exact_with_the_true_place_and_late_light_is_cut():
    events = others()
    charge = events["npho"] * EFFICIENCY
    place = np.asarray(uvw_to_xyz(events["uvwTruth"]), float)
    late = np.random.default_rng(0).random(charge.shape) < 0.2
    time = absolute_time(events) * 1e9
    for times in (time, np.where(late, time + 300.0, time)):
        found = earliest_time(times, charge, place, events["xyzVTX"], TABLE.positions, PARAMS)
        np.testing.assert_allclose(found, events["timeTruth"], atol=1e-6)


def test_the_weights_are_the_charges():
    charge, time = np.full((1, N_SENSORS), np.nan), np.full((1, N_SENSORS), np.nan)
    charge[0, [5, 7, 9]], time[0, [5, 7, 9]] = [100.0, 300.0, 2.0], [1.0, 2.0, 50.0]
    same = np.broadcast_to(TABLE.positions[5], TABLE.positions.shape)
    params = dataclasses.replace(PARAMS, time_walk_ns=0.0)
    found = earliest_time(time, charge, same[:1], same[:1], same, params)
    np.testing.assert_allclose(found, 1.75)


def test_times_relative_to_a_zero_are_added_to_it():
    time = np.array([[0.0, 3e-9, INVALID], [0.0, np.nan, 1e-9], [1e-9, 2e-9, 3e-9]])
    zero = np.array([5e-9, -2e-9, INVALID])
    found = absolute_time({"time": time, "time_min_used": zero[:, None]})
    nan = np.nan
    np.testing.assert_allclose(found, [[5e-9, 8e-9, nan], [-2e-9, nan, -1e-9], [nan, nan, nan]])


def test_absolute_times_with_a_zero_are_refused():
    time = np.array([[4e-9, 7e-9], [-1e-9, 2e-9]])
    with pytest.raises(DataError, match="absolute"):
        absolute_time({"time": time, "time_min_used": time.min(1)})


@pytest.mark.parametrize(
    ("uvw", "vertex", "expected"),
    [
        ((0, 0, 0), None, (90, 0)),
        ((0, 0, 5), (0, 0, 0), (90, 0)),
        ((64.97, 0, 0), None, (45, 0)),
        ((0, 64.97 * np.pi / 4, 3), None, (90, 45)),
        ((10, 0, 7), (0, 0, 10), (90, 0)),
        ((0, 0, 0), (0, 64.97, 0), (90, -45)),
    ],
)
def test_directions_are_known(uvw, vertex, expected):
    vertex = None if vertex is None else np.array([vertex], float)
    found = vertex_direction(np.array([uvw], float), vertex)
    np.testing.assert_allclose(found, [expected], atol=1e-4)


# All together


def test_points_without_noise_are_reconstructed():
    events = others()
    found = calibrated().reconstruct(events)
    assert p68(found["energy_light_sum"] / events["energyTruth"] - 1) < 0.01
    away = found["uvw_centroid"] - events["uvwTruth"]
    assert (np.percentile(np.abs(away), 68, 0) < [0.05, 0.05, 0.15]).all()
    assert p68(found["timing_earliest"] - events["timeTruth"]) < 0.01
    assert p68(found["angle_vertex"] - events["emiAng"]) < 0.05
    center = vector_to_angles(uvw_to_xyz(found["uvw_centroid"]))
    np.testing.assert_allclose(found["angle_center"], center, atol=1e-4)


def test_dead_sensors_change_little():
    clean = calibrated().reconstruct(others())
    found = calibrated().reconstruct(with_dead(others(), 0.03))
    assert p68(found["energy_light_sum"] / clean["energy_light_sum"] - 1) < 0.01
    assert (p68(found["uvw_centroid"] - clean["uvw_centroid"])) < 0.1
    assert p68(found["timing_earliest"] - clean["timing_earliest"]) < 0.01


@pytest.mark.parametrize("marker", [INVALID, np.nan])
def test_an_event_without_any_signal_is_not_a_number_and_spoils_no_other(marker):
    events = {key: value[:3].copy() for key, value in others().items()}
    events["npho"][1] = events["time"][1] = marker
    found = calibrated().reconstruct(events)
    clean = calibrated().reconstruct(others())
    for key, value in found.items():
        assert np.isnan(value[1]).all(), key
        np.testing.assert_allclose(value[[0, 2]], clean[key][[0, 2]], rtol=1e-6, err_msg=key)


def test_without_times_the_rest_is_known():
    events = {key: value[:2].copy() for key, value in others().items()}
    events["time"][:] = INVALID
    found = calibrated().reconstruct(events)
    assert np.isnan(found.pop("timing_earliest")).all()
    assert all(np.isfinite(value).all() for value in found.values())


def test_relative_and_absolute_times_give_the_same():
    events = others()
    zero = events["time"].min(1)
    relative = np.where(events["time"] < 1, events["time"] - zero[:, None], INVALID)
    found = calibrated().reconstruct(events | {"time": relative, "time_min_used": zero})
    clean = calibrated().reconstruct(events)
    np.testing.assert_allclose(found["timing_earliest"], clean["timing_earliest"], atol=1e-6)


@pytest.mark.parametrize("block", [1, 7, 60])
def test_blocks_do_not_matter(block, monkeypatch):
    clean = calibrated().reconstruct(others())
    monkeypatch.setattr(reconstruction, "BLOCK", block)
    for key, value in calibrated().reconstruct(others()).items():
        np.testing.assert_allclose(value, clean[key], rtol=1e-5, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("n", [0, 1])
def test_any_number_of_events(n):
    found = calibrated().reconstruct({key: value[:n] for key, value in others().items()})
    clean = calibrated().reconstruct(others())
    assert found.keys() == clean.keys()
    for key, value in found.items():
        assert value.shape == (n, *clean[key].shape[1:])
        assert value.dtype == np.float64


def test_what_has_no_truth_is_left_out():
    events = {key: value[:60] for key, value in toy_events(60).items()}
    keys = {
        "uvwTruth": {"energy_light_sum"},
        "timeTruth": {"energy_light_sum", "uvw_centroid", "angle_vertex", "angle_center"},
        "energyTruth": {"uvw_centroid", "timing_earliest", "angle_vertex", "angle_center"},
    }
    for missing, left in keys.items():
        some = {key: value for key, value in events.items() if key != missing}
        assert calibrate(some, DETECTOR).reconstruct(events).keys() == left
    without_vertex = {key: value for key, value in events.items() if key != "xyzVTX"}
    assert "angle_vertex" not in calibrated().reconstruct(without_vertex)
    with pytest.raises(DataError, match="without truth"):
        calibrate({"npho": events["npho"]}, DETECTOR)
