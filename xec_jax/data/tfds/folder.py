"""Folders with caches of events: what they say of themselves, and their small columns.

A cache is a TFDS dataset in the array_record format. Beside the files of TFDS it has
`metadata.json` (sources, branches, packing) and `truth.npz`, the columns with few numbers per
event, which statistics and cuts would otherwise pick out of gigabytes.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np

from xec_jax.data.root.header import describe, suggest
from xec_jax.data.root.manifest import Pattern, natural
from xec_jax.data.tfds.records import Columns
from xec_jax.errors import ConfigError, DataError

FORMAT = 1  # of the metadata
SPLIT = "events"
SENSOR_KEYS = ("npho", "time")
TRUTH = "truth.npz"  # the small columns of all events, to be read at once
BUILD_AGAIN = "build the cache again: python -m xec_jax.data.build"


@dataclass(frozen=True)
class Cache:
    """One folder with a cache, looked at and not yet read.

    Attributes:
        path: The folder.
        metadata: What the command wrote about it.
        lengths: Events per file of records.
    """

    path: Path
    metadata: Mapping[str, Any]
    lengths: tuple[int, ...]

    @classmethod
    def open(cls, path: Path) -> "Cache":
        """Reads what the folder says about itself.

        Raises:
            DataError: It is no cache, or one of another version of this program.
        """
        try:
            metadata = json.loads((path / "metadata.json").read_text())
            info = json.loads((path / "dataset_info.json").read_text())
            (split,) = (one for one in info["splits"] if one["name"] == SPLIT)
            lengths = tuple(int(n) for n in split["shardLengths"])
            if metadata["xec_jax_cache"] != FORMAT:
                raise ValueError(f"format {metadata['xec_jax_cache']} instead of {FORMAT}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} is no cache of events ({type(error).__name__}: {error})",
                expected="a folder that `python -m xec_jax.data.build` wrote",
                remedy="build one, or set data.source to root for ROOT files",
            ) from error
        return cls(path, metadata, lengths)

    @property
    def files(self) -> list[Path]:
        """The files of records, in the order of their events."""
        total = len(self.lengths)
        return [self.path / shard_name(number, total) for number in range(total)]

    @cached_property
    def columns(self) -> Columns:
        """Shape and dtype of what is stored, by key."""
        stored = self.metadata["columns"].items()
        return {name: (tuple(one["shape"]), np.dtype(one["dtype"])) for name, one in stored}

    @property
    def content(self) -> dict[str, Any]:
        """What caches must have in common to be read one after the other."""
        keys = ("columns", "npho_branch", "time_branch", "packing")
        return {key: self.metadata[key] for key in keys}


def read_columns(
    path: Pattern, columns: Mapping[str, tuple[int, ...] | None]
) -> dict[str, np.ndarray]:
    """Reads small columns of all events of caches.

    Args:
        path: See `open_caches`.
        columns: Shape of one event; None takes any.

    Returns:
        Arrays `[events, ...]`; NaN have become 1e10.

    Raises:
        DataError: There is no such column, or a file is damaged.
    """
    caches = open_caches(path)
    stored = {key: shape for key, (shape, _) in caches[0].columns.items() if key not in SENSOR_KEYS}
    for name, shape in columns.items():
        if name not in stored or shape not in (None, stored[name]):
            raise DataError(
                f"{caches[0].path} has no column {name!r} with {describe(shape)} per event "
                f"(it has: {', '.join(stored)})",
                expected="a column that the cache holds",
                remedy=f"{BUILD_AGAIN}{suggest(name, stored)}",
            )
    parts = []
    for cache in caches:
        try:
            with np.load(cache.path / TRUTH, allow_pickle=False) as file:
                parts.append({name: file[name] for name in columns})
            if any(len(values) != sum(cache.lengths) for values in parts[-1].values()):
                raise ValueError("another number of events than the records")
        except Exception as error:  # a damaged archive fails in as many ways as it has bytes
            raise damaged(cache.path / TRUTH, error) from error
    return {name: np.concatenate([part[name] for part in parts]) for name in columns}


def shard_name(number: int, total: int) -> str:
    """Returns the name that TFDS expects of a file of records."""
    return f"xec_events-{SPLIT}.array_record-{number:05d}-of-{total:05d}"


def open_caches(pattern: Pattern) -> list[Cache]:
    """Finds the caches behind a folder, a glob, or a list of these, `part2` before `part10`.

    Raises:
        DataError: Nothing there, or no cache.
        ConfigError: Caches with other contents, which cannot be one data set.
    """
    patterns = [pattern] if isinstance(pattern, str | os.PathLike) else list(pattern or [])
    expanded = [os.path.expanduser(os.path.expandvars(one)) for one in patterns]
    found = [name for one in expanded for name in ([one] if os.path.exists(one) else glob(one))]
    if not found:
        raise DataError(
            f"no cache of events at {pattern!r}, seen from {os.getcwd()}",
            expected="a folder that `python -m xec_jax.data.build` wrote",
            remedy="check the path; relative paths start in the working directory",
        )
    unique = {os.path.realpath(name): name for name in found}
    caches = [Cache.open(path) for path in sorted(map(Path, unique.values()), key=natural)]
    for cache in caches[1:]:
        for key, value in cache.content.items():
            if value != caches[0].content[key]:
                raise ConfigError(
                    f"{cache.path} was built with {key} {value}",
                    expected=f"{caches[0].content[key]}, as {caches[0].path}",
                    remedy="build them with the same options, or name one of them",
                )
    return caches


def damaged(path: Path, reason: object) -> DataError:
    """Returns what to say of a file that is not as it was written."""
    return DataError(
        f"{path} is damaged ({str(reason).splitlines()[0]})",
        expected="a file as `python -m xec_jax.data.build` wrote it",
        remedy=BUILD_AGAIN,
    )
