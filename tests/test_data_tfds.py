"""The cache: the same events as the ROOT files, and without TensorFlow."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from xec_jax.data import order
from xec_jax.data.open import open_sources
from xec_jax.data.root.source import RootSource
from xec_jax.data.root.writer import write_tree
from xec_jax.data.tfds.packing import photons, times
from xec_jax.data.truth import read_truth
from xec_jax.defaults import calorimeter
from xec_jax.errors import ConfigError, DataError

tfds = pytest.importorskip("tensorflow_datasets")
pytest.importorskip("array_record")

from xec_jax.data.build import build  # noqa: E402
from xec_jax.data.tfds import folder as caches  # noqa: E402
from xec_jax.data.tfds.builder import Recipe, XecEvents  # noqa: E402
from xec_jax.data.tfds.source import TfdsSource  # noqa: E402

SENSORS = 80
TRUTH = ("energyTruth", "event", "run", "uvwTruth")
EXTRA = (*TRUTH, "absent")
PACKING = {"npho": photons("npho"), "time": times(-100, 225)}


def events(first, count, seed=0):
    """Events with invalid, dark, negative and bright sensors."""
    rng = np.random.default_rng([seed, first])
    npho = (rng.gamma(0.3, 3e4, (count, SENSORS)) - 5).astype(np.float32)
    time = rng.normal(1e-8, 2e-8, (count, SENSORS)).astype(np.float32)
    npho[rng.random(npho.shape) < 0.05] = 1e10
    npho[rng.random(npho.shape) < 0.05] = 0
    time[(npho > 9e9) | (rng.random(npho.shape) < 0.3)] = 1e10
    time[0, :2] = np.nan, np.inf
    event = np.arange(first, first + count)
    return {
        "npho": npho,
        "relative_npho": np.where(npho < 9e9, npho / np.float32(1e6), npho),
        "relative_time": time,
        "energyTruth": rng.uniform(0.015, 0.06, count).astype(np.float32),
        "uvwTruth": rng.uniform(-30, 30, (count, 3)).astype(np.float32),
        "run": np.full(count, 430000, np.int32),
        "event": event.astype(np.int32),
    }


def write(path, first, count):
    write_tree(
        path, [events(i, min(100, first + count - i)) for i in range(first, first + count, 100)]
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root")
    write(folder / "a_1.root", 0, 700)
    write(folder / "a_2.root", 700, 431)
    return folder


def recipe(files, **options):
    return Recipe((str(files),), **{"n_sensors": SENSORS, "branches": TRUTH} | options)


@pytest.fixture(scope="module")
def cache(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("cache") / "c"
    counts = build(recipe(files), out, shards=3)
    assert counts["events"] == 1131
    return out


def make(path, **options):
    return TfdsSource(path, **{"extra": EXTRA, "n_sensors": SENSORS} | options)


def open_root(files, **options):
    return RootSource(files, **{"extra": EXTRA, "n_sensors": SENSORS} | options)


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def assert_close(root, cached):
    """The same events, the sensors within the error of their packing."""
    assert root.keys() == cached.keys()
    for name, x in root.items():
        assert x.dtype == cached[name].dtype
        if name in PACKING:
            invalid = x > 9e9
            np.testing.assert_array_equal(invalid, cached[name] == np.float32(1e10))
            difference = np.abs(cached[name][~invalid] - x[~invalid].astype(np.float64))
            assert (difference <= PACKING[name].error(x[~invalid])).all()
        else:
            np.testing.assert_array_equal(x, cached[name], err_msg=name)


# What it holds


def test_validation_reads_the_events_of_the_files(files, cache):
    with open_root(files) as root, make(cache) as source:
        assert root.spec == source.spec
        assert len(root) == len(source) == 1131
        steps = root.steps_per_epoch(size=100, train=False)
        assert steps == source.steps_per_epoch(size=100, train=False) == 12
        for step in range(steps):
            options = {"size": 100, "train": False}
            assert_close(root.batch(step, **options), source.batch(step, **options))


def test_float32_loses_nothing(files, tmp_path):
    build(recipe(files, encoding="float32", compression="zstd"), tmp_path / "c")
    with open_root(files) as root, make(tmp_path / "c") as source:
        options = {"size": 1131, "train": False}
        assert_same(root.batch(0, **options), source.batch(0, **options))


def test_tfds_reads_it_and_writes_the_same(files, cache, tmp_path):
    source = tfds.builder_from_directory(cache).as_data_source(caches.SPLIT)
    assert len(source) == 1131
    with recipe(files).open() as root:
        builder = XecEvents(recipe(files), root, data_dir=tmp_path)
        builder.download_and_prepare()
    other = builder.as_data_source(caches.SPLIT)
    with make(cache) as ours, make(builder.data_path) as theirs:
        for step in (0, 300, 1130):
            batch = ours.batch(step, size=1, train=False)
            assert_same(batch, theirs.batch(step, size=1, train=False))
            for example in (source[step], other[step]):
                assert example["event"] == batch["event"][0] == step
                for key, packing in PACKING.items():
                    np.testing.assert_array_equal(packing.table[example[key]], batch[key][0])


def test_processes_write_the_same_files(files, cache, tmp_path):
    build(recipe(files), tmp_path / "c", shards=3, processes=2)
    for path in cache.iterdir():
        if path.suffix != ".npz":  # archives hold the time of day
            assert path.read_bytes() == (tmp_path / "c" / path.name).read_bytes(), path.name
    assert {p.name for p in cache.iterdir()} == {p.name for p in (tmp_path / "c").iterdir()}


# Which events, in which order


@pytest.mark.parametrize("train", [True, False])
def test_batches_depend_on_the_step_alone(cache, train):
    options = {"size": 70, "seed": 5, "shard": (1, 2), "train": train}
    with make(cache, threads=3) as source:
        sequence = [source.batch(k, **options) for k in range(20)]
    with make(cache, threads=1) as source:
        for k in np.random.default_rng(0).permutation(20):
            assert_same(source.batch(int(k), **options), sequence[k])


@pytest.mark.parametrize("train", [True, False])
def test_shards_together_are_the_whole_batch(cache, train):
    with make(cache) as source:
        for step in (0, 5, 11):
            whole = source.batch(step, size=96, seed=1, train=train)
            parts = [
                source.batch(step, size=32, shard=(i, 3), seed=1, train=train) for i in range(3)
            ]
            joined = {name: np.concatenate([part[name] for part in parts]) for name in whole}
            assert_same(whole, joined)


def test_an_epoch_mixes_all_events_and_takes_each_once(cache):
    with make(cache) as source:
        epochs = [
            np.concatenate([source.batch(e * 10 + k, size=113, seed=3)["event"] for k in range(10)])
            for e in range(2)
        ]
    for epoch, seen in enumerate(epochs):
        np.testing.assert_array_equal(seen, order.shuffled(1131, *order.key(3, epoch))[:1130])
    assert (epochs[0] != epochs[1]).any()


def test_a_shard_reads_its_own_rows_alone(cache, monkeypatch):
    with make(cache) as source:
        read = []
        original = source._files.read
        monkeypatch.setattr(
            source._files,
            "read",
            lambda events, keys: read.extend(events) or original(events, keys),
        )
        batch = source.batch(0, size=50, shard=(1, 4))
    np.testing.assert_array_equal(read, batch["event"])


def test_padding_repeats_a_real_event(cache):
    with make(cache) as source:
        batch = source.batch(11, size=100, train=False)
    assert batch["weight"].sum() == 31
    assert (batch["event"][31:] == 1130).all()


def test_caches_one_after_the_other(files, cache, tmp_path):
    for number in (1, 2):
        build(recipe(files / f"a_{number}.root"), tmp_path / f"part{number}")
    with make(cache) as one, make(str(tmp_path / "part?")) as two:
        options = {"size": 1131, "train": False}
        assert_same(one.batch(0, **options), two.batch(0, **options))
        assert one.fingerprint != two.fingerprint


# The settings of the ROOT source


def test_fiducial_cut_and_units(files, cache):
    options = {"fiducial": {"u": 20.0, "v": None, "w": 25.0}, "scale": {"energyTruth": 1e-3}}
    with open_root(files, **options) as root, make(cache, **options) as source:
        assert len(root) == len(source) < 1131
        batch = {"size": len(root), "train": False}
        assert_close(root.batch(0, **batch), source.batch(0, **batch))
        with make(cache) as plain:
            assert source.fingerprint != plain.fingerprint
    with pytest.raises(DataError, match="none of 1131 events"):
        make(cache, fiducial={"w": 1e-6})


def test_both_sources_say_what_became_of_the_entries(files, cache, caplog):
    """The sample that is looked at first does not count as read."""
    caplog.set_level("INFO", "xec_jax.data.report")
    options = {"n_sensors": SENSORS, "fiducial": {"u": 10.0}}
    found = []
    for source in (RootSource(files, **options), TfdsSource(cache, **options)):
        before = source.report()
        assert (before["seen"], before["served"]) == (0, 0)
        for step in range(source.steps_per_epoch(size=64, train=False)):
            source.batch(step, size=64, train=False)
        found.append(source.report())
        source.close()
        source.close()
        assert found[-1]["served"] == len(source)
    replaced = found[0].pop("replaced")  # when the cache was built
    assert found[0] == {k: v for k, v in found[1].items() if k != "replaced"}
    assert found[0]["cut"] > found[0]["unread"] == 0 < replaced["time"]
    rows = [events(i, 100) for i in range(0, 1100, 100)] + [events(1100, 31)]
    kept = [chunk["npho"][np.abs(chunk["uvwTruth"][:, 0]) < 10] for chunk in rows]
    assert found[0]["negative"] == sum(np.count_nonzero(npho < 0) for npho in kept) > 0
    line = f"1131 entries: {found[0]['seen']} seen, 0 skipped, {found[0]['cut']} cut, 0 not read"
    assert caplog.text.count(line) == 4, "each at the end of the epoch, and when it is closed"


def test_a_cache_needs_its_source(cache):
    with pytest.raises(DataError, match=r"a cache of(.|\n)*data\.source=tfds"):
        RootSource(cache, n_sensors=SENSORS)


def test_relative_photons(files, cache, tmp_path):
    with pytest.raises(ConfigError, match=r"'relative_npho', but .* built with 'npho'"):
        make(cache, npho_branch="relative_npho")
    options = {"npho_branch": "relative_npho", "derive_relative": True}
    with make(cache, **options) as source, make(cache) as plain:
        batch, raw = (s.batch(0, size=9, train=False)["npho"] for s in (source, plain))
        largest = np.max(raw, 1, where=raw < 9e9, initial=0, keepdims=True)
        np.testing.assert_array_equal(batch, np.where(raw < 9e9, raw / largest, raw))
    build(recipe(files, npho_branch="relative_npho"), tmp_path / "c")
    with make(tmp_path / "c", npho_branch="relative_npho") as source:
        x = source.batch(0, size=700, train=False)["npho"]
    packing = photons("relative_npho")
    want = np.concatenate([events(i, 100)["relative_npho"] for i in range(0, 700, 100)])
    assert (np.abs(x - want)[want < 9e9] <= packing.error(want)[want < 9e9]).all()


def test_constants_that_do_not_fit_are_told(cache, caplog):
    legacy = {"npho_scheme": "log1p", "npho_scale": 0.58, "npho_scale2": 1.0}
    with make(cache, normalization=legacy):
        assert "npho_scale" in caplog.text
    assert "no column absent" in caplog.text
    with pytest.raises(DataError, match="npho_scale"):
        make(cache, normalization=legacy, strict_scheme=True)


def test_other_branches_are_refused(files, cache, tmp_path):
    with pytest.raises(ConfigError, match=r"time_branch is 'time', but .* 'relative_time'"):
        make(cache, time_branch="time")
    build(recipe(files, time_branch=None), tmp_path / "c")
    with pytest.raises(ConfigError, match="built with None"):
        make(tmp_path / "c")
    with make(tmp_path / "c", time_branch=None) as source:
        assert "time" not in source.spec
    with pytest.raises(ConfigError, match="was built with"):
        make([cache, tmp_path / "c"])


def data_config(train, valid, source):
    data = calorimeter().data
    data.update({"source": source, "train": str(train), "valid": str(valid), "num_threads": 2})
    data.reweight = {"max_weight": 10.0}
    data.reweight.energy = {"enabled": True, "branch": "energyTruth", "nbins": 8}
    return data


def test_a_run_reads_either(files, cache, monkeypatch):
    for kind in (RootSource, TfdsSource):
        monkeypatch.setattr(
            f"xec_jax.data.open.{kind.__name__}",
            lambda *args, kind=kind, **options: kind(*args, n_sensors=SENSORS, **options),
        )
    opened = {"root": data_config(files, files, "root"), "tfds": data_config(cache, cache, "tfds")}
    pairs = {k: open_sources(c, ("npho", "time", "energyTruth")) for k, c in opened.items()}
    options = {"size": 200, "train": False}
    for step in range(6):
        root, cached = (valid["valid"].batch(step, **options) for _, valid in pairs.values())
        assert_close(root, cached)
    weights = {}
    for name, (train, _) in pairs.items():
        batch = train.batch(0, size=1131)
        weights[name] = batch["weight"][np.argsort(batch["event"])]
    np.testing.assert_allclose(weights["root"], weights["tfds"], rtol=1e-6)
    for name in ("uvwTruth", "run"):
        root, cached = (read_truth(c, {name: None}) for c in opened.values())
        np.testing.assert_array_equal(root[name], cached[name])
    with pytest.raises(DataError, match="energyTruth"):
        read_truth(opened["tfds"], {"energyTrut": ()})
    for train, valid in pairs.values():
        train.close()
        valid["valid"].close()
    with pytest.raises(ConfigError, match="root or tfds"):
        open_sources(data_config(files, files, "h5"))


def test_reading_needs_neither_tensorflow_nor_tfds(cache):
    script = (
        "import sys\n"
        "from xec_jax.data.tfds.source import TfdsSource\n"
        f"source = TfdsSource({str(cache)!r}, n_sensors={SENSORS})\n"
        "source.batch(0, size=64); source.close()\n"
        "print({name.split('.')[0] for name in sys.modules} & "
        "{'tensorflow', 'tensorflow_datasets', 'jax'})\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    words = [sys.executable, "-c", script]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.stdout == "set()\n", done.stderr


def test_without_the_package(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "array_record.python.array_record_module", None)
    with pytest.raises(ConfigError, match="array_record is not installed"):
        make(cache)


def test_what_the_root_source_refuses(cache, tmp_path):
    with pytest.raises(ConfigError, match=r"\['time'\] have names of other keys"):
        make(cache, extra=("time",), time_branch=None)
    chunk = events(0, 20)
    chunk["npho"][:5], chunk["uvwTruth"][:5], chunk["uvwTruth"][5:] = 0, 1, 20
    write_tree(tmp_path / "a.root", [chunk])
    build(recipe(tmp_path / "a.root"), tmp_path / "c")
    with pytest.raises(DataError, match="no valid sensor in the first 5 events"):
        make(tmp_path / "c", fiducial={"u": 10.0})


def test_whole_numbers_are_scaled(tmp_path):
    chunk = events(0, 20) | {"energyTruth": np.full(20, 52, np.int32)}
    write_tree(tmp_path / "a.root", [chunk])
    build(recipe(tmp_path / "a.root"), tmp_path / "c")
    with make(tmp_path / "c", scale={"energyTruth": 1e-3}) as source:
        energy = source.batch(0, size=4, train=False)["energyTruth"]
    np.testing.assert_allclose(energy, 0.052, rtol=1e-6)


def test_many_caches_come_in_natural_order(cache, tmp_path):
    for number in (10, 2):
        shutil.copytree(cache, tmp_path / f"part{number}")
    found = [c.path.name for c in caches.open_caches(str(tmp_path / "part*"))]
    assert found == ["part2", "part10"]


def test_a_cut_without_events_leaves_no_file_open(cache, monkeypatch):
    opened = []
    monkeypatch.setattr("xec_jax.data.tfds.source._Files", lambda *_: opened.append(1))
    with pytest.raises(DataError, match="none of 1131 events"):
        make(cache, fiducial={"w": 1e-6})
    assert not opened


# Damage


def damaged(cache, tmp_path, change):
    folder = tmp_path / "damaged"
    folder.mkdir(exist_ok=True)
    for path in cache.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    name = caches.shard_name(1, 3)
    content = bytearray((folder / name).read_bytes())
    (folder / name).write_bytes(change(content))
    return folder, name


def flip(place):
    def change(content):
        content[int(place * len(content))] ^= 0x55
        return content

    return change


def test_flipped_bytes_are_found_or_harmless(cache, tmp_path):
    with make(cache) as source:
        want = source.batch(0, size=1131, train=False)
    found = 0
    for place in np.random.default_rng(1).random(25):
        folder, name = damaged(cache, tmp_path, flip(place))
        reason = name
        try:
            with make(folder) as source:
                assert_same(source.batch(0, size=1131, train=False), want)
        except DataError as error:
            reason = str(error)
            found += 1
        assert name in reason
    assert found > 15


@pytest.mark.parametrize(
    "change", [lambda x: x[: len(x) // 2], lambda x: b"", lambda x: b"no records" * 99]
)
def test_damaged_files_are_named(cache, tmp_path, change):
    folder, name = damaged(cache, tmp_path, change)
    with make(folder) as source, pytest.raises(DataError, match=name):
        source.batch(0, size=1131, train=False)
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"{name} is missing"):
        make(folder)
    (folder / "truth.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"truth\.npz is damaged"):
        caches.read_columns(folder, {"run": ()})
    (folder / "metadata.json").write_text("{}")
    with pytest.raises(DataError, match="is no cache of events"):
        make(folder)


def test_a_folder_of_root_files_is_no_cache(files, tmp_path):
    with pytest.raises(DataError, match="no cache of events"):
        make(files)
    with pytest.raises(DataError, match="no cache of events at"):
        make(tmp_path / "gone")
