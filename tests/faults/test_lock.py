"""F17: one job per run folder, also when the job before it left no notice."""

import errno
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy

from xec_jax.errors import CheckpointError, DiskError
from xec_jax.train import lock
from xec_jax.train.job import run_job
from xec_jax.train.lock import STALE_S, Lock, is_held
from xec_jax.train.records import read_jsonl
from xec_jax.train.signals import StopFlag

HOLD = """
import sys, time
from pathlib import Path
from xec_jax.errors import CheckpointError
from xec_jax.train.lock import Lock
folder, go = map(Path, sys.argv[1:])
print("ready", flush=True)
while not go.exists():
    time.sleep(0.001)
try:
    with Lock(folder):
        print("held", flush=True)
        sys.stdin.read()
except CheckpointError as error:
    print("refused", flush=True)
"""


def holder(folder, go):
    """Starts a process that takes the lock and holds it until its input ends."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", HOLD, str(folder), str(go)]
    process = subprocess.Popen(command, env=environment, **pipes)
    assert process.stdout.readline() == "ready\n"
    return process


def write(folder, silent=0.0, **holder):
    """Leaves a lock of this process, but for what is given."""
    folder.mkdir(exist_ok=True)
    path = folder / ".lock"
    path.write_text(json.dumps({**lock._myself(), **holder}))
    os.utime(path, (time.time() - silent,) * 2)


def test_second_job_is_refused_until_the_first_one_ends(tmp_path):
    go = tmp_path / "go"
    go.touch()
    process = holder(tmp_path / "run", go)
    assert process.stdout.readline() == "held\n"
    assert is_held(tmp_path / "run")
    with (
        pytest.raises(CheckpointError, match="in use by another job") as error,
        Lock(tmp_path / "run"),
    ):
        pass
    assert error.value.exit_code == 2
    assert f"process {process.pid} on {socket.gethostname()}" in error.value.found
    assert time.strftime("since %Y-") in error.value.found
    assert "another --workdir" in error.value.remedy
    assert is_held(tmp_path / "run"), "the refused one leaves the lock alone"
    process.communicate()
    assert not is_held(tmp_path / "run")
    with Lock(tmp_path / "run"):
        assert is_held(tmp_path / "run")


def test_lock_of_a_killed_job_is_taken_over(tmp_path, caplog):
    go = tmp_path / "go"
    go.touch()
    process = holder(tmp_path / "run", go)
    assert process.stdout.readline() == "held\n"
    process.kill()
    process.communicate()
    assert not is_held(tmp_path / "run")
    with Lock(tmp_path / "run"):
        assert f"process {process.pid} on this machine is gone" in caplog.text
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock"]


def test_of_many_takers_one_wins(tmp_path):
    write(tmp_path / "run", host="elsewhere", silent=STALE_S + 60)
    processes = [holder(tmp_path / "run", tmp_path / "go") for _ in range(6)]
    (tmp_path / "go").touch()
    answers = [process.stdout.readline() for process in processes]
    for process in processes:
        process.communicate()
    assert sorted(answers) == ["held\n"] + ["refused\n"] * 5
    assert not list((tmp_path / "run").iterdir())


GONE = 2**22 + 1  # above the largest process number


@pytest.mark.parametrize(
    ("left", "message"),
    [
        ({"pid": GONE}, "process 4194305 on this machine is gone"),
        ({"pid_start": 1}, "on this machine is gone"),
        ({"host": "elsewhere", "silent": 6 * 60}, "its job on elsewhere was silent for 6 minutes"),
        ({"pid": GONE, "pid_space": "container", "silent": 400}, "was silent for 7 minutes"),
        ({"host": "elsewhere", "job": "17", "start": "0"}, "earlier start of this SLURM job 17"),
    ],
)
def test_lock_left_behind(tmp_path, monkeypatch, caplog, left, message):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    write(tmp_path / "run", **left)
    assert not is_held(tmp_path / "run")
    with Lock(tmp_path / "run"):
        assert message in caplog.text


@pytest.mark.parametrize(
    "left",
    [
        {"silent": 9 * 60},  # this process lives and was only put to sleep
        {"host": "elsewhere", "silent": 4 * 60},
        {"pid": GONE, "pid_space": "container"},
        {"pid": GONE, "boot": "another machine of the same name"},
        {"host": "elsewhere", "job": "18", "start": "0"},
        {"host": "elsewhere", "job": "17", "start": "1"},  # two steps of one job
    ],
)
def test_lock_of_a_job_that_may_live(tmp_path, monkeypatch, left):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    write(tmp_path / "run", **left)
    assert is_held(tmp_path / "run")
    with pytest.raises(CheckpointError, match="in use"), Lock(tmp_path / "run"):
        pass


def test_lock_that_is_being_written(tmp_path):
    (tmp_path / ".lock").write_text('{"host": "els')
    with pytest.raises(CheckpointError, match="in use"), Lock(tmp_path):
        pass
    os.utime(tmp_path / ".lock", (0, 0))
    with Lock(tmp_path):
        pass


def test_holder_shows_that_it_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "TOUCH_S", 0.01)
    with Lock(tmp_path):
        os.utime(tmp_path / ".lock", (0, 0))
        deadline = time.monotonic() + 60
        while (tmp_path / ".lock").stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (tmp_path / ".lock").stat().st_mtime > 0


def test_job_that_slept_too_long_has_lost_its_folder(tmp_path, monkeypatch):
    """Suspended, and another job took over: nothing may be written any more."""
    with Lock(tmp_path) as held:
        held.check()
        write(tmp_path, host="elsewhere", pid=4711)
        for _ in range(2):
            with pytest.raises(CheckpointError, match="lost to another job") as error:
                held.check()
        assert "process 4711 on elsewhere" in error.value.found
        assert held.is_lost
        (tmp_path / ".lock").unlink()
        with pytest.raises(CheckpointError, match="lost to another job"):
            held.check()
    with Lock(tmp_path) as held:
        (tmp_path / ".lock").unlink()  # the other one has come and gone
        with pytest.raises(CheckpointError, match="lost to another job"):
            held.check()


def test_hiccup_of_the_disk_loses_no_folder(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(errno.ESTALE, "Stale file handle")

    with Lock(tmp_path) as held:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_text", fails)
            held.check()
        held.check()
        assert not held.is_lost


def test_loss_is_seen_while_nothing_is_written(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(lock, "TOUCH_S", 0.01)
    with Lock(tmp_path) as held:
        write(tmp_path, host="elsewhere")
        deadline = time.monotonic() + 60
        while not caplog.records and time.monotonic() < deadline:
            time.sleep(0.01)
        assert held.is_lost
        assert "lost to another job" in caplog.text


def test_only_the_own_lock_is_removed(tmp_path):
    with Lock(tmp_path):
        write(tmp_path, host="elsewhere")
    assert (tmp_path / ".lock").exists()


def test_folder_made_for_nothing_is_removed(tmp_path):
    with Lock(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()
    with Lock(tmp_path / "run"):
        (tmp_path / "run" / "config.json").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="cannot lock"), Lock(tmp_path / "file" / "run"):
        pass


def test_a_run_that_lost_its_folder_writes_nothing_more(tmp_path):
    """As after a suspension: another job has taken the lock over in the midst of an epoch."""
    workdir = tmp_path / "run"
    source, valid = toy.sources()

    class Steal:
        """A source that lets the other job in while step 7 is read."""

        def __getattr__(self, name):
            return getattr(source, name)

        def __len__(self):
            return len(source)

        def batch(self, step, **options):
            if step == 7:
                (workdir / ".lock").write_text('{"host": "node2", "pid": 1}')
            return source.batch(step, **options)

    with pytest.raises(CheckpointError, match=r"lost to another job.*node2"):
        run_job(toy.task(), toy.config(), Steal(), valid, workdir, stop=StopFlag())
    steps = [r["step"] for r in read_jsonl(workdir / "metrics.jsonl")]
    saved = [int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*")]
    assert max(steps) <= 8
    assert max(saved) <= 6
    assert (workdir / ".lock").exists(), "the lock of the other is left alone"
