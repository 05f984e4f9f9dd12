"""One row of the registry, and the small things that all its readers need."""

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xec_jax.redact import hidden
from xec_jax.train import status

STATES = (*status.STATES, "lost", "broken", "unknown")
"""`lost`: said to be running, but no process holds the lock. `unknown`: no status was written."""


@dataclass(frozen=True)
class Metric:
    """What `best` means: a validation metric and its direction.

    Attributes:
        name: Key in the records.
        split: Validation set; None for the first one, or `train`.
        largest: Whether more is better.
    """

    name: str = "loss"
    split: str | None = None
    largest: bool = False


@dataclass
class Run:
    """One row of the registry. None stands for what is not known.

    Attributes:
        run: Path below the folder that was listed; title of a claim.
        kind: `run`, or `claim`: written by hand elsewhere, not measured by this program.
        state: One of `STATES`.
        task: Task of the config; section of a claim.
        step: Last step that was recorded.
        steps: Step at which the run is complete.
        epoch: Passes over the training events so far.
        best: Best finite value of the metric.
        best_step: Its step.
        last: Last value of the metric.
        events_per_s: Speed at the last training record.
        commit: Git commit of the program; a plus says that files differed from it.
        data: Hash of the training events.
        started: Start of the last attempt, UTC.
        hours: Time spent in all attempts.
        attempts: Number of starts.
        job: SLURM job.
        note: What the run is for; the result of a claim.
        reason: Why it failed, stopped or cannot be read.
        folder: Where it lies.
        config: Resolved config by dotted keys.
        details: Its whole status, or the fields of a claim.
    """

    run: str
    folder: Path
    kind: str = "run"
    state: str = "unknown"
    task: str | None = None
    step: int | None = None
    steps: int | None = None
    epoch: float | None = None
    best: float | None = None
    best_step: int | None = None
    last: float | None = None
    events_per_s: float | None = None
    commit: str | None = None
    data: str | None = None
    started: str | None = None
    hours: float | None = None
    attempts: int | None = None
    job: str | None = None
    note: str = ""
    reason: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


def number(value: Any) -> float | None:
    """Returns a finite number as it is, None for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and abs(value) <= sys.float_info.max else None


def natural(text: str) -> list[tuple[int, int, str]]:
    """Returns what to sort names by: seed2 before seed10."""
    words = re.split(r"(\d+)", text)
    return [(0, int(w), "") if w.isdecimal() else (1, 0, w) for w in words if w]


def clean(value: Any) -> str:
    """Returns a text for people: one line, no control characters, no secrets in it."""
    text = "" if value is None else hidden(str(value))
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
