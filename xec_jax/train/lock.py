"""The lock of a run folder: two jobs that train in one folder would ruin each other's run."""

import contextlib
import json
import logging
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any, Self

from xec_jax.errors import CheckpointError, DiskError

log = logging.getLogger(__name__)

NAME = ".lock"
TOUCH_S = 30.0
"""How often a job shows that it lives, in seconds."""
STALE_S = 300.0
"""After this long without a sign of life a lock of another machine counts as left behind, in s."""


class Lock:
    """Holds a run folder for one job.

    The lock is a file that names its holder and is touched every `TOUCH_S` seconds. One that was
    left behind is taken over: its process is gone from this machine, its SLURM job was requeued,
    or nothing has touched it for `STALE_S`. Of several processes of one job, only the first one may
    take it. A job that was silent for so long and then goes on has lost its folder, and must ask
    `check` before it writes.

    Args:
        workdir: The run folder; made if missing.

    Attributes:
        path: The file.
        is_lost: Another job was seen to hold the folder.

    Raises:
        CheckpointError: On entering, another job holds the folder.
        DiskError: On entering, the folder cannot be written.
    """

    def __init__(self, workdir: Path) -> None:
        self.path = workdir / NAME
        self.is_lost = False
        self._own = ""
        self._made_folder = False
        self._done = threading.Event()

    def __enter__(self) -> Self:
        own = json.dumps(_myself())
        try:
            self._made_folder = not self.path.parent.exists()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _take(self.path, own)
        except OSError as error:
            raise DiskError(
                f"cannot lock the run folder {self.path.parent}: {error}",
                remedy="choose a --workdir that you may write",
            ) from error
        self._own = own
        threading.Thread(target=self._keep_alive, name="lock", daemon=True).start()
        return self

    def check(self) -> None:
        """Makes sure that the folder is still that of this job; reads one small file.

        Raises:
            CheckpointError: It is not. Nothing may be written any more, a checkpoint neither.
        """
        holder: dict[str, Any] = {}
        if not self.is_lost:
            try:
                text = self.path.read_text()
            except FileNotFoundError:
                text = ""  # the other job has already gone
            except OSError:
                return  # a hiccup of the file system
            if text == self._own:
                return
            self.is_lost = True
        with contextlib.suppress(OSError):
            found = _read(self.path)
            holder = found[0] if found else {}
        raise CheckpointError(
            f"{self.path.parent} was lost to another job{_named(holder)}",
            expected=f"a sign of life every {STALE_S / 60:.0f} minutes; this job was suspended, or "
            f"somebody removed {NAME}",
            remedy="none needed: this job ends without writing anything, the other one goes on",
        )

    def __exit__(self, *_: object) -> None:
        self._done.set()
        with contextlib.suppress(OSError):
            if self.path.read_text() == self._own:
                self.path.unlink()
            if self._made_folder:
                self.path.parent.rmdir()  # only if empty: the run was refused before it began

    def _keep_alive(self) -> None:
        while not self._done.wait(TOUCH_S):
            try:
                self.check()
            except CheckpointError as error:
                log.error("%s", error)
                return
            with contextlib.suppress(OSError):  # a hiccup of the file system; there is a next time
                os.utime(self.path)


def is_held(workdir: Path) -> bool:
    """Tells whether a living job, perhaps this one, holds a run folder."""
    holder = _read(workdir / NAME)
    return holder is not None and _why_stale(*holder) is None


def _take(path: Path, own: str) -> None:
    """Makes the lock or takes it over."""
    holder: dict[str, Any] = {}
    for _ in range(20):
        if _create(path, own):
            return
        found = _read(path)
        if found is not None:  # otherwise released just now
            holder = found[0]
            reason = _why_stale(*found)
            if reason is None:
                break
            if _replace(path, own, expected=holder):
                log.warning("%s: lock taken over, %s", path.parent, reason)
                return
        time.sleep(0.05)  # somebody else is at it
    raise CheckpointError(
        f"{path.parent} is in use by another job{_named(holder)}",
        expected="one job per run folder",
        remedy="wait for that job or stop it, or choose another --workdir; if it is gone, the "
        f"folder is free {STALE_S / 60:.0f} minutes after its last sign of life",
    )


def _named(holder: dict[str, Any]) -> str:
    if not holder:
        return ", which does not say its name"
    job = f", SLURM job {holder['job']}" if holder.get("job") else ""
    return (
        f": process {holder.get('pid', '?')} on {holder.get('host', '?')}{job}, since "
        f"{holder.get('time', '?')}"
    )


def _create(path: Path, text: str) -> bool:
    """Makes a file unless it exists: the step of which only one process can be the author."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
    except OSError:  # a full disk must not leave a lock that nobody holds
        path.unlink(missing_ok=True)
        raise
    return True


def _read(path: Path) -> tuple[dict[str, Any], float] | None:
    """Who holds the lock, and for how long there was no sign of life, in s; None without lock."""
    try:
        silent = time.time() - path.stat().st_mtime
        text = path.read_text()
    except FileNotFoundError:
        return None
    try:
        holder = json.loads(text)
    except ValueError:
        holder = None  # being written just now
    return holder if isinstance(holder, dict) else {}, silent


def _why_stale(holder: dict[str, Any], silent: float) -> str | None:
    """Says why a lock counts as left behind; None if its job may live."""
    me, pid = _myself(), holder.get("pid")
    # Containers of different machines may share name and number of the process space.
    is_here = all(holder.get(key) == me[key] for key in ("host", "boot", "pid_space"))
    if is_here and isinstance(pid, int) and isinstance(holder.get("pid_start"), int):
        # The machine itself knows; a process that merely sleeps keeps its lock.
        is_gone = _started(pid) != holder["pid_start"]
        return f"process {pid} on this machine is gone" if is_gone else None
    if me["job"] and me["job"] == holder.get("job") and me["start"] != holder.get("start"):
        return f"it is from an earlier start of this SLURM job {me['job']}"
    if silent > STALE_S:
        return f"its job on {holder.get('host', '?')} was silent for {silent / 60:.0f} minutes"
    return None


def _replace(path: Path, text: str, *, expected: dict[str, Any]) -> bool:
    """Puts another lock in place of a stale one; False if somebody else does so at this moment.

    Whoever makes the file beside the lock may replace the lock, after another look at it. So a slow
    process never replaces the lock of one that was faster.
    """
    claim = path.with_name(f"{NAME}.takeover")
    with contextlib.suppress(FileNotFoundError):
        if time.time() - claim.stat().st_mtime > STALE_S:
            claim.unlink()  # of a process that died within these lines
    if not _create(claim, text):
        return False
    try:
        holder = _read(path)
        if holder is None or holder[0] != expected:
            return False
        new = path.with_name(f"{NAME}.new")
        new.write_text(text)
        new.replace(path)
        return True
    finally:
        claim.unlink(missing_ok=True)


def _myself() -> dict[str, Any]:
    """This process, as the lock names it."""
    try:
        space = os.readlink("/proc/self/ns/pid")  # in containers the same number is another process
    except OSError:
        space = ""
    return {
        "host": socket.gethostname(),
        "boot": _boot(),
        "pid": os.getpid(),
        "pid_start": _started(os.getpid()),
        "pid_space": space,
        "job": os.environ.get("SLURM_JOB_ID"),
        "start": os.environ.get("SLURM_RESTART_COUNT", "0"),
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def _boot() -> str:
    """Which start of which machine this is."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """When a process began, in clock ticks since the machine did; None if there is none."""
    try:
        # The name in parentheses may hold anything; the 20th field after it is the start.
        text = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if text[0] == "Z" else int(text[19])
    except (OSError, IndexError, ValueError):
        return None
