"""The runs as a table: what differs between them, which is best, as CSV and JSON."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from xec_jax.config import nearest
from xec_jax.errors import ConfigError
from xec_jax.registry.run import Metric, Run, natural

COLUMNS = tuple(f.name for f in fields(Run) if f.name not in ("config", "details"))

_DATA_PATHS = ("data.train", "data.valid")


def differing_keys(runs: Iterable[Run]) -> list[str]:
    """Returns the config keys that differ between runs of the same task.

    A key that some runs do not have, because an older program wrote them, counts only where the
    others disagree. The data files count only if nothing else differs.
    """
    seen: dict[tuple[str | None, str], set[str]] = {}
    for run in runs:
        for key, value in run.config.items():
            text = json.dumps(value)
            seen.setdefault((run.task, key), set()).add(text)
    keys = sorted({key for (_, key), values in seen.items() if len(values) > 1})
    return [key for key in keys if key not in _DATA_PATHS] or keys


def value_of(run: Run, key: str) -> Any:
    """Returns a column or a config value of a run, None if it has none."""
    return getattr(run, key) if key in COLUMNS else run.config.get(key)


def select(
    runs: Sequence[Run],
    *,
    metric: Metric,
    task: str | None = None,
    state: str | None = None,
    where: Sequence[str] = (),
    sort: str | None = None,
    reverse: bool = False,
    best: int | None = None,
) -> list[Run]:
    """Chooses and orders runs.

    Args:
        runs: The runs.
        metric: What best means.
        task: Only this task.
        state: Only this state.
        where: Conditions `KEY=VALUE` on columns or config keys.
        sort: Column or config key; runs without it come last. None: as they were found.
        reverse: Largest first.
        best: The best so many by the metric, best first. Claims are never among them.

    Raises:
        ConfigError: A key that no run has, or a condition without `=`.
    """
    known = {*COLUMNS, *(key for run in runs for key in run.config)}
    conditions = [condition.partition("=") for condition in where]
    for key, equals, _ in [*conditions, *([(sort, "=", "")] if sort else [])]:
        if not equals:
            raise ConfigError(f"--where {key!r}", expected="KEY=VALUE")
        if runs and key not in known:
            raise ConfigError(f"no run has {key!r}", expected=nearest(key, known))
    chosen = [
        run
        for run in runs
        if task in (None, run.task)
        and state in (None, run.state)
        and all(_equals(value_of(run, key), text) for key, _, text in conditions)
    ]
    if best is not None:
        sort, reverse = "best", metric.largest
        chosen = [run for run in chosen if run.best is not None and run.kind == "run"]
    if sort is None:
        return chosen[::-1] if reverse else chosen
    have = [run for run in chosen if value_of(run, sort) is not None]
    have.sort(key=lambda run: _order(value_of(run, sort)), reverse=reverse)
    return (have + [run for run in chosen if value_of(run, sort) is None])[:best]


def _equals(value: Any, text: str) -> bool:
    try:
        return float(value) == float(text)
    except (TypeError, ValueError):
        return show(value).lower() == text.lower()


def _order(value: Any) -> tuple:
    """Numbers by size, before texts."""
    return (0, value) if isinstance(value, int | float) else (1, natural(str(value)))


def show(value: Any) -> str:
    """Returns a value as people write it."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.5g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def best_text(run: Run) -> str:
    """Returns `0.1234 @120`."""
    return "" if run.best is None else f"{show(run.best)} @{run.best_step}"


def step_text(run: Run) -> str:
    """Returns `120/400`."""
    return "" if run.step is None else f"{run.step}" + (f"/{run.steps}" if run.steps else "")


def state_text(run: Run) -> str:
    """Returns the state; a claim is marked as one."""
    return f"claim: {run.state}" if run.kind == "claim" else run.state


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Returns the last word of each key, or the whole key where another one ends the same."""
    last = [key.rpartition(".")[2] for key in keys]
    return {
        key: word if last.count(word) == 1 and word not in COLUMNS else key
        for key, word in zip(keys, last, strict=True)
    }


def agreement(runs: Sequence[Run]) -> dict[str, str]:
    """Returns task, commit and data where all of several runs that know them agree."""
    found = {}
    for name in ("task", "commit", "data"):
        values = {value_of(run, name) for run in runs} - {None}
        if len(runs) > 1 and len(values) == 1:
            found[name] = values.pop()
    return found


def to_csv(runs: Sequence[Run]) -> str:
    """Returns every column, and every differing config key as a column of its own."""
    keys = [key for key in differing_keys(runs) if key not in COLUMNS]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(_cell, (*COLUMNS, *keys)))
    for run in runs:
        writer.writerow([_cell(value_of(run, key)) for key in (*COLUMNS, *keys)])
    return out.getvalue()


def _cell(value: Any) -> str:
    """Numbers keep all their digits; None is an empty cell; no text is a formula."""
    if value is None:
        return ""
    if isinstance(value, str | Path):
        text = str(value).encode("utf-8", "replace").decode()  # file names may be any bytes
        return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
    return json.dumps(value)


def to_json(runs: Sequence[Run]) -> str:
    """Returns every column of every run, with its config, and what differs."""
    keys = differing_keys(runs)
    rows = [
        {
            **{name: value_of(run, name) for name in COLUMNS},
            "differences": {key: run.config[key] for key in keys if key in run.config},
            "config": run.config,
        }
        for run in runs
    ]
    return json.dumps(rows, indent=2, default=str) + "\n"
