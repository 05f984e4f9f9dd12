"""Transformations of muons: known values, exact inverses, log slopes as derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from xec_jax.errors import ConfigError, DataError
from xec_jax.muon_features import (
    FEATURES,
    METHODS,
    Column,
    Columns,
    decode_muons,
    encode_muons,
    encode_primaries,
)
from xec_jax.sim.muon import MuonBundles

MUONS = MuonBundles().sample(400, seed=1)[2]


def test_stage_a_has_its_known_values():
    muons = np.array([[10.0, 0.0, 100.0, -50.0], [1000.0, 12.0, 0.0, 0.0]])
    u, w, x, y = np.asarray(encode_muons(muons, "all")).T
    np.testing.assert_allclose(u, [0, 1], atol=1e-6)
    np.testing.assert_allclose(w, (np.log([0.125, 144.125]) - 5) / 2, atol=1e-6)
    np.testing.assert_allclose([x, y], [[1, 0], [-0.5, 0]])
    primaries = [[1e6, 0.0, 0.5, 2000.0], [1e5, np.pi / 3, 52.5, np.nan]]
    expected = [[0, 1, np.log10(0.9), 2], [-1, 0.5, np.log10(52.5), 1]]
    np.testing.assert_allclose(encode_primaries(primaries), expected, atol=1e-6)


@pytest.mark.parametrize("features", sorted(FEATURES))
@pytest.mark.parametrize("offset", [0.0, 0.125])
def test_stage_a_and_back(features, offset):
    back = decode_muons(encode_muons(MUONS, features, offset), features, offset)
    for name, column in zip(("energy", "radius", "x", "y"), MUONS.T, strict=True):
        if name in FEATURES[features]:
            # Below the offset's root a distance is known to that root's rounding only.
            np.testing.assert_allclose(back[name], column, rtol=1e-4, atol=2e-3)


def test_a_distance_below_the_edge_is_zero_and_not_nan():
    assert decode_muons([[0.5, -9.0]], "r")["radius"] == 0


@pytest.mark.parametrize("method", METHODS)
def test_stage_b_and_back_with_its_slope(method):
    values = np.concatenate([np.random.default_rng(0).gamma(2, 1, 3000) - 1, [-3.0, 12.0]])
    column = Column.fit(values, method)
    v = jnp.linspace(-4.0, 15.0, 301) + 1e-3
    z = column.forward(v)
    assert (np.diff(z) > 0).all(), "increasing, far outside the fitted range as well"
    np.testing.assert_allclose(column.inverse(z), v, rtol=2e-4, atol=2e-4)
    slope = jax.vmap(jax.grad(column.forward))(v)
    np.testing.assert_allclose(column.log_slope(v), np.log(slope), atol=2e-4)
    if method != "none":
        fitted = np.asarray(column.forward(values))
        assert (fitted.mean(), fitted.std()) == pytest.approx((0, 1), abs=0.05)


def test_the_power_is_the_most_likely_one():
    values = np.random.default_rng(1).gamma(3, 1, 2000) - 2
    expected = stats.yeojohnson_normmax(values)
    assert 0 < expected < 2
    assert Column.fit(values, "yeo_johnson").power == pytest.approx(expected, abs=1e-3)
    skewed = np.exp(np.random.default_rng(2).normal(0, 2, 500))
    assert 0 <= Column.fit(skewed, "yeo_johnson").power <= 2


def test_quantiles_make_a_normal_distribution():
    values = np.random.default_rng(3).exponential(size=5000)
    z = np.asarray(Column.fit(values, "quantile").forward(values))
    assert stats.kstest(z, stats.norm.cdf).pvalue > 0.01


def test_a_density_keeps_its_meaning():
    """ln p in units of stage A, whatever stage B did: here of a known normal distribution."""
    values = np.random.default_rng(4).normal(3.0, 2.0, (20000, 2))
    columns = Columns.fit(values, ("standard", "yeo_johnson"))
    z = columns.forward(values)
    density = stats.multivariate_normal(np.mean(z, 0), np.cov(np.asarray(z).T)).logpdf(z)
    in_a_units = density + np.asarray(columns.log_slope(values))
    exact = stats.norm(3, 2).logpdf(values).sum(1)
    assert np.mean(exact - in_a_units) == pytest.approx(0, abs=0.01)


def test_constants_survive_a_config():
    columns = Columns.fit(np.random.default_rng(5).normal(size=(500, 3)), METHODS[1:])
    assert Columns.from_list(columns.as_list()) == columns


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [1.0, np.nan], []])
def test_values_without_a_spread_are_refused(values):
    with pytest.raises(DataError, match="cannot be brought to mean 0"):
        Column.fit(np.array(values), "standard")


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="features is 'z'"):
        encode_muons(MUONS, "z")
    with pytest.raises(ConfigError, match="method is 'robust'"):
        Column.fit(MUONS[:, 0], "robust")
