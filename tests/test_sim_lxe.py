"""Simulated events: truth, response, options, determinism. Their parts: test_sim_optics."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xec_jax.errors import ConfigError
from xec_jax.geometry import (
    FACES,
    INNER_RADIUS_CM,
    INVALID,
    N_SIPM,
    design_positions,
)
from xec_jax.kinematics import angles_to_vector, uvw_to_xyz
from xec_jax.sim import lxe
from xec_jax.sim.lxe import sample_truth, simulate_events, simulate_range
from xec_jax.sim.lxe_optics import acceptance, expected_light
from xec_jax.sim.lxe_parameters import SIMULATION_VERSION, LxeParameters
from xec_jax.sim.lxe_readout import (
    Flash,
    draw_sensors,
    nominal_efficiency,
    read_out,
    time_moments,
)
from xec_jax.sim.lxe_shower import conversion_length
from xec_jax.sim.lxe_volume import wall_distance

PARAMS = LxeParameters()
TABLE = design_positions()
CROWDED = LxeParameters(
    origin="cex",
    energy_mev=(54.9, 82.9),
    n_deposits=4,
    variant="cex",
    solid_angle=True,
    pileup_rate_hz=4e6,
    cosmic_share=0.2,
    dead_fraction=0.05,
    events_per_run=50,
)


see = jax.jit(lambda source: acceptance(source, TABLE))
shine = jax.jit(lambda deposits, photons: expected_light(deposits, photons, TABLE, PARAMS))


def collect(*args, **options):
    chunks = list(simulate_range(*args, **options))
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


@pytest.fixture(scope="module")
def events():
    return collect(5, 0, 256)


@pytest.fixture(scope="module")
def crowded_events():
    """Everything that is off by default."""
    return collect(7, 0, 128, CROWDED)


# Truth


def test_branches_have_their_types_shapes_and_ranges(events):
    shapes = {
        **dict.fromkeys(("npho", "nphe", "time", "relative_npho", "relative_time"), (256, 4760)),
        **dict.fromkeys(("xyzVTX", "xyzTruth", "uvwTruth", "emiVec"), (256, 3)),
        "emiAng": (256, 2),
    }
    integers = {
        "run": "int32",
        "event": "int32",
        "ch_npho_max": "int16",
        "ch_time_min": "int16",
    }
    assert len(events) == 18
    for name, values in events.items():
        assert values.dtype == integers.get(name, "float32"), name
        assert values.shape == shapes.get(name, (256,)), name
        assert np.isfinite(values).all(), name
    energy, (u, v, w) = events["energyTruth"], events["uvwTruth"].T
    assert 0.015 <= energy.min() < 0.02 < 0.055 < energy.max() <= 0.060
    assert np.abs(events["timeTruth"]).max() <= 10
    assert np.abs(v).max() < 71
    assert np.abs(u).max() < 46
    assert w.min() > 0
    assert w.max() < 41.3
    assert 3 < np.median(w) < 6
    assert (wall_distance(events["xyzTruth"]) > 0).all()
    x, y, z = events["xyzVTX"].T
    assert ((x / (13.5 * np.sin(np.deg2rad(15)))) ** 2 + (y / 3.3) ** 2).max() <= 1
    np.testing.assert_allclose(z * np.tan(np.deg2rad(15)), x, atol=1e-5)
    assert y.std() == pytest.approx(1.1, rel=0.15)
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
    params = LxeParameters(energy_mev=(52.83, 52.83))
    truth = sample_truth(jax.random.key(3), 20_000, params)
    np.testing.assert_allclose(truth["energyTruth"], 0.05283, rtol=1e-6)
    # The way from the inner face on; the cylinder is crossed at w = 0.
    xyz, direction = np.asarray(truth["xyzTruth"], float), np.asarray(truth["emiVec"], float)
    a = (direction[:, :2] ** 2).sum(1)
    b = (xyz[:, :2] * direction[:, :2]).sum(1)
    c = (xyz[:, :2] ** 2).sum(1) - INNER_RADIUS_CM**2
    path = (b - np.sqrt(np.maximum(b * b - a * c, 0))) / a
    length = float(conversion_length(52.83))
    assert path.mean() == pytest.approx(length, rel=0.03)
    assert np.median(path) == pytest.approx(length * np.log(2), rel=0.04)


@pytest.mark.parametrize(
    "changed",
    [
        {"energy_mev": (60, 15)},
        {"energy_mev": (4.9, 15)},
        {"pileup_min_mev": 4.9},
        {"energy_mev": 52.8},
        {"dead_fraction": 1.0},
        {"rayleigh_cm": 0},
        {"noise_phe": -1},
        {"noise_phe": float("nan")},
        {"n_deposits": 2.5},
        {"solid_angle": 1},
        {"origin": "moon"},
        {"variant": "raw"},
        {"half_u_cm": 40},
    ],
)
def test_nonsense_is_refused_by_name(changed):
    with pytest.raises(ConfigError, match=next(iter(changed))):
        LxeParameters(**changed)


def test_equal_numbers_are_equal_parameters():
    assert LxeParameters(reflectivity=0, energy_mev=(15, 60)) == PARAMS
    assert isinstance(LxeParameters(reflectivity=0).reflectivity, float)


# Response


def test_light_grows_with_energy():
    where = uvw_to_xyz(jnp.array([[3.0, 4.0, 5.0]]))
    one, two = (shine(where, jnp.full(1, n))[0] for n in (1e5, 2e5))
    np.testing.assert_allclose(two, 2 * one, rtol=1e-5)


def test_inner_light_sits_at_the_conversion(events):
    inner = np.where(events["npho"] < 9e9, events["npho"], 0)[:, :N_SIPM].clip(0) ** 2
    u = TABLE.positions[:N_SIPM, 2]
    v = -(np.arange(N_SIPM) // 44 - 46) * np.deg2rad(1.34968) * INNER_RADIUS_CM
    shallow = (events["uvwTruth"][:, 2] < 5) & (np.abs(events["uvwTruth"][:, 0]) < 22)
    for i, position in enumerate((u, v)):
        centroid = inner @ position / inner.sum(1)
        error = (centroid - events["uvwTruth"][:, i])[shallow]
        assert np.abs(np.median(error)) < 0.3
        assert np.percentile(np.abs(error), 68) < 2


def test_sizes_of_signals_are_realistic(events):
    live = events["npho"] < 9e9
    total = np.where(live, events["npho"], 0).sum(1)
    assert 8e4 < np.percentile(total, 1) < np.percentile(total, 99) < 2e6
    scaled = np.log1p(events["npho_max_used"] / 1000) / 4.08
    assert 0.4 < np.median(scaled) < 1.0
    faint = np.median(events["npho"][live])
    assert 1 < faint < 100
    for face in range(len(FACES)):
        assert (np.median(events["npho"][:, TABLE.face == face]) > 5).all()
    assert (live == live[0]).all(), "one run"
    assert (~live[0]).mean() == pytest.approx(0.01, abs=5e-3)


def test_time_rises_with_distance_at_the_speed_of_light(events):
    """Branches alone: n / c from a line through the times of bright sensors."""
    flight = np.linalg.norm(events["xyzTruth"] - events["xyzVTX"], axis=1)
    distance = np.linalg.norm(events["xyzTruth"][:, None] - TABLE.positions, axis=2)
    nphe = np.where(events["nphe"] < 9e9, events["nphe"], 0).clip(1)
    late = events["time"] * 1e9 - (events["timeTruth"] + flight / 29.979)[:, None] - nphe**-0.5
    bright, near = nphe > 50, distance < 10
    used = bright & ~near
    slope, start = np.polyfit(distance[used], late[used], 1, w=np.sqrt(nphe[used]))
    # The light comes from all of the shower, the distance is that of its first point.
    assert slope == pytest.approx(1.7 / 29.979, rel=0.1)
    assert abs(start) < 0.1
    bright = nphe > 200
    pulls = ((late - 1.7 / 29.979 * distance) / (20 * nphe**-0.5))[bright]
    assert abs(np.median(pulls)) < 0.3
    assert 0.95 < np.diff(np.percentile(pulls, [16, 84]))[0] / 2 < 1.25


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
    charge = np.where(live, events["npho"] * nominal_efficiency(PARAMS), np.float32(INVALID))
    np.testing.assert_allclose(events["nphe"], charge, rtol=1e-5)
    bright = has_time & (events["nphe"] > 50)
    assert events["relative_time"][bright].min() == 0
    assert 1e-9 < np.median(events["relative_time"][bright]) < 3e-8
    assert not has_time[~live].any()
    for name in ("time", "relative_time"):
        assert (events[name][~has_time] == np.float32(INVALID)).all()


def test_time_model_is_the_documented_one():
    mean, sigma = time_moments(np.array([100.0, 0.2]), np.array([30.0, 0]), 65.0, 2.0, PARAMS)
    np.testing.assert_allclose(
        mean, [2 + (65 + 51) / 29.9792 + 0.1, 2 + 65 / 29.9792 + 1], rtol=1e-6
    )
    np.testing.assert_allclose(sigma, [2, 20])


def test_sensors_differ_from_the_calibration_alike_in_all_samples():
    sensors = draw_sensors(PARAMS)
    relative = np.asarray(sensors.efficiency) / nominal_efficiency(PARAMS) - 1
    assert relative.std() == pytest.approx(0.03, rel=0.05)
    assert np.std(sensors.gain) == pytest.approx(0.01, rel=0.05)
    assert abs(relative.mean()) < 3e-3
    np.testing.assert_array_equal(draw_sensors(replace(PARAMS, first_run=9)).gain, sensors.gain)
    assert (draw_sensors(replace(PARAMS, sensor_seed=1)).gain != sensors.gain).mean() > 0.99


def test_calibration_does_not_know_the_true_sensors():
    light = Flash(jnp.full(4760, 1e7), jnp.full(4760, 20.0), jnp.float32(65), jnp.float32(0))
    sensors = draw_sensors(PARAMS)
    measure = jax.jit(lambda key, dead: read_out(key, [light], sensors, dead, PARAMS))
    ratio = measure(jax.random.key(0), jnp.zeros(4760, bool))["npho"] / 1e7
    true = np.asarray(sensors.efficiency * sensors.gain) / nominal_efficiency(PARAMS)
    # 1.5 million photoelectrons: 0.09 % with the spread of single charges.
    assert np.std(ratio / true - 1) == pytest.approx(8.8e-4, rel=0.1)
    nothing = measure(jax.random.key(0), jnp.ones(4760, bool))
    assert nothing["ch_npho_max"] == nothing["ch_time_min"] == -1
    assert nothing["npho_max_used"] == nothing["time_min_used"] == np.float32(INVALID)


# Options


@pytest.mark.slow
def test_dead_channels_last_a_run(crowded_events):
    dead = crowded_events["npho"] == np.float32(INVALID)
    np.testing.assert_array_equal(crowded_events["dead"], dead)
    np.testing.assert_array_equal(crowded_events["run"], np.repeat([1, 2, 3], 50)[:128])
    assert (dead[:50] == dead[0]).all()
    assert (dead[50:100] == dead[50]).all()
    assert (dead[0] != dead[50]).any()
    assert dead.mean() == pytest.approx(0.05, abs=5 * np.sqrt(0.05 / 9520))


def test_dead_channels_of_a_list(events, monkeypatch):
    masks = np.random.default_rng(0).random((2, 4760)) < 0.1
    seen = []
    monkeypatch.setattr(lxe, "_simulate_block", lambda *args: seen.append(args[5]) or events)
    params = LxeParameters(events_per_run=100, first_run=8)
    list(simulate_range(5, 20, 140, params, dead={8: masks[0], 9: masks[1]}))
    np.testing.assert_array_equal(np.concatenate(seen)[20:140], masks[np.repeat([0, 1], [80, 40])])
    list(simulate_range(5, 0, 1, params, dead={None: masks[0]}))
    assert (seen[-1] == masks[0]).all()
    with pytest.raises(ConfigError, match="run 9"):
        simulate_range(5, 20, 140, params, dead={8: masks[0]})


@pytest.mark.slow
def test_second_photons_come_at_their_rate_and_shine(crowded_events):
    energy = crowded_events["energyPileup"]
    present = energy > 0
    assert present.mean() == pytest.approx(1 - np.exp(-4e6 * 200e-9), abs=0.15)
    assert np.abs(crowded_events["timePileup"][present]).max() <= 100
    assert (crowded_events["uvwPileup"][~present] == np.float32(INVALID)).all()
    # The earliest light wins: a first time before the photon's own could be.
    own = crowded_events["timeReco"] + 65 / 29.98
    early = present & (crowded_events["timePileup"] < -40)
    first = crowded_events["time_min_used"] * 1e9
    alone = ~present & (crowded_events["energyCosmic"] == 0)
    assert (first[early] < own[early] - 20).mean() > 0.9
    assert np.abs(first - own)[alone].max() < 20


@pytest.mark.slow
def test_cosmics_are_bright(crowded_events):
    energy = crowded_events["energyCosmic"]
    assert (energy > 0).mean() == pytest.approx(0.2, abs=0.12)
    live = crowded_events["npho"] < 9e9
    total = np.where(live, crowded_events["npho"], 0).sum(1)
    assert np.median(total[energy > 0.1]) > 1.5 * np.median(total[energy == 0])


@pytest.mark.slow
def test_real_data_have_reconstructed_quantities_instead_of_truth(crowded_events):
    assert not [name for name in crowded_events if "Truth" in name]
    truth = sample_truth(jax.random.key(7), 128, CROWDED)
    assert np.std(crowded_events["timeReco"] - truth["timeTruth"]) == pytest.approx(0.065, rel=0.25)
    ratio = crowded_events["energyReco"] / truth["energyTruth"]
    assert ratio.std() == pytest.approx(0.018, rel=0.25)
    error = crowded_events["uvwRecoFI"] - truth["uvwTruth"]
    np.testing.assert_allclose(np.std(error, axis=0)[:2], 0.25, rtol=0.25)
    flight = crowded_events["xyzRecoFI"] - crowded_events["xyzVTX"]
    flight /= np.linalg.norm(flight, axis=1, keepdims=True)
    np.testing.assert_allclose(crowded_events["emiVec"], flight, atol=1e-5)
    # The light's center is behind the first interaction.
    assert 1 < np.median((crowded_events["uvwRecoLC"] - crowded_events["uvwRecoFI"])[:, 2]) < 8
    np.testing.assert_allclose(
        crowded_events["solid_angle"][3],
        see(jnp.asarray(crowded_events["xyzRecoFI"][3])),
        rtol=1e-3,
        atol=1e-8,
    )


@pytest.mark.parametrize("variant", ["mc", "data", "cex"])
def test_variants_have_their_branches(variant):
    """All options, traced but not computed."""
    params = replace(CROWDED, variant=variant)
    truth = jax.eval_shape(lambda key: sample_truth(key, 2, params), jax.random.key(0))
    made = jax.eval_shape(
        lambda key, truth: simulate_events(key, truth, TABLE, params), jax.random.key(0), truth
    )
    reco = "xyzRecoFI xyzRecoLC uvwRecoFI uvwRecoLC xyzVTX emiVec emiAng energyReco timeReco"
    wanted = {"mc": "nphe", "data": reco, "cex": f"{reco} dead"}[variant]
    wanted += " npho time relative_npho relative_time ch_npho_max ch_time_min npho_max_used"
    wanted += " time_min_used energyPileup timePileup uvwPileup energyCosmic solid_angle"
    assert set(made) == set(wanted.split())
    assert {made[name].shape for name in ("npho", "time", "solid_angle")} == {(2, 4760)}


def test_pions_give_two_lines_from_the_center():
    truth = sample_truth(jax.random.key(1), 1000, CROWDED)
    energy = np.asarray(truth["energyTruth"])
    np.testing.assert_allclose(np.unique(energy), [0.0549, 0.0829], rtol=1e-6)
    assert (energy > 0.06).mean() == pytest.approx(0.5, abs=0.08)
    np.testing.assert_allclose(np.std(truth["xyzVTX"], axis=0), 1, rtol=0.1)


# Determinism


def test_events_do_not_depend_on_the_range_they_are_asked_in(events):
    for start, stop in [(0, 3), (100, 140)]:
        part = collect(5, start, stop)
        for name, values in part.items():
            np.testing.assert_array_equal(values, events[name][start:stop], err_msg=name)
    assert list(simulate_range(5, 3, 3)) == []


@pytest.mark.slow
def test_events_do_not_depend_on_the_chunk_size(events):
    key = jax.random.key(5)
    truth = sample_truth(key, 2, PARAMS, first_event=40)
    dead = np.arange(4760) % 7 == 0
    dead[np.concatenate([events["ch_npho_max"], events["ch_time_min"]])] = False
    part = simulate_events(key, truth, TABLE, PARAMS, dead) | truth
    assert (np.asarray(part["npho"])[:, dead] == np.float32(INVALID)).all()
    for name, values in part.items():
        values = values[:, ~dead] if values.shape[1:] == dead.shape else values
        # Other shapes may round differently in the last bit, and more after a subtraction.
        wanted = events[name][40:42]
        wanted = wanted[:, ~dead] if wanted.shape[1:] == dead.shape else wanted
        close = np.isclose(values, wanted, rtol=1e-4, atol=1e-10 if "time" in name else 1e-3)
        assert close.mean() > 0.999, name


def test_events_do_not_depend_on_how_jax_is_set(events):
    with jax.threefry_partitionable(False), jax.default_prng_impl("rbg"):
        found = collect(5, 0, 2)
        gain = draw_sensors(PARAMS).gain
    for name, values in found.items():
        np.testing.assert_array_equal(values, events[name][:2], err_msg=name)
    np.testing.assert_array_equal(gain, draw_sensors(PARAMS).gain)
    with jax.enable_x64(True), pytest.raises(ConfigError, match="64 bits"):
        simulate_range(5, 0, 2)


def test_first_event_is_the_one_that_it_always_was():
    """A change of these numbers, also by another JAX, asks for another SIMULATION_VERSION."""
    assert SIMULATION_VERSION == 2
    event = {name: values[0] for name, values in collect(0, 0, 1).items()}
    assert event["energyTruth"] == pytest.approx(0.0187172, rel=1e-4)
    np.testing.assert_allclose(event["uvwTruth"], [-14.4129, 16.8932, 3.1482], atol=1e-3)
    np.testing.assert_allclose(event["xyzVTX"], [0.93526, 0.4527, 3.49046], atol=1e-4)
    assert event["timeTruth"] == pytest.approx(5.61574, abs=1e-4)
    assert (event["ch_npho_max"], event["ch_time_min"]) == (1552, 1687)
    assert event["npho_max_used"] == pytest.approx(1873.7, rel=1e-3)
    assert event["time_min_used"] == pytest.approx(2.9313e-9, rel=1e-3)
    live = event["npho"] < 9e9
    assert (~live).sum() == 58
    assert event["npho"][live].sum() == pytest.approx(253_809, rel=1e-3)


def test_seeds_differ(events):
    other = collect(6, 0, 2)
    assert (other["npho"] != events["npho"][:2]).mean() > 0.9
    assert (other["energyTruth"] != events["energyTruth"][:2]).all()
