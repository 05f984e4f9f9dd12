"""`python -m xec_jax.evaluate` of autoencoders and inpainters: files, choices, numbers."""

import numpy as np
import pytest
import uproot
from evaluating import S, evaluate, make_run, read, small_networks, write_events

from xec_jax.config import load
from xec_jax.data.dead import write_dead
from xec_jax.errors import ConfigError, DataError
from xec_jax.evaluate import main
from xec_jax.evaluation import hiding, inpaint
from xec_jax.evaluation.base import Options
from xec_jax.evaluation.mae import channel_sums
from xec_jax.evaluation.sensor_sums import PhotonSums
from xec_jax.evaluation.sensor_tables import faces_table, methods_table
from xec_jax.geometry import FACES, INVALID_ABOVE, design_positions
from xec_jax.kinematics import xyz_to_uvw
from xec_jax.metrics import by_face, sensor_metrics
from xec_jax.tasks.calorimeter import transform_of
from xec_jax.transforms import SensorTransform

N = 40
TABLE = design_positions()
PLAIN = ("--no_figures", "--opponents", 0, "--batch_size", 16)


@pytest.fixture(scope="module", autouse=True)
def _networks(tmp_path_factory):
    with small_networks(tmp_path_factory.mktemp("programs")):
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_events(tmp_path_factory.mktemp("data") / "mc.root", N)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, _networks):
    folder = tmp_path_factory.mktemp("runs")
    return {task: make_run(folder / task, task) for task in ("mae", "inpaint")}


@pytest.fixture(scope="module")
def truth(data):
    with uproot.open(data) as file:
        return file["tree"].arrays(library="np")


@pytest.fixture(scope="module")
def mae(runs, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mae")
    metrics = evaluate(runs["mae"], data, folder, *PLAIN, "--max_events", 25)["metrics"]
    return metrics, *read(folder / "mae_predictions_epoch_0.root", "tree")


@pytest.fixture(scope="module")
def filled(runs, data, tmp_path_factory):
    """Sensors chosen by number and face."""
    folder = tmp_path_factory.mktemp("inpaint")
    words = ("--hide", "artificial", "--hide_counts", "inner:4,us:2,top:1")
    found = evaluate(runs["inpaint"], data, folder, *PLAIN, *words)
    tree, metadata = read(folder / "inpainter_predictions_epoch_0.root", "tree")
    compared, _ = read(folder / "predictions_mc.root", "predictions")
    return found, tree, metadata, compared


def test_tree_of_the_autoencoder(mae, truth):
    _, arrays, metadata = mae
    floats = [f"{w}_{c}" for w in ("truth", "masked", "pred", "err") for c in ("npho", "time")]
    shapes = {name: (v.dtype.name, v.shape) for name, v in arrays.items()}
    assert shapes == {
        **dict.fromkeys([*floats, "mask"], ("float32", (25, S))),
        **dict.fromkeys(("npho_valid", "time_valid"), ("bool", (25, S))),
        **dict.fromkeys(("run_number", "event_number"), ("int64", (25,))),
        "event_id": ("int32", (25,)),
    }
    np.testing.assert_array_equal(arrays["run_number"], truth["run"][:25])
    np.testing.assert_array_equal(arrays["event_number"], truth["event"][:25])
    transform = SensorTransform()
    live = (truth["npho"][:25] > 0) & (truth["npho"][:25] < INVALID_ABOVE)
    np.testing.assert_array_equal(arrays["npho_valid"], live)
    expected = np.asarray(transform.npho(np.where(live, truth["npho"][:25], 1)))
    np.testing.assert_allclose(arrays["truth_npho"][live], expected[live], rtol=1e-5)
    hidden = arrays["mask"] > 0
    assert (hidden <= live).all()
    assert (hidden.sum(1) == np.floor(np.float32(live.sum(1)) * np.float32(0.65))).all()
    assert (arrays["masked_time"][hidden] == transform.sentinel_time).all()
    np.testing.assert_array_equal(arrays["masked_npho"][~hidden], arrays["truth_npho"][~hidden])
    difference = arrays["pred_npho"] - arrays["truth_npho"]
    np.testing.assert_array_equal(arrays["err_npho"][live], difference[live])
    assert np.isnan(arrays["err_npho"][~live]).all()
    assert metadata["npho_scale2"] == 4.08
    assert metadata["predict_channels"] == "npho,time"


def test_metrics_of_the_autoencoder_are_of_all_events(runs, data, tmp_path):
    metrics = evaluate(runs["mae"], data, tmp_path, *PLAIN)["metrics"]
    a, _ = read(tmp_path / "mae_predictions_epoch_0.root", "tree")
    hidden = a["mask"] > 0
    error = a["err_npho"][hidden].astype(float)
    assert metrics["mae_npho"] == pytest.approx(np.abs(error).mean(), rel=1e-6)
    assert metrics["rmse_npho"] == pytest.approx((error**2).mean() ** 0.5, rel=1e-6)
    spread = a["truth_npho"][hidden].astype(float).var()
    assert metrics["r2_npho"] == pytest.approx(1 - (error**2).mean() / spread, rel=1e-4)
    on = hidden & (TABLE.face == FACES.index("us"))
    assert metrics["mae_us_npho"] == pytest.approx(np.abs(a["err_npho"][on].astype(float)).mean())
    transform = SensorTransform()
    photons = np.asarray(transform.npho_inverse(a["truth_npho"]), float)
    timed = hidden & a["time_valid"] & (photons > 100)
    late = np.abs(a["err_time"][timed].astype(float)).mean()
    assert metrics["mae_time"] == pytest.approx(late, rel=1e-3)
    assert metrics["mae_time_ns"] == pytest.approx(late * 114, rel=1e-3)
    assert metrics["actual_mask_ratio"] == pytest.approx(hidden.sum() / a["npho_valid"].sum())


def test_autoencoder_without_times(tmp_path, data):
    words = ("--config.model.predict_channels=('npho',)",)
    run = make_run(tmp_path / "run", "mae", *words)
    found = evaluate(run, data, tmp_path / "out", *PLAIN)
    arrays, metadata = read(tmp_path / "out/mae_predictions_epoch_0.root", "tree")
    assert np.isnan(arrays["pred_time"]).all()
    assert metadata["predict_channels"] == "npho"
    assert "mae_time" not in found["metrics"] or found["metrics"]["mae_time"] is None


def test_trees_of_the_inpainter(filled, truth):
    _, tree, metadata, compared = filled
    n = N * 7
    ints = ("event_idx", "sensor_id", "face")
    floats = [f"{w}_{c}" for w in ("truth", "pred", "error") for c in ("npho", "time")]
    assert {k: v.dtype.name for k, v in tree.items()} == {
        **dict.fromkeys(ints, "int32"),
        **dict.fromkeys(("run_number", "event_number"), "int64"),
        **dict.fromkeys(floats, "float32"),
        **dict.fromkeys(("npho_valid", "time_valid"), "bool"),
    }
    methods = ("baseline_near", "baseline_avg", "pred", "error", "error_near", "error_avg", "truth")
    assert {k: v.dtype.name for k, v in compared.items()} == {
        **dict.fromkeys([*ints, "mask_type"], "int32"),
        **dict.fromkeys(("run_number", "event_number", "dead_pattern_run"), "int64"),
        **{f"{name}_npho": "float32" for name in methods},
    }
    assert {len(v) for v in (*tree.values(), *compared.values())} == {n}
    np.testing.assert_array_equal(tree["face"], TABLE.face[tree["sensor_id"]])
    np.testing.assert_array_equal(tree["event_number"], truth["event"][tree["event_idx"]])
    photons = truth["npho"][compared["event_idx"], compared["sensor_id"]]
    np.testing.assert_array_equal(compared["truth_npho"], photons)
    transform = SensorTransform()
    np.testing.assert_allclose(tree["truth_npho"], transform.npho(photons), rtol=1e-5)
    np.testing.assert_allclose(tree["pred_npho"], 0.1, rtol=1e-6)
    np.testing.assert_allclose(compared["pred_npho"], transform.npho_inverse(0.1), rtol=1e-5)
    assert (compared["mask_type"] == 0).all()
    assert (compared["dead_pattern_run"] == -1).all()
    assert metadata["task"] == "inpaint"


def test_metrics_of_all_methods_equal_loops(filled):
    found, _, _, rows = filled
    metrics, truth = found["metrics"], rows["truth_npho"].astype(float)
    for branch, ending in (
        ("pred", ""),
        ("baseline_near", "_neighbors"),
        ("baseline_avg", "_disk"),
    ):
        error = rows[f"{branch}_npho"].astype(float) - truth
        bright = truth >= 100
        assert metrics[f"mae_photons{ending}"] == pytest.approx(np.abs(error).mean(), rel=1e-6)
        share = np.abs(error[bright]) / truth[bright]
        assert metrics[f"rel_mae{ending}"] == pytest.approx(share.mean(), rel=1e-6)
        assert metrics[f"rel_res_68pct{ending}"] == pytest.approx(
            np.percentile(share, 68), rel=1e-6
        )
        rms = (error[bright] ** 2).mean() ** 0.5
        assert metrics[f"bright_rms_photons{ending}"] == pytest.approx(rms, rel=1e-6)
        on = rows["face"] == FACES.index("us")
        expected = np.abs(error[on]).mean()
        assert metrics[f"mae_us_photons{ending}"] == pytest.approx(expected, rel=1e-6)
    table = found["tables"]["faces"]
    assert [row[0] for row in table["rows"]] == ["inner", "us", "top"]
    assert [row[1] for row in table["rows"]] == [4 * N, 2 * N, N]
    column = table["columns"].index("network")
    assert table["rows"][1][column] == pytest.approx(metrics["mae_us_photons"])
    details = found["tables"]["details"]
    row = next(r for r in details["rows"] if r[:2] == ["us", "within 20 cm"])
    assert row[details["columns"].index("MAE [photons]")] == pytest.approx(
        metrics["mae_us_photons_disk"]
    )
    assert {len(row) for row in found["tables"]["bins"]["rows"]} == {5}


def test_faces_compare_on_common_sensors():
    truth, face = np.full(100, 10.0), np.zeros(100, int)
    network, other, some = truth + 1, truth + 2, truth + 0.1
    other[:1] = np.nan  # nearly all are filled
    network[0] += 1000  # which the other one cannot be blamed for
    some[:50] = np.nan  # chose its sensors
    methods = {"network": network, "other": other, "some": some}
    (row,) = faces_table(methods, truth, face, None, "").rows
    assert row[:4] == ["inner", 99, 1.0, 2.0]
    assert np.isnan(row[4])
    assert row[6] == 0.5
    assert methods_table(methods, truth).rows[2][-1] == 0.5


def test_batches_do_not_matter(filled, runs, data, tmp_path):
    words = ("--hide", "artificial", "--hide_counts", "inner:4,us:2,top:1")
    other = evaluate(runs["inpaint"], data, tmp_path, "--no_figures", "--opponents", 0, *words)
    compared, _ = read(tmp_path / "predictions_mc.root", "predictions")
    np.testing.assert_array_equal(compared["sensor_id"], filled[3]["sensor_id"])
    for name, value in filled[0]["metrics"].items():
        same = other["metrics"][name]
        assert same == value or same == pytest.approx(value, rel=1e-4), name


def test_hiding_as_in_training(runs, data, tmp_path, capsys):
    found = evaluate(runs["inpaint"], data, tmp_path, *PLAIN)
    tree, _ = read(tmp_path / "inpainter_predictions_epoch_0.root", "tree")
    assert f"at most {N * int(0.05 * S):,} rows" in capsys.readouterr().out
    assert found["metrics"]["n_masked"] == pytest.approx(len(tree["face"]) / N)
    assert 0.03 < found["metrics"]["actual_mask_ratio"] <= 0.05


def test_rows_end_where_the_user_wants(runs, data, tmp_path, capsys):
    evaluate(runs["inpaint"], data, tmp_path, *PLAIN, "--max_rows", 1000)
    tree, _ = read(tmp_path / "inpainter_predictions_epoch_0.root", "tree")
    assert len(tree["face"]) == 1000
    assert capsys.readouterr().out.count("the rest is left out") == 1


def test_dead_pattern_of_a_run(runs, data, truth, tmp_path):
    dead = np.zeros(S, bool)
    dead[[3, 100, 4310, 4742]] = True
    write_dead(tmp_path / "dead.txt", {430001: dead, 430002: ~dead})
    words = ("--hide", "pattern", "--dead_channels", tmp_path / "dead.txt")
    evaluate(runs["inpaint"], data, tmp_path / "one", *PLAIN, *words, "--run_number", 430001)
    rows, _ = read(tmp_path / "one/predictions_mc_run430001.root", "predictions")
    assert (rows["mask_type"] == 1).all()
    assert (rows["dead_pattern_run"] == 430001).all()
    live = (truth["npho"] > 0) & (truth["npho"] < INVALID_ABOVE)
    assert len(rows["face"]) == (live & dead).sum()
    assert np.isfinite(rows["error_npho"]).all()
    host = {"npho": truth["npho"], "run": truth["run"]}
    own = hiding.pattern(host, {430001: dead, 430002: ~dead}, None, "list")
    np.testing.assert_array_equal(own[0], dead)
    np.testing.assert_array_equal(own[-1], ~dead)
    with pytest.raises(DataError, match="do not say theirs"):
        hiding.pattern({"npho": truth["npho"]}, {430001: dead}, None, "list")


def test_what_is_dead_in_the_files(runs, data, truth, tmp_path):
    found = evaluate(runs["inpaint"], data, tmp_path, *PLAIN, "--hide", "dead")
    rows, _ = read(tmp_path / "predictions_mc.root", "predictions")
    live = (truth["npho"] > 0) & (truth["npho"] < INVALID_ABOVE)
    assert len(rows["face"]) == (~live).sum()
    assert np.isnan(rows["truth_npho"]).all()
    assert np.isfinite(rows["pred_npho"]).all()
    assert np.isfinite(rows["baseline_near_npho"]).all()
    assert found["tables"] == {}


def test_sensor_in_front(runs, tmp_path):
    uvw = np.asarray(xyz_to_uvw(TABLE.positions[[2000, 2001, 2002, 2003]])).astype(np.float32)
    uvw[:, 2] = [0.5, 0.5, 1.5, 0.5]  # the third is too deep
    uvw[3, 0] += 0.75  # half way to the next sensor
    data = write_events(tmp_path / "front.root", 4, uvwTruth=uvw)
    evaluate(runs["inpaint"], data, tmp_path / "out", *PLAIN, "--hide", "front")
    rows, _ = read(tmp_path / "out/predictions_mc.root", "predictions")
    np.testing.assert_array_equal(rows["sensor_id"], [2000, 2001])
    bare = write_events(tmp_path / "bare.root", 4, uvwTruth=None)
    with pytest.raises(DataError, match="needs the first interaction"):
        evaluate(runs["inpaint"], bare, tmp_path / "none", *PLAIN, "--hide", "front")
    assert not list((tmp_path / "none").glob("*.root")), "no partial file"
    assert not list((tmp_path / "none").glob(".*.part"))


def test_artificial_choice(truth):
    host = {"npho": truth["npho"], "_position": np.arange(N)}
    counts = {"inner": 10, "outer": 3}
    hidden = hiding.artificial(host, counts, TABLE.face, 42)
    live = (truth["npho"] > 0) & (truth["npho"] < INVALID_ABOVE)
    assert (hidden <= live).all()
    per_face = np.stack([np.bincount(TABLE.face[h], minlength=6) for h in hidden])
    np.testing.assert_array_equal(per_face, np.tile([10, 0, 0, 3, 0, 0], (N, 1)))
    part = {name: values[7:9] for name, values in host.items()}
    np.testing.assert_array_equal(hiding.artificial(part, counts, TABLE.face, 42), hidden[7:9])
    assert (hiding.artificial(part, counts, TABLE.face, 43) != hidden[7:9]).any()
    few = {"npho": np.where(TABLE.face == 4, 5.0, 1e10)[None], "_position": np.arange(1)}
    few["npho"][0, np.flatnonzero(TABLE.face == 4)[2:]] = 1e10
    found = hiding.artificial(few, {"top": 5, "us": 1}, TABLE.face, 0)
    assert found.sum() == 2, "as many as there are"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hide": "some"}, "--hide some"),
        ({"hide": "pattern"}, "--hide pattern without a list"),
        ({"hide": "artificial", "counts": {"left": 1}}, "--hide_counts left:1"),
        ({"hide": "artificial", "counts": {"top": 74}}, "--hide_counts top:74"),
    ],
)
def test_choices_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        hiding.chooser(Options(**options), TABLE)


def test_scan_of_an_inpainter(runs, data, tmp_path):
    words = ["--run", runs["inpaint"], "--input", data, "--output", tmp_path, "--scan", "dead"]
    main([*map(str, words), "--scan_values", "0", "0.5"])
    assert "mae_photons [photons]" in (tmp_path / "scan_dead.txt").read_text()
    with pytest.raises(ConfigError, match=r"keeps no single events|knows no energy"):
        main([*map(str, words[:-1]), "energy"])


def test_sums_equal_metrics_of_rows():
    rng = np.random.default_rng(0)
    truth, face = rng.gamma(1, 200, 500), rng.integers(0, 6, 500)
    predicted = truth * rng.normal(1, 0.1, 500)
    predicted[::50] = np.nan
    sums = PhotonSums("_ridge")
    for part in np.array_split(np.arange(500), 7):
        sums.add(predicted[part], truth[part], face[part])
    found, expected = sums.metrics(), sensor_metrics(predicted, truth)
    for name in ("mae_photons", "bright_mae_photons", "bright_rms_photons", "bright_bias_photons",
                 "rel_mae", "rel_rms", "failed"):  # fmt: skip
        assert found[f"{name}_ridge"] == pytest.approx(expected[name]), name
    for name, of_face in by_face(predicted, truth, face).items():
        assert found[f"mae_{name}_photons_ridge"] == pytest.approx(of_face["mae_photons"])
    assert np.isnan(PhotonSums().metrics()["mae_photons"])


def test_times_of_dim_sensors_do_not_count():
    sums = channel_sums(transform_of(load("configs/mae.py:tiny", ["--config.data.train=x"])))
    picked = {"truth": np.array([[0.0, 1], [0, 2]]), "predicted": np.array([[0.5, 4], [0.5, 9]])}
    from xec_jax.evaluation.mae import add_errors

    add_errors(sums, np.array([0, 0]), picked | {"timed": np.array([True, False])})
    assert sums["time"].metrics()["mae_time"] == 3
    assert sums["npho"].metrics()["mae_npho"] == 0.5


def test_all_methods_fill_and_the_limit_stands_beside(runs, data, tmp_path, monkeypatch):
    """The ridge is fitted to other events; the local fit speaks of the inner face alone."""
    from xec_jax.sim.lxe_parameters import LxeParameters

    monkeypatch.setattr("xec_jax.sim.limits.sample_parameters", lambda path: LxeParameters())
    monkeypatch.setattr(inpaint.InpaintEvaluation, "drawings", lambda self: iter(()))
    other = write_events(tmp_path / "train.root", 60)
    words = ("--hide", "artificial", "--calibrate", str(other), "--batch_size", 16)
    found = evaluate(runs["inpaint"], data, tmp_path / "out", *words)
    rows, _ = read(tmp_path / "out/predictions_mc.root", "predictions")
    for short in ("near", "avg", "sa", "localfit", "ridge"):
        assert f"baseline_{short}_npho" in rows
        assert f"error_{short}_npho" in rows
    assert np.isnan(rows["baseline_localfit_npho"][rows["face"] != 0]).all()
    assert np.isfinite(rows["baseline_ridge_npho"]).mean() > 0.99
    assert np.isfinite(rows["baseline_sa_npho"]).all()
    table = found["tables"]["faces"]
    limit = table["columns"].index("counting limit")
    assert all(row[limit] > 0 for row in table["rows"])
    assert "failed_local_fit" in found["metrics"]
