"""Two real processes with two devices each: the numbers of one process with four."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
import toy
from test_train_step import worst

from xec_jax.data.prefetch import prefetch
from xec_jax.errors import ConfigError, DataError
from xec_jax.train import distributed
from xec_jax.train.checkpoint import Checkpoints
from xec_jax.train.distributed import Cluster, find_cluster
from xec_jax.train.evaluate import evaluate
from xec_jax.train.mesh import (
    batch_putter,
    for_steps,
    global_arrays,
    local_copy,
    make_mesh,
    replicated,
    state_shardings,
)
from xec_jax.train.signals import StopFlag
from xec_jax.train.step import Tally, init_state, make_eval_step, make_train_step

TX = optax.adam(1e-2)
CUTS = {"jit": ((4, 1), "jit"), "pmap": ((4, 1), "pmap"), "divided": ((1, 4), "jit")}
STEPS = 6
KEYS = frozenset({"x", "weight", "_position", "_step"})


def initial(mesh):
    """A state with a table that a model axis of 4 can cut, and how it is divided."""
    params = toy.task().init(jax.random.PRNGKey(0), None) | {"table": np.ones((4, 8), np.float32)}
    shapes = jax.eval_shape(lambda: init_state(params, TX, seed=1, with_ema=True))
    shardings = state_shardings(mesh, shapes, smallest=32)
    make = jax.jit(lambda: init_state(params, TX, seed=1, with_ema=True), out_shardings=shardings)
    return make, shardings


def loss(params, batch, key):
    terms, metrics = toy.task().loss(params, batch, key)
    size = (params["table"] ** 2).sum()
    return terms | {
        "size": type(terms["all"])(size * batch["weight"].sum(), batch["weight"].sum())
    }, metrics


def train(cut, folder):
    """Trains, evaluates and saves; returns parameters and metrics as every process sees them."""
    shape, mode = CUTS[cut]
    mesh = make_mesh(*shape)
    shard = distributed.index(), distributed.count()
    source, valid = toy.sources(n=19)  # 16 events a step, so 3 are left over; 11 to validate
    make, shardings = initial(mesh)
    state, put = for_steps(make(), mesh, mode), batch_putter(mesh, mode)
    step = make_train_step(loss, TX, mesh=mesh, mode=mode, ema_decay=0.9, state_shardings=shardings)
    options = {"size": 16 // shard[1], "shard": shard, "put": put, "keys": KEYS, "seed": 3}
    tallies = []
    with prefetch(source, start=0, stop=STEPS, **options) as stream:
        for item in stream:
            state, tally = step(state, item.device)
            tallies.append(tally)
    metrics = Tally.means(tallies)
    eval_step = make_eval_step(loss, mesh=mesh, mode=mode, params_shardings=shardings.params)
    key = jax.device_put(np.asarray(jax.random.PRNGKey(0)), replicated(mesh))
    key = for_steps(key, mesh, mode)
    options = {"size": 8, "put": put, "keys": KEYS, "key": key}
    valid_metrics = evaluate(eval_step, state.ema, valid["valid"], **options)
    params = jax.device_get(local_copy(state.params, mesh))
    with Checkpoints(folder / cut) as checkpoints:
        checkpoints.save(global_arrays(state, mesh), {"cut": cut}, metrics["loss"])
        checkpoints.wait()
    return params, metrics, valid_metrics


def main(folder):
    """What each of the two processes does."""
    with StopFlag() as stop:
        stop.defer()
        distributed.initialize()
        assert distributed.count() == 2
        index = distributed.index()
        for cut in CUTS:
            params, *metrics = train(cut, folder)
            np.savez(folder / f"{cut}_{index}.npz", **params)
            (folder / f"{cut}_{index}.json").write_text(json.dumps(metrics))
        talk(folder, index)
        assert not distributed.agree(bool(stop))
        if index == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        assert distributed.agree(bool(stop)), "a signal to one stops both"
        assert bool(stop) == (index == 1), "the handler is ours, not JAX's"
    distributed.barrier("end")


def talk(folder, index):
    """Agreement, barriers, and work of the first process with its errors."""
    assert distributed.agree(5 * index + 1) == 6
    for name in ("a", "b"):
        distributed.barrier(name)
    with pytest.raises(RuntimeError, match="lost each other"):
        distributed.barrier(f"place {index}")
    with pytest.raises(RuntimeError, match=r"lost each other: \['agree', 'first_does'\]"):
        distributed.first_does(lambda: 1) if index else distributed.agree(1)

    def write():
        (folder / f"written_by_{index}").touch()
        return {"index": index, "text": "ä\n"}

    assert distributed.first_does(write) == {"index": 0, "text": "ä\n"}

    def fail(error):
        raise error

    with pytest.raises(DataError) as caught:
        distributed.first_does(lambda: fail(DataError("no file", expected="one", remedy="look")))
    error = caught.value
    assert (error.found, error.expected, error.remedy) == ("no file", "one", "look")
    with pytest.raises(ValueError if index == 0 else RuntimeError, match="mistake"):
        distributed.first_does(lambda: fail(ValueError("mistake")))
    assert distributed.first_does(lambda: None) is None


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder that two processes have filled."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    here = Path(__file__).parent
    environment = {
        **os.environ,
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=4", "device_count=2"),
        "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]),
        "XEC_JAX_COORDINATOR": f"127.0.0.1:{port}",
        "XEC_JAX_PROCESSES": "2",
    }
    words = [sys.executable, "-c", "import sys, pathlib, test_multihost as t\n"
             "t.main(pathlib.Path(sys.argv[1]))", str(folder)]  # fmt: skip
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [
        subprocess.Popen(words, env={**environment, "XEC_JAX_PROCESS": str(i)}, **pipes)
        for i in range(2)
    ]
    try:
        said = [process.communicate(timeout=150)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return train("jit", tmp_path_factory.mktemp("one"))


@pytest.mark.parametrize("cut", CUTS)
def test_two_processes_give_the_numbers_of_one(two, one, cut):
    params, *metrics = one
    for index in range(2):
        with np.load(two / f"{cut}_{index}.npz") as found:
            assert worst(params, dict(found)) < 1e-6
        others = json.loads((two / f"{cut}_{index}.json").read_text())
        assert metrics == [pytest.approx(other, rel=2e-6) for other in others]


@pytest.mark.parametrize("cut", CUTS)
def test_one_process_restores_what_two_have_saved(two, one, cut):
    mesh = make_mesh(1)
    shapes = jax.eval_shape(initial(mesh)[0])
    with Checkpoints(two / cut, read_only=True) as checkpoints:
        assert checkpoints.steps == [STEPS]
        state = checkpoints.restore(shapes, replicated(mesh))
    assert worst(one[0], jax.device_get(state.params)) < 1e-6
    assert int(state.step) == STEPS


def test_the_first_process_alone_does_what_it_is_for(two):
    assert [path.name for path in two.glob("written*")] == ["written_by_0"]


SRUN = {
    "SLURM_JOB_ID": "4100",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "node[07-08],other",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}


@pytest.mark.parametrize(
    ("change", "coordinator", "devices"),
    [
        ({}, "node07:61444", (1,)),
        ({"SLURM_STEP_NODELIST": "gh-1.site,gh-2.site"}, "gh-1.site:61444", (1,)),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, "node07:61444", (1,)),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, "node07:61444", (2, 3)),
        ({"CUDA_VISIBLE_DEVICES": "0"}, "node07:61444", None),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_PER_TASK": "2"}, "node07:61444", None),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x8)", "SLURM_LOCALID": "0"}, "node07:61444", None),
    ],
)
def test_tasks_of_srun_find_each_other(change, coordinator, devices):
    assert find_cluster(SRUN | change) == Cluster(coordinator, 8, 5, devices)


def test_steps_of_one_job_do_not_meet():
    steps = ["0", "1", "2", "7", "4294967290"]  # the last one: interactive
    found = [find_cluster(SRUN | {"SLURM_STEP_ID": step}).coordinator for step in steps]
    assert found[0] == "node07:61444"
    assert len({*found}) == len(steps)
    assert all(61440 <= int(address.split(":")[1]) <= 65535 for address in found)
    for step in ("batch", ""):
        assert find_cluster(SRUN | {"SLURM_STEP_ID": step}).coordinator == found[0]


@pytest.mark.parametrize(
    "missing",
    [
        {*SRUN},
        {"SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST"},  # sbatch without srun
        {"SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS"},  # salloc, a notebook
        {"SLURM_PROCID"},
    ],
)
def test_what_is_no_task_of_several_is_left_alone(missing):
    assert find_cluster({k: v for k, v in SRUN.items() if k not in missing}) is None
    assert find_cluster(SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) is None


def test_one_process_told_so_is_left_alone():
    values = {"COORDINATOR": "a:1", "PROCESSES": "1", "PROCESS": "0"}
    assert find_cluster({f"XEC_JAX_{k}": v for k, v in values.items()}) is None


@pytest.mark.parametrize(
    "environ",
    [
        SRUN | {"SLURM_JOB_ID": "4100; rm"},
        SRUN | {"SLURM_PROCID": "8"},
        SRUN | {"SLURM_STEP_NODELIST": "$(x)"},
        {"XEC_JAX_COORDINATOR": "host", "XEC_JAX_PROCESSES": "2", "XEC_JAX_PROCESS": "0"},
        {"XEC_JAX_COORDINATOR": "host:80", "XEC_JAX_PROCESSES": "2"},
        {"XEC_JAX_COORDINATOR": "host:80", "XEC_JAX_PROCESSES": "2", "XEC_JAX_PROCESS": "2"},
    ],
)
def test_values_that_make_no_sense_are_refused(environ):
    with pytest.raises(ConfigError):
        find_cluster(environ)


@pytest.mark.parametrize("index", [0, 1])
def test_an_address_that_cannot_be_used_is_an_error(monkeypatch, index):
    monkeypatch.setattr(distributed, "START_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if index == 1:
            server.close()  # nobody listens; to process 0, the port is taken
        values = {"COORDINATOR": f"127.0.0.1:{port}", "PROCESSES": "2", "PROCESS": str(index)}
        for name, value in values.items():
            monkeypatch.setenv(f"XEC_JAX_{name}", value)
        with pytest.raises(ConfigError, match=f"process {index} of 2, at 127.0.0.1:{port}: .*"):
            distributed.initialize()
    assert distributed.count() == 1


def test_one_process_needs_no_jax():
    code = (
        "import sys\n"
        "from xec_jax.train import distributed as d\n"
        "d.initialize(); d.barrier('x')\n"
        "assert (d.index(), d.count(), d.is_first()) == (0, 1, True)\n"
        "assert d.agree(3) == 3 and d.first_does(lambda: 4) == 4\n"
        "assert 'jax' not in sys.modules\n"
    )
    words = {key: value for key, value in os.environ.items() if "SLURM" not in key}
    words["PYTHONPATH"] = str(Path(__file__).parents[1])
    subprocess.run([sys.executable, "-c", code], env=words, check=True, timeout=60)
