"""The runs as one HTML file: table, curves and configs, readable without a network."""

import base64
import hashlib
import io
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from xec_jax.plots.comparison import DASHES, MOST, Curve, comparison
from xec_jax.plots.curves import training_curves
from xec_jax.plots.style import COLORS
from xec_jax.registry import table
from xec_jax.registry.measured import read_curves
from xec_jax.registry.page_assets import SCRIPT, STYLE
from xec_jax.registry.run import Metric, Run, clean, number
from xec_jax.train.records import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)


def to_html(runs: Sequence[Run], metric: Metric, title: str) -> str:
    """Returns a page that stands for itself: one file, no address is loaded.

    The first `MOST` runs that have records are drawn, in the order given. Whatever comes from run
    folders is escaped, and the page forbids the browser any script but its own.

    Args:
        runs: The runs, in their order.
        metric: What best means.
        title: Headline.
    """
    keys = table.differing_keys(runs)
    records: dict[int, list[Record]] = {}
    for k, run in enumerate(runs):
        if len(records) < MOST and (found := read_curves(run)):
            records[k] = found
    states = Counter(run.state for run in runs if run.kind == "run")
    facts = [f"{count} {state}" for state, count in states.most_common()]
    facts += [f"{name} {value}" for name, value in table.agreement(runs).items()]
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    page = "\n".join(
        [
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
            f'<h1>{escape(title)}</h1><p class="facts">{escape(", ".join(facts))}</p>',
            f'<div class="wide">{_table(runs, keys, metric, list(records))}</div>',
            f"<h2>Curves</h2><figure>{_overview(list(records.values()), metric)}</figure>",
            "<h2>Runs</h2>",
            *(_details(k, run, keys, records.get(k)) for k, run in enumerate(runs)),
            f"<script>{SCRIPT}</script></body></html>\n",
        ]
    )
    return page.encode("ascii", "xmlcharrefreplace").decode()  # the same in every locale


def _table(runs: Sequence[Run], keys: Sequence[str], metric: Metric, drawn: list[int]) -> str:
    """One row per run; cells carry what they are sorted by."""
    same = table.agreement(runs)
    shown = [name for name in ("task", "commit", "data") if name not in same]
    rows = []
    for k, run in enumerate(runs):
        mark = _line_mark(drawn.index(k)) if k in drawn else ""
        name = f'{mark}<a href="#run-{k}">{escape(run.run)}</a>'
        state = f'<span class="state {run.state}">{escape(table.state_text(run))}</span>'
        started = (run.started or "")[:16].replace("T", " ")
        remarks = "; ".join(filter(None, (run.note, run.reason)))
        cells = [
            _cell(name, run.run, "text"),
            _cell(state, run.state),
            _cell(escape(table.step_text(run)), run.step, "number"),
            _cell(escape(table.best_text(run)), run.best, "number"),
            _plain(run.last),
            *(_plain(run.config.get(key)) for key in keys),
            _plain(remarks, "text"),
            _plain(run.events_per_s and round(run.events_per_s)),
            _cell("" if run.hours is None else f"{run.hours:.2f}", run.hours, "number"),
            _plain(started),
            *(_plain(table.value_of(run, name)) for name in shown),
        ]
        rows.append(f'<tr class="{run.kind}">{"".join(cells)}</tr>')
    heads = [_head("run"), _head("state"), *map(_number_head, ("step", f"best {metric.name}"))]
    heads.append(_number_head("last"))
    for key, name in table.short_names(keys).items():
        is_number = any(number(run.config.get(key)) is not None for run in runs)
        heads.append((_number_head if is_number else _head)(name, key))
    heads += [_head("remarks"), *map(_number_head, ("events/s", "hours")), _head("started (UTC)")]
    heads += map(_head, shown)
    body = "".join(rows)
    return f'<table id="runs"><thead><tr>{"".join(heads)}</tr></thead><tbody>{body}</tbody></table>'


def _head(text: str, title: str = "", css: str = "") -> str:
    return f'<th class="{css}" title="{escape(title)}">{escape(text)}</th>'


def _number_head(text: str, title: str = "") -> str:
    return _head(text, title, "number")


def _cell(html: str, key: Any, css: str = "") -> str:
    text = "" if key is None else escape(str(key))
    return f'<td class="{css}" data-key="{text}">{html}</td>'


def _plain(value: Any, css: str = "") -> str:
    if value is None:
        return _cell("", None)
    is_number = number(value) is not None
    return _cell(escape(table.show(value)), value, "number" if is_number else css)


def _line_mark(k: int) -> str:
    """Draws a piece of curve k of the comparison: the legend stands in the table."""
    color, dashes = COLORS[k % len(COLORS)], DASHES[k // len(COLORS)]
    return (
        '<svg class="line" width="26" height="8"><line x1="0" y1="4" x2="26" y2="4" '
        f'stroke="{color}" stroke-width="2.5" stroke-dasharray="{dashes}"/></svg>'
    )


def _overview(records: list[list[Record]], metric: Metric) -> str:
    """Draws training loss, validation loss, and the metric if it is neither."""
    if not records:
        return "nothing recorded"
    wanted = [("train", "loss"), (None, "loss"), (metric.split, metric.name)]
    panels = {
        f"{split or 'validation'}: {name}": [_curve(found, split, name) for found in records]
        for split, name in wanted
    }
    return _svg(lambda: comparison(panels))


def _curve(records: list[Record], split: str | None, name: str) -> Curve:
    """Returns the finite values of a metric with their steps."""
    if split is None:
        split = next((r["split"] for r in records if r.get("split") not in (None, "train")), None)
    pairs = [
        (step, value)
        for record in records
        if record.get("split") == split
        and (step := number(record.get("step"))) is not None
        and (value := number(record.get(name))) is not None
    ]
    return [step for step, _ in pairs], [value for _, value in pairs]


def _details(k: int, run: Run, keys: Sequence[str], records: list[Record] | None) -> str:
    """Everything about one run, folded."""
    facts = {"folder": str(run.folder), **run.details}
    facts = {name: value for name, value in facts.items() if name != "planned"}
    config = "\n".join(
        f"{'*' if key in keys else ' '} {key} = {table.show(value)}"
        for key, value in sorted(run.config.items(), key=lambda item: item[0] not in keys)
    )
    curves = f"<figure>{_svg(lambda: training_curves(records))}</figure>" if records else ""
    shown = (
        f"<tr><td>{escape(clean(name))}</td><td>{escape(clean(table.show(value)))}</td></tr>"
        for name, value in facts.items()
        if value not in (None, "", [], {})
    )
    text = f"<pre>{escape(config)}</pre>* differs between the runs of this page" if config else ""
    return (
        f'<details id="run-{k}"><summary>{escape(run.run)}</summary>{curves}'
        f"<table>{''.join(shown)}</table>{text}</details>"
    )


def _svg(draw: Callable[[], "Figure"]) -> str:
    """Returns a figure as part of the page, or why there is none: a picture ends no listing."""
    import matplotlib

    out = io.StringIO()
    nobody = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    try:
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "runs"}):
            draw().savefig(out, format="svg", metadata=nobody)
    except Exception as error:
        log.warning("a figure failed: %s", error)
        return f"no figure: {escape(str(error))}"
    return out.getvalue()[out.getvalue().index("<svg") :]
