"""The C++ example: answers equal to onnxruntime's in Python, and errors that a person can read."""

import hashlib
import json
import re
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from cpp_models import (
    DEAD_MASK,
    OUTPUTS,
    SENSORS,
    SMALL,
    ask_python,
    assert_equal_answers,
    manifest_of,
    photons,
    raw_inputs,
    read_floats,
    write_floats,
    write_model,
    write_small,
)

pytest_plugins = ["cpp_program"]

EXAMPLE = Path(__file__).parents[1] / "examples" / "cpp"
NORMALIZED = [{"name": "input", "shape": [SMALL, 2], "unit": "", "about": "npho', time'"}]


@pytest.fixture
def small(tmp_path):
    """A folder with a model of few sensors and 20 events for it."""
    write_small(tmp_path)
    return tmp_path


def left_over(folder):
    """Files that only the program can have made; faults must leave none, hidden ones included."""
    made = {"model.onnx", "model.onnx.json", "model.onnx.sha256", "events.floats", "events.root"}
    return sorted({path.name for path in folder.iterdir()} - made)


@pytest.mark.parametrize(("batch", "threads"), [(1, 1), (7, 2), (64, 2), (1000, 1)])
def test_equals_python(cpp_programs, tmp_path, batch, threads):
    model = write_model(tmp_path / "mo del.onnx", manifest_of(raw_inputs(SENSORS)))
    inputs = photons(65, SENSORS)
    write_floats(tmp_path / "in put", raw_inputs(SENSORS), inputs)
    output = tmp_path / "out.floats"
    options = ["--output", output, "--batch", batch, "--threads", threads]
    begin = time.monotonic()
    text = cpp_programs.run("xec_infer", model, tmp_path / "in put", *options)
    elapsed = time.monotonic() - begin
    answers, columns = read_floats(output)
    assert_equal_answers(answers, ask_python(model, inputs))
    keys = ("name", "shape", "unit")
    assert columns == [{key: field[key] for key in keys} for field in OUTPUTS]
    number = r"([\d.e-]+)"
    line = f"65 events in {number} s, {number} events/s; the network alone {number} events/s"
    seconds, rate, alone = map(float, re.match(line, text).groups())
    assert 0 < seconds < elapsed
    assert rate == pytest.approx(65 / seconds, rel=1e-3, abs=0.06)
    assert alone >= rate
    assert f"batches of {batch}, {threads} thread" in text


def test_other_inputs_and_columns(cpp_programs, tmp_path):
    """Numbers and masks as inputs; a file with more columns than the model reads, in any order."""
    scalar = {"name": "time_min_used", "shape": [], "unit": "ns", "about": ""}
    fields = [*raw_inputs(SMALL), scalar, DEAD_MASK]
    branches = {"branches": {"npho": "npho", "time": None}}
    model = write_model(tmp_path / "model.onnx", manifest_of(fields) | branches)
    rng = np.random.default_rng(1)
    inputs = photons(9, SMALL) | {
        "time_min_used": rng.normal(size=9).astype(np.float32),
        "dead_mask": rng.integers(0, 2, (9, SMALL)).astype(np.float32),
    }
    extra = {"name": "truth", "shape": [2, 3], "unit": "cm"}
    columns = [DEAD_MASK, extra, *fields[:3]]
    write_floats(tmp_path / "events.floats", columns, inputs | {"truth": np.ones((9, 2, 3))})
    output = tmp_path / "out"
    cpp_programs.run("xec_infer", model, tmp_path / "events.floats", "--output", output)
    assert_equal_answers(read_floats(output)[0], ask_python(model, inputs))


def test_describes_the_model(cpp_programs, small):
    text = cpp_programs.run("xec_infer", small / "model.onnx")
    assert text.splitlines() == [
        "task regress, network, normalization inside",
        f"input  npho ({SMALL}) photons: 1e10: no value",
        f"input  time ({SMALL}) s: 1e10: no value",
        "output pred_angle (2) deg: theta, phi",
        "output pred_energy () GeV: energy",
        "output tokens (3, 2): a “matrix”",
        "branch npho of ROOT files for npho",
        "branch relative_time of ROOT files for time",
    ]


def change(path, edit):
    path.write_bytes(edit(path.read_bytes()))


def flip(content):
    """One bit, in the middle of the weights."""
    content = bytearray(content)
    content[len(content) // 2] ^= 1
    return bytes(content)


def edit_manifest(folder, **changes):
    path = folder / "model.onnx.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite_model(folder, **changes):
    options = {key: changes.pop(key) for key in ("embedded", "output_type") if key in changes}
    write_model(folder / "model.onnx", manifest_of(raw_inputs(SMALL)) | changes, **options)


def rewrite_events(folder, which="npho", scale=1.0, **changes):
    """The events again, with one column described otherwise and its values scaled."""
    columns, arrays = raw_inputs(SMALL), {}
    for column in columns:
        own = column["name"]
        column |= changes if own == which else {}
        values = photons(20, column["shape"][0])[own]
        values[values < 1e9] *= scale if own == which else 1
        arrays[column["name"]] = values
    write_floats(folder / "events.floats", columns, arrays)


def contradicting(folder):
    """A graph of 50 sensors that says it has 51."""
    rewrite_model(folder, embedded=json.dumps(manifest_of(raw_inputs(SMALL + 1))))
    (folder / "model.onnx.json").unlink()


def normalized_model(folder):
    write_model(folder / "model.onnx", manifest_of(NORMALIZED, raw=False))
    features = np.random.default_rng(0).lognormal(4, 2, (20, SMALL, 2))
    write_floats(folder / "events.floats", NORMALIZED, {"input": features})


def relative_model(folder):
    fields = raw_inputs(SMALL)
    fields[0]["unit"] = ""
    write_model(folder / "model.onnx", manifest_of(fields, npho_branch="relative_npho"))


FAULTS = {
    "flipped bit": (
        lambda d: change(d / "model.onnx", flip),
        ["model.onnx is not the file that was exported: sha256", "expected: sha256", "copy"],
    ),
    "truncated model": (
        lambda d: change(d / "model.onnx", lambda content: content[:-100]),
        ["model.onnx is not the file that was exported: sha256", "copy the model"],
    ),
    "no checksum": (
        lambda d: (d / "model.onnx.sha256").unlink(),
        ["model.onnx.sha256 is missing", "Verify::nothing"],
    ),
    "no model": (lambda d: (d / "model.onnx").unlink(), ["model.onnx is no file that exists"]),
    "foreign model": (
        lambda d: rewrite_model(d, embedded=""),
        ["does not say what its inputs and outputs mean", "'xec_jax'", "python -m xec_jax.export"],
    ),
    "future format": (
        lambda d: rewrite_model(d, format=2),
        ["it has format 2", "expected: a description of format 1", "export the model again"],
    ),
    "broken description": (
        lambda d: rewrite_model(d, embedded='{"format": 1,'),
        ["metadata 'xec_jax' is no JSON: the text ends too early"],
    ),
    "no task": (
        lambda d: rewrite_model(d, embedded='{"format": 1}'),
        ["the key 'task' is missing", "a description of format 1"],
    ),
    "impossible shape": (
        lambda d: rewrite_model(
            d,
            embedded=json.dumps(manifest_of([raw_inputs(SMALL)[0] | {"shape": [2**20, 2**20]}])),
        ),
        ["'npho' has the impossible shape (1048576, 1048576)"],
    ),
    "other graph": (
        contradicting,
        [
            "the graph differs from its description: inputs npho (any, 50) time (any, 50)",
            "expected: inputs npho (any, 51) time (any, 51)",
        ],
    ),
    "double outputs": (
        lambda d: rewrite_model(d, output_type=11),
        ["output pred_angle came with shape (20, 2), no floats", "floats of shape (20, 2)"],
    ),
    "manifest of another model": (
        lambda d: edit_manifest(d, branches={"npho": "relative_npho", "time": "relative_time"}),
        ["model.onnx.json: 'branches' is not what", "copy both again"],
    ),
    "no events": (lambda d: (d / "events.floats").unlink(), ["events.floats is no file"]),
    "empty file": (
        lambda d: change(d / "events.floats", lambda _: b""),
        ["events.floats is no file of floats", "root_floats.py"],
    ),
    "no events inside": (
        lambda d: change(d / "events.floats", lambda content: content.split(b"\n")[0] + b"\n"),
        ["events.floats has no events"],
    ),
    "raw floats": (
        lambda d: change(d / "events.floats", lambda content: content.split(b"]}\n")[1]),
        ["events.floats is no file of floats", "expected: a first line {"],
    ),
    "other JSON": (
        lambda d: change(d / "events.floats", lambda _: b'{"xec_jax_floats": 2, "columns": []}\n'),
        ["its format is 2", "root_floats.py"],
    ),
    "cut event": (
        lambda d: change(d / "events.floats", lambda content: content[:-6]),
        ["7994 bytes after the first line", "a multiple of 400", "npho (50) photons", "was cut"],
    ),
    "wrong shape": (
        lambda d: rewrite_events(d, shape=[SMALL + 1]),
        ["has npho (51) photons", "expected: npho (50) photons, an input of the model"],
    ),
    "wrong input": (
        lambda d: rewrite_events(d, name="nphe"),
        ["has nphe (50) photons, time (50) s", "expected: npho (50) photons"],
    ),
    "wrong unit": (
        lambda d: rewrite_events(d, "time", unit="ns"),
        ["time (50) ns", "expected: time (50) s, an input of the model"],
    ),
    "wrong branch": (
        lambda d: rewrite_events(d, branch="relative_npho"),
        ["npho comes from the branch relative_npho", "the branch npho, which the network learned"],
    ),
    "fractions for photons": (
        lambda d: rewrite_events(d, scale=1e-6),
        [
            "99.9th percentile of npho is 0.",
            "photons, far above 1.5",
            "not relative_npho",
            "--force",
        ],
    ),
    "photons for fractions": (
        relative_model,
        ["99.9th percentile of npho is", "expected: shares of the largest sensor"],
    ),
    "photons for normalized values": (
        normalized_model,
        [
            "99.9th percentile of npho is",
            "expected: normalized values",
            "normalize as the manifest",
        ],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_explained(cpp_programs, small, fault):
    spoil, words = FAULTS[fault]
    spoil(small)
    options = ["--output", small / "out.floats"]
    model, events = small / "model.onnx", small / "events.floats"
    text = cpp_programs.run("xec_infer", model, events, *options, code=2)
    assert text.startswith("xec_infer: ")
    for word in words:
        assert word in text
    assert left_over(small) == []


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], "0 files"),
        (["a", "b", "c"], "3 files"),
        (["--batch", "0", "a"], "--batch 0"),
        (["--threads", "2x", "a"], "--threads 2x"),
        (["--threads"], "--threads without a value"),
        (["--bacth", "3"], "unknown option --bacth"),
    ],
)
def test_wrong_command_lines(cpp_programs, words, found):
    assert f"xec_infer: {found}" in cpp_programs.run("xec_infer", *words, code=2)


def test_help_explains_the_options(cpp_programs):
    text = cpp_programs.run("xec_infer", "--help")
    for option in ("output", "batch", "threads", "tree", "overwrite", "force", "no_verify"):
        assert f"\n  --{option} " in text


def test_force_goes_on_with_strange_values(cpp_programs, small):
    rewrite_events(small, scale=1e-6)
    text = cpp_programs.run("xec_infer", small / "model.onnx", small / "events.floats", "--force")
    assert text.startswith("20 events in ")


def test_a_broken_model_without_its_checksum(cpp_programs, small):
    change(small / "model.onnx", lambda content: content[:-100])
    words = [small / "model.onnx", small / "events.floats", "--no_verify"]
    text = cpp_programs.run("xec_infer", *words, code=2)
    assert "model.onnx: onnxruntime cannot load it: " in text
    assert "copy or export the model again" in text


def test_outputs_are_replaced_only_on_request(cpp_programs, small):
    output = small / "out.floats"
    output.write_text("mine")
    words = [small / "model.onnx", small / "events.floats", "--output", output]
    assert "out.floats exists" in cpp_programs.run("xec_infer", *words, code=2)
    assert output.read_text() == "mine"
    cpp_programs.run("xec_infer", *words, "--overwrite")
    assert read_floats(output)[0]["pred_angle"].shape == (20, 2)
    assert left_over(small) == ["out.floats"]


def test_a_folder_that_is_not_there(cpp_programs, small):
    words = [small / "model.onnx", small / "events.floats", "--output", small / "no" / "out"]
    text = cpp_programs.run("xec_infer", *words, code=4)
    assert "out cannot be written: No such file or directory" in text


@pytest.mark.parametrize("small_disk", ["8k"], indirect=True)
def test_a_full_disk_leaves_nothing(cpp_programs, small, small_disk):
    write_floats(small / "events.floats", raw_inputs(SMALL), photons(2000, SMALL))
    words = [small / "model.onnx", small / "events.floats", "--output", small_disk / "out"]
    text = cpp_programs.run("xec_infer", *words, code=4)
    assert "out cannot be written: No space left on device" in text
    assert list(small_disk.iterdir()) == []


def test_checksums_equal_those_of_python(cpp_programs):
    content = np.random.default_rng(0).bytes(100_000)
    lengths = [*range(0, 200), 4095, 4096, 99_999, 100_000]
    words = [cpp_programs.folder / "checks", "sha256", *map(str, lengths)]
    done = subprocess.run(words, input=content, capture_output=True, check=True)
    expected = [hashlib.sha256(content[:n]).hexdigest() for n in lengths]
    assert done.stdout.decode().split() == expected


def json_lines(value, path=""):
    """The leaves of a document as `checks json` prints them."""
    if isinstance(value, dict):
        return [line for key, item in value.items() for line in json_lines(item, f"{path}/{key}")]
    if isinstance(value, list):
        return [line for i, item in enumerate(value) for line in json_lines(item, f"{path}/{i}")]
    if isinstance(value, bool):
        return [f"{path} {int(value)}"]
    if isinstance(value, str):
        return [f"{path} {json.dumps(value, ensure_ascii=False)}"]
    return [f"{path} {'null' if value is None else 'number'}"]


def test_json_is_read_as_python_writes_it(cpp_programs):
    text = 'plain, "quoted\\ \x01\x1f, ü, ж, →, \U0001f600'
    document = {"a": [1, -2.5e-7, float("nan"), float("-inf"), [], {}], text: {"b": text}, "": None}
    document["c"] = [True, False, [[{"d": [""]}]]]
    lines = [
        json.dumps(document),
        json.dumps(document, ensure_ascii=False, separators=(",", ":")),
        " 0 ",
    ]
    found = cpp_programs.run("checks", "json", input="\n".join(lines)).splitlines()
    assert found == [*json_lines(document), *json_lines(document), " number"]


BROKEN_JSON = {
    "{": "the text ends too early at byte 1",
    '{"a" 1}': "':' is missing at byte 6",
    "[1 2]": "',' or the end of a list is missing at byte 4",
    "[1,]": "'' is no value at byte 3",
    '{"a": 1,}': "a text is missing at byte 9",
    "[tru]": "'tru' is no value at byte 4",
    '"\\x"': "an unknown escape at byte 3",
    '"\\u12g4"': "four hexadecimal digits are missing at byte 6",
    '"open': "the text ends too early at byte 5",
    "1 1": "text after the end at byte 2",
    "[" * 100: "too many levels at byte 65",
}


@pytest.mark.parametrize("name", ["model.onnx", "events.floats"])
def test_inputs_are_never_replaced(cpp_programs, small, name):
    before = (small / name).read_bytes()
    words = (small / "model.onnx", small / "events.floats", "--output", small / name)
    error = cpp_programs.run("xec_infer", *words, "--overwrite", code=2)
    assert f"{small / name} is an input as well" in error
    assert (small / name).read_bytes() == before


def test_columns_that_appear_twice(cpp_programs, small):
    model, events = small / "model.onnx", small / "events.floats"
    columns = json.loads(model.with_name("model.onnx.json").read_text())["inputs"]
    arrays = photons(5, SMALL)
    write_floats(events, [columns[0], *columns], arrays)
    error = cpp_programs.run("xec_infer", model, events, code=2)
    assert "two columns npho" in error


def test_absurd_numbers_of_threads(cpp_programs, small):
    error = cpp_programs.run("xec_infer", small / "model.onnx", "--threads", 5000, code=2)
    assert "--threads 5000\n  expected: a whole number from 1 to 256" in error


def test_broken_json_is_refused(cpp_programs):
    found = cpp_programs.run("checks", "json", input="\n".join(BROKEN_JSON))
    assert found.splitlines() == [f"line is no JSON: {what}" for what in BROKEN_JSON.values()]


def test_threads_share_a_model(cpp_programs, small):
    found = cpp_programs.run(
        "checks", "threads", small / "model.onnx", small / "events.floats", "4"
    )
    assert found == "800 of 800 answers are equal\n"


def test_calls_that_do_not_fit_a_model(cpp_programs, tmp_path):
    model = write_model(tmp_path / "model.onnx", manifest_of(raw_inputs(3)))
    text = cpp_programs.run("checks", "calls", model)
    expected = "  expected: for each event npho (3) photons, time (3) s"
    found = [
        "none",
        "npho with 3 values",
        "npho with 3 values, times with 3 values",
        "npho with 3 values, time with 6 values",
        "npho with 4 values, time with 4 values",
        "npho with 0 values, time with 0 values",
        "dead_mask with 3 values, npho with 3 values, time with 3 values",
    ]
    remedy = "  remedy:   give all inputs, with the values of the same whole number of events"
    lines = [(f"the inputs do not fit {model}: {what}", expected, remedy) for what in found]
    assert text.splitlines() == [line for block in lines for line in block]


def test_the_embedded_model_and_its_documentation(cpp_programs, tmp_path):
    model = write_model(tmp_path / "model.onnx", manifest_of(raw_inputs(SENSORS)))
    bright = np.arange(SENSORS) % 100 == 0
    inputs = {
        "npho": np.where(bright, 2000, 20).astype(np.float32)[None],
        "time": np.where(bright, 2e-8, 1e10).astype(np.float32)[None],
    }
    lines = [line.split() for line in cpp_programs.run("embed", model).splitlines()]
    for name, values in ask_python(model, inputs).items():
        found = [float(line[1]) for line in lines if line[0] == name]
        np.testing.assert_allclose(found, values.ravel(), rtol=1e-4)
    assert "pred_energy" in [line[0] for line in lines if line[2:] == ["GeV"]]
    code = (EXAMPLE / "embed.cpp").read_text().split("\n", 2)[2]
    assert code in (EXAMPLE / "README.md").read_text()
