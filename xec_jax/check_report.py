"""The report of `xec_jax.check`: plain values for JSON, and words and tables."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from xec_jax.data.dead import DeadChannels
    from xec_jax.data.survey.files import FileReport, Problem, Survey

FORMAT = 1  # of the JSON report; keys are only ever added

LEVELS = ("error", "warning", "note")
COLORS = {"error": "bold red", "warning": "yellow", "note": "cyan"}
MOST_RUNS, MOST_FILES, MOST_BRANCHES = 12, 40, 40  # rows; JSON has them all
OWN_LINES = ("file", "read", "read_others")  # each has a reason of its own
MOST_NAMED = 4  # files that share a warning

COMPONENTS = {
    "emiAng": ("theta", "phi"),
    **dict.fromkeys(("emiVec", "xyz"), ("x", "y", "z")),
    "uvw": ("u", "v", "w"),
}
"""What the numbers of a branch are, by the beginning of its name."""

UNITS = {
    **dict.fromkeys(("npho", "npho_max_used"), "photons"),
    "nphe": "phe",
    **dict.fromkeys(("time", "relative_time", "time_min_used"), "s"),
    **dict.fromkeys(("energyTruth", "energyReco", "energyPileup", "energyCosmic"), "GeV"),
    **dict.fromkeys(("timeTruth", "timeReco", "timePileup"), "ns"),
    "emiAng": "degrees",
    **dict.fromkeys(("uvwTruth", "xyzTruth", "xyzVTX", "xyzRecoFI", "xyzRecoLC"), "cm"),
    **dict.fromkeys(("uvwRecoFI", "uvwRecoLC", "uvwPileup"), "cm"),
}


def to_dict(
    survey: "Survey",
    common: "Sequence[Problem]",
    dead: "DeadChannels",
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Collects everything that the report says, as plain values.

    Args:
        survey: What was found.
        common: Problems that are not about a single file.
        dead: Candidates for the list of dead sensors.
        settings: Options that decided.
    """
    import numpy as np

    from xec_jax.data.dead import per_face

    reports, health = survey.reports, survey.health
    problems = [problem for report in reports for problem in report.problems] + [*common]
    count = {level: sum(p.level == level for p in problems) for level in LEVELS}
    return {
        "format": FORMAT,
        "verdict": _verdict(reports, count, common),
        "exit_status": 2 if count["error"] else 0,
        "counts": {f"{level}s": n for level, n in count.items()},
        "settings": dict(settings),
        "entries": sum(report.entries for report in reports),
        "events_read": sum(len(report.numbers) for report in reports),
        "branches": {name: counts.as_dict() for name, counts in survey.branches.items()},
        "dead_sensors": [
            {
                "run": run,
                "events": health.events[run],
                "sensors": np.flatnonzero(pattern).tolist(),
                "per_face": per_face(pattern),
            }
            for run, pattern in dead.items()
        ],
        "hot_sensors": health.hot().tolist(),
        "blind_sensors": health.blind().tolist(),
        "problems": [asdict(problem) for problem in common],
        "files": [report.as_dict() for report in reports],
    }


def _verdict(
    reports: "Sequence[FileReport]", count: dict[str, int], common: "Sequence[Problem]"
) -> str:
    """Returns one line: whether a training can start, and what to do otherwise."""
    events = sum(len(report.numbers) for report in reports)
    n = {level: plural(number, level) for level, number in count.items()}
    if not count["error"]:
        state = f"OK, with {n['warning']}" if count["warning"] else "OK"
        return f"{state}: {plural(events, 'event')} in {plural(len(reports), 'file')}"
    bad = [str(report.path) for report in reports if not report.is_usable]
    what = f"repair or leave out {', '.join(bad[:4])}"
    what += f" and {len(bad) - 4} more" if len(bad) > 4 else ""
    if not bad:
        what = f"see {', '.join(sorted({p.kind for p in common if p.level == 'error'}))} above"
    return f"NOT READY: {n['error']}, {n['warning']} in {plural(len(reports), 'file')}; {what}"


def to_text(result: dict[str, Any], *, color: bool) -> str:
    """Returns the report in words.

    Args:
        result: What the JSON report holds.
        color: Colors and the width of the terminal; without, plain lines that a pipe can take.
    """
    from rich.console import Console

    width = max(shutil.get_terminal_size().columns, 110) if color else 200
    console = Console(width=width, highlight=False, force_terminal=color)
    with console.capture() as captured:
        console.print(_files(result["files"]))
        if result["branches"]:
            console.print(_branches(result))
        for line in _schemes(result["files"]):
            console.print(line, markup=False, soft_wrap=True)
        if result["dead_sensors"]:
            console.print(_dead(result["dead_sensors"]))
        for text in _problems(result):
            console.print(text, soft_wrap=True)
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def _problems(result: dict[str, Any]) -> "Iterator[Text]":
    """Says what is wrong, errors first, once for all files that share kind and remedy."""
    from rich.text import Text

    groups: dict[tuple[str, str, str], list[tuple[str, str]]] = {}
    for file in [*result["files"], result]:
        for p in file["problems"]:
            same = groups.setdefault((p["level"], p["kind"], p["remedy"]), [])
            same.append((p["found"], file.get("path", "")))
    for level in LEVELS:
        for (_, kind, remedy), same in [item for item in groups.items() if item[0][0] == level]:
            if kind in OWN_LINES:
                for found, _ in same[:-1]:
                    yield Text.assemble((f"{level} ", COLORS[level]), f"{kind}: {found}")
                same = same[-1:]
            (found, first), others = same[0], same[1:]
            files = [path for path in dict.fromkeys(path for _, path in others) if path != first]
            shown = files if level == "error" else files[:MOST_NAMED]
            names = ", ".join(shown) + (", ..." if len(shown) < len(files) else "")
            more = f" (and {len(others)} more like this" if others else ""
            more += f": {names})" if names else ")" if others else ""
            yield Text.assemble((f"{level} ", COLORS[level]), f"{kind}: {found}{more}")
            if remedy:
                yield Text(f"  remedy: {remedy}")


def _table(title: str, *names: str) -> "Table":
    """Returns a table whose first column holds names and whose others hold numbers."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1))
    for number, name in enumerate(names):
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    return table


def _files(files: list[dict[str, Any]]) -> "Table":
    from rich.markup import escape

    table = _table(
        "files", "file", "events", "runs", "first", "last", "MB", "stored as", "problems"
    )

    def number(end: dict[str, int]) -> str:
        return ":".join(str(end[name]) for name in ("run", "event") if name in end)

    def harm(file: dict[str, Any]) -> int:
        return min((LEVELS.index(p["level"]) for p in file["problems"]), default=len(LEVELS))

    for file in sorted(files, key=harm)[:MOST_FILES]:
        levels = [problem["level"] for problem in file["problems"]]
        found = [plural(levels.count(level), level) for level in LEVELS if level in levels]
        read, entries = file["events_read"], file["entries"]
        table.add_row(
            escape(file["path"]),
            str(entries) if read == entries else f"{read} of {entries}",
            str(len(file["runs"])),
            number(file["first"]),
            number(file["last"]),
            f"{file['size_bytes'] / 1e6:.1f}",
            f"{file['container']} {file['compression']}".strip(),
            ", ".join(found) or "none",
        )
    if len(files) > MOST_FILES:
        table.add_row(f"and {len(files) - MOST_FILES} more")
    return table


def _branches(result: dict[str, Any]) -> "Table":
    from rich.markup import escape

    table = _table(
        "branches over all files; invalid: NaN, infinite or above 9e9; the others: valid values",
        *("branch", "type", "NaN, inf", "invalid", "negative", "zero", "min", "median", "max", ""),
    )
    types = {name: b["type"] for file in result["files"] for name, b in file["branches"].items()}

    def share(n: int, of: int) -> str:
        return "-" if not n else f"{n / of:.1%}" if n >= 0.001 * of else str(n)

    def value(x: float | None, kind: str) -> str:
        return "" if x is None else f"{x:.10g}" if "int" in kind else f"{x:.4g}"

    for branch, name, c in _rows(result["branches"]):
        unit = UNITS.get(branch, "")
        bad = c["nan"] + c["inf"]
        invalid = bad + c["marker"]
        table.add_row(
            escape(name),
            escape(types[branch] if name == branch else ""),
            share(bad, c["values"]),
            share(invalid, c["values"]),
            share(c["negative"], c["values"] - invalid),
            share(c["zero"], c["values"] - invalid),
            *(value(c[key], types[branch]) for key in ("min", "median", "max")),
            result["settings"]["energy_unit"] if unit == "GeV" else unit,
        )
    if len(result["branches"]) > MOST_BRANCHES:
        table.add_row(f"and {len(result['branches']) - MOST_BRANCHES} more")
    return table


def _rows(branches: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yields branch, title and numbers of the rows; components instead of a mixture of them."""
    for branch, c in list(branches.items())[:MOST_BRANCHES]:
        parts = c.get("components", [])
        known = next((names for start, names in COMPONENTS.items() if branch.startswith(start)), ())
        names = known if len(known) == len(parts) else map(str, range(len(parts)))
        mixed = dict.fromkeys(("min", "median", "max"))
        yield branch, branch, c | mixed if parts else c
        for name, part in zip(names, parts, strict=True):
            yield branch, f"  {name}", part


def _schemes(files: list[dict[str, Any]]) -> Iterator[str]:
    """Says which constants fit the branches of photons."""
    found = dict.fromkeys(pair for file in files for pair in file["scheme"].items())
    for name, kind in found:
        fitting = {
            "photons": "photons; fits npho_scale 1000, npho_scale2 4.08 (the default)",
            "fractions": "fractions of the brightest sensor; fits the legacy constants npho_scale "
            "0.58, npho_scale2 1",
        }
        yield f"{name} holds {fitting[kind]}"


def _dead(patterns: list[dict[str, Any]]) -> "Table":
    faces = list(patterns[0]["per_face"])
    table = _table("candidates for the list of dead sensors", "run", "events", "dead", *faces)
    for pattern in patterns[:MOST_RUNS]:
        table.add_row(
            "all" if pattern["run"] is None else str(pattern["run"]),
            str(pattern["events"]),
            str(len(pattern["sensors"])),
            *(str(n) for n in pattern["per_face"].values()),
        )
    if len(patterns) > MOST_RUNS:
        table.add_row(f"and {len(patterns) - MOST_RUNS} more")
    if len(patterns) > 1:
        sets = [set(pattern["sensors"]) for pattern in patterns]
        table.add_row("in every run", "", str(len(set.intersection(*sets))))
        table.add_row("in any run", "", str(len(set.union(*sets))))
    return table


def plural(n: int, word: str) -> str:
    """Returns a number with its noun."""
    return f"{n} {word}" + ("s" if n != 1 else "")
