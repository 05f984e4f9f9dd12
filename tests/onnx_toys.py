"""Exported networks small enough to be written by hand, node by node, and files of real data."""

import hashlib
import json

import numpy as np
import onnx
from checking import make_events, write
from onnx import TensorProto, helper, numpy_helper

from xec_jax.config import from_json
from xec_jax.tasks import base

S = 4760
PARTS = ((0, 800), (800, 1600), (1600, 2400), (2400, 3200), (3200, 4092), (4092, S))
"""Sensors whose mean features `evaluating.Linear` sees."""


class Graph:
    """Collects nodes; what it returns are names of values."""

    def __init__(self):
        self.nodes, self.constants = [], []

    def constant(self, value, dtype=np.float32):
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def add(self, kind, *inputs, output=None, **attributes):
        names = [i if isinstance(i, str) else self.constant(i) for i in inputs]
        output = output or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, names, [output], **attributes))
        return output

    def save(self, path, inputs, outputs, facts):
        """Writes the model, its manifest and its checksum, as `xec_jax.export` does."""

        def ports(shapes):
            return [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch_size", *shape])
                for name, shape in shapes.items()
            ]

        graph = helper.make_graph(self.nodes, "toy", ports(inputs), ports(outputs), self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        facts = {
            "inputs": [{"name": k, "shape": list(v)} for k, v in inputs.items()],
            "outputs": [
                {"name": k, "shape": list(v), "scale": 1.0, "slope": 1.0}
                for k, v in outputs.items()
            ],
        } | facts
        helper.set_model_props(model, {"xec_jax": json.dumps(facts)} if facts["format"] else {})
        onnx.checker.check_model(model)
        content = model.SerializeToString()
        path.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        path.with_name(f"{path.name}.sha256").write_text(f"{digest}  {path.name}\n")
        manifest = facts | {"model": path.name, "sha256": digest, "bytes": len(content)}
        path.with_name(f"{path.name}.json").write_text(json.dumps(manifest))
        return path


def facts_of(run, **changes):
    """What an export of a run says of itself."""
    task = base.make_task(from_json((run / "config.json").read_text()))
    record = {k: task.record[k] for k in ("normalization", "branches", "geometry", "detector")}
    facts = {"format": 1, "task": task.name, "part": "network", "raw": True, "tasks": {}}
    if task.name == "regress":
        modules = task.record["modules"].items()
        facts["tasks"] = {name.removeprefix("head_"): meaning for name, meaning in modules}
    return facts | record | changes


def encoded(graph, normalization, npho="npho", time="time"):
    """Photons and seconds as features, written from the formulas of the documentation.

    Returns:
        Names of the features, and of the mask of usable photons.
    """
    n = normalization
    assert (n["npho_scheme"], n["invalid_rule"]) == ("log1p", "positive")
    seen = graph.add("And", graph.add("Greater", npho, 0.0), graph.add("LessOrEqual", npho, 9e9))
    timed = graph.add("And", seen, graph.add("LessOrEqual", graph.add("Abs", time), 9e9))
    light = graph.add("Div", graph.add("Where", seen, npho, 1.0), n["npho_scale"])
    light = graph.add("Div", graph.add("Log", graph.add("Add", light, 1.0)), n["npho_scale2"])
    clock = graph.add("Div", graph.add("Where", timed, time, 0.0), n["time_scale"])
    clock = graph.add("Sub", clock, n["time_shift"])
    light = graph.add("Where", seen, light, n["sentinel_npho"])
    return light, graph.add("Where", timed, clock, n["sentinel_time"]), seen


def linear(path, run, params, *, raw=True, names=("angle", "energy", "timing", "uvwFI"), **changes):
    """Exports the network `evaluating.Linear` of a run, its parameters given."""
    graph, facts = Graph(), facts_of(run, raw=raw, **changes)
    facts["tasks"] = {name: facts["tasks"][name] for name in names}
    zero = next((t["reference"] for t in facts["tasks"].values() if t["reference"]), None)
    if raw:
        light, clock, _ = encoded(graph, facts["normalization"])
        inputs = {"npho": (S,), "time": (S,)} | ({zero: ()} if zero else {})
    else:
        axis = graph.constant([2], np.int64)
        light, clock = (
            graph.add("Squeeze", graph.add("Slice", "input", *ends), axis)
            for ends in ([graph.constant([v], np.int64) for v in (i, i + 1, 2)] for i in (0, 1))
        )
        inputs = {"input": (S, 2)}
    means = []
    for a, b in PARTS:
        for channel in (light, clock):
            ends = [graph.constant([v], np.int64) for v in (a, b, 1)]
            part = graph.add("Slice", channel, *ends)
            means.append(graph.add("ReduceMean", part, axes=[1], keepdims=1))
    features = graph.add("Concat", *means, axis=1)
    outputs = {}
    for name in names:
        meaning = facts["tasks"][name]
        kernel = np.asarray(params[f"head_{name}"]["stem"]["kernel"])
        value = graph.add("MatMul", features, kernel)
        value = graph.add("Mul", value, meaning["std"])
        shape = (kernel.shape[1],) if not raw or kernel.shape[1] > 1 else ()
        output = f"pred_{name}" if raw else f"output_{name}" if len(names) > 1 else "output"
        is_timed = raw and meaning["reference"]
        last = None if is_timed or not shape else output
        value = graph.add("Add", value, meaning["mean"], output=last)
        if is_timed:
            known = graph.add("LessOrEqual", graph.add("Abs", zero), 9e9)
            shift = graph.add("Where", known, graph.add("Mul", zero, 1e9), float("nan"))
            column = graph.add("Unsqueeze", shift, graph.constant([1], np.int64))
            value = graph.add("Add", value, column)
        if not shape:
            graph.add("Squeeze", value, graph.constant([1], np.int64), output=output)
        outputs[output] = shape
    return graph.save(path, inputs, outputs, facts)


def flat_inpainter(path, run, level, *, raw=True, **changes):
    """Exports an inpainter that fills every dead sensor with one normalized count and time."""
    graph, facts = Graph(), facts_of(run, raw=raw, **changes)
    n = facts["normalization"]
    dead = graph.add("Greater", "dead_mask", 0.5)
    if raw:
        _, _, seen = encoded(graph, n)
        dead = graph.add("Or", dead, graph.add("Not", seen))
        level = (
            n["npho_scale"] * np.expm1(level[0] * n["npho_scale2"]),
            (level[1] + n["time_shift"]) * n["time_scale"],
        )
    graph.add("Where", dead, float(level[0]), "npho", output="npho_filled")
    graph.add("Where", dead, float(level[1]), "time", output="time_filled")
    ports = {name: (S,) for name in ("npho", "time", "dead_mask")}
    outputs = {"npho_filled": (S,), "time_filled": (S,)}
    return graph.save(path, ports, outputs, facts | {"channels": ["npho", "time"]})


def flat_autoencoder(path, run, level):
    """Exports an autoencoder that reconstructs the same for all sensors, normalized."""
    graph = Graph()
    hidden = graph.add(
        "Mul", graph.add("Unsqueeze", "hidden_mask", graph.constant([2], np.int64)), 0.0
    )
    nothing = graph.add("Add", graph.add("Mul", "input", 0.0), hidden)
    graph.add("Add", nothing, np.asarray(level, np.float32), output="reconstruction")
    inputs = {"input": (S, 2), "hidden_mask": (S,)}
    return graph.save(path, inputs, {"reconstruction": (S, 2)}, facts_of(run, raw=False))


def write_real(path, n=30, *, first=0, run=430100, drop=(), **changes):
    """Events as `PrepareRealData` writes them: no truth, the reconstruction in its place."""
    events = make_events(n, seed=first, run=(run, run + 1), first=first)
    rng = np.random.default_rng(first + 1)
    for name in [name for name in events if name.endswith("Truth")]:
        del events[name]
    dead = rng.uniform(size=(n, S)) < 0.03
    events["npho"][dead] = 1e10
    events["relative_time"][dead | (rng.uniform(size=(n, S)) < 0.02)] = 1e10
    events["npho"][:, 100:120] = 0.0
    events["npho"][:, 120:140] = -3.0
    events["npho"][0, 200:220], events["npho"][0, 220:240] = np.nan, np.inf
    theta, phi = rng.uniform(60, 120, n), rng.uniform(-60, 60, n)
    events |= {
        "emiAng": np.stack([theta, phi], 1),
        "energyReco": rng.uniform(0.045, 0.058, n),
        "timeReco": rng.normal(0, 2, n),
        "uvwRecoFI": rng.uniform([-24, -67, 0.05], [24, 67, 20], (n, 3)),
        "xyzRecoFI": rng.uniform(-90, 90, (n, 3)),
        "xyzVTX": rng.normal(0, 1, (n, 3)),
        "time_min_used": rng.uniform(-1e-8, 1e-8, n),
    } | changes
    events = {k: np.asarray(v) for k, v in events.items() if k not in drop}
    cast = {k: v.astype(np.float32) if v.dtype.kind == "f" else v for k, v in events.items()}
    return write(path, cast)
