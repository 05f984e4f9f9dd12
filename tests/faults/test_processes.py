"""Several processes as one job: F3, and F15 from two processes to one."""

import signal
import socket

import numpy as np
import pytest
from job import last_step, run, start, wait_for

from xec_jax.train import status
from xec_jax.train.records import read_jsonl
from xec_jax.train.saved import load_run

TWO_DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
FOUR = '{"train.mesh.data": 0, "data.batch_size": 2}'  # all devices there are, 8 events a step


@pytest.fixture
def start_two(caches):
    """Starts two processes, and ends what is left of them."""
    started = []

    def start_both(workdir, *arguments):
        started.extend(two(caches, workdir, *arguments))
        return started

    yield start_both
    for process in started:
        process.kill()
        process.communicate()


def two(caches, workdir, *arguments):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"XEC_JAX_COORDINATOR": f"127.0.0.1:{port}", "XEC_JAX_PROCESSES": "2", **TWO_DEVICES}
    return [
        start(caches, workdir, "--set", FOUR, *arguments, **shared, XEC_JAX_PROCESS=str(i))
        for i in range(2)
    ]


def ends(processes):
    """Exit codes and what was printed to the error streams."""
    errors = [process.communicate(timeout=120)[1] for process in processes]
    return [process.returncode for process in processes], errors


def newest(workdir):
    return max(int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*"))


@pytest.fixture(scope="module")
def alone(caches, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("processes") / "alone"
    four = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    code, out, err = run(caches, workdir, "--set", FOUR, **four)
    assert code == 0, out + err
    return workdir


def test_a_signal_to_one_stops_both_at_the_same_step(start_two, caches, alone, tmp_path):
    """F3; afterwards a single process with four devices goes on, to the same end."""
    workdir = tmp_path / "run"
    processes = start_two(workdir, "--pace", 0.1)
    wait_for(processes[0], lambda: last_step(workdir) >= 6)
    processes[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [75, 75], outputs
    step = newest(workdir)
    assert 6 <= step < 20
    assert all(f"after step {step}, state saved" in err for _, err in outputs)
    assert "a signal to another process" in outputs[0][1]
    assert "step 6/20" in outputs[0][0]
    assert "step 6/20" not in outputs[1][0], "one process talks"
    assert status.read(workdir)["state"] == "preempted"
    four = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    code, out, err = run(caches, workdir, "--set", FOUR, **four)
    assert code == 0, err
    assert f"continuing after step {step}" in out
    assert newest(workdir) == newest(alone) == 20
    for name, value in load_run(alone, step=20, ema=False).params.items():
        found = load_run(workdir, step=20, ema=False).params[name]
        np.testing.assert_allclose(value, found, atol=1e-6, err_msg=name)
    losses = [
        [r["loss"] for r in read_jsonl(folder / "metrics.jsonl") if r["split"] == "valid"]
        for folder in (alone, workdir)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.parametrize("who", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_reader_that_fails_in_one_process_ends_both(start_two, tmp_path, who):
    """Each says which process it was and why, and leaves with the code of that error."""
    processes = start_two(tmp_path / "run", "--fail_at", 7, "--only_process", who)
    codes, errors = ends(processes)
    assert codes == [1, 1], errors
    assert "OSError: the disk of step 7 is gone" in errors[who]
    assert f"process {who} failed: OSError: the disk of step 7 is gone" in errors[1 - who]
    assert status.read(tmp_path / "run")["state"] == "failed"


def test_a_signal_during_validation_stops_both(start_two, tmp_path):
    """F3, where one epoch is done and its validation is not."""
    workdir = tmp_path / "run"
    processes = start_two(workdir, "--valid_pace", 1.0)
    wait_for(processes[0], lambda: last_step(workdir) >= 5)
    processes[1].send_signal(signal.SIGTERM)
    codes, errors = ends(processes)
    assert codes == [75, 75], errors
    assert all("stopped by" in text and "after step 5, state saved" in text for text in errors)
    assert newest(workdir) == 5


@pytest.mark.slow
def test_a_signal_reaches_a_process_that_waits_for_another(start_two, tmp_path):
    """The other one hangs in a read: nothing can be saved, and both leave."""
    workdir = tmp_path / "run"
    troubles = ("--hang_at", 7, "--only_process", 1, "--give_up_s", 2)
    processes = start_two(workdir, *troubles)
    wait_for(processes[0], lambda: last_step(workdir) >= 6)
    processes[0].send_signal(signal.SIGTERM)
    codes, errors = ends(processes)
    assert codes == [75, 75], errors
    assert "process 1 has not answered for 2.0 s" in errors[0]
    assert "Preempted: process 0 failed: stopped by a signal" in errors[1]
    assert "process 1 was stuck and is ended" in errors[1]
