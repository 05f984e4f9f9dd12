"""Single events: where in a set of files one is, its arrays, and what its file says beside them."""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from xec_jax.data.root.file import TREE_CLASSES, RootFile
from xec_jax.data.root.header import data_errors
from xec_jax.errors import DataError

EVENT_NAMES = ("event", "event_number", "event_id")
RUN_NAMES = ("run", "run_number", "run_id")
"""Names of the identifiers, in data files and in files of predictions."""

SHOWN = 10
"""Matches that a message lists."""

METADATA = "metadata"


class EventFile(RootFile):
    """A ROOT file that is asked for single events and for its metadata."""

    def __enter__(self) -> "EventFile":
        return self

    def find(self, event: int, run: int | None = None) -> tuple[list[int], dict[str, int]]:
        """Looks through all event numbers, basket by basket.

        Args:
            event: Event number.
            run: Run number; None for any.

        Returns:
            The entries with these numbers; and `smallest` and `largest` event number in the file
            (of the run), none if there is no event at all.

        Raises:
            DataError: The file holds no event numbers, or no run numbers although a run is given.
        """
        names = [self.identifier(EVENT_NAMES, "event numbers")]
        if run is not None:
            names.append(self.identifier(RUN_NAMES, "run numbers"))
        found: list[int] = []
        limits: dict[str, int] = {}
        for start, stop in pairwise(self.column(names[0], ()).offsets.tolist()):
            numbers = np.empty((len(names), stop - start), np.int64)
            for row, name in zip(numbers, names, strict=True):
                self.column(name, ())
                self.read_into(name, row, start, stop)
            is_run = numbers[-1] == run if run is not None else np.ones(stop - start, bool)
            found += (start + np.flatnonzero(is_run & (numbers[0] == event))).tolist()
            if is_run.any():
                low, high = numbers[0][is_run].min(), numbers[0][is_run].max()
                limits["smallest"] = min(limits.get("smallest", int(low)), int(low))
                limits["largest"] = max(limits.get("largest", int(high)), int(high))
        return found, limits

    def identifier(self, names: Sequence[str], what: str) -> str:
        """Returns the first of these branches that the file has.

        Raises:
            DataError: It has none of them.
        """
        for name in names:
            if self.has(name):
                return name
        raise DataError(
            f"{self.path}: tree {self.tree!r} holds no {what} (it has: {', '.join(self.names())})",
            expected=f"a branch {' or '.join(names)}",
            remedy="name the event by its position in the file: --entry",
        )

    def read(self, name: str, entry: int, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """Reads one entry of a branch, of which one basket is decompressed.

        Returns:
            float64, of the shape that the file declares; `(1,)` becomes `()`.

        Raises:
            DataError: No such branch, another shape, or bytes that cannot be read.
        """
        column = self.column(name, shape)
        values = np.empty((1, *column.shape), np.float64)
        self.read_into(name, values, entry, entry + 1)
        value: np.ndarray = values[0]
        return value.reshape(()) if value.shape == (1,) else value

    def metadata(self) -> dict[str, Any]:
        """Returns what was written beside the events under the name `metadata`.

        That is the first entry of a tree of this name, numbers and texts by branch, or a text
        with a JSON object. Empty if there is neither.

        Raises:
            DataError: It cannot be read.
        """
        kinds = self._directory.classnames(cycle=False)
        if METADATA not in kinds:
            return {}
        with data_errors(f"{self.path}: {METADATA!r} cannot be read"):
            content = self._directory[METADATA]
            if kinds[METADATA] in TREE_CLASSES:
                names = content.keys()  # iterating over a tree gives its branches
                first = {n: content[n].array(library="np", entry_stop=1)[0] for n in names}
                return {n: v.tolist() if hasattr(v, "tolist") else v for n, v in first.items()}
            parsed = json.loads(str(content))
            return parsed if isinstance(parsed, dict) else {}


def locate(
    paths: Sequence[Path], tree: str, event: int, run: int | None = None
) -> tuple[Path, int]:
    """Finds the one event of this number in some files.

    Args:
        paths: The files.
        tree: Name of the tree in each of them.
        event: Event number.
        run: Run number, where event numbers repeat.

    Returns:
        The file, and the entry in it.

    Raises:
        DataError: There is no such event, or more than one.
    """
    matches: list[tuple[Path, int, str]] = []
    ranges = []
    for path in paths:
        with EventFile(path, tree) as file:
            entries, limits = file.find(event, run)
            for entry in entries:
                run_name = next((name for name in RUN_NAMES if file.has(name)), None)
                number = f"run {int(file.read(run_name, entry, ()))}, " if run_name else ""
                matches.append((path, entry, f"{number}entry {entry} of {path}"))
            within = "none"
            if limits:
                within = f"event numbers {limits['smallest']} to {limits['largest']}"
            of_run = "" if run is None else f" of run {run}"
            ranges.append(f"{path} has {file.entries} events, {within}{of_run}")
    name = f"event {event}" + ("" if run is None else f" of run {run}")
    if not matches:
        more = [f"and {len(ranges) - SHOWN} more files"] * (len(ranges) > SHOWN)
        raise DataError(
            "\n".join([f"no {name}", *ranges[:SHOWN], *more]),
            expected="an event number of the file",
            remedy="name another number, or its position in the file: --entry",
        )
    if len(matches) > 1:
        places = [text for _, _, text in matches]
        more = [f"and {len(places) - SHOWN} more"] * (len(places) > SHOWN)
        raise DataError(
            "\n".join([f"{len(places)} events have the number {event}:", *places[:SHOWN], *more]),
            expected="one event",
            remedy="add --run, or name the file and the position in it: --entry",
        )
    return matches[0][:2]


def holding(metadata: Mapping[str, Any], names: Sequence[str]) -> Mapping[str, Any] | None:
    """Returns the outermost part of the metadata that holds all of these names, if there is one."""
    level: list[Mapping[str, Any]] = [metadata]
    while level:
        for part in level:
            if all(name in part for name in names):
                return part
        level = [v for part in level for v in part.values() if isinstance(v, Mapping)]
    return None
