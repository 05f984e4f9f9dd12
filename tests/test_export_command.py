"""The export command from beginning to end, in the exporters' own environments.

They weigh gigabytes and are made by `python -m xec_jax.export --setup`; without them: skipped.
"""

import json

import jax
import numpy as np
import pytest
import uproot

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnxruntime as ort
from commands import run as command
from cpp_models import read_floats, write_floats
from onnx_toys import write_real

from xec_jax import config as configs
from xec_jax.export import environment, proof
from xec_jax.predict import main as predict
from xec_jax.tasks import base
from xec_jax.train.saved import write_run

pytest_plugins = ["cpp_program"]

STATISTICS = {
    "angle": ((90.0, 0.0), (20.0, 30.0)),
    "energy": ((0.04,), (0.01,)),
    "timing": ((0.0,), (5.0,)),
    "uvwFI": ((0.0, 0.0, 5.0), (10.0, 30.0, 5.0)),
}


def needs(backend):
    if not (environment.location(backend) / "complete").exists():
        pytest.skip(f"no environment: python -m xec_jax.export --setup --backend {backend}")


@pytest.fixture(scope="module")
def regressor(tmp_path_factory):
    """A run of the smallest regression, with random parameters and real statistics."""
    config = configs.load(
        "configs/regress.py:tiny", ["--config.data.train=x", "--config.data.valid=x"]
    )
    with config.unlocked():
        for name, (mean, std) in STATISTICS.items():
            config.model.affine[name].update({"mean": mean, "std": std})
    task, rng = base.make_task(config), np.random.default_rng(5)
    shapes = jax.eval_shape(task.init, jax.random.PRNGKey(0), base.example_batch(task.spec, 1))
    params = jax.tree.map(lambda s: rng.normal(0, 0.1, s.shape).astype(np.float32), shapes)
    folder = tmp_path_factory.mktemp("runs") / "regress"
    write_run(folder, config, params, task, origin={"by": "a test"})
    return folder


@pytest.fixture(scope="module")
def exported(regressor, caches, tmp_path_factory):
    """The files of both backends, as far as their environments are there, and a SavedModel."""
    folder, found = tmp_path_factory.mktemp("exported"), {}
    for backend in ("jax2tf", "jax2onnx"):
        if not (environment.location(backend) / "complete").exists():
            continue
        path = folder / f"{backend}.onnx"
        words = ["--run", regressor, "--raw", "--output", path, "--backend", backend]
        words += ["--saved_model", folder / "saved"] if backend == "jax2tf" else []
        code, out, err = command(caches, *words, command="export")
        assert code == 0, err
        assert "verified: 72 events" in out
        found[backend] = path
    return found


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    """A file with invalid sensors in it."""
    return write_real(tmp_path_factory.mktemp("data") / "Data_430100-430101.root", 40)


def answers(model, inputs, threads=1):
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def inputs_of(path):
    with uproot.open(path) as file:
        tree = file["tree"].arrays(["npho", "relative_time", "time_min_used"], library="np")
    names = {"npho": "npho", "time": "relative_time", "time_min_used": "time_min_used"}
    return {k: np.asarray(tree[v], np.float32) for k, v in names.items()}


def ports(model):
    return json.loads(model.with_name(f"{model.name}.json").read_text())["outputs"]


def predictions(output, *words):
    predict([*map(str, words), "--output", str(output), "--layout", "val_tree"])
    with uproot.open(output) as file:
        return file["val_tree"].arrays(library="np")


def test_the_file_does_what_loader_and_network_do(regressor, exported, events, tmp_path):
    needs("jax2tf")
    common = ("--input", events, "--batch_size", 16)
    expected = predictions(tmp_path / "run.root", "--run", regressor, *common)
    found = predictions(tmp_path / "onnx.root", "--onnx", exported["jax2tf"], *common)
    assert list(found) == list(expected)
    scales = {"theta": 20.0, "phi": 30.0, "energy": 0.01, "timing": 5.0, "u": 10, "v": 30, "w": 5}
    compared = []
    for name, values in expected.items():
        scale = scales.get(name.removeprefix("pred_"))
        if name.startswith("pred_") and scale:
            error = np.abs(found[name] - values) / (scale + np.abs(values))
            assert error.max() < 2e-5, name  # of float32 files, beside that of the network
            compared.append(name)
        elif not name.startswith("pred_") and name != "opening_angle":
            np.testing.assert_array_equal(found[name], values, err_msg=name)
    assert len(compared) >= 4


def test_cpp_and_python_say_the_same(exported, cpp_programs, events, tmp_path):
    needs("jax2tf")
    model, inputs = exported["jax2tf"], inputs_of(events)
    manifest = json.loads(model.with_name(f"{model.name}.json").read_text())
    write_floats(tmp_path / "events.floats", manifest["inputs"], inputs)
    output = tmp_path / "out.floats"
    words = ("--output", output, "--batch", 7, "--threads", 2)
    cpp_programs.run("xec_infer", model, tmp_path / "events.floats", *words)
    found, _ = read_floats(output)
    expected = answers(model, inputs)
    shaped = {name: np.reshape(found[name], expected[name].shape) for name in expected}
    worst = proof.difference(ports(model), shaped, expected)
    assert worst.size < 1e-5, proof.describe(worst)


def test_two_backends_say_the_same(exported, events):
    needs("jax2tf")
    needs("jax2onnx")
    inputs = inputs_of(events)
    first, second = (answers(exported[backend], inputs) for backend in ("jax2tf", "jax2onnx"))
    worst = proof.difference(ports(exported["jax2tf"]), second, first)
    assert worst.size < 1e-5, proof.describe(worst)


def test_a_saved_model_is_there(exported):
    """It was compared with JAX, or the command would have failed."""
    needs("jax2tf")
    folder = exported["jax2tf"].parent
    assert (folder / "saved" / "saved_model.pb").exists()
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_flow_gives_density_and_muons(caches, tmp_path):
    """Muons made of noise by the file have the density that JAX says they have."""
    needs("jax2tf")
    pytest.importorskip("distrax")
    from xec_jax.tasks.muon_flow import Experiment

    config = configs.load("configs/muon_flow.py:tiny", ["--config.data.train=x"])
    experiment, rng = Experiment(config), np.random.default_rng(3)
    task = base.make_task(config)
    shapes = jax.eval_shape(task.init, jax.random.PRNGKey(0), base.example_batch(task.spec, 1))
    params = jax.tree.map(lambda s: rng.normal(0, 0.1, s.shape).astype(np.float32), shapes)
    write_run(tmp_path / "flow", config, params, task, origin={"by": "a test"})
    path = tmp_path / "sample.onnx"
    words = ["--run", tmp_path / "flow", "--part", "sample", "--output", path]
    code, _, err = command(caches, *words, command="export")
    assert code == 0, err
    conditions, noise = (rng.normal(size=(50, n)).astype(np.float32) for n in (4, 2))
    found = answers(path, {"noise": noise, "conditions": conditions})
    variables, method = {"params": params["flow"]}, experiment.flow.noise_and_log_prob
    back, _ = experiment.flow.apply(variables, found["features"], conditions, method=method)
    np.testing.assert_allclose(back, noise, atol=1e-4)
    assert found["multiplicity"].shape == (50, 2)
    manifest = json.loads(path.with_name(f"{path.name}.json").read_text())
    assert manifest["features"] == ["energy", "radius"]
