"""Real data: the tree `val_tree`, dead channels filled before a regression, `evaluate --real`."""

import json
import re

import numpy as np
import pytest
import uproot

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx_toys as toys
from evaluating import make_run, small_networks, write_events
from matplotlib.text import Text

from xec_jax import evaluate
from xec_jax.data.root.writer import TreeFile
from xec_jax.errors import CheckpointError, ConfigError, DataError
from xec_jax.evaluation.real import differences, drawings
from xec_jax.evaluation.val_tree import read_columns, to_columns
from xec_jax.export.model import OnnxModel
from xec_jax.predict import main
from xec_jax.train.saved import load_run

N, S = 30, toys.S
LEVEL = (0.1, 0.4)
"""What the inpainters fill in, normalized: 503.8 photons and -6.84 ns."""
PHOTONS, SECONDS = 1000 * np.expm1(0.1 * 4.08), (0.4 - 0.46) * 1.14e-7


@pytest.fixture(scope="module", autouse=True)
def _networks(tmp_path_factory):
    with small_networks(tmp_path_factory.mktemp("programs")):
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory, _networks):
    return make_run(tmp_path_factory.mktemp("runs") / "reg", "regress")


@pytest.fixture(scope="module")
def inpainter(tmp_path_factory, _networks):
    return make_run(tmp_path_factory.mktemp("runs") / "inp", "inpaint")


@pytest.fixture(scope="module")
def model(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    return toys.linear(path, run, load_run(run).params)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return toys.write_real(tmp_path_factory.mktemp("data") / "Data_430100-430101.root", N)


def content(path, tree="tree"):
    with uproot.open(path) as file:
        return file[tree].arrays(library="np")


def predict(output, *words, tree="val_tree"):
    main([*map(str, words), "--output", str(output), "--batch_size", "16"])
    return content(output, tree)


def test_columns_of_the_tree(model, data, tmp_path):
    found, events = predict(tmp_path / "o.root", "--onnx", model, "--input", data), content(data)
    floats = "pred_theta pred_phi true_theta true_phi opening_angle energy_truth pred_energy "
    floats += "true_energy pred_timing true_timing x_truth y_truth z_truth x_vtx y_vtx z_vtx "
    floats = [*floats.split(), *(f"{side}_{a}" for side in ("pred", "true") for a in "uvw")]
    assert {k: v.dtype.name for k, v in found.items()} == {
        **dict.fromkeys(floats, "float32"),
        **dict.fromkeys(("run_id", "event_id", "n_valid"), "int32"),
    }
    for column, branch in (
        ("run_id", events["run"]),
        ("event_id", events["event"]),
        ("true_phi", events["emiAng"][:, 1]),
        ("energy_truth", events["energyReco"]),
        ("true_energy", events["energyReco"]),
        ("true_timing", events["timeReco"]),
        ("true_v", events["uvwRecoFI"][:, 1]),
        ("z_truth", events["xyzRecoFI"][:, 2]),
        ("x_vtx", events["xyzVTX"][:, 0]),
        ("n_valid", ((events["npho"] > 0) & (events["npho"] < 9e9)).sum(1)),
    ):
        np.testing.assert_array_equal(found[column], branch, err_msg=column)

    def direction(theta, phi):
        t, p = np.deg2rad(theta.astype(float)), np.deg2rad(phi.astype(float))
        return np.stack([-np.sin(t) * np.cos(p), np.sin(t) * np.sin(p), np.cos(t)])

    pair = (direction(found[f"{s}_theta"], found[f"{s}_phi"]) for s in ("pred", "true"))
    psi = np.rad2deg(np.arccos(np.multiply(*pair).sum(0)))
    np.testing.assert_allclose(found["opening_angle"], psi, rtol=1e-5)


def test_ensembles_and_classes_have_columns():
    n = 4
    host = {
        "run": np.arange(n),
        "event": np.arange(n),
        "weight": np.ones(n),
        "npho": np.ones((n, S)),
    }
    found = {"pred_energy_std": np.full(n, 0.1), "pred_n_gamma": np.ones(n, np.int32)}
    found |= {f"pred_n_gamma_probability{end}": np.ones((n, 5)) for end in ("", "_std")}
    found |= {f"{name}_as_measured": 2 * values for name, values in found.items()}
    table = to_columns(host, found, {})
    assert (table["pred_energy_std"] == np.float32(0.1)).all()
    assert (table["pred_n_gamma_as_measured"] == 2).all()
    assert not [name for name in table if "probability" in name]


def test_what_files_lack_is_nan_and_said_once(model, data, tmp_path, caplog):
    lacks = ("emiAng", "energyReco", "xyzVTX", "time_min_used")
    path = toys.write_real(tmp_path / "few.root", N, drop=lacks)
    found = predict(tmp_path / "o.root", "--onnx", model, "--input", path)
    full = predict(tmp_path / "full.root", "--onnx", model, "--input", data)
    warnings = [r.getMessage() for r in caplog.records if "no branch" in r.getMessage()]
    assert len(warnings) == 1
    nan = "pred_timing true_theta true_phi true_energy energy_truth x_vtx y_vtx z_vtx opening_angle"
    for name in lacks:
        assert repr(name) in warnings[0]
    for name, values in found.items():
        if name in nan.split():
            assert name in warnings[0]
            assert np.isnan(values).all(), name
        else:
            np.testing.assert_array_equal(values, full[name], err_msg=name)


def test_markers_are_no_references(model, tmp_path):
    energy, angle = np.full(N, 0.05), np.full((N, 2), 80.0)
    energy[3], energy[4], angle[5] = 1e10, np.nan, (1e10, 1e10)
    path = toys.write_real(tmp_path / "in.root", N, energyReco=energy, emiAng=angle)
    found = predict(tmp_path / "o.root", "--onnx", model, "--input", path)
    for name in ("true_energy", "energy_truth"):
        np.testing.assert_array_equal(np.isnan(found[name]), np.isin(np.arange(N), (3, 4)))
    for name in ("true_theta", "true_phi", "opening_angle"):
        np.testing.assert_array_equal(np.isnan(found[name]), np.arange(N) == 5)
    assert np.isfinite(found["pred_energy"]).all()


def test_rows_of_many_files_in_order_and_batch_by_batch(run, model, tmp_path, monkeypatch):
    for i, n in enumerate((9, 23, 5)):
        toys.write_real(tmp_path / f"Data_{i}.root", n, first=100 * i, run=430100 - 10 * i)
    sizes, extend = [], TreeFile.extend

    def counted(self, chunk, tree="tree"):
        sizes.append(len(chunk["run_id"]))
        extend(self, chunk, tree)

    monkeypatch.setattr(TreeFile, "extend", counted)
    inputs = ("--input", f"{tmp_path}/Data_*.root")
    found = predict(tmp_path / "o.root", "--onnx", model, *inputs)
    assert sizes == [16, 16, 5]
    events = [content(tmp_path / f"Data_{i}.root") for i in range(3)]
    for column, branch in (("event_id", "event"), ("run_id", "run"), ("true_energy", "energyReco")):
        wanted = np.concatenate([part[branch] for part in events])
        np.testing.assert_array_equal(found[column], wanted)
    alone = predict(tmp_path / "2.root", "--onnx", model, "--input", tmp_path / "Data_1.root")
    np.testing.assert_allclose(found["pred_energy"][9:32], alone["pred_energy"], rtol=1e-5)
    same = predict(tmp_path / "r.root", "--run", run, *inputs, "--layout", "val_tree")
    np.testing.assert_array_equal(same["event_id"], found["event_id"])


def test_a_failure_leaves_what_was_there(model, data, tmp_path, monkeypatch):
    output, calls, ask = tmp_path / "o.root", [], OnnxModel.__call__
    predict(output, "--onnx", model, "--input", data)
    before = output.read_bytes()

    def fail(self, arrays):
        calls.append(1)
        if len(calls) == 2:
            raise CheckpointError("no memory")
        return ask(self, arrays)

    monkeypatch.setattr(OnnxModel, "__call__", fail)
    with pytest.raises(CheckpointError, match="no memory"):
        predict(output, "--onnx", model, "--input", data, "--overwrite")
    assert len(calls) == 2
    assert output.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["o.root"]


def test_names_by_runs(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("DataGammaAngle_430000-431999", "DataGammaAngle_428000-429999", "mc"):
        toys.write_real(tmp_path / f"{name}.root", 3)
    words = ["--onnx", str(model), "--input"]
    main([*words, "DataGammaAngle_430000-431999.root"])
    assert len(content("inference_results_Run430000-431999.root", "val_tree")["run_id"]) == 3
    with pytest.raises(ConfigError, match="exists"):
        main([*words, "DataGammaAngle_430000-431999.root"])
    main([*words, "DataGammaAngle_*.root"])
    assert len(content("inference_results_Run428000-431999.root", "val_tree")["run_id"]) == 6
    with pytest.raises(ConfigError, match=r"the name of mc\.root") as error:
        main([*words, "mc.root", "DataGammaAngle_430000-431999.root"])
    assert "--output" in str(error.value)


def test_a_run_keeps_its_columns(run, data, tmp_path):
    """Without --layout, with what the real data measured left out as it is no truth."""
    found = predict(tmp_path / "o.root", "--run", run, "--input", data, tree="tree")
    assert list(found) == [
        *("run", "event", "n_valid", "pred_angle", "pred_energy", "pred_timing", "pred_uvwFI")
    ]
    assert found["event"].dtype == np.int64


@pytest.fixture(scope="module")
def filled(run, data, tmp_path_factory):
    """Predictions for files in which somebody else has filled what is dead, and has not."""
    folder = tmp_path_factory.mktemp("filled")
    dead_list = folder / "dead.txt"
    dead_list.write_text("\n".join(map(str, range(3000, 3400))))
    events = content(data)
    dead = ~(np.abs(events["npho"]) < 9e9) | np.isin(np.arange(S), range(3000, 3400))
    found = {}
    for name, npho, time in (
        ("filled", PHOTONS, SECONDS),
        ("photons", PHOTONS, 1e10),
        ("measured", 1e10, 1e10),
    ):
        changed = {"npho": np.where(dead, npho, events["npho"]).astype(np.float32)}
        times = np.where(dead, time, events["relative_time"])
        changed["relative_time"] = times.astype(np.float32)
        toys.write(folder / "in.root", events | changed)
        words = ("--run", run, "--input", folder / "in.root", "--layout", "val_tree")
        found[name] = predict(folder / f"{name}.root", *words)
    return dead_list, dead, found


@pytest.fixture(scope="module")
def inpainters(inpainter, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inpainters")
    kinds = {"raw": True, "normalized": False}
    made = {
        name: toys.flat_inpainter(folder / f"{name}.onnx", inpainter, LEVEL, raw=raw)
        for name, raw in kinds.items()
    }
    changes = ("--config.model.predict_channels=('npho',)", "--config.data.time_branch=None")
    photons = make_run(folder / "photons", "inpaint", *changes)
    return made | {"run": inpainter, "photons": photons}


def alike(found, wanted, ending=""):
    for name, values in wanted.items():
        if name.startswith("pred_") or name == "opening_angle":
            np.testing.assert_allclose(
                found[f"{name}{ending}"], values, rtol=3e-5, atol=3e-5, err_msg=name
            )


@pytest.mark.parametrize(
    ("regressor", "filler"),
    [("run", "run"), ("model", "raw"), ("model", "normalized"), ("model", "run"), ("run", "raw")],
)
def test_dead_channels_are_filled(
    regressor, filler, run, model, data, inpainters, filled, tmp_path
):
    dead_list, dead, wanted = filled
    network = {"run": ("--run", run), "model": ("--onnx", model)}[regressor]
    words = ("--input", data, "--layout", "val_tree", "--dead_channels", dead_list)
    found = predict(tmp_path / "o.root", *network, "--inpaint", inpainters[filler], *words)
    alike(found, wanted["filled"])
    alike(found, wanted["measured"], "_as_measured")
    assert np.abs(found["pred_energy"] - found["pred_energy_as_measured"]).min() > 1e-5
    np.testing.assert_array_equal(found["n_filled"], dead.sum(1))
    assert found["n_filled"].dtype == np.int32
    np.testing.assert_array_equal(found["n_valid"], wanted["measured"]["n_valid"])
    assert "true_energy_as_measured" not in found


def test_an_inpainter_of_photons_alone(run, data, inpainters, filled, tmp_path):
    words = ("--run", run, "--input", data, "--dead_channels", filled[0], "--layout", "val_tree")
    found = predict(tmp_path / "o.root", *words, "--inpaint", inpainters["photons"])
    alike(found, filled[2]["photons"])


def test_both_energies_in_the_layout_of_runs(run, data, inpainters, filled, tmp_path):
    words = ("--run", run, "--input", data, "--dead_channels", filled[0])
    output = tmp_path / "o.root"
    found = predict(output, *words, "--inpaint", inpainters["run"], tree="tree")
    for ending, kind in (("", "filled"), ("_as_measured", "measured")):
        wanted = filled[2][kind]["pred_energy"]
        np.testing.assert_allclose(found[f"pred_energy{ending}"], wanted, rtol=3e-5)
    with uproot.open(output) as file:
        notes = json.loads(str(file["metadata"]))
    assert notes["inpainter"]["runs"] == [str(inpainters["run"])]
    assert notes["units"]["pred_energy_as_measured"] == "GeV"
    assert notes["dead_channels"]["per_face"]["all events"]["inner"] == 400


def test_networks_that_cannot_be_put_together(run, model, inpainter, data, tmp_path):
    def refused(network, filler):
        with pytest.raises(ConfigError) as error:
            predict(tmp_path / "o.root", "--run", network, "--inpaint", filler, "--input", data)
        return str(error.value)

    assert "tasks regress and regress" in refused(run, run)
    assert "tasks inpaint and inpaint" in refused(inpainter, inpainter)
    branches = {"npho": "relative_npho", "time": "relative_time"}
    other = toys.flat_inpainter(tmp_path / "i.onnx", inpainter, LEVEL, branches=branches)
    words = refused(run, other)
    assert "the inpainter reads 'relative_npho' and 'relative_time'" in words
    assert "the network 'npho' and 'relative_time'" in words
    with pytest.raises(CheckpointError, match="cannot be read"):
        predict(tmp_path / "o.root", "--run", run, "--inpaint", "gone", "--input", data)


@pytest.fixture(scope="module")
def predictions(run, model, data, inpainters, filled, tmp_path_factory):
    """Two files: as exported networks write them, and with dead channels filled."""
    folder = tmp_path_factory.mktemp("predictions")
    predict(folder / "plain.root", "--onnx", model, "--input", data)
    words = ("--inpaint", inpainters["raw"], "--dead_channels", filled[0])
    predict(folder / "filled.root", "--onnx", model, "--input", data, *words)
    return folder


def real(*words):
    return evaluate.main(["--real", *map(str, words)])


def test_figures_of_real_data(run, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    angle = toys.linear(tmp_path / "angle.onnx", run, load_run(run).params, names=("angle",))
    predict(tmp_path / "o.root", "--onnx", angle, "--input", data)
    assert real("--input", "o.root", "--run", run) == 0
    folder = tmp_path / "plots_real_data"
    wanted = "profile_theta profile_phi cos_residual resolution_profile scatter face_weights"
    stems = {path.stem for path in folder.glob("*.pdf")}
    assert stems == {*wanted.split(), "resolution_angle_dependence"}
    for stem in stems:
        assert (folder / f"{stem}.png").stat().st_size > 5000
        assert (folder / f"{stem}.npz").exists()
    text = (folder / "report.html").read_text()
    assert "430100 to 430101" in text
    assert "emiAng, energyReco, xyzRecoFI, xyzVTX" in text
    assert "neither is the truth" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"report\.html"):
        real("--input", "o.root")


def test_nothing_is_called_true(predictions):
    found = list(drawings(read_columns([predictions / "plain.root"])))
    stems = {drawing.stem for drawing in found}
    assert stems >= {"resolution_energy", "resolution_timing", "resolution_uvwFI"}
    assert "face_weights" not in stems  # nobody named a run
    words = [t.get_text() for drawing in found for t in drawing.figure.findobj(Text)]
    assert not [text for text in words if re.search(r"\btru(e|th)\b", text)]
    assert "Prediction against reference" in words
    assert "reference θ [deg]" in words


def test_differences_equal_loops(predictions):
    columns = read_columns([predictions / "filled.root"])
    rows = {(row[0], row[1]): row[2:] for row in differences(columns).rows}
    for ending, how in (("", "dead channels filled"), ("_as_measured", "as measured")):
        away = columns[f"pred_energy{ending}"].astype(float) - columns["true_energy"]
        share = 100 * away / columns["true_energy"]
        unit, n, bias, _, width, _ = rows["energy", how]
        assert (unit, n) == ("%", N)
        assert bias == pytest.approx(share.mean(), rel=1e-6)
        assert width == pytest.approx(np.percentile(np.abs(share), 68), rel=1e-6)
        psi = columns[f"opening_angle{ending}"]
        assert rows["direction", how][4] == pytest.approx(np.percentile(psi, 68), rel=1e-5)
        assert np.isnan(rows["direction", how][2])
    assert rows["energy", "as measured"][2] != rows["energy", "dead channels filled"][2]


def test_quantities_without_reference_have_no_figures(model, tmp_path):
    path = toys.write_real(tmp_path / "in.root", N, drop=("emiAng", "timeReco", "uvwRecoFI"))
    predict(tmp_path / "o.root", "--onnx", model, "--input", path)
    real("--input", tmp_path / "o.root", "--output", tmp_path / "plots")
    stems = {path.stem for path in (tmp_path / "plots").glob("*.pdf")}
    assert stems == {"resolution_energy", "resolution_energy_signal", "scatter"}


def test_what_is_no_file_of_predictions(model, run, data, tmp_path):
    with pytest.raises(DataError, match="no tree 'val_tree'"):
        real("--input", data, "--output", tmp_path / "plots")
    empty = ("emiAng", "energyReco", "timeReco", "uvwRecoFI", "xyzRecoFI")
    path = toys.write_real(tmp_path / "in.root", 3, drop=empty)
    predict(tmp_path / "o.root", "--onnx", model, "--input", path)
    with pytest.raises(DataError, match="no event has both"):
        real("--input", tmp_path / "o.root", "--output", tmp_path / "plots")
    other = write_events(tmp_path / "mc.root", 3)
    toys.write(tmp_path / "no.root", {"run_id": content(other)["run"]}, tree="val_tree")
    with pytest.raises(DataError, match="has no predictions"):
        real("--input", tmp_path / "no.root", "--output", tmp_path / "plots")
    with pytest.raises(ConfigError, match="--scan with --real"):
        real("--input", tmp_path / "o.root", "--scan", "energy")
    with pytest.raises(ConfigError, match="no --run"):
        evaluate.main(["--input", str(data)])
    assert not (tmp_path / "plots").exists()
