"""Parts of the simulated calorimeter: optics, derivatives, statistics, showers."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtri
from scipy.stats import gamma, poisson

from xec_jax.geometry import (
    FACES,
    INNER_RADIUS_CM,
    N_SIPM,
    OUTER_RADIUS_CM,
    PMT_RADIUS_CM,
    design_positions,
)
from xec_jax.kinematics import uvw_to_xyz
from xec_jax.sim.lxe import photon_light
from xec_jax.sim.lxe_optics import acceptance, propagate
from xec_jax.sim.lxe_parameters import LxeParameters
from xec_jax.sim.lxe_readout import nominal_efficiency, time_moments
from xec_jax.sim.lxe_shower import _gamma, conversion_length, sample_muon, sample_shower
from xec_jax.sim.lxe_source import background_energy
from xec_jax.sim.lxe_volume import MEAN_CHORD_CM, VOLUME_CM3, WALL_CM2, wall_distance
from xec_jax.sim.poisson import poisson_counts
from xec_jax.sim.solid_angle import disc_solid_angle, rectangle_solid_angle, sipm_solid_angle

PARAMS = LxeParameters()
TABLE = design_positions()
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


DRAWS = 50_000
draw_counts = jax.jit(
    lambda mean: poisson_counts(jnp.asarray(ndtri((np.arange(DRAWS) + 0.5) / DRAWS)), mean)
)
"""All quantiles of the distribution: moments without the noise of a sample."""


@pytest.mark.parametrize("mean", [0.01, 0.3, 3.0, 15.9, 16.1, 40.0, 1000.0, 1e5])
def test_poisson_moments(mean):
    drawn = np.asarray(draw_counts(jnp.full(DRAWS, mean)), float)
    assert (drawn >= 0).all()
    assert (drawn == np.round(drawn)).all()
    assert drawn.mean() == pytest.approx(mean, rel=5e-5, abs=4e-5)
    # The quantiles leave out tails of 1e-5 on each side.
    assert drawn.var() == pytest.approx(mean, rel=5e-4, abs=4e-5)
    skewness = ((drawn - mean) ** 3).mean() / mean**1.5
    assert skewness == pytest.approx(mean**-0.5, rel=0.02)


@pytest.mark.parametrize("mean", [2.5, 17.0])
def test_poisson_has_the_right_distribution(mean):
    drawn = np.asarray(draw_counts(jnp.full(DRAWS, mean)), int)
    shares = np.bincount(drawn, minlength=80)[:80] / DRAWS
    tolerance = 4e-5 if mean < 16 else 2e-3
    np.testing.assert_allclose(shares, poisson.pmf(np.arange(80), mean), atol=tolerance)


def test_poisson_of_nothing_is_nothing():
    assert (draw_counts(jnp.zeros(DRAWS)) == 0).all()


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
    length = np.asarray(conversion_length(np.array([5.0, 10, 15, 20, 52.8, 82.9, 1e5])))
    # Klein-Nishina and the parametrisation of pairs in double precision, made independently.
    wanted = [9.55, 8.54, 7.71, 7.14, 5.58, 5.08]
    np.testing.assert_allclose(length[:-1], wanted, atol=6e-3)
    assert length[-1] == pytest.approx(9 / 7 * 8.48 / 2.953, rel=0.03)


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
