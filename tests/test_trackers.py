"""Copies of the record: complete, once, in the same run after a resume; what a tracker is told."""

import contextlib
import json
import os
import sqlite3
import threading
import time
from pathlib import Path

import pytest
import toy
import tracking
from hypothesis import given, settings
from hypothesis import strategies as st

from xec_jax.errors import ConfigError, Preempted
from xec_jax.registry.run import Metric
from xec_jax.registry.scan import scan
from xec_jax.train import trackers
from xec_jax.train.trackers import mlflow_writer, names
from xec_jax.train.trackers.copier import Copier, Places
from xec_jax.train.trackers.facts import artifacts, read_facts

# MLflow's database classes, with the SQLAlchemy of today.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


@pytest.fixture
def workdir(tmp_path):
    return tracking.make_run(tmp_path / "runs" / "first")


def test_everything_arrives_once_over_a_resume(workdir):
    server = tracking.Server()
    tracking.play(workdir, server.hook(workdir), 0, 7)
    tracking.play(workdir, server.hook(workdir), 4, 10)  # 5 to 7 are made again
    assert server.steps == tracking.expected(10)
    assert server.opened[0] is None
    assert set(server.opened[1:]) == {"run-1"}, "the same run again"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 9), st.integers(0, 9), st.sets(st.integers(0, 30))), max_size=5
    )
)
def test_any_history_of_kills_leaves_a_complete_copy(tmp_path_factory, history):
    """Each attempt makes some steps, dies, and is restored some steps before its end."""
    workdir = tracking.make_run(tmp_path_factory.mktemp("runs") / "run")
    server, end = tracking.Server(), 0
    for made, lost, copied_at in history:
        start = max(end - lost, 0)
        end = start + made
        copier = server.copier(workdir)
        for n, _ in enumerate(tracking.records(workdir, start, end)):
            if n in copied_at:
                copier.copy()
    server.copier(workdir).finish("done")
    made = max((s for s, _ in tracking.read_places(workdir)), default=0)
    assert [step for step in server.steps if step[0] <= made] == tracking.expected(made)
    assert len(server.steps) == len(set(server.steps))


def test_a_late_validation_of_a_step_is_not_forgotten(workdir):
    server = tracking.Server()
    path = workdir / "metrics.jsonl"
    train, valid = ({"step": 5, "split": s, "loss": 1.0} for s in ("train", "valid"))
    path.write_text(json.dumps(train) + "\n")
    server.copier(workdir).copy()
    path.write_text(json.dumps(train) + "\n" + json.dumps(valid) + "\n")
    server.copier(workdir).copy()
    assert server.steps == [(5, "train"), (5, "valid")]


def test_half_a_line_waits_for_its_end(workdir):
    server = tracking.Server()
    copier, path = server.copier(workdir), workdir / "metrics.jsonl"
    path.write_text('{"step": 1, "split": "train"}\n{"step": 2, "spl')
    copier.copy()
    assert server.steps == [(1, "train")]
    path.write_text('{"step": 1, "split": "train"}\n{"step": 2, "split": "train"}\n')
    copier.copy()
    assert server.steps == [(1, "train"), (2, "train")]


def test_a_run_that_the_tracker_lost_is_sent_anew(workdir):
    server = tracking.Server()
    tracking.play(workdir, server.hook(workdir), 0, 6)
    other = tracking.Server()
    tracking.play(workdir, other.hook(workdir), 6, 8)
    assert other.steps == tracking.expected(8)


@pytest.mark.parametrize(
    ("error", "end", "state"),
    [
        (None, 9, "done"),
        (None, 5, "preempted"),
        (Preempted("SIGTERM"), 5, "preempted"),
        (KeyboardInterrupt(), 5, "preempted"),
        (ValueError("a mistake"), 5, "failed"),
    ],
)
def test_the_tracker_learns_how_the_run_ended(workdir, error, end, state):
    server = tracking.Server()
    if error is None:
        tracking.play(workdir, server.hook(workdir), 0, end, total=9)
    else:
        with pytest.raises(type(error)):
            tracking.play(workdir, server.hook(workdir), 0, end, total=9, error=error)
    assert server.told == ["running", state]
    assert server.closed == 1
    assert server.steps == tracking.expected(end)


def test_wrong_names_are_found_before_anything_is_touched(tmp_path):
    config = toy.config()
    config.log.trackers = ("mlflow", "tensorbord")
    with pytest.raises(ConfigError, match="perhaps tensorboard"):
        trackers.make_trackers(config, tmp_path / "run")
    config.log.trackers = ("mlflow", "tensorboard", "wandb")
    (hook,) = trackers.make_trackers(config, tmp_path / "run")
    assert [tracker.copier.name for tracker in hook.trackers] == list(config.log.trackers)
    assert not (tmp_path / "run").exists()
    assert trackers.make_trackers(toy.config(), tmp_path) == []


def test_places_of_several_trackers_share_a_file(workdir):
    places = Places(workdir)

    def work(name):
        for step in range(20):
            places.put(name, {"run": name, "step": step, "splits": []})

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: Places(workdir).get(name, {})["step"] for name in "abc"} == dict.fromkeys(
        "abc", 19
    )
    assert [path.name for path in workdir.glob(".*")] == [], "no temporary file stays"


def test_secrets_stay_at_home(tmp_path):
    config = toy.config()
    login = "mysql://me:open/sesame@2@host/db"
    keys = {"api_key": "open/sesame", "s3": {"secret": ("open/sesame",)}, "key_dim": 64}
    config.data.update({**keys, "db_password": "open/sesame", "url": f"see {login}"})
    config.log.mlflow_uri = login
    workdir = tracking.make_run(tmp_path / "run", config)
    facts = read_facts(workdir)
    assert facts.mlflow_uri == login
    assert "sesame" not in json.dumps([facts.config, facts.params, facts.tags])
    assert facts.params["data.key_dim"] == "64"
    assert facts.params["log.mlflow_uri"] == "mysql://***@host/db"
    assert facts.params["optim.no_decay"] == "['bias']"


def test_artifacts_are_results_and_never_checkpoints(workdir):
    keep = [
        "environment.json",
        "metrics.jsonl",
        "figures/a.png",
        "predictions.root",
        "out/net.onnx",
    ]
    drop = ["config.json", "status.json", ".lock", ".hidden/a.png", "checkpoints/5/a.png"]
    for name in (*keep, *drop, "tensorboard/events", "wandb/x.csv", "figures/a.txt"):
        (workdir / name).parent.mkdir(parents=True, exist_ok=True)
        (workdir / name).write_text("{}")
    assert {path.relative_to(workdir).as_posix() for path in artifacts(workdir)} == set(keep)


def test_names_and_their_table():
    record = {"step": 3, "split": "train", "time": 1.0, "elapsed_s": 1.0, "epoch": 0.5, "loss": 2}
    record |= {"lr": None, "events_per_s": 7.0, "limited_by": "reading"}
    record |= {"data_wait": 0.25, "compute_share": 0.75}
    assert names.named(record) == {
        "epoch": 0.5,
        "train/loss": 2.0,
        "system/throughput_events_per_sec": 7.0,
        "system/data_wait": 0.25,
        "system/compute_efficiency": 0.75,
    }
    record = {"step": 3, "split": "valid", "epoch": 1.0, "loss": 2.0, "bias (ps)": 1.0}
    assert names.named(record) == {"valid/loss": 2.0, "valid/bias _ps_": 1.0}
    page = Path(__file__).parents[1] / "docs" / "tracking.md"
    assert names.markdown() in page.read_text(), "print(names.markdown()) makes the table"


def test_tensorboard_shows_a_resumed_run_as_one_curve(workdir):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, end in ((0, 7), (4, 10)):
        tracking.play(workdir, tracking.hook("tensorboard", workdir), start, end)
    events = EventAccumulator(str(workdir / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 11))
    assert [event.step for event in events.Scalars("valid/loss")] == [5, 10]
    last = events.Scalars("train/loss")[-1]
    assert last.value == pytest.approx(0.1)
    assert last.wall_time == tracking.TIME + 10


@pytest.fixture(scope="module")
def mlflow_runs(tmp_path_factory):
    """A run that was stopped and went on with another `train.epochs`."""
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    workdir = tmp_path_factory.mktemp("runs") / "first"
    config = toy.config()
    config.model.update({f"width_{n}": n for n in range(120)})
    config.model.text = "x" * 900
    tracking.make_run(workdir, config)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(workdir.parent.parent)
        tracking.play(workdir, tracking.hook("mlflow", workdir), 0, 7)
        uri = f"sqlite:///{workdir.parent}/mlflow.db"
        client = MlflowClient(tracking_uri=uri)
        (first,) = client.search_runs(["1"])
        config.train.epochs = 9
        tracking.make_run(workdir, config)
        (workdir / "figures").mkdir()
        (workdir / "figures" / "curve.png").write_text("picture")
        (workdir / "checkpoints" / "7").mkdir(parents=True)
        (workdir / "checkpoints" / "7" / "a.png").write_text("no result")
        tracking.play(workdir, tracking.hook("mlflow", workdir), 4, 10, total=10)
        yield client, first, workdir


def test_mlflow_continues_the_same_run(mlflow_runs):
    client, first, _ = mlflow_runs
    (run,) = client.search_runs(["1"])
    assert client.get_experiment("1").name == "toy"
    assert run.info.run_name == "first"
    assert (first.info.status, run.info.status) == ("KILLED", "FINISHED")
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(m.step, m.timestamp) for m in history] == [
        (n, 1000 * (tracking.TIME + n)) for n in range(1, 11)
    ]
    assert [m.step for m in client.get_metric_history(run.info.run_id, "valid/loss")] == [5, 10]
    assert client.get_metric_history(run.info.run_id, "train/null") == []


def test_mlflow_shows_config_and_versions(mlflow_runs):
    client, _, _ = mlflow_runs
    (run,) = client.search_runs(["1"])
    params, tags = run.data.params, run.data.tags
    assert params["model.width_119"] == "119"
    assert params["model.text"] == "x" * 500
    assert params["n_parameters"] == "20"
    assert params["train.epochs"] == "4", "MLflow changes no parameter"
    assert tags["changed.train.epochs"] == "9"
    assert tags["git"] == f"{tracking.COMMIT}+changes"
    assert tags["mlflow.source.git.commit"] == tracking.COMMIT
    assert tags["record.events.train"] == "3f2a"


def test_mlflow_has_results_beside_the_database(mlflow_runs):
    client, _, workdir = mlflow_runs
    (run,) = client.search_runs(["1"])
    folder = workdir.parent / "mlartifacts" / "toy" / run.info.run_id / "artifacts"
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert found == {"config.json", "environment.json", "metrics.jsonl", "figures/curve.png"}
    assert json.loads((folder / "config.json").read_text())["task"] == "toy"
    assert not Path("mlruns").exists()


def test_copies_are_not_listed_as_runs(mlflow_runs):
    """MLflow has config and record of the run beside it: a second run, it seems."""
    _, _, workdir = mlflow_runs
    assert [run.run for run in scan(workdir.parent, Metric())] == ["first"]


@pytest.mark.parametrize(
    ("mounts", "job", "mode"),
    [
        ("/dev/sda / ext4", None, "wal"),
        ("/dev/sda / ext4", "77", "delete"),
        ("/dev/sda / ext4\nhost:/home {} nfs4", None, "delete"),
        ("host:/home / nfs4\n/dev/nvme {} xfs", None, "wal"),
        ("/dev/sda / ext4\n/dev/sda {} ext4\nscratch {} lustre", None, "delete"),
        *((f"x / {kind}", None, "delete") for kind in ("gpfs", "cifs", "beegfs", "fuse.sshfs")),
        ("host:/ /elsewhere nfs4", None, "delete"),
        ("", None, "delete"),
    ],
)
def test_wal_only_where_no_other_machine_writes(tmp_path, monkeypatch, mounts, job, mode):
    pytest.importorskip("mlflow")
    folder = tmp_path / "a disk"
    folder.mkdir()
    lines = mounts.replace("{}", str(folder).replace(" ", "\\040")).splitlines()
    (tmp_path / "mounts").write_text("".join(f"{line} rw 0 0\n" for line in lines))
    monkeypatch.setattr(mlflow_writer, "MOUNTS", tmp_path / "mounts")
    monkeypatch.setattr(mlflow_writer, "_import_mlflow", lambda: _Empty)
    if job:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    else:
        monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    mlflow_writer._create(folder / "mlflow.db")
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == (mode,)


class _Empty:
    """MLflow takes seconds to make its tables."""

    def __init__(self, tracking_uri):
        pass

    def search_experiments(self):
        pass


def test_jobs_that_start_together_share_one_database(mlflow_runs):
    """The second has found no file either, and loses: it must not take the first one's place."""
    client, _, workdir = mlflow_runs
    path = workdir.parent / "mlflow.db"
    before = path.stat().st_ino
    mlflow_writer._create(path)
    assert path.stat().st_ino == before
    assert len(client.search_runs(["1"])) == 1
    assert not list(path.parent.glob(".mlflow*")), "nothing stays behind"


def test_mlflow_run_that_was_deleted_is_sent_anew(mlflow_runs, tmp_path):
    client, _, workdir = mlflow_runs
    config = toy.config()
    config.log.update({"mlflow_uri": f"sqlite:///{workdir.parent}/mlflow.db", "run_name": "other"})
    config.log.experiment = "elsewhere"
    second = tracking.make_run(tmp_path / "second", config)
    tracking.play(second, tracking.hook("mlflow", second), 0, 3)
    experiment = client.get_experiment_by_name("elsewhere").experiment_id
    (run,) = client.search_runs([experiment])
    client.delete_run(run.info.run_id)
    trackers.sync(second, ["mlflow"])
    (again,) = client.search_runs([experiment])
    assert again.info.run_id != run.info.run_id
    assert again.info.run_name == "other"
    assert len(client.get_metric_history(again.info.run_id, "train/loss")) == 3


def test_mlflow_experiment_that_was_deleted_is_restored(mlflow_runs, tmp_path, caplog):
    client, _, workdir = mlflow_runs
    config = toy.config()
    config.log.mlflow_uri = f"sqlite:///{workdir.parent}/mlflow.db"
    config.log.experiment = "gone"
    second = tracking.make_run(tmp_path / "second", config)
    experiment = client.create_experiment("gone")
    client.delete_experiment(experiment)
    tracking.play(second, tracking.hook("mlflow", second), 0, 3)
    (run,) = client.search_runs([experiment])
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 3
    assert "restored" in caplog.text


def test_mlflow_status_of_a_run_that_was_killed(mlflow_runs, tmp_path):
    """With kill -9 nobody tells MLflow; a sync knows that nobody holds the run."""
    client, _, workdir = mlflow_runs
    config = toy.config()
    config.log.update({"mlflow_uri": f"sqlite:///{workdir.parent}/mlflow.db"})
    config.log.experiment = "killed"
    second = tracking.make_run(tmp_path / "second", config)
    for _ in tracking.records(second, 0, 3):
        pass
    places = Places(second)
    Copier("mlflow", trackers.WRITERS["mlflow"], second, places).copy()
    run_id = places.get("mlflow", {})["run"]
    assert client.get_run(run_id).info.status == "RUNNING"
    (second / "status.json").write_text('{"state": "running"}')
    trackers.sync(second, ["mlflow"])
    assert client.get_run(run_id).info.status == "KILLED"


def test_wandb_offline(workdir, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    for start, end in ((0, 7), (4, 10)):
        tracking.play(workdir, tracking.hook("wandb", workdir), start, end)
        time.sleep(1.1)  # W&B names its folders by the second
    run_id = json.loads((workdir / "trackers.json").read_text())["wandb"]["run"]
    files = list((workdir / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert len(files) == 2, "two parts of one run, for wandb sync"
    assert all(os.path.getsize(path) for path in files)
    assert [run.run for run in scan(workdir.parent, Metric())] == ["first"]
