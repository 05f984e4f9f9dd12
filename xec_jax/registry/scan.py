"""Finding the runs below a folder and reading what each says about itself.

Everything here is read, never trusted: a damaged file makes a run `broken`, with the reason, and
the others are listed all the same.
"""

import json
import logging
import os
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from xec_jax.config import flatten
from xec_jax.errors import XecError
from xec_jax.redact import without_secrets
from xec_jax.registry.measured import add_metrics, parse
from xec_jax.registry.run import STATES, Metric, Run, clean, natural, number
from xec_jax.train import status
from xec_jax.train.lock import is_held

log = logging.getLogger(__name__)

CLAIMS = "claims.jsonl"
"""Name of a file with imported claims."""

_DEPTH = 8
_COPIES = {"mlartifacts", "mlruns", "tensorboard", "wandb"}  # trackers have runs in them, too
_CLOSED = {"checkpoints", "figures", "__pycache__", "node_modules", *_COPIES}


def scan(folder: Path, metric: Metric) -> list[Run]:
    """Reads all runs and claims below a folder, itself included."""
    runs: list[Run] = []
    for path in _walk(folder, _DEPTH):
        name = clean(path.relative_to(folder))
        if path.name == CLAIMS:
            runs += _read_claims(path)
        else:
            runs.append(read_run(path, clean(path.resolve().name) if name == "." else name, metric))
    return runs


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    """Yields run folders and files of claims, in the order of their names."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: natural(entry.name))
    except OSError as error:
        log.warning("%s is left out: %s", folder, error.strerror)
        return
    names = {entry.name for entry in entries}
    if "status.json" in names or {"config.json", "metrics.jsonl"} <= names:
        yield folder
    if CLAIMS in names:
        yield folder / CLAIMS
    for entry in entries:
        is_hidden = entry.name.startswith(".") or entry.name in _CLOSED
        # Links may lead in circles.
        if depth and not is_hidden and entry.is_dir(follow_symlinks=False):
            yield from _walk(folder / entry.name, depth - 1)


def read_run(folder: Path, name: str, metric: Metric) -> Run:
    """Reads one run folder; what is damaged becomes the reason of a `broken` run."""
    run, problems = Run(name, folder), []
    for read in (_add_status, _add_config, _add_environment):
        try:
            read(run)
        except (XecError, OSError, ValueError, RecursionError) as error:
            problems.append(getattr(error, "found", str(error)))
    try:
        add_metrics(run, metric)
    except (OSError, ArithmeticError) as error:
        problems.append(str(error))
    _add_hours(run)
    if problems:
        run.state, run.reason = "broken", "; ".join(problems)
    return run


def _add_status(run: Run) -> None:
    found = status.read(run.folder)
    if found is None:
        return
    run.details, run.state = without_secrets(found), found["state"]
    if run.state == "running" and not is_held(run.folder):
        run.state, run.reason = "lost", "its process ended without a word, or its node failed"
    run.reason = clean(found["reason"]) or run.reason
    run.note, run.started, run.job = (clean(found[key]) for key in ("note", "started", "job"))
    run.attempts = found["attempts"]
    run.hours = number(found["hours"]) if run.attempts else None
    _set_config(run, _inside(found, "planned", "values"))


def _add_config(run: Run) -> None:
    path = run.folder / "config.json"
    if path.exists():
        _set_config(run, _read_object(path))


def _set_config(run: Run, config: dict[str, Any]) -> None:
    flat = flatten(without_secrets(config))
    run.config = {clean(key): _clean_all(value) for key, value in sorted(flat.items())}
    run.task = clean(run.config.get("task")) or run.task


def _add_environment(run: Run) -> None:
    path = run.folder / "environment.json"
    if not path.exists():
        return
    environment = _read_object(path)
    if commit := clean(environment.get("git")):
        run.commit = commit[:10] + ("+" if "+" in commit else "")
    run.data = clean(_inside(environment, "record", "events").get("train"))[:10] or None


def _add_hours(run: Run) -> None:
    """Adds the attempt that goes on, or that was lost after its last record."""
    if run.state not in ("running", "lost") or not run.started:
        return
    try:
        path = run.folder / "metrics.jsonl"
        end = time.time() if run.state == "running" else path.stat().st_mtime
        run.hours = (run.hours or 0.0) + max(end - _seconds(run.started), 0.0) / 3600
    except (OSError, ValueError):
        return


def _read_claims(path: Path) -> list[Run]:
    """Reads the rows that `registry/claims.py` wrote."""
    try:
        rows = map(parse, path.read_bytes().splitlines())
        return [_claim(path.parent, row) for row in rows if row.get("kind") == "claim"]
    except (OSError, RecursionError) as error:
        return [Run(str(path), path.parent, "claim", "broken", reason=str(error))]


def _claim(folder: Path, row: dict[str, Any]) -> Run:
    return Run(
        run=f"{row.get('attempt', '?')}. {clean(row.get('title'))}",
        folder=folder,
        kind="claim",
        state=row["state"] if row.get("state") in STATES else "unknown",
        task=clean(row.get("task")) or None,
        job=", ".join(map(clean, jobs)) if isinstance(jobs := row.get("jobs"), list) else None,
        note=clean(row.get("result") or row.get("status")),
        reason=clean(row.get("analysis")),
        details=without_secrets(row),
    )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} holds {type(value).__name__}, not an object")
    return value


def _clean_all(value: Any) -> Any:
    """Cleans the texts of a config value."""
    if isinstance(value, list):
        return [_clean_all(inner) for inner in value]
    return clean(value) if isinstance(value, str) else value


def _inside(values: Any, *keys: str) -> dict[str, Any]:
    """Returns an object inside another one, an empty one if it is absent or something else."""
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return values if isinstance(values, dict) else {}


def _seconds(time_text: str) -> float:
    return datetime.fromisoformat(time_text).timestamp()
