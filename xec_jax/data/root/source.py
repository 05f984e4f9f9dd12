"""The source of detector events: ROOT files with two numbers per photosensor.

Reading is cluster by cluster, because any part of a cluster costs as much as all of it.
Shuffling therefore has two levels: the clusters in a new order every epoch, then all events
inside windows of many clusters. Every shard (process) walks through the windows of the whole data
set and copies its own rows out of them: batches are then the same for any number of processes, and
the price is that each process reads and decompresses what the others do. See `order` for shards and
epochs, `windows` for memory, `reader` and `file` for files.
"""

import hashlib
import json
import logging
import time
from collections.abc import Collection, Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np

from xec_jax.data import order
from xec_jax.data.fiducial import BRANCH, Limits, cut_of
from xec_jax.data.invalid import make_relative, rescale
from xec_jax.data.report import log_report
from xec_jax.data.root.manifest import Pattern, build_manifest, resolve_paths
from xec_jax.data.root.reader import CUT, LOST, SEEN, UNREAD, Reader, Stats
from xec_jax.data.root.windows import Arrays, Ranges, Window, WindowCache, plan_windows
from xec_jax.data.source import Spec, batch_dtype, check_extra
from xec_jax.data.survey.first_look import look
from xec_jax.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

SMALLEST_READ = 256  # events; below, opening and seeking cost more than decompressing
FILE_ORDER_WINDOW = 2048  # events; without a shuffle, larger windows only delay the first batch
ALIVE = WindowCache.CAPACITY + 0.5  # windows in memory, and room for what is being decompressed


class RootSource:
    """Events from ROOT files (TTree or RNTuple) in batches of a fixed shape; see `Source`.

    A batch holds `npho` [b s] in photons and `time` [b s] in seconds, both raw float32 with
    1e10 in place of everything that is not finite, `weight` [b], and what `extra` names: real
    numbers as float32, whole numbers as int64.

    Nothing is lost silently: `report` counts every entry of the files.

    Args:
        path: File, folder, glob, or a list of these; see `resolve_paths`.
        tree: Name of the tree in every file.
        npho_branch: Branch behind `npho`.
        time_branch: Branch behind `time`; None for files without times, and no such key.
        extra: Further branches with the shape of one event, or their names alone. A branch that
            no file has is left out of `spec`, with `skip` also one that some files lack.
        real: Keys of `extra` that become float32 even if the files hold whole numbers, because
            a network is to compute with them. With `skip`, files that lack one are left out.
        n_sensors: Number of photosensors.
        shuffle: False keeps the order of the files in training, too.
        shuffle_buffer: Events that are mixed completely.
        max_ram_gb: Bound for the events held in memory; reduces `shuffle_buffer` if necessary.
            Libraries, open files and buffers take about 0.1 GB more.
        threads: Threads that decompress.
        smallest_read: Clusters with fewer events are read together.
        on_bad_file: `error`, or `skip`: files that cannot be used are left out, and entries that
            cannot be read become copies of another event with weight 0. Both are warnings.
        fiducial: Limits of `fiducial.inside`; events outside are not part of the set, those whose
            place cannot be read are quarantined like others that cannot be.
        derive_relative: Makes `relative_npho` from the branch `npho`, where it is asked for.
        scale: Factors for values of `extra`, such as 1e-3 for energies in MeV; they become
            float32.
        normalization: Constants that the first events are compared with; None compares them
            with the names of their branches.
        strict_scheme: Values that do not fit the normalization are an error, not a warning.

    Attributes:
        spec: Shape of one event and dtype of each key.
        manifest: The files; `manifest.hash()` identifies the data.
        window: Events that are mixed completely, after `max_ram_gb`.

    Raises:
        ConfigError: `extra` names a key that the batch has anyway, or another argument that
            cannot be.
        DataError: Any of the files cannot be used, or no event is inside; all files are opened
            here.
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
        on_bad_file: str = "error",
        fiducial: Limits | None = None,
        derive_relative: bool = False,
        scale: Mapping[str, float] | None = None,
        normalization: Mapping[str, Any] | None = None,
        strict_scheme: bool = False,
    ) -> None:
        if on_bad_file not in ("error", "skip"):
            raise ConfigError(f"data.on_bad_file is {on_bad_file!r}", expected="'error' or 'skip'")
        extra = dict(extra) if isinstance(extra, Mapping) else dict.fromkeys(extra)
        check_extra(extra)
        limits = {name: limit for name, limit in (fiducial or {}).items() if limit is not None}
        is_derived = derive_relative and npho_branch == "relative_npho"
        branches = {"npho": "npho" if is_derived else npho_branch}
        branches |= {"time": time_branch} if time_branch else {}
        needed: dict[str, tuple[int, ...] | None] = dict.fromkeys(branches.values(), (n_sensors,))
        needed |= {BRANCH: (3,)} if limits else {}
        if on_bad_file == "skip":  # files without what a network needs are no use
            needed |= {name: extra[name] for name in real if name in extra and name not in needed}
        optional = {name: shape for name, shape in extra.items() if name not in needed}
        try:
            self.manifest = build_manifest(
                resolve_paths(path), tree, needed, optional, on_bad_file=on_bad_file
            )
        except DataError as error:
            if npho_branch != "relative_npho" or "no branch 'relative_npho'" not in error.found:
                raise
            raise DataError(
                error.found,
                expected=error.expected,
                remedy=f"{error.remedy}; data.derive_relative=true makes it from npho",
            ) from error
        columns, factors = self.manifest.columns, scale or {}
        branches |= {name: name for name in extra if name in columns}
        if absent := [name for name in extra if name not in columns]:
            logger.warning("%s: no branch %s; batches come without it", path, ", ".join(absent))
        self.spec: Spec = {
            key: (columns[name][0], batch_dtype(key, columns[name][1], [*real, *factors]))
            for key, name in branches.items()
        } | {"weight": ((), np.dtype(np.float32))}
        for key, name in branches.items():
            stored, wanted = columns[name][1], self.spec[key][1]
            if stored != wanted:
                logger.debug("branch %r: %s in the files, %s in batches", name, stored, wanted)
        self.window = self._fit(max(1, shuffle_buffer), max_ram_gb)
        smallest = max(1, min(smallest_read, self.window // 4))
        chunks = self.manifest.chunks(smallest=smallest, largest=self.window)
        keep, lost = cut_of(self.manifest, limits, on_bad_file=on_bad_file)
        sizes = [b - a if keep is None else int(np.count_nonzero(keep[a:b])) for a, b in chunks]
        # Chunks with nothing to keep are never read.
        self._chunks = [(*chunk, size) for chunk, size in zip(chunks, sizes, strict=True) if size]
        self._size, self._served, self._is_closed = sum(sizes), 0, False
        self._settings: dict[str, Any] = {"fiducial": limits} if limits else {}
        if lost:  # they count as inside, so that there are other events in an epoch
            self._settings["lost"] = sorted(lost)
        if is_derived:
            self._settings["relative_npho"] = "derived"
        factors = {key: factor for key, factor in factors.items() if key in self.spec}
        if factors:
            self._settings["scale"] = factors
        self._shuffle = shuffle
        self._plan = lru_cache(maxsize=2)(self._make_plan)
        self._reader = Reader(
            self.manifest,
            tuple((start, stop) for start, stop, _ in self._chunks),
            branches,
            self.spec,
            window=self.window,
            threads=threads,
            keep=keep,
            lost=lost,
            skip=on_bad_file == "skip",
            convert={key: partial(rescale, factor=factor) for key, factor in factors.items()}
            | ({"npho": make_relative} if is_derived else {}),
            judge=partial(
                look,
                names={**branches, "npho": npho_branch},
                normalization=normalization,
                strict_scheme=strict_scheme,
            ),
        )
        self._windows = WindowCache(self._reader.read, self._reader.recycle)
        self._last_step: int | None = None

    @property
    def stats(self) -> Stats:
        """Counters and timers of everything read so far."""
        return self._reader.stats

    @property
    def fingerprint(self) -> str:
        """Hash of names, sizes and contents' identifiers of the files, and of the cut."""
        if not self._settings:
            return self.manifest.hash()
        text = self.manifest.hash() + json.dumps(self._settings, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def __len__(self) -> int:
        """Returns the number of events, those that were cut away not counted."""
        return self._size

    def report(self) -> dict[str, Any]:
        """Says what became of every entry of the files so far.

        Returns:
            `entries` = `seen` + `skipped` + `cut` + `unread`, where `skipped` entries cannot be
            read; `served`, the rows with a weight in all batches of this shard; `dead_events`
            without a valid sensor, `negative` photon counts, which are invalid, and `replaced`,
            the NaN and infinite numbers per key, among those seen; `quarantine`, the reasons by
            "file: entries a to b", both included; and `bad_files`, the reasons by file.
        """
        counts = np.bincount(self._reader.fate, minlength=4).tolist()
        return {
            "entries": self.manifest.entries,
            "seen": counts[SEEN],
            "skipped": counts[LOST],
            "cut": counts[CUT],
            "unread": counts[UNREAD],
            "served": self._served,
            "dead_events": self.stats.dead_events,
            "negative": self.stats.negative,
            "replaced": dict(self.stats.replaced),
            "quarantine": {
                f"{path}: entries {first} to {stop - 1}": reason
                for (path, first, stop), reason in sorted(self._reader.quarantine.items())
            },
            "bad_files": dict(self.manifest.left_out),
        }

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
            DataError: A file cannot be read, the first events have no valid sensor at all, or
                they do not fit the normalization and `strict_scheme` is set.
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
        batch["weight"] *= order.padding_weight(size, at.real)
        self._served += int(np.count_nonzero(batch["weight"]))
        if (step + 1) % self.steps_per_epoch(size=size, shards=shard[1], train=train) == 0:
            log_report(self.report())
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
        """Stops reading ahead, closes the files and frees the memory; says what was read."""
        if self._served and not self._is_closed:
            log_report(self.report())
        self._is_closed = True
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
            chunks = [chunks[i] for i in order.shuffled(len(chunks), *key).tolist()]
        return plan_windows(chunks, self.window if key else min(self.window, FILE_ORDER_WINDOW))

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
