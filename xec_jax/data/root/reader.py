"""Fills arrays with ranges of entries of a data set, decompressing in several threads.

What happens to entries that cannot be read is decided here. Either the error ends the job, or the
entries are put into quarantine: their rows become copies of the first good event of the data set
with weight 0. Numbers of events, shapes and the order of all others stay as they are, so that a
run can be resumed as if nothing was wrong.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from xec_jax.data.invalid import check_light, dead_events, make_finite
from xec_jax.data.root.file import RootFile
from xec_jax.data.root.manifest import Lost, Manifest
from xec_jax.data.root.windows import Arrays, Ranges
from xec_jax.data.source import Spec
from xec_jax.errors import DataError
from xec_jax.geometry import INVALID, INVALID_ABOVE

logger = logging.getLogger(__name__)

OPEN_FILES = 128
SAMPLE = 1024  # events; enough to judge units
UNREAD, SEEN, LOST, CUT = range(4)  # what became of an entry


@dataclass
class Stats:
    """What a reader has done so far.

    Attributes:
        chunks: Ranges of entries read; what is read twice counts twice.
        events: Events read, likewise.
        read_s: Seconds spent reading, in the background for the most part.
        wait_s: Seconds for which the consumer had to wait.
        replaced: NaN and infinite numbers that became `INVALID`, per key, each counted once.
        dead_events: Events without any valid sensor, each counted once.
        negative: Photon counts below 0, which are invalid, each counted once.
    """

    chunks: int = 0
    events: int = 0
    read_s: float = 0.0
    wait_s: float = 0.0
    replaced: Counter[str] = field(default_factory=Counter)
    dead_events: int = 0
    negative: int = 0


class _Piece(NamedTuple):
    """A range of entries of one file on its way into memory.

    Attributes:
        number: Which file it is in.
        first: First entry in the file.
        keep: bool, one per entry: those that are not cut away.
        is_new: Never read before.
        is_lost: bool, one per entry: those that cannot be read; filled while reading.
    """

    number: int
    first: int
    keep: np.ndarray
    is_new: bool
    is_lost: np.ndarray


class Reader:
    """Reads windows of a data set; files stay open in between.

    Args:
        manifest: The files.
        chunks: Ranges of entries that are read in one go, all that are ever asked for.
        branches: Branch behind each key; the key `npho` is checked for dead events.
        spec: Shape of one event and dtype of each key.
        window: Most events that a `read` returns.
        threads: Threads that decompress. Each reads one branch of one range at a time, which
            keeps them busy whether the baskets are large or small.
        keep: bool, one per entry: False for those that are cut away; None keeps all.
        lost: Entries that are known to be unreadable.
        skip: Whether entries that cannot be read are put into quarantine.
        convert: Changes the values of a key in place, once they are finite.
        judge: Called with the first events that are ever read and with the words that say
            where they are; may raise a `DataError`.

    Attributes:
        stats: Counters and timers.
        fate: What became of each entry so far: `UNREAD`, `SEEN`, `LOST` or `CUT`.
        quarantine: Reasons by path, first and one past the last entry in the file.
    """

    def __init__(
        self,
        manifest: Manifest,
        chunks: Ranges,
        branches: Mapping[str, str],
        spec: Spec,
        *,
        window: int,
        threads: int,
        keep: np.ndarray | None = None,
        lost: Lost | None = None,
        skip: bool = False,
        convert: Mapping[str, Callable[[np.ndarray], None]] | None = None,
        judge: Callable[[Arrays, str], None] = lambda arrays, where: None,
    ) -> None:
        self.stats = Stats()
        self.fate = np.full(manifest.entries, UNREAD, np.uint8)
        if keep is not None:
            self.fate[~keep] = CUT
        self.quarantine: dict[tuple[str, int, int], str] = {}
        for (start, stop), reason in (lost or {}).items():
            index, first = manifest.locate(start)
            self._quarantine(manifest.files[index].path, first, first + stop - start, reason)
            self.fate[start:stop] = LOST
        self._manifest, self._chunks = manifest, chunks
        self._branches, self._spec = branches, spec
        self._window = window
        self._skip, self._convert, self._judge = skip, convert or {}, judge
        self._spare: Arrays = {}
        self._is_sparse = False  # some range was
        self._is_judged = False
        self._free: list[Arrays] = []
        self._files: dict[int, RootFile] = {}
        self._pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="xec-root")
        self._lock = threading.Lock()

    def read(self, ranges: Ranges) -> Arrays:
        """Returns the events of several ranges, one after the other.

        Args:
            ranges: Entries `(start, stop)` of the data set, none across two files.

        Returns:
            The keys of the spec for the events that are not cut away, `weight` among them: 0 for
            events in quarantine, else 1.

        Raises:
            DataError: A file cannot be read or has changed and nothing is to be skipped, no
                event of the data set can be read, or the first range with readable events has no
                valid sensor at all.
        """
        begun = time.perf_counter()
        arrays = self._gather(ranges)
        is_lost = arrays["weight"] == 0
        if is_lost.any():
            if not self._spare:
                self._spare = self._find_spare()
            for key in self._branches:
                arrays[key][is_lost] = self._spare[key]
        if not self._is_judged and not is_lost.all():
            self._look_at(arrays, ranges)
        self.stats.chunks += len(ranges)
        self.stats.events += len(is_lost)
        self.stats.read_s += time.perf_counter() - begun
        return arrays

    def recycle(self, arrays: Arrays) -> None:
        """Takes arrays back that `read` returned and nobody looks at any more.

        Fresh memory comes page by page, zeroed by the kernel: a quarter of the time of reading.
        """
        bases = {key: values.base for key, values in arrays.items()}
        self._free.append({key: base for key, base in bases.items() if base is not None})

    def stop(self) -> None:
        """Makes a `read` in progress fail within one range."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Closes all files; no `read` may be in progress."""
        self.stop()
        self._close_files()
        self._free.clear()

    def _gather(self, ranges: Ranges) -> Arrays:
        """Reads ranges; rows of events that cannot be read hold zeros and have weight 0."""
        sizes = [int(np.count_nonzero(self.fate[a:b] != CUT)) for a, b in ranges]
        arrays = self._take_arrays(sum(sizes))
        running: list[Future[None]] = []
        pieces: list[_Piece] = []
        offset = 0
        for (start, stop), size in zip(ranges, sizes, strict=True):
            index, first = self._manifest.locate(start)
            fate = self.fate[start:stop]
            is_new = bool((fate == UNREAD).any())
            piece = _Piece(index, first, fate != CUT, is_new, fate == LOST)
            pieces.append(piece)
            if file := self._file(piece, running):
                for key in self._branches:
                    out = arrays[key][offset : offset + size]
                    running.append(self._pool.submit(self._fill, file, key, out, piece))
            offset += size
        _settle(running)
        offset = 0
        for (start, stop), size, piece in zip(ranges, sizes, pieces, strict=True):
            rows = slice(offset, offset + size)
            is_lost = piece.is_lost[piece.keep]
            arrays["weight"][rows] = ~is_lost
            self.fate[start:stop][piece.keep] = np.where(is_lost, LOST, SEEN)
            if piece.is_new and "npho" in arrays:
                npho = arrays["npho"][rows]
                self._count(npho[~is_lost] if is_lost.any() else npho, piece)
            offset += size
        return arrays

    def _count(self, npho: np.ndarray, piece: _Piece) -> None:
        """Counts dead events; warns of the first range after the start with few valid sensors."""
        self.stats.dead_events += int(np.count_nonzero(dead_events(npho)))
        if self.stats.chunks == 0 or self._is_sparse or not len(npho):
            return
        invalid = np.mean(npho[::16] > INVALID_ABOVE)
        if invalid > 0.5:
            self._is_sparse = True
            logger.warning(
                "%s: branch %r is invalid for %.0f %% of the sensors in entries %d to %d (more of "
                "such ranges are not mentioned)",
                *(self._manifest.files[piece.number].path, self._branches["npho"], 100 * invalid),
                *(piece.first, piece.first + len(piece.keep) - 1),
            )

    def _take_arrays(self, size: int) -> Arrays:
        """Returns arrays for some events, views of what `recycle` was given if they fit."""
        arrays = self._free.pop() if self._free else {}
        if not arrays or len(arrays["weight"]) < size:
            rows = max(size, min(self._window, int(np.count_nonzero(self.fate != CUT))))
            arrays = {
                key: np.empty((rows, *shape), dtype) for key, (shape, dtype) in self._spec.items()
            }
        return {key: values[:size] for key, values in arrays.items()}

    def _file(self, piece: _Piece, running: list[Future[None]]) -> RootFile | None:
        """Returns the open file of a piece, None if it cannot be opened and is skipped."""
        if piece.number not in self._files:
            if len(self._files) >= OPEN_FILES:
                _settle(running)  # nobody may be reading from the files that are closed now
                self._close_files()
            try:
                self._files[piece.number] = self._open(piece.number)
            except DataError as error:
                self._lose(piece, piece.first, piece.first + len(piece.keep), error)
                return None
        return self._files[piece.number]

    def _open(self, index: int) -> RootFile:
        entry = self._manifest.files[index]
        file = RootFile(entry.path, self._manifest.tree)
        stat = entry.path.stat()
        if (stat.st_size, stat.st_mtime_ns) == (entry.size, entry.mtime_ns):
            return file
        file.close()
        raise DataError(
            f"{entry.path} has changed since the job began to read the data",
            expected="files that stay as they are",
            remedy="start again when the file is complete",
        )

    def _fill(self, file: RootFile, key: str, out: np.ndarray, piece: _Piece) -> None:
        """Fills the rows of one key with the events of a piece that are kept."""
        branch, first, stop = self._branches[key], piece.first, piece.first + len(piece.keep)
        is_whole = len(out) == len(piece.keep)
        values = out if is_whole else np.empty((len(piece.keep), *out.shape[1:]), out.dtype)
        try:
            file.read_into(branch, values, first, stop)
        except DataError as error:
            if not self._skip:
                raise error
            for begin, end, reason in file.salvage(branch, values, first, stop):
                self._lose(piece, begin, end, reason)
        if not is_whole:
            np.compress(piece.keep, values, axis=0, out=out)
        replaced = make_finite(out) if out.dtype.kind == "f" else 0
        negative = int(np.count_nonzero(out < 0)) if key == "npho" and piece.is_new else 0
        if key in self._convert:
            self._convert[key](out)
        if not (piece.is_new and (replaced or negative)):
            return
        with self._lock:
            self.stats.negative += negative
            seen = self.stats.replaced[key]
            self.stats.replaced += Counter({key: replaced})
        if replaced and not seen:
            logger.warning(
                "%s: branch %r has %d NaN or infinite values in entries %d to %d; they "
                "become %g (more of them are only counted)",
                *(file.path, branch, replaced, first, stop - 1, INVALID),
            )

    def _lose(self, piece: _Piece, begin: int, end: int, error: DataError) -> None:
        """Puts entries of a file into quarantine, or ends the job."""
        if not self._skip:
            raise error
        with self._lock:
            piece.is_lost[begin - piece.first : end - piece.first] = True
            self._quarantine(self._manifest.files[piece.number].path, begin, end, error.found)

    def _quarantine(self, path: Path, begin: int, end: int, reason: str) -> None:
        place = (str(path), begin, end)
        if place not in self.quarantine:
            self.quarantine[place] = reason
            # What the reason says again of the place is left out.
            short = reason.removeprefix(f"{path}: ").replace(f"entries {begin} to {end - 1} ", "")
            logger.warning(
                "%s: entries %d to %d are in quarantine, they do not count: %s",
                *(path, begin, end - 1, short),
            )

    def _find_spare(self) -> Arrays:
        """Returns the first event that can be read."""
        for start, stop in self._chunks:
            if np.isin(self.fate[start:stop], (UNREAD, SEEN)).any():
                arrays = self._gather(((start, stop),))
                good = np.flatnonzero(arrays["weight"])
                if len(good):
                    return {key: values[good[0]].copy() for key, values in arrays.items()}
        reasons = list(dict.fromkeys(self.quarantine.values()))
        raise DataError(
            "\n".join(["no event can be read", *reasons[:5]]),
            expected="at least one readable event",
            remedy="copy or produce the files again",
        )

    def _look_at(self, arrays: Arrays, ranges: Ranges) -> None:
        """Judges the good events of the first range that has any."""
        row = 0
        for start, stop in ranges:
            rows = slice(row, row + int(np.count_nonzero(self.fate[start:stop] != CUT)))
            is_good = arrays["weight"][rows] > 0
            if is_good.any():
                break
            row = rows.stop
        sample = {key: values[rows][is_good][:SAMPLE] for key, values in arrays.items()}
        index, first = self._manifest.locate(start)
        where = f"{self._manifest.files[index].path}: tree {self._manifest.tree!r}"
        if "npho" in sample:
            branch = self._branches["npho"]
            place = f"{where}, branch {branch!r}, entries {first} to {first + stop - start - 1}"
            check_light(sample["npho"], place)
        self._judge(sample, where)
        self._is_judged = True

    def _close_files(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()


def _settle(running: list[Future[None]]) -> None:
    """Waits until no task is running, forgets them all, and raises the first error."""
    error: Exception | None = None
    for future in running:
        if error:
            future.cancel()
        try:
            future.result()
        except Exception as reason:
            error = error or reason
    running.clear()
    if error:
        raise error
