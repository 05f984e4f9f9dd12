"""Command that looks at data files before a long job.

    python -m xec_jax.check 'data/*.root' --dead_list dead.txt --figure invalid.png

Heavy packages are imported inside functions, so that `--help` answers at once.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xec_jax.check_text import LEVELS, plural, to_text
from xec_jax.errors import ConfigError, DataError, run_command

if TYPE_CHECKING:
    from xec_jax.data.dead import DeadChannels
    from xec_jax.data.survey.files import FileReport, Problem, Survey

EPILOG = """exit codes:
  0  nothing that would stop or spoil a training; there may be warnings and notes
  2  errors in the files, or a command line that cannot be used
  4  the disk: a report that cannot be written
  130 interrupted from the keyboard"""

FORMAT = 1  # of the JSON report; keys are only ever added


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m xec_jax.check",
        description="Looks at all events of data files before a long job: branches, units, "
        "normalization scheme, truth, dead sensors, duplicates.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("files", nargs="+", metavar="FILES", help="ROOT files, folders or globs")
    add("--tree", default="tree", help="name of the tree (default: tree)")
    add("--npho_branch", default="npho", metavar="B", help="photons to be fed (default: npho)")
    add(
        "--time_branch",
        default="relative_time",
        metavar="B",
        help="times to be fed, or `none` (default: relative_time)",
    )
    add("--energy_unit", default="GeV", choices=["GeV", "MeV"], help="of the files (default: GeV)")
    add("--max_events", type=int, metavar="N", help="of each file, from its beginning")
    add(
        "--invalid_above",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="a sensor is a candidate for the dead list if it is invalid in more than this share "
        "of a run's events (default: 0.5)",
    )
    add("--json", type=Path, metavar="F", help="write the report as JSON")
    add("--figure", type=Path, metavar="F.png", help="draw the share of invalid events per sensor")
    add("--dead_list", type=Path, metavar="F", help="write the dead sensors of each run")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command.

    Args:
        argv: Arguments after the command's name.

    Returns:
        The exit code.
    """
    options = _parser().parse_args(argv)
    if options.max_events is not None and options.max_events < 1:
        raise ConfigError(f"--max_events {options.max_events}", expected="1 or more")
    if not 0 <= options.invalid_above < 1:
        raise ConfigError(f"--invalid_above {options.invalid_above}", expected="from 0 to below 1")
    if options.figure and options.figure.suffix not in (".png", ".pdf", ".svg"):
        raise ConfigError(f"--figure {options.figure}", expected="a name ending in .png or .pdf")
    from xec_jax.data.survey.compare import compare
    from xec_jax.data.survey.files import Survey

    paths, missing = _find(options.files)
    time_branch = None if options.time_branch.lower() in ("", "none") else options.time_branch
    survey = Survey(
        tree=options.tree,
        npho_branch=options.npho_branch,
        time_branch=time_branch,
        energy_unit=options.energy_unit,
        max_events=options.max_events,
    )
    with _progress(len(paths)) as show:
        for number, path in enumerate(paths):
            survey.look(path, lambda share, number=number: show(number + share))  # type: ignore
            show(number + 1)
    common = [*missing, *compare(survey.reports, [options.npho_branch, time_branch or ""])]
    common += _odd_sensors(survey)
    dead = survey.health.candidates(options.invalid_above)
    result = _result(survey, common, dead, options)
    sys.stdout.write(to_text(result, color=sys.stdout.isatty()))
    if options.json:
        from xec_jax.config import write_text

        write_text(options.json, json.dumps(result, indent=1) + "\n")
        print(f"report: {options.json}")
    if (options.dead_list or options.figure) and not dead:
        print("no events with light: neither a figure nor a list of dead sensors")
    elif options.dead_list or options.figure:
        _write_sensors(survey, dead, options)
    print(result["verdict"])
    return int(result["exit_status"])


def _find(patterns: Sequence[str]) -> "tuple[list[Path], list[Problem]]":
    """Returns the files, each once, and what was named in vain."""
    from xec_jax.data.root.manifest import resolve_paths
    from xec_jax.data.survey.files import Problem

    found: list[Path] = []
    missing = []
    for pattern in patterns:
        try:
            found += resolve_paths(pattern)
        except DataError as error:
            missing.append(Problem("error", "file", error.found, error.remedy))
            if len(missing) == len(patterns):
                raise
    paths = resolve_paths(found)
    if len(paths) < len(found):
        what = f"{plural(len(found) - len(paths), 'file')} named more than once, but read once"
        missing.append(Problem("note", "named_twice", what))
    return paths, missing


def _odd_sensors(survey: "Survey") -> "list[Problem]":
    from xec_jax.data.survey.files import EXAMPLES, Problem

    problems = []
    for kind, ids, what in (
        (
            "hot_sensors",
            survey.health.hot(),
            "with far more light than the neighbors in many events",
        ),
        (
            "blind_sensors",
            survey.health.blind(),
            "with numbers but without the light that the neighbors see",
        ),
    ):
        if len(ids):
            shown = ", ".join(map(str, ids[:EXAMPLES])) + (", ..." if len(ids) > EXAMPLES else "")
            found = f"{plural(len(ids), 'sensor')} {what}: {shown}"
            remedy = "look at their calibration, or add them to the list of dead sensors"
            problems.append(Problem("warning", kind, found, remedy))
    return problems


def _result(
    survey: "Survey",
    common: "Sequence[Problem]",
    dead: "DeadChannels",
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Collects everything that the report says, as plain values."""
    import numpy as np

    from xec_jax.data.dead import per_face

    reports, health = survey.reports, survey.health
    problems = [problem for report in reports for problem in report.problems] + [*common]
    count = {level: sum(p.level == level for p in problems) for level in LEVELS}
    settings = ("tree", "npho_branch", "time_branch", "energy_unit", "max_events", "invalid_above")
    return {
        "format": FORMAT,
        "verdict": _verdict(reports, count, common),
        "exit_status": 2 if count["error"] else 0,
        "counts": {f"{level}s": n for level, n in count.items()},
        "settings": {name: getattr(options, name) for name in settings},
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


def _write_sensors(survey: "Survey", dead: "DeadChannels", options: argparse.Namespace) -> None:
    """Writes the list of dead sensors and the figure."""
    from xec_jax.data.dead import per_face, write_dead

    if options.dead_list:
        where = ", ".join(options.files)
        note = f"invalid in more than {options.invalid_above:g} of the events of a run: {where}"
        write_dead(options.dead_list, dead, [note])
        print(f"dead sensors of {plural(len(dead), 'run')}: {options.dead_list}")
    if options.figure:
        import numpy as np

        from xec_jax.geometry import make_detector
        from xec_jax.plots.sensors import invalid_share
        from xec_jax.plots.style import save

        masks = list(dead.values())
        some = np.logical_or.reduce(masks)
        notes = [
            f"{plural(sum(survey.health.events.values()), 'event')}, {plural(len(dead), 'run')}",
            f"dead in every run: {np.logical_and.reduce(masks).sum()}",
            f"dead in some run: {some.sum()}",
        ]
        faces = [f"{face} {n}" for face, n in per_face(some).items() if n]
        notes += [", ".join(faces[:3]), ", ".join(faces[3:])]
        share = survey.health.share_invalid()
        figure = invalid_share(share, make_detector(), title="Invalid sensors", note=notes)
        save(figure, options.figure.with_suffix(""), (options.figure.suffix[1:],))
        print(f"figure: {options.figure}")


@contextlib.contextmanager
def _progress(files: int) -> "Iterator[Callable[[float], None]]":
    """Yields a function that is told how many files are done; on a terminal it moves a bar."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("files", total=files)
        yield lambda done: bar.update(task, completed=done)


if __name__ == "__main__":
    run_command(main)
