"""Weights that flatten true values: the formula, its bound, and what training sees of it."""

import logging

import numpy as np
import pytest
from ml_collections import ConfigDict

from xec_jax.data.arrays import ArraySource
from xec_jax.data.open import open_sources
from xec_jax.data.reweight import Histogram, ReweightedSource, Weighting, bins_of
from xec_jax.data.root.writer import write_tree
from xec_jax.data.truth import energy_scale, read_truth
from xec_jax.defaults import calorimeter
from xec_jax.errors import ConfigError, DataError

RNG = np.random.default_rng(0)


def test_two_bins_count_alike():
    values = np.array([0.0] * 9 + [1.0])[:, None]
    weights = Histogram.of(values, (2,))(values)
    np.testing.assert_allclose(weights[:9], 10 / 2 / 9)
    np.testing.assert_allclose(weights[9], 10 / 2 / 1)
    assert weights.mean() == pytest.approx(1)


def test_empty_bins_do_not_share():
    values = np.array([0.0, 0.1, 10.0])[:, None]
    histogram = Histogram.of(values, (10,))
    np.testing.assert_allclose(histogram(values), [0.75, 0.75, 1.5])
    assert np.count_nonzero(histogram.weights) == 2
    assert histogram(np.array([[5.0]])) == 0, "nothing of the kind was there in training"
    np.testing.assert_allclose(histogram(np.array([[-7.0], [99.0]])), [0.75, 1.5])


def test_events_without_truth_neither_count_nor_change():
    values = np.array([0.0, 0.0, 1.0, np.nan, 1e10])[:, None]
    np.testing.assert_allclose(Histogram.of(values, (2,))(values), [0.75, 0.75, 1.5, 1, 1])


@pytest.mark.parametrize("largest", [1.5, 10.0, 1e9])
def test_product_is_bounded_and_keeps_the_mean(largest):
    truth = {"e": RNG.exponential(size=2000), "ang": RNG.normal(size=(2000, 2))}
    weighting = Weighting.of(truth, {"e": (30,), "ang": (20, 20)}, largest)
    weights = weighting(truth)
    assert weights.mean() == pytest.approx(1, abs=1e-6)
    assert weights.max() <= largest * (1 + 1e-9)
    a, b = (weighting.histograms[k](v.reshape(2000, -1)) for k, v in truth.items())
    np.testing.assert_allclose(weights, np.minimum(weighting.scale * a * b, largest))


def test_reweighting_flattens():
    truth = {"e": RNG.exponential(size=20000)}
    weights = Weighting.of(truth, {"e": (10,)}, 1e9)(truth)
    counts, _ = np.histogram(truth["e"], 10, weights=weights)
    np.testing.assert_allclose(counts, 2000, rtol=1e-5)


def test_training_batches_alone_are_weighted():
    truth = np.array([0.0] * 9 + [1.0], np.float32)
    plain = ArraySource({"x": np.arange(10.0), "e": truth})
    weighting = Weighting.of({"e": truth}, {"e": (2,)}, 10.0)
    source = ReweightedSource(plain, weighting, "2 bins")
    batch = source.batch(3, size=10, seed=1)
    np.testing.assert_allclose(batch["weight"], np.where(batch["e"] > 0, 5, 10 / 18), rtol=1e-6)
    assert batch["weight"].dtype == np.float32
    for name, values in source.batch(3, size=10, seed=1).items():
        np.testing.assert_array_equal(values, batch[name])
    valid = source.batch(0, size=16, train=False)
    np.testing.assert_array_equal(valid["weight"], [1] * 10 + [0] * 6)
    padded = ReweightedSource(ArraySource({"e": truth}), weighting).batch(0, size=12)
    np.testing.assert_array_equal(padded["weight"][10:], 0)
    assert len(source) == 10
    assert source.steps_per_epoch(size=5) == 2
    assert source.spec == plain.spec
    prints = {plain.fingerprint, source.fingerprint, ReweightedSource(plain, weighting).fingerprint}
    assert len(prints) == 3
    source.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two small files; energies crowd at the low end."""
    folder = tmp_path_factory.mktemp("reweight")
    for k, n in enumerate((30, 10)):
        chunk = {
            "npho": np.ones((n, 4760), np.float32),
            "relative_time": np.zeros((n, 4760), np.float32),
            "energyTruth": (0.02 + 0.03 * np.linspace(0, 1, n) ** 3).astype(np.float64),
            "n": (np.arange(n) % 5).astype(np.int32),
            "run": np.full(n, 2**24 + 1, np.int32),
            "uvwTruth": RNG.normal(size=(n, 3)).astype(np.float32),
        }
        write_tree(folder / f"part_{k}.root", [chunk])
    return folder


def data_config(files, **reweight):
    config = calorimeter().data
    config.train, config.valid = str(files), str(files)
    config.batch_size, config.extra_branches = 8, ()
    config.reweight = ConfigDict({"max_weight": 10.0, **reweight})
    return config


def use(branch, nbins):
    return {"enabled": True, "branch": branch, "nbins": nbins}


def test_truth_of_all_files_in_their_order(files):
    truth = read_truth(data_config(files), {"energyTruth": (), "uvwTruth": None})
    assert truth["energyTruth"].shape == (40,)
    assert truth["uvwTruth"].shape == (40, 3)
    assert truth["energyTruth"].dtype == np.float64
    assert truth["energyTruth"][29] == pytest.approx(0.05)
    assert truth["energyTruth"][30] == pytest.approx(0.02)
    with pytest.raises(DataError, match="energyTrut"):
        read_truth(data_config(files), {"energyTrut": ()})


def test_sources_opened_by_a_config(files, caplog):
    config = data_config(files, energy=use("energyTruth", 4), uvwFI=use("uvwTruth", (2, 3)))
    with caplog.at_level(logging.INFO, "xec_jax"):
        train, valid = open_sources(config)
    assert "reweighting by energyTruth, uvwTruth" in caplog.text
    weights = train.batch(0, size=40)["weight"]
    assert weights.mean() == pytest.approx(1, rel=1e-5)
    assert weights.std() > 0.3
    assert train._weighting.histograms["uvwTruth"].weights.shape == (2, 3, 2)
    assert "energyTruth" not in valid["valid"].spec
    for source in (train, valid["valid"]):
        source.close()


def test_whole_numbers_for_a_network_are_real_and_identifiers_are_not(files):
    config = data_config(files)
    config.extra_branches = ("run",)
    train, _ = open_sources(config, ("npho", "n"))
    batch = train.batch(0, size=4)
    assert (batch["n"].dtype, batch["run"].dtype) == (np.float32, np.int64)
    assert (batch["run"] == 2**24 + 1).all()
    train.close()


def test_nothing_asked_for_changes_nothing(files):
    config = data_config(files, energy={"enabled": False, "branch": "energyTruth", "nbins": 4})
    train, _ = open_sources(config)
    assert not isinstance(train, ReweightedSource)
    train.close()
    del config.reweight
    assert bins_of(config) == {}


@pytest.mark.parametrize(
    ("reweight", "message"),
    [
        ({"energy": use("energyTruth", 0)}, "positive whole"),
        ({"energy": use("energyTruth", (3, 3))}, "one for each of its 1"),
        ({"uvwFI": use("uvwTruth", 5)}, "one for each of its 3"),
        ({"energy": use("energyTruth", 4), "max_weight": 1.0}, "above 1"),
    ],
)
def test_numbers_that_make_no_histogram(files, reweight, message):
    with pytest.raises(ConfigError, match=message):
        open_sources(data_config(files, **reweight))


def test_times_are_taken_less_their_zero():
    rng = np.random.default_rng(0)
    zero = rng.uniform(-1e-8, 1e-8, 4000)
    since = rng.exponential(1.0, 4000)
    truth = {"t": 1e9 * zero + since, "zero": zero}
    truth["zero"][0] = 1e10
    relative = Weighting.of(truth, {"t": (10,)}, 10.0, {"t": "zero"})
    known = np.where(np.arange(4000) > 0, since, np.nan)
    direct = Weighting.of({"t": known}, {"t": (10,)}, 10.0)
    np.testing.assert_allclose(relative(truth), direct({"t": known}), rtol=1e-3)


def test_the_unit_of_all_energies(files):
    config = data_config(files)
    config.energy_unit = "MeV"
    names = ("energyTruth", "energyReco", "energyGen", "uvwTruth")
    assert energy_scale(config, names) == dict.fromkeys(names[:3], 1e-3)
    config.energy_unit = "keV"
    with pytest.raises(ConfigError, match="GeV or MeV"):
        energy_scale(config, ())
