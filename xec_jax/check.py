"""Command that looks at data files before a long job.

    python -m xec_jax.check 'data/*.root' --dead_list dead.txt --figure invalid.png

Heavy packages are imported inside functions, so that `--help` answers at once.
"""

import argparse
import contextlib
import errno
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xec_jax.check_report import plural, to_dict, to_text
from xec_jax.errors import ConfigError, DataError, DiskError, run_command

if TYPE_CHECKING:
    from xec_jax.data.dead import DeadChannels
    from xec_jax.data.survey.files import Problem, Survey

EPILOG = """exit codes:
  0  nothing that would stop or spoil a training; there may be warnings and notes
  2  errors in the files, or a command line that cannot be used
  4  the disk: a report that cannot be written
  130 interrupted from the keyboard"""

SETTINGS = ("tree", "npho_branch", "time_branch", "energy_unit", "max_events", "invalid_above")


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
        found = f"--figure {options.figure}"
        raise ConfigError(found, expected="a name ending in .png, .pdf or .svg")
    from xec_jax.data.survey.compare import compare
    from xec_jax.data.survey.files import Survey

    paths, missing = _find(options.files)
    for option in ("json", "dead_list", "figure"):
        if getattr(options, option):
            _prepare(f"--{option}", getattr(options, option))
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
    dead = survey.health.candidates(options.invalid_above)
    common += _odd_sensors(survey, dead)
    settings = {name: getattr(options, name) for name in SETTINGS}
    result = to_dict(survey, common, dead, settings)
    sys.stdout.write(to_text(result, color=sys.stdout.isatty()))
    if options.json:
        from xec_jax.config import write_text

        write_text(options.json, json.dumps(result, indent=1) + "\n")
        print(f"report: {options.json}")
    if (options.dead_list or options.figure) and not dead:
        print("no event with a usable number: neither a figure nor a list of dead sensors")
    elif options.dead_list or options.figure:
        _write_sensors(survey, dead, options)
    print(result["verdict"])
    return int(result["exit_status"])


def _find(patterns: Sequence[str]) -> "tuple[list[Path], list[Problem]]":
    """Returns the files, each once, and what was named in vain."""
    from xec_jax.data.root.manifest import resolve_paths
    from xec_jax.data.survey.files import Problem

    found: list[Path] = []
    missing: list[DataError] = []
    for pattern in patterns:
        try:
            found += resolve_paths(pattern)
        except DataError as error:
            missing.append(error)
    if not found:
        names = "\n".join(error.found for error in missing)
        raise DataError(names, expected=missing[0].expected, remedy=missing[0].remedy)
    problems = [Problem("error", "file", error.found, error.remedy) for error in missing]
    paths = resolve_paths(found)
    if len(paths) < len(found):
        what = f"{plural(len(found) - len(paths), 'file')} named more than once, but read once"
        problems.append(Problem("note", "named_twice", what))
    return paths, problems


def _prepare(option: str, path: Path) -> None:
    """Makes the folder of an output, so that nothing is found to be missing after an hour.

    Raises:
        ConfigError: The output is a folder.
        DiskError: Its folder cannot be made or written to.
    """
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a folder", expected="the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise DiskError(
            f"{option} {path}: its folder cannot be written ({error.strerror})",
            remedy="name a file in a folder of your own",
        ) from error


def _odd_sensors(survey: "Survey", dead: "DeadChannels") -> "list[Problem]":
    """Looks for sensors that are not dead but strange, and for runs too short to tell."""
    from xec_jax.data.survey.files import EXAMPLES, Problem
    from xec_jax.data.survey.sensors import ENOUGH_EVENTS

    problems = []
    if few := [run for run in survey.health.few() if dead[run].any()]:
        found = f"{_runs(few)} with less than {ENOUGH_EVENTS} events: dead sensors may be chance"
        remedy = "read more events of them, or take them out of the list of dead sensors"
        problems.append(Problem("warning", "few_events", found, remedy))
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


def _runs(runs: Sequence[int | None]) -> str:
    """Returns a title for some runs; None is a file that does not say its runs."""
    shown = ", ".join("all" if run is None else str(run) for run in runs[:10])
    return ("run " if len(runs) == 1 else "runs ") + shown + (", ..." if len(runs) > 10 else "")


def _write_sensors(survey: "Survey", dead: "DeadChannels", options: argparse.Namespace) -> None:
    """Writes the list of dead sensors and the figure."""
    from xec_jax.data.dead import per_face, write_dead
    from xec_jax.data.survey.sensors import ENOUGH_EVENTS

    if options.dead_list:
        where = ", ".join(options.files)
        note = f"invalid in more than {options.invalid_above:g} of the events of a run: {where}"
        notes = [note]
        if few := survey.health.few():
            notes.append(f"less than {ENOUGH_EVENTS} events, may be chance: {_runs(few)}")
        write_dead(options.dead_list, dead, notes)
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
