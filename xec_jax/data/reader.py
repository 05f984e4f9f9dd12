"""Fills arrays with ranges of entries of a data set, decompressing in several threads."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from xec_jax.data.invalid import dead_events, make_finite
from xec_jax.data.manifest import Manifest
from xec_jax.data.root_file import RootFile
from xec_jax.data.source import Spec
from xec_jax.data.windows import Arrays, Ranges
from xec_jax.errors import DataError
from xec_jax.geometry import INVALID

logger = logging.getLogger(__name__)

OPEN_FILES = 128


@dataclass
class Stats:
    """What a reader has done so far; what is read twice counts twice.

    Attributes:
        chunks: Ranges of entries read.
        events: Events read.
        read_s: Seconds spent reading, in the background for the most part.
        wait_s: Seconds for which the consumer had to wait.
        replaced: NaN and infinite numbers that became `INVALID`, per key.
        dead_events: Events without any valid sensor.
    """

    chunks: int = 0
    events: int = 0
    read_s: float = 0.0
    wait_s: float = 0.0
    replaced: Counter[str] = field(default_factory=Counter)
    dead_events: int = 0


class Reader:
    """Reads windows of a data set; files stay open in between.

    Args:
        manifest: The files.
        branches: Branch behind each key; the key `npho` is checked for dead events.
        spec: Shape of one event and dtype of each key.
        threads: Threads that decompress. Each reads one branch of one range at a time, which
            keeps them busy whether the baskets are large or small.
    """

    def __init__(
        self, manifest: Manifest, branches: Mapping[str, str], spec: Spec, *, threads: int
    ) -> None:
        self.stats = Stats()
        self._manifest, self._branches, self._spec = manifest, branches, spec
        self._files: dict[int, RootFile] = {}
        self._pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="xec-root")
        self._lock = threading.Lock()

    def read(self, ranges: Ranges) -> Arrays:
        """Returns the events of several ranges, one after the other.

        Args:
            ranges: Entries `(start, stop)` of the data set, none across two files.

        Raises:
            DataError: A file cannot be read or has changed, or the first range that is ever
                read has no valid sensor at all.
        """
        begun = time.perf_counter()
        size = sum(stop - start for start, stop in ranges)
        arrays: Arrays = {}
        for key in self._branches:
            shape, dtype = self._spec[key]
            arrays[key] = np.empty((size, *shape), dtype)
        running: list[Future[None]] = []
        offset = 0
        for start, stop in ranges:
            index, first = self._manifest.locate(start)
            if index not in self._files and len(self._files) >= OPEN_FILES:
                _settle(running)  # nobody may be reading from the files that are closed now
                self._close_files()
            if index not in self._files:
                self._files[index] = self._open(index)
            file = self._files[index]
            for key, array in arrays.items():
                out = array[offset : offset + stop - start]
                running.append(self._pool.submit(self._fill, file, key, out, first))
            offset += stop - start
        _settle(running)
        if self.stats.chunks == 0:
            self._check_alive(arrays, *ranges[0])
        self.stats.chunks += len(ranges)
        self.stats.events += size
        self.stats.read_s += time.perf_counter() - begun
        return arrays

    def stop(self) -> None:
        """Makes a `read` in progress fail within one range."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Closes all files; no `read` may be in progress."""
        self.stop()
        self._close_files()

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

    def _fill(self, file: RootFile, key: str, out: np.ndarray, first: int) -> None:
        branch = self._branches[key]
        file.read_into(branch, out, first, first + len(out))
        replaced = make_finite(out) if out.dtype.kind == "f" else 0
        dead = int(dead_events(out).sum()) if key == "npho" else 0
        if replaced or dead:
            with self._lock:
                seen = self.stats.replaced[key]
                self.stats.replaced[key] += replaced
                self.stats.dead_events += dead
            if replaced and not seen:
                logger.warning(
                    "%s: branch %r has %d NaN or infinite values in entries %d to %d; they "
                    "become %g (more of them are only counted)",
                    *(file.path, branch, replaced, first, first + len(out), INVALID),
                )

    def _check_alive(self, arrays: Arrays, start: int, stop: int) -> None:
        if "npho" not in arrays or not dead_events(arrays["npho"][: stop - start]).all():
            return
        index, first = self._manifest.locate(start)
        raise DataError(
            f"{self._manifest.files[index].path}: tree {self._manifest.tree!r}, branch "
            f"{self._branches['npho']!r}: no valid sensor in entries {first} to "
            f"{first + stop - start}",
            expected="photons above 0 and below 9e9 in some sensors",
            remedy="check the calibration that wrote the file, or choose another branch",
        )

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
