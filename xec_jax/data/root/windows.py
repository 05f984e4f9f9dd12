"""Large pieces of a data set in memory: how an epoch is divided into them, and a small cache.

A window is what the shuffle mixes completely. It is filled with ranges of entries that each are
read in one go, and rows are copied out of it until the epoch has passed it. At most two windows
are alive: the one in use and the next one, which a background thread reads meanwhile.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

import numpy as np

Ranges = tuple[tuple[int, int], ...]
Arrays = dict[str, np.ndarray]
CLOSE_S = 10.0  # how long closing waits for a read that may hang


class Window(NamedTuple):
    """A piece of an epoch.

    Attributes:
        ranges: Entries `(start, stop)` of the data set, ascending, as they lie in memory.
        first: Position of its first event in the order of the epoch.
        size: Number of events.
    """

    ranges: Ranges
    first: int
    size: int


def plan_windows(chunks: Iterable[tuple[int, int, int]], limit: int) -> list[Window]:
    """Groups ranges of entries, in the given order, into windows of `limit` events at most.

    Args:
        chunks: `(start, stop, size)`: entries, and how many events among them are kept.
        limit: A range with more events than this becomes a window of its own.
    """
    groups: list[list[tuple[int, int]]] = []
    sizes: list[int] = []
    for start, stop, size in chunks:
        if not groups or sizes[-1] + size > limit:
            groups.append([])
            sizes.append(0)
        groups[-1].append((start, stop))
        sizes[-1] += size
    windows, first = [], 0
    for group, size in zip(groups, sizes, strict=True):
        # Ascending order makes windows with the same entries equal, whatever the epoch: a data
        # set that fits into one window is read once for all epochs.
        windows.append(Window(tuple(sorted(group)), first, size))
        first += size
    return windows


class WindowCache:
    """The two windows that were asked for last, one of them possibly still being read.

    Meant for one consumer thread.

    Args:
        read: Fills the arrays of a window; may raise. Never called twice at the same time.
        recycle: Called with arrays that are forgotten; what `get` returned before last is.
    """

    CAPACITY = 2

    def __init__(self, read: Callable[[Ranges], Arrays], recycle: Callable[[Arrays], None]) -> None:
        self._read, self._recycle = read, recycle
        self._held: dict[Ranges, Future[Arrays]] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="xec-window")

    def get(self, ranges: Ranges) -> Arrays:
        """Returns the arrays of a window, waiting for the disk if it is not held yet.

        Raises:
            DataError: Reading failed, now or in the background; asking again tries again.
        """
        self.read_ahead(ranges)
        try:
            return self._held[ranges].result()
        except BaseException:
            self._held.pop(ranges, None)
            raise

    def read_ahead(self, ranges: Ranges) -> None:
        """Starts to read a window in the background and forgets the oldest one for it."""
        future = self._held.pop(ranges, None)
        while len(self._held) >= self.CAPACITY:
            oldest = self._held.pop(next(iter(self._held)))
            if not oldest.cancel() and oldest.done() and not oldest.exception():
                self._recycle(oldest.result())
        self._held[ranges] = future or self._reader.submit(self._read, ranges)

    def close(self) -> None:
        """Waits for a read in progress, unless it hangs, and forgets everything."""
        self._reader.shutdown(wait=False, cancel_futures=True)
        wait([read for read in self._held.values() if not read.cancelled()], CLOSE_S)
        self._held.clear()
