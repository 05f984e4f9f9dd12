"""Several processes, one of which cannot save: all of them miss the checkpoint, and none waits."""

import os
import shutil
import signal
import socket
import subprocess
import sys

import pytest
from job import TESTS, last_step, wait_for
from test_processes import FOUR, TWO_DEVICES, newest

from xec_jax.train.saved import load_run

JOB = """
import errno, json, os, sys
import job
from orbax.checkpoint import AsyncCheckpointer
from xec_jax.errors import run_command
from xec_jax.train.rendezvous import Rendezvous
from xec_jax.train.step_folders import StepFolders

def spoil(kind, name, step_of):
    steps = {step for process, where, step in json.loads(os.environ["FAULTS"])
             if (process, where) == (int(os.environ["XEC_JAX_PROCESS"]), name)}
    real = getattr(kind, name)
    def spoiled(self, *words, **options):
        if step_of(*words, **options) in steps:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        return real(self, *words, **options)
    setattr(kind, name, spoiled)

spoil(AsyncCheckpointer, "save", lambda folder, args: int(folder.name))
spoil(StepFolders, "seal", lambda path: int(path.name.partition(".")[0]))
spoil(Rendezvous, "wait", lambda key, timeout_ms: int(key.rpartition(".")[2]))
run_command(job.main)
"""
"""The toy job; `FAULTS` says [process, where, step]: as it begins, or in the thread of the save
before all have written (`wait`) or after that (`seal`)."""


def start_two(caches, workdir, faults):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    values = {"train.save_every": 2, "train.keep_last": 99}
    settings = FOUR[:-1] + "".join(f', "{key}": {value}' for key, value in values.items()) + "}"
    words = [sys.executable, "-c", JOB, str(workdir), "--set", settings, "--pace", "0.1"]
    shared = {"XEC_JAX_COORDINATOR": f"127.0.0.1:{port}", "XEC_JAX_PROCESSES": "2", **TWO_DEVICES}
    shared |= {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS / "faults")])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, **caches, **shared, "FAULTS": faults}
    return [
        subprocess.Popen(words, env={**environment, "XEC_JAX_PROCESS": i}, **pipes) for i in "01"
    ]


def outcome(processes):
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], errors


def steps(workdir):
    return {path.name for path in (workdir / "checkpoints").iterdir()}


@pytest.fixture(scope="module")
def stopped(caches, tmp_path_factory):
    """A run that missed four checkpoints and was then stopped by a signal to one process."""
    workdir = tmp_path_factory.mktemp("together") / "run"
    faults = '[[0, "save", 2], [1, "save", 4], [0, "seal", 6], [1, "wait", 8]]'
    processes = start_two(caches, workdir, faults)
    wait_for(processes[0], lambda: last_step(workdir) >= 12)
    processes[1].send_signal(signal.SIGTERM)
    codes, errors = outcome(processes)
    assert codes == [75, 75], errors
    assert all("Disk quota exceeded" in error for error in errors)
    assert all("another process could not" in error for error in errors)
    return workdir


def test_a_save_that_fails_in_one_process_is_missed_by_all(stopped):
    found = steps(stopped)
    assert not found & {"2", "4", "6", "8"}
    assert {"10", "12"} <= found
    assert all(name.isdigit() for name in found), "nothing half written"
    assert load_run(stopped).step in map(int, found)


@pytest.mark.parametrize("fault", ['[0, "save", 20]', '[1, "wait", 20]'])
def test_if_it_is_the_last_one_all_leave_with_the_same_code(caches, stopped, tmp_path, fault):
    workdir = shutil.copytree(stopped, tmp_path / "run")
    codes, errors = outcome(start_two(caches, workdir, f"[{fault}]"))
    assert codes == [4, 4], errors
    assert "20" not in steps(workdir)
    assert newest(workdir) == 18
