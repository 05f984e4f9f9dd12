"""One trial: a training in a process of its own, followed through its record.

A process of its own means that running out of memory, or any other crash, costs one trial.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from xec_jax.train.records import Record
from xec_jax.train.signals import StopFlag

POLL_S = 0.5
GRACE_S = 600.0
"""A training that was told to stop has this long to save; then it is killed."""

TOGETHER = ("SLURM_PROCID", "XEC_JAX_COORDINATOR")
"""What tells a training to join others. Workers of one job step each train on their own."""


def train_command(config: str, overrides: Sequence[str], workdir: Path) -> list[str]:
    """Returns the command of a training."""
    command = [sys.executable, "-m", "xec_jax.train", "--config", config]
    return [*command, "--workdir", str(workdir), *overrides]


class Follower:
    """Reads what a growing `metrics.jsonl` has gained since the last look."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.inode, self.offset = 0, 0

    def new(self) -> Iterator[Record]:
        """Yields the records of all complete lines not seen yet.

        A run that continues replaces its record by a shorter one, which is read from the start.
        """
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        with file:
            inode = os.fstat(file.fileno()).st_ino
            if inode != self.inode:
                self.inode, self.offset = inode, 0
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self.offset += len(line)
                try:
                    yield json.loads(line)
                except ValueError:
                    continue


def run(
    command: Sequence[str],
    *,
    log: Path,
    record: Path,
    report: Callable[[Record], bool],
    stop: StopFlag,
) -> tuple[int, bool]:
    """Runs a training until it ends, is pruned, or this process is told to stop.

    The training has a session of its own, so that Ctrl-C reaches it once, through here.

    Args:
        command: The training.
        log: File that its output is added to.
        record: Its `metrics.jsonl`.
        report: Takes each new record, and says whether the trial is hopeless.
        stop: Set when this process shall end.

    Returns:
        Exit code of the training, negative for a signal, and whether it was pruned.
    """
    follower, told_at, is_pruned = Follower(record), None, False
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603, a list that this program put together
            command,
            env={name: text for name, text in os.environ.items() if name not in TOGETHER},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        code: int | None = None
        while code is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(POLL_S)
            for line in follower.new():
                is_hopeless = report(line)
                is_pruned = is_pruned or (is_hopeless and code is None and told_at is None)
            if (stop or is_pruned) and told_at is None:
                process.terminate()
                told_at = time.monotonic()
            if told_at is not None and time.monotonic() - told_at > GRACE_S:
                process.kill()
    finally:
        if process.poll() is None:  # an error of ours: the training must not outlive it
            process.terminate()
            process.wait(GRACE_S)
    return code, is_pruned


def last_words(log: Path, lines: int = 6) -> str:
    """Returns the end of a trial's output."""
    with log.open("rb") as file:
        file.seek(max(log.stat().st_size - 4096, 0))
        text = file.read().decode(errors="replace")
    return "\n".join(text.strip().splitlines()[-lines:])
