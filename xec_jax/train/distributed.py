"""Several processes that train together: how they start and what they tell each other.

Numbers of the network travel between devices, inside compiled steps. What stands here is for
the hosts: short texts through the coordinator. In one process everything is a no-op, and JAX is not
loaded.

`agree`, `barrier` and `first_does` are collective, and so is whatever calls them: opening, saving
and restoring checkpoints, `evaluate`, `fit`, `run_job`. The rounds are numbered, so every process
must make the same ones in the same order from its main thread; none may stand where only some come
by, as after an error that the others have not seen. Such an error ends the block of `joined`.
"""

import atexit
import contextlib
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from xec_jax import errors
from xec_jax.errors import ConfigError, Preempted, XecError
from xec_jax.train.signals import AGAIN

START_S = 300  # within which all processes start
WAIT_S = 3600  # for the slowest process, which may be hashing files; dead ones are noticed earlier
SLICE_S = 1.0  # of waiting; between two of them signal handlers run
GIVE_UP_S = 120  # for the others, after a signal or a failure; the first process may be drawing
_FAILED = "xec_jax/failed"  # the key under which the coordinator keeps the first failure


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
_asked_to_stop: Callable[[], bool] | None = None
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
    # Steps of one job may share a node; what is no number stands for the batch script.
    step = environ.get("SLURM_STEP_ID", "")
    place = job + (331 * int(step) if _matches(r"\d{1,12}", step) else 0)
    address = f"{host[1]}{host[2] or ''}:{61440 + place % 4096}"
    return _checked(Cluster(address, count, index, own), found)


def _matches(pattern: str, *texts: str) -> bool:
    return all(re.fullmatch(pattern, text, re.ASCII) for text in texts)


def _checked(cluster: Cluster, found: str) -> Cluster | None:
    if not 0 <= cluster.index < cluster.count:
        raise ConfigError(found, expected="a process number below the number of processes")
    return cluster if cluster.count > 1 else None


def initialize(asked_to_stop: Callable[[], bool] | None = None) -> None:
    """Joins the other processes, if there are any; called before any device is used.

    Args:
        asked_to_stop: Whether a signal has come. Then a process waits `GIVE_UP_S` for the others,
            not `WAIT_S`: without them it cannot save anyway.

    Raises:
        ConfigError: The environment makes no sense, or process 0 cannot be reached.
    """
    global _cluster, _asked_to_stop
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
    _cluster, _asked_to_stop = cluster, asked_to_stop
    threading.Thread(target=_leave_after_failure, args=(coordinator(),), daemon=True).start()


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


def coordinator() -> Any:
    """Returns the store of short texts that all processes share; only where there are several."""
    from jax._src.distributed import global_state  # JAX has no other door to its coordinator

    return global_state.client


def _exchange(place: str, text: str) -> list[str]:
    """Tells the others a text and returns those of all, in the order of the processes.

    Raises:
        XecError: What another process has announced.
        Preempted: This one was asked to stop, and another one does not answer.
        RuntimeError: Processes are at different places of the program, or one does not answer.
    """
    global _round
    client = coordinator()
    _round += 1
    client.key_value_set(f"xec_jax/{_round}/{index()}", json.dumps([place, text]))
    start, asked_at = time.monotonic(), None
    answers = []
    for process in range(count()):
        while (answer := _wait_for(client, f"xec_jax/{_round}/{process}")) is None:
            now = time.monotonic()
            if failure := _failure(client):
                raise _error(failure, process=failure["process"])
            if asked_at is None and _asked_to_stop and _asked_to_stop():
                asked_at = now
            if asked_at is not None and now - asked_at > GIVE_UP_S:
                error = Preempted(
                    f"stopped by a signal; process {process} has not answered for {GIVE_UP_S} s, "
                    "and alone nothing can be saved",
                    remedy=f"{AGAIN} after the newest checkpoint",
                )
                _announce(error)  # the others are not to wait either, nor is this one again
                raise error
            if now - start > WAIT_S:
                raise RuntimeError(f"process {process} has not answered for {WAIT_S} s")
        answers.append(json.loads(answer))
    if _round > 1:  # whoever is in this round has read everything of the one before
        client.key_value_delete(f"xec_jax/{_round - 1}/{index()}")
    if len(places := {place for place, _ in answers}) > 1:
        raise RuntimeError(f"processes have lost each other: {sorted(places)}")
    return [text for _, text in answers]


def _wait_for(client: Any, key: str) -> str | None:
    """Returns the text of a key, or None if it is not there after a slice."""
    try:
        return str(client.blocking_key_value_get(key, int(1000 * SLICE_S)))
    except RuntimeError as error:  # JAX has one class for all, with the kind in front
        if not str(error).startswith("DEADLINE_EXCEEDED"):
            raise
    return None


def agree(value: int) -> int:
    """Returns the largest of the values of all processes; about a millisecond. Collective."""
    return value if count() == 1 else max(map(int, _exchange("agree", str(int(value)))))


def barrier(name: str) -> None:
    """Waits until all processes are here. Collective.

    Raises:
        RuntimeError: They are at different places of the program.
    """
    if count() > 1:
        _exchange(f"barrier {name}", "")


def first_does(action: Callable[[], Any]) -> Any:
    """Lets process 0 do something, with files for instance, and tells all. Collective.

    Args:
        action: Called in process 0 only; returns what JSON can hold. Not collective itself.

    Returns:
        What the action returned, in all processes.

    Raises:
        XecError: What the action raised, in all processes.
        RuntimeError: Another error of process 0, in the other processes.
    """
    if count() == 1:
        return action()
    if not is_first():
        answer = json.loads(_exchange("first_does", "")[0])
        if "result" in answer:
            return answer["result"]
        raise _error(answer)
    try:
        answer = json.dumps({"result": action()})
    except BaseException as error:
        _exchange("first_does", json.dumps(_facts(error)))
        raise
    return json.loads(_exchange("first_does", answer)[0])["result"]


@contextlib.contextmanager
def joined(asked_to_stop: Callable[[], bool] | None = None) -> Iterator[None]:
    """Joins the other processes, and tells them if the block ends in an error.

    Then they leave with the same message and exit code: at once if they wait in a round or come to
    one, else (in a sum over devices, in a read that hangs) after `GIVE_UP_S`. So does this process
    itself, if the others keep it from ending. Only the first such error counts; of those that all
    processes share, each one reports its own.

    Args:
        asked_to_stop: As in `initialize`, which see.
    """
    initialize(asked_to_stop)
    try:
        yield
    except BaseException as error:
        if count() > 1:
            _announce(error)
            limit = threading.Timer(_patience(), os._exit, [_exit_code(error)])
            limit.daemon = True
            limit.start()
            atexit.register(_end, _exit_code(error))
        raise


def _announce(error: BaseException) -> None:
    """Leaves word at the coordinator that this process is about to end."""
    failure = _facts(error) | {"process": index(), "code": _exit_code(error)}
    with contextlib.suppress(RuntimeError):  # another was first, or the coordinator is gone
        coordinator().key_value_set(_FAILED, json.dumps(failure))


def _exit_code(error: BaseException) -> int:
    """Returns what the command ends with (`errors.run_command`)."""
    return getattr(error, "exit_code", 130 if isinstance(error, KeyboardInterrupt) else 1)


def _patience() -> float:
    """How long to wait for the others, in s: the first holds the coordinator and leaves last."""
    return GIVE_UP_S + (5 * SLICE_S if is_first() else 0)


def _end(code: int) -> None:
    """Ends the process at exit; Python itself would wait for steps whose other part never comes."""
    import jax

    with contextlib.suppress(RuntimeError):
        jax.distributed.shutdown()  # waits for the others
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _failure(client: Any) -> dict[str, Any] | None:
    """Returns what a process has announced."""
    try:
        return dict(json.loads(client.key_value_try_get(_FAILED)))
    except RuntimeError as error:
        if not str(error).startswith("NOT_FOUND"):
            raise
    return None


def _leave_after_failure(client: Any) -> None:
    """Ends this process if it still is there long after a failure; runs in a thread.

    The main thread may sit in a sum over devices whose other part will never come. JAX would abort
    after minutes, with a code that says nothing.
    """
    try:
        while (failure := _failure(client)) is None:
            time.sleep(SLICE_S)
    except RuntimeError:
        return  # the coordinator has been closed: the run is over
    time.sleep(_patience())
    sys.stdout.flush()
    error = _error(failure, process=failure["process"])
    text = f"\n{type(error).__name__}: {error}\n  process {index()} was stuck and is ended\n"
    os.write(2, text.encode())
    os._exit(failure["code"])


def _facts(error: BaseException) -> dict[str, str]:
    """Returns what another process needs to raise an error as its own."""
    facts = {"error": type(error).__name__, "found": str(error)}
    if isinstance(error, XecError):
        facts |= {key: getattr(error, key) for key in ("found", "expected", "remedy")}
    return facts


def _error(facts: Mapping[str, Any], process: int | None = None) -> Exception:
    """Returns the error to raise; with a process, it names the one that failed."""
    if kind := _KINDS.get(facts["error"]):
        who = "" if process in (None, index()) else f"process {process} failed: "
        return kind(who + facts["found"], expected=facts["expected"], remedy=facts["remedy"])
    return RuntimeError(f"process {process or 0} failed: {facts['error']}: {facts['found']}")


_KINDS: dict[str, type[XecError]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, XecError)
}
