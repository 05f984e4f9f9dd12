"""A whole evaluation of a run: streams its events, and writes metrics, figures and the report."""

import itertools
import json
import logging
import math
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xec_jax.config import write_text
from xec_jax.data.root.writer import disk_errors
from xec_jax.data.source import Source
from xec_jax.evaluation import base, report
from xec_jax.evaluation.base import Drawing, Setting, Table
from xec_jax.evaluation.engine import stream
from xec_jax.evaluation.text import to_text, write_csv
from xec_jax.metric_catalog import describe
from xec_jax.train.migrations import read_environment
from xec_jax.train.records import read_jsonl

log = logging.getLogger(__name__)

FORMATS = ("png", "pdf")


def evaluate(
    setting: Setting, source: Source, folder: Path, *, workdir: Path, facts: Mapping[str, Any]
) -> list[Table]:
    """Writes everything that is known about a run on some events into a folder.

    `metrics.json` and `metrics.txt`, the files of the experiment, `figures/` (PDF, PNG, and the
    data as npz) and `report.html`. A figure that fails is reported and ends nothing.

    Args:
        setting: The run.
        source: The events; the caller closes it.
        folder: Where to write; made if missing.
        workdir: The run folder, for config and environment.
        facts: What else the report says about the events.

    Returns:
        The comparisons.

    Raises:
        DataError: Events that cannot be evaluated so.
        DiskError: The folder cannot be written.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    evaluation = base.make(setting)
    metrics = stream(setting, evaluation, source, folder)
    seconds = time.monotonic() - begun
    facts = {
        "run": setting.name,
        "task": setting.task.name,
        "checkpoint": f"step {setting.run.step}, epoch {setting.epoch}",
        "weights": "moving average" if setting.run.is_average else "parameters",
        "events": f"{len(source):,}",
        "events/s": f"{len(source) / seconds:.0f}, compilation included",
        **facts,
    }
    _write_metrics(folder, facts, metrics, [])  # what comes now may fail, and takes its time
    tables = evaluation.tables()
    if setting.options.csv:
        for stem, columns in evaluation.texts():
            write_csv(folder / f"{stem}.csv", columns)
    drawings = itertools.chain(evaluation.drawings(), training(workdir))
    pictures = list(_pictures(setting, drawings, folder)) if setting.options.has_figures else []
    _write_metrics(folder, facts, metrics, tables)
    report.write_report(
        folder / "report.html",
        report.Report(
            title=f"Evaluation of {setting.name}",
            facts=facts,
            tables=[t._replace(rows=[list(map(_plain, row)) for row in t.rows]) for t in tables],
            metrics=metrics,
            figures=pictures,
            config=setting.run.config.to_dict(),
            environment=read_environment(workdir),
            files={path.name: "" for path in sorted(folder.glob("*.root"))},
        ),
    )
    return tables


def _pictures(
    setting: Setting, drawings: Iterator[Drawing], folder: Path
) -> Iterator[report.Picture]:
    """Saves the figures one after the other, so that memory holds one."""
    from xec_jax.plots.style import save

    for drawing in _guarded(drawings):
        stem = folder / "figures" / f"{drawing.stem}_{setting.name}"
        title = drawing.stem.replace("_", " ")
        try:
            paths = save(drawing.figure, stem, FORMATS, drawing.data or None)
            png = paths[0].read_bytes()
        except Exception:  # a picture is not worth the numbers
            log.warning("the figure %s failed:\n%s", drawing.stem, traceback.format_exc())
            yield report.Picture(title, b"", "it failed; the log says why")
            continue
        names = [f"figures/{path.name}" for path in paths[1:]]
        yield report.Picture(title, png, drawing.caption, names)


def training(workdir: Path) -> Iterator[Drawing]:
    """Yields the curves of the training, as far as the run has a record."""
    from xec_jax.plots.curves import training_curves

    records = [r for r in read_jsonl(workdir / "metrics.jsonl") if r.get("loss") is not None]
    if records:
        data = {}
        for split in dict.fromkeys(record["split"] for record in records):
            pairs = [(r["step"], r["loss"]) for r in records if r["split"] == split]
            data[f"{split}/step"], data[f"{split}/loss"] = np.array(pairs, float).T
        yield Drawing("training_curves", training_curves(records), data)


def _guarded(drawings: Iterator[Drawing]) -> Iterator[Drawing]:
    """Passes on figures until one cannot be drawn."""
    try:
        yield from drawings
    except Exception:
        log.warning("figures failed:\n%s", traceback.format_exc())


def _write_metrics(
    folder: Path, facts: Mapping[str, Any], metrics: Mapping[str, float], tables: Sequence[Table]
) -> None:
    """Writes metrics and tables as JSON, where NaN is null, and as text."""
    units = {name: describe(name).unit for name in metrics}
    content = {
        "facts": dict(facts),
        "metrics": {name: _plain(value) for name, value in metrics.items()},
        "units": {name: unit for name, unit in units.items() if unit},
        "tables": {
            t.stem: {
                "title": t.title,
                "columns": list(t.columns),
                "rows": [[_plain(cell) for cell in row] for row in t.rows],
                "note": t.note,
            }
            for t in tables
        },
    }
    write_text(folder / "metrics.json", json.dumps(content, indent=1) + "\n")
    rows = [(name, value, units[name], describe(name).text) for name, value in metrics.items()]
    listing = Table("metrics", "Metrics", ("name", "value", "unit", "definition"), rows)
    write_text(folder / "metrics.txt", "\n".join(map(to_text, [*tables, listing])))


def _plain(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
