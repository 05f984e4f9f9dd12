"""What several files have in common that they should not, and the other way round."""

from collections.abc import Sequence

import numpy as np

from xec_jax.data.survey.files import NUMBERS, FileReport, Level, Problem
from xec_jax.data.survey.questions import TRUTH


def compare(reports: Sequence[FileReport], inputs: Sequence[str]) -> list[Problem]:
    """Looks for files and events that come twice, and for branches that some files lack.

    Args:
        reports: What was found in each file.
        inputs: Branches that are to be fed.
    """
    read = [report for report in reports if len(report.numbers)]
    twice, once = _same_files(read)
    problems = [*twice, *_same_events(once), *_other_branches(read, inputs)]
    is_empty = all(report.is_usable and not report.entries for report in reports)
    if reports and is_empty:  # an unreadable file has an error of its own
        problems.append(
            Problem("error", "no_events", "no file has events", "name files that hold events")
        )
    return problems


def _same_files(reports: Sequence[FileReport]) -> tuple[list[Problem], list[FileReport]]:
    """Returns copies as problems, and the files without them."""
    first: dict[tuple[str, int], FileReport] = {}
    problems = []
    for report in reports:
        original = first.setdefault((report.uuid, report.entries), report)
        if original is not report:
            problems.append(
                Problem(
                    "error",
                    "same_file",
                    f"{report.path} is a copy of {original.path} (both have the UUID "
                    f"{report.uuid})",
                    "name one of them; a copy in training and validation hides overtraining",
                )
            )
    return problems, list(first.values())


def _same_events(reports: Sequence[FileReport]) -> list[Problem]:
    """Looks for events with the same photons, whatever their numbers, and with the same numbers."""
    if not reports:
        return []
    numbers = np.concatenate([report.numbers for report in reports])
    known = [np.full(len(r.numbers), set(NUMBERS) <= {*r.numbered}) for r in reports]
    is_numbered = np.concatenate(known)
    lit = np.concatenate([report.lit for report in reports])
    run, event, light = numbers.T

    def neighbors(order: np.ndarray) -> tuple[np.ndarray, ...]:
        """Returns rows that are side by side, and what they have in common."""
        a, b = order[:-1], order[1:]
        same_numbers = (run[a] == run[b]) & (event[a] == event[b]) & is_numbered[a] & is_numbered[b]
        return a, b, light[a] == light[b], same_numbers

    starts = np.cumsum([0, *(len(report.numbers) for report in reports)])

    def show(before: np.ndarray, after: np.ndarray, pairs: np.ndarray) -> str:
        first = int(np.argmin(np.where(pairs, np.minimum(before, after), len(run))))
        where = []
        for row in sorted((int(before[first]), int(after[first]))):
            file = int(np.searchsorted(starts, row, side="right")) - 1
            who = f"run {run[row]}, event {event[row]}, " if is_numbered[row] else ""
            where.append(f"{who}entry {row - starts[file]} of {reports[file].path}")
        return f"(the first: {' and '.join(where)})"

    problems = []
    before, after, same_light, same = neighbors(np.lexsort((event, run, light)))
    same_light &= lit[before] | same  # all dark events have the same photons
    if n := int(same_light.sum()):
        problems.append(
            Problem(
                "error",
                "same_events",
                f"{n} events come twice, with the same photons {show(before, after, same_light)}",
                "leave one of the files out, or make them again without repetitions",
            )
        )
    before, after, same_light, same = neighbors(np.lexsort((light, event, run)))
    if n := int((same & ~same_light).sum()):
        problems.append(
            Problem(
                "warning",
                "same_numbers",
                f"{n} pairs of run and event are used for different events "
                + show(before, after, same & ~same_light),
                "predictions can then be told apart by file and entry only",
            )
        )
    return problems


def _other_branches(reports: Sequence[FileReport], inputs: Sequence[str]) -> list[Problem]:
    """Compares the branches of all files with those of the first one."""
    problems = []
    for report in reports[1:]:
        mine, others = _shapes(report), _shapes(reports[0])
        differing = sorted(
            name for name in mine.keys() | others.keys() if mine.get(name) != others.get(name)
        )
        if not differing:
            continue
        matters = [name for name in differing if name in (*inputs, *NUMBERS, *TRUTH)]
        level: Level = "error" if {*inputs} & {*differing} else "warning" if matters else "note"
        problems.append(
            Problem(
                level,
                "other_branches",
                f"{report.path} differs from {reports[0].path} in the branches "
                + ", ".join(matters or differing),
                "read files together that have the same branches" if matters else "",
            )
        )
    return problems


def _shapes(report: FileReport) -> dict[str, str]:
    """Returns the shape of each branch, whatever the type of its numbers."""
    return {name: text.partition("[")[2] for name, text in report.types.items()}
