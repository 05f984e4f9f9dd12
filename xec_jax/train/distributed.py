"""Several processes that train together: how they start and what they tell each other.

Numbers of the network travel between devices, inside compiled steps. What stands here is for
the hosts: short texts through the coordinator, in rounds that every process takes part in, in the
same order and from its main thread. In one process everything is a no-op, and JAX is not loaded.
"""

import json
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from xec_jax import errors
from xec_jax.errors import ConfigError, XecError

START_S = 300  # within which all processes start
WAIT_S = 3600  # for the slowest process, which may be hashing files; dead ones are noticed earlier


@dataclass(frozen=True)
class Cluster:
    """One process among several.

    Attributes:
        coordinator: host:port where process 0 listens.
        count: Number of processes.
        index: This process.
        devices: Numbers of the devices that are its own; None for all that it sees.
    """

    coordinator: str
    count: int
    index: int
    devices: tuple[int, ...] | None = None


_cluster: Cluster | None = None
_round = 0


def find_cluster(environ: Mapping[str, str]) -> Cluster | None:
    """Reads from the environment whether this is one of several processes.

    Either `XEC_JAX_COORDINATOR` (host:port), `XEC_JAX_PROCESSES` and `XEC_JAX_PROCESS`, or what
    SLURM sets for the tasks of a job step. Only `srun` makes steps: a batch script, `salloc` and
    a notebook inherit `SLURM_NTASKS` without being tasks, and are left alone.

    Returns:
        None for a process of its own.

    Raises:
        ConfigError: Values that make no sense.
    """
    if "XEC_JAX_COORDINATOR" in environ:
        return _explicit(environ)
    is_task = "SLURM_PROCID" in environ and "SLURM_STEP_NODELIST" in environ
    return _slurm(environ) if is_task and environ.get("SLURM_STEP_NUM_TASKS", "1") != "1" else None


def _explicit(environ: Mapping[str, str]) -> Cluster | None:
    names = ("XEC_JAX_COORDINATOR", "XEC_JAX_PROCESSES", "XEC_JAX_PROCESS")
    address, *numbers = values = [environ.get(name, "") for name in names]
    found = " ".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
    if not (_matches(r"[\w.\-\[\]:]+:\d{1,5}", address) and _matches(r"\d{1,6}", *numbers)):
        raise ConfigError(
            found, expected="host:port, the number of processes, and which of them this is"
        )
    return _checked(Cluster(address, int(numbers[0]), int(numbers[1])), found)


def _slurm(environ: Mapping[str, str]) -> Cluster | None:
    names = ("SLURM_JOB_ID", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID")
    values = [environ.get(name, "") for name in names]
    nodes = environ["SLURM_STEP_NODELIST"]
    found = " ".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
    # node7,node8 or node[07-12,15],other: the first one is where process 0 runs.
    host = re.match(r"([\w.-]+)(?:\[(\d+))?", nodes, re.ASCII)
    if host is None or not _matches(r"\d{1,12}", *values):
        raise ConfigError(
            f"{found} SLURM_STEP_NODELIST={nodes}", expected="numbers and nodes, as srun sets them"
        )
    job, count, index, local = map(int, values)
    # Tasks of one node share the devices that all of them see, unless srun has divided them.
    tasks = re.match(r"\d+", environ.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    on_node = int(tasks[0]) if tasks else 1
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    share = len(visible.split(",")) // on_node if visible else 1
    is_divided = "SLURM_GPUS_PER_TASK" in environ or on_node == 1 or share == 0
    own = None if is_divided else tuple(range(local * share, (local + 1) * share))
    address = f"{host[1]}{host[2] or ''}:{61440 + job % 4096}"
    return _checked(Cluster(address, count, index, own), found)


def _matches(pattern: str, *texts: str) -> bool:
    return all(re.fullmatch(pattern, text, re.ASCII) for text in texts)


def _checked(cluster: Cluster, found: str) -> Cluster | None:
    if not 0 <= cluster.index < cluster.count:
        raise ConfigError(found, expected="a process number below the number of processes")
    return cluster if cluster.count > 1 else None


def initialize() -> None:
    """Joins the other processes, if there are any; called before any device is used.

    Raises:
        ConfigError: The environment makes no sense, or process 0 cannot be reached.
    """
    global _cluster
    cluster = find_cluster(os.environ)
    if cluster is None or _cluster is not None:
        return
    _check_address(cluster)
    import jax

    # JAX would catch SIGTERM itself, in place of our handlers (`signals.py`).
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        cluster.coordinator,
        cluster.count,
        cluster.index,
        local_device_ids=cluster.devices,
        cluster_detection_method="deactivate",
    )
    _cluster = cluster


def _check_address(cluster: Cluster) -> None:
    """Waits until process 0 listens: JAX would end in a crash where this ends in an error."""
    host, _, port = cluster.coordinator.rpartition(":")
    deadline = time.monotonic() + START_S
    while True:
        try:
            if cluster.index == 0:
                socket.create_server(("", int(port))).close()
            else:
                socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except (OSError, OverflowError) as error:
            if cluster.index > 0 and time.monotonic() < deadline:
                time.sleep(0.2)
                continue
            raise ConfigError(
                f"process {cluster.index} of {cluster.count}, at {cluster.coordinator}: {error}",
                expected="a free port for process 0, which all others can reach",
                remedy="set XEC_JAX_COORDINATOR=host:port, XEC_JAX_PROCESSES and XEC_JAX_PROCESS",
            ) from error
        return


def index() -> int:
    """Returns the number of this process, from 0."""
    return 0 if _cluster is None else _cluster.index


def count() -> int:
    """Returns the number of processes."""
    return 1 if _cluster is None else _cluster.count


def is_first() -> bool:
    """Returns whether this is the process that writes files and talks to the user."""
    return index() == 0


def tell(text: str) -> None:
    """Prints a line for the user, once for all processes."""
    if is_first():
        print(text)


def _exchange(text: str) -> list[str]:
    """Tells the others a text and returns those of all, in the order of the processes."""
    global _round
    from jax._src.distributed import global_state  # JAX has no other door to its coordinator

    client: Any = global_state.client
    _round += 1
    client.key_value_set(f"xec_jax/{_round}/{index()}", text)
    wait_ms = 1000 * WAIT_S
    texts = [
        client.blocking_key_value_get(f"xec_jax/{_round}/{i}", wait_ms) for i in range(count())
    ]
    if _round > 1:  # whoever is in this round has read everything of the one before
        client.key_value_delete(f"xec_jax/{_round - 1}/{index()}")
    return texts


def agree(value: int) -> int:
    """Returns the largest of the values of all processes; about a millisecond."""
    return value if count() == 1 else max(map(int, _exchange(str(int(value)))))


def barrier(name: str) -> None:
    """Waits until all processes are here.

    Raises:
        RuntimeError: They are at different places of the program.
    """
    if count() > 1 and len(names := set(_exchange(f"barrier {name}"))) > 1:
        raise RuntimeError(f"processes have lost each other: {sorted(names)}")


def first_does(action: Callable[[], Any]) -> Any:
    """Lets process 0 do something, with files for instance, and tells all what came of it.

    Args:
        action: Called in process 0 only; returns what JSON can hold.

    Returns:
        What the action returned, in all processes.

    Raises:
        XecError: What the action raised, in all processes.
        RuntimeError: Another error of process 0, in the other processes.
    """
    if count() == 1:
        return action()
    if not is_first():
        answer = json.loads(_exchange("")[0])
        if "result" in answer:
            return answer["result"]
        if kind := _KINDS.get(answer["error"]):
            raise kind(answer["found"], expected=answer["expected"], remedy=answer["remedy"])
        raise RuntimeError(f"process 0 failed: {answer['error']}: {answer['found']}")
    try:
        answer = json.dumps({"result": action()})
    except BaseException as error:
        name, parts = type(error).__name__, {"found": str(error)}
        if isinstance(error, XecError):
            parts = {key: getattr(error, key) for key in ("found", "expected", "remedy")}
        _exchange(json.dumps({"error": name, **parts}))
        raise
    return json.loads(_exchange(answer)[0])["result"]


_KINDS = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, XecError)
}
