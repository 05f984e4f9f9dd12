"""The simulate command, its files and the cache of samples."""

import hashlib
import json
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
import uproot

from xec_jax import simulate
from xec_jax.data.root.writer import write_tree
from xec_jax.errors import ConfigError, DataError, DiskError, run_command
from xec_jax.sim.lxe import simulate_range
from xec_jax.sim.lxe_parameters import SIMULATION_VERSION, LxeParameters


def read(path):
    with uproot.open({str(path): "tree"}) as tree:
        return tree.arrays(library="np")


def chunk(n=4, start=0):
    rows = np.arange(start, start + n)
    return {
        "event": rows.astype(np.int32),
        "npho": np.repeat(rows[:, None], 4760, 1).astype(np.float32),
    }


def exit_code(*argv):
    with pytest.raises(SystemExit) as caught:
        run_command(simulate.main, [str(value) for value in argv])
    return caught.value.code


@pytest.fixture
def asked(monkeypatch):
    """Arguments of the simulation, which is replaced by empty events."""
    calls = []

    def simulate_range(seed, start, stop, params, dead=None):
        calls.append((params, dead))
        return iter([chunk(stop - start, start)])

    monkeypatch.setattr("xec_jax.sim.lxe.simulate_range", simulate_range)
    return calls


# Trees


@pytest.mark.parametrize("compression", ["zstd", "lz4", "zlib", "none"])
def test_tree_reads_back_with_types_and_shapes(tmp_path, compression):
    path = tmp_path / "with space: and colon.root"
    chunks = [chunk(4), chunk(3, start=4)]
    assert write_tree(path, chunks, compression=compression) == 7
    found = read(path)
    assert found["npho"].shape == (7, 4760)
    assert found["npho"].dtype.newbyteorder("=") == np.float32
    np.testing.assert_array_equal(found["event"], np.arange(7))
    np.testing.assert_array_equal(found["npho"][:, 17], np.arange(7))
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_interrupted_writing_leaves_nothing_new(tmp_path):
    path = tmp_path / "sample.root"
    write_tree(path, [chunk(2)])

    def broken():
        yield chunk(4)
        raise RuntimeError("cable pulled")

    with pytest.raises(RuntimeError, match="cable"):
        write_tree(path, broken())
    assert [entry.name for entry in tmp_path.iterdir()] == ["sample.root"]
    assert len(read(path)["event"]) == 2


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"event": np.zeros(2, np.int32)}, "npho"),
        (chunk(2) | {"event": np.zeros(2, np.int64)}, "event"),
        (chunk(2) | {"npho": np.zeros((2, 4742), np.float32)}, "npho"),
        (chunk(2) | {"event": np.zeros(3, np.int32)}, "lengths"),
        (chunk(2) | {"event": np.array(["a", "b"])}, "type"),
        ({}, "lengths"),
    ],
)
def test_chunks_that_do_not_fit_are_refused(tmp_path, second, message):
    with pytest.raises(DataError, match=message):
        write_tree(tmp_path / "x.root", [chunk(2), second])
    assert list(tmp_path.iterdir()) == []


def test_no_chunks_are_refused(tmp_path):
    with pytest.raises(DataError, match="no events"):
        write_tree(tmp_path / "x.root", [])
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="remedy"):
        write_tree(tmp_path / "file" / "x.root", [chunk()])


def test_disk_full_leaves_nothing(tmp_path):
    # A limit on file sizes fails in the same place as a full disk: in the middle of a write.
    code = (
        "import sys; import numpy as np\n"
        "from xec_jax.data.root.writer import write_tree\n"
        "from xec_jax.errors import run_command\n"
        "chunks = ({'a': np.random.default_rng(0).random((9, 4760))} for _ in range(9))\n"
        "run_command(lambda argv: write_tree(argv[0], chunks), sys.argv[1:])\n"
    )
    command = 'ulimit -f 400; exec "$0" -c "$1" "$2"'
    argv = ["bash", "-c", command, sys.executable, code, str(tmp_path / "x.root")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr
    assert "DiskError" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


# Command


def test_files_hold_the_simulated_events(tmp_path, capsys):
    argv = (
        "--kind",
        "lxe",
        "--out",
        tmp_path / "a",
        "--events",
        50,
        "--files",
        2,
        "--seed",
        9,
    )
    assert exit_code(*argv) == 0
    printed = capsys.readouterr().out
    assert "lxe_0000.root" in printed
    assert "events/s" in printed
    first, second = (read(tmp_path / "a" / f"lxe_000{i}.root") for i in (0, 1))
    assert len(first["event"]) == len(second["event"]) == 25
    wanted = list(simulate_range(9, 0, 50))
    for name, values in first.items():
        both = np.concatenate([values, second[name]])
        direct = np.concatenate([chunk[name] for chunk in wanted])
        assert both.dtype.newbyteorder("=") == direct.dtype
        np.testing.assert_array_equal(both, direct, err_msg=name)
    record = json.loads((tmp_path / "a" / "sample.json").read_text())
    assert record["seed"] == 9
    assert record["parameters"]["dead_fraction"] == 0.01


def test_existing_sample_is_replaced_only_when_asked(tmp_path, capsys, asked):
    argv = ("--kind", "lxe", "--out", tmp_path, "--events", 4)
    assert exit_code(*argv, "--files", 2) == 0
    assert exit_code(*argv) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert exit_code(*argv, "--overwrite", "--seed", 1) == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["lxe_0000.root", "sample.json"]
    assert json.loads((tmp_path / "sample.json").read_text())["seed"] == 1


@pytest.mark.parametrize("kind", ["rain", "lartpc"])
def test_later_kinds_say_so(tmp_path, capsys, kind):
    out = tmp_path / "a"
    assert exit_code("--kind", kind, "--out", out, "--events", 4) == 2
    message = capsys.readouterr().err
    assert "not available in this version" in message
    assert "lxe" in message
    assert not out.exists()


@pytest.mark.parametrize(
    "argv",
    [
        ("--kind", "lxee", "--events", 4),
        ("--kind", "lxe", "--events", 0),
        ("--kind", "lxe", "--events", 4, "--files", 5),
        ("--kind", "lxe", "--events", 4, "--seed", -1),
        ("--kind", "lxe", "--events", 4, "--energy", "high"),
        ("--kind", "lxe", "--events", "many"),
        ("--kind", "lxe", "--events", 4, "--source", "cex", "--energy", "flat"),
        ("--kind", "lxe", "--events", 4, "--set", "no_such_number=1"),
        ("--kind", "lxe", "--events", 4, "--set", "reflectivity"),
        ("--kind", "lxe", "--events", 4, "--set", "reflectivity=2"),
        ("--kind", "lxe", "--events", 4, "--pileup_rate", -1),
        ("--kind", "lxe", "--events", 4, "--dead_channels", "/no/such/list"),
    ],
)
def test_bad_arguments_leave_with_code_2(tmp_path, argv):
    assert exit_code(*argv, "--out", tmp_path / "a") == 2
    assert not (tmp_path / "a").exists()


def test_unwritable_folder_leaves_with_code_4(tmp_path):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "a"
    assert exit_code("--kind", "lxe", "--out", out, "--events", 4) == 4


@pytest.mark.parametrize(
    ("argv", "changed"),
    [
        ((), {}),
        (
            ("--energy", "signal", "--solid_angle"),
            {"energy_mev": (52.83,) * 2, "solid_angle": True},
        ),
        (("--source", "cex"), {"origin": "cex", "energy_mev": (54.9, 82.9)}),
        (("--variant", "data", "--cosmics", 0.1), {"variant": "data", "cosmic_share": 0.1}),
        (("--pileup_rate", "1e6", "--set", "first_run=7"), {"pileup_rate_hz": 1e6, "first_run": 7}),
        (("--set", "energy_mev=[20, 30]"), {"energy_mev": (20.0, 30.0)}),
    ],
)
def test_options_are_numbers_of_the_detector(tmp_path, asked, argv, changed):
    assert exit_code("--kind", "lxe", "--out", tmp_path, "--events", 4, *argv) == 0
    assert asked == [(LxeParameters(**changed), None)]
    written = json.loads((tmp_path / "sample.json").read_text())["parameters"]
    for name, value in changed.items():
        assert written[name] == (list(value) if isinstance(value, tuple) else value)


def test_dead_channels_come_from_a_list(tmp_path, asked):
    (tmp_path / "list.txt").write_text("run 1\n3\n17\nrun 2\n")
    argv = ("--kind", "lxe", "--events", 4, "--dead_channels", tmp_path / "list.txt", "--overwrite")
    assert exit_code(*argv, "--out", tmp_path / "a") == 0
    params, dead = asked[-1]
    assert params.dead_fraction == 0
    assert np.flatnonzero(dead[1]).tolist() == [3, 17]
    record = json.loads((tmp_path / "a" / "sample.json").read_text())["dead_channels"]
    (tmp_path / "list.txt").write_text("# moved\nrun 2\n\nrun 1\n17\n3\n")
    assert exit_code(*argv, "--out", tmp_path / "a") == 0
    assert json.loads((tmp_path / "a" / "sample.json").read_text())["dead_channels"] == record
    (tmp_path / "list.txt").write_text("run 1\n4\n")
    assert exit_code(*argv, "--out", tmp_path / "a") == 0
    assert json.loads((tmp_path / "a" / "sample.json").read_text())["dead_channels"] != record


def test_run_without_dead_channels_leaves_nothing_behind(tmp_path, capsys):
    (tmp_path / "list.txt").write_text("run 2\n3\n")
    argv = ("--kind", "lxe", "--events", 4, "--dead_channels", tmp_path / "list.txt")
    assert exit_code(*argv, "--out", tmp_path / "a") == 2
    assert "run 1" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


# Cache


def test_cached_sample_is_made_once(tmp_path, monkeypatch, asked):
    monkeypatch.setenv("XEC_JAX_CACHE", str(tmp_path / "cache"))
    folder = simulate.cached_sample("lxe", 6, seed=3, files=2)
    assert folder.parent == tmp_path / "cache"
    assert folder.name.startswith("lxe-6-seed3-")
    assert len(list(folder.glob("*.root"))) == 2
    stamp = (folder / "lxe_0000.root").stat().st_mtime_ns
    assert simulate.cached_sample("lxe", 6, seed=3, files=2) == folder
    assert (folder / "lxe_0000.root").stat().st_mtime_ns == stamp
    others = [
        simulate.cached_sample("lxe", 6, seed=4, files=2),
        simulate.cached_sample("lxe", 6, seed=3, files=1),
        simulate.cached_sample("lxe", 6, seed=3, files=2, energy="signal"),
    ]
    assert len(asked) == 2 + 2 + 1 + 2  # files
    assert len({folder, *others}) == 4


def test_cached_samples_of_other_detectors_have_their_own_folders(tmp_path, asked):
    """And those of the default one keep theirs: their name is that of older versions."""
    plain = simulate.cached_sample("lxe", 6, seed=3, files=2, cache_dir=tmp_path)
    content = {"files": 2, "version": SIMULATION_VERSION, "parameters": asdict(LxeParameters())}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    assert plain.name == f"lxe-6-seed3-{digest}"
    found = [plain]
    for rate in (0.0, 1e6, 3e6, 1e6):
        parameters = asdict(LxeParameters()) | {"pileup_rate_hz": rate}
        found.append(
            simulate.cached_sample(
                "lxe", 6, seed=3, files=2, cache_dir=tmp_path, parameters=parameters
            )
        )
        record = json.loads((found[-1] / "sample.json").read_text())
        assert record["parameters"]["pileup_rate_hz"] == rate
    assert found[1] == plain
    assert found[2] == found[4]
    assert len(set(found)) == 3
    assert [params.pileup_rate_hz for params, _ in asked] == [0, 0, 1e6, 1e6, 3e6, 3e6]
    with pytest.raises(ConfigError, match="color"):
        simulate.cached_sample("lxe", 6, seed=3, cache_dir=tmp_path, parameters={"color": 1})
    assert len(list(tmp_path.iterdir())) == 3


def test_interrupted_generation_leaves_no_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(simulate, "write_sample", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        simulate.cached_sample("lxe", 6, seed=3, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_sample_of_a_faster_process_is_taken(tmp_path, monkeypatch, asked):
    folder = simulate.cached_sample("lxe", 2, seed=1, cache_dir=tmp_path)
    real_is_dir = type(folder).is_dir
    answers = iter([False])
    monkeypatch.setattr(type(folder), "is_dir", lambda self: next(answers, real_is_dir(self)))
    assert simulate.cached_sample("lxe", 2, seed=1, cache_dir=tmp_path) == folder
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError):
        simulate.cached_sample("lxe", 2, seed=1, cache_dir=tmp_path / "file" / "cache")
    with pytest.raises(ConfigError, match="not available"):
        simulate.cached_sample("rain", 2, seed=1, cache_dir=tmp_path)


def test_a_sample_made_again_is_the_same_data(tmp_path):
    """A demonstration goes on although its cache was lost or moved."""
    from xec_jax.data.root.source import RootSource

    found = []
    for name in ("a", "b"):
        folder = simulate.cached_sample("lxe", 6, seed=3, cache_dir=tmp_path / name)
        source = RootSource(folder)
        found.append(source.fingerprint)
        source.close()
    assert found[0] == found[1]
    other = RootSource(simulate.cached_sample("lxe", 6, seed=4, cache_dir=tmp_path / "a"))
    assert other.fingerprint != found[0]
    other.close()
