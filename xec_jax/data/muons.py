"""Muon bundles in parquet files: one row per shower and depth, muons as lists of lists.

The flow learns from muons, so a row of a batch is one muon together with its own primary. Muon and
primary are joined once, when a file is read, by the lengths of the lists in the same row; nothing
later moves one without the other.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xec_jax.data.arrays import ArraySource
from xec_jax.data.order import shuffled
from xec_jax.errors import ConfigError, DataError

IDS = ("primary_major_id", "primary_minor_id")
FACTS = "xec_jax"
"""Key of the file's metadata under which `bundle_writer` keeps where the events come from."""


class Bundles(NamedTuple):
    """Ragged events.

    Attributes:
        primaries: Energy in GeV, zenith in rad, mass in GeV, depth in m: float32 (n, 4).
        counts: Muons of each event, int64 (n,), 0 included.
        muons: Energy in GeV, distance to the axis r, x and y in m, event after event: float32
            (sum of counts, 4).
        shower: Equal for events of one shower, uint64 (n,).
    """

    primaries: np.ndarray
    counts: np.ndarray
    muons: np.ndarray
    shower: np.ndarray

    def take(self, events: np.ndarray) -> "Bundles":
        """Returns some events, in the given order, each with its own muons."""
        starts = np.cumsum(self.counts) - self.counts
        counts = self.counts[events]
        offsets = np.cumsum(counts) - counts
        rows = np.repeat(starts[events] - offsets, counts) + np.arange(counts.sum())
        return Bundles(self.primaries[events], counts, self.muons[rows], self.shower[events])


BYTES_PER_NUMBER = 24
"""Memory of one number of a muon as a batch source needs it, its primary and key included."""


def read_bundles(paths: Sequence[str | Path], *, max_ram_gb: float = math.inf) -> Bundles:
    """Reads parquet files, of newer and older layouts.

    Columns: `primary`, 4 numbers, or 5 and more with the depth in the fifth place; `muons`, per
    muon E, r, x, y or, in older files, E, x, y; `primary_major_id` and `primary_minor_id` where
    they exist. Without them events of equal energy, zenith and mass are one shower.

    Args:
        paths: The files.
        max_ram_gb: Files that would need more memory than this are refused.

    Raises:
        DataError: A file that cannot be read, columns that lack or hold something else, numbers
            that are not finite, too many muons for the memory, or no event at all.
    """
    _check_size(paths, max_ram_gb)
    parts = [_read(Path(path)) for path in paths]
    if not parts or not sum(len(part.counts) for part in parts):
        raise DataError(
            f"no events in {', '.join(map(str, paths)) or 'no files'}",
            expected="at least one event",
        )
    return Bundles(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def open_parquet() -> Any:
    """Returns pyarrow's module of parquet files.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise ConfigError(
            "muon bundles are parquet files, but the package pyarrow is not installed",
            remedy="pip install -e '.[flow]' in the repository",
        ) from error
    return parquet


def _check_size(paths: Sequence[str | Path], max_ram_gb: float) -> None:
    parquet = open_parquet()
    n_numbers = 0
    for path in paths:
        with _named(Path(path)):
            file = parquet.ParquetFile(path).metadata
            for group in (file.row_group(i) for i in range(file.num_row_groups)):
                columns = (group.column(i) for i in range(group.num_columns))
                n_numbers += sum(c.num_values for c in columns if c.path_in_schema[:5] == "muons")
    if (needed := n_numbers * BYTES_PER_NUMBER / 1e9) > max_ram_gb:
        raise DataError(
            f"{len(paths)} files hold {n_numbers:,} numbers of muons, {needed:.1f} GB in memory",
            expected=f"at most data.max_ram_gb = {max_ram_gb:g}",
            remedy="train on fewer files at a time, continuing with train.init_from, or raise it",
        )


def read_facts(path: str | Path) -> dict[str, Any]:
    """Returns what `bundle_writer` noted in a file about its events; nothing for other files.

    Raises:
        DataError: A file that cannot be read.
    """
    parquet = open_parquet()
    with _named(Path(path)):
        kept = parquet.read_schema(path).metadata or {}
        return dict(json.loads(kept.get(FACTS.encode(), b"{}")))


def read_primaries(paths: Sequence[str | Path], rows: int) -> Iterator[np.ndarray]:
    """Yields the column `primary` of parquet files, float32 (at most `rows`, 4) at a time.

    Raises:
        DataError: As in `read_bundles`.
    """
    parquet = open_parquet()
    for path in map(Path, paths):
        with _named(path):
            file = parquet.ParquetFile(path)
        if "primary" not in file.schema_arrow.names:
            raise DataError(
                f"{path} has no column 'primary' (it has: {', '.join(file.schema_arrow.names)})",
                expected="lists of energy, zenith, mass and depth",
            )
        batches, first = file.iter_batches(rows, columns=["primary"]), 0
        while True:
            with _named(path):
                batch = next(batches, None)
            if batch is None:
                break
            primaries = _primaries(batch.column(0), path, first).astype(np.float32)
            first += len(primaries)
            yield primaries


def split_showers(bundles: Bundles, share: float, seed: int = 0) -> tuple[Bundles, Bundles]:
    """Splits events in two so that all events of a shower are on the same side.

    Args:
        bundles: Events.
        share: Of the showers, for the second part, in (0, 1).
        seed: Which showers.

    Raises:
        DataError: Fewer than two showers.
    """
    showers = np.unique(bundles.shower)
    if len(showers) < 2:
        raise DataError(f"{len(showers)} shower", expected="two or more to split")
    n = min(max(round(share * len(showers)), 1), len(showers) - 1)
    second = np.isin(bundles.shower, showers[shuffled(len(showers), seed)[:n]])
    return bundles.take(np.flatnonzero(~second)), bundles.take(np.flatnonzero(second))


def muon_source(bundles: Bundles, *, shuffle: bool = True) -> ArraySource:
    """Serves one muon per row of a batch.

    Keys: `muon` (4,), `primary` (4,) and `count` of its event; `is_muon`, 0 in the one row that
    stands for an event without muons; `is_first`, 1 in one row of each event, for what counts
    events and not muons; `event`, its number. Numbers are float32, `event` is int64.
    """
    rows = np.maximum(bundles.counts, 1)
    event = np.repeat(np.arange(len(rows)), rows)
    first = np.zeros(len(event), np.float32)
    first[np.cumsum(rows) - rows] = 1
    is_muon = bundles.counts[event] > 0
    muon = np.ones((len(event), 4), np.float32)  # a finite filler
    muon[is_muon] = bundles.muons
    arrays = {
        "muon": muon,
        "primary": bundles.primaries[event],
        "count": bundles.counts[event].astype(np.float32),
        "is_muon": is_muon.astype(np.float32),
        "is_first": first,
        "event": event,
    }
    return ArraySource(arrays, shuffle=shuffle)


def _read(path: Path) -> Bundles:
    parquet = open_parquet()
    with _named(path):
        file = parquet.ParquetFile(path)
    names = file.schema_arrow.names
    for name in ("primary", "muons"):
        if name not in names:
            raise DataError(
                f"{path} has no column {name!r} (it has: {', '.join(names)})",
                expected="a list column 'primary' and a list of lists 'muons'",
            )
    ids = [name for name in IDS if name in names]
    with _named(path):
        table = file.read(["primary", "muons", *ids]).combine_chunks()
        columns = {name: table.column(name).combine_chunks() for name in table.column_names}
    primaries = _primaries(columns["primary"], path)
    counts, inner = _lists(columns["muons"], path, "muons")
    sizes, numbers = _lists(inner, path, "muons") if len(inner) else (counts[:0], np.empty(0))
    size = int(sizes[0]) if len(sizes) else 4
    if size not in (3, 4) or np.any(sizes != size):
        wrong = int(np.argmax(sizes != (size if size in (3, 4) else -1)))
        raise DataError(
            f"{path}: column 'muons' has {int(sizes[wrong])} numbers for muon {wrong}",
            expected="energy, r, x, y or energy, x, y for every muon of a file",
        )
    muons = numbers.reshape(-1, size)
    if size == 3:
        muons = np.insert(muons, 1, np.hypot(muons[:, 1], muons[:, 2]), axis=1)
    _check_finite(muons, path, "muons")
    identity = [columns[name].to_numpy(zero_copy_only=False) for name in ids]
    shower = _hash_rows(
        np.stack(identity, 1) if ids else primaries[:, :3], str(path) if ids else ""
    )
    floats = (primaries.astype(np.float32), counts, muons.astype(np.float32))
    return Bundles(*floats, shower)


def _primaries(column: Any, path: Path, first: int = 0) -> np.ndarray:
    """Returns energy, zenith, mass and depth of each row, float64 (n, 4)."""
    lengths, numbers = _lists(column, path, "primary")
    width = int(lengths[0]) if len(lengths) else 4
    if width < 4 or np.any(lengths != width):
        where = int(np.argmax(lengths != max(width, 4)))
        raise DataError(
            f"{path}: column 'primary' has {int(lengths[where])} numbers in row {first + where}",
            expected="energy, zenith, mass, depth in every row",
        )
    # A fourth number in longer lists is a time.
    primaries = numbers.reshape(-1, width)[:, [0, 1, 2, 3 if width == 4 else 4]]
    _check_finite(primaries, path, "primary", first)
    return np.asarray(primaries)


def _check_finite(values: np.ndarray, path: Path, name: str, first: int = 0) -> None:
    bad = np.flatnonzero(~np.isfinite(values).all(1))
    if len(bad):
        raise DataError(
            f"{path}: column {name!r} has {len(bad)} entries that are not finite, the first "
            f"is number {first + bad[0]}",
            expected="finite numbers",
            remedy="take these showers out of the file",
        )


def _lists(column: Any, path: Path, name: str) -> tuple[np.ndarray, Any]:
    """Returns the lengths of the lists in a column, and what is in them."""
    import pyarrow as pa

    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        raise DataError(
            f"{path}: column {name!r} has the type {kind}",
            expected="a list of numbers, for 'muons' a list of such lists",
        )
    if column.null_count:
        raise DataError(f"{path}: column {name!r} has {column.null_count} rows without a value")
    lengths = np.diff(column.offsets.to_numpy()).astype(np.int64)
    values = column.flatten()
    if pa.types.is_floating(values.type) or pa.types.is_integer(values.type):
        return lengths, values.to_numpy(zero_copy_only=False).astype(np.float64)
    return lengths, values


def _hash_rows(rows: np.ndarray, salt: str) -> np.ndarray:
    """Returns a 64-bit number per row, equal for equal rows."""
    unique, index = np.unique(rows, axis=0, return_inverse=True)
    digests = [hashlib.sha256(row.tobytes() + salt.encode()).digest()[:8] for row in unique]
    return np.array([int.from_bytes(d, "little") for d in digests], np.uint64)[index.ravel()]


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # what pyarrow raises derives from these
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}: {reason})",
            expected="a complete parquet file",
            remedy="copy or produce the file again, or take it out of the list",
        ) from error
