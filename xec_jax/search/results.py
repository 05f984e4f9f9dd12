"""What a study has found: table, files and figures, written anew after every trial."""

import csv
import io
import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xec_jax.config import write_text
from xec_jax.search.space import Dimension, overrides
from xec_jax.search.study import COMPLETE, Row, Study

if TYPE_CHECKING:
    from xec_jax.plots.study import Parameter


def write_results(study: Study) -> None:
    """Writes `trials.csv` and `best.json`."""
    plan = study.plan
    keys = [dimension.key for dimension in plan.space]
    with study.alone():  # whoever writes last has seen all
        rows = study.rows()
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["trial", "state", plan.metric, *keys, "validations", "seconds", "note"])
        for row in rows:
            values = [row.values.get(key) for key in keys]
            seconds = None if row.seconds is None else round(row.seconds, 1)
            end = [len(row.curve), seconds, row.note]
            writer.writerow([row.number, row.state, row.value, *values, *end])
        write_text(study.folder / "trials.csv", table.getvalue())
        if best := best_row(study, rows):
            workdir = study.workdir(best.number)
            found = {
                "trial": best.number,
                "metric": plan.metric,
                "value": best.value,
                "overrides": overrides(best.values),
                "workdir": str(workdir),
                "command": ["python", *plan.command(best.values, workdir)[1:]],
            }
            write_text(study.folder / "best.json", json.dumps(found, indent=2) + "\n")


def best_row(study: Study, rows: Sequence[Row]) -> Row | None:
    """Returns the complete trial with the best value; the first of equals."""
    complete = {row.number: row.value for row in rows if row.state == COMPLETE}
    values = [value for value in complete.values() if value is not None]
    if not values:
        return None
    value = study.plan.better(values)
    return next(row for row in rows if row.state == COMPLETE and row.value == value)


def print_results(study: Study, *, shown: int = 12) -> bool:
    """Prints the best trials, how the others ended, and the command of the best one.

    Returns:
        True if any trial is complete, or may still become so.
    """
    from rich.console import Console
    from rich.table import Table

    plan, rows = study.plan, study.rows()
    sign = -1 if plan.maximize else 1
    ranked = sorted(
        rows,
        key=lambda r: (r.state != COMPLETE, math.inf if r.value is None else sign * r.value),
    )
    console = Console()
    if not console.is_terminal:  # a log file is as wide as it needs to be
        console = Console(width=160)
    table = Table(title=f"{len(rows)} trials in {study.folder}", title_justify="left")
    for name in ("trial", "state", plan.metric, *(d.key.partition(".")[2] for d in plan.space)):
        table.add_column(name, justify="left" if name == "state" else "right", overflow="fold")
    if any(row.note for row in ranked[:shown]):
        table.add_column("note", overflow="fold")
    for row in ranked[:shown]:
        values = [short(row.values.get(dimension.key)) for dimension in plan.space]
        note = row.note.splitlines()[:1]
        value = "" if row.value is None else f"{row.value:.5g}"
        table.add_row(str(row.number), row.state, value, *values, *note)
    console.print(table)
    if len(ranked) > shown:
        print(f"... and {len(ranked) - shown} more: {study.folder / 'trials.csv'}")
    best = best_row(study, rows)
    if best is not None:
        words = plan.command(best.values, study.workdir(best.number))
        print(f"best {plan.metric} {best.value:.6g}, trial {best.number}:")
        print("  " + shlex.join(["python", *words[1:]]))
    return best is not None or any(row.state == "running" for row in rows)


def draw_results(study: Study) -> list[Path]:
    """Draws `figures/`: history, parameters, parallel coordinates and curves."""
    import numpy as np

    from xec_jax.plots import study as plots
    from xec_jax.plots.style import save

    rows = study.rows()
    metric, maximize = study.plan.metric, study.plan.maximize
    value = np.array([math.nan if row.value is None else row.value for row in rows])
    state = [row.state for row in rows]
    parameters = [_parameter(dimension, rows) for dimension in study.plan.space]
    figures = {
        "history": plots.history(value, state, metric, maximize=maximize),
        "parameters": plots.parameters(value, state, parameters, metric),
        "parallel": plots.parallel(value, state, parameters, metric, maximize=maximize),
        "curves": plots.curves([row.curve for row in rows], state, metric, maximize=maximize),
    }
    return [p for name in figures for p in save(figures[name], study.folder / "figures" / name)]


def _parameter(dimension: Dimension, rows: Sequence[Row]) -> "Parameter":
    """Returns what the trials took of one dimension; alternatives as their index."""
    import numpy as np

    from xec_jax.plots.study import Parameter

    labels = dimension.values if dimension.kind == "choice" else ()
    found = [row.values.get(dimension.key) for row in rows]
    numbers = [labels.index(v) if labels and v is not None else v for v in found]
    values = np.array([math.nan if number is None else number for number in numbers], float)
    return Parameter(dimension.key, values, is_log=dimension.kind == "log", labels=labels)


def short(value: object) -> str:
    """Returns a value with as many digits as one reads."""
    return f"{value:.3g}" if isinstance(value, float) else "" if value is None else str(value)
