"""Smaller forms of exported networks: close to float32, of the same contract, or refused."""

import json

import numpy as np
import pytest
import uproot

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
import onnx_toys as toys
from evaluating import make_run, small_networks
from onnx import TensorProto, helper, numpy_helper

from xec_jax.errors import CheckpointError, ConfigError, DataError, DiskError
from xec_jax.export import precision, verify
from xec_jax.export.model import OnnxModel
from xec_jax.quantize import main
from xec_jax.train.saved import load_run


@pytest.fixture(scope="module", autouse=True)
def _networks(tmp_path_factory):
    with small_networks(tmp_path_factory.mktemp("programs")):
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory, _networks):
    """A regression as `export --raw` writes it, linear in the mean features of faces."""
    run = make_run(tmp_path_factory.mktemp("runs") / "reg", "regress")
    path = tmp_path_factory.mktemp("raw") / "raw.onnx"
    return toys.linear(path, run, load_run(run).params)


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    return toys.write_real(tmp_path_factory.mktemp("data") / "Data_430100-430101.root", 70)


def quantize(model, events, to, output, *words):
    words = map(str, (model, "--to", to, "--events", events, "--output", output, *words))
    return main([*words, "--n_events", "64"])


@pytest.mark.parametrize(("to", "most"), [("float16", 2e-3), ("int8", 3e-2)])
def test_a_smaller_form_answers_nearly_the_same(model, events, to, most, tmp_path, capsys):
    output = tmp_path / "small.onnx"
    assert quantize(model, events, to, output) == 0
    assert "events/s in place of" in capsys.readouterr().out
    old, new = OnnxModel(model), OnnxModel(output)
    assert (new.inputs, new.outputs) == (old.inputs, old.outputs)
    assert new.facts["precision"] == to
    assert new.facts["verified"]["against"] == old.sha256
    assert new.facts["verified"]["events"] == 32
    manifest = json.loads((tmp_path / "small.onnx.json").read_text())
    assert manifest["sha256"] == new.sha256
    with uproot.open(events) as file:
        rows = file["tree"].arrays(library="np", entry_start=32, entry_stop=64)
    branches = {"npho": "npho", "time": "relative_time", "time_min_used": "time_min_used"}
    inputs = {name: rows[branches[name]] for name in old.inputs}
    table = precision.differences(old.facts["outputs"], new(inputs), old(inputs))
    assert table == new.facts["verified"]["differences"], "of those that did not calibrate"
    assert 0 < max(row["largest"] for row in table.values()) < most
    assert all(row["68"] <= row["largest"] for row in table.values())


def test_many_photons_are_no_infinity_in_float16(model, events, tmp_path):
    quantize(model, events, "float16", tmp_path / "half.onnx")
    network = OnnxModel(tmp_path / "half.onnx")
    inputs = {name: np.full((1, *shape), 1e-8) for name, shape in network.inputs.items()}
    inputs["npho"] = np.full((1, toys.S), 3e6)
    assert all(np.isfinite(values).all() for values in network(inputs).values())


def product(weight):
    """A model y = x @ weight of (b 3)."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 3]) for name in "xy")
    weights = [numpy_helper.from_array(np.float32(weight) * np.eye(3, dtype=np.float32), "w")]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], weights
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_float16_equals_numpy():
    small = precision.to_float16(product(0.1))
    onnx.checker.check_model(small)
    x = np.float32([[1.0, 2.0, 3.0001]])
    (found,) = verify.session_of(small.SerializeToString(), 1).run(None, {"x": x})
    expected = x.astype(np.float16) * np.float16(0.1)
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert {tensor.data_type for tensor in small.graph.initializer} == {TensorProto.FLOAT16}


def test_what_float16_cannot_hold_is_refused():
    with pytest.raises(CheckpointError, match=r"weight 'w' reaches 70000"):
        precision.to_float16(product(7e4))
    found = {"y": np.float32([[1.0], [np.inf]])}
    exact = {"y": np.float32([[1.0], [2.0]])}
    with pytest.raises(CheckpointError, match="'y' of event 1 is no number"):
        precision.differences([{"name": "y", "scale": 1.0, "slope": 1.0}], found, exact)


def test_refusals_leave_nothing(model, events, tmp_path):
    few = toys.write_real(tmp_path / "Few_430100-430101.root", 20)
    output = tmp_path / "made" / "small.onnx"
    output.parent.mkdir()
    with pytest.raises(DataError, match="20 events"):
        quantize(model, few, "int8", output)
    with pytest.raises(ConfigError, match=r"ends in \.onnx"):
        quantize(model, events, "int8", output.with_suffix(".bin"))
    with pytest.raises(DiskError, match="there is no folder"):
        quantize(model, events, "int8", output.parent / "none" / "small.onnx")
    with pytest.raises(ConfigError, match="is an input as well"):
        quantize(model, events, "int8", model, "--overwrite")
    assert not list(output.parent.iterdir())
    quantize(model, events, "float16", output)
    with pytest.raises(ConfigError, match="exists"):
        quantize(model, events, "float16", output)
    with pytest.raises(CheckpointError, match="in float16 already"):
        quantize(output, events, "int8", tmp_path / "twice.onnx")
    assert not (tmp_path / "twice.onnx").exists()
