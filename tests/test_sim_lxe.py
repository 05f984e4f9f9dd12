"""The simulated calorimeter: optics against closed forms, statistics, truth, determinism."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import gamma, poisson

from xec_jax.errors import ConfigError
from xec_jax.geometry import (
    FACES,
    INNER_RADIUS_CM,
    INVALID,
    N_SIPM,
    OUTER_RADIUS_CM,
    PMT_RADIUS_CM,
    design_positions,
)
from xec_jax.kinematics import angles_to_vector, uvw_to_xyz
from xec_jax.sim import lxe
from xec_jax.sim.lxe import photon_light, sample_truth, simulate_events, simulate_range
from xec_jax.sim.lxe_optics import acceptance, expected_light, propagate
from xec_jax.sim.lxe_parameters import LxeParameters
from xec_jax.sim.lxe_readout import (
    Flash,
    draw_sensors,
    nominal_efficiency,
    read_out,
    time_moments,
)
from xec_jax.sim.lxe_shower import _gamma, conversion_length, sample_muon, sample_shower
from xec_jax.sim.lxe_source import background_energy
from xec_jax.sim.lxe_volume import MEAN_CHORD_CM, VOLUME_CM3, WALL_CM2, wall_distance
from xec_jax.sim.poisson import poisson_counts
from xec_jax.sim.solid_angle import disc_solid_angle, rectangle_solid_angle, sipm_solid_angle

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
SOURCES = [
    (0, 0, 1e-3),
    (0, 0, 0.1),
    (3, 1, 2),
    (0, 0, 20),
    (20, 60, 10),
    (-24, -68, 2),
    (9, 9, 41),
]


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


@pytest.mark.parametrize("uvw", SOURCES[1:])
def test_distant_packages_are_right_to_a_thousandth(uvw):
    """Every SiPM against the exact formula in double precision."""
    source = np.asarray(uvw_to_xyz(np.array(uvw, float)), float)
    delta, normal = source - TABLE.positions[:N_SIPM], TABLE.normals[:N_SIPM]
    across = normal[:, 0] * delta[:, 1] - normal[:, 1] * delta[:, 0]
    with jax.enable_x64(True):
        exact = sipm_solid_angle(delta[:, 2], across, (delta * normal).sum(1)) / (4 * np.pi)
    found = see(jnp.asarray(source, jnp.float32))[:N_SIPM]
    # Grazing ones have nothing to see and a height that is rounding.
    seen = np.asarray(exact) > 1e-7
    np.testing.assert_allclose(found[seen], exact[seen], rtol=1e-3)


@pytest.mark.parametrize("uvw", SOURCES)
def test_all_sensors_together_see_less_than_the_sphere(uvw):
    seen = see(uvw_to_xyz(jnp.array(uvw, float)))
    assert 0.1 < seen.sum() < 0.6
    assert (seen >= 0).all()


def test_inner_wall_shadows_the_far_ends():
    ends = np.isin(TABLE.face, [FACES.index("top"), FACES.index("bot")])
    radius = np.hypot(*TABLE.positions[:, :2].T)

    def light_from(w):
        return np.asarray(see(uvw_to_xyz(jnp.array([0.0, 0.0, w]))))

    # Tangents to the inner cylinder reach acos(R / r1) + acos(R / r2); the ends are at 62.8 deg.
    assert (light_from(1.0)[ends] == 0).all()
    assert (light_from(10.0)[ends & (radius < 70)] == 0).all()
    assert (light_from(10.0)[ends & (radius > 100)] > 0).all()
    assert (light_from(1.0)[TABLE.face == FACES.index("outer")] > 0).any()


@pytest.mark.parametrize("reflectivity", [0.0, 0.7])
def test_no_light_is_lost_or_made(reflectivity):
    params = LxeParameters(reflectivity=reflectivity)
    follow = jax.jit(lambda deposits: propagate(deposits, jnp.array([5e5, 1e6]), TABLE, params))
    for uvw in SOURCES:
        light = follow(uvw_to_xyz(jnp.array([uvw, (1, 2, 3)], float)))
        ends = [light.sensors.sum(), light.walls, light.xenon]
        assert min(ends) >= 0
        assert ends[0] + ends[1] <= 1.5e6
        assert sum(ends) == pytest.approx(1.5e6, rel=1e-5)


def test_optical_numbers_do_what_they_say():
    source, one = uvw_to_xyz(jnp.array([[0.0, 0.0, 15.0]])), jnp.ones(1)

    @partial(jax.jit, static_argnames="params")
    def light(params):
        return propagate(source, one, TABLE, params).sensors

    def sensors(**changed):
        return float(light(replace(PARAMS, **changed)).sum())

    clear = {"rayleigh_cm": 1e9, "absorption_cm": 1e9}
    assert sensors(**clear) == pytest.approx(float(see(source[0]).sum()), rel=1e-5)
    # A clear detector with mirrors between the sensors loses no photon at all.
    assert sensors(**clear, reflectivity=1.0) == pytest.approx(1, rel=1e-4)
    near, far = (light(replace(PARAMS, diffuse_range_cm=r)) for r in (5, 40))
    is_faint = np.asarray(see(source[0])) == 0
    assert is_faint.sum() > 100
    away = np.linalg.norm(TABLE.positions - np.asarray(source), axis=1)[is_faint]
    assert np.corrcoef(away, near[is_faint] / far[is_faint])[0, 1] < -0.9


# Derivatives


@pytest.fixture(scope="module")
def respond():
    """Expected counts and times at (E, u, v, w, t), and how they change in a direction."""

    params = LxeParameters(n_deposits=4)

    def mean(x):
        xyz = uvw_to_xyz(x[1:4])
        truth = {"xyzTruth": xyz, "xyzVTX": jnp.zeros(3), "emiVec": xyz / jnp.linalg.norm(xyz)}
        truth |= {"energyTruth": x[0], "timeTruth": x[4]}
        flash, _ = photon_light(jax.random.key(1), truth, TABLE, params)
        phe = flash.photons * nominal_efficiency(params)
        return jnp.stack([phe, time_moments(phe, *flash[1:], params)[0]])

    return jax.jit(lambda x, direction: jax.jvp(mean, (x,), (direction,)))


def test_derivatives_are_those_of_finite_differences(respond):
    x = np.array([0.05, 3.3, -7.1, 2.2, 1.0], np.float32)
    for step in np.diag([1e-3, 1e-2, 1e-2, 1e-2, 0.1]).astype(np.float32):
        (phe, _), slope = respond(x, step)
        # Below one photoelectron the time has a kink, next to it differences say nothing.
        smooth = np.abs(phe - 1) > 0.1
        above, below = (np.asarray(respond(x + sign * step, step)[0]) for sign in (1, -1))
        for found, wanted in zip(np.asarray(slope), (above - below) / 2, strict=True):
            error = np.linalg.norm((found - wanted)[smooth])
            assert error < 5e-3 * np.linalg.norm(wanted) + 1e-5, step


def test_derivatives_are_finite_everywhere(respond):
    corners = [(0, 0, 0.0), (0.7548, 0, 2), (33.5, 71, 0.01), (0, 0, 41.3), (-48, 0, 41)]
    drawn = np.random.default_rng(0).uniform([-33, -70, 0], [33, 70, 41], (10, 3))
    for uvw in [*SOURCES, *corners, *drawn]:
        for direction in np.eye(5, dtype=np.float32):
            found = respond(np.array([0.05, *uvw, 0], np.float32), direction)
            assert np.isfinite(found).all()


# Statistics


@pytest.mark.parametrize("mean", [0.01, 0.3, 3.0, 15.9, 16.1, 40.0, 1000.0, 1e5])
def test_poisson_mean_and_variance(mean):
    n = 200_000
    drawn = np.asarray(
        poisson_counts(jax.random.normal(jax.random.key(1), (n,)), jnp.full(n, mean)), float
    )
    assert (drawn >= 0).all()
    assert (drawn == np.round(drawn)).all()
    assert drawn.mean() == pytest.approx(mean, abs=5 * np.sqrt(mean / n))
    error = np.sqrt((2 * mean**2 + mean) / n)
    assert drawn.var() == pytest.approx(mean, abs=5 * error)


@pytest.mark.parametrize("mean", [2.5, 17.0])
def test_poisson_has_the_right_distribution(mean):
    n = 200_000
    drawn = np.asarray(
        poisson_counts(jax.random.normal(jax.random.key(2), (n,)), jnp.full(n, mean)), int
    )
    expected = n * poisson.pmf(np.arange(80), mean)
    counts = np.bincount(drawn, minlength=80)[:80]
    filled = expected > 20
    chi2 = ((counts - expected) ** 2 / expected)[filled].sum()
    assert chi2 < filled.sum() + 5 * np.sqrt(2 * filled.sum())


def test_poisson_of_nothing_is_nothing():
    assert (poisson_counts(jnp.linspace(-5, 5, 1000), jnp.zeros(1000)) == 0).all()


# Volume and showers


def test_sensors_lie_on_the_walls_and_the_volume_is_what_they_enclose():
    np.testing.assert_allclose(wall_distance(TABLE.positions), 0, atol=1e-4)
    low, high = np.array([[-OUTER_RADIUS_CM, -100, -50], [-20, 100, 50]])
    drawn = np.random.default_rng(0).uniform(low, high, (200_000, 3))
    inside = np.asarray(wall_distance(drawn)) > 0
    assert inside.mean() * np.prod(high - low) == pytest.approx(VOLUME_CM3, rel=0.02)
    assert pytest.approx(4 * VOLUME_CM3 / WALL_CM2.sum()) == MEAN_CHORD_CM
    # A ray from inside leaves through a wall after the mean chord, on average (Cauchy).
    assert 40 < MEAN_CHORD_CM < 55


def test_conversion_length_falls_towards_nine_sevenths_of_a_radiation_length():
    length = np.asarray(conversion_length(np.array([10.0, 15, 52.83, 82.9, 1e6])))
    assert (np.diff(length) < 0).all()
    assert length[-1] == pytest.approx(9 / 7 * 8.48 / 2.953, rel=0.03)
    assert 5 < length[2] < 6.2


@pytest.mark.parametrize("shape", [0.3, 1.0, 1.5])
def test_depths_follow_a_gamma_distribution(shape):
    normal = jax.random.normal(jax.random.key(1), (100_000,))
    drawn = _gamma(normal, jax.random.uniform(jax.random.key(2), (100_000,)), jnp.float32(shape))
    for share in (0.2, 0.5, 0.9, 0.99):
        assert (drawn < gamma.ppf(share, shape)).mean() == pytest.approx(share, abs=0.01)


def test_showers_have_their_length_width_and_light():
    params = LxeParameters(n_deposits=50, yield_spread=0)
    truth = {"emiVec": jnp.array([-1.0, 0, 0]), "energyTruth": jnp.float32(0.05283)}
    truth["xyzTruth"] = jnp.array([-INNER_RADIUS_CM - 10.0, 0, 0])
    draw = jax.jit(jax.vmap(lambda key, truth: sample_shower(key, truth, params), (0, None)))
    deposits, photons = (
        np.asarray(a) for a in draw(jax.random.split(jax.random.key(0), 400), truth)
    )
    np.testing.assert_allclose(deposits[:, 0], np.tile(truth["xyzTruth"], (400, 1)), atol=1e-4)
    way = deposits[:, 1:] - np.asarray(truth["xyzTruth"])
    mean = 1 / 0.5 + np.log(52.83 / (2 * 11.66)) - 0.5
    assert (-way[..., 0]).mean() == pytest.approx(2.77 * mean, rel=0.03)
    assert 0.9 < (np.hypot(way[..., 1], way[..., 2]) < 5.22).mean() < 0.97
    emitted = photons.sum(1) / (52.83 * 46_300)
    assert emitted.max() <= 1 + 1e-6
    assert np.median(emitted) > 0.95
    # The same shower just before the outer wall leaves most of its light behind.
    late = draw(
        jax.random.split(jax.random.key(0), 400), truth | {"xyzTruth": jnp.array([-105.0, 0, 0])}
    )
    assert (late[1].sum(1) < photons.sum(1)).all()
    assert np.median(late[1].sum(1)) < 0.5 * np.median(photons.sum(1))
    outside = np.asarray(wall_distance(late[0]))[:, 1:] < 0
    assert (np.asarray(late[1])[:, 1:][outside] == 0).all()


def test_muons_lose_energy_along_their_way():
    keys = jax.random.split(jax.random.key(3), 200)
    deposits, photons, energy = jax.jit(jax.vmap(lambda key: sample_muon(key, PARAMS)))(keys)
    chord = 3.75 * (wall_distance(deposits) > 0).sum(1)
    np.testing.assert_allclose(energy, 3.7 * chord, atol=2 * 3.7 * 3.75)
    np.testing.assert_allclose(photons.sum(1), energy * 46_300, rtol=1e-5)
    direction = deposits[:, -1] - deposits[:, 0]
    assert (direction[:, 1] < 0).all()
    cosine = -direction[:, 1] / jnp.linalg.norm(direction, axis=1)
    assert (cosine**3).mean() == pytest.approx(0.5, abs=0.08)


def test_background_photons_are_soft():
    energy = np.asarray(background_energy(jnp.linspace(0, 1, 10_001), PARAMS)) * 1e3
    assert energy[0] == pytest.approx(5)
    assert energy[-1] == pytest.approx(52.83, rel=1e-3)
    x = np.array([10, 20, 40]) / 52.83
    wanted = [(np.log(v) - v - np.log(low) + low) for low in [5 / 52.83] for v in x]
    wanted = np.array(wanted) / (-1 - np.log(5 / 52.83) + 5 / 52.83)
    found = [(energy < 52.83 * v).mean() for v in x]
    np.testing.assert_allclose(found, wanted, atol=2e-3)


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


def test_time_rises_with_distance_at_the_speed_of_light(events):
    source = events["xyzTruth"].astype(np.float64)
    params = replace(PARAMS, time_walk_ns=0)
    for i in range(5):
        _, path = shine(jnp.asarray(events["xyzTruth"][i : i + 1]), jnp.ones(1))
        distance = np.linalg.norm(TABLE.positions - source[i], axis=1)
        time, _ = time_moments(np.full(4760, 1e4), path, 65.0, 2.0, params)
        slope, start = np.polyfit(distance, time, 1)
        assert slope == pytest.approx(1.7 / 29.979, rel=1e-3)
        assert start == pytest.approx(2 + 65 / 29.979, abs=1e-3)


def test_simulated_times_follow_the_time_model(events):
    pulls = []
    for i in range(40):
        truth = {name: values[i] for name, values in events.items()}
        bright = (truth["nphe"] > 200) & (truth["nphe"] < 9e9)
        flight = np.linalg.norm(truth["xyzTruth"] - truth["xyzVTX"])
        distance = np.linalg.norm(TABLE.positions - truth["xyzTruth"], axis=1)
        mean, sigma = time_moments(truth["nphe"], distance, flight, truth["timeTruth"], PARAMS)
        pulls.append(((truth["time"] * 1e9 - mean) / sigma)[bright])
    pulls = np.concatenate(pulls)
    # Charge stands for the count, and the shower's first point for all of it.
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
    measure = jax.jit(lambda key: read_out(key, [light], sensors, jnp.zeros(4760, bool), PARAMS))
    ratio = measure(jax.random.key(0))["npho"] / 1e7
    true = np.asarray(sensors.efficiency * sensors.gain) / nominal_efficiency(PARAMS)
    # 1.5 million photoelectrons: 0.09 % with the spread of single charges.
    assert np.std(ratio / true - 1) == pytest.approx(8.8e-4, rel=0.1)


# Options


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


def test_cosmics_are_bright(crowded_events):
    energy = crowded_events["energyCosmic"]
    assert (energy > 0).mean() == pytest.approx(0.2, abs=0.12)
    live = crowded_events["npho"] < 9e9
    total = np.where(live, crowded_events["npho"], 0).sum(1)
    assert np.median(total[energy > 0.1]) > 1.5 * np.median(total[energy == 0])


def test_real_data_have_reconstructed_quantities_instead_of_truth(crowded_events):
    names = set(crowded_events)
    assert not [name for name in names if "Truth" in name]
    reco = "xyzRecoFI xyzRecoLC uvwRecoFI uvwRecoLC xyzVTX emiVec emiAng energyReco timeReco"
    relative = "relative_npho relative_time ch_npho_max ch_time_min npho_max_used time_min_used"
    extra = "energyPileup timePileup uvwPileup energyCosmic solid_angle dead"
    wanted = f"run event npho time {relative} {reco} {extra}"
    assert names == set(wanted.split())
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


def test_seeds_differ(events):
    other = collect(6, 0, 2)
    assert (other["npho"] != events["npho"][:2]).mean() > 0.9
    assert (other["energyTruth"] != events["energyTruth"][:2]).all()
