"""The source of detector events: ROOT files with two numbers per photosensor.

Reading is cluster by cluster, because any part of a cluster costs as much as all of it.
Shuffling therefore has two levels: the clusters in a new order every epoch, then all events
inside windows of many clusters. Every shard (process) walks through the windows of the whole data
set and copies its own rows out of them: batches are then the same for any number of processes, and
the price is that each process reads and decompresses what the others do. See `order` for shards and
epochs, `windows` for memory, `reader` and `root_file` for files.
"""

import logging
import time
from collections.abc import Collection, Mapping
from functools import lru_cache

import numpy as np

from xec_jax.data import order
from xec_jax.data.manifest import Pattern, build_manifest, resolve_paths
from xec_jax.data.reader import Reader, Stats
from xec_jax.data.source import Spec
from xec_jax.data.windows import Arrays, Ranges, Window, WindowCache, plan_windows
from xec_jax.errors import ConfigError

logger = logging.getLogger(__name__)

SMALLEST_READ = 256  # events; below, opening and seeking cost more than decompressing
FILE_ORDER_WINDOW = 2048  # events; without a shuffle, larger windows only delay the first batch
ALIVE = WindowCache.CAPACITY + 0.5  # windows in memory, and room for what is being decompressed


class RootSource:
    """Events from ROOT files (TTree or RNTuple) in batches of a fixed shape; see `Source`.

    A batch holds `npho` [b s] in photons and `time` [b s] in seconds, both raw float32 with
    1e10 in place of everything that is not finite, `weight` [b], and what `extra` names: real
    numbers as float32, whole numbers as int64.

    Args:
        path: File, folder, glob, or a list of these; see `resolve_paths`.
        tree: Name of the tree in every file.
        npho_branch: Branch behind `npho`.
        time_branch: Branch behind `time`; None for files without times, and no such key.
        extra: Further branches with the shape of one event, or their names alone. A branch that
            no file has is left out of `spec`.
        real: Keys of `extra` that become float32 even if the files hold whole numbers, because
            a network is to compute with them.
        n_sensors: Number of photosensors.
        shuffle: False keeps the order of the files in training, too.
        shuffle_buffer: Events that are mixed completely.
        max_ram_gb: Bound for the events held in memory; reduces `shuffle_buffer` if necessary.
        threads: Threads that decompress.
        smallest_read: Clusters with fewer events are read together.

    Attributes:
        spec: Shape of one event and dtype of each key.
        manifest: The files; `manifest.hash()` identifies the data.
        window: Events that are mixed completely, after `max_ram_gb`.

    Raises:
        ConfigError: `extra` names a key that the batch has anyway.
        DataError: Any of the files cannot be used; all are opened here.
    """

    def __init__(
        self,
        path: Pattern,
        *,
        tree: str = "tree",
        npho_branch: str = "npho",
        time_branch: str | None = "relative_time",
        extra: Mapping[str, tuple[int, ...] | None] | Collection[str] = (),
        real: Collection[str] = (),
        n_sensors: int = 4760,
        shuffle: bool = True,
        shuffle_buffer: int = 16384,
        max_ram_gb: float = 4.0,
        threads: int = 2,
        smallest_read: int = SMALLEST_READ,
    ) -> None:
        extra = dict(extra) if isinstance(extra, Mapping) else dict.fromkeys(extra)
        if taken := sorted({"npho", "time", "weight"} & set(extra)):
            raise ConfigError(
                f"extra branches {taken} have names of other keys of the batch",
                expected="branches besides npho, time and weight",
                remedy="leave them out, or choose them as npho_branch or time_branch",
            )
        branches = {"npho": npho_branch} | ({"time": time_branch} if time_branch else {})
        sensors = dict.fromkeys(branches.values(), (n_sensors,))
        self.manifest = build_manifest(resolve_paths(path), tree, sensors, extra)
        columns = self.manifest.columns
        branches |= {name: name for name in extra if name in columns}
        if absent := [name for name in extra if name not in columns]:
            logger.warning("%s: no branch %s; batches come without it", path, ", ".join(absent))
        self.spec: Spec = {
            key: (columns[name][0], _batch_dtype(key, columns[name][1], real))
            for key, name in branches.items()
        } | {"weight": ((), np.dtype(np.float32))}
        for key, name in branches.items():
            stored, wanted = columns[name][1], self.spec[key][1]
            if stored != wanted:
                logger.debug("branch %r: %s in the files, %s in batches", name, stored, wanted)
        self.window = self._fit(max(1, shuffle_buffer), max_ram_gb)
        smallest = max(1, min(smallest_read, self.window // 4))
        self._chunks = np.array(self.manifest.chunks(smallest=smallest, largest=self.window))
        self._shuffle = shuffle
        self._plan = lru_cache(maxsize=2)(self._make_plan)
        self._reader = Reader(self.manifest, branches, self.spec, threads=threads)
        self._windows = WindowCache(self._reader.read)
        self._last_step: int | None = None

    @property
    def stats(self) -> Stats:
        """Counters and timers of everything read so far."""
        return self._reader.stats

    @property
    def fingerprint(self) -> str:
        """Hash of names, sizes and contents' identifiers of the files."""
        return self.manifest.hash()

    def __len__(self) -> int:
        """Returns the number of events in all files."""
        return self.manifest.entries

    def steps_per_epoch(self, *, size: int, shards: int = 1, train: bool = True) -> int:
        """Returns the number of batches of an epoch; see `Source`."""
        return order.steps_per_epoch(len(self), size=size, shards=shards, train=train)

    def batch(
        self,
        step: int,
        *,
        size: int,
        shard: tuple[int, int] = (0, 1),
        seed: int = 0,
        train: bool = True,
    ) -> dict[str, np.ndarray]:
        """Returns the events of one step; see `Source`.

        Steps in sequence find the next window read already; any other order gives the same
        batches, slowly. Meant for one thread.

        Raises:
            DataError: A file cannot be read, or the first events have no valid sensor at all.
        """
        at = order.place(step, len(self), size=size, shard=shard, train=train)
        key = order.key(seed, at.epoch) if train and self._shuffle else None
        windows = self._plan(key)
        batch = {
            name: np.empty((size, *shape), dtype) for name, (shape, dtype) in self.spec.items()
        }
        done = 0
        index = int(np.searchsorted([w.first for w in windows], at.first, side="right")) - 1
        while done < at.taken:
            window = windows[index]
            begin = at.first + done - window.first
            rows = np.arange(begin, min(begin + at.taken - done, window.size))
            if key:
                rows = order.shuffled(window.size, *key, index + 1)[rows]
            for name, values in self._wait_for(window.ranges).items():
                # With mode="clip" numpy writes straight into `out`.
                np.take(values, rows, 0, batch[name][done : done + len(rows)], mode="clip")
            done, index = done + len(rows), index + 1
        for values in batch.values():
            order.pad(values, at.taken)
        batch["weight"] = order.padding_weight(size, at.real)
        if step - 1 == self._last_step:
            used = size * shard[1] * self.steps_per_epoch(size=size, shards=shard[1], train=train)
            if index < len(windows) and windows[index].first < used:
                self._windows.read_ahead(windows[index].ranges)
            elif train:  # the remainder of the epoch is dropped
                key = key and order.key(seed, at.epoch + 1)
                self._windows.read_ahead(self._plan(key)[0].ranges)
        self._last_step = step
        return batch

    def close(self) -> None:
        """Stops reading ahead, closes the files and frees the memory."""
        self._reader.stop()
        self._windows.close()
        self._reader.close()

    def __enter__(self) -> "RootSource":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make_plan(self, key: tuple[int, ...] | None) -> list[Window]:
        """Divides all entries into windows, in the order of one epoch."""
        chunks = self._chunks
        if key:
            chunks = chunks[order.shuffled(len(chunks), *key)]
        limit = self.window if key else min(self.window, FILE_ORDER_WINDOW)
        return plan_windows([(int(a), int(b)) for a, b in chunks], limit)

    def _wait_for(self, ranges: Ranges) -> Arrays:
        begun = time.perf_counter()
        arrays = self._windows.get(ranges)
        self.stats.wait_s += time.perf_counter() - begun
        return arrays

    def _fit(self, shuffle_buffer: int, max_ram_gb: float) -> int:
        """Returns the number of events in a window that keeps within the memory."""
        event = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in self.spec.values())
        largest = max(1, int(max_ram_gb * 1e9 / (ALIVE * event)))
        if largest < shuffle_buffer:
            logger.info(
                "shuffle buffer of %d events instead of %d, to stay below %g GB",
                *(largest, shuffle_buffer, max_ram_gb),
            )
        window = min(shuffle_buffer, largest)
        for file in self.manifest.files:
            if (cluster := int(np.diff(file.clusters).max())) > window:
                logger.warning(
                    "%s has clusters of %d events, more than the shuffle buffer of %d: they "
                    "are read in parts and decompressed once for each; write smaller clusters, "
                    "or raise shuffle_buffer and max_ram_gb",
                    *(file.path, cluster, window),
                )
                break
        return window


def _batch_dtype(key: str, stored: np.dtype, real: Collection[str]) -> np.dtype:
    """Returns what a branch becomes: float32, or int64 for identifiers."""
    is_real = key in ("npho", "time", *real) or stored.kind == "f"
    return np.dtype(np.float32 if is_real else np.int64)
