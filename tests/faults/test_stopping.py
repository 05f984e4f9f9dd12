"""Kills and signals in every phase of a real process: F1, F2, F14, F20."""

import os
import random
import signal
import time

import numpy as np
import pytest
from commands import state_of
from job import last_step, run, start, wait_for

from xec_jax.errors import Preempted
from xec_jax.train import status
from xec_jax.train.records import read_jsonl
from xec_jax.train.signals import StopFlag

LONG = ("--set", '{"train.epochs": 12}')  # 60 steps of 5 an epoch


def assert_same_run(cut, whole):
    """Same bits in every array, same numbers on record, each once."""
    (step, found), (expected_step, expected) = state_of(cut), state_of(whole)
    assert step == expected_step
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(value, found[name], err_msg=name)

    def curve(workdir):
        records = read_jsonl(workdir / "metrics.jsonl")
        keys = [(r["step"], r["split"]) for r in records]
        assert len(keys) == len(set(keys))
        return {k: r["loss"] for k, r in zip(keys, records, strict=True) if k[1] == "valid"}

    assert curve(cut) == curve(whole)


@pytest.fixture(scope="module")
def whole(caches, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("stopping") / "whole"
    code, out, err = run(caches, workdir, *LONG)
    assert code == 0, out + err
    return workdir


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_random_ends_with_the_same_bits(caches, whole, tmp_path, kills):
    """F1: kill -9 anywhere, mostly while a checkpoint is being written."""
    dice = random.Random(kills)
    workdir = tmp_path / "run"
    killed = 0
    for _ in range(kills):
        target = min(last_step(workdir) + dice.randint(2, 9), 55)
        process = start(caches, workdir, *LONG, "--pace", 0.03)
        wait_for(process, lambda target=target: last_step(workdir) >= target)
        time.sleep(dice.uniform(0, 0.1))
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    assert killed >= kills - 1, "the run must not be over before the kills are"
    code, out, err = run(caches, workdir, *LONG)
    assert code == 0, err
    assert "continuing after step" in out
    assert_same_run(workdir, whole)
    leftovers = [p.name for p in (workdir / "checkpoints").iterdir() if not p.name.isdigit()]
    assert leftovers == []
    assert status.read(workdir)["state"] == "done"


@pytest.mark.parametrize(
    ("phase", "options", "number"),
    [
        ("training", ("--pace", 0.05), signal.SIGTERM),
        ("validation", ("--valid_pace", 0.5), signal.SIGUSR1),
        ("compiling", ("--compile_s", 2), signal.SIGTERM),
        ("a reader that hangs", ("--hang_at", 4), signal.SIGTERM),
    ],
)
def test_a_signal_saves_and_leaves(caches, tmp_path, phase, options, number):
    """F2: exit 75, the state of the last step on disk, the record complete."""
    workdir = tmp_path / "run"
    process = start(caches, workdir, *options)
    if phase == "compiling":
        assert "tracing\n" in process.stdout
    else:
        wait_for(process, lambda: last_step(workdir) >= 4)
        time.sleep(0.3)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 75, out + err
    assert signal.Signals(number).name in err
    assert "start the same command again" in err
    assert "Traceback" not in err
    assert status.read(workdir)["state"] == "preempted"
    step, _ = state_of(workdir)
    assert step == last_step(workdir)


def test_the_second_interrupt_leaves_at_once(caches, whole, tmp_path):
    """F20: the first Ctrl-C asks for a save; the second does not wait, and tears nothing."""
    workdir = tmp_path / "run"
    process = start(caches, workdir, *LONG, "--valid_pace", 30)
    wait_for(process, lambda: last_step(workdir) >= 5)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (75, 130), err
    assert "Traceback" not in err
    code, _, err = run(caches, workdir, *LONG)
    assert code == 0, err
    assert_same_run(workdir, whole)


def test_a_reader_that_fails_or_hangs_ends_the_run(caches, tmp_path):
    """F14: an error surfaces with its step; a hang is noticed; neither keeps the process alive."""
    workdir = tmp_path / "run"
    code, _, err = run(caches, workdir, "--fail_at", 7)
    assert code == 1
    assert "the disk of step 7 is gone" in err
    timeout = '{"data.timeout_s": 2.0}'
    code, out, err = run(caches, workdir, "--hang_at", 12, "--set", timeout)
    assert code == 2
    assert "no batch came for 2 s: the reader hangs" in err
    assert "data.timeout_s" in err
    assert "continuing after step 7" in out, "no step before the failure is lost"
    assert state_of(workdir)[0] == 12
    assert status.read(workdir)["state"] == "failed"


def test_before_there_is_anything_to_save():
    """F2: while files are opened a signal leaves at once, with the code that asks for a requeue."""
    with StopFlag() as stop, pytest.raises(Preempted, match="SIGTERM before the training began"):
        os.kill(os.getpid(), signal.SIGTERM)
    with StopFlag() as stop, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    with StopFlag() as stop:
        stop.defer()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
