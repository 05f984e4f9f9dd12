"""The C++ example and ROOT files: converted by the script, and read by the program itself."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import uproot

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from cpp_models import (
    DEAD_MASK,
    SMALL,
    ask_python,
    assert_equal_answers,
    manifest_of,
    photons,
    raw_inputs,
    read_floats,
    write_model,
    write_small,
)

from xec_jax.data.root.writer import write_tree

pytest_plugins = ["cpp_program"]

EXAMPLE = Path(__file__).parents[1] / "examples" / "cpp"
SCALAR = {"name": "time_min_used", "shape": [], "unit": "s", "about": ""}


@pytest.fixture
def made(tmp_path):
    """A folder with a model, and 20 events for it as a ROOT file."""
    folder = tmp_path / "made"
    folder.mkdir()
    write_small(folder)
    write_events(folder)
    return folder


@pytest.fixture
def with_root(cpp_programs):
    """The programs, where CMake found ROOT."""
    if not cpp_programs.has_root:
        pytest.skip("CMake finds no ROOT here")
    return cpp_programs


def write_events(folder, **changes):
    inputs = photons(20, SMALL)
    chunk = {"npho": inputs["npho"], "relative_time": inputs["time"]}
    chunk |= {"run": np.full(20, 430_000), "event": np.arange(20) + 2**40} | changes
    write_tree(folder / "events.root", [{k: v for k, v in chunk.items() if v is not None}])


def assert_predictions(path, model):
    with uproot.open({path: "tree"}) as tree:
        found = tree.arrays(library="np")
    np.testing.assert_array_equal(found.pop("event"), np.arange(20) + 2**40)
    assert set(found.pop("run")) == {430_000}
    assert_equal_answers(found, ask_python(model, photons(20, SMALL)))


def convert(*words, code=0):
    script = [sys.executable, str(EXAMPLE / "root_floats.py"), *map(str, words)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_the_script_converts_there_and_back(cpp_programs, made, tmp_path):
    floats = tmp_path / "events.floats"
    convert(made / "events.root", floats, "--model", made / "model.onnx.json")
    arrays, columns = read_floats(floats)
    for name, values in photons(20, SMALL).items():
        np.testing.assert_array_equal(arrays[name], values)
    assert [column["branch"] for column in columns] == ["npho", "relative_time"]
    output = tmp_path / "out.floats"
    cpp_programs.run("xec_infer", made / "model.onnx", floats, "--output", output)
    convert(output, tmp_path / "out.root", "--events", made / "events.root")
    assert_predictions(tmp_path / "out.root", made / "model.onnx")


def test_the_script_says_what_a_root_file_lacks(made, tmp_path):
    words = [made / "events.root", tmp_path / "out", "--model", made / "model.onnx.json"]
    write_model(made / "model.onnx", manifest_of(raw_inputs(SMALL), npho_branch="nphe"))
    text = convert(*words, code=2)
    assert "no branch 'nphe' (it has: npho, relative_time, run, event)" in text
    write_model(made / "model.onnx", manifest_of([*raw_inputs(SMALL), DEAD_MASK, SCALAR]))
    text = convert(*words)
    assert "has no branch dead_mask: taken as 0.0" in text
    assert "has no branch time_min_used: taken as nan" in text
    arrays = read_floats(tmp_path / "out")[0]
    assert not arrays["dead_mask"].any()
    assert np.isnan(arrays["time_min_used"]).all()


def test_the_script_refuses_cut_files(made, tmp_path):
    content = (made / "events.floats").read_bytes()
    (made / "events.floats").write_bytes(content[:-6])
    text = convert(made / "events.floats", tmp_path / "out.root", code=2)
    assert "394 bytes are left over after 19 events of 400 bytes" in text
    (made / "events.floats").write_bytes(content[:-400])
    words = [made / "events.floats", tmp_path / "out.root", "--events", made / "events.root"]
    assert "events.root has 20 events" in convert(*words, code=2)
    assert sorted(tmp_path.iterdir()) == [made]


def test_a_program_without_root_says_so(cpp_programs, made, tmp_path):
    if cpp_programs.has_root:
        pytest.skip("CMake found ROOT")
    model = made / "model.onnx"
    text = cpp_programs.run("xec_infer", model, made / "events.root", code=2)
    assert "events.root is a ROOT file" in text
    assert "root_floats.py" in text
    words = [model, made / "events.floats", "--output", tmp_path / "out.root"]
    assert "built without ROOT" in cpp_programs.run("xec_infer", *words, code=2)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_the_program_reads_and_writes_trees(with_root, made, tmp_path, batch):
    output, model = tmp_path / "out.root", made / "model.onnx"
    words = [made / "events.root", "--output", output, "--batch", batch]
    with_root.run("xec_infer", model, *words)
    assert_predictions(output, model)
    with uproot.open(output) as file:
        assert '"task": "regress"' in file["metadata"]
    text = with_root.run("xec_infer", model, *words, code=2)
    assert "out.root exists" in text
    assert sorted(tmp_path.iterdir()) == sorted([made, output])


def test_numbers_of_other_types_and_missing_inputs(with_root, made, tmp_path):
    fields = [*raw_inputs(SMALL), DEAD_MASK, SCALAR]
    write_model(made / "model.onnx", manifest_of(fields))
    npho = np.arange(20 * SMALL, dtype=np.int32).reshape(20, SMALL)
    times = photons(20, SMALL)["time"]
    minimum = np.linspace(-1e-6, 1e-6, 20)
    changes = {"npho": npho, "time_min_used": minimum.reshape(20, 1), "run": None, "event": None}
    write_events(made, **changes)
    words = [made / "model.onnx", made / "events.root", "--output", tmp_path / "out.floats"]
    done = subprocess.run(
        [str(with_root.folder / "xec_infer"), *map(str, words)], capture_output=True, text=True
    )
    assert "WARNING" in done.stderr
    assert "has no branch dead_mask: taken as 0" in done.stderr
    inputs = {"npho": npho, "time": times, "time_min_used": minimum}
    inputs |= {"dead_mask": np.zeros((20, SMALL))}
    inputs = {name: np.asarray(values, np.float32) for name, values in inputs.items()}
    assert_equal_answers(
        read_floats(tmp_path / "out.floats")[0], ask_python(made / "model.onnx", inputs)
    )


def cut(folder, size):
    path = folder / "events.root"
    path.write_bytes(path.read_bytes()[:size])


def spoiled(folder):
    """Zeros instead of the middle of the photons."""
    path = folder / "events.root"
    with uproot.open({path: "tree"}) as tree:
        begin, size = (tree["npho"].member(f"fBasket{what}")[0] for what in ("Seek", "Bytes"))
    content = bytearray(path.read_bytes())
    content[begin + size // 2 : begin + size // 2 + 50] = bytes(50)
    path.write_bytes(content)


FAULTS = {
    "missing branch": (
        lambda d: write_events(d, npho=None, relative_npho=np.ones((20, SMALL), np.float32)),
        [
            "tree tree has no branch 'npho' (it has: relative_time, run, event, relative_npho)",
            "expected: a branch 'npho' with 50 numbers per event",
        ],
    ),
    "wrong length": (
        lambda d: write_events(d, npho=np.ones((20, SMALL - 1), np.float32)),
        ["branch npho has 49 numbers per event", "expected: 50"],
    ),
    "fractions": (
        lambda d: write_events(d, npho=np.full((20, SMALL), 0.5, np.float32)),
        ["99.9th percentile of npho is 0.5", "photons, far above 1.5"],
    ),
    "cut file": (lambda d: cut(d, 3000), ["events.root cannot be read as a ROOT file"]),
    "lost end": (lambda d: cut(d, -100), ["events.root cannot be read", "copy it again"]),
    "spoiled basket": (spoiled, ["events.root, tree tree, branch npho: entry 0 cannot be read"]),
    "normalized model": (
        lambda d: write_model(d / "model.onnx", manifest_of(raw_inputs(SMALL), raw=False)),
        ["has photons and times, the model wants normalized values"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_trees_are_explained(with_root, made, tmp_path, fault):
    spoil, words = FAULTS[fault]
    spoil(made)
    command = [made / "model.onnx", made / "events.root", "--output", tmp_path / "out.root"]
    text = with_root.run("xec_infer", *command, code=2)
    for word in words:
        assert word in text
    assert sorted(tmp_path.iterdir()) == [made]


def test_an_unknown_tree(with_root, made):
    command = [made / "model.onnx", made / "events.root", "--tree", "rec"]
    text = with_root.run("xec_infer", *command, code=2)
    assert "events.root has no tree 'rec'" in text
    assert "expected: one of its trees: tree" in text


@pytest.mark.parametrize("small_disk", ["32k"], indirect=True)
def test_a_full_disk_leaves_no_tree(with_root, made, small_disk):
    inputs = photons(20_000, 1)
    write_model(made / "model.onnx", manifest_of(raw_inputs(1)))
    chunk = {"npho": inputs["npho"], "relative_time": inputs["time"]}
    write_tree(made / "events.root", [chunk])
    words = [made / "model.onnx", made / "events.root", "--output", small_disk / "out.root"]
    text = with_root.run("xec_infer", *words, code=4)
    assert "out.root cannot be written" in text
    assert list(small_disk.iterdir()) == []
