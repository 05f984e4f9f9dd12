"""The source of detector events from a cache that `xec_jax.data.build` made out of ROOT files.

A cache is a TFDS dataset in the array_record format, one event per record, with sensors in 16 bits
each or as they are; see `packing`. Records are read by random access, so the shuffle mixes all
events of an epoch, and every shard (process) of a job reads its own rows alone. Neither TensorFlow
nor tensorflow_datasets is needed here.
"""

import contextlib
import hashlib
import json
import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from xec_jax.data import order
from xec_jax.data.fiducial import BRANCH, Limits, cut
from xec_jax.data.invalid import check_light, dead_events, make_finite, make_relative, rescale
from xec_jax.data.report import log_report
from xec_jax.data.root.manifest import Pattern
from xec_jax.data.source import Spec, batch_dtype, check_extra
from xec_jax.data.survey.first_look import look
from xec_jax.data.tfds.folder import (
    BUILD_AGAIN,
    Cache,
    damaged,
    open_caches,
    read_columns,
)
from xec_jax.data.tfds.packing import Packing
from xec_jax.data.tfds.records import Layout
from xec_jax.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

SAMPLE = 256  # events that are looked at first
PIECE = 32  # events that a thread reads and decodes at a time: a megabyte, for the caches


class TfdsSource:
    """Events from caches in batches of a fixed shape; see `Source`.

    A batch has the keys of `RootSource` over the same files: `npho` [b s] in photons and `time`
    [b s] in s, float32 with 1e10 for what is invalid, within the error of their packing; `weight`
    [b]; and what `extra` names: real numbers as float32, whole numbers as int64.

    Args:
        path: Folder, glob, or a list of these; see `open_caches`.
        npho_branch: Branch behind `npho`, as it was when the cache was built.
        time_branch: Branch behind `time`; None for batches without times.
        extra: Further columns; those that the cache has not are left out of `spec`.
        real: Keys of `extra` that become float32 even if they are whole numbers.
        n_sensors: Number of photosensors.
        shuffle: False keeps the order of the files in training, too.
        threads: Threads that read and decode.
        fiducial: Limits of `fiducial.inside`; events outside are not part of the set.
        derive_relative: Makes `relative_npho` of the photons, where it is asked for.
        scale: Factors for values of `extra`, such as 1e-3 for energies in MeV.
        normalization: Constants that the first events are compared with; see `RootSource`.
        strict_scheme: Values that do not fit the normalization are an error, not a warning.

    Attributes:
        spec: Shape of one event and dtype of each key.

    Raises:
        ConfigError: The cache holds other branches than asked for, or `extra` names a key that
            the batch has anyway.
        DataError: A folder is no cache, a file is missing or damaged, no event is left, or the
            first ones have no valid sensor or do not fit the normalization.
    """

    def __init__(
        self,
        path: Pattern,
        *,
        npho_branch: str = "npho",
        time_branch: str | None = "relative_time",
        extra: Collection[str] = (),
        real: Collection[str] = (),
        n_sensors: int = 4760,
        shuffle: bool = True,
        threads: int = 2,
        fiducial: Limits | None = None,
        derive_relative: bool = False,
        scale: Mapping[str, float] | None = None,
        normalization: Mapping[str, Any] | None = None,
        strict_scheme: bool = False,
    ) -> None:
        check_extra(extra)
        self._caches = open_caches(path)
        first = self._caches[0]
        pair = (npho_branch, first.metadata["npho_branch"])
        is_derived = derive_relative and pair == ("relative_npho", "npho")
        if not is_derived:
            _check(first, "npho_branch", npho_branch)
        if time_branch is not None:
            _check(first, "time_branch", time_branch)
        columns = first.columns
        keys = ["npho", *(["time"] if time_branch else []), *(k for k in extra if k in columns)]
        if columns["npho"][0] != (n_sensors,):
            raise DataError(
                f"{first.path} has events of shape {columns['npho'][0]}",
                expected=f"{n_sensors} sensors",
            )
        self._tables = {
            name: Packing(**packing).table
            for name, packing in first.metadata["packing"].items()
            if packing
        }
        self.spec: Spec = {
            key: (columns[key][0], batch_dtype(key, columns[key][1], [*real, *(scale or {})]))
            for key in keys
        } | {"weight": ((), np.dtype(np.float32))}
        self._shuffle = shuffle
        self._kept: np.ndarray | None = None  # numbers of the events inside of the cut
        if limits := {k: v for k, v in (fiducial or {}).items() if v is not None}:
            uvw = read_columns(path, {BRANCH: (3,)})[BRANCH]
            self._kept = np.flatnonzero(cut(uvw, limits))
        self._files = _Files(self._caches)
        factors = {key: factor for key, factor in (scale or {}).items() if key in self.spec}
        self._convert: dict[str, Callable[[np.ndarray], None]] = {
            key: partial(rescale, factor=factor) for key, factor in factors.items()
        }
        if is_derived:
            self._convert["npho"] = make_relative
        self._settings = {"fiducial": limits, "scale": factors, "derived": is_derived}
        self._pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="xec-tfds")
        self._is_seen = np.zeros(self._files.entries, bool)
        self._served = self._dead = self._negative = 0
        self._lock = threading.Lock()
        self._is_closed = False
        if absent := [name for name in extra if name not in columns]:
            logger.warning("%s: no column %s; batches come without it", path, ", ".join(absent))
        names = {key: key for key in keys} | {"npho": npho_branch}
        names |= {"time": time_branch} if time_branch else {}
        try:
            rows = np.arange(min(SAMPLE, len(self)))
            sample = self._load(rows if self._kept is None else self._kept[rows], len(rows))
            sample["weight"].fill(1)
            self._negative = 0  # they count when they are served
            check_light(sample["npho"], str(first.path))
            look(
                *(sample, str(first.path), names),
                normalization=normalization,
                strict_scheme=strict_scheme,
            )
        except BaseException:
            self.close()
            raise

    @property
    def fingerprint(self) -> str:
        """Hash of the sources of the caches, their packing, and the settings of this source."""
        parts: list[Any] = [self._settings]
        for cache in self._caches:
            parts += [cache.metadata["sources"], cache.lengths, cache.content]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def __len__(self) -> int:
        """Returns the number of events, after the cut."""
        return self._files.entries if self._kept is None else len(self._kept)

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

        Raises:
            DataError: A file of records is damaged.
        """
        at = order.place(step, len(self), size=size, shard=shard, train=train)
        rows = np.arange(at.first, at.first + at.taken)
        if train and self._shuffle:
            rows = order.shuffled(len(self), *order.key(seed, at.epoch))[rows]
        if self._kept is not None:
            rows = self._kept[rows]
        batch = self._load(rows, size)
        batch["weight"] = order.padding_weight(size, at.real)
        is_new = ~self._is_seen[rows]
        if is_new.any():
            self._dead += int(np.count_nonzero(dead_events(batch["npho"][: at.taken])[is_new]))
            self._is_seen[rows] = True
        self._served += int(np.count_nonzero(batch["weight"]))
        if (step + 1) % self.steps_per_epoch(size=size, shards=shard[1], train=train) == 0:
            log_report(self.report())
        return batch

    def report(self) -> dict[str, Any]:
        """Says what became of every entry of the files behind the caches so far.

        Returns:
            The keys of `RootSource.report`. `skipped` entries and `bad_files` were left out when
            the caches were built, which also replaced what was not finite; `unread` entries may
            have been read by other shards, each of which reads its own.
        """
        every = [cache.metadata for cache in self._caches]
        skipped = sum(metadata.get("skipped", 0) for metadata in every)
        seen, size = int(np.count_nonzero(self._is_seen)), self._files.entries
        return {
            "entries": size + skipped,
            "seen": seen,
            "skipped": skipped,
            "cut": size - len(self),
            "unread": len(self) - seen,
            "served": self._served,
            "dead_events": self._dead,
            "negative": self._negative,
            "replaced": {},
            "quarantine": {},
            "bad_files": {
                k: v for metadata in every for k, v in metadata.get("bad_files", {}).items()
            },
        }

    def close(self) -> None:
        """Ends the threads and closes the files; says what was read."""
        if self._served and not self._is_closed:
            log_report(self.report())
        self._is_closed = True
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._files.close()

    def __enter__(self) -> "TfdsSource":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _load(self, rows: np.ndarray, size: int) -> dict[str, np.ndarray]:
        """Reads events into the first rows of a batch; those behind become copies."""
        batch = {key: np.empty((size, *shape), dtype) for key, (shape, dtype) in self.spec.items()}
        pieces = [slice(i, min(i + PIECE, len(rows))) for i in range(0, len(rows), PIECE)]
        running = [self._pool.submit(self._fill, batch, piece, rows[piece]) for piece in pieces]
        for future in running:
            future.result()
        for values in batch.values():
            order.pad(values, len(rows))
        return batch

    def _fill(self, batch: dict[str, np.ndarray], piece: slice, events: np.ndarray) -> None:
        """Reads and decodes events into some rows of a batch."""
        keys = [key for key in batch if key != "weight"]
        for key, stored in self._files.read(events, keys).items():
            out = batch[key][piece]
            if key in self._tables:
                # With mode="clip" numpy writes straight into `out`; no code is out of range.
                np.take(self._tables[key], stored, out=out, mode="clip")
            else:
                out[...] = stored
                if out.dtype.kind == "f":
                    make_finite(out)
            if key == "npho" and not (is_seen := self._is_seen[events]).all():
                with self._lock:
                    self._negative += int(np.count_nonzero((out < 0)[~is_seen]))
            if key in self._convert:
                self._convert[key](out)


class _Files:
    """The files of records of caches, as one range of events; safe to read from threads."""

    def __init__(self, caches: Sequence[Cache]) -> None:
        self._paths = [path for cache in caches for path in cache.files]
        lengths = [length for cache in caches for length in cache.lengths]
        self._starts = np.cumsum([0, *lengths])
        self.entries = int(self._starts[-1])
        for path in self._paths:
            if not path.is_file():
                raise DataError(f"{path} is missing", remedy=BUILD_AGAIN)
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()
        number = int(np.argmax(np.diff(self._starts) > 0))  # the first file with events
        try:
            self._layout = Layout(self._records(number, [0])[0], caches[0].columns)
        except ValueError as error:
            self.close()
            raise damaged(self._paths[number], error) from error
        except DataError:
            self.close()
            raise

    def read(self, events: np.ndarray, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns columns `[n, ...]` of the events with these numbers, as they are stored."""
        files = np.searchsorted(self._starts, events, side="right") - 1
        records = [b""] * len(events)
        for number in np.unique(files).tolist():
            places = np.flatnonzero(files == number)
            found = self._records(number, (events[places] - self._starts[number]).tolist())
            for place, record in zip(places.tolist(), found, strict=True):
                records[place] = record
        try:
            return self._layout.split(records, keys)
        except ValueError as error:
            raise damaged(self._paths[int(files[0])], error) from error

    def close(self) -> None:
        """Closes the files."""
        for reader in self._readers.values():
            with contextlib.suppress(RuntimeError):  # what was wrong with it has been said
                reader.close()
        self._readers.clear()

    def _records(self, number: int, positions: list[int]) -> list[bytes]:
        try:
            return self._reader(number).read(positions)
        except (RuntimeError, IndexError) as error:
            raise damaged(self._paths[number], error) from error

    def _reader(self, number: int) -> Any:
        with self._lock:
            if number not in self._readers:
                self._readers[number] = open_records(self._paths[number])
            reader = self._readers[number]
        expected = int(self._starts[number + 1] - self._starts[number])
        if reader.num_records() != expected:
            found = f"{reader.num_records()} events instead of {expected}"
            raise damaged(self._paths[number], found)
        return reader


def open_records(path: Path) -> Any:
    """Opens a file of records for random access; a damaged one seems to have no records.

    Raises:
        ConfigError: The package array_record is not installed.
    """
    try:
        from array_record.python.array_record_module import ArrayRecordReader
    except ModuleNotFoundError as error:
        raise ConfigError(
            "data.source is 'tfds', but the package array_record is not installed",
            remedy="pip install -e '.[tfds]' in the repository, or train on the ROOT files",
        ) from error
    # Bytes that nobody asked for are not read; the threads are ours.
    options = "readahead_buffer_size:0,max_parallelism:0"
    return ArrayRecordReader(str(path), options=options, file_reader_buffer_size=32768)


def _check(cache: Cache, key: str, asked: str) -> None:
    built = cache.metadata[key]
    if built != asked:
        raise ConfigError(
            f"data.{key} is {asked!r}, but {cache.path} was built with {built!r}",
            expected="the branch that the cache holds",
            remedy=f"set data.{key} to {built!r}, or build another cache with --{key} {asked}",
        )
