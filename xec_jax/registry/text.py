"""The runs as a table for a terminal."""

import shutil
from collections.abc import Callable, Sequence
from functools import partial

from xec_jax.registry.run import Metric, Run
from xec_jax.registry.table import (
    agreement,
    best_text,
    differing_keys,
    short_names,
    show,
    state_text,
    step_text,
)

_COLORS = {
    "done": "green",
    "running": "blue",
    "registered": "cyan",
    "preempted": "yellow",
    "interrupted": "yellow",
    "failed": "red",
    "lost": "red",
    "broken": "magenta",
}
_SPARE = ("data", "commit", "started", "events/s", "last", "hours", "task")
_WIDEST = 20
_MOST_KEYS = 4


def to_text(
    runs: Sequence[Run], metric: Metric, *, width: int | None = None, color: bool = False
) -> str:
    """Returns a table for a terminal.

    Columns in which all runs agree become a line below it, and those for which there is no room are
    left out, the least important first.

    Args:
        runs: The runs.
        metric: What best means.
        width: Characters per line; that of the terminal, or 100, if None.
        color: Color the states.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = width or shutil.get_terminal_size((100, 24)).columns
    cells: dict[str, Callable[[Run], str]] = {
        "run": lambda run: run.run,
        "state": state_text,
        "task": lambda run: run.task or "",
        "step": step_text,
        f"best {metric.name}": best_text,
        "last": lambda run: "" if run.last is None else show(run.last),
        **_differences(differing_keys(runs)),
        "events/s": lambda run: "" if run.events_per_s is None else f"{run.events_per_s:.3g}",
        "hours": lambda run: "" if run.hours is None else f"{run.hours:.2f}",
        "started": lambda run: (run.started or "")[:16].replace("T", " "),
        "commit": lambda run: run.commit or "",
        "data": lambda run: run.data or "",
        "remarks": lambda run: "; ".join(filter(None, (run.note, run.reason))),
    }
    columns = {name: [cell(run) for run in runs] for name, cell in cells.items()}
    columns = {name: column for name, column in columns.items() if any(column)}
    lines = []
    if same := agreement(runs):
        columns = {name: column for name, column in columns.items() if name not in same}
        lines.append("all: " + ", ".join(f"{name} {value}" for name, value in same.items()))
    left_out = []
    for name in _SPARE:
        if name in columns and _width(columns) > width:
            columns.pop(name)
            left_out.append(name)
    if left_out:
        lines.append(f"no room for {', '.join(left_out)}: widen the window, or --format csv")
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    for name in columns:
        is_whole = name in ("state", "step", "hours", f"best {metric.name}")
        table.add_column(Text(name), overflow="fold", no_wrap=is_whole)
    for row, run in zip(zip(*columns.values(), strict=True), runs, strict=True):
        styles = {"state": _COLORS.get(run.state, "")}
        pairs = zip(columns, row, strict=True)
        table.add_row(*(Text(text, styles.get(name, "")) for name, text in pairs))
    console = Console(width=width, highlight=False, force_terminal=color)
    with console.capture() as captured:
        console.print(table, *map(Text, lines), sep="\n")
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def _differences(keys: Sequence[str]) -> dict[str, Callable[[Run], str]]:
    """Returns a column for each of a few keys, or one for many."""

    def cell(run: Run, key: str) -> str:
        return show(run.config[key]) if key in run.config else ""

    names = short_names(keys)
    if len(keys) <= _MOST_KEYS:
        return {name: partial(cell, key=key) for key, name in names.items()}

    def all_of(run: Run) -> str:
        lines = [f"{name}={cell(run, key)}" for key, name in names.items() if key in run.config]
        more = [f"and {len(lines) - 6} more"] if len(lines) > 6 else []
        return "\n".join(lines[:6] + more)

    return {"differences": all_of}


def _width(columns: dict[str, list[str]]) -> int:
    """Returns the characters that a table needs; long texts may be folded."""
    lengths = [
        max(min(len(line), _WIDEST) for text in [name, *column] for line in [*text.split("\n"), ""])
        for name, column in columns.items()
    ]
    return sum(lengths) + 2 * len(lengths)
