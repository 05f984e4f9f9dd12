"""A look at every event of some files before a long job: what is there, and what is wrong."""

import hashlib
import os
import struct
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from xec_jax.data.invalid import dead_events
from xec_jax.data.root.file import Column, NtupleColumn, RootFile
from xec_jax.data.root.header import suggest
from xec_jax.data.survey import doubts, questions
from xec_jax.data.survey.counts import Counts
from xec_jax.data.survey.sensors import SensorHealth
from xec_jax.errors import DataError
from xec_jax.geometry import N_SENSORS

CHUNK_BYTES = 48e6  # of all branches together; several times as much is in memory
EXAMPLES = 10  # events that are named
NUMBERS = ("run", "event")
CODECS = {0: "zlib", 1: "zlib", 2: "LZMA", 3: "old zlib", 4: "LZ4", 5: "ZSTD"}

Level = Literal["error", "warning", "note"]

Lost = dict[str, list[tuple[int, int, DataError]]]
"""Entries that cannot be read by branch: the first, one past the last, why."""


@dataclass(frozen=True)
class Problem:
    """Something that a user should know about the files.

    Attributes:
        level: `error` for what would stop or spoil a training, `warning`, or `note`.
        kind: One word for the kind of problem.
        found: What was found and where.
        remedy: What the user can do about it.
    """

    level: Level
    kind: str
    found: str
    remedy: str = ""


@dataclass
class FileReport:
    """What was found in one file.

    Attributes:
        path: The file.
        size: Bytes.
        uuid: Identifier that ROOT gave it when it was written.
        container: TTree or RNTuple; empty if there is no branch of plain numbers.
        compression: Method and level.
        entries: Events in the file.
        types: Branches of plain numbers: `float32[4760]`.
        unreadable: Other branches, and why they cannot be read.
        branches: Statistics of the branches of plain numbers; see `Counts.as_dict`.
        scheme: For branches of photons, `photons` or `fractions`.
        numbers: Run, event and a fingerprint of the photons, int64 (n, 3), of the events that
            were read; 0 where the file does not say run or event.
        numbered: Which of `NUMBERS` the file has.
        lit: Whether those events have a sensor with light, bool (n,).
        dark_events: The first events without light: entry, run and event.
        problems: What is wrong.
    """

    path: Path
    size: int = 0
    uuid: str = ""
    container: str = ""
    compression: str = ""
    entries: int = 0
    types: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    branches: dict[str, dict] = field(default_factory=dict)
    scheme: dict[str, str] = field(default_factory=dict)
    numbers: np.ndarray = field(default_factory=lambda: np.empty((0, 3), np.int64))
    numbered: tuple[str, ...] = ()
    lit: np.ndarray = field(default_factory=lambda: np.empty(0, bool))
    dark_events: list[dict[str, int]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def runs(self) -> list[int]:
        """Runs of the events that were read, ascending; empty if the file does not say."""
        return np.unique(self.numbers[:, 0]).tolist() if "run" in self.numbered else []

    @property
    def is_usable(self) -> bool:
        """Whether nothing in the file would stop or spoil a training."""
        return all(problem.level != "error" for problem in self.problems)

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        n = len(self.numbers)
        ends = [
            dict(zip(NUMBERS, self.numbers[row, :2].tolist(), strict=True)) if n else {}
            for row in (0, n - 1)
        ]
        first, last = ({name: end[name] for name in self.numbered if end} for end in ends)
        branches = {
            name: {"type": text, **self.branches.get(name, {})} for name, text in self.types.items()
        }
        return {
            "path": str(self.path),
            "size_bytes": self.size,
            "uuid": self.uuid,
            "container": self.container,
            "compression": self.compression,
            "entries": self.entries,
            "events_read": n,
            "first": first,
            "last": last,
            "runs": self.runs,
            "scheme": self.scheme,
            "branches": branches,
            "unreadable_branches": self.unreadable,
            "events_without_light": self.dark_events,
            "problems": [asdict(problem) for problem in self.problems],
        }


class Survey:
    """Looks at files one after the other and adds up what they have in common.

    Args:
        tree: Name of the tree.
        npho_branch: Branch of photons that is to be fed.
        time_branch: Branch of times that is to be fed; None for files without times.
        energy_unit: Unit of energies in the files, GeV or MeV.
        max_events: Read no more than this many of each file, from its beginning.

    Attributes:
        reports: What was found in each file.
        branches: Statistics of each branch over all files.
        health: What each sensor did.
    """

    def __init__(
        self,
        *,
        tree: str = "tree",
        npho_branch: str = "npho",
        time_branch: str | None = "relative_time",
        energy_unit: str = "GeV",
        max_events: int | None = None,
    ) -> None:
        self._tree, self._max_events = tree, max_events
        self._npho, self._time, self._energy_unit = npho_branch, time_branch, energy_unit
        self.reports: list[FileReport] = []
        self.branches: dict[str, Counts] = {}
        self.health = SensorHealth()

    def look(self, path: Path, advance: Callable[[float], None] = lambda share: None) -> FileReport:
        """Reads a file; never raises for what is wrong with it.

        Args:
            path: The file.
            advance: Called with the share of the file that has been read.
        """
        report = FileReport(path)
        self.reports.append(report)
        try:
            report.size = path.stat().st_size
            with RootFile(path, self._tree) as file:
                report.compression = _compression(path)
                report.uuid, report.entries = file.uuid, file.entries
                columns = _columns(file, report)
                self._look_for_branches(file, report, columns)
                if file.entries == 0:
                    found = f"{path}: tree {self._tree!r} has no entries"
                    _note(report, "warning", "empty", found, "take the file out of the list")
                elif self._is_readable(columns):
                    with np.errstate(over="ignore", invalid="ignore"):  # any number may occur
                        self._read(file, report, columns, advance)
        except DataError as error:
            _note(report, "error", "file", error.found, error.remedy)
        except (MemoryError, OSError) as error:
            why = getattr(error, "strerror", None) or type(error).__name__
            _note(report, "error", "file", f"{path} cannot be read ({why})", "copy the file again")
        return report

    def _is_readable(self, columns: dict[str, Column]) -> bool:
        return self._npho in columns and columns[self._npho].shape == (N_SENSORS,)

    def _look_for_branches(
        self, file: RootFile, report: FileReport, columns: dict[str, Column]
    ) -> None:
        alike = [name for name, column in columns.items() if column.shape == (N_SENSORS,)]
        for name in filter(None, (self._npho, self._time)):
            try:
                file.column(name, (N_SENSORS,))
            except DataError as error:
                remedy = error.remedy.partition(": did you mean")[0] + suggest(name, alike)
                _note(report, "error", "branch", error.found, remedy)
        for names, level, kind, remedy in (
            (NUMBERS, "warning", "no_numbers", "dead sensors are not told run by run without"),
            (questions.TRUTH, "note", "no_truth", "trainings that need them cannot use the file"),
        ):
            if missing := [name for name in names if name not in report.types]:
                hints = suggest(missing[0], report.types)
                found = f"{report.path}: no branch {', '.join(missing)}{hints}"
                _note(report, level, kind, found, remedy)  # type: ignore[arg-type]

    def _read(
        self,
        file: RootFile,
        report: FileReport,
        columns: dict[str, Column],
        advance: Callable[[float], None],
    ) -> None:
        counts = {name: Counts() for name in columns}
        findings: questions.Findings = {}
        scalars = [name for name in NUMBERS if name in columns and _is_scalar(columns[name])]
        report.numbered = tuple(scalars)
        seen: list[tuple[np.ndarray, np.ndarray]] = []
        lost: Lost = {}
        limit = min(file.entries, self._max_events or file.entries)

        needed = {self._npho, self._time, *NUMBERS, *questions.TRUTH}

        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            for start, stop in _ranges(columns, self._npho, limit):
                tasks = {
                    name: pool.submit(_read, file, name, column, start, stop)
                    for name, column in columns.items()
                }
                arrays, good = {}, {name: np.ones(stop - start, bool) for name in columns}
                for name, task in tasks.items():
                    arrays[name], spans = task.result()
                    for begin, end, error in spans:
                        lost.setdefault(name, []).append((begin, end, error))
                        good[name][begin - start : end - start] = False
                keep = np.logical_and.reduce([good[name] for name in columns if name in needed])
                if not keep.any():
                    continue
                usable = {name: keep & rows for name, rows in good.items()}
                arrays = {
                    name: values if usable[name].all() else values[usable[name]]
                    for name, values in arrays.items()
                }
                for _ in pool.map(Counts.update, map(counts.get, arrays), arrays.values()):
                    pass
                entries = start + np.flatnonzero(keep)
                arrays = {n: values for n, values in arrays.items() if len(values) == len(entries)}
                npho = arrays[self._npho].astype(np.float32, copy=False)
                seen.append(_identify(report, arrays, npho, entries))
                runs = seen[-1][0][:, 0] if "run" in scalars else None
                dead = arrays.get("dead", npho[:0])  # a branch of some files
                self.health.update(npho, runs, dead if dead.shape == npho.shape else None)
                found = questions.gather(
                    arrays,
                    npho_branch=self._npho,
                    time_branch=self._time,
                    energy_unit=self._energy_unit,
                )
                doubts.add(findings, found)
                advance(stop / limit)
        if seen:
            report.numbers, report.lit = (
                np.concatenate(parts) for parts in zip(*seen, strict=True)
            )
        _note_lost(report, lost, needed, limit)
        for name in filter(None, (self._npho, self._time)):
            bad = counts[name].nan + counts[name].inf if name in counts else 0
            if bad and (share := bad / counts[name].values) > questions.MANY_NAN:
                text = f"{report.path}: branch {name!r} has {share:.1%} NaN or infinite values"
                remedy = "they become invalid sensors; check the calibration that wrote the file"
                _note(report, "warning", "nan", text, remedy)
        _note_doubts(report, findings)
        for name in dict.fromkeys((self._npho, "npho", "relative_npho")):
            if name in counts and (high := counts[name].percentile(99.9) or 0) > 0:
                is_fraction = high <= questions.LARGEST_FRACTION
                report.scheme[name] = "fractions" if is_fraction else "photons"
        report.branches = {name: count.as_dict() for name, count in counts.items()}
        for name, count in counts.items():
            self.branches.setdefault(name, Counts()).add(count)


def _identify(
    report: FileReport, arrays: dict[str, np.ndarray], npho: np.ndarray, entries: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns `numbers` and `lit` of some events, and notes the first ones without light."""
    numbers = np.zeros((len(npho), 3), np.int64)
    for place, name in enumerate(NUMBERS):
        if name in report.numbered:
            numbers[:, place] = np.nan_to_num(arrays[name].reshape(len(npho)))
    hashes = b"".join(hashlib.blake2b(row, digest_size=8).digest() for row in npho)
    numbers[:, 2] = np.frombuffer(hashes, np.int64)
    lit = ~dead_events(npho)
    for row in np.flatnonzero(~lit)[: EXAMPLES - len(report.dark_events)].tolist():
        who = dict(zip(NUMBERS, numbers[row, :2].tolist(), strict=True))
        known = {name: who[name] for name in report.numbered}
        report.dark_events.append({"entry": int(entries[row]), **known})
    return numbers, lit


def _note(report: FileReport, level: Level, kind: str, found: str, remedy: str) -> None:
    report.problems.append(Problem(level, kind, found, remedy))


def _read(
    file: RootFile, name: str, column: Column, start: int, stop: int
) -> tuple[np.ndarray, list[tuple[int, int, DataError]]]:
    """Reads entries of a branch, those of good baskets if some are bad, and says which are lost."""
    values = np.zeros((stop - start, *column.shape), column.dtype)
    try:
        file.read_into(name, values, start, stop)
    except DataError:
        return values, file.salvage(name, values, start, stop)
    return values, []


def _note_lost(report: FileReport, lost: Lost, needed: Collection[str | None], limit: int) -> None:
    """Says which entries of which branch are lost: an error only where a training needs them."""
    for name, spans in lost.items():
        merged: list[list[int]] = []
        for begin, end, _ in spans:
            if merged and merged[-1][1] == begin:
                merged[-1][1] = end
            else:
                merged.append([begin, end])
        where = ", ".join(f"{begin} to {end - 1}" for begin, end in merged[:EXAMPLES])  # inclusive
        where += ", ..." if len(merged) > EXAMPLES else ""
        first = spans[0][2]
        reason = first.found.partition("cannot be read")[2].strip(" ()") or first.found
        events = sum(end - begin for begin, end in merged)
        found = f"{report.path}: branch {name!r}: entries {where} cannot be read ({reason}); "
        if name in needed:
            found += f"{events} of {limit} events are lost"
            _note(report, "error", "read", found, first.remedy)
        else:
            found += f"{events} of {limit} values are lost"
            remedy = f"a training that does not read {name!r} does not need them; {first.remedy}"
            _note(report, "warning", "read_others", found, remedy)


def _note_doubts(report: FileReport, findings: questions.Findings) -> None:
    for doubt in doubts.judge(findings):
        level: Level = "error" if doubt.kind in doubts.SPOILS else "warning"
        if doubt.kind == "truth_gaps":
            level = "note"
        found = f"{report.path}: {doubt.found}"
        if doubt.kind in ("all_invalid", "no_light"):
            events = [
                ", ".join(f"{key} {value}" for key, value in event.items())
                for event in report.dark_events
            ]
            found += f" (the first: {'; '.join(events)})"
        _note(report, level, doubt.kind, found, doubt.remedy)


def _columns(file: RootFile, report: FileReport) -> dict[str, Column]:
    """Finds the branches of plain numbers, and says what the others are."""
    columns = {}
    for name in file.names():
        try:
            column = file.column(name)
        except DataError as error:
            where = f"branch {name!r} "
            report.unreadable[name] = error.found.partition(where)[2] or error.found
            continue
        if _event_bytes(column) > CHUNK_BYTES:
            report.unreadable[name] = f"has {column.shape} values per event, too many to look at"
            continue
        columns[name] = column
        sizes = "".join(f"[{n}]" for n in column.shape) if not _is_scalar(column) else ""
        report.types[name] = f"{column.dtype}{sizes}"
        report.container = "RNTuple" if isinstance(column, NtupleColumn) else "TTree"
    return columns


def _ranges(columns: dict[str, Column], npho_branch: str, limit: int) -> Iterator[tuple[int, int]]:
    """Yields ranges of entries that fit into memory, cut between baskets where possible."""
    rows = max(1, int(CHUNK_BYTES / sum(map(_event_bytes, columns.values()))))
    offsets = columns[npho_branch].offsets
    start = 0
    while start < limit:
        stop = min(start + rows, limit)
        cut = int(offsets[np.searchsorted(offsets, stop, side="right") - 1])
        stop = cut if start < cut and stop < limit else stop
        yield start, stop
        start = stop


def _event_bytes(column: Column) -> float:
    return column.dtype.itemsize * float(np.prod(column.shape, dtype=float))


def _is_scalar(column: Column) -> bool:
    return column.shape in ((), (1,))


def _compression(path: Path) -> str:
    """Reads method and level from the header of a ROOT file, where new baskets get them from."""
    with path.open("rb") as file:
        head = file.read(64)
    (version,) = struct.unpack_from(">i", head, 4)
    # Offsets have eight bytes in files above 2 GB: fEND, fSeekFree; then three numbers, fUnits.
    (code,) = struct.unpack_from(">i", head, 41 if version >= 10**6 else 33)
    if code % 100 == 0:
        return "none"
    return f"{CODECS.get(code // 100, 'unknown')} (level {code % 100})"
