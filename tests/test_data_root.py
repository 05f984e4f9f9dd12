"""The ROOT source: every event once, in an order that depends on (seed, epoch) alone."""

import logging
import threading
import time
import tracemalloc

import numpy as np
import pytest
import uproot

from xec_jax.data.root import file, manifest
from xec_jax.data.root.source import RootSource
from xec_jax.errors import ConfigError, DataError

SENSORS = 5
COMPRESSIONS = {
    "none": None,
    "zlib": uproot.ZLIB(1),
    "lz4": uproot.LZ4(1),
    "zstd": uproot.ZSTD(1),
    "lzma": uproot.LZMA(1),
}


def events(first, count, sensors=SENSORS):
    """Events whose numbers tell which they are."""
    event = np.arange(first, first + count)
    npho = event[:, None] + 1 + np.arange(sensors) / 8
    return {
        "npho": npho.astype(np.float32),
        "relative_time": (-1e-9 * npho).astype(np.float32),
        "run": np.full(count, 7, np.int32),
        "event": event.astype(np.int32),
        "energyTruth": (event[:, None] / 1000).astype(np.float32),
        "uvwTruth": (event[:, None] + np.arange(3) / 4).astype(np.float32),
    }


def write(path, baskets, *, first=0, sensors=SENSORS, kind="tree", tree="tree", codec=None):
    """Writes a file with `baskets` events in each basket (TTree) or cluster (RNTuple)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # An open file, since uproot takes a colon in a path for the name of a tree.
    with path.open("w+b") as stream, uproot.recreate(stream, compression=codec) as file:
        for count in baskets:
            chunk = events(first, count, sensors)
            if tree not in file:
                layout = {k: np.dtype((v.dtype, v.shape[1:])) for k, v in chunk.items()}
                if kind == "tree":
                    writer = file.mktree(tree, layout)
                    writer.extend(chunk)
                else:
                    file[tree] = chunk
                    writer = file[tree]
            else:
                writer.extend(chunk)
            first += count
    return path


def write_five(folder, kind="tree"):
    """Writes 60 events in five files of unequal baskets; returns the folder."""
    cuts = [[5, 3, 4], [1], [10, 10], [2, 2, 2, 2, 2], [9, 8]]
    first = 0
    for index, baskets in enumerate(cuts):
        write(folder / f"run_{index + 8}.root", baskets, first=first, kind=kind)
        first += sum(baskets)
    return folder


def make(path, **options):
    options = {"n_sensors": SENSORS, "extra": ("event",), "smallest_read": 1} | options
    return RootSource(path, **options)


def real(batch):
    return batch["event"][batch["weight"] > 0].tolist()


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    return write_five(tmp_path_factory.mktemp("five"))


# What a batch holds


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("kind", ["tree", "ntuple"])
def test_values_come_out_as_they_were_written(tmp_path, kind, compression):
    write(tmp_path / "a.root", [4, 7, 1], kind=kind, codec=COMPRESSIONS[compression])
    extra = {"run": (), "event": None, "energyTruth": (), "uvwTruth": (3,), "absent": ()}
    with make(tmp_path / "a.root", extra=extra) as source:
        batch = source.batch(0, size=12, train=False)
        truth = events(0, 12)
        assert len(source) == 12
        assert set(batch) == set(source.spec)
        assert set(batch) == {"npho", "time", "weight", *extra} - {"absent"}
        for name, (shape, dtype) in source.spec.items():
            assert batch[name].shape == (12, *shape)
            assert batch[name].dtype == dtype
        assert batch["run"].dtype == batch["event"].dtype == np.int64
        np.testing.assert_array_equal(batch["npho"], truth["npho"])
        np.testing.assert_array_equal(batch["time"], truth["relative_time"])
        np.testing.assert_array_equal(batch["uvwTruth"], truth["uvwTruth"])
        np.testing.assert_array_equal(batch["energyTruth"], truth["energyTruth"][:, 0])
        np.testing.assert_array_equal(batch["event"], truth["event"])


@pytest.mark.parametrize("kind", ["tree", "ntuple"])
def test_a_real_detector_in_other_number_types(tmp_path, kind):
    chunk = events(0, 6, 4760)
    chunk["npho"] = np.round(chunk["npho"]).astype(np.int32)
    chunk["relative_time"] = chunk["relative_time"].astype(np.float64)
    with uproot.recreate(tmp_path / "a.root") as file:
        if kind == "tree":
            file.mktree("tree", {k: np.dtype((v.dtype, v.shape[1:])) for k, v in chunk.items()})
            file["tree"].extend(chunk)
        else:
            file["tree"] = chunk
    with RootSource(tmp_path / "a.root") as source:
        batch = source.batch(0, size=6, train=False)
    assert batch["npho"].shape == (6, 4760)
    assert batch["npho"].dtype == batch["time"].dtype == np.float32
    np.testing.assert_array_equal(batch["npho"], chunk["npho"])
    np.testing.assert_array_equal(batch["time"], chunk["relative_time"].astype(np.float32))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nothing_but_finite_numbers_leaves(tmp_path, caplog, dtype):
    chunk = events(0, 8) | {"energyTruth": np.array([np.nan, 1, 2, 3, 4, 5, 6, 7])}
    npho, time = chunk["npho"].astype(dtype), chunk["relative_time"].astype(dtype)
    npho[0, 0], npho[1, :] = 1e10, -np.inf
    npho[2, 1] = np.finfo(dtype).max  # more than float32 holds, if it is a double
    time[3, 2:5] = np.nan, np.inf, -np.inf
    with uproot.recreate(tmp_path / "a.root") as file:
        chunk |= {"npho": npho, "relative_time": time}
        file.mktree("tree", {k: np.dtype((v.dtype, v.shape[1:])) for k, v in chunk.items()})
        file["tree"].extend(chunk)
    with make(tmp_path / "a.root", extra=["energyTruth"]) as source:
        batch = source.batch(0, size=8, train=False)
        assert all(np.isfinite(values).all() for values in batch.values())
        assert batch["npho"][0, 0] == np.float32(1e10)
        assert (batch["npho"][1] == np.float32(1e10)).all()
        assert batch["weight"][1] == 1, "a dead event still counts"
        assert (batch["time"][3, 2:5] == np.float32(1e10)).all()
        assert batch["energyTruth"][0] == np.float32(1e10)
        too_large = int(dtype is np.float64)
        assert dict(source.stats.replaced) == {
            "npho": SENSORS + too_large, "time": 3, "energyTruth": 1
        }  # fmt: skip
        assert source.stats.dead_events == 1
    assert "entries 0 to 7" in caplog.text
    assert "'npho'" in caplog.text


# Which events, in which order


@pytest.mark.parametrize("kind", ["tree", "ntuple"])
@pytest.mark.parametrize("train", [True, False])
def test_batches_depend_on_the_step_alone(tmp_path, kind, train):
    write_five(tmp_path, kind)
    options = {"size": 7, "seed": 5, "shard": (1, 2), "train": train}
    with make(tmp_path, shuffle_buffer=9) as source:
        sequence = [source.batch(k, **options) for k in range(14)]
    with make(tmp_path, shuffle_buffer=9) as source:
        for k in np.random.default_rng(0).permutation(14):
            assert_same(source.batch(int(k), **options), sequence[k])


def test_a_resumed_run_continues_at_every_position(five):
    with make(five, shuffle_buffer=16) as source:
        sequence = [source.batch(k, size=11, seed=2) for k in range(11)]
    for start in range(11):
        with make(five, shuffle_buffer=16) as source:
            for k in range(start, min(start + 3, 11)):
                assert_same(source.batch(k, size=11, seed=2), sequence[k])


@pytest.mark.parametrize(("count", "size"), [(2, 7), (4, 1), (3, 40)])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("buffer", [8, 1000])
def test_shards_together_are_the_whole_batch(five, count, size, train, buffer):
    """Each shard reads from a source of its own, as processes do."""
    with make(five, shuffle_buffer=buffer) as source:
        steps = source.steps_per_epoch(size=count * size, train=train)
        options = {"seed": 4, "train": train}
        wholes = [source.batch(k, size=count * size, **options) for k in range(2 * steps)]
    parts = []
    for index in range(count):
        with make(five, shuffle_buffer=buffer) as source:
            assert steps == source.steps_per_epoch(size=size, shards=count, train=train)
            options["shard"] = (index, count)
            parts.append([source.batch(k, size=size, **options) for k in range(2 * steps)])
    for whole, *cut in zip(wholes, *parts, strict=True):
        assert_same(whole, {name: np.concatenate([part[name] for part in cut]) for name in whole})


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("files", [1, 5])
def test_validation_has_every_event_once_in_order(five, tmp_path, size, files):
    path = five if files == 5 else write(tmp_path / "one.root", [13, 40, 7])
    seen = []
    with make(path) as source:
        for k in range(source.steps_per_epoch(size=size, train=False)):
            batch = source.batch(k, size=size, train=False)
            assert batch["npho"].shape == (size, SENSORS)
            assert (batch["npho"] > 0).all(), "padding looks like an event"
            seen += real(batch)
    assert seen == list(range(60))


@pytest.mark.parametrize("buffer", [8, 1000])
def test_training_epochs_draw_without_replacement(five, buffer):
    orders = {}
    for seed in (0, 1):
        with make(five, shuffle_buffer=buffer) as source:
            steps = source.steps_per_epoch(size=6)
            assert steps == 10
            for epoch in range(3):
                seen = []
                for k in range(steps):
                    batch = source.batch(epoch * steps + k, size=6, seed=seed)
                    assert (batch["weight"] == 1).all()
                    np.testing.assert_array_equal(batch["npho"][:, 0], batch["event"] + 1)
                    seen += real(batch)
                assert sorted(seen) == list(range(60))
                orders[seed, epoch] = tuple(seen)
    assert len(set(orders.values())) == 6, "another order for each seed and epoch"


def test_events_of_distant_files_meet_in_one_batch(five):
    with make(five, shuffle_buffer=30) as source:
        spread = [np.ptp(source.batch(k, size=6)["event"]) for k in range(10)]
    assert np.mean(spread) > 20, "file order would give 5"


def test_validation_starts_again_after_the_last_event(five):
    with make(five) as source:
        again = source.batch(9 + 2, size=7, train=False)
        assert_same(again, source.batch(2, size=7, train=False))


def test_fewer_events_than_the_batch(tmp_path):
    write(tmp_path / "a.root", [3])
    with make(tmp_path / "a.root") as source:
        assert source.steps_per_epoch(size=8) == 1
        for step in range(3):
            batch = source.batch(step, size=8)
            assert batch["weight"].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
            assert sorted(batch["event"][:3]) == [0, 1, 2]
            assert set(batch["event"][3:]) <= {0, 1, 2}


def test_without_shuffle_training_follows_the_files(five):
    with make(five, shuffle=False) as source:
        seen = [event for k in range(9) for event in real(source.batch(k, size=7))]
    assert seen == [*range(56), *range(7)]


# How it reads


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("kind", ["tree", "ntuple"])
def test_an_epoch_in_sequence_reads_each_cluster_once(tmp_path, monkeypatch, train, kind):
    write_five(tmp_path, kind)
    reads = []
    original = file.RootFile.read_into

    def record(self, name, out, start, stop):
        if name == "npho":
            reads.append((self.path.name, start, stop))
        original(self, name, out, start, stop)

    monkeypatch.setattr(file.RootFile, "read_into", record)
    with make(tmp_path, shuffle_buffer=12, threads=1) as source:
        for k in range(10):
            source.batch(k, size=6, train=train)
        chunks = source.manifest.chunks(smallest=1, largest=12)
    assert len(chunks) == 13
    first_pass = reads[: len(chunks)]
    assert len(set(first_pass)) == len(chunks)
    assert sum(stop - start for _, start, stop in first_pass) == 60
    if not train:
        assert len(reads) == len(chunks)


def test_a_small_data_set_is_read_once_for_all_epochs(five):
    with make(five, shuffle_buffer=60) as source:
        for k in range(40):
            source.batch(k, size=6)
        assert source.stats.events == 60
        assert source.stats.wait_s > 0


def test_tiny_clusters_are_merged_and_huge_ones_cut(tmp_path, caplog):
    write(tmp_path / "a.root", [1] * 10 + [50])
    with make(tmp_path / "a.root", shuffle_buffer=20, smallest_read=4) as source:
        chunks = source.manifest.chunks(smallest=4, largest=20)
        assert source.batch(0, size=60, train=False)["event"].tolist() == list(range(60))
    assert chunks == [(0, 4), (4, 8), (8, 10), (10, 26), (26, 43), (43, 60)]
    assert "clusters of 50 events" in caplog.text


def test_small_branches_do_not_tie_clusters_together():
    """ROOT gives a branch of one number baskets of thousands of events."""
    baskets = {"npho": [0, 4, 8, 12], "time": [0, 4, 8, 12], "run": [0, 12]}
    columns = []
    for name, offsets in baskets.items():
        column = file.Column()
        column.shape = (4760,) if name != "run" else ()
        column.dtype, column.offsets = np.dtype("f4"), np.array(offsets)
        columns.append(column)
    assert manifest._clusters(columns, 12) == (0, 4, 8, 12)


def test_memory_stays_below_the_cap(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write(tmp_path / "a.root", [50] * 40, sensors=500)
    with make(tmp_path / "a.root", n_sensors=500, max_ram_gb=0.003, smallest_read=50) as source:
        event = 2 * 500 * 4 + 8 + 4
        assert source.window == int(0.003e9 / 2.5 / event)
        assert f"{source.window} events instead of 16384" in caplog.text
        tracemalloc.start()
        for k in range(source.steps_per_epoch(size=10)):
            source.batch(k, size=10)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 0.003e9
    assert caplog.text.count("instead of") == 1


def test_batches_larger_than_the_window_are_complete(five):
    with make(five, shuffle_buffer=10) as source:
        assert sorted(source.batch(0, size=60)["event"]) == list(range(60))


def test_more_files_than_may_be_open(five, monkeypatch):
    monkeypatch.setattr("xec_jax.data.root.reader.OPEN_FILES", 2)
    with make(five, shuffle_buffer=25) as source:
        seen = [event for k in range(10) for event in real(source.batch(k, size=6))]
    assert sorted(seen) == list(range(60))


def test_closing_ends_all_threads(five):
    before = set(threading.enumerate())
    source = make(five, shuffle_buffer=8)
    source.batch(0, size=6)
    source.batch(1, size=6)  # now the next window is being read ahead
    source.close()
    source.close()
    assert set(threading.enumerate()) <= before


def test_names_of_batch_keys_are_taken(five):
    with pytest.raises(ConfigError, match="weight"):
        make(five, extra=["weight"])


def test_a_file_that_changes_is_noticed(tmp_path):
    path = write(tmp_path / "a.root", [4])
    with make(path) as source:
        write(path, [5])
        with pytest.raises(DataError, match="has changed"):
            source.batch(0, size=2)


def test_branches_of_a_file_are_opened_one_at_a_time(tmp_path, monkeypatch):
    """The library fills lists that it has already shared: threads would see them half full."""
    path = write(tmp_path / "a.root", [4], kind="ntuple")
    busy, most = [], []
    original = file.RootFile._open_column

    def record(self, *args):
        busy.append(1)
        most.append(len(busy))
        time.sleep(0.02)
        column = original(self, *args)
        busy.pop()
        return column

    with make(path, extra=["run", "event", "energyTruth"], threads=4) as source:
        monkeypatch.setattr(file.RootFile, "_open_column", record)
        source.batch(0, size=4, train=False)
    assert most == [1] * 5


def write_energies(folder, *energies):
    folder.mkdir(exist_ok=True)
    for number, energy in enumerate(energies):
        chunk = events(4 * number, 4) | {"energyTruth": energy}
        with uproot.recreate(folder / f"{number}.root") as file:
            file.mktree("tree", {k: np.dtype((v.dtype, v.shape[1:])) for k, v in chunk.items()})
            file["tree"].extend(chunk)
    return folder


def test_files_with_other_types_of_a_branch(tmp_path):
    whole, real = np.full(4, 52, np.int32), np.full(4, 52.75, np.float32)
    real[3] = np.nan
    for name, energies in {"a": (whole, real), "b": (real, whole)}.items():
        with make(write_energies(tmp_path / name, *energies), extra=["energyTruth"]) as source:
            found = source.batch(0, size=8, train=False)["energyTruth"]
        assert found.dtype == np.float32
        np.testing.assert_array_equal(
            found, np.where(np.isnan(np.concatenate(energies)), 1e10, np.concatenate(energies))
        )
    large = np.full(4, 2**60 + 1)
    folder = write_energies(tmp_path / "c", large, large.astype(np.uint64))
    with make(folder, extra=["energyTruth"]) as source:
        found = source.batch(0, size=8, train=False)["energyTruth"]
    assert (found == 2**60 + 1).all()


def test_whole_numbers_are_scaled(tmp_path):
    folder = write_energies(tmp_path / "a", np.full(4, 52, np.int32))
    with make(folder, extra=["energyTruth"], scale={"energyTruth": 1e-3}) as source:
        found = source.batch(0, size=4, train=False)["energyTruth"]
    np.testing.assert_allclose(found, 0.052, rtol=1e-6)
