"""F12: a tracker that fails, hangs or is missing costs a run nothing but its copies."""

import contextlib
import logging
import socket
import subprocess
import sys
import threading
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import toy
import tracking

from xec_jax.errors import ConfigError, DataError, Preempted
from xec_jax.train import trackers
from xec_jax.train.loggers import JsonlLogger
from xec_jax.train.records import read_jsonl
from xec_jax.train.trackers.copier import Copier, Places
from xec_jax.train.trackers.facts import read_facts
from xec_jax.train.trackers.hook import Tracker, Trackers
from xec_jax.train.trackers.wandb_writer import WandbWriter

COMMAND = "python -m xec_jax.runs sync"

# MLflow's database classes, with the SQLAlchemy of today.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


@pytest.fixture
def workdir(tmp_path):
    return tracking.make_run(tmp_path / "runs" / "first")


def warnings(caplog):
    """All that anybody said, but for the checkpoints' library."""
    records = [r for r in caplog.records if r.levelno >= logging.WARNING and r.name != "absl"]
    return [record.getMessage() for record in records]


def is_whole(workdir, end):
    return tracking.read_places(workdir) == tracking.expected(end)


def test_an_error_that_passes_is_not_seen(workdir, caplog):
    server = tracking.Server(failures=2)
    tracking.play(workdir, server.hook(workdir), 0, 9)
    assert server.steps == tracking.expected(9)
    assert len(server.opened) >= 3, "each try has a connection of its own"
    assert warnings(caplog) == []


def test_what_cannot_get_better_is_tried_once(workdir, caplog):
    class Misled(tracking.Server):
        def answer(self):
            self.tries += 1
            raise ConfigError("no such project")

    server = Misled()
    tracking.play(workdir, server.hook(workdir), 0, 9)
    assert server.tries == 1
    assert len(warnings(caplog)) == 1


def test_after_three_tries_there_is_one_warning_with_the_remedy(workdir, caplog):
    server = tracking.Server(failures=10**6)
    tracking.play(workdir, server.hook(workdir), 0, 9)
    (warning,) = warnings(caplog)
    assert f"{COMMAND} {workdir}" in warning
    assert "ConnectionError: no answer from https://***@host" in warning
    assert server.tries == 3
    assert is_whole(workdir, 9)


def test_a_tracker_that_hangs_is_left_behind(workdir, caplog):
    release = threading.Event()

    class Hanging(tracking.Server):
        def answer(self):
            release.wait()
            raise ConnectionError("closed")

    places = Places(workdir)
    copiers = [Copier(name, Hanging().open, workdir, places) for name in ("one", "two")]
    hook = Trackers([Tracker(copier) for copier in copiers], complete_s=0.05, stopped_s=0.05)
    tracking.play(workdir, hook, 0, 9)  # returns
    for name, warning in zip(("one", "two"), warnings(caplog), strict=True):
        assert f"{name} gets no more copies (not done" in warning
        assert COMMAND in warning
    assert is_whole(workdir, 9)
    release.set()
    for tracker in hook.trackers:
        tracker._thread.join()
    assert len(warnings(caplog)) == 2


@pytest.mark.parametrize(
    ("end", "error", "state", "limit"),
    [
        (99, None, "done", 20.0),
        (9, None, "preempted", 5.0),
        (9, Preempted("SIGTERM"), "preempted", 5.0),
        (9, ValueError("a mistake"), "failed", 5.0),
    ],
)
def test_all_trackers_share_one_deadline(workdir, end, error, state, limit):
    """SLURM kills 30 s after its signal, however many trackers hang."""
    now, events = 1000.0, []

    class Hanging:
        def start(self, run):
            pass

        def wake(self):
            pass

        def leave(self, state):
            events.append(state)

        def join(self, seconds):
            nonlocal now
            events.append("join")
            now += seconds

    hook = Trackers([Hanging(), Hanging(), Hanging()], clock=lambda: now)
    with contextlib.suppress(Preempted, ValueError):
        tracking.play(workdir, hook, 0, end, error=error)
    assert events == [state] * 3 + ["join"] * 3, "none waits for another one's end to begin"
    assert now == 1000.0 + limit


def test_files_that_cannot_be_sent_cost_neither_metrics_nor_the_end(tmp_path, caplog):
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    config = toy.config()
    config.log.trackers = ("mlflow",)
    workdir = tracking.make_run(tmp_path / "runs" / "first", config)
    tracking.play(workdir, tracking.hook("mlflow", workdir), 0, 3)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/runs/mlflow.db")
    (run,) = client.search_runs(["1"])
    copies = tmp_path / "runs" / "mlartifacts" / "toy" / run.info.run_id / "artifacts"
    (copies / "figures").write_text("a file in the way, which stops root as well")
    (workdir / "figures").mkdir()
    for name in ("figures/a.png", "z.png"):
        (workdir / name).write_text("a picture")
    tracking.play(workdir, tracking.hook("mlflow", workdir), 3, 9, total=9)
    (warning,) = warnings(caplog)
    assert "1 of 5 files were not sent: figures/a.png" in warning
    assert COMMAND in warning
    assert (copies / "z.png").exists(), "tried after the one that failed"
    (run,) = client.search_runs(["1"])
    assert run.info.status == "FINISHED"
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 9
    with pytest.raises(DataError, match=r"figures/a\.png"):
        trackers.sync(workdir)
    (copies / "figures").unlink()
    (workdir / "status.json").write_text('{"state": "done"}')
    trackers.sync(workdir)
    assert (copies / "figures" / "a.png").exists()
    (run,) = client.search_runs(["1"])
    assert run.info.status == "FINISHED"


def test_wandb_is_told_the_end_although_files_fail(workdir):
    """The package itself is not needed: its run is anything with these methods."""
    ends = []

    def save(path, **options):
        raise OSError("disk full")

    run = SimpleNamespace(id="1", save=save, finish=ends.append)
    writer = WandbWriter(run, read_facts(workdir), is_new=True)
    writer.tell("lost")
    with pytest.raises(OSError, match="1 of 1 files were not sent: environment"):
        writer.close()
    assert ends == [137]


def test_the_end_is_told_before_the_rest_is_sent(workdir):
    """A last sending that fails for good must not leave a run that seems to go on."""
    server = tracking.Server()
    tracking.play(workdir, server.hook(workdir), 0, 3)
    server.failures = 10**6
    for _ in tracking.records(workdir, 3, 9):
        pass
    with pytest.raises(ConnectionError):
        server.copier(workdir).finish("done")
    assert server.told[-1] == "done"


def test_training_is_the_same_with_a_broken_tracker(tmp_path, caplog):
    from xec_jax.train.loop import fit

    def train(workdir, *hooks):
        tracking.make_run(workdir)
        hooks = [JsonlLogger(workdir / "metrics.jsonl"), *hooks]
        source, valid = toy.sources()
        result = fit(toy.task(), toy.config(), source, valid, workdir=workdir, hooks=hooks)
        return jax.device_get(result.state.params), read_jsonl(workdir / "metrics.jsonl")

    server = tracking.Server(failures=10**6)
    alone = train(tmp_path / "alone")
    both = train(tmp_path / "both", server.hook(tmp_path / "both"))
    jax.tree.map(np.testing.assert_array_equal, alone[0], both[0])
    assert [r["loss"] for r in alone[1]] == [r["loss"] for r in both[1]]
    assert [COMMAND in text for text in warnings(caplog)] == [True]


@pytest.mark.parametrize("name", ["mlflow", "tensorboard", "wandb"])
def test_missing_package(workdir, caplog, monkeypatch, name):
    for module in [m for m in sys.modules if m.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracking.play(workdir, tracking.hook(name, workdir, delays=(60.0, 60.0)), 0, 5)
    (warning,) = warnings(caplog)
    assert name in warning
    assert "Error: " in warning
    assert COMMAND in warning
    assert is_whole(workdir, 5)


@pytest.fixture
def impatient():
    """MLflow waits 20 s for a locked database, and has no setting for that."""
    sqlalchemy = pytest.importorskip("sqlalchemy")

    def shorten(connection, cursor, statement, parameters, context, many):
        return statement.replace("busy_timeout = 20000", "busy_timeout = 20"), parameters

    where = (sqlalchemy.Engine, "before_cursor_execute", shorten)
    sqlalchemy.event.listen(*where, retval=True)
    yield
    sqlalchemy.event.remove(*where)


def test_mlflow_database_that_is_locked(tmp_path, caplog, impatient):
    """Another process holds it in the midst of a run; afterwards the rest is sent."""
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    path = tmp_path / "mlflow.db"
    config = toy.config()
    config.log.mlflow_uri = uri = f"sqlite:///{path}"
    config.log.trackers = ("mlflow",)
    workdir = tracking.make_run(tmp_path / "runs" / "first", config)
    tracking.play(workdir, tracking.hook("mlflow", workdir), 0, 3)
    script = (
        "import sqlite3, sys\n"
        "database = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "database.execute('BEGIN EXCLUSIVE')\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script, str(path)], **pipes) as other:
        assert other.stdout.readline() == b"locked\n"
        tracking.play(workdir, tracking.hook("mlflow", workdir), 3, 9)
        other.stdin.close()
        other.stdout.read()
    (warning,) = warnings(caplog)
    assert "database is locked" in warning
    assert COMMAND in warning
    assert is_whole(workdir, 9)
    trackers.sync(workdir)
    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs(["1"])
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")]
    assert steps == list(range(1, 10))
    assert len(warnings(caplog)) == 1


def test_mlflow_server_that_is_down(tmp_path, caplog):
    pytest.importorskip("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    config = toy.config()
    config.log.mlflow_uri = address
    workdir = tracking.make_run(tmp_path / "run", config)
    tracking.play(workdir, tracking.hook("mlflow", workdir), 0, 9)
    (warning,) = warnings(caplog)
    assert address in warning
    assert is_whole(workdir, 9)


def test_tensorboard_folder_that_cannot_be_written(workdir, caplog):
    pytest.importorskip("tensorboard")
    (workdir / "tensorboard").write_text("a file in the way, which stops root as well")
    tracking.play(workdir, tracking.hook("tensorboard", workdir), 0, 9)
    (warning,) = warnings(caplog)
    assert "tensorboard" in warning
    assert is_whole(workdir, 9)


def test_wandb_without_a_key_does_not_ask(workdir, caplog, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    tracking.play(workdir, tracking.hook("wandb", workdir, delays=(60.0, 60.0)), 0, 9)
    (warning,) = warnings(caplog)
    assert "WANDB_API_KEY is not set" in warning
    assert is_whole(workdir, 9)


def test_places_that_cannot_be_written_are_kept_in_memory(workdir, caplog):
    (workdir / "trackers.json").mkdir()
    server = tracking.Server()
    tracking.play(workdir, server.hook(workdir), 0, 30)
    assert server.steps == tracking.expected(30)
    unreadable, unwritable = warnings(caplog)
    assert "cannot be read" in unreadable
    assert "steps twice" in unwritable


@pytest.mark.parametrize("content", ["", "{", "[1]", "null"])
def test_damaged_places_begin_anew(workdir, content):
    (workdir / "trackers.json").write_text(content)
    server = tracking.Server()
    tracking.play(workdir, server.hook(workdir), 0, 9)
    assert server.steps == tracking.expected(9)
