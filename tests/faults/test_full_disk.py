"""F11 on a file system that really is full: a checkpoint is lost, not the run."""

import contextlib
import os
import time

from commands import newest_step, state_of
from job import last_step, run, start, wait_for
from test_stopping import assert_same_run

from xec_jax.train import status

LONG = ("--set", '{"train.epochs": 12}')


def fill(folder):
    """Takes all the space that is left."""
    with (folder / "filler").open("ab", buffering=0) as file:
        try:
            while True:
                file.write(os.urandom(4096))
        except OSError:
            pass


def test_a_disk_that_is_full_for_a_while(caches, small_disk, tmp_path):
    workdir = small_disk / "run"
    process = start(caches, workdir, *LONG, "--pace", 0.05)
    wait_for(process, lambda: last_step(workdir) >= 9)
    fill(small_disk)
    time.sleep(1)
    assert process.poll() is None, "training goes on"
    (small_disk / "filler").unlink()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert err.count("training goes on without this checkpoint") + err.count("is missed") >= 1
    assert "xec_jax/train" not in err, "no traceback of ours; threads of orbax may leave theirs"
    code, _, err = run(caches, tmp_path / "whole", *LONG)
    assert code == 0, err
    assert_same_run(workdir, tmp_path / "whole")


def test_a_disk_that_stays_full(caches, small_disk):
    workdir = small_disk / "run"
    process = start(caches, workdir, "--pace", 0.1)
    wait_for(process, lambda: last_step(workdir) >= 9)
    before = newest_step(workdir)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        fill(small_disk)
        for path in (workdir / "checkpoints").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # one that goes away in this moment
                (path / "PINNED").touch()  # else old steps make room for new ones
        time.sleep(0.01)
    _, err = process.communicate()
    assert process.returncode == 4, err
    assert "No space left" in err or "room" in err
    assert state_of(workdir)[0] >= before, "earlier steps are intact"
    (small_disk / "filler").unlink()
    code, _, err = run(caches, workdir)
    assert code == 0, err
    assert status.read(workdir)["state"] == "done"


def test_what_the_console_cannot_take_ends_nothing(caches, tmp_path):
    """Output often goes to a file of a full disk, too, and a signal is announced there."""
    workdir = tmp_path / "run"
    with open("/dev/full", "w") as full:
        streams = {"stdout": full, "stderr": full}
        process = start(caches, workdir, "--pace", 0.05, streams=streams)
        wait_for(process, lambda: last_step(workdir) >= 6)
        process.terminate()
        assert process.wait(timeout=60) == 75
        assert state_of(workdir)[0] == last_step(workdir)
        assert start(caches, workdir, streams=streams).wait(timeout=60) == 0
    assert status.read(workdir)["state"] == "done"
