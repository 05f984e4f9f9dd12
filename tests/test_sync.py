"""Sending afterwards what trackers lack: alone, in the right state, whatever fails."""

import contextlib
import json

import pytest
import tracking

from xec_jax import runs as command
from xec_jax.errors import CheckpointError, ConfigError, DataError
from xec_jax.train import trackers
from xec_jax.train.lock import Lock
from xec_jax.train.trackers import mlflow_writer, wandb_writer
from xec_jax.train.trackers.copier import CHUNK


@pytest.fixture
def workdir(tmp_path):
    return tracking.make_run(tmp_path / "runs" / "first")


@pytest.fixture
def server(monkeypatch):
    """A tracker in the place of MLflow."""
    server = tracking.Server()
    monkeypatch.setitem(trackers.WRITERS, "mlflow", server.open)
    return server


def test_sync_replays_what_is_missing(workdir, server):
    for _ in tracking.records(workdir, 0, 9):
        pass
    with pytest.raises(ConfigError, match="names no tracker"):
        trackers.sync(workdir)
    with pytest.raises(ConfigError, match="mlflw"):
        trackers.sync(workdir, ["mlflw"])
    with pytest.raises(ConfigError, match="holds no run"):
        trackers.sync(workdir.parent)
    server.failures = 1
    with pytest.raises(DataError, match=r"mlflow took no copy.*ConnectionError"):
        trackers.sync(workdir, ["mlflow"])
    for _ in range(2):
        trackers.sync(workdir, ["mlflow"])
        assert server.steps == tracking.expected(9)


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("running", "lost"),  # nobody holds it: kill -9
        (None, "lost"),
        ("done", "done"),
        ("failed", "failed"),
        ("preempted", "preempted"),
        ("interrupted", "interrupted"),
    ],
)
def test_sync_tells_how_the_run_ended(workdir, server, written, told):
    for _ in tracking.records(workdir, 0, 3):
        pass
    if written:
        (workdir / "status.json").write_text(json.dumps({"state": written}))
    trackers.sync(workdir, ["mlflow"])
    assert (server.told, server.closed) == ([told], 1)
    assert told in mlflow_writer.STATUS
    assert told in wandb_writer.EXIT_CODE
    assert mlflow_writer.STATUS[told] != "RUNNING"
    assert (wandb_writer.EXIT_CODE[told] == 0) == (told == "done")


def test_a_tracker_that_fails_keeps_no_other_from_being_synced(workdir, server, monkeypatch):
    class Unready(tracking.Server):
        def open(self, facts, run_id):
            raise ConfigError("no key", remedy="set one")

    other = tracking.Server()
    monkeypatch.setitem(trackers.WRITERS, "wandb", Unready().open)
    monkeypatch.setitem(trackers.WRITERS, "tensorboard", other.open)
    for _ in tracking.records(workdir, 0, 9):
        pass
    server.failures = 1
    with pytest.raises(DataError) as caught:
        trackers.sync(workdir, ["mlflow", "wandb", "tensorboard"])
    for text in ("mlflow took no copy", "ConnectionError", "wandb took no copy", "no key"):
        assert text in str(caught.value)
    assert other.steps == tracking.expected(9)


def test_sync_gives_way_to_a_job(workdir, server):
    """One that is there, and one that starts between two sendings: its steps are its own."""
    for _ in tracking.records(workdir, 0, 3 * CHUNK):
        pass
    with Lock(workdir), pytest.raises(CheckpointError, match="at work"):
        trackers.sync(workdir, ["mlflow"])
    assert server.opened == []
    with contextlib.ExitStack() as job:
        server.answer = lambda: job.enter_context(Lock(workdir))
        with pytest.raises(CheckpointError, match="at work"):
            trackers.sync(workdir, ["mlflow"])
    assert server.steps == tracking.expected(3 * CHUNK)[:CHUNK]
    assert server.closed == 0
    del server.answer
    trackers.sync(workdir, ["mlflow"])
    assert server.steps == tracking.expected(3 * CHUNK)


def test_two_syncs_do_not_send_the_same(workdir, server):
    for _ in tracking.records(workdir, 0, 9):
        pass

    def again():
        with pytest.raises(CheckpointError, match="copying this run"):
            trackers.sync(workdir, ["mlflow"])

    server.answer = again
    trackers.sync(workdir, ["mlflow"])
    assert server.steps == tracking.expected(9)
    assert {path.name for path in workdir.iterdir()} == {
        *("config.json", "environment.json", "metrics.jsonl", "trackers.json")
    }, "no lock stays behind"


def test_sync_command(tmp_path, server, monkeypatch):
    """Several runs, trackers that they did not have, and a failure that stops nothing."""
    other = tracking.Server()
    monkeypatch.setitem(trackers.WRITERS, "wandb", other.open)
    runs = [tracking.make_run(tmp_path / name) for name in "ab"]
    for run in runs:
        for _ in tracking.records(run, 0, 4):
            pass
    names = ["--tracker", "mlflow", "--tracker", "wandb"]
    words = ["sync", str(runs[0]), str(tmp_path / "none"), str(runs[1]), *names]
    with pytest.raises(ConfigError, match="none holds no run"):
        command.main(words)
    assert server.steps == other.steps == 2 * tracking.expected(4)
    assert command.main(["sync", *map(str, runs), *names]) == 0
    assert server.steps == other.steps == 2 * tracking.expected(4)
    with pytest.raises(DataError) as caught:
        command.main(["sync", *map(str, runs)])
    for run in runs:
        assert f"{run}/config.json: log.trackers names no tracker" in str(caught.value)
    with pytest.raises(SystemExit):
        command.main(["sync", *names])
