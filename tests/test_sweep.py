"""Promises of the search: no trial twice, none lost, and a reason for each that failed."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("optuna")

from xec_jax import sweep
from xec_jax.errors import ConfigError, DiskError, run_command
from xec_jax.search import results
from xec_jax.search import trial as trials
from xec_jax.search.plan import Plan
from xec_jax.search.space import combinations, read_space
from xec_jax.search.study import Study
from xec_jax.train.distributed import find_cluster

ROOT = Path(__file__).parents[1]
DRAW = results.draw_results

CONFIG = """
from ml_collections import ConfigDict

SEARCH = {
    "default": {"optim.lr": ("log", 1e-5, 1e-1), "model.layers": ("int", 1, 4)},
    "grid": {"optim.lr": ("log", 1e-4, 1e-2, 3), "model.pool": ("choice", (1, 1), (3, 3))},
    "ends": {"model.end": ("choice", "well", "diverged", "crashed", "killed", "refused", "blind")},
    "refused": {"model.end": ("choice", "refused", "well"), "optim.lr": ("log", 0.1, 0.2, 4)},
    "large": {"model.end": ("choice", "large", "well"), "optim.lr": ("log", 0.1, 0.2, 4)},
    "disk": {"model.end": ("choice", "disk", "well")},
    "prune": {"optim.lr": ("choice", 1e-3, 2e-3, 3e-3, 4e-3, 5e-3, 1.0)},
    "stopped": {"model.end": ("choice", "waiting", "well")},
}

def get_config(variant="default"):
    c = ConfigDict({k: ConfigDict() for k in ("data", "model", "optim", "train", "eval")})
    c.update({"task": "toy", "seed": 0, "log": ConfigDict(), "export": ConfigDict()})
    c.data.train, c.data.valid = "a", "b"
    c.model.layers, c.model.pool, c.model.end, c.model.width = 2, (2, 2), "well", 1.0
    c.optim.lr = 1e-3
    return c
"""

TRAINER = '''
"""Trains nothing: its loss is known beforehand. Continues where its record ends."""
import json, math, os, signal, sys, time
from pathlib import Path
from xec_jax.train.distributed import find_cluster
from xec_jax.train.lock import Lock

assert find_cluster(os.environ) is None

def leave(*_):
    sys.exit(75)

def value(key, default):
    found = [a.split("=", 1)[1] for a in sys.argv if a.startswith(f"--config.{key}=")]
    return found[0] if found else default

signal.signal(signal.SIGTERM, leave)
workdir, end = Path(sys.argv[1]), value("model.end", "well")
workdir.mkdir(parents=True, exist_ok=True)
with Lock(workdir), (workdir / "starts").open("a") as starts:
    starts.write(" ".join(sys.argv[2:]) + "\\n")
    starts.flush()
    record = workdir / "metrics.jsonl"
    begun = record.read_text().count("valid") if record.exists() else 0
    lr = float(value("optim.lr", 1e-3))
    for n in range(begun + 1, 4):
        loss = (math.log10(lr) + 3) ** 2 + 1 / n
        with record.open("a") as file:
            train = {"step": 10 * n, "split": "train", "loss": 99.0}
            valid = {"step": 10 * n, "split": "valid", "loss": loss, "accuracy": 1 - 1 / n}
            valid["loss"] = None if end == "blind" else loss
            file.write("".join(json.dumps(line) + "\\n" for line in (train, valid)))
        if end == "waiting" and begun == 0 or lr == 1.0:
            time.sleep(60)  # until told otherwise
    if end == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if end == "large":
        print("DeviceMemoryError: a step\\n  remedy: a smaller one")
    print("last words of the", end)
    sys.exit({"diverged": 3, "refused": 2, "large": 2, "crashed": 1, "disk": 4}.get(end, 0))
'''

WORKER = """
import sys
from xec_jax import sweep
from xec_jax.errors import run_command
from xec_jax.search import trial
trainer = sys.argv.pop(1)
trial.train_command = lambda config, words, workdir: [sys.executable, trainer, str(workdir), *words]
def main(argv):
    code = sweep.main(argv)
    assert "jax" not in sys.modules, "a worker has to leave the devices to its trainings"
    return code

run_command(main)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A config, a trainer and a worker script; in this process trials run the trainer, too."""
    for name, text in (("config", CONFIG), ("trainer", TRAINER), ("worker", WORKER)):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    words = [sys.executable, str(tmp_path / "trainer.py")]
    monkeypatch.setattr(trials, "train_command", lambda _, o, workdir: [*words, str(workdir), *o])
    monkeypatch.setattr(results, "draw_results", lambda study: [])  # seconds; one test does it
    return tmp_path


def arguments(place, *more):
    return ["--config", str(place / "config.py"), "--output", str(place / "study"), *more]


def start(place, *more):
    words = [sys.executable, place / "worker.py", place / "trainer.py", *arguments(place, *more)]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True)


def table(place):
    with (place / "study" / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def starts(place, number):
    return (place / "study" / "trials" / f"{number:04d}" / "starts").read_text().splitlines()


def wait_for(path, timeout_s=60):
    for _ in range(int(timeout_s / 0.05)):
        if path.exists() and path.read_text():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


def space(place, *changes, name="default", fixed=()):
    return read_space(str(place / "config.py"), name, fixed, changes)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("optim.lrr=('log', 1, 2)", "optim.lr"),
        ("optim.lr=('log', 0, 1)", "above zero"),
        ("optim.lr=('log', 1, 0.1)", "below the upper"),
        ("optim.lr=('log', 1)", "1 values"),
        ("optim.lr=('normal', 0, 1)", "unknown kind"),
        ("optim.lr=('uniform', 0, 'x')", "no number"),
        ("optim.lr=('uniform', 0, 1, 1)", "points"),
        ("optim.lr=('choice', 1.0)", "two different"),
        ("optim.lr=('choice', 1.0, 'many')", "does not fit"),
        ("optim.lr=__import__('os')", "no plain value"),
        ("optim.lr=1e-3", "no entry"),
        ("model.layers=('uniform', 1, 4)", "does not fit"),
        ("model.layers=('int', 1.5, 4)", "no integer"),
        ("model.pool=('int', 1, 4)", "does not fit"),
        ("model.end=('int', 1, 4)", "is a text"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(place, change, says):
    with pytest.raises(ConfigError, match=says):
        space(place, f"--search.{change}")


def test_a_space_is_declared_or_given(place):
    assert [d.key for d in space(place)] == ["optim.lr", "model.layers"]
    changed = space(place, "--search.model.layers=None", "--search.model.width=('uniform', 0, 1)")
    assert [d.key for d in changed] == ["optim.lr", "model.width"]
    with pytest.raises(ConfigError, match="default, grid"):
        space(place, name="grids")
    with pytest.raises(ConfigError, match="set by"):
        space(place, fixed=["--config.optim.lr=1e-3"])
    file = place / "config.py"
    file.write_text(CONFIG.replace("1e-5, 1e-1", "min(1, 2), 3"))
    with pytest.raises(ConfigError, match="computed"):
        space(place)
    file.write_text(CONFIG.replace("SEARCH", "OTHER"))
    with pytest.raises(ConfigError, match="declares no search space"):
        space(place)
    assert len(space(place, "--search.optim.lr=('log', 1e-4, 1)")) == 1


def test_the_spaces_that_come_with_the_project_fit():
    for name, named in (("mae", "size"), ("regress", "weights"), ("inpaint", "default")):
        for chosen in ("default", named):
            assert combinations(read_space(str(ROOT / "configs" / f"{name}.py"), chosen, ()))


def test_a_grid_is_complete_and_ends(place, capsys, monkeypatch):
    monkeypatch.setattr(results, "draw_results", DRAW)
    assert sweep.main(arguments(place, "--space", "grid", "--grid")) == 0
    out = capsys.readouterr().out
    rows = table(place)
    found = {(float(row["optim.lr"]), row["model.pool"]) for row in rows}
    assert found == {(lr, pool) for lr in (1e-4, 1e-3, 1e-2) for pool in ("(1, 1)", "(3, 3)")}
    assert len(rows) == 6
    best = json.loads((place / "study" / "best.json").read_text())
    assert best["value"] == pytest.approx(1 / 3)
    assert "--config.optim.lr=0.001" in best["overrides"]
    assert best["workdir"] in out
    for name in ("history", "parameters", "parallel", "curves"):
        assert (place / "study" / "figures" / f"{name}.pdf").stat().st_size > 1000

    monkeypatch.setattr(trials, "run", None)  # nothing is left to run
    assert sweep.main(arguments(place, "--space", "grid", "--grid")) == 0
    assert table(place) == rows


def test_a_grid_needs_points(place):
    with pytest.raises(ConfigError, match="how many values"):
        sweep.main(arguments(place, "--grid"))
    assert not (place / "study").exists()


def test_a_large_grid_costs_as_little_at_the_start_as_a_small_one(place):
    lines = []
    for n in (3, 300):
        changed = space(place, f"--search.optim.lr=('log', 1e-4, 1e-2, {n})", name="grid")
        study = Study(place / str(n), Plan(str(place / "config.py"), (), changed, is_grid=True))
        with study.next_trial(2 * n) as trial:
            assert trial.params == study.plan.points()[0]
        lines.append((study.folder / "study.journal").read_text().count("\n"))
    assert lines[0] == lines[1]


def test_a_worker_that_dies_while_it_takes_a_point_loses_none(place, monkeypatch):
    plan = Plan(str(place / "config.py"), (), space(place, name="grid"), is_grid=True)
    study = Study(place / "study", plan)
    with monkeypatch.context() as patch:
        patch.setattr(study.study, "ask", None)
        with pytest.raises(TypeError), study.next_trial(6):
            pass
    found = []
    for _ in range(6):
        with study.next_trial(6) as trial:
            found.append(trial.params)
            study.finish(trial, "complete", 1.0)
    with study.next_trial(6) as trial:
        assert trial is None
    assert found == plan.points()


def test_proposals_keep_away_from_trials_that_still_run(place, monkeypatch):
    study = Study(place / "study", Plan(str(place / "config.py"), (), space(place)))
    asked = []
    make = study.optuna.samplers.TPESampler
    monkeypatch.setattr(
        study.optuna.samplers,
        "TPESampler",
        lambda **options: asked.append(options) or make(**options),
    )
    with study.next_trial(1):
        assert asked == [{"seed": 0, "constant_liar": True}]


def test_the_dry_run_checks_a_trial_and_writes_nothing(place, capsys, monkeypatch):
    checked = []
    monkeypatch.setattr("xec_jax.train.check.check_config", checked.append)
    assert sweep.main(arguments(place, "--dry_run", "--config.model.width=3.0")) == 0
    assert "--config.model.width=3.0 --config.optim.lr=1e-05" in capsys.readouterr().out
    assert not (place / "study").exists()
    (config,) = checked
    assert (config.model.width, config.optim.lr) == (3.0, 1e-5)


def test_workers_share_a_study(place):
    workers = [start(place, "--trials", "8") for _ in range(2)]
    outputs = [worker.communicate(timeout=120) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    rows = table(place)
    assert [int(row["trial"]) for row in rows] == list(range(8))
    assert {row["state"] for row in rows} <= {"complete", "pruned"}
    assert len({row["optim.lr"] for row in rows}) == 8  # with the same seed
    assert all(len(starts(place, number)) == 1 for number in range(8))
    assert all(out.count("complete, loss") + out.count("pruned") > 0 for out, _ in outputs)
    assert not list((place / "study" / "workers").iterdir())


def test_trainings_of_one_job_step_do_not_join_each_other(place, monkeypatch):
    step = {"JOB_ID": "7", "PROCID": "1", "LOCALID": "1"}
    step |= {"STEP_NODELIST": "node1", "STEP_NUM_TASKS": "2"}
    for name, text in step.items():
        monkeypatch.setenv(f"SLURM_{name}", text)
    assert find_cluster(os.environ) is not None
    assert sweep.main(arguments(place, "--trials", "1")) == 0


def test_a_hopeless_trial_is_pruned(place):
    sweep.main(arguments(place, "--space", "prune", "--grid"))
    *good, bad = table(place)
    assert [row["state"] for row in good] == ["complete"] * 5
    assert (bad["state"], bad["validations"]) == ("pruned", "1")
    assert "median" in bad["note"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_trial_is_continued_in_its_folder(place, number):
    more = ("--space", "stopped", "--grid", "--config.model.width=2.0")
    worker = start(place, *more)
    folder = place / "study" / "trials" / "0000"
    wait_for(folder / "metrics.jsonl")
    trainer = json.loads((folder / ".lock").read_text())["pid"]
    worker.send_signal(number)
    _, err = worker.communicate(timeout=60)
    if number == signal.SIGTERM:
        assert worker.returncode == 75, err
        assert "trial 0" in err
        assert not (folder / ".lock").exists()  # the training has left properly
    else:  # the worker alone: its training goes on, and nobody disturbs it
        sweep.main(arguments(place, *more, "--trials", "2"))
        assert len(starts(place, 0)) == 1
        assert [row["state"] for row in table(place)] == ["running", "complete"]
        os.kill(trainer, signal.SIGKILL)
        while Path(f"/proc/{trainer}").exists():
            time.sleep(0.01)
    assert sweep.main(arguments(place, *more)) == 0
    assert [row["state"] for row in table(place)] == ["complete", "complete"]
    first, second = starts(place, 0)
    assert first == second
    assert "--config.model.width=2.0 --config.model.end=waiting" in first
    assert table(place)[0]["validations"] == "3"


def test_each_end_has_its_state_and_reason(place):
    sweep.main(arguments(place, "--space", "ends", "--grid"))
    rows = {row["model.end"]: row for row in table(place)}
    assert {end: row["state"] for end, row in rows.items()} == {
        "well": "complete",
        "diverged": "pruned",  # a lesson for the sampler, which a failure is not
        "crashed": "fail",
        "killed": "fail",
        "refused": "fail",
        "blind": "fail",
    }
    assert "no finite loss" in rows["blind"]["note"]
    assert rows["diverged"]["note"].startswith("diverged")
    assert "last words of the crashed" in rows["crashed"]["note"]
    assert "signal 9" in rows["killed"]["note"]


def test_a_study_in_which_all_is_refused_ends_early(place):
    with pytest.raises(ConfigError, match="last words of the refused"):
        sweep.main(arguments(place, "--space", "refused", "--grid"))
    assert len(table(place)) == 3


def test_trials_too_large_for_the_devices_are_not_refused(place, capsys):
    assert sweep.main(arguments(place, "--space", "large", "--grid")) == 0
    assert [row["state"] for row in table(place)] == ["fail"] * 4 + ["complete"] * 4
    assert "DeviceMemoryError" in table(place)[0]["note"]


def test_figures_that_fail_hide_no_results(place, monkeypatch, capsys):
    def fail(study):
        raise OSError("no space left")

    monkeypatch.setattr(results, "draw_results", fail)
    assert sweep.main(arguments(place, "--trials", "1")) == 0
    out, err = capsys.readouterr()
    assert "best loss" in out
    assert "no space left" in err


def test_a_full_disk_ends_the_worker_not_the_trial(place, monkeypatch):
    with pytest.raises(DiskError, match="last words of the disk"):
        sweep.main(arguments(place, "--space", "disk", "--grid"))
    assert [row["state"] for row in table(place)] == ["running"]
    text = (place / "trainer.py").read_text()
    (place / "trainer.py").write_text(text.replace('"disk": 4', '"disk": 0'))
    assert sweep.main(arguments(place, "--space", "disk", "--grid")) == 0
    assert [row["state"] for row in table(place)] == ["complete", "complete"]


def test_other_settings_do_not_join(place):
    assert sweep.main(arguments(place, "--trials", "1")) == 0
    with pytest.raises(ConfigError, match=r"config.model.width: 1.0 there, 3.0 here"):
        sweep.main(arguments(place, "--trials", "2", "--config.model.width=3.0"))
    with pytest.raises(ConfigError, match=r"space.optim.lr"):
        sweep.main(arguments(place, "--trials", "2", "--search.optim.lr=('log', 1e-3, 1)"))
    with pytest.raises(ConfigError, match=r"maximize"):
        sweep.main(arguments(place, "--trials", "2", "--max"))
    assert len(table(place)) == 1


def test_a_line_that_a_kill_cut_off_costs_nothing(place):
    assert sweep.main(arguments(place, "--trials", "1")) == 0
    with (place / "study" / "study.journal").open("a") as file:
        file.write('{"op_code": 4, "wor')
    assert sweep.main(arguments(place, "--trials", "2")) == 0
    assert len(table(place)) == 2


def test_larger_can_be_better(place):
    assert sweep.main(arguments(place, "--trials", "2", "--metric", "accuracy", "--max")) == 0
    assert json.loads((place / "study" / "best.json").read_text())["value"] == pytest.approx(2 / 3)


def test_an_unknown_metric_names_its_neighbors(place):
    with pytest.raises(ConfigError, match="accuracy"):
        sweep.main(arguments(place, "--metric", "acuracy"))


def test_without_optuna_the_extra_is_named(place, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SystemExit) as left:
        run_command(sweep.main, arguments(place))
    assert left.value.code == 2
    assert ".[tune]" in capsys.readouterr().err
