"""The status of a run: every way to end is written down, and hides nothing."""

import errno
import json
import logging
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xec_jax import config as configs
from xec_jax.errors import CheckpointError, DataError, DiskError, DivergedError, Preempted
from xec_jax.train import status
from xec_jax.train.lock import Lock

COMMAND = ["python", "-m", "xec_jax.train", "--config", "x.py"]


@pytest.mark.parametrize(
    ("error", "state", "reason", "code"),
    [
        (None, "done", "", 0),
        (Preempted("stopped by SIGTERM after step 7"), "preempted", "stopped by SIGTERM", 75),
        (DivergedError("not finite", expected="finite"), "failed", "not finite", 3),
        (DiskError("no space"), "failed", "no space", 4),
        (KeyboardInterrupt(), "interrupted", "from the keyboard", 130),
        (ZeroDivisionError("by zero"), "failed", "mistake: ZeroDivisionError: by zero", 1),
        (SystemExit(5), "failed", "mistake: SystemExit: 5", 1),
    ],
)
def test_every_end_is_recorded_and_none_is_hidden(tmp_path, error, state, reason, code):
    caught = None
    try:
        with status.recorded(tmp_path, COMMAND):
            during = status.read(tmp_path)
            if error:
                raise error
    except BaseException as passed_on:
        caught = passed_on
    assert caught is error
    assert (during["state"], during["ended"], during["attempts"]) == ("running", None, 1)
    after = status.read(tmp_path)
    assert (after["state"], after["exit_code"]) == (state, code)
    assert after["reason"].startswith(reason)
    assert after["command"] == COMMAND
    assert after["registered"] <= after["started"] <= after["ended"]
    assert after["ended"].endswith("+00:00")


def test_registered_then_stopped_then_done(tmp_path):
    folder = tmp_path / "new" / "run"
    planned = {"config": "configs/mae.py", "values": {"task": "mae"}}
    assert status.register(folder, command=COMMAND, note="does it help?", planned=planned) is True
    first = status.read(folder)
    assert (first["state"], first["attempts"], first["started"]) == ("registered", 0, None)
    with pytest.raises(Preempted), status.recorded(folder, COMMAND):
        raise Preempted("stopped")
    hours = status.read(folder)["hours"]
    with status.recorded(folder, [*COMMAND, "again"]):
        pass
    last = status.read(folder)
    assert (last["state"], last["attempts"], last["reason"]) == ("done", 2, "")
    assert last["hours"] >= hours
    assert last["command"][-1] == "again"
    for key in ("registered", "note", "planned"):
        assert last[key] == first[key], key
    assert status.register(folder, command=COMMAND, note="another") is False
    assert status.read(folder) == last


def test_registering_again_before_the_start_corrects_the_plan(tmp_path):
    status.register(tmp_path, command=COMMAND, note="old")
    status.register(tmp_path, command=COMMAND, note="new")
    assert status.read(tmp_path)["note"] == "new"
    status.close(tmp_path, "failed", "sbatch refused it")
    assert status.register(tmp_path, command=COMMAND) is True, "submitted again"
    assert status.read(tmp_path)["state"] == "registered"


@pytest.mark.parametrize("error", [None, DivergedError("not finite")])
def test_full_disk_warns_and_hides_nothing(tmp_path, monkeypatch, caplog, error):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    caught = None
    try:
        with status.recorded(tmp_path, COMMAND):
            monkeypatch.setattr(configs.os, "fsync", full)
            if error:
                raise error
    except Exception as passed_on:
        caught = passed_on
    assert caught is error
    assert "No space left" in caplog.text
    assert status.read(tmp_path)["state"] == "running", "the old file is whole"
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_a_damaged_status_is_an_error_to_readers_and_a_warning_to_runs(tmp_path, caplog):
    more = '{"state": "done", "hours": "x"}'
    for text in ("", '{"state": "runn', "[]", '{"state": "flying"}', more):
        (tmp_path / "status.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"status\.json"):
            status.read(tmp_path)
    with caplog.at_level(logging.WARNING), status.recorded(tmp_path, COMMAND):
        pass
    assert "begins anew" in caplog.text
    assert status.read(tmp_path)["state"] == "done"


@pytest.mark.parametrize(
    ("environment", "job"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "123"}, "123"),
        ({"SLURM_JOB_ID": "123", "SLURM_ARRAY_JOB_ID": "99"}, "123"),
        (dict(SLURM_JOB_ID="123", SLURM_ARRAY_JOB_ID="99", SLURM_ARRAY_TASK_ID="4"), "99_4"),
        ({"SLURM_JOB_ID": "123; rm -rf /"}, None),
        ({"SLURM_JOB_ID": "123\n"}, None),
    ],
)
def test_slurm_job(tmp_path, monkeypatch, environment, job):
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with status.recorded(tmp_path, COMMAND):
        pass
    assert status.read(tmp_path)["job"] == job


def test_closed_by_hand_unless_somebody_is_at_work(tmp_path):
    with pytest.raises(CheckpointError, match="holds no run"):
        status.close(tmp_path, "failed", "node died")
    with pytest.raises(Preempted), status.recorded(tmp_path, COMMAND):
        raise Preempted("stopped")
    before = status.read(tmp_path)
    with Lock(tmp_path), pytest.raises(CheckpointError, match="at work"):
        status.close(tmp_path, "failed", "node died")
    assert status.read(tmp_path) == before
    status.close(tmp_path, "failed", "node died")
    assert status.read(tmp_path)["reason"] == "by hand: node died"
    assert status.read(tmp_path)["state"] == "failed"


def test_what_has_ended_well_or_never_begun_is_not_closed_by_hand(tmp_path):
    with status.recorded(tmp_path, COMMAND):
        pass
    with pytest.raises(CheckpointError, match="is done, after 1 attempts"):
        status.close(tmp_path, "failed", "a slip of the hand")
    status.register(tmp_path / "planned", command=COMMAND)
    with pytest.raises(CheckpointError, match="is registered, after 0 attempts"):
        status.close(tmp_path / "planned", "done", "a slip of the hand")


JOB = """
import sys, time
from pathlib import Path
from xec_jax.train.lock import Lock
from xec_jax.train.status import recorded
with Lock(Path(sys.argv[1])), recorded(Path(sys.argv[1]), sys.argv):
    print("at work", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_process(tmp_path, number):
    """The keyboard is recorded; kill -9 leaves `running` without a lock."""
    from xec_jax.train.lock import is_held

    words = [sys.executable, "-c", JOB, str(tmp_path)]
    environment = {"PYTHONPATH": str(Path(__file__).parents[1])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(words, env=environment, **pipes) as process:
        assert process.stdout.readline() == "at work\n"
        assert is_held(tmp_path)
        process.send_signal(number)
        process.wait(timeout=60)
    assert not is_held(tmp_path)
    state = json.loads((tmp_path / "status.json").read_text())["state"]
    assert state == ("interrupted" if number == signal.SIGINT else "running")


def test_durations_do_not_follow_the_clock(tmp_path, monkeypatch):
    """A clock that is set back in the middle of a run."""
    with status.recorded(tmp_path, COMMAND):
        monkeypatch.setattr(status, "_now", lambda: "2001-01-01T00:00:00+00:00")
        time.sleep(0.01)
    assert status.read(tmp_path)["hours"] > 0


def test_a_refused_job_is_noted_where_it_was_waited_for(tmp_path, monkeypatch):
    def refused(workdir):
        with pytest.raises(DataError), status.refusals_noted(workdir):
            raise DataError("no file behind '/data/*.root'")
        return status.read(workdir)

    assert refused(tmp_path / "new") is None
    assert not (tmp_path / "new").exists()
    status.register(tmp_path / "planned", command=["train"])
    found = refused(tmp_path / "planned")
    assert (found["state"], found["exit_code"]) == ("failed", 2)
    assert found["reason"] == "no file behind '/data/*.root'"
    with status.recorded(tmp_path / "planned", ["train"]):
        pass
    assert refused(tmp_path / "planned")["state"] == "done", "a wrong command changes nothing"
    with pytest.raises(Preempted), status.recorded(tmp_path / "planned", ["train"]):
        raise Preempted("stopped")
    assert refused(tmp_path / "planned")["state"] == "preempted"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert refused(tmp_path / "planned")["state"] == "failed"


def test_a_job_that_lost_its_folder_leaves_the_status_of_the_other(tmp_path):
    def lose():
        other = status.read(tmp_path) | {"pid": 1, "host": "node2"}
        (tmp_path / "status.json").write_text(json.dumps(other))
        raise CheckpointError("the folder was lost to another job")

    with pytest.raises(CheckpointError), status.recorded(tmp_path, COMMAND):
        lose()
    assert status.read(tmp_path)["state"] == "running"
    assert status.read(tmp_path)["host"] == "node2"
