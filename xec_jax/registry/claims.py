"""Reading a hand-kept registry of trainings in Markdown.

Such a file has a section per task (`## Electron Direction (ED) Regression`), facts of the section
as `**Key**: value` lines, and an entry per training: a heading `#### 3. Title - <emoji> WORD` with
a list of `- **Key**: value`. What it says was not measured by this program: it becomes claims.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xec_jax.errors import DataError

MARKS = {
    "✅": "done",
    "❌": "failed",
    "⏳": "running",
    "🔄": "registered",  # resubmitted
    "💤": "registered",  # waits for resources
    "\ufffd": "registered",  # what some editors made of the last but one
}
"""States by the emoji that stands in a heading."""

WORDS = {
    "completed": "done",
    "done": "done",
    "failed": "failed",
    "oom": "failed",
    "poor": "failed",
    "running": "running",
    "resubmitted": "registered",
    "submitted": "registered",
    "queued": "registered",
    "idle": "registered",
}
"""States by the word after it, which knows better: people write ⏳ for idle jobs, too."""

_SECTION = re.compile(r"##\s+(.+)")
_PERIOD = re.compile(r"###\s+Training Attempts\s*(?:\((.+)\))?", re.IGNORECASE)
_ENTRY = re.compile(r"#{3,4}\s+(\d+)\.\s+(.+)")
_HEADING = re.compile(r"#{1,6}\s")
_FACT = re.compile(r"\*\*([^*]+)\*\*:\s*(.*)")
_FIELD = re.compile(r"[-*]\s+\*\*([^*]+)\*\*:\s*(.*)")
_JOB = re.compile(r"\b\d{4,}\b")
_MEASURED = re.compile(
    r"(?P<value>[-+]?\d+(?:\.\d+)?)\s*(?P<unit>°|degrees?\b|%|[mk]?eV\b|[MG]eV\b|[mc]m\b|[mnp]s\b)"
    r"\s*(?P<name>[A-Za-z][A-Za-z -]*[A-Za-z])?"
)
_NAMED = re.compile(
    r"(?P<name>[A-Za-z][\w ]*?)\s*[:=]\s*(?P<value>[-+]?\d+\.\d+)"
    r"(?:\s*(?:to|-|\u2013)\s*(?P<high>\d+\.\d+))?(?!\s*(?:°|%|\w))"
)
_ENCODINGS = ("mac_roman", "cp1252")


def repair(text: str) -> str:
    """Undoes UTF-8 that was read as Mac Roman or Windows-1252 (`¬∞` for `°`); intact text stays."""

    def once(match: re.Match[str]) -> str:
        for encoding in _ENCODINGS:
            try:
                return match[0].encode(encoding).decode()
            except UnicodeError:
                continue
        return match[0]

    return re.sub(r"[^\x00-\x7f]+", once, text)


def read_claims(path: Path) -> list[dict[str, Any]]:
    """Reads the entries of a Markdown registry.

    Args:
        path: The file, UTF-8.

    Returns:
        A row per entry with `kind` ("claim"), `source`, `line`, `task` (section), `section` (its
        facts), `period`, `attempt`, `title`, `state`, `jobs`, `figures` (numbers with names and
        units found in the result) and every `- **Key**: value` under the key in lower case.

    Raises:
        DataError: The file cannot be read, or has no entry.
    """
    try:
        lines = [repair(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    rows = [{"kind": "claim", "source": path.name, **row} for row in _entries(lines)]
    if not rows:
        raise DataError(
            f"{path} has no entries", expected="headings like `#### 1. Title`, a list below each"
        )
    return rows


def _entries(lines: list[str]) -> Iterator[dict[str, Any]]:
    """Goes through the lines once; an entry is complete where the next heading begins."""
    task, period, section = "", "", dict[str, str]()
    entry: dict[str, Any] = {}
    fields: dict[str, str] = {}
    key = ""
    for number, line in enumerate([*lines, "# end"], start=1):
        text = line.strip()
        if _HEADING.match(line):
            if entry:
                yield {**entry, **_derived(entry, fields)}
            entry, fields, key = {}, {}, ""
            if found := _ENTRY.fullmatch(text):
                title, state = _title_and_state(found[2])
                entry = {"line": number, "task": task, "section": section, "period": period}
                entry |= {"attempt": int(found[1]), "title": title, "state": state}
            elif found := _PERIOD.fullmatch(text):
                period = found[1] or ""
            elif found := _SECTION.fullmatch(text):
                task, period, section = found[1].strip(), "", {}
        elif entry and (found := _FIELD.fullmatch(text)) and not line[:1].isspace():
            key = _key(found[1])
            fields[key] = found[2].strip()
        elif entry and key and text:
            # Lists and lines below a field belong to it.
            more = re.sub(r"^[-*]\s+", "", text)
            fields[key] = f"{fields[key]}; {more}" if fields[key] else more
        elif not entry and (found := _FACT.fullmatch(text)):
            section[_key(found[1])] = found[2].strip()


def _title_and_state(heading: str) -> tuple[str, str | None]:
    """Splits `Title - ❌ FAILED`; the state is None where the heading has none."""
    title, dash, tail = heading.rpartition(" - ")
    words = re.findall(r"[A-Za-z]+", tail)
    word = WORDS.get(words[0].lower()) if words and words[0].isupper() else None
    mark = next((state for mark, state in MARKS.items() if mark in tail), None)
    if dash and (word or mark):
        return title.strip(), word or mark
    return heading.strip(), None


def _derived(entry: dict[str, Any], fields: dict[str, str]) -> dict[str, Any]:
    """Fields of an entry, with jobs and numbers picked out, and a state from them if need be."""
    taken = {"kind", "source", "jobs", "figures", *entry}
    jobs = _JOB.findall(fields.pop("job_id", ""))
    fields = {k: value.replace("`", "") for k, value in fields.items() if k not in taken}
    words = re.findall(r"[a-z]+", fields.get("status", "").lower())
    state = entry["state"] or next((WORDS[word] for word in words if word in WORDS), "unknown")
    figures = _figures(fields.get("result", ""))
    return {"state": state, "jobs": jobs, "figures": figures, **fields}


def _figures(text: str) -> list[dict[str, Any]]:
    """Finds `74.23° mean angular error` and `val_losses: 0.71 to 0.76`."""
    found: list[dict[str, Any]] = [
        {"name": match["name"] or "", "value": float(match["value"]), "unit": match["unit"]}
        for match in _MEASURED.finditer(text)
    ]
    for match in _NAMED.finditer(text):
        figure = {"name": match["name"], "value": float(match["value"]), "unit": ""}
        found.append(figure | ({"high": float(match["high"])} if match["high"] else {}))
    return found


def _key(text: str) -> str:
    return re.sub(r"\W+", "_", text.strip().lower()).strip("_")
