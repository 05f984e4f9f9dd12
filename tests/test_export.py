"""What an exported file has to be, checked without the exporter's own environment."""

import contextlib
import hashlib
import json

import jax
import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
import onnxruntime
from onnx import TensorProto, helper

from xec_jax import config as configs
from xec_jax.errors import CheckpointError, ConfigError, DiskError
from xec_jax.export import environment, fusions, manifest, proof, verify
from xec_jax.export.__main__ import main
from xec_jax.export.builder import OPSETS, Job, read_answer, save_job
from xec_jax.export.graphs.base import Graph, Port, make_graph
from xec_jax.tasks import base

PORT = {"name": "y", "scale": 2.0, "slope": 0.5}


@contextlib.contextmanager
def enabled_x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="module")
def runs():
    """Config and parameters of a small network per task, with responses that are not 0."""
    found = {}
    for name in ("regress", "mae", "inpaint"):
        data = ("--config.data.train=x", "--config.data.valid=x")
        config = configs.load(f"configs/{name}.py:tiny", [*data, "--config.model.encoder_dim=32"])
        task = base.make_task(config)
        batch, rng = base.example_batch(task.spec, 1), np.random.default_rng(1)
        shapes = jax.eval_shape(task.init, jax.random.PRNGKey(0), batch)
        params = jax.tree.map(
            lambda leaf, rng=rng: rng.normal(0, 0.1, leaf.shape).astype(np.float32), shapes
        )
        found[name] = config, params
    return found


@pytest.mark.parametrize("task", ["regress", "mae", "inpaint"])
def test_the_portable_form_is_that_of_the_training(runs, task):
    config, params = runs[task]
    graphs = [make_graph(config, raw=True, portable=p, precision="float64") for p in (True, False)]
    events = graphs[0].events(np.random.default_rng(3), 7)
    assert list(events) == [port.name for port in graphs[0].inputs]
    exact = jax.tree.map(lambda leaf: leaf.astype(np.float64), (params, events))
    with enabled_x64():
        found = [jax.device_get(jax.jit(graph.apply)(*exact)) for graph in graphs]
    graph = graphs[0]
    for port in graph.outputs:
        assert found[0][port.name].shape == (7, *port.shape)
        assert found[0][port.name].dtype == np.float64
    worst = proof.difference(manifest.ports_of(graph.outputs), *found)
    assert 0 <= worst.size < 1e-12, proof.describe(worst)
    if task == "inpaint":
        check_living(events, found[0]["npho_filled"])


def check_living(events, filled):
    """A raw inpainter leaves living sensors alone, and finds a number for all others."""
    alive = (events["npho"] > 0) & (events["npho"] <= 9e9) & (events["dead_mask"] == 0)
    assert 0 < alive.sum() < alive.size
    assert np.array_equal(filled[alive], events["npho"][alive])
    assert np.isfinite(filled).all()


def test_the_names_are_those_of_the_analyzer(runs):
    config, _ = runs["regress"]
    names = [port.name for port in make_graph(config).outputs]
    assert names == ["output_angle", "output_energy", "output_timing", "output_uvwFI"]
    assert [p.name for p in make_graph(config, tasks=["energy"]).outputs] == ["output"]
    graph = make_graph(config, raw=True, tasks=["energy"])
    assert [p.name for p in graph.inputs] == ["npho", "time"]
    assert [p.name for p in graph.outputs] == ["pred_energy"]
    assert [p.name for p in make_graph(config, raw=True).inputs][2:] == ["time_min_used"]
    assert [p.shape for p in make_graph(config, "encoder").outputs] == [(6, 32)]
    config, _ = runs["inpaint"]
    graph = make_graph(config, raw=True)
    assert [p.name for p in graph.inputs] == ["npho", "time", "dead_mask"]
    assert graph.outputs[0].name == "npho_filled"


def test_what_cannot_be_exported_is_named(runs):
    config, _ = runs["regress"]
    with pytest.raises(ConfigError, match="angel"):
        make_graph(config, tasks=["angel"])
    with pytest.raises(ConfigError, match="--part is 'head'"):
        make_graph(config, "head")
    with pytest.raises(ConfigError, match="--tasks"):
        make_graph(runs["mae"][0], tasks=["energy"])


def test_differences_are_measured_in_units_of_the_output():
    expected = {"y": np.float32([[1.0, 4.0], [0.0, np.nan]])}
    found = {"y": np.float32([[1.0, 4.4], [0.0, np.nan]])}
    worst = proof.difference([PORT], found, expected, first=10)
    assert worst[1:3] == ("y", 10)
    assert worst.size == pytest.approx(0.4 / (2 + 0.5 * 4), rel=1e-6)
    found["y"][1, 1] = 0.0
    worst = proof.difference([PORT], found, expected)
    assert worst.size == np.inf
    assert worst.event == 1


def linear(op="Mul", *, n=1, **more):
    """A model y = op(x, 2) of (b 3)."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 3]) for name in ("x", "y"))
    two = helper.make_tensor("two", TensorProto.FLOAT, [1], [2.0])
    node = helper.make_node(op, ["x", "two"][: n + 1], ["y"], **more)
    graph = helper.make_graph([node], "g", [x], [y], [two])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def proof_of(factor):
    x = np.random.default_rng(0).normal(size=(proof.N_EVENTS, 3)).astype(np.float32)
    return proof.Proof({"x": x}, {"y": np.float32(factor) * x})


def toy_graph(apply):
    events = lambda g, n: {"x": g.normal(size=(n, 3)).astype(np.float32)}  # noqa: E731
    return Graph((Port("x", (3,)),), (Port("y", (3,)),), apply, events)


def test_a_network_that_magnifies_roundings_is_judged_by_that():
    """A large number that is added and taken away again leaves its last bit as an error."""

    def through(large):
        def apply(params, inputs):
            return {"y": (inputs["x"] * params["a"] + large * params["b"]) - large * params["b"]}

        return toy_graph(apply)

    params = {"a": np.float32(1.1), "b": np.float32(1.0)}
    calm = proof.make_proof(through(0.0), through(0.0), params, chunk=72)
    assert 0 < calm.rounding < 1e-7
    assert calm.limit == proof.LIMIT
    assert calm.outputs["y"].dtype == np.float64
    shaky = proof.make_proof(through(1000.0), through(1000.0), params, chunk=72)
    ulp = float(np.spacing(np.float32(1000)))
    assert ulp / 4 < shaky.rounding < ulp
    assert shaky.limit == 2 * shaky.rounding
    with pytest.raises(CheckpointError, match="in float32, JAX is off by"):
        proof.make_proof(through(1e5), through(1e5), params, chunk=72)
    assert jax.numpy.zeros(1).dtype == np.float32, "JAX is as it was"


def test_a_proof_survives_its_file(tmp_path):
    saved = proof_of(3)._replace(rounding=2e-5)
    proof.save_proof(saved, tmp_path / "proof.npz")
    read = proof.load_proof(tmp_path / "proof.npz")
    assert read.rounding == saved.rounding
    assert np.array_equal(read.inputs["x"], saved.inputs["x"])
    assert np.array_equal(read.outputs["y"], saved.outputs["y"])


def test_a_file_that_does_the_same_is_accepted():
    model = linear()
    verify.check_model(model)
    facts = verify.compare(model.SerializeToString(), [PORT], proof_of(2))
    assert facts["largest_difference"] == 0
    assert facts["events"] == 72


def test_a_file_that_differs_is_refused_with_the_place():
    wrong = proof_of(2)
    wrong.outputs["y"][40, 1] += 1.0
    with pytest.raises(CheckpointError, match=r"output 'y' of event 40.*batch 64"):
        verify.compare(linear().SerializeToString(), [PORT], wrong)


def test_a_damaged_file_is_refused():
    data = linear().SerializeToString()
    with pytest.raises(CheckpointError, match="refuses the file"):
        verify.compare(data[: len(data) // 2], [PORT], proof_of(2))


def test_operators_that_are_wrong_in_silence_are_refused():
    with pytest.raises(CheckpointError, match="random numbers"):
        verify.check_model(linear("RandomNormalLike", n=0))
    model = linear()
    shape = helper.make_tensor("i", TensorProto.INT64, [1, 1], [0])
    model.graph.initializer.append(shape)
    node = helper.make_node("ScatterND", ["x", "i", "x"], ["z"], reduction="add")
    model.graph.node.append(node)
    with pytest.raises(CheckpointError, match="data race"):
        verify.check_model(model)
    model = linear()
    model.opset_import.append(helper.make_opsetid("far.away", 1))
    model.graph.node[0].domain = "far.away"
    with pytest.raises(CheckpointError, match=r"far\.away"):
        verify.check_model(model)


def gelu_model(factor, *, first="x", second="c"):
    """A model y = 0.5 x (1 + erf(x factor)) of (b 3)."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 3]) for name in "xy")
    constants = {"c": factor, "one": 1.0, "half": 0.5}
    nodes = [
        helper.make_node("Mul", [first, second], ["scaled"]),
        helper.make_node("Erf", ["scaled"], ["e"]),
        helper.make_node("Add", ["e", "one"], ["f"]),
        helper.make_node("Mul", ["x", "half"], ["h"]),
        helper.make_node("Mul", ["h", "f"], ["y"]),
    ]
    weights = [onnx.numpy_helper.from_array(np.float32(v), k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("order", [("x", "c"), ("c", "x")])
def test_gelus_are_joined_and_stay_the_same(order, tmp_path):
    plain, changed = (gelu_model(0.5**0.5, first=order[0], second=order[1]) for _ in range(2))
    assert fusions.divide_before_erf(changed) == 1
    assert fusions.divide_before_erf(gelu_model(0.7)) == 0
    onnx.checker.check_model(changed)
    x = np.linspace(-6, 6, 300, dtype=np.float32).reshape(-1, 3)
    found = [
        verify.session_of(m.SerializeToString(), 1).run(None, {"x": x})[0] for m in (plain, changed)
    ]
    np.testing.assert_allclose(*found, atol=4e-7)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "joined.onnx")
    onnxruntime.InferenceSession(changed.SerializeToString(), options)
    joined = onnx.load(tmp_path / "joined.onnx").graph.node
    assert [node.op_type for node in joined] == ["Gelu"]


def test_weights_outside_of_the_file_are_refused():
    model = linear()
    tensor = onnx.numpy_helper.from_array(np.float32([2.0]), "two")
    model.graph.initializer[0].CopyFrom(tensor)
    tensor = model.graph.initializer[0]
    onnx.external_data_helper.set_external_data(tensor, "elsewhere")
    with pytest.raises(CheckpointError):
        verify.check_model(model)


def test_a_model_and_its_sidecars_agree(tmp_path):
    port = Port("y", (3,), "GeV")
    graph = Graph((port,), (port,), lambda p, i: i, lambda g, n: {}, {"branches": {}})
    facts = manifest.facts_of(graph, {"task": "toy"})
    made = manifest.publish(b"model", facts, tmp_path / "a.onnx")
    assert json.loads((tmp_path / "a.onnx.json").read_text()) == made
    digest = hashlib.sha256(b"model").hexdigest()
    assert (tmp_path / "a.onnx.sha256").read_text() == f"{digest}  a.onnx\n"
    assert made["outputs"][0] == {
        **{"name": "y", "shape": [3], "unit": "GeV", "about": "", "scale": 1.0, "slope": 1.0},
        "dtype": "float32",
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("a.onnx", "a.onnx.json", "a.onnx.sha256")
    ]


def test_outputs_are_looked_at_before_the_work(tmp_path):
    words = ["--run", str(tmp_path), "--output"]
    with pytest.raises(DiskError, match="there is no folder"):
        main([*words, str(tmp_path / "none" / "a.onnx")])
    (tmp_path / "a.onnx.json").touch()
    with pytest.raises(ConfigError, match=r"a\.onnx\.json exists"):
        main([*words, str(tmp_path / "a.onnx")])
    fresh = [*words, str(tmp_path / "b.onnx"), "--saved_model"]
    with pytest.raises(DiskError, match="there is no folder"):
        main([*fresh, str(tmp_path / "none" / "saved")])
    with pytest.raises(ConfigError, match="--wheelhouse without --setup"):
        main([*words, str(tmp_path / "b.onnx"), "--wheelhouse", "x"])
    with pytest.raises(ConfigError, match="is no folder that exists"):
        main(["--setup", "--wheelhouse", str(tmp_path / "none")])
    with pytest.raises(ConfigError, match="--setup alone"):
        main(["--setup", *words, str(tmp_path / "b.onnx")])


def test_errors_of_the_other_environment_come_back(tmp_path):
    path = tmp_path / "job.json"
    save_job(Job("r", 1, True, "network", False, (), "jax2tf", 17, {}, "p", "o"), path)
    error = {"kind": "CheckpointError", "found": "it differs", "expected": "", "remedy": "again"}
    path.with_suffix(".answer").write_text(json.dumps({"error": error}))
    with pytest.raises(CheckpointError, match=r"it differs\n  remedy:   again"):
        read_answer(path)


def test_an_environment_without_packages_says_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv(environment.FOLDER, str(tmp_path))
    empty = tmp_path / "wheels"
    empty.mkdir()
    with pytest.raises(ConfigError, match="pip download"):
        environment.set_up("jax2tf", empty)
    assert not environment.location("jax2tf").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--run", "r"], "no output"),
        (["--run", "r", "--output", "a.pb"], r"ends in \.onnx"),
        (["--run", "r", "--output", "a.onnx", "--opset", "20"], "13 to 18"),
        (["--run", "r", "--output", "a.onnx", "--backend", "jax2onnx", "--opset", "17"], "18 to"),
    ],
)
def test_options_that_cannot_work(words, said):
    assert OPSETS
    with pytest.raises(ConfigError, match=said):
        main(words)
