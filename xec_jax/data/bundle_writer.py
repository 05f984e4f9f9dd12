"""Writes muon bundles as parquet: one row per event, in the layout that `data.muons` reads."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xec_jax.data.muons import FACTS, IDS, open_parquet

Chunk = Mapping[str, np.ndarray]


def write_bundles(
    path: str | Path, chunks: Iterable[Chunk], facts: Mapping[str, Any] | None = None
) -> int:
    """Writes a file, which gets its name when everything is in it.

    Args:
        path: The file.
        chunks: Events with the keys `primary` (n, 4); `count` (n,), muons of each; `muons`
            (sum of counts, k), event after event: energy, r, x, y (k = 4) or energy, x, y
            (k = 3), or those and further numbers; `event` (n,), the shower's number. Other keys
            (sum of counts,) become columns of lists, one number per muon.
        facts: Where the events come from, kept with the file (`data.muons.read_facts`).

    Returns:
        The number of events; without any there is no file.

    Raises:
        DiskError: The folder cannot be written, or the disk is full.
    """
    from xec_jax.data.root.writer import disk_errors

    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    parquet, writer, n = open_parquet(), None, 0
    try:
        with disk_errors(path):
            for chunk in chunks:
                table = _table(chunk)
                if writer is None:
                    kept = {FACTS: json.dumps(dict(facts or {}), sort_keys=True)}
                    schema = table.schema.with_metadata(kept)
                    writer = parquet.ParquetWriter(temporary, schema, compression="zstd")
                writer.write_table(table.cast(schema))
                n += table.num_rows
            if writer is not None:
                writer.close()
                temporary.replace(path)
    finally:
        if writer is not None:
            writer.close()
        temporary.unlink(missing_ok=True)
    return n


def _table(chunk: Chunk) -> Any:
    import pyarrow as pa

    counts, muons = chunk["count"], np.asarray(chunk["muons"], np.float32)
    primary = np.asarray(chunk["primary"], np.float32)
    inner = _lists(pa.array(muons.ravel()), np.full(len(muons), muons.shape[1]))
    columns = {
        "primary": _lists(pa.array(primary.ravel()), np.full(len(primary), primary.shape[1])),
        "muons": _lists(inner, counts),
        IDS[0]: pa.array(np.asarray(chunk["event"], np.uint64)),
        IDS[1]: pa.array(np.zeros(len(primary), np.uint64)),
    }
    for name in chunk.keys() - {"primary", "count", "muons", "event"}:
        columns[name] = _lists(pa.array(chunk[name]), counts)
    return pa.table(columns)


def _lists(values: Any, lengths: np.ndarray) -> Any:
    import pyarrow as pa

    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, values)
