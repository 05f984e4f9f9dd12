"""F8: bad files among good ones are named, and never change what the good ones give."""

import numpy as np
import pytest
import uproot
from test_data_manifest import damage, damaged
from test_data_root import COMPRESSIONS, SENSORS, assert_same, make, write_five
from test_data_root import write as write_small

from xec_jax.data.open import open_source, open_sources
from xec_jax.data.places import place_of
from xec_jax.data.root.file import RootFile
from xec_jax.data.root.source import RootSource
from xec_jax.data.truth import read_truth
from xec_jax.defaults import calorimeter
from xec_jax.errors import ConfigError, DataError, XecError


def write(path, seed, tree="tree", branches=("npho", "relative_time")):
    rng = np.random.default_rng(seed)
    light = rng.uniform(1, 1000, (6, 4760)).astype(np.float32)
    with uproot.recreate(path) as file:
        file.mktree(tree, {name: ("f4", (4760,)) for name in branches})
        file[tree].extend(dict.fromkeys(branches, light))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for number in range(4):
        write(folder / f"good{number}.root", number)
    return folder


def corrupt(path):
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(2000)
    path.write_bytes(data)


BAD = {
    "corrupt": lambda path: (write(path, 9), corrupt(path)),
    "empty": lambda path: path.touch(),
    "no ROOT file": lambda path: path.write_text("photons"),
    "cut off": lambda path: (write(path, 9), path.write_bytes(path.read_bytes()[:5000])),
    "another tree": lambda path: write(path, 9, tree="events"),
    "another branch": lambda path: write(path, 9, branches=("npho", "t")),
}


def events(source):
    with source:
        n = -(-len(source) // 8)
        return [source.batch(step, size=8, train=False) for step in range(n)]


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_named(good, tmp_path, kind):
    bad = tmp_path / "bad.root"
    BAD[kind](bad)
    files = [*sorted(good.glob("*.root")), bad]
    with pytest.raises(DataError) as error:
        events(RootSource([str(path) for path in files], tree="tree"))
    assert "bad.root" in str(error.value)
    assert "good" not in str(error.value)


def test_without_the_bad_ones_nothing_has_changed(good):
    before = events(RootSource(str(good), tree="tree"))
    after = events(RootSource([str(p) for p in sorted(good.glob("*.root"))], tree="tree"))
    for a, b in zip(before, after, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


# Skipping: what is left out is named and counted, everything else is as it would be


@pytest.mark.parametrize("kind", [kind for kind in BAD if kind != "corrupt"])
def test_a_bad_file_is_left_out_if_asked(good, tmp_path, kind, caplog):
    bad = tmp_path / "abad.root"
    BAD[kind](bad)
    files = [bad, *sorted(good.glob("*.root"))]
    source = RootSource(files, on_bad_file="skip")
    assert_batches(events(source), events(RootSource(good)))
    report = source.report()
    assert list(report["bad_files"]) == [str(bad)]
    assert "bad.root" in report["bad_files"][str(bad)]
    assert (report["entries"], report["seen"], report["skipped"]) == (24, 24, 0)
    assert source.fingerprint == RootSource(good).fingerprint
    text = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert any("left out" in line and "bad.root" in line for line in text)
    assert any("1 bad files left out" in line for line in text)


def assert_batches(some, others):
    for a, b in zip(some, others, strict=True):
        assert_same(a, b)


def test_all_files_bad_is_an_error(tmp_path):
    for number, kind in enumerate(BAD):
        if kind != "corrupt":
            BAD[kind](tmp_path / f"{number}.root")
    with pytest.raises(DataError, match=r"1\.root is empty"):
        RootSource(tmp_path, on_bad_file="skip")


@pytest.fixture(params=["tree", "ntuple"])
def twins(tmp_path, request):
    """Two folders with 40 events each, entries 20 to 30 cannot be read in the second one."""
    write_small(tmp_path / "good/a.root", [10] * 4, sensors=200, kind=request.param)
    damaged(tmp_path / "bad/a.root", request.param)
    return tmp_path / "good", tmp_path / "bad"


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("buffer", [10, 1000])
def test_what_cannot_be_read_counts_nothing_and_changes_nothing(twins, train, buffer, caplog):
    options = {"n_sensors": 200, "shuffle_buffer": buffer}
    steps = {"size": 4, "seed": 3, "train": train}
    with make(twins[0], **options) as good, make(twins[1], on_bad_file="skip", **options) as bad:
        first = good.batch(0, size=1, train=False)
        for step in range(25):  # two and a half epochs
            expected, found = good.batch(step, **steps), bad.batch(step, **steps)
            lost = (expected["event"] >= 20) & (expected["event"] < 30)
            np.testing.assert_array_equal(found["weight"], ~lost)
            for key in ("npho", "time", "event"):
                np.testing.assert_array_equal(found[key][~lost], expected[key][~lost])
                assert (found[key][lost] == first[key]).all(), "copies of the first good event"
        report = bad.report()
    assert (report["entries"], report["seen"], report["skipped"]) == (40, 30, 10)
    assert list(report["quarantine"]) == [f"{twins[1]}/a.root: entries 20 to 29"]
    assert "branch 'npho'" in next(iter(report["quarantine"].values()))
    (line,) = [one for one in caplog.messages if "are in quarantine" in one]
    assert line.count("a.root") == line.count("entries") == 1, "the place is said once"
    assert "40 entries: 30 seen, 10 skipped in 1 ranges" in caplog.text


def test_quarantine_is_pure_in_the_step(twins):
    options = {"n_sensors": 200, "shuffle_buffer": 20, "on_bad_file": "skip"}
    with make(twins[1], **options) as source:
        sequence = [source.batch(k, size=7, shard=(1, 2)) for k in range(9)]
    for k in np.random.default_rng(1).permutation(9):
        with make(twins[1], **options) as source:
            assert_same(source.batch(int(k), size=7, shard=(1, 2)), sequence[k])


def test_a_small_branch_that_cannot_be_read(tmp_path):
    """Its basket spans several of the others: the events of all of them are lost."""
    path = write_small(tmp_path / "a.root", [10] * 4, codec=uproot.LZ4(1))
    with uproot.open({str(path): None}) as file:
        baskets = file["tree"]["run"].member("fBasketSeek")
    for number in (0, 1):
        damage(path, int(baskets[number]), b"\xff" * 8)
    with make(path, extra=["run", "event"], on_bad_file="skip") as source:
        batch = source.batch(0, size=40, train=False)
        assert batch["weight"].tolist() == [0] * 20 + [1] * 20
        assert set(batch["event"][:20]) == {20}, "the first event that can be read"
        assert list(source.report()["quarantine"]) == [
            f"{path}: entries 0 to 9", f"{path}: entries 10 to 19"
        ]  # fmt: skip


def test_a_file_that_vanishes_is_put_into_quarantine(tmp_path):
    write_five(tmp_path)
    with make(tmp_path, on_bad_file="skip") as source:
        (tmp_path / "run_10.root").unlink()
        batch = source.batch(0, size=60, train=False)
        assert np.flatnonzero(batch["weight"] == 0).tolist() == list(range(13, 33))
        assert source.report()["skipped"] == 20


def test_no_event_that_can_be_read(tmp_path):
    path = write_small(tmp_path / "a.root", [10] * 2, sensors=200, codec=uproot.ZLIB(1))
    with uproot.open({str(path): None}) as file:
        for seek in file["tree"]["npho"].member("fBasketSeek")[:2]:
            damage(path, int(seek) + 100)
    with (
        make(path, n_sensors=200, on_bad_file="skip") as source,
        pytest.raises(DataError, match=r"no event can be read(.|\n)*entries 0 to 9"),
    ):
        source.batch(0, size=4)


def test_files_of_all_kinds_together(tmp_path):
    """Every codec, trees and ntuples, other baskets and empty files: one data set."""
    first = 0
    for number, (name, codec) in enumerate(COMPRESSIONS.items()):
        for kind, baskets in (("tree", [number + 1, 3]), ("ntuple", [2, number + 2])):
            write_small(tmp_path / f"{first:02}{name}.root", baskets, first=first, kind=kind,
                        codec=codec)  # fmt: skip
            first += sum(baskets)
        write_small(tmp_path / f"{first:02}{name}0.root", [0])
    with make(tmp_path, shuffle_buffer=13) as source:
        assert len(source) == first
        batch = source.batch(0, size=first, train=False)
        np.testing.assert_array_equal(batch["event"], np.arange(first))
        assert batch["npho"].shape == (first, SENSORS)
        np.testing.assert_array_equal(batch["npho"][:, 0], np.arange(first) + 1)
        assert sorted(source.batch(0, size=first)["event"]) == list(range(first))


def test_an_unknown_policy():
    with pytest.raises(ConfigError, match="ignore"):
        RootSource("x.root", on_bad_file="ignore")


@pytest.mark.parametrize("buffer", [7, 16, 1000])
def test_what_is_lost_does_not_depend_on_the_windows(tmp_path, monkeypatch, buffer):
    """As if another branch had one basket for the whole file."""
    path = damaged(tmp_path / "a.root", "tree")
    monkeypatch.setattr("xec_jax.data.root.manifest._clusters", lambda columns, entries: (0, 40))
    with make(path, n_sensors=200, shuffle_buffer=buffer, on_bad_file="skip") as source:
        weight = source.batch(0, size=40, train=False)["weight"]
    assert weight.tolist() == [1] * 20 + [0] * 10 + [1] * 10


def test_a_branch_that_can_no_longer_be_opened(tmp_path, monkeypatch):
    path = write_small(tmp_path / "a.root", [10])
    write_small(tmp_path / "b.root", [10], first=10)
    with make(tmp_path, on_bad_file="skip") as source:
        original = RootFile._open_column

        def refuse(self, name, shape):
            if (self.path, name) == (path, "event"):
                raise DataError("no more")
            return original(self, name, shape)

        monkeypatch.setattr(RootFile, "_open_column", refuse)
        weight = source.batch(0, size=20, train=False)["weight"]
    assert weight.tolist() == [0] * 10 + [1] * 10


def break_basket(path, branch, number):
    """Makes one basket unreadable."""
    with uproot.open({str(path): None}) as file:
        damage(path, int(file["tree"][branch].member("fBasketSeek")[number]), b"\xff" * 8)


def test_places_that_cannot_be_read_are_not_cut_away(tmp_path):
    """The cut has nothing to go by: these events count as lost, not as outside."""
    path = write_small(tmp_path / "a.root", [10] * 4)
    options = {"fiducial": {"u": 35.5}, "on_bad_file": "skip"}
    with make(path, **options) as source:
        assert len(source) == 36
        whole = source.fingerprint
    break_basket(path, "uvwTruth", 3)
    with make(path, **options) as source:
        assert len(source) == 40
        assert source.fingerprint != whole
        batch = source.batch(0, size=40, train=False)
        assert batch["weight"].tolist() == [1] * 30 + [0] * 10
        report = source.report()
    assert (report["seen"], report["skipped"], report["cut"]) == (30, 10, 0)
    assert list(report["quarantine"]) == [f"{path}: entries 30 to 39"]
    with pytest.raises(DataError, match="cannot be read"):
        make(path, fiducial={"u": 35.5})


def test_the_first_good_events_are_judged(tmp_path):
    """Also where the first range of all cannot be read."""
    path = write_small(tmp_path / "a.root", [10] * 2, first=5000)
    break_basket(path, "npho", 0)
    legacy = {"npho_scheme": "log1p", "npho_scale": 0.58, "npho_scale2": 1.0}
    options = {"on_bad_file": "skip", "normalization": legacy, "strict_scheme": True}
    for buffer in (10, 1000):
        with (
            make(path, shuffle_buffer=buffer, **options) as source,
            pytest.raises(DataError, match="npho_scale"),
        ):
            source.batch(0, size=20, train=False)


def truth_config(path):
    config = calorimeter().data
    config.update({"train": str(path), "on_bad_file": "skip", "extra_branches": ()})
    return config


def test_truth_that_cannot_be_read_is_skipped(tmp_path, caplog):
    path = write_small(tmp_path / "a.root", [10] * 4, sensors=4760)
    break_basket(path, "energyTruth", 1)
    config = truth_config(path)
    energy = read_truth(config, {"energyTruth": ()})["energyTruth"]
    np.testing.assert_allclose(1000 * energy, [*range(10), *range(20, 40)], rtol=1e-6)
    assert "10 of 40 events have no readable energyTruth" in caplog.text
    assert place_of(config, {"energyTruth": ()}, path, 10) == f"entry 20 of {path}"
    config.fiducial.u = 25.1
    energy = read_truth(config, {"energyTruth": ()})["energyTruth"]
    np.testing.assert_allclose(1000 * energy, [*range(10), *range(20, 26)], rtol=1e-6)
    for number in (0, 2, 3):
        break_basket(path, "energyTruth", number)
    with pytest.raises(DataError, match="40 of 40 events have no readable"):
        read_truth(config, {"energyTruth": ()})


def test_truth_is_from_the_files_that_are_read(tmp_path):
    write_small(tmp_path / "a.root", [4], sensors=4760)
    write_small(tmp_path / "b.root", [4], sensors=40)
    config = truth_config(tmp_path)
    with open_source(config, tmp_path, wanted=("npho", "time", "energyTruth")) as source:
        assert len(source) == 4
        manifest = source.manifest
    for options in ({}, {"manifest": manifest}):
        assert len(read_truth(config, {"energyTruth": ()}, **options)["energyTruth"]) == 4


def test_a_source_that_is_refused_is_closed(tmp_path, monkeypatch):
    write_small(tmp_path / "a.root", [4], sensors=4760)
    closed = []
    monkeypatch.setattr(RootSource, "close", lambda self: closed.append(1))
    config = truth_config(tmp_path)
    config.valid = str(tmp_path / "gone")
    with pytest.raises(DataError, match="nothing matches"):
        open_sources(config)
    assert closed == [1]
    config.dead_channels = str(tmp_path / "gone")
    with pytest.raises(XecError):
        open_sources(config)
    assert closed == [1, 1]
