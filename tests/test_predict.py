"""`python -m xec_jax.predict`: rows in order, ensembles, dropout draws, calibration, refusals."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import uproot
from commands import run

from xec_jax import config as configs
from xec_jax.data.dead import write_dead
from xec_jax.data.root.writer import write_tree
from xec_jax.errors import CheckpointError, ConfigError, DataError
from xec_jax.nets.faces import CHANNELS
from xec_jax.plots.calibration import calibration, calibration_figure
from xec_jax.predict import main
from xec_jax.simulate import write_sample
from xec_jax.tasks import base, calorimeter
from xec_jax.tasks.base import Task, mean_and_spread
from xec_jax.train.saved import write_run

EVENTS = 11


def light_sum(config):
    """A task that needs no compiler's patience: energy from the sum of the light."""

    def predict(params, batch, key=None):
        light = jnp.where(batch["npho"] < 9e9, batch["npho"], 0).sum(-1)
        draws = 1.0 if key is None else jax.random.uniform(key, light.shape, minval=0.9, maxval=1.1)
        return {"pred_energy": params["w"] * light * draws, "n": batch["_position"]}

    return Task(
        name="light_sum",
        spec={name: ((4760,), np.float32) for name in CHANNELS} | {"energyTruth": ((), np.float32)},
        init=lambda key, batch: {"w": jax.random.uniform(key)},
        loss=None,
        evaluate=None,
        predict=predict,
        inputs=CHANNELS,
        truth=lambda batch: {"true_energy": batch["energyTruth"]},
        record={"normalization": {"npho_scale": 1000.0}},
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("events")
    write_sample("lxe", folder, EVENTS, files=2, seed=5)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of one network with different weights."""
    folder = tmp_path_factory.mktemp("runs")
    config = configs.load("configs/mae.py:tiny", ["--config.data.train=x"])
    for name, weight in (("a", 1e-7), ("b", 3e-7)):
        params = {"w": jnp.float32(weight)}
        write_run(folder / name, config, params, light_sum(config), origin={"by": "hand"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "make_task", light_sum)
        yield [folder / "a", folder / "b"]


def read(path):
    with uproot.open(path) as file:
        arrays = file["tree"].arrays(library="np")
        return arrays, json.loads(str(file["metadata"]))


def predict(output, *words):
    main([*map(str, words), "--output", str(output), "--batch_size", "4"])
    return read(output)


@pytest.fixture(scope="module")
def plain(runs, data, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "plain.root"
    return predict(output, "--run", runs[0], "--input", data)


def test_rows_are_those_of_the_input(plain, data):
    arrays, notes = plain
    truth = uproot.concatenate(
        f"{data}/*.root:tree", ["event", "energyTruth", "npho"], library="np"
    )
    np.testing.assert_array_equal(arrays["event"], truth["event"])
    np.testing.assert_array_equal(arrays["true_energy"], truth["energyTruth"].ravel())
    np.testing.assert_array_equal(arrays["n"], np.arange(EVENTS))
    light = np.where(truth["npho"] < 9e9, truth["npho"], 0).sum(-1)
    np.testing.assert_allclose(arrays["pred_energy"], 1e-7 * light, rtol=1e-5)
    assert set(arrays) == {"run", "event", "n_valid", "n", "pred_energy", "true_energy"}
    live = (truth["npho"] > 0) & (truth["npho"] < 9e9)
    np.testing.assert_array_equal(arrays["n_valid"], live.sum(-1))
    assert notes["config"]["task"] == "mae"
    assert notes["record"]["normalization"]["npho_scale"] == 1000
    assert notes["steps"] == [0]


def test_an_ensemble_is_mean_and_spread(runs, data, plain, tmp_path, capsys):
    both, _ = predict(tmp_path / "ab.root", "--run", *runs, "--input", data)
    a = plain[0]["pred_energy"]
    np.testing.assert_allclose(both["pred_energy"], 2 * a, rtol=1e-5)
    np.testing.assert_allclose(both["pred_energy_std"], 2**0.5 * a, rtol=1e-4)
    assert "within one sigma" in capsys.readouterr().out
    assert (tmp_path / "ab_calibration.png").stat().st_size > 10_000


def test_dropout_draws_differ_and_repeat(runs, data, plain, tmp_path):
    words = ["--run", runs[0], "--input", data, "--mc_dropout", 200]
    first, notes = predict(tmp_path / "a.root", *words)
    again, _ = predict(tmp_path / "b.root", *words)
    np.testing.assert_array_equal(first["pred_energy"], again["pred_energy"])
    spread = first["pred_energy_std"] / plain[0]["pred_energy"]
    np.testing.assert_allclose(spread, 0.2 / 12**0.5, rtol=0.2)
    assert notes["mc_dropout"] == 200


@pytest.fixture
def dead(data, tmp_path):
    """A list for the run of the data and the one that comes 7 later, and what each lacks."""
    run = int(uproot.concatenate(f"{data}/*.root:tree", ["run"], library="np")["run"][0])
    lacks = {run: np.arange(10, 900), run + 7: np.arange(0, 4760, 2)}
    write_dead(tmp_path / "dead.txt", {k: np.isin(np.arange(4760), v) for k, v in lacks.items()})
    return tmp_path / "dead.txt", lacks


def light_without(data, sensors):
    npho = uproot.concatenate(f"{data}/*.root:tree", ["npho"], library="np")["npho"]
    npho[:, sensors] = 1e10
    return np.where(npho < 9e9, npho, 0).sum(-1)


def test_dead_channels_are_left_out(runs, data, dead, plain, tmp_path, capsys):
    path, lacks = dead
    here, later = lacks
    words = ["--run", runs[0], "--input", data, "--dead_channels", path]
    arrays, notes = predict(tmp_path / "a.root", *words)
    np.testing.assert_allclose(
        arrays["pred_energy"], 1e-7 * light_without(data, lacks[here]), rtol=1e-5
    )
    counts = dict.fromkeys(("inner", "us", "ds", "outer", "top", "bot"), 0)
    assert notes["dead_channels"] == {
        "list": str(path),
        "run_number": None,
        "per_face": {f"run {here}": counts | {"inner": 890}},
    }
    npho = uproot.concatenate(f"{data}/*.root:tree", ["npho"], library="np")["npho"]
    live = np.delete((npho > 0) & (npho < 9e9), lacks[here], axis=1)
    np.testing.assert_array_equal(arrays["n_valid"], live.sum(-1))
    assert f"run {here}: 890 of 4760 sensors dead: inner 890" in capsys.readouterr().out
    arrays, notes = predict(tmp_path / "b.root", *words, "--run_number", later)
    np.testing.assert_allclose(
        arrays["pred_energy"], 1e-7 * light_without(data, lacks[later]), rtol=1e-5
    )
    assert notes["dead_channels"]["run_number"] == later
    assert sum(notes["dead_channels"]["per_face"]["all events"].values()) == 2380
    arrays, notes = predict(tmp_path / "c.root", *words[:-1], "/dev/null")
    np.testing.assert_array_equal(arrays["pred_energy"], plain[0]["pred_energy"])
    with pytest.raises(DataError, match=r"dead\.txt does not hold run 5") as error:
        predict(tmp_path / "d.root", *words, "--run_number", 5)
    assert str(here) in error.value.expected
    with pytest.raises(ConfigError, match="no list of dead channels"):
        predict(tmp_path / "d.root", *words[:-2], "--run_number", here)
    write_dead(path, {later: np.zeros(4760, bool)})
    with pytest.raises(DataError, match=rf"dead\.txt does not hold run {here}"):
        predict(tmp_path / "d.root", *words)
    assert not (tmp_path / "d.root").exists()


def test_each_run_has_its_own_dead_channels(runs, tmp_path):
    """Two runs in one file, mixed within a batch, and an event without light."""
    rng = np.random.default_rng(4)
    events = {
        "npho": rng.exponential(100, (9, 4760)).astype(np.float32) + 1,
        "relative_time": np.zeros((9, 4760), np.float32),
        "energyTruth": np.full(9, 0.05, np.float32),
        "run": np.array([7, 8, 7, 8, 8, 7, 7, 7, 8], np.int32),
    }
    events["npho"][4] = 1e10
    write_tree(tmp_path / "in.root", [events])
    lacks = {7: np.arange(4760) < 4000, 8: np.arange(4760) >= 4700}
    write_dead(tmp_path / "dead.txt", lacks)
    words = ["--run", runs[0], "--input", tmp_path / "in.root"]
    words += ["--dead_channels", tmp_path / "dead.txt"]
    arrays, notes = predict(tmp_path / "out.root", *words)
    sees = np.stack([~lacks[run] for run in events["run"]]) & (events["npho"] < 9e9)
    np.testing.assert_array_equal(arrays["n_valid"], sees.sum(-1))
    assert arrays["n_valid"][4] == 0
    light = np.where(sees, events["npho"], 0).sum(-1)
    np.testing.assert_allclose(arrays["pred_energy"], 1e-7 * light, rtol=1e-5)
    counts = notes["dead_channels"]["per_face"]
    assert {run: sum(faces.values()) for run, faces in counts.items()} == {
        "run 7": 4000,
        "run 8": 60,
    }


def test_what_the_training_read_is_no_matter(runs, data, dead, tmp_path, monkeypatch):
    """Its cache, its cuts and its bank stay behind; the list of dead channels comes along."""
    path, lacks = dead
    folder = shutil.copytree(runs[0], tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    config["data"] |= {"source": "tfds", "on_bad_file": "skip", "dead_channels": str(path)}
    config["data"]["fiducial"] = {"u": 0.001, "v": 0.001, "w": 0.001}
    config["data"]["augment"] |= {"dead_patterns": "/gone.txt", "dead_pattern_share": 0.5}
    (folder / "config.json").write_text(json.dumps(config))
    made = []
    monkeypatch.setattr(base, "make_task", lambda c: made.append(c) or light_sum(c))
    arrays, notes = predict(tmp_path / "out.root", "--run", folder, "--input", data)
    light = light_without(data, next(iter(lacks.values())))
    np.testing.assert_allclose(arrays["pred_energy"], 1e-7 * light, rtol=1e-5)
    assert calorimeter.augmentation_of(made[0]).dead_patterns is None
    assert notes["config"]["data"]["augment"]["dead_patterns"] == "/gone.txt"
    with pytest.raises(ConfigError, match=r"different data\.dead_channels"):
        predict(tmp_path / "both.root", "--run", folder, runs[1], "--input", data)


def test_refusals_leave_nothing(runs, data, tmp_path):
    target = tmp_path / "out.root"
    target.write_text("precious")
    with pytest.raises(ConfigError, match="--overwrite"):
        predict(target, "--run", runs[0], "--input", data)
    assert target.read_text() == "precious"
    with pytest.raises(CheckpointError, match="no run folder"):
        predict(tmp_path / "new.root", "--run", tmp_path, "--input", data)
    with pytest.raises(ConfigError, match="2 and more draws"):
        predict(tmp_path / "new.root", "--run", runs[0], "--input", data, "--mc_dropout", 1)
    with pytest.raises(ConfigError, match="batch_size"):
        main(["--run", "x", "--input", "y", "--output", "z.root", "--batch_size", "0"])
    assert [path.name for path in tmp_path.iterdir()] == ["out.root"]


def test_the_command_reports_missing_files(caches, runs, tmp_path):
    words = ["--run", runs[0], "--input", tmp_path / "no*.root", "--output", tmp_path / "o.root"]
    code, _, err = run(caches, *words, command="predict")
    assert code == 2
    assert "no*.root" in err
    assert "Traceback" not in err


def test_a_bare_encoder_predicts_nothing(runs, data, tmp_path):
    config = configs.load("configs/mae.py:tiny", ["--config.data.train=x"])
    params = {"encoder": jnp.zeros(3)}
    write_run(tmp_path / "bare", config, params, light_sum(config), origin={})
    with pytest.raises(CheckpointError, match="holds encoder and no w"):
        predict(tmp_path / "out.root", "--run", tmp_path / "bare", "--input", data)
    assert not (tmp_path / "out.root").exists()


def test_a_branch_that_files_lack_is_invalid_and_said_to_be(
    runs, data, tmp_path, monkeypatch, caplog
):
    def needy(config):
        task = light_sum(config)

        def with_moon(params, batch, key=None):
            found = task.predict(params, batch, key)
            return found | {"moon": batch["moonPhase"]}

        spec = dict(task.spec) | {"moonPhase": ((2,), np.float32)}
        inputs = ("npho", "time", "moonPhase")
        return dataclasses.replace(task, spec=spec, inputs=inputs, predict=with_moon)

    monkeypatch.setattr(base, "make_task", needy)
    arrays, _ = predict(tmp_path / "out.root", "--run", runs[0], "--input", data)
    assert (arrays["moon"] == 1e10).all()
    assert arrays["moon"].shape == (EVENTS, 2)
    assert "no branch 'moonPhase'" in caplog.text


def test_what_was_measured_is_no_truth(runs, tmp_path, monkeypatch, caplog):
    def angles(config):
        def truth(batch):
            names = {"emiAng": "true_angle", "energyTruth": "true_energy"}
            return {names[key]: batch[key] for key in names if key in batch}

        def predict(params, batch, key=None):
            return {"pred_angle": batch["npho"][:, :2], "pred_energy": batch["npho"][:, 0]}

        task = light_sum(config)
        spec = dict(task.spec) | {"emiAng": ((2,), np.float32)}
        return dataclasses.replace(task, spec=spec, truth=truth, predict=predict)

    monkeypatch.setattr(base, "make_task", angles)
    light = np.ones((3, 4760), np.float32)
    events = {"npho": light, "relative_time": light * 1e-9, "emiAng": light[:, :2]}
    write_tree(tmp_path / "real.root", [events])
    write_tree(tmp_path / "mc.root", [events | {"timeTruth": light[:, 0]}])
    words = ("--run", runs[0], "--input")
    found, notes = predict(tmp_path / "a.root", *words, tmp_path / "real.root")
    assert set(found) == {"n_valid", "pred_angle", "pred_energy"}
    assert "'emiAng' counts as measured" in caplog.text
    assert "no truth energyTruth, emiAng" in caplog.text
    caplog.clear()
    found, _ = predict(tmp_path / "b.root", *words, tmp_path / "mc.root")
    assert set(found) == {"n_valid", "pred_angle", "pred_energy", "true_angle"}
    assert "counts as measured" not in caplog.text
    assert "no truth energyTruth;" in caplog.text
    assert notes["units"] == {"pred_angle": "deg", "pred_energy": "GeV"}


def test_a_cache_is_refused(runs, tmp_path):
    (tmp_path / "dataset_info.json").touch()
    with pytest.raises(ConfigError, match=r"is a cache of xec_jax\.data\.build"):
        predict(tmp_path / "out.root", "--run", runs[0], "--input", tmp_path)


def test_an_ensemble_has_one_kind_of_answer(runs, data, tmp_path, monkeypatch):
    made = []

    def moody(config):
        task = light_sum(config)
        made.append(task)
        if len(made) == 1:
            return task
        return dataclasses.replace(
            task, predict=lambda p, b, key=None: {"pred_theta": b["npho"][:, :2]}
        )

    monkeypatch.setattr(base, "make_task", moody)
    other = shutil.copytree(runs[1], tmp_path / "other")
    text = (other / "config.json").read_text()
    (other / "config.json").write_text(text.replace('"loss_beta": 1.0', '"loss_beta": 2.0'))
    with pytest.raises(ConfigError, match="predict different things"):
        predict(tmp_path / "out.root", "--run", runs[0], other, "--input", data)


def test_mean_and_spread_of_claimed_errors():
    members = [
        {"pred_e": np.full(3, v), "pred_e_sigma": np.full(3, s), "n": np.arange(3)}
        for v, s in [(1.0, 3.0), (3.0, 4.0)]
    ]
    got = mean_and_spread(members)
    np.testing.assert_allclose(got["pred_e"], 2.0)
    np.testing.assert_allclose(got["pred_e_std"], 2**0.5)
    np.testing.assert_allclose(got["pred_e_sigma"], 12.5**0.5)
    np.testing.assert_array_equal(got["n"], np.arange(3))
    assert mean_and_spread(members[:1]) == members[0]


def test_calibration_knows_honest_errors():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(40_000, 2))
    error = np.exp(rng.normal(size=truth.shape))
    arrays = {
        "true_v": truth,
        "pred_v": truth + error * [1.0, 2.0] * rng.normal(size=truth.shape),
        "pred_v_std": 0.6 * error,
        "pred_v_sigma": 0.8 * error,
        "true_u": truth[:, 0],
        "pred_u": truth[:, 0],
    }
    arrays["true_v"][7] = 1e10
    results = calibration(arrays)
    assert list(results) == ["v[0]", "v[1]"]
    assert results["v[0]"].width == pytest.approx(1, abs=0.02)
    assert results["v[1]"].width == pytest.approx(2, abs=0.04)
    assert results["v[0]"].coverage(1) == pytest.approx(0.683, abs=0.01)
    assert len(results["v[0]"].pulls) == len(truth) - 1
    assert len(calibration_figure(results).axes) == 2
    arrays["pred_v"][3] = np.nan  # an event without the zero of its time, say
    assert len(calibration(arrays)["v[0]"].pulls) == len(truth) - 2
