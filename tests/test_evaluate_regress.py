"""`python -m xec_jax.evaluate` of regressions: artifacts opened, numbers counted again."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evaluating import evaluate, make_run, read, small_networks, write_events

from xec_jax.data.root.writer import TreeFile
from xec_jax.errors import ConfigError, DataError
from xec_jax.evaluate import main, parser
from xec_jax.evaluation import engine, opponents, outcome, regress, scan
from xec_jax.evaluation.base import Columns, Options, Setting
from xec_jax.evaluation.calibration import calibration_batches
from xec_jax.evaluation.text import to_text
from xec_jax.evaluation.worst import WorstEvents
from xec_jax.metrics import percentile68
from xec_jax.tasks import base
from xec_jax.tasks.calorimeter import detector_of, encode, transform_of
from xec_jax.train.saved import load_run

N = 70


@pytest.fixture(scope="module", autouse=True)
def _networks(tmp_path_factory):
    with small_networks(tmp_path_factory.mktemp("programs")):
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory, _networks):
    return make_run(tmp_path_factory.mktemp("runs") / "reg", "regress")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_events(tmp_path_factory.mktemp("data") / "mc.root", N)


@pytest.fixture(scope="module")
def done(run, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    words = ("--batch_size", 16, "--csv", "--no_figures", "--opponents", 0)
    return folder, evaluate(run, data, folder, *words)


@pytest.fixture(scope="module")
def rows(done):
    return read(done[0] / "validation_results_reg.root", "val_tree")


def setting_of(run, **options):
    saved = load_run(run)
    task = base.make_task(saved.config)
    return Setting("reg", saved, task, 0, True, None, "tree", (), Options(**options))


def test_branches_types_and_rows(rows, data):
    arrays, metadata = rows
    floats = "pred_theta pred_phi true_theta true_phi opening_angle energy_truth loss pred_energy "
    floats += "true_energy pred_timing true_timing x_truth y_truth z_truth x_vtx y_vtx z_vtx "
    floats = [*floats.split(), *(f"{side}_{a}" for side in ("pred", "true") for a in "uvw")]
    assert {k: v.dtype.name for k, v in arrays.items()} == {
        **dict.fromkeys(floats, "float32"),
        **dict.fromkeys(("run_id", "event_id"), "int64"),
    }
    assert {len(v) for v in arrays.values()} == {N}
    truth = read_input(data)
    for column, branch in (
        ("run_id", "run"),
        ("event_id", "event"),
        ("energy_truth", "energyTruth"),
    ):
        np.testing.assert_array_equal(arrays[column], truth[branch])
    np.testing.assert_array_equal(arrays["true_theta"], truth["emiAng"][:, 0])
    np.testing.assert_array_equal(arrays["true_w"], truth["uvwTruth"][:, 2])
    np.testing.assert_array_equal(arrays["x_truth"], truth["xyzTruth"][:, 0])
    np.testing.assert_array_equal(arrays["x_vtx"], truth["xyzVTX"][:, 0])
    assert metadata["npho_scheme"] == "log1p"
    assert metadata["npho_scale"] == 1000
    assert metadata["task"] == "regress"


def read_input(path):
    import uproot

    with uproot.open(path) as file:
        return file["tree"].arrays(library="np")


def test_predictions_are_those_of_the_network(rows, run, data):
    setting, truth = setting_of(run), read_input(data)
    batch = {k: jnp.asarray(truth[k]) for k in ("emiAng", "energyTruth", "timeTruth", "uvwTruth")}
    batch |= {"npho": truth["npho"], "time": truth["relative_time"]}
    batch |= {"time_min_used": truth["time_min_used"], "weight": jnp.ones(N)}
    found = jax.jit(setting.task.predict)(setting.run.params, batch)
    for i, name in enumerate(("theta", "phi")):
        np.testing.assert_allclose(rows[0][f"pred_{name}"], found["pred_angle"][:, i], rtol=1e-5)
    np.testing.assert_allclose(rows[0]["pred_energy"], found["pred_energy"], rtol=1e-5)
    np.testing.assert_allclose(rows[0]["pred_v"], found["pred_uvwFI"][:, 1], rtol=1e-4)
    # The loss of the set is the mean of those of its events: all truth is known.
    _, terms, _ = jax.jit(setting.task.inspect)(setting.run.params, batch, jax.random.PRNGKey(0))
    total = sum(float(t.total / t.weight) for t in terms.values())
    assert rows[0]["loss"].astype(float).mean() == pytest.approx(total, rel=1e-5)


def test_metrics_equal_loops(done, rows):
    a, metrics = rows[0], done[1]["metrics"]
    psi = []
    for t1, p1, t2, p2 in zip(
        a["pred_theta"], a["pred_phi"], a["true_theta"], a["true_phi"], strict=True
    ):
        u, v = (
            np.array([-np.sin(t) * np.cos(p), np.sin(t) * np.sin(p), np.cos(t)])
            for t, p in (np.deg2rad([t1, p1], dtype=float), np.deg2rad([t2, p2], dtype=float))
        )
        psi.append(np.rad2deg(np.arccos(np.clip(u @ v, -1, 1))))
    np.testing.assert_allclose(a["opening_angle"], psi, rtol=1e-4)
    assert metrics["angle_resolution_68pct"] == pytest.approx(np.percentile(psi, 68), rel=1e-5)
    dphi = (a["pred_phi"] - a["true_phi"]).astype(float)
    dphi = (dphi + 180) % 360 - 180
    assert metrics["phi_bias"] == pytest.approx(dphi.mean(), rel=1e-5)
    share = np.abs(a["pred_energy"] - a["true_energy"]) / a["true_energy"]
    assert metrics["energy_rel_res_68pct"] == pytest.approx(np.percentile(share, 68), rel=1e-5)
    late = (a["pred_timing"].astype(float) - a["true_timing"]) * 1e3
    assert metrics["timing_res_68pct_ps"] == pytest.approx(
        np.percentile(np.abs(late), 68), rel=1e-5
    )
    away = np.stack([a[f"pred_{x}"].astype(float) - a[f"true_{x}"] for x in "uvw"])
    assert metrics["uvw_dist_mean"] == pytest.approx(np.sqrt((away**2).sum(0)).mean(), rel=1e-6)
    assert metrics["uvw_w_rms"] == pytest.approx(away[2].std(), rel=1e-6)
    assert metrics["n_angle"] == N
    assert done[1]["units"]["uvw_w_rms"] == "cm"
    assert "uvw_w_rms" in (done[0] / "metrics.txt").read_text()


def test_batches_do_not_matter(done, run, data, tmp_path):
    words = ("--batch_size", 64, "--no_figures", "--opponents", 0)
    other = evaluate(run, data, tmp_path, *words)
    for name, value in done[1]["metrics"].items():
        assert other["metrics"][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_text_says_what_the_tree_says(done, rows):
    lines = (done[0] / "predictions_uvwFI_reg.csv").read_text().splitlines()
    assert lines[0] == "true_u,true_v,true_w,pred_u,pred_v,pred_w"
    table = np.array([line.split(",") for line in lines[1:]], float)
    assert table.shape == (N, 6)
    np.testing.assert_allclose(table[:, 4], rows[0]["pred_v"], rtol=1e-6)
    head = (done[0] / "predictions_energy_reg.csv").read_text().splitlines()[0]
    assert head == "true_energy,pred_energy,true_u,true_v,true_w"


def test_files_without_truth(run, tmp_path, caplog):
    none = dict.fromkeys(("energyTruth", "timeTruth", "uvwTruth", "xyzTruth"))
    data = write_events(tmp_path / "real.root", 9, **none)
    found = evaluate(run, data, tmp_path / "out", "--no_figures")
    arrays, _ = read(tmp_path / "out/validation_results_reg.root", "val_tree")
    assert np.isfinite(arrays["pred_energy"]).all()
    for name in ("true_energy", "true_theta", "opening_angle", "x_truth", "energy_truth"):
        assert np.isnan(arrays[name]).all(), name
    assert "counts as measured and is no truth" in caplog.text
    assert "opponents" not in found["tables"]
    with pytest.raises(ConfigError, match="--scan energy"):
        main(
            ["--run", str(run), "--input", str(data), "--output", str(tmp_path), "--scan", "energy"]
        )


def test_figures_report_and_their_data(run, data, tmp_path, monkeypatch, caplog):
    """One figure fails: the others, the report and the numbers are there."""
    drawn = regress.RegressEvaluation.drawings

    def some(self):
        wanted = ("resolution_timing", "worst_event_1", "saliency_profile", "face_weights")
        yield base_drawing("broken", None)
        yield from (d for d in drawn(self) if d.stem in wanted)

    from xec_jax.evaluation.base import Drawing

    def base_drawing(stem, figure):
        return Drawing(stem, figure, {})

    monkeypatch.setattr(regress.RegressEvaluation, "drawings", some)
    monkeypatch.setattr(outcome, "FORMATS", ("png", "pdf"))
    evaluate(run, data, tmp_path, "--opponents", 0)
    names = {p.name for p in (tmp_path / "figures").iterdir()}
    for stem in ("resolution_timing", "worst_event_1", "saliency_profile", "face_weights"):
        assert {f"{stem}_reg.{end}" for end in ("png", "pdf", "npz")} <= names
    assert "the figure broken failed" in caplog.text
    html = (tmp_path / "report.html").read_text()
    assert "resolution timing" in html
    assert "uvw_dist_68pct" in html
    worst = np.load(tmp_path / "figures/worst_event_1_reg.npz")
    arrays, _ = read(tmp_path / "validation_results_reg.root", "val_tree")
    assert float(worst["loss"]) == pytest.approx(arrays["loss"].max(), rel=1e-6)
    scores = np.load(tmp_path / "figures/saliency_profile_reg.npz")
    assert {"theta", "phi", "energy", "timing", "uvw_u", "uvw_v", "uvw_w"} == set(scores)


def test_saliency_is_the_gradient(run, data):
    setting, host = setting_of(run), read_input(data)
    batch = {"npho": host["npho"][:5], "time": host["relative_time"][:5]}
    batch |= {k: host[k][:5] for k in ("emiAng", "energyTruth", "timeTruth", "uvwTruth")}
    batch["time_min_used"] = host["time_min_used"][:5]
    found = regress.saliency(setting, batch)
    x, _ = encode(transform_of(setting.run.config), batch)
    slope = jax.grad(lambda x: setting.task.respond(setting.run.params, x, batch)["uvw_v"].sum())(x)
    face = detector_of(setting.run.config).sensor_face
    for code in range(6):
        expected = np.abs(np.asarray(slope)[:, face == code]).mean((0, 1))
        np.testing.assert_allclose(found["uvw_v"][code], expected, rtol=1e-3)  # float32 sums
    assert found["uvw_v"].shape == (6, 2)


def test_face_weights_are_shares_of_norms(run):
    shares = regress.face_weights(setting_of(run))
    kernel = np.asarray(load_run(run).params["head_energy"]["stem"]["kernel"], float)
    norms = np.array([np.sqrt((kernel[2 * i : 2 * i + 2] ** 2).sum()) for i in range(6)])
    np.testing.assert_allclose(shares["energy"], norms / norms.sum(), rtol=1e-6)


@pytest.mark.parametrize("size", [1, 3, 50])
def test_worst_events_are_the_worst(size):
    loss = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, np.nan, 8, 9, 7], np.float32)
    worst = WorstEvents(n=6)
    for start in range(0, len(loss), size):
        part = slice(start, start + size)
        event = np.arange(len(loss))[part]
        worst.add({"event": event, "npho": np.ones((len(event), 2))}, {"loss": loss[part]}, {})
    events = [int(e["event"]) for _, e in worst.ranked()]
    assert events == [11, 5, 13, 12, 14, 7]  # NaN first; of equal ones, the earlier


def test_opponents_table(monkeypatch):
    """Numbers of all methods on the same events, from errors that are known."""
    rng, n = np.random.default_rng(0), 400
    truth = {"energyTruth": rng.uniform(0.02, 0.06, n), "timeTruth": rng.uniform(-5, 5, n),
             "uvwTruth": rng.uniform(-20, 20, (n, 3)), "xyzVTX": np.zeros((n, 3))}  # fmt: skip
    events = truth | {"npho": np.ones((n, 4)), "weight": np.ones(n), "time": np.zeros((n, 4)),
                      "time_min_used": np.zeros(n)}  # fmt: skip
    scale = {"energy": 0.001, "uvwFI": 0.3, "timing": 0.1}
    true = {
        "energy": truth["energyTruth"],
        "uvwFI": truth["uvwTruth"],
        "timing": truth["timeTruth"],
    }

    def smeared(factor):
        return {q: v + rng.normal(0, factor * scale[q], v.shape) for q, v in true.items()}

    setting = Setting("x", _Saved(), None, 0, True, object(), "tree", (), Options(opponents=300))
    others = opponents.Opponents(setting)
    for start in range(0, n, 64):
        others.add({k: v[start : start + 64] for k, v in events.items()})
    assert others.n == 300
    classical = smeared(2.0)
    monkeypatch.setattr(
        others,
        "_classical",
        lambda e: {opponents.SIMPLE: {q: v[:300] for q, v in classical.items()}},
    )
    bound = {"energy_rel_res_68pct": 0.01, "timing_res_68pct": 0.05}
    monkeypatch.setattr(others, "_limits", lambda e: {opponents.BOUND: bound})
    network = smeared(1.0)
    arrays = {f"true_{q}": v for q, v in true.items()} | {
        f"pred_{q}": v for q, v in network.items()
    }
    (table,) = others.tables(arrays)
    by_name = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    late = 1e3 * np.abs(network["timing"] - true["timing"])[:300]
    assert float(by_name["time"]["network"].split(" ± ")[0]) == pytest.approx(
        np.percentile(late, 68), abs=3
    )
    assert by_name["time"][opponents.BOUND] == pytest.approx(50)
    assert by_name["time"]["network / bound"] == pytest.approx(np.percentile(late, 68) / 50)
    ratio = percentile68((network["uvwFI"] - true["uvwFI"])[:300, 1]) / percentile68(
        (classical["uvwFI"] - true["uvwFI"])[:300, 1]
    )
    assert by_name["v"]["network / best classical"] == pytest.approx(ratio)
    assert np.isnan(by_name["v"]["network / bound"])
    assert set(by_name) == {"energy", "u", "v", "w", "distance", "time"}
    assert "network / bound" in to_text(table)
    (drawing,) = others.drawings()
    assert drawing.stem == "limits"


class _Saved:
    class config:
        class data:
            time_branch = "relative_time"
            npho_branch = "npho"


class _Absolute:
    class config:
        class data:
            time_branch = "time"


def test_an_opponent_that_fails_leaves_the_network_alone(caplog):
    def fail(events):
        raise DataError("20 usable events for the depth")

    assert opponents._tried(fail, {}) == {}
    assert "left out of the comparison: 20 usable events" in caplog.text


def test_calibration_never_sees_what_is_judged(run, data, caplog):
    setting = setting_of(run, calibrate=(str(data),), calibrate_events=5)
    (batch,) = calibration_batches(setting)
    assert len(batch["npho"]) == 5
    assert not list(calibration_batches(dataclasses.replace(setting, files=(data,))))
    assert "is to be evaluated itself" in caplog.text


def test_what_opponents_may_see():
    others = opponents.Opponents(
        Setting("x", _Saved(), None, 0, True, None, "tree", (), Options(opponents=3))
    )
    events = {"npho": 1, "time": 2, "xyzVTX": 3}
    assert others._as_seen(events) == {"npho": 1}, "relative times without their zero"
    absolute = opponents.Opponents(
        Setting("x", _Absolute(), None, 0, True, None, "tree", (), Options(opponents=3))
    )
    assert absolute._as_seen(events | {"time_min_used": 4}) == {"npho": 1, "time": 2}
    assert others._as_seen(events | {"time_min_used": 4}) == {
        "npho": 1,
        "time": 2,
        "time_min_used": 4,
    }


@pytest.mark.parametrize(("name", "values"), [("dead", (0.0, 0.3)), ("gain", (0.0, 0.2))])
def test_scans_that_spoil(name, values, run, data, tmp_path, done):
    words = ["--run", run, "--input", data, "--output", tmp_path, "--scan", name, "--scan_values"]
    main([*map(str, words), *map(str, values)])
    found = json.loads((tmp_path / f"scan_{name}.json").read_text())
    assert found["values"] == list(values)
    assert found["events"] == [N, N]
    energy = found["metrics"]["energy [%]"]
    plain = 100 * done[1]["metrics"]["energy_rel_res_68pct"]
    assert energy["value"][0] == pytest.approx(plain, rel=1e-5)
    assert energy["value"][1] != energy["value"][0]
    assert energy["error"][0] > 0
    assert (tmp_path / "figures" / f"scan_{name}_reg.png").stat().st_size > 10_000


def test_scan_in_bins(run, data, rows, tmp_path):
    words = ["--run", run, "--input", data, "--output", tmp_path, "--scan", "energy"]
    main([*map(str, words), "--scan_values", "10", "30", "60"])
    found = json.loads((tmp_path / "scan_energy.json").read_text())
    energy = 1e3 * rows[0]["true_energy"].astype(float)
    low = (energy >= 10) & (energy < 30)
    assert found["events"] == [low.sum(), ((energy >= 30) & (energy <= 60)).sum()]
    late = 1e3 * np.abs(rows[0]["pred_timing"].astype(float) - rows[0]["true_timing"])[low]
    assert found["metrics"]["time [ps]"]["value"][0] == pytest.approx(
        np.percentile(late, 68), rel=1e-4
    )
    with pytest.raises(ConfigError, match="holds an evaluation"):
        main([*map(str, words)])


def test_scan_of_pile_up_needs_the_simulation(run, data, tmp_path):
    with pytest.raises(ConfigError, match="the detector behind these events is not known"):
        main(
            ["--run", str(run), "--input", str(data), "--output", str(tmp_path), "--scan", "pileup"]
        )


def test_pile_up_is_simulated_with_the_same_detector(monkeypatch, run, data):
    from xec_jax.sim.lxe_parameters import LxeParameters

    asked = []

    def sample(kind, events, *, seed, parameters):
        asked.append(parameters)
        return data

    monkeypatch.setattr(scan, "cached_sample", sample)
    setting = setting_of(run)
    known = LxeParameters(reflectivity=0.1)
    setting = dataclasses.replace(setting, sample=known)
    steps = scan._pileup(setting, 10, (0.0, 1e6))
    assert [s[0] for s in steps] == [0.0, 1e6]
    assert [p["pileup_rate_hz"] for p in asked] == [0.0, 1e6]
    assert {p["reflectivity"] for p in asked} == {0.1}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch_size", "0"], "--batch_size 0"),
        (["--opponents", "-1"], "--opponents -1"),
        (["--scan_values", "1"], "--scan_values without --scan"),
    ],
)
def test_refusals(words, message, run, data, tmp_path):
    with pytest.raises(ConfigError, match=message):
        main(["--run", str(run), "--input", str(data), "--output", str(tmp_path), *words])


def test_an_evaluation_is_not_overwritten_by_chance(done, run, data):
    words = ["--run", str(run), "--input", str(data), "--output", str(done[0])]
    with pytest.raises(ConfigError, match="holds an evaluation"):
        main(words)
    assert parser().parse_args([*words, "--hide_counts", "inner:3,us:0"]).hide_counts == {
        "inner": 3,
        "us": 0,
    }
    with pytest.raises(SystemExit):
        parser().parse_args([*words, "--hide_counts", "inner=3"])


def test_columns_grow():
    columns = Columns()
    columns.add({"a": np.arange(2)})
    columns.add({"a": np.arange(2, 5)})
    np.testing.assert_array_equal(columns.arrays()["a"], np.arange(5))
    columns.add({"a": np.array([9])})
    assert columns.arrays()["a"][-1] == 9


def test_baskets_of_the_tree_are_large(tmp_path):
    """Rows of many batches are written together, in their order; without any, none are."""
    import uproot

    with TreeFile(tmp_path / "a.root") as file:
        basket = engine.Basket(file, "tree")
        for k in range(9):
            basket.add({"x": np.arange(3 * k, 3 * k + 3)})
        basket.flush()
        basket.flush()
        assert file.entries == {"tree": 27}
    with uproot.open(tmp_path / "a.root") as file:
        np.testing.assert_array_equal(file["tree/x"].array(library="np"), np.arange(27))
        assert file["tree/x"].num_baskets == 1
