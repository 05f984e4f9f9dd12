"""Classical answers for dead sensors: solid angles, the local fit, the log-linear ridge."""

import jax
import numpy as np
import pytest

from xec_jax.baselines import ridge as ridges
from xec_jax.baselines.local_fit import LocalFit, local_fit, strip_profile
from xec_jax.baselines.neighbors import disk_average, touching_average
from xec_jax.baselines.ridge import fit_ridge
from xec_jax.baselines.solid_angle import solid_angle_average
from xec_jax.errors import ConfigError, DataError
from xec_jax.geometry import (
    FACES,
    N_SIPM,
    SIPM_CHIP_CM,
    SIPM_GAP_CM,
    design_positions,
    make_detector,
)
from xec_jax.kinematics import uvw_to_xyz
from xec_jax.sim.lxe_optics import acceptance
from xec_jax.sim.solid_angle import rectangle_solid_angle, sipm_solid_angle

DETECTOR = make_detector()
TABLE = design_positions()
S = DETECTOR.n_sensors
INNER = DETECTOR.sensor_face == FACES.index("inner")
PATCH = np.array([[46 * 44 + 22 + 44 * i + j for j in (-1, 0, 1)] for i in (-1, 0, 1)])
CENTER = PATCH[1, 1]

_see = jax.jit(jax.vmap(lambda point: acceptance(point, TABLE)))


def see(points):
    """omega / 4 pi (n, s) in float64, from up to six points (n, 3): one program for all tests."""
    padded = np.resize(np.asarray(points, np.float32), (6, 3))
    return np.asarray(_see(padded), np.float64)[: len(points)]


@jax.jit
def _averages(photons, live, points):
    near = touching_average(DETECTOR, photons, live), disk_average(DETECTOR, photons, live)
    return *near, solid_angle_average(DETECTOR, photons, live, points)


def averages(photons, live, points):
    """(estimate, found) of neighbors, disk and solid angles, of up to four events."""
    n = len(photons)
    padded = [np.resize(x, (4, *x.shape[1:])) for x in (photons, live, np.asarray(points))]
    return jax.tree.map(lambda x: np.asarray(x)[:n], _averages(*padded))


def package_solid_angle(source, sensor):
    """A SiPM package in float64: each chip by arctangents at its four corners."""
    normal, away = TABLE.normals[sensor], np.asarray(source) - TABLE.positions[sensor]
    x, y = away[2], normal[0] * away[1] - normal[1] * away[0]
    z, low, high = away @ normal, SIPM_GAP_CM / 2, SIPM_GAP_CM / 2 + SIPM_CHIP_CM

    def corner(a, b):
        return np.arctan(a * b / (z * np.sqrt(a * a + b * b + z * z)))

    def chip(x0, x1, y0, y1):
        x0, x1, y0, y1 = x0 - x, x1 - x, y0 - y, y1 - y
        return corner(x1, y1) - corner(x0, y1) - corner(x1, y0) + corner(x0, y0)

    sides = [(-high, -low), (low, high)]
    return sum(chip(*a, *b) for a in sides for b in sides)


# Solid angles


@pytest.mark.parametrize("height", [0.05, 0.5, 3.0, 20.0])
def test_package_on_axis_is_made_of_four_squares(height):
    """A square of half width a on its axis covers 4 arcsin(a^2 / (a^2 + z^2))."""

    def quarter(a, b):
        return np.arcsin(a * b / np.sqrt((a * a + height**2) * (b * b + height**2)))

    assert rectangle_solid_angle(0.0, 0.0, height, 0.59, 0.59) == pytest.approx(
        4 * np.arcsin(0.59**2 / (0.59**2 + height**2)), rel=1e-5
    )
    # A chip is the corner of a square, less the cross of the gaps.
    gap, side = SIPM_GAP_CM / 2, SIPM_GAP_CM / 2 + SIPM_CHIP_CM
    exact = 4 * (quarter(side, side) - 2 * quarter(side, gap) + quarter(gap, gap))
    assert sipm_solid_angle(0.0, 0.0, height) == pytest.approx(exact, rel=1e-4)
    source = TABLE.positions[CENTER] + height * TABLE.normals[CENTER]
    assert package_solid_angle(source, CENTER) == pytest.approx(exact, rel=1e-6)
    assert 4 * np.pi * see(source[None])[0, CENTER] == pytest.approx(exact, rel=1e-3)


def test_an_endless_strip_is_a_sum_of_rectangles():
    along = np.arange(-3000, 3000, 0.5) + 0.25
    for distance, depth, width in [(0.0, 2.0, 1.5), (4.0, 0.7, 1.5), (-9.0, 11.0, 1.0)]:
        pieces = rectangle_solid_angle(distance, along, np.full_like(along, depth), width / 2, 0.25)
        profile = strip_profile(distance, depth, width)
        assert profile == pytest.approx(np.asarray(pieces, float).sum(), rel=1e-3)
    assert strip_profile(0.0, 2.0, 1.5) == pytest.approx(4 * np.arctan(0.75 / 2.0), rel=1e-6)


# Averages


def test_three_by_three_patch():
    """Eight live sensors around a dead one: all three averages by hand."""
    photons, live = np.full((1, S), np.nan, np.float32), np.zeros((1, S), bool)
    around = np.delete(PATCH.ravel(), 4)
    photons[0, around], live[0, around] = [10, 20, 30, 40, 50, 60, 70, 80], True
    source = TABLE.positions[PATCH[0, 2]] + 0.8 * TABLE.normals[PATCH[0, 2]]
    *means, (filled, found) = averages(photons, live, source[None])
    for mean, is_near in means:
        assert mean[0, CENTER] == 45
        assert is_near[0, CENTER]
    omega = np.array([package_solid_angle(source, s) for s in around])
    expected = package_solid_angle(source, CENTER) * 360 / omega.sum()
    assert filled[0, CENTER] == pytest.approx(expected, rel=1e-3)
    assert abs(expected - 45) > 10
    # Others have the same live sensors around: itself is left out, but not the one in the middle.
    k = PATCH[0, 0]
    expected = package_solid_angle(source, k) * 350 / (omega.sum() - omega[0])
    assert filled[0, k] == pytest.approx(expected, rel=1e-3)
    # 35 cm away along the arc, and on other faces, nobody is near.
    assert not found[0, CENTER + 23 * 44]
    assert not found[0, N_SIPM:].any()


def test_solid_angles_equal_loops_over_sensors():
    rng = np.random.default_rng(0)
    photons = rng.gamma(0.5, 60, (3, S)).astype(np.float32)
    live = rng.uniform(size=(3, S)) < 0.7
    points = np.asarray(uvw_to_xyz(rng.uniform([-20, -60, 1], [20, 60, 20], (3, 3))))
    photons[2] *= 1e-3
    omega = see(points)
    _, (mean, _), (filled, found) = averages(photons, live, points)
    n_faint = 0
    for s in np.r_[rng.choice(S, 60, replace=False), 4200, 4744, 4600]:
        away = np.linalg.norm(TABLE.positions - TABLE.positions[s], axis=1)
        near = (TABLE.face == TABLE.face[s]) & (away < 20) & (np.arange(S) != s)
        for e in range(3):
            used = near & live[e]
            light, angle = photons[e, used].sum(), omega[e, used].sum()
            is_blind = light <= 50 or angle == 0 or omega[e, s] == 0
            n_faint += is_blind
            expected = mean[e, s] if is_blind else omega[e, s] * light / angle
            assert filled[e, s] == pytest.approx(float(expected), rel=1e-4)
            assert found[e, s] == used.any()
    assert n_faint > 5


def test_solid_angles_are_exact_for_a_point_source():
    points = uvw_to_xyz(np.array([[0.0, 0, 3], [12, -40, 0.3], [-20, 55, 25]]))
    light = 1e8 * see(points)
    live = np.random.default_rng(0).uniform(size=light.shape) < 0.8
    photons = np.where(live, light, np.nan)  # what is behind the mask must not matter
    filled, _ = averages(photons.astype(np.float32), live, points)[2]
    is_lit = light > 500  # neighbors see more than 50 photons together
    for code in range(len(FACES)):
        assert is_lit[:, code == DETECTOR.sensor_face].sum() > 50
    np.testing.assert_allclose(filled[is_lit], light[is_lit], rtol=1e-4)


def test_solid_angles_give_way_to_the_average():
    """Little light, no point, or a point behind the face: the average of the disk."""
    rng = np.random.default_rng(0)
    photons = rng.uniform(5, 10, (4, S)).astype(np.float32)
    live = rng.uniform(size=(4, S)) < 0.9
    photons[0] *= 1e-3
    live[3] = False
    points = np.asarray(uvw_to_xyz([[0.0, 0, 2], [np.nan, 0, 2], [0, 0, -1], [0, 0, 2]]))
    _, (mean, found_near), (filled, found) = averages(photons, live, points)
    np.testing.assert_array_equal(found, found_near)
    np.testing.assert_allclose(filled[:2], mean[:2], rtol=1e-6)
    np.testing.assert_allclose(filled[2, INNER], mean[2, INNER], rtol=1e-6)
    assert (filled[3] == 0).all()
    assert not found[3].any()


# Local fit

SOURCES = np.array(
    [
        [0, 0, 2],
        [5.3, -20.7, 0.9],
        [-11.2, 33.3, 6],
        [20.5, 60.1, 3],
        [-24, -68, 1.5],
        [0.75, 0.76, 12],
    ]
)
N_POISSON = 24
PHOTONS = 4e6
LIGHT = PHOTONS * see(uvw_to_xyz(SOURCES))


@pytest.fixture(scope="module")
def fits():
    """Noise-free sources, the same with dead sensors, counted photons, and hopeless events."""
    rng = np.random.default_rng(1)
    n = len(SOURCES)
    bright = np.arange(S)[None] == LIGHT.argmax(1)[:, None]
    live = np.ones((2 * n, S), bool)
    live[n:] = (rng.uniform(size=(n, S)) < 0.9) & ~bright
    light = np.where(live, np.tile(LIGHT, (2, 1)), np.nan)
    counted = rng.poisson(0.12 * np.repeat(LIGHT[2:3], N_POISSON, 0)) / 0.12
    hopeless = np.stack([np.zeros(S), LIGHT[0], LIGHT[0], LIGHT[0], np.full(S, 50.0)])
    alive = np.ones(hopeless.shape, bool)
    alive[1] = False
    alive[2, INNER] = False
    alive[3] = np.arange(S)[None] // 44 != 46  # nine sensors of one row are left
    alive[3, INNER] = np.isin(np.flatnonzero(INNER), 46 * 44 + np.arange(18, 27))
    photons = np.concatenate([light, counted, np.where(alive, hopeless, np.nan)])
    live = np.concatenate([live, np.ones(counted.shape, bool), alive])
    return jax.tree.map(np.asarray, local_fit(DETECTOR, photons.astype(np.float32), live))


def take(fits, *which):
    return LocalFit(*(field[slice(*which)] for field in fits))


def test_local_fit_finds_a_source_without_noise(fits):
    """Within 1 mm, with and without dead sensors, the brightest among them."""
    found = take(fits, 0, 2 * len(SOURCES))
    assert found.converged.all()
    np.testing.assert_allclose(found.uvw, np.tile(SOURCES, (2, 1)), atol=0.1)
    np.testing.assert_allclose(found.scale, PHOTONS / (4 * np.pi), rtol=0.01)
    light = np.tile(LIGHT, (2, 1))[:, INNER]
    np.testing.assert_allclose(found.filled[:, INNER], light, rtol=0.01, atol=0.05)
    assert np.isnan(found.filled[:, ~INNER]).all()
    assert (found.n_used <= 347).all()  # points of a square lattice in a circle of radius 10.5
    assert found.n_used[0] > 330
    assert (found.n_used[len(SOURCES) :] < found.n_used[: len(SOURCES)]).all()


def test_local_fit_is_as_good_as_counting_permits(fits):
    """Errors of 24 fits against the Cramer-Rao bound, by differences in float64."""
    first = 2 * len(SOURCES)
    found = take(fits, first, first + N_POISSON)
    assert found.converged.all()
    at = SOURCES[2]
    away = (
        (TABLE.positions[:, 2] - at[0]) / 1.51,
        (np.arctan2(-TABLE.positions[:, 1], -TABLE.positions[:, 0]) * -64.97 - at[1]) / 1.53,
    )
    used = np.flatnonzero(INNER & (np.hypot(*away) <= 10.5))

    def expected(x):
        xyz = np.asarray(uvw_to_xyz(x[:3]), np.float64)
        return x[3] * np.array([package_solid_angle(xyz, s) for s in used])

    x = np.array([*at, PHOTONS / (4 * np.pi)])
    steps = np.diag([0.05, 0.05, 0.05, x[3] * 1e-3])
    slope = np.stack([(expected(x + d) - expected(x - d)) / (2 * d.sum()) for d in steps], 1)
    information = (slope / expected(x)[:, None]).T @ slope * 0.12
    sigma = np.sqrt(np.diag(np.linalg.inv(information)))
    assert (sigma[:3] < 0.05).all()
    pulls = (np.c_[found.uvw, found.scale] - x) / sigma
    # Errors from counts that fluctuate themselves favor low counts: a bias of the scale and w.
    assert (abs(pulls.mean(0)) < [0.7, 0.7, 2, 2]).all()
    assert (pulls.std(0) < 1.5).all()
    assert (pulls.std(0) > 0.5).all()
    per_freedom = found.chi2 / (found.n_used - 4)
    assert per_freedom.mean() == pytest.approx(1, abs=0.1)


def test_local_fit_says_when_it_has_nothing_to_fit(fits):
    dark, dead, no_face, few, flat = range(5)
    found = take(fits, len(fits.chi2) - 5, None)
    assert not found.converged[[dark, dead, no_face, few]].any()
    failed = ~found.converged
    assert np.isnan(found.filled[failed]).all()
    assert np.isnan(found.uvw[failed]).all()
    assert np.isnan(found.scale[failed]).all()
    assert found.n_used[[dead, no_face, few]].tolist() == [0, 0, 9]
    # Even light everywhere looks like a source far away, if like any.
    assert found.uvw[flat, 2] > 10 or not found.converged[flat]


# Ridge


def correlated_photons(n, seed=0):
    """Photons that neighbors share: a few bright directions, and noise of each sensor."""
    rng = np.random.default_rng(seed)
    waves = rng.normal(size=(6, 3)) / 15
    pattern = np.cos(TABLE.positions @ waves.T + rng.uniform(0, 6, 6)).T
    y = 4 + rng.normal(size=(n, 6)) @ pattern + 0.3 * rng.normal(size=(n, S))
    return np.exp(y).astype(np.float32)


def logarithm(photons, scale):
    return np.log1p(photons.astype(np.float64) / scale)


def brute_force(ridge, photons, sensor, used, event):
    """Least squares with the penalty as further rows, on the neighbors that are used."""
    y = logarithm(photons, ridge.scale)
    y_mean = y.mean(0)
    ids = ridge.neighbors[sensor][used]
    penalty = np.sqrt(ridge.regularization * len(y)) * np.eye(len(ids))
    matrix = np.concatenate([y[:, ids] - y_mean[ids], penalty])
    right = np.concatenate([y[:, sensor] - y_mean[sensor], np.zeros(len(ids))])
    weights = np.linalg.lstsq(matrix, right)[0]
    value = y_mean[sensor] + weights @ (logarithm(event, ridge.scale)[ids] - y_mean[ids])
    return ridge.scale * np.expm1(value)


@pytest.fixture(scope="module")
def sample():
    return correlated_photons(80)


@pytest.fixture(scope="module")
def ridge(sample):
    everything = np.ones(sample.shape, bool)
    batches = [(sample[:50], everything[:50]), (sample[50:], everything[50:])]
    return fit_ridge(DETECTOR, batches, scale=20.0, regularization=0.01)


def test_ridge_equals_least_squares(ridge, sample):
    """All neighbors live, random ones dead, one left: the same penalty, another route."""
    rng = np.random.default_rng(2)
    photons = correlated_photons(3, seed=5)
    live = np.ones(photons.shape, bool)
    live[1] = rng.uniform(size=S) < 0.6
    sensors = np.array([0, 43, 2046, 4091, 4100, 4200, 4400, 4500, 4600, 4741, 4759])
    live[2, ridge.neighbors[sensors]] = False
    live[2, ridge.neighbors[sensors][:, 7]] = True
    wanted = np.zeros(photons.shape, bool)
    wanted[:, sensors] = True
    hidden = np.where(live, photons, np.nan)
    filled = ridge.fill(hidden, live, wanted)
    assert filled.dtype == np.float32
    assert np.isnan(filled[~wanted]).all()
    for event in range(3):
        for s in sensors:
            used = live[event, ridge.neighbors[s]]
            assert event != 0 or used.all()
            expected = brute_force(ridge, sample, s, used, photons[event])
            assert filled[event, s] == pytest.approx(expected, rel=1e-5)


def test_ridge_knows_its_sample(ridge, sample):
    y = logarithm(sample, 20.0)
    np.testing.assert_allclose(ridge.mean, y.mean(0), rtol=1e-12)
    for s in (0, 2046, 4300, 4759):
        ids = np.r_[ridge.neighbors[s], s]
        expected = np.cov(y[:, ids].T, bias=True)
        np.testing.assert_allclose(ridge.covariance[s], expected, rtol=1e-9, atol=1e-12)
    assert ridge.n_events == 80


def test_ridge_counts_pairs_where_both_are_live(sample):
    """Of two runs with other dead channels, cut into batches in any way; by loops over pairs."""
    live = np.ones(sample.shape, bool)
    rng = np.random.default_rng(3)
    live[:40] = rng.uniform(size=S) < 0.97
    live[70] = rng.uniform(size=S) < 0.97
    live[:, 7] = False  # dead in all of the sample
    photons = np.where(live, sample, np.nan)

    def fit(*cuts):
        batches = zip(np.split(photons, cuts), np.split(live, cuts), strict=True)
        return fit_ridge(DETECTOR, batches, scale=20.0)

    one, other = fit(), fit(13, 60)
    np.testing.assert_allclose(one.covariance, other.covariance, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(one.mean, other.mean, rtol=1e-12)
    n_plain = 0
    y = logarithm(np.where(live, sample, 0), 20.0)
    for s in (60, 1000, 2046, 4300, 4500, 4700):
        ids = np.r_[one.neighbors[s], s]
        expected = np.empty((25, 25))
        for i, a in enumerate(ids):
            for j, b in enumerate(ids):
                both = live[:, a] & live[:, b]
                product = (y[both, a] - one.mean[a]) * (y[both, b] - one.mean[b])
                expected[i, j] = product.mean() if both.any() else 0
        lowest = np.linalg.eigvalsh(expected)[0]
        assert np.linalg.eigvalsh(one.covariance[s])[0] > -1e-12
        if lowest >= 0:
            n_plain += 1
            np.testing.assert_allclose(one.covariance[s], expected, rtol=1e-8, atol=1e-10)
        else:
            assert abs(one.covariance[s] - expected).max() < -2 * lowest
    assert 0 < n_plain < 6  # both kinds
    # A sensor that nobody has ever seen cannot be predicted, and tells nothing.
    wanted = np.zeros((1, S), bool)
    wanted[0, [7, 8]] = True
    event, everything = sample[:1].copy(), np.ones((1, S), bool)
    filled = one.fill(event, everything, wanted)
    event[0, 7] = 1e9
    np.testing.assert_array_equal(one.fill(event, everything, wanted), filled)
    assert np.isnan(filled[0, 7])
    assert np.isfinite(filled[0, 8])


def test_ridge_without_live_neighbors_gives_the_typical_light(ridge, sample):
    """A whole face dead, and everything dead: means, nothing that is not finite."""
    live = np.ones((2, S), bool)
    live[0, INNER] = False
    live[1] = False
    filled = ridge.fill(np.where(live, sample[:2], np.nan), live, ~live)
    typical = 20.0 * np.expm1(ridge.mean)
    np.testing.assert_allclose(filled[1], typical, rtol=1e-6)
    np.testing.assert_allclose(filled[0, CENTER], typical[CENTER], rtol=1e-6)
    assert np.isfinite(filled[0, INNER]).all()
    assert filled[0, 0] != pytest.approx(typical[0], rel=1e-3)  # the next face is near


def test_ridge_in_pieces_and_without_work(ridge, sample, monkeypatch):
    rng = np.random.default_rng(4)
    live, wanted = rng.uniform(size=(2, 5, S)) < np.array([0.8, 0.01])[:, None, None]
    whole = ridge.fill(sample[:5], live, wanted)
    monkeypatch.setattr(ridges, "_CHUNK_SOLVES", 7)
    np.testing.assert_allclose(ridge.fill(sample[:5], live, wanted), whole, rtol=1e-6)
    assert np.isnan(ridge.fill(sample[:5], live, np.zeros_like(wanted))).all()
    assert ridge.fill(sample[:0], live[:0], wanted[:0]).shape == (0, S)


def test_ridge_refuses_other_settings(sample):
    everything = np.ones(sample.shape, bool)
    for options in ({"scale": 0.0}, {"regularization": 0.0}, {"scale": float("nan")}):
        with pytest.raises(ConfigError, match="regularization"):
            fit_ridge(DETECTOR, [(sample, everything)], **options)
    for batches in ([], [(sample[:1], everything[:1])]):
        with pytest.raises(DataError, match="events"):
            fit_ridge(DETECTOR, batches)
