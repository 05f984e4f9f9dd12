"""What became of a run: one small file in its folder, kept by the program itself.

`status.json` says who started the run, when, with which command, and how it ended. The files of
all runs together are the registry of trainings; `python -m xec_jax.runs` is the query.
"""

import json
import logging
import os
import platform
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from xec_jax.config import write_text
from xec_jax.errors import CheckpointError, DiskError, Preempted, XecError
from xec_jax.train.lock import is_held

log = logging.getLogger(__name__)

Status = dict[str, Any]

STATES = ("registered", "running", "preempted", "done", "failed", "interrupted")

_FILE = "status.json"
_NEW: Status = {
    "state": "registered",
    "reason": "",
    "exit_code": None,
    "registered": None,  # UTC, ISO 8601
    "started": None,  # of the last attempt
    "ended": None,
    "hours": 0.0,  # of all attempts that ended in an orderly way
    "host": None,
    "pid": None,
    "job": None,  # SLURM
    "command": None,
    "attempts": 0,
    "note": "",
}
_JOB = re.compile(r"\d{1,18}(_\d{1,18})?")


def read(workdir: Path) -> Status | None:
    """Returns the status of a run, None where none was written.

    Raises:
        CheckpointError: The file is damaged.
        OSError: It cannot be read.
    """
    path = workdir / _FILE
    try:
        status = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not isinstance(status, dict) or status.get("state") not in STATES:
        raise CheckpointError(f"{path} holds no status", expected=f"a state of {STATES}")
    status = {**_NEW, **status}
    if not all(isinstance(status[key], int | float) for key in ("attempts", "hours")):
        raise CheckpointError(f"{path} is damaged", expected="numbers of attempts and hours")
    return status


def register(
    workdir: Path,
    *,
    command: Sequence[str],
    note: str = "",
    planned: Mapping[str, Any] | None = None,
) -> bool:
    """Notes a run that is going to be started; makes the folder.

    Args:
        workdir: The folder that the run will have.
        command: The words of the command that is to start it.
        note: What the run is for.
        planned: Config file and values, to be shown until the run has its own config.

    Returns:
        False if the folder holds a run that was started already: nothing is changed then.

    Raises:
        CheckpointError: Its status is damaged.
        DiskError: It cannot be written.
    """
    old = read(workdir)
    if (old and old["attempts"]) or (workdir / "config.json").exists():
        return False
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"cannot make the run folder {workdir}: {error}") from error
    facts = {"registered": _now(), "command": list(command), "note": note}
    _write(workdir, {**_NEW, **facts, "planned": dict(planned or {})})
    return True


@contextmanager
def recorded(workdir: Path, command: Sequence[str]) -> Iterator[None]:
    """Writes down that an attempt begins, and how it ended.

    An error goes on its way unchanged. A status that cannot be written is a warning: neither does
    it end a run nor does it take the place of the run's own error.

    Args:
        workdir: An existing run folder, locked by this process.
        command: The words of the command.
    """
    began = time.monotonic()
    status = _begin(workdir, command)
    end: Status = {"state": "done", "reason": "", "exit_code": 0}
    try:
        yield
    except XecError as error:
        state = "preempted" if isinstance(error, Preempted) else "failed"
        end = {"state": state, "reason": error.found, "exit_code": error.exit_code}
        raise
    except KeyboardInterrupt:
        end = {"state": "interrupted", "reason": "from the keyboard", "exit_code": 130}
        raise
    except BaseException as error:
        reason = f"mistake: {type(error).__name__}: {error}"
        end = {"state": "failed", "reason": reason, "exit_code": 1}
        raise
    finally:
        hours = status["hours"] + (time.monotonic() - began) / 3600
        if not _is_of_another(workdir, status):
            _try_to_write(workdir, {**status, **end, "ended": _now(), "hours": round(hours, 6)})


@contextmanager
def refusals_noted(workdir: Path) -> Iterator[None]:
    """Enters why a run that waits for its job cannot even begin: data, devices, other weights.

    Waiting are a registered run, and one that its cluster has requeued. All others are left as
    they are: somebody may have tried the wrong command in their folder.
    """
    try:
        yield
    except Preempted:
        raise
    except XecError as error:
        with suppress(XecError, OSError):
            status = read(workdir) or _NEW
            is_requeued = status["state"] == "preempted" and "SLURM_RESTART_COUNT" in os.environ
            is_registered = status["state"] == "registered" and status is not _NEW
            if (is_registered or is_requeued) and not is_held(workdir):
                end = {"state": "failed", "reason": error.found, "exit_code": error.exit_code}
                _write(workdir, {**status, **end, "ended": _now()})
        raise


def close(workdir: Path, state: str, reason: str) -> None:
    """Enters by hand how a run ended that could not say so itself.

    Args:
        workdir: The run folder.
        state: `done` or `failed`.
        reason: Why.

    Raises:
        CheckpointError: The folder holds no run, or one that ended well or never began; or a
            process is at work on it.
        DiskError: It cannot be written.
    """
    status = read(workdir)
    if status is None and not (workdir / "config.json").exists():
        raise CheckpointError(f"{workdir} holds no run", expected="a run folder")
    if is_held(workdir):
        raise CheckpointError(
            f"{workdir}: a process is at work on this run",
            remedy="stop it first (SIGTERM); it will write down itself how it ended",
        )
    status = status or _NEW
    if status["state"] == "done" or (state == "done" and not status["attempts"]):
        raise CheckpointError(
            f"{workdir} is {status['state']}, after {status['attempts']} attempts",
            expected=f"a run that has begun and could not say itself that it is {state}"
            if state == "done"
            else "a run that is not done",
        )
    end = {"state": state, "reason": f"by hand: {reason}", "ended": status["ended"] or _now()}
    _write(workdir, {**status, **end})


def _begin(workdir: Path, command: Sequence[str]) -> Status:
    """Marks the run as running and returns its status."""
    try:
        old = read(workdir) or _NEW
    except (XecError, OSError) as error:
        log.warning("%s; the status begins anew", error)
        old = _NEW
    now = _now()
    status = {
        **old,
        "state": "running",
        "reason": "",
        "exit_code": None,
        "registered": old["registered"] or now,
        "started": now,
        "ended": None,
        "host": platform.node(),
        "pid": os.getpid(),
        "job": _job(os.environ),
        "command": list(command),
        "attempts": old["attempts"] + 1,
    }
    _try_to_write(workdir, status)
    return status


def _job(environment: Mapping[str, str]) -> str | None:
    """Returns the SLURM job as `123` or `123_4`; None outside, or if it does not look like one."""
    array, task = (environment.get(f"SLURM_ARRAY_{part}_ID") for part in ("JOB", "TASK"))
    job = f"{array}_{task}" if array and task else environment.get("SLURM_JOB_ID", "")
    return job if _JOB.fullmatch(job) else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _is_of_another(workdir: Path, own: Status) -> bool:
    """True if another job runs here now: this one has lost the folder while it was suspended."""
    with suppress(XecError, OSError):
        now = read(workdir) or own
        is_own = (now["host"], now["pid"]) == (own["host"], own["pid"])
        return now["state"] == "running" and not is_own
    return False


def _write(workdir: Path, status: Status) -> None:
    write_text(workdir / _FILE, json.dumps(status, indent=2) + "\n")


def _try_to_write(workdir: Path, status: Status) -> None:
    try:
        _write(workdir, status)
    except (DiskError, OSError) as error:
        log.warning("the status of the run could not be written: %s", error)
