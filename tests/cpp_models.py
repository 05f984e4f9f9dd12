"""Small models as `python -m xec_jax.export` writes them, made without JAX, and files of floats."""

import hashlib
import json

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SENSORS = 4760
SMALL = 50  # sensors of the models that are asked often
DEAD_MASK = {"name": "dead_mask", "shape": [SMALL], "unit": "", "about": "1 = dead"}
OUTPUTS = [
    {"name": "pred_angle", "shape": [2], "unit": "deg", "about": "theta, phi"},
    {"name": "pred_energy", "shape": [], "unit": "GeV", "about": "energy"},
    {"name": "tokens", "shape": [3, 2], "unit": "", "about": "a “matrix”"},
]


def raw_inputs(n):
    return [
        {"name": "npho", "shape": [n], "unit": "photons", "about": "1e10: no value"},
        {"name": "time", "shape": [n], "unit": "s", "about": "1e10: no value"},
    ]


def manifest_of(inputs, raw=True, npho_branch="npho"):
    return {
        "format": 1,
        "task": "regress",
        "part": "network",
        "raw": raw,
        "inputs": inputs,
        "outputs": OUTPUTS,
        "tasks": {},
        "normalization": {"npho_scheme": "log1p", "npho_scale": 1000.0, "best": float("nan")},
        "branches": {"npho": npho_branch, "time": "relative_time"},
        "detector": "Flüssig-Xenon",
        "training": {"run": 'runs/"a"\\b', "is_average": True, "metric": None, "step": 1},
    }


def write_model(path, manifest, *, embedded=None, output_type=TensorProto.FLOAT):
    """Writes a model of the manifest's inputs and outputs, its manifest and its checksum.

    The graph normalizes photons with log1p, leaves out invalid values, and maps all inputs
    linearly to the outputs with fixed random numbers.

    Args:
        path: The model.
        manifest: What is written beside it.
        embedded: Text in the metadata, if it is not the manifest; "" for none.
        output_type: As the graph declares it.
    """
    rng = np.random.default_rng(7)
    nodes, weights, parts = [], [], []

    def constant(name, values):
        weights.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def node(kind, inputs, output, **attributes):
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    zero, most = constant("zero", np.float32(0)), constant("most", np.float32(9e9))
    flat = constant("flat", np.array([0, -1]))
    for field in manifest["inputs"]:
        name = field["name"]
        missing = node("IsNaN", [name], f"{name}_nan")
        number = node("Where", [missing, most, name], f"{name}_number")
        valid = node("Less", [number, most], f"{name}_valid")
        value = node("Where", [valid, number, zero], f"{name}_value")
        if field["unit"] == "photons":
            scaled = node("Mul", [value, constant("scale", np.float32(1e-3))], "scaled")
            value = node("Log", [node("Add", [scaled, constant("one", np.float32(1))], "p")], "log")
        if field["unit"] == "s":
            value = node(
                "Mul", [value, constant(f"{name}_per_s", np.float32(1e7))], f"{name}_scaled"
            )
        parts.append(node("Reshape", [value, flat], f"{name}_flat"))
    size = sum(int(np.prod(field["shape"])) for field in manifest["inputs"])
    everything = node("Concat", parts, "everything", axis=1)
    for field in manifest["outputs"]:
        matrix = rng.normal(size=(size, int(np.prod(field["shape"])))).astype(np.float32)
        rows = node(
            "MatMul", [everything, constant(f"w_{field['name']}", matrix)], field["name"] + "_rows"
        )
        shape = constant(f"s_{field['name']}", np.array([-1, *field["shape"]]))
        result = node("Reshape", [rows, shape], field["name"] + "_float")
        node("Cast", [result], field["name"], to=output_type)

    def tensors(fields, kind):
        return [
            helper.make_tensor_value_info(f["name"], kind, ["batch_size", *f["shape"]])
            for f in fields
        ]

    graph = helper.make_graph(
        nodes,
        "toy",
        tensors(manifest["inputs"], TensorProto.FLOAT),
        tensors(manifest["outputs"], output_type),
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    text = json.dumps(manifest, indent=1) if embedded is None else embedded
    if text:
        helper.set_model_props(model, {"xec_jax": text})
    onnx.checker.check_model(model)
    content = model.SerializeToString()
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    outside = {"model": path.name, "sha256": digest, "bytes": len(content)}
    path.with_name(path.name + ".json").write_text(json.dumps(manifest | outside))
    path.with_name(path.name + ".sha256").write_text(f"{digest}  {path.name}\n")
    return path


def write_floats(path, columns, arrays):
    """Writes arrays `[events, ...]` by name as a file of floats.

    Args:
        path: The file.
        columns: Objects with name, shape and, perhaps, unit and branch: `inputs` of a manifest.
        arrays: Values of all columns.
    """
    keys = ("name", "shape", "unit", "branch")
    columns = [{key: column[key] for key in keys if key in column} for column in columns]
    events = len(arrays[columns[0]["name"]])
    rows = [np.asarray(arrays[column["name"]], "<f4").reshape(events, -1) for column in columns]
    with path.open("wb") as stream:
        stream.write(json.dumps({"xec_jax_floats": 1, "columns": columns}).encode() + b"\n")
        stream.write(np.concatenate(rows, axis=1).tobytes())


def read_floats(path):
    """Returns the columns of a file of floats as arrays `[events, ...]` by name, and its header."""
    with path.open("rb") as stream:
        columns = json.loads(stream.readline())["columns"]
        sizes = [int(np.prod(column["shape"])) for column in columns]
        rows = np.fromfile(stream, "<f4").reshape(-1, sum(sizes))
    parts = np.split(rows, np.cumsum(sizes)[:-1], axis=1)
    arrays = {
        column["name"]: part.reshape(-1, *column["shape"])
        for column, part in zip(columns, parts, strict=True)
    }
    return arrays, columns


def photons(events, sensors, seed=0):
    """Inputs of a raw model, with all that counts as invalid."""
    rng = np.random.default_rng(seed)
    npho = rng.lognormal(4, 2, (events, sensors)).astype(np.float32)
    times = rng.normal(2e-8, 1e-8, (events, sensors)).astype(np.float32)
    for values in npho, times:
        values[rng.random(values.shape) < 0.1] = 1e10
        values[rng.random(values.shape) < 0.1] = np.nan
    npho[0], times[0] = 1e10, np.nan  # an event that saw nothing
    return {"npho": npho, "time": times}


def ask_python(model, inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(model)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def assert_equal_answers(found, expected):
    assert list(found) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-5 * np.abs(values).max())


def write_small(folder):
    """Writes a model of few sensors and 20 events for it."""
    write_model(folder / "model.onnx", manifest_of(raw_inputs(SMALL)))
    write_floats(folder / "events.floats", raw_inputs(SMALL), photons(20, SMALL))
