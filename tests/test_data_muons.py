"""Muon bundles from parquet: every muon keeps its own primary, whatever is done with them."""

import numpy as np
import pytest

from xec_jax.data.muons import Bundles, muon_source, read_bundles, split_showers
from xec_jax.errors import DataError
from xec_jax.sim.muon import MuonBundles

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def nested(values, counts):
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, values)


def write(path, primaries, counts, muons, **columns):
    """Writes a file in the layout of the newer files."""
    flat = pa.array(np.asarray(muons, np.float32).ravel())
    inner = nested(flat, [np.shape(muons)[1]] * len(muons))
    primary = nested(
        pa.array(np.asarray(primaries, np.float32).ravel()),
        [np.shape(primaries)[1]] * len(primaries),
    )
    table = {"primary": primary, "muons": nested(inner, counts), **columns}
    parquet.write_table(pa.table(table), path)
    return path


def events(n=300, seed=0, strength=1.0):
    """Events with unequal counts, 0 and 1 among them; x holds the hidden number of the parent."""
    primaries, counts, muons = MuonBundles(strength).sample(n, seed)
    counts = counts.copy()
    kept = np.ones(len(muons), bool)
    starts = np.cumsum(counts) - counts
    for event in range(0, n, 7):  # some without muons
        kept[starts[event] : starts[event] + counts[event]] = False
        counts[event] = 0
    muons = muons[kept]
    muons[:, 2] = np.repeat(np.arange(n), counts)
    return primaries.columns(), counts, muons


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "a.parquet", *events())


def joined(bundles):
    """Goes through the source batch by batch; returns all rows that hold muons."""
    source = muon_source(bundles)
    steps = range(source.steps_per_epoch(size=64, train=False))
    batches = [source.batch(step, size=64, train=False) for step in steps]
    rows = {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}
    return rows, (rows["weight"] * rows["is_muon"]) > 0


def scrambled(bundles, seed=0):
    """The defect of the predecessor's reader: counts are permuted before the muons are cut."""
    order = np.random.default_rng(seed).permutation(len(bundles.counts))
    return Bundles(
        bundles.primaries[order], bundles.counts[order], bundles.muons, bundles.shower[order]
    )


def explained(muons, primaries):
    """R^2 of ln r as a quadratic of the conditions."""
    log_e, zenith, mass, depth = primaries.astype(np.float64).T
    c = np.stack([np.log10(log_e), np.cos(zenith), np.log(mass), depth / 1e3], 1)
    c = (c - c.mean(0)) / c.std(0)
    terms = [np.ones(len(c)), *c.T, *(c[:, i] * c[:, j] for i in range(4) for j in range(i, 4))]
    design, target = np.stack(terms, 1), np.log(muons[:, 1])
    rest = target - design @ np.linalg.lstsq(design, target, rcond=None)[0]
    return 1 - rest.var() / target.var()


def test_files_come_back_as_they_were_written(file):
    primaries, counts, muons = events()
    bundles = read_bundles([file])
    np.testing.assert_array_equal(bundles.primaries, primaries.astype(np.float32))
    np.testing.assert_array_equal(bundles.counts, counts)
    np.testing.assert_array_equal(bundles.muons, muons.astype(np.float32))
    assert {0, 1} <= set(counts.tolist())


def test_every_muon_keeps_its_parent(file, tmp_path):
    """T1: through reading, splitting, joining, shuffling and padding."""
    other = write(tmp_path / "b.parquet", *events(50, seed=9))
    both = read_bundles([file, other])
    for bundles in (both, *split_showers(both, 0.3, seed=4)):
        rows, is_muon = joined(bundles)
        parent = bundles.primaries[rows["event"]]
        np.testing.assert_array_equal(rows["primary"], parent)
        hidden = rows["muon"][is_muon, 2]
        owner = {e: set(hidden[rows["event"][is_muon] == e].tolist()) for e in rows["event"]}
        assert all(len(found) <= 1 for found in owner.values())
        assert is_muon.sum() == bundles.counts.sum()
        assert (rows["weight"] * rows["is_first"]).sum() == len(bundles.counts)
    shuffled = muon_source(both)
    batch = shuffled.batch(3, size=128, seed=1)
    np.testing.assert_array_equal(batch["primary"], both.primaries[batch["event"]])


def test_the_defect_would_be_seen(file):
    """T1 on the injected defect."""
    rows, is_muon = joined(scrambled(read_bundles([file])))
    hidden, event = rows["muon"][is_muon, 2], rows["event"][is_muon]
    mixed = [e for e in np.unique(event) if len(np.unique(hidden[event == e])) > 1]
    assert len(mixed) > 50


def test_what_the_primary_explains_survives_the_reader(tmp_path):
    """T2: R^2 of ln r before and after, and gone with the injected defect."""
    primaries, counts, muons = MuonBundles(3.0).sample(1500, seed=2)
    before = explained(muons, np.repeat(primaries.columns(), counts, axis=0))
    bundles = read_bundles([write(tmp_path / "c.parquet", primaries.columns(), counts, muons)])
    rows, is_muon = joined(bundles)
    assert explained(rows["muon"][is_muon], rows["primary"][is_muon]) == pytest.approx(
        before, abs=1e-4
    )
    rows, is_muon = joined(scrambled(bundles))
    assert explained(rows["muon"][is_muon], rows["primary"][is_muon]) < 0.05 * before


def test_showers_are_never_split(tmp_path):
    primaries, counts, muons = events(200)
    major = np.arange(200) // 5
    ids = {"primary_major_id": pa.array(major), "primary_minor_id": pa.array(np.zeros(200, int))}
    bundles = read_bundles([write(tmp_path / "d.parquet", primaries, counts, muons, **ids)])
    assert len(np.unique(bundles.shower)) == 40
    train, valid = split_showers(bundles, 0.25)
    assert not set(train.shower) & set(valid.shower)
    assert len(train.counts) + len(valid.counts) == 200
    assert len(np.unique(valid.shower)) == 10
    same = read_bundles([write(tmp_path / "e.parquet", primaries[major * 5], counts, muons)])
    assert len(np.unique(same.shower)) == 40, "without ids: equal energy, zenith and mass"


def test_older_layouts(tmp_path):
    primaries, counts, muons = events(40)
    long = np.insert(primaries, 3, -1.0, axis=1)
    old = read_bundles([write(tmp_path / "f.parquet", long, counts, muons[:, [0, 2, 3]])])
    np.testing.assert_array_equal(old.primaries, primaries.astype(np.float32))
    expected = np.hypot(muons[:, 2], muons[:, 3])
    np.testing.assert_allclose(old.muons[:, 1], expected, rtol=1e-6)


def test_files_without_muons(tmp_path):
    bundles = read_bundles(
        [write(tmp_path / "g.parquet", events(3)[0], [0, 0, 0], np.empty((0, 4)))]
    )
    rows, is_muon = joined(bundles)
    assert not is_muon.any()
    assert np.isfinite(rows["muon"]).all()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda p, c, m: (p[:, :3], c, m), "column 'primary' has 3 numbers in row 0"),
        (lambda p, c, m: (p, c, m[:, :2]), "column 'muons' has 2 numbers for muon 0"),
        (lambda p, c, m: (np.where(p == p[2, 0], np.nan, p), c, m), "the first is number 2"),
        (lambda p, c, m: (p, c, np.where(m == m[5, 0], np.inf, m)), "the first is number 5"),
        (lambda p, c, m: (p[:0], c[:0], m[:0]), "no events in"),
    ],
)
def test_bad_files_are_named(tmp_path, spoil, words):
    path = write(tmp_path / "bad.parquet", *spoil(*events(20)))
    with pytest.raises(DataError) as error:
        read_bundles([path])
    assert words in str(error.value)
    assert "bad.parquet" in str(error.value)


def test_other_files_are_named(tmp_path):
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"x\.parquet cannot be read"):
        read_bundles([path])
    with pytest.raises(DataError, match=r"y\.parquet cannot be read"):
        read_bundles([tmp_path / "y.parquet"])
    parquet.write_table(pa.table({"primary": [[1.0]], "n": [1]}), path)
    with pytest.raises(DataError, match=r"no column 'muons' \(it has: primary, n\)"):
        read_bundles([path])
    parquet.write_table(pa.table({"primary": [1.0], "muons": [1]}), path)
    with pytest.raises(DataError, match="column 'primary' has the type double"):
        read_bundles([path])
    with pytest.raises(DataError, match="1 shower"):
        split_showers(Bundles(np.ones((1, 4)), np.ones(1, int), np.ones((1, 4)), np.ones(1)), 0.5)
