"""Muon bundles: exact densities and entropies against samples, quadrature and tabulated values."""

import numpy as np
import pytest
from scipy import integrate

from xec_jax.errors import ConfigError
from xec_jax.sim.muon import (
    LinearGaussian,
    MuonBundles,
    Primaries,
    log_density_of_number,
    mean_number,
)

A_UNITS = np.log(2 * np.log(10))  # from (ln E, ln r) to the features (u, w)


def per_muon(primaries, counts):
    return Primaries(*(np.repeat(getattr(primaries, f), counts) for f in primaries.__annotations__))


@pytest.fixture(scope="module", params=[1.0, 3.0])
def sample(request):
    bundles = MuonBundles(request.param)
    return bundles, *bundles.sample(4000, seed=7)


def test_entropies_have_their_tabulated_values():
    assert LinearGaussian().entropy == pytest.approx(2.066921, abs=1e-6)
    assert LinearGaussian().marginal_entropy == pytest.approx(3.974724, abs=1e-6)
    assert MuonBundles().entropy - A_UNITS == pytest.approx(1.740148, abs=1e-6)
    for kappa, information in ((4, 1.0291), (8, 1.4238), (20, 1.9038)):
        gained = np.log(2 * np.pi) - MuonBundles(kappa=kappa).entropy_of_azimuth
        assert gained == pytest.approx(information, abs=1e-4)


def test_samples_have_the_entropy(sample):
    bundles, primaries, counts, muons = sample
    surprise = -bundles.log_density(muons, per_muon(primaries, counts))
    assert surprise.mean() == pytest.approx(bundles.entropy, abs=4 * surprise.std() / 240)


@pytest.mark.parametrize(
    ("strength", "weighting", "expected"),
    [(1, "muon", 1.8390), (3, "muon", 2.2925), (1, "event", 1.8681), (3, "event", 2.3840)],
)
def test_the_marginal_has_its_tabulated_entropy(strength, weighting, expected):
    bundles = MuonBundles(strength)
    primaries, counts, muons = bundles.sample(1500, seed=11)
    first = np.cumsum(counts) - counts
    some = first if weighting == "event" else np.arange(0, len(muons), 8)
    muons, given = muons[some], per_muon(primaries, counts)
    given = Primaries(*(getattr(given, f)[some] for f in given.__annotations__))
    gain = bundles.log_density(muons, given) - bundles.log_marginal(muons, weighting)
    error = gain.std() / len(gain) ** 0.5
    found = bundles.entropy - A_UNITS + gain.mean()
    assert found == pytest.approx(expected, abs=4 * error + 0.006)
    assert error < 0.05


def test_densities_add_up_to_one():
    bundles = MuonBundles()
    primary = Primaries(*np.array([[6.5], [4.0], [0.7], [1.8]]))
    e, r = np.meshgrid(np.linspace(-30, 25, 1101), np.linspace(-25, 25, 1001), indexing="ij")
    muons = np.exp(np.stack([e.ravel(), r.ravel()], -1))
    density = np.exp(bundles.log_density(muons, primary)).reshape(e.shape)
    total = integrate.trapezoid(integrate.trapezoid(density, dx=0.05), dx=0.05)
    assert total == pytest.approx(1, abs=1e-3)
    numbers = np.arange(1, 400)
    assert np.exp(log_density_of_number(numbers, primary)).sum() == pytest.approx(1, abs=1e-6)


def test_numbers_of_muons(sample):
    _, primaries, counts, _ = sample
    assert counts.min() == 1
    assert counts.mean() == pytest.approx(14.675, abs=4 * counts.std() / 4000**0.5)
    pull = (counts - 1 - mean_number(primaries)).mean() / (counts.std() / 4000**0.5)
    assert abs(pull) < 4


def test_azimuths_follow_the_energy():
    bundles = MuonBundles(kappa=20.0, turns=2)
    primaries, counts, muons = bundles.sample(300, seed=3)
    surprise = -bundles.log_density_of_azimuth(muons, per_muon(primaries, counts))
    error = surprise.std() / len(surprise) ** 0.5
    assert surprise.mean() == pytest.approx(bundles.entropy_of_azimuth, abs=4 * error)
    np.testing.assert_allclose(np.hypot(muons[:, 2], muons[:, 3]), muons[:, 1], rtol=1e-12)


def test_events_do_not_depend_on_the_range_they_are_asked_in():
    bundles = MuonBundles()
    whole, counts, muons = bundles.sample(5000, seed=2)
    part, some, others = bundles.sample(1500, seed=2, first=3300)
    np.testing.assert_array_equal(part.columns(), whole.columns()[3300:4800])
    np.testing.assert_array_equal(some, counts[3300:4800])
    start = counts[:3300].sum()
    np.testing.assert_array_equal(others, muons[start : start + some.sum()])
    assert not np.array_equal(bundles.sample(5, seed=3)[1], counts[:5])


def test_columns_of_files_and_back():
    primaries = MuonBundles().sample(50, seed=1)[0]
    again = Primaries.from_columns(primaries.columns())
    for name in primaries.__annotations__:
        np.testing.assert_allclose(getattr(again, name), getattr(primaries, name), rtol=1e-9)


@pytest.mark.parametrize("bad", [{"strength": -1.0}, {"kappa": -1.0}, {"turns": 0}])
def test_nonsense_is_refused(bad):
    with pytest.raises(ConfigError):
        MuonBundles(**bad)
    with pytest.raises(ConfigError, match="weighting"):
        MuonBundles().log_marginal(np.ones((1, 4)), "shower")
