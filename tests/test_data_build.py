"""Building a cache: complete or absent, whatever ends the command, and what it says."""

import errno
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import uproot
from test_data_tfds import (
    SENSORS,
    TRUTH,
    assert_close,
    assert_same,
    events,
    make,
    open_root,
    recipe,
    write,
)

from xec_jax.data import build as command
from xec_jax.data.build import build
from xec_jax.data.root.writer import write_tree
from xec_jax.data.tfds import builder as building
from xec_jax.data.tfds import folder as caches
from xec_jax.data.tfds.builder import Recipe, XecEvents
from xec_jax.errors import ConfigError, DataError, DiskError


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root")
    write(folder / "a_1.root", 0, 700)
    write(folder / "a_2.root", 700, 431)
    return folder


@pytest.fixture(scope="module")
def cache(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("cache") / "c"
    build(recipe(files), out, shards=3)
    return out


# Complete or absent


def test_the_same_again_does_nothing(files, cache):
    before = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert build(recipe(files), cache, shards=7) == {"events": 1131}
    assert before == {path: path.stat().st_mtime_ns for path in cache.iterdir()}


def test_a_killed_build_goes_on(files, cache, tmp_path):
    """Killed for real, while it writes the third of five files."""
    script = (
        "import os, signal\n"
        "from xec_jax.data import build\n"
        "from xec_jax.data.tfds import builder as building\n"
        "join, calls = building.Layout.join, []\n"
        "def kill(self, values):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return join(self, values)\n"
        "building.Layout.join = kill\n"
        f"recipe = building.Recipe({(str(files),)}, n_sensors={SENSORS}, branches={TRUTH})\n"
        f"build.build(recipe, {str(tmp_path / 'c')!r}, shards=5)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "c").exists()
    work = tmp_path / ".c.part"
    finished = {p.name: p.stat().st_mtime_ns for p in work.glob("*-of-00005")}
    assert len(finished) == 2
    with pytest.raises(ConfigError, match="unfinished work"):
        build(recipe(files, encoding="float32"), tmp_path / "c", shards=5)
    build(recipe(files), tmp_path / "c", shards=5)
    again = {name: (tmp_path / "c" / name).stat().st_mtime_ns for name in finished}
    assert again == finished, "finished files are not made again"
    assert not work.exists()
    with make(cache) as one, make(tmp_path / "c") as two:
        assert_same(one.batch(0, size=1131), two.batch(0, size=1131))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c"]
    kinds = {p.name.split(".")[0].split("-")[0] for p in (tmp_path / "c").iterdir()}
    assert kinds == {"dataset_info", "features", "metadata", "truth", "xec_events"}


def test_files_that_change_meanwhile(files, tmp_path, monkeypatch):
    path = tmp_path / "a.root"
    write(path, 0, 300)
    finish = command._convert

    def change(*arguments):
        finish(*arguments)
        write(path, 0, 300)

    monkeypatch.setattr(command, "_convert", change)
    with pytest.raises(DataError, match="have changed"):
        build(recipe(path), tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_another_folder_is_left_alone(files, cache, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text").write_text("all of it")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="no cache of these files"):
            build(recipe(files), tmp_path / "thesis", overwrite=overwrite)
    build(recipe(files / "a_2.root"), tmp_path / "c")
    with pytest.raises(ConfigError, match="overwrite"):
        build(recipe(files), tmp_path / "c")
    assert build(recipe(files), tmp_path / "c", overwrite=True)["events"] == 1131


def test_two_builds_at_once(files, tmp_path):
    (tmp_path / ".c.part").mkdir()
    with (
        command._locked(tmp_path / ".c.part"),
        pytest.raises(ConfigError, match="another command is working"),
    ):
        build(recipe(files), tmp_path / "c")


@pytest.mark.parametrize("small_disk", ["128k"], indirect=True)
def test_a_full_disk(files, small_disk, monkeypatch):
    with pytest.raises(DiskError, match="GB free"):
        build(recipe(files), small_disk / "c")
    monkeypatch.setattr(command, "_check_space", lambda *_: None)
    with pytest.raises(DiskError, match="No space left"):
        build(recipe(files), small_disk / "c")
    assert not (small_disk / "c").exists()


def test_numbers_out_of_range(tmp_path):
    chunk = events(0, 50)
    chunk["relative_time"][3, 4] = 1e-6
    chunk["npho"][7, 8] = 4e6
    write_tree(tmp_path / "a.root", [chunk])
    with pytest.raises(DataError, match=r"1 of \d+ values of 'npho' .* 4e\+06 photons") as caught:
        build(recipe(tmp_path / "a.root"), tmp_path / "c")
    assert "marker" not in str(caught.value)
    marked = events(0, 50) | {"event": np.arange(50, dtype=np.int32)}
    marked["npho"][7, 8] = -1e10
    write_tree(tmp_path / "b.root", [marked])
    with pytest.raises(DataError, match="-1e10 seems to be a marker"):
        build(recipe(tmp_path / "b.root"), tmp_path / "b")
    counts = build(recipe(tmp_path / "a.root", clip=True), tmp_path / "c", overwrite=True)
    assert counts["outside"] == {"npho": 1, "time": 1}
    build(recipe(tmp_path / "a.root", encoding="float32"), tmp_path / "d")
    with make(tmp_path / "d") as source:
        assert source.batch(0, size=50, train=False)["npho"][7, 8] == 4e6


def test_events_that_cannot_be_read_are_left_out(files, tmp_path):
    content = bytearray((files / "a_1.root").read_bytes())
    with uproot.open(files / "a_1.root") as file:
        place = file["tree"]["npho"].member("fBasketSeek")[1] + 100
    content[place : place + 99] = bytes(99)
    (tmp_path / "a.root").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        build(recipe(tmp_path / "a.root"), tmp_path / "c")
    options = {"size": 700, "train": False}
    with open_root(tmp_path / "a.root", on_bad_file="skip") as root:
        want = root.batch(0, **options)
    real = want["weight"] > 0
    assert 0 < real.sum() < 700
    counts = build(recipe(tmp_path / "a.root", on_bad_file="skip"), tmp_path / "c", overwrite=True)
    assert counts["events"] == real.sum()
    with make(tmp_path / "c") as source:
        found = source.batch(0, size=counts["events"], train=False)
    assert_close({name: values[real] for name, values in want.items()}, found)


def test_files_that_were_repaired_are_not_mistaken_for_the_damaged_ones(tmp_path, caplog, capsys):
    """The first of four files of records has no event; the data set says what it lacks."""
    path = tmp_path / "a.root"
    write_tree(path, [events(256 * i, 256) for i in range(4)])
    good = path.read_bytes()
    with uproot.open(path) as file:
        place = int(file["tree"]["npho"].member("fBasketSeek")[0]) + 100
    path.write_bytes(good[:place] + bytes(99) + good[place + 99 :])
    (tmp_path / "b.root").write_text("no ROOT file")
    mine = Recipe((str(tmp_path / "*.root"),), branches=TRUTH, n_sensors=SENSORS,
                  on_bad_file="skip")  # fmt: skip
    counts = build(mine, tmp_path / "c", shards=4)
    assert (counts["events"], counts["skipped"]) == (768, 256)
    assert list(counts["bad_files"]) == [str(tmp_path / "b.root")]
    metadata = caches.Cache.open(tmp_path / "c").metadata
    assert metadata["skipped"] == 256
    assert list(metadata["bad_files"]) == [str(tmp_path / "b.root")]
    with make(tmp_path / "c") as source:
        np.testing.assert_array_equal(
            source.batch(0, size=768, train=False)["event"], np.arange(256, 1024)
        )
        report = source.report()
        assert (report["entries"], report["seen"], report["skipped"]) == (1024, 768, 256)
        assert list(report["bad_files"]) == [str(tmp_path / "b.root")]
    assert "1024 entries: 768 seen, 256 skipped" in caplog.text
    path.write_bytes(good)
    with pytest.raises(ConfigError, match="lacks 256 events"):
        build(mine, tmp_path / "c", shards=4)
    counts = build(mine, tmp_path / "c", shards=9, overwrite=True)
    assert "4 files of records instead of 9" in capsys.readouterr().out
    assert (counts["events"], counts["skipped"]) == (1024, 0)
    assert build(mine, tmp_path / "c") == {"events": 1024}


def test_a_kill_at_the_end_loses_nothing(files, tmp_path, monkeypatch):
    """Before and after the folder gets its name."""

    def killed(*_):
        raise KeyboardInterrupt

    written = []
    original = XecEvents.write_shard
    monkeypatch.setattr(
        XecEvents, "write_shard", lambda self, *a: written.append(a) or original(self, *a)
    )
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.rename", lambda self, to: killed() if to.name == "c"
                      else os.rename(self, to))  # fmt: skip
        with pytest.raises(KeyboardInterrupt):
            build(recipe(files), tmp_path / "c", shards=2)
    with monkeypatch.context() as patch:
        patch.setattr(command, "_tidy", killed)
        with pytest.raises(KeyboardInterrupt):
            build(recipe(files), tmp_path / "c", shards=2)
    assert build(recipe(files), tmp_path / "c", shards=2) == {"events": 1131}
    assert len(written) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
    kinds = {p.name.split(".")[0].split("-")[0] for p in (tmp_path / "c").iterdir()}
    assert kinds == {"dataset_info", "features", "metadata", "truth", "xec_events"}
    assert not list((tmp_path / "c").glob("xec_events*.npz"))


def test_a_disk_without_locks(files, tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(command.fcntl, "flock", no_locks)
    with command._locked(tmp_path):
        assert "cannot be locked" in caplog.text


# The command


def test_the_command(files, tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.setattr(building.Recipe, "n_sensors", SENSORS)
    monkeypatch.setattr(building, "Recipe", lambda **options: Recipe(n_sensors=SENSORS, **options))
    words = ["--input", str(files), "--out", str(tmp_path / "c")]
    assert command.main(words) == 0
    assert "wrote 1131 events" in capsys.readouterr().out
    assert command.main(words) == 0
    assert "is complete: 1131 events" in capsys.readouterr().out
    assert set(caches.Cache.open(tmp_path / "c").columns) == {"npho", "time", *TRUTH}
    (tmp_path / "a.root").write_text("no ROOT file")
    words[1:2] = [str(tmp_path / "a.root"), str(files)]
    words[-1] = str(tmp_path / "d")
    with pytest.raises(DataError, match="is not a ROOT file"):
        command.main(words)
    assert command.main([*words, "--on_bad_file", "skip"]) == 0
    assert "a.root was left out" in caplog.text
    assert set(caches.Cache.open(tmp_path / "d").columns) == {"npho", "time", *TRUTH}
    with pytest.raises(ConfigError, match="--shards is 0"):
        command.main([*words, "--shards", "0"])
