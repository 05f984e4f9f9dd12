"""`predict --onnx`: the same numbers as the run it was exported from, and readable refusals."""

import json
import subprocess
import sys

import numpy as np
import pytest
import uproot

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx_toys as toys
from evaluating import make_run, small_networks, write_events

from xec_jax.errors import CheckpointError, ConfigError, DataError, ShapeError
from xec_jax.export.model import OnnxModel
from xec_jax.predict import main
from xec_jax.train.saved import load_run
from xec_jax.transforms import SensorTransform

N = 30
S = toys.S


@pytest.fixture(scope="module", autouse=True)
def _networks(tmp_path_factory):
    with small_networks(tmp_path_factory.mktemp("programs")):
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory, _networks):
    return make_run(tmp_path_factory.mktemp("runs") / "reg", "regress")


@pytest.fixture(scope="module")
def params(run):
    return load_run(run).params


@pytest.fixture(scope="module")
def model(run, params, tmp_path_factory):
    return toys.linear(tmp_path_factory.mktemp("raw") / "raw.onnx", run, params)


@pytest.fixture(scope="module")
def normalized(run, params, tmp_path_factory):
    folder = tmp_path_factory.mktemp("normalized")
    return toys.linear(folder / "normalized.onnx", run, params, raw=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return toys.write_real(tmp_path_factory.mktemp("data") / "Data_430100-430101.root", N)


def predict(output, *words):
    main([*map(str, words), "--output", str(output), "--batch_size", "16"])
    with uproot.open(output) as file:
        (tree,) = (name for name in file.keys(cycle=False) if name != "metadata")
        return tree, file[tree].arrays(library="np"), json.loads(str(file["metadata"]))


@pytest.fixture(scope="module")
def expected(run, data, tmp_path_factory):
    """What the run says about the same events, by the loader and the network in JAX."""
    words = ("--run", run, "--input", data, "--layout", "val_tree")
    return predict(tmp_path_factory.mktemp("out") / "run.root", *words)


def alike(found, expected):
    assert list(found) == list(expected)
    computed = {"opening_angle", *(name for name in expected if name.startswith("pred_"))}
    for name in expected:
        close = {"rtol": 2e-5, "atol": 2e-5} if name in computed else {"rtol": 0}
        np.testing.assert_allclose(found[name], expected[name], err_msg=name, **close)


@pytest.mark.parametrize("kind", ["model", "normalized"])
def test_the_file_says_what_loader_and_network_say(kind, request, data, expected, tmp_path, capsys):
    """With dead sensors, times that are missing, zeros, negative counts, NaN and infinity."""
    path = request.getfixturevalue(kind)
    tree, arrays, notes = predict(tmp_path / "o.root", "--onnx", path, "--input", data)
    assert (tree, len(arrays["run_id"])) == ("val_tree", N)
    alike(arrays, expected[1])
    assert np.ptp(arrays["pred_energy"]) > 1e-5  # it looks at the events
    assert notes["sha256"] == toys.hashlib.sha256(path.read_bytes()).hexdigest()
    assert notes["units"]["pred_u"] == "cm"
    assert notes["record"]["normalization"] == expected[2]["record"]["normalization"]
    assert notes["facts"]["raw"] == (kind == "model")
    assert "CPUExecutionProvider" in capsys.readouterr().out


def test_simulated_events_in_both_layouts(run, model, tmp_path):
    """There, the references are the truth, and `tree` is the file of a run."""
    data = write_events(tmp_path / "mc.root", 20)
    words = ("--input", data, "--layout")
    for layout in ("tree", "val_tree"):
        found = predict(tmp_path / "o.root", "--onnx", model, *words, layout, "--overwrite")
        wanted = predict(tmp_path / "r.root", "--run", run, *words, layout, "--overwrite")
        assert found[0] == wanted[0] == layout
        alike(found[1], wanted[1])
        assert found[2]["units"].items() >= {"pred_energy": "GeV", "true_energy": "GeV"}.items()
    truth = content(data)
    np.testing.assert_array_equal(found[1]["energy_truth"], truth["energyTruth"])
    np.testing.assert_array_equal(found[1]["true_timing"], truth["timeTruth"])
    np.testing.assert_array_equal(found[1]["y_truth"], truth["xyzTruth"][:, 1])


def content(path):
    with uproot.open(path) as file:
        return file["tree"].arrays(library="np")


def test_the_events_are_never_replaced(model, data):
    before = data.read_bytes()
    with pytest.raises(ConfigError, match="is an input as well"):
        predict(data, "--onnx", model, "--input", data, "--overwrite")
    assert data.read_bytes() == before


def test_a_single_task_has_its_name_from_the_metadata(run, params, data, expected, tmp_path):
    path = toys.linear(tmp_path / "energy.onnx", run, params, raw=False, names=("energy",))
    _, arrays, _ = predict(tmp_path / "o.root", "--onnx", path, "--input", data)
    np.testing.assert_allclose(arrays["pred_energy"], expected[1]["pred_energy"], rtol=2e-5)
    assert "pred_theta" not in arrays
    assert "opening_angle" not in arrays
    assert "true_theta" not in arrays


def test_forms_of_heads(run, tmp_path, data):
    """Logarithms, likelihoods and quantiles come out as predictions of runs do."""
    normal = {"form": "normal", "log_transform": True, "reference": None, "mean": [], "std": []}
    tasks = {
        "energy": normal,
        "timing": {**normal, "form": [0.1, 0.5, 0.9], "log_transform": False},
        "n_gamma": {**normal, "form": "class", "log_transform": False},
    }
    graph = toys.Graph()
    start = graph.add("ReduceMean", graph.add("Mul", "input", 0.0), axes=[1, 2], keepdims=0)
    start = graph.add("Unsqueeze", start, graph.constant([1], np.int64))
    values = {
        "energy": [np.log(0.05), np.log(0.01)],
        "timing": [1.0, 2.0, 4.0],
        "n_gamma": [0.0, 3.0, 0.0, 0.0, 0.0],
    }
    for name, value in values.items():
        graph.add("Add", start, np.float32(value), output=f"output_{name}")
    facts = toys.facts_of(run, raw=False, tasks=tasks)
    outputs = {f"output_{name}": (len(value),) for name, value in values.items()}
    path = graph.save(tmp_path / "m.onnx", {"input": (S, 2)}, outputs, facts)
    _, arrays, _ = predict(tmp_path / "o.root", "--onnx", path, "--input", data)
    columns = {"pred_energy": 0.05, "pred_energy_sigma": 0.05 * 0.1, "pred_timing": 2.0}
    columns |= {"pred_timing_low": 1.0, "pred_timing_high": 4.0, "pred_n_gamma": 1.0}
    for name, value in columns.items():
        np.testing.assert_allclose(arrays[name], value, rtol=1e-5, err_msg=name)


def test_values_in_place_of_the_metadata(run, params, normalized, data, tmp_path, caplog):
    """They count, with a warning each; equal ones are no news."""
    other = SensorTransform(npho_scale=500.0, npho_scale2=3.0, time_scale=1e-7, time_shift=-0.4,
                            sentinel_time=-2.0)  # fmt: skip
    words = ["--npho_scale", 500, "--npho_scale2", 3, "--time_scale", 1e-7]
    words += ["--time_shift", -0.4, "--sentinel_value", -2]
    start = ("--onnx", normalized, "--input", data)
    _, found, notes = predict(tmp_path / "a.root", *start, *words)
    for name in ("npho_scale", "npho_scale2", "time_scale", "time_shift", "sentinel_value"):
        assert caplog.text.count(f"--{name} ") == 1
    assert notes["record"]["normalization"] == other.as_dict()
    assert notes["overrides"]["sentinel_value"] == -2
    changed = toys.linear(tmp_path / "other.onnx", run, params, normalization=other.as_dict())
    _, wanted, _ = predict(tmp_path / "b.root", "--onnx", changed, "--input", data)
    alike(found, wanted)
    caplog.clear()
    predict(tmp_path / "c.root", *start, "--npho_scale", 1000, "--time_branch", "relative_time")
    assert not [r for r in caplog.records if "in place of" in r.getMessage()]


def test_another_branch(normalized, model, data, tmp_path, caplog):
    events = content(data)
    events["mine"] = events.pop("npho")
    toys.write(tmp_path / "mine.root", events)
    words = ("--input", tmp_path / "mine.root", "--npho_branch", "mine")
    for number, path in enumerate((normalized, model)):
        _, found, _ = predict(tmp_path / f"{number}.root", "--onnx", path, *words)
        _, wanted, _ = predict(tmp_path / f"{number}w.root", "--onnx", path, "--input", data)
        alike(found, wanted)
    assert "--npho_branch mine in place of npho" in caplog.text


def test_a_raw_model_has_its_own_normalization(model, data, tmp_path):
    with pytest.raises(ConfigError, match=r"normalizes by itself, with time_shift -0\.46") as error:
        predict(tmp_path / "o.root", "--onnx", model, "--input", data, "--time_shift", 0.5)
    assert "without --raw" in error.value.remedy
    assert not list(tmp_path.iterdir())


def test_options_that_are_about_something_else(run, model, data, tmp_path):
    def refused(*words):
        with pytest.raises(ConfigError) as error:
            predict(tmp_path / "o.root", "--input", data, *words)
        return str(error.value)

    assert "--npho_scale" in refused("--run", run, "--npho_scale", 3)
    assert "--mc_dropout" in refused("--onnx", model, "--mc_dropout", 4)
    assert "--step" in refused("--onnx", model, "--step", 4)
    assert "no list" in refused("--onnx", model, "--run_number", 430000)
    with pytest.raises(SystemExit):
        predict(tmp_path / "o.root", "--input", data, "--run", run, "--onnx", model)


def test_dead_channels_are_left_out(run, model, data, tmp_path):
    path = tmp_path / "dead.txt"
    path.write_text("\n".join(map(str, range(900, 1500))))
    words = ("--input", data, "--layout", "val_tree", "--dead_channels", path)
    _, found, notes = predict(tmp_path / "a.root", "--onnx", model, *words)
    _, wanted, _ = predict(tmp_path / "b.root", "--run", run, *words)
    alike(found, wanted)
    assert notes["dead_channels"]["per_face"]["all events"]["inner"] == 600


def test_autoencoders_and_inpainters_have_generic_columns(data, tmp_path):
    folder = make_run(tmp_path / "mae", "mae")
    path = toys.flat_autoencoder(tmp_path / "mae.onnx", folder, (0.1, 0.4))
    tree, arrays, _ = predict(tmp_path / "a.root", "--onnx", path, "--input", data)
    assert (tree, set(arrays)) == ("tree", {"run", "event", "n_valid", "reconstruction"})
    np.testing.assert_allclose(arrays["reconstruction"], np.full((N, S, 2), [0.1, 0.4]), rtol=1e-6)
    folder = make_run(tmp_path / "inp", "inpaint")
    npho = content(data)["npho"]
    valid = (npho > 0) & (npho <= 9e9)
    level = 1000 * np.expm1(0.1 * 4.08)
    for kind in (True, False):
        path = toys.flat_inpainter(tmp_path / f"{kind}.onnx", folder, (0.1, 0.4), raw=kind)
        tree, arrays, notes = predict(tmp_path / f"{kind}.root", "--onnx", path, "--input", data)
        assert set(arrays) == {"run", "event", "n_valid", "npho_filled", "time_filled"}
        wanted = np.where(valid, npho, level)
        np.testing.assert_allclose(arrays["npho_filled"], wanted, rtol=1e-5)
        np.testing.assert_array_equal(arrays["npho_filled"][valid], npho[valid])
        assert notes["units"]["npho_filled"] == "photons"
    words = ("--onnx", path, "--input", data, "--layout", "val_tree")
    with pytest.raises(ConfigError, match="predicts npho_filled, time_filled"):
        predict(tmp_path / "o.root", *words)


def test_networks_without_times(run, data, tmp_path):
    """They ask for no branch of times, and normalized they see no valid one."""
    branches = {"npho": "npho", "time": None}
    tasks = {"energy": toys.facts_of(run)["tasks"]["energy"]}
    npho = content(data)["npho"]
    for raw in (True, False):
        graph = toys.Graph()
        facts = toys.facts_of(run, raw=raw, tasks=tasks, branches=branches)
        if raw:
            seen = graph.add("Less", "npho", 9e9)
            light = graph.add("Where", seen, "npho", 0.0)
            graph.add("ReduceMean", light, axes=[1], keepdims=0, output="pred_energy")
            ports = {"npho": (S,)}, {"pred_energy": ()}
            wanted = np.where(npho < 9e9, npho, 0).mean(1)
        else:
            mean = graph.add("ReduceMean", "input", axes=[1], keepdims=0)
            ends = (graph.constant([i], np.int64) for i in (1, 2, 1))
            graph.add("Slice", mean, *ends, output="output")
            ports, wanted = ({"input": (S, 2)}, {"output": (1,)}), np.full(N, -1.0)
        path = graph.save(tmp_path / f"{raw}.onnx", *ports, facts)
        words = ("--onnx", path, "--input", data)
        _, arrays, _ = predict(tmp_path / f"{raw}.root", *words)
        np.testing.assert_allclose(arrays["pred_energy"], wanted, rtol=1e-4)


def copied(model, folder):
    path = folder / "m.onnx"
    path.write_bytes(model.read_bytes())
    checksum = model.with_name(f"{model.name}.sha256")
    path.with_name("m.onnx.sha256").write_text(checksum.read_text())
    return path


def test_damaged_models(model, data, tmp_path, caplog):
    path = copied(model, tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged") as error:
        predict(tmp_path / "o.root", "--onnx", path, "--input", data)
    assert "export the model again" in str(error.value)
    checksum = tmp_path / "m.onnx.sha256"
    for text in ("", "nonsense\n"):
        checksum.write_text(text)
        with pytest.raises(CheckpointError, match="is damaged"):
            OnnxModel(path)
    checksum.unlink()
    for wrong in (model.read_bytes()[:-1000], b"", b"\x00" * 100, b"<html>"):
        path.write_bytes(wrong)
        caplog.clear()
        with pytest.raises(CheckpointError, match=r"m\.onnx (cannot be loaded|says nothing)"):
            OnnxModel(path)
        assert "nobody knows if m.onnx is complete" in caplog.text
    with pytest.raises(CheckpointError, match=r"no\.onnx cannot be read") as error:
        OnnxModel(tmp_path / "no.onnx")
    assert "xec_jax.export" in str(error.value)
    with pytest.raises(CheckpointError, match="cannot be read"):
        OnnxModel(tmp_path)
    assert not (tmp_path / "o.root").exists()


def test_models_of_another_origin(run, params, tmp_path):
    def refusal(**changes):
        with pytest.raises(CheckpointError) as error:
            OnnxModel(toys.linear(tmp_path / "m.onnx", run, params, **changes))
        return str(error.value)

    assert "says nothing about normalization" in refusal(format=None)
    newer = refusal(format=2)
    assert "format 2" in newer
    assert "version of xec_jax that wrote it" in newer
    other = [{"name": "npho", "shape": [S]}, {"name": "time", "shape": [4092]}]
    assert "the graph has inputs" in refusal(inputs=other)
    graph = toys.Graph()
    graph.add("Identity", "npho", output="pred_energy")
    facts = {k: v for k, v in toys.facts_of(run).items() if k != "branches"}
    path = graph.save(tmp_path / "m.onnx", {"npho": (S,)}, {"pred_energy": (S,)}, facts)
    with pytest.raises(CheckpointError, match="metadata lack branches"):
        OnnxModel(path)


def test_inputs_that_do_not_fit(model):
    network, good = OnnxModel(model), {"npho": np.ones((3, S)), "time": np.ones((3, S))}
    good["time_min_used"] = np.zeros(3)
    found = network(good)
    assert {name: (v.dtype.name, v.shape) for name, v in found.items()} == {
        "pred_angle": ("float32", (3, 2)),
        "pred_energy": ("float32", (3,)),
        "pred_timing": ("float32", (3,)),
        "pred_uvwFI": ("float32", (3, 3)),
    }
    for changes, words in (
        ({"npho": np.ones((3, 4092))}, r"'npho' has shape \(3, 4092\)"),
        ({"time": np.ones((2, S))}, r"'npho' has shape \(3, 4760\)"),
        ({"npho": np.ones(S)}, r"\(4760,\)"),
        ({"time_min_used": np.float32(0)}, "as many events"),
        ({"more": np.ones(3)}, "more"),
        (dict.fromkeys(good, np.ones((0, S))), "at least one"),
    ):
        with pytest.raises(ShapeError, match=words):
            network(good | changes)
    del good["time_min_used"]
    with pytest.raises(ShapeError, match="was given npho, time"):
        network(good)


def test_without_onnx_runtime(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match="onnxruntime is not installed") as error:
        OnnxModel(model)
    assert "[export]" in error.value.remedy


def test_the_model_knows_no_jax(model):
    script = "import sys; from xec_jax.export.model import OnnxModel; "
    script += f"OnnxModel({str(model)!r}); assert not {{'jax', 'flax'}} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_threads_do_not_matter(model):
    rng = np.random.default_rng(0)
    events = {name: rng.exponential(size=(7, S)) for name in ("npho", "time")}
    events["time_min_used"] = np.zeros(7)
    one, two = (OnnxModel(model, threads=n)(events) for n in (1, 2))
    for name, values in one.items():
        np.testing.assert_allclose(two[name], values, rtol=1e-6)


def test_files_that_do_not_fit(model, normalized, data, tmp_path, caplog):
    events = content(data)

    def refused(name, changes, *words, path=model):
        content = {k: v for k, v in (events | changes).items() if v is not None}
        toys.write(tmp_path / name, content)
        with pytest.raises(DataError) as error:
            predict(tmp_path / "o.root", "--onnx", path, "--input", tmp_path / name, *words)
        assert not (tmp_path / "o.root").exists()
        return str(error.value)

    assert "has no branch 'npho'" in refused("a.root", {"npho": None})
    assert "has no branch 'relative_time'" in refused("b.root", {"relative_time": None})
    assert "4092 values per event" in refused("c.root", {"npho": events["npho"][:, :4092]})
    assert "has no branch 'run'" in refused("d.root", {"run": None})
    no_event = refused("e.root", {"event": None}, path=normalized)
    assert "has no branch 'event'" in no_event
    assert "--layout tree" in no_event
    assert "energyReco" in refused("f.root", {"energyReco": events["uvwRecoFI"]})
    light = np.where((events["npho"] > 0) & (events["npho"] < 9e9), events["npho"], 0)
    shares = {"npho": light / light.max(1, keepdims=True)}
    for path in (model, normalized):
        scheme = refused("g.root", shares, path=path)
        assert "holds fractions of the brightest sensor in place of photons" in scheme
    wrong = refused("h.root", {"share": shares["npho"]}, "--npho_branch", "share")
    assert "'share' holds fractions" in wrong
    assert "--npho_branch share in place of npho" in caplog.text
    too_large = {"event": events["event"].astype(np.int64) + 2**31}
    assert "too large for the column event_id" in refused("i.root", too_large)
    assert "no tree 'rec'" in refused("j.root", {}, "--tree", "rec")
