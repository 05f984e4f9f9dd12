"""The report of an evaluation: one HTML file with everything in it, readable without a network.

Nothing runs in it and nothing is loaded by it. What the texts come from (configs, file names,
messages) is not trusted: they are escaped, secrets in them are starred, and the page forbids the
browser whatever it does not hold itself.
"""

import base64
import hashlib
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from xec_jax.config import flatten, write_text
from xec_jax.errors import ConfigError, DiskError, ShapeError
from xec_jax.evaluation.base import Table
from xec_jax.evaluation.report_style import STYLE
from xec_jax.evaluation.report_text import (
    STARTS_WITH_NUMBER,
    cell,
    exact,
    is_number,
    plain,
    prose,
)
from xec_jax.metric_catalog import describe
from xec_jax.metric_definitions import Definition
from xec_jax.redact import without_secrets

PNG_START = b"\x89PNG\r\n\x1a\n"
DOTS_PER_PIXEL = 2
"""Dots of a figure in a pixel of the page: sharp on fine screens and on paper."""


class Picture(NamedTuple):
    """A figure.

    Attributes:
        title: Headline.
        png: Content of a PNG file; empty for a figure that could not be drawn.
        caption: What it shows; why there is none.
        files: The same in other formats and its data, paths relative to the report.
    """

    title: str
    png: bytes
    caption: str = ""
    files: Sequence[str] = ()


@dataclass(frozen=True)
class Report:
    """What a report says. Texts may hold `code` in backticks.

    Attributes:
        title: Headline.
        facts: What was evaluated: run, step, events, files, date.
        tables: Results. Numbers are written with four digits, NaN is what is not known; texts that
            begin with a number, as `1.23 ± 0.04`, stand like numbers.
        metrics: Numbers by name; those that are not finite are not known.
        figures: The figures.
        config: Nested config of the run.
        environment: What the numbers depend on besides.
        warnings: What makes them doubtful.
        files: What lies beside the report: relative path, and what is in it.
        describe: Gives the definition of a metric by its name, ConfigError if it has none.
    """

    title: str
    facts: Mapping[str, Any]
    tables: Sequence[Table] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    figures: Sequence[Picture] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    describe: Callable[[str], Definition] = describe


def write_report(path: Path, report: Report) -> None:
    """Writes a report, the whole of it or nothing; missing folders are made.

    Args:
        path: The file.
        report: What it says; the same content gives the same bytes.

    Raises:
        DiskError: The folder cannot be written or the disk is full.
        ShapeError: A row of a table with more or fewer cells than columns.
    """
    text = to_html(report)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(
            f"cannot make the folder {path.parent}: {error}", remedy="choose another output folder"
        ) from error
    write_text(path, text)


def to_html(report: Report) -> str:
    """Returns the report as the text of an HTML file, in ASCII."""
    sections = {
        "Results": [(table.title, _table(table)) for table in report.tables],
        "Metrics": [("", _metrics(report))] if report.metrics else [],
        "Figures": [(picture.title, _figure(picture)) for picture in report.figures],
        "Configuration": [("", _groups(report.config))] if report.config else [],
        "Environment": [("", _pairs(report.environment))] if report.environment else [],
        "Files": [("", _files(report.files))] if report.files else [],
    }
    sections = {name: parts for name, parts in sections.items() if parts}
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    page = "\n".join(
        [
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{plain(report.title)}</title><style>{STYLE}</style></head><body>",
            f"<header><h1>{prose(report.title)}</h1>{_facts(report.facts)}</header>",
            _warnings(report.warnings),
            _contents({name: [title for title, _ in parts] for name, parts in sections.items()}),
            *(_section(name, parts) for name, parts in sections.items()),
            "</body></html>\n",
        ]
    )
    return page.encode("ascii", "xmlcharrefreplace").decode()  # the same in every locale


def _facts(facts: Mapping[str, Any]) -> str:
    def shown(value: Any) -> str:
        is_list = isinstance(value, list | tuple)
        return ", ".join(map(cell, value)) if is_list else cell(value)

    pairs = (
        f"<div><dt>{prose(k)}</dt><dd>{shown(v)}</dd></div>"
        for k, v in without_secrets(facts).items()
    )
    return f"<dl>{''.join(pairs)}</dl>" if facts else ""


def _warnings(warnings: Sequence[str]) -> str:
    lines = "".join(f"<li>{prose(text)}</li>" for text in warnings)
    head = "<strong>To be kept in mind</strong>"
    return f'<aside class="warnings">{head}<ul>{lines}</ul></aside>' if warnings else ""


def _place(section: str, number: int | None = None) -> str:
    return section.lower() + ("" if number is None else f"-{number}")


def _contents(sections: Mapping[str, Sequence[str]]) -> str:
    def entry(name: str, titles: Sequence[str]) -> str:
        inner = "".join(
            f'<li><a href="#{_place(name, k)}">{prose(title)}</a></li>'
            for k, title in enumerate(titles)
            if title
        )
        inner = f"<ul>{inner}</ul>" if inner else ""
        return f'<li><a href="#{_place(name)}">{name}</a>{inner}</li>'

    entries = "".join(entry(name, titles) for name, titles in sections.items())
    return f'<nav aria-label="Contents"><ul>{entries}</ul></nav>' if sections else ""


def _section(name: str, parts: Sequence[tuple[str, str]]) -> str:
    inner = "\n".join(
        f'<div id="{_place(name, k)}">{html}</div>' for k, (_, html) in enumerate(parts)
    )
    return f'<section id="{_place(name)}"><h2>{name}</h2>\n{inner}\n</section>'


def _table(table: Table) -> str:
    for row in table.rows:
        if len(row) != len(table.columns):
            raise ShapeError(
                f"a row of the table {table.title!r} has {len(row)} cells",
                expected=f"{len(table.columns)}, one for each of {list(table.columns)}",
            )
    columns = list(zip(*table.rows, strict=True)) or [()] * len(table.columns)
    classes = [_class_of(column) for column in columns]
    head = _row("th", map(prose, table.columns), classes)
    body = "".join(_row("td", map(cell, row), classes) for row in table.rows)
    note = f'<p class="note">{prose(table.note)}</p>' if table.note else ""
    rows = f"<thead>{head}</thead><tbody>{body}</tbody>"
    return (
        f"<h3>{prose(table.title)}</h3>"
        f'<div class="wide"><table class="results">{rows}</table></div>{note}'
    )


def _row(tag: str, cells: Iterator[str], classes: Sequence[str]) -> str:
    pairs = zip(cells, classes, strict=True)
    inner = "".join(f"<{tag}{f' class={c!r}' if c else ''}>{html}</{tag}>" for html, c in pairs)
    return f"<tr>{inner}</tr>"


def _class_of(column: Sequence[Any]) -> str:
    """Numbers stand at the right, if the whole column is of numbers; long texts are folded."""
    known = [value for value in column if value is not None and value != ""]
    if known and all(is_number(value) or STARTS_WITH_NUMBER.match(str(value)) for value in known):
        return "number"
    return "prose" if any(len(str(value)) > 40 for value in known) else ""


def _metrics(report: Report) -> str:
    groups: dict[str, list[str]] = {}
    for name, value in report.metrics.items():
        try:
            known = report.describe(name)
            unit, text, group = known.unit, known.text, known.group
        except ConfigError:
            unit, text, group = "", "", "Others"
        cells = (f"<code>{plain(name)}</code>", cell(value), plain(unit), prose(text))
        row = _row("td", iter(cells), ("", "number", "", ""))
        groups.setdefault(group, []).append(row)
    head = _row("th", iter(("name", "value", "unit", "definition")), ("", "number", "", ""))
    return "\n".join(
        f"<details open><summary>{plain(group)}<span>{len(rows)}</span></summary>"
        f'<div class="wide"><table class="metrics"><thead>{head}</thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></details>"
        for group, rows in groups.items()
    )


def _figure(picture: Picture) -> str:
    caption = prose(picture.caption)
    if picture.files:
        links = ", ".join(
            _link(name, Path(name).suffix[1:].upper() or name) for name in picture.files
        )
        caption += f' <span class="files">[{links}]</span>'
    if picture.png[:8] == PNG_START and len(picture.png) >= 24:
        width, height = (n // DOTS_PER_PIXEL for n in struct.unpack(">II", picture.png[16:24]))
        data = base64.b64encode(picture.png).decode()
        image = (
            f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}" '
            f'alt="{plain(picture.title)}">'
        )
    else:
        image = '<p class="missing">This figure could not be drawn.</p>'
    head = f"<h3>{prose(picture.title)}</h3>"
    return f"<figure>{head}{image}<figcaption>{caption}</figcaption></figure>"


def _link(name: str, text: str) -> str:
    # Beginning with a dot and with its colons quoted, no name can be an address elsewhere.
    return f'<a href="./{quote(os.fsencode(name))}">{plain(text)}</a>'


def _groups(config: Mapping[str, Any]) -> str:
    """The values of a config, a foldable table for each group."""
    groups: dict[str, dict[str, Any]] = {}
    for key, value in without_secrets(flatten(config)).items():
        group, dot, _ = key.partition(".")
        groups.setdefault(group if dot else "", {})[key] = value
    return "".join(
        f"<details><summary>{plain(group)}<span>{len(values)}</span></summary>"
        f"{_rows(values)}</details>"
        if group
        else _rows(values)
        for group, values in sorted(groups.items())
    )


def _pairs(values: Mapping[str, Any]) -> str:
    found = without_secrets(flatten(values))
    return f"<details><summary>{len(found)} facts</summary>{_rows(found)}</details>"


def _rows(values: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{plain(key)}</code></td><td>{plain(exact(value))}</td></tr>"
        for key, value in values.items()
    )
    return f'<table class="pairs"><tbody>{rows}</tbody></table>'


def _files(files: Mapping[str, str]) -> str:
    rows = "".join(
        f"<tr><td>{_link(name, name)}</td><td>{prose(text)}</td></tr>"
        for name, text in files.items()
    )
    return f'<table class="pairs"><tbody>{rows}</tbody></table>'
