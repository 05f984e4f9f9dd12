"""Which files a data set consists of, and proof that each of them can be read as asked.

The manifest is made before anything expensive starts: it opens every file once, so a bad file
stops the job in its first seconds and not in its third hour. Its hash tells whether a resumed
run still sees the same events.
"""

import glob
import hashlib
import logging
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from itertools import pairwise
from pathlib import Path

import numpy as np

from xec_jax.data.root.file import Column, RootFile
from xec_jax.errors import DataError

logger = logging.getLogger(__name__)

Pattern = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def resolve_paths(pattern: Pattern, suffix: str = ".root") -> list[Path]:
    """Finds the data files that a user means.

    Args:
        pattern: A file, a folder (all files with the suffix in it), a glob (`**` descends into
            folders), or a list of these. `~` and environment variables are expanded. A name that
            exists is taken literally even if it contains brackets or stars.
        suffix: How the names of such files end.

    Returns:
        The files in natural order (`run_2` before `run_10`), each once, however it is reached.

    Raises:
        DataError: A pattern is empty or matches nothing.
    """
    patterns = [pattern] if isinstance(pattern, str | os.PathLike) else list(pattern or [])
    if not patterns:
        raise DataError(
            "no data files are named",
            expected="a file, a folder, a glob or a list of these",
            remedy="set the path of the data",
        )
    found = [path for one in patterns for path in _matches(os.fspath(one), suffix)]
    unique = {path.resolve(): path for path in sorted(found, key=natural, reverse=True)}
    return sorted(unique.values(), key=natural)


def _matches(pattern: str, suffix: str) -> list[Path]:
    """Returns the files that one pattern stands for, at least one."""
    if not pattern.strip():
        raise DataError(
            f"the path {pattern!r} of the data is empty",
            expected="a file, a folder or a glob",
            remedy="set the path of the data",
        )
    if re.match(r"\w+://", pattern):
        raise DataError(
            f"{pattern} is a URL",
            expected="files on a local or mounted disk",
            remedy="copy the files or mount their storage",
        )
    expanded = os.path.expanduser(os.path.expandvars(pattern))
    named = [expanded] if os.path.exists(expanded) else glob.glob(expanded, recursive=True)
    folders = [name for name in named if os.path.isdir(name)]
    files = [name for name in named if name not in folders]
    for folder in folders:
        files += glob.glob(os.path.join(glob.escape(folder), f"*{suffix}"))
    if named != [expanded]:  # a wide glob also catches logs and notes beside the data
        files = [name for name in files if name.endswith(suffix)] or files
    if files:
        return [Path(name) for name in files]
    shown = f"{pattern!r}" + (f" (expanded: {expanded!r})" if expanded != pattern else "")
    is_cache = any(os.path.exists(os.path.join(folder, "metadata.json")) for folder in folders)
    if is_cache and suffix == ".root":
        raise DataError(
            f"{pattern!r} is no folder of ROOT files, but a cache of xec_jax.data.build",
            expected="at least one ROOT file",
            remedy="set data.source=tfds to train on it; other commands read ROOT files",
        )
    found = f"no {suffix} file in the folder" if folders else "nothing matches"
    raise DataError(
        f"{found} {shown}, seen from the working directory {os.getcwd()}",
        expected="at least one ROOT file" if suffix == ".root" else f"at least one {suffix} file",
        remedy="check the path; relative paths start in the working directory"
        + ("; an environment variable in it is not set" if "$" in expanded else ""),
    )


def natural(path: Path) -> list[str | int]:
    """Sort key of paths that compares runs of digits as numbers."""
    parts = re.split(r"(\d+)", str(path))
    return [int(part) if part.isdecimal() else part for part in parts]


@dataclass(frozen=True)
class FileEntry:
    """One file of a data set.

    Attributes:
        path: Where it is.
        size: Bytes.
        mtime_ns: Time of the last change, nanoseconds since 1970.
        uuid: Identifier that ROOT gave it when it was written.
        entries: Number of events.
        clusters: Entries at which it can be cut without reading anything twice, from 0 to
            `entries`: the baskets of all branches that matter begin there.
    """

    path: Path
    size: int
    mtime_ns: int
    uuid: str
    entries: int
    clusters: tuple[int, ...]


@dataclass(frozen=True)
class Manifest:
    """The files of a data set, one after the other, as one range of entries.

    Attributes:
        tree: Name of the tree in every file.
        files: Files with at least one event.
        columns: Shape of one event and dtype of each branch, one that holds the numbers of all
            files; `(1,)` counts as `()`. Optional branches that no file has are left out.
        left_out: Why files are missing here, by path, if bad files are to be skipped.
    """

    tree: str
    files: tuple[FileEntry, ...]
    columns: Mapping[str, tuple[tuple[int, ...], np.dtype]]
    left_out: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def starts(self) -> np.ndarray:
        """Entry of the data set at which each file begins, and the number of entries."""
        return np.cumsum([0] + [file.entries for file in self.files])

    @property
    def entries(self) -> int:
        """Number of events in all files."""
        return int(self.starts[-1])

    def locate(self, entry: int) -> tuple[int, int]:
        """Returns `(index of the file, entry in that file)` of an entry of the data set."""
        index = int(np.searchsorted(self.starts, entry, side="right")) - 1
        return index, entry - int(self.starts[index])

    def chunks(self, *, smallest: int, largest: int) -> list[tuple[int, int]]:
        """Cuts the data set into pieces that are read in one go.

        Args:
            smallest: Clusters with fewer events are read together with the next ones.
            largest: Clusters with more events are cut, although that decompresses them again
                for every part.

        Returns:
            Ranges `(start, stop)` of entries of the data set, in order, none across two files.
        """
        pieces = []
        for file, offset in zip(self.files, self.starts.tolist(), strict=False):
            start = 0
            for stop, after in zip(file.clusters[1:], [*file.clusters[2:], None], strict=True):
                if stop - start < smallest and after and after - start <= largest:
                    continue
                parts = -(-(stop - start) // largest)
                cuts = [start + (stop - start) * i // parts for i in range(parts + 1)]
                pieces += [(offset + a, offset + b) for a, b in pairwise(cuts)]
                start = stop
        return pieces

    def hash(self) -> str:
        """Returns the sha256 (hex) of names, sizes, entries and identifiers of the files.

        Independent of folder and time stamps, so that copied data stay the same data.
        """
        digest = hashlib.sha256()
        for file in self.files:
            line = f"{file.path.name}\0{file.size}\0{file.entries}\0{file.uuid}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


Lost = dict[tuple[int, int], str]
"""Ranges of entries of a data set that cannot be read, and why."""
Shapes = Mapping[str, tuple[int, ...] | None]
Columns = dict[str, tuple[tuple[int, ...], np.dtype]]


def build_manifest(
    paths: Sequence[Path],
    tree: str,
    branches: Shapes,
    optional: Shapes | None = None,
    *,
    on_bad_file: str = "error",
) -> Manifest:
    """Opens every file and checks that it has the wanted branches.

    Args:
        paths: Local ROOT files.
        tree: Name of the TTree or RNTuple.
        branches: Branches that every file must have, with the shape of one event; None stands
            for the shape that the first file has.
        optional: Branches that either all files or none have.
        on_bad_file: `error`, or `skip`: bad files are left out with a warning, and so are
            optional branches that only some files have.

    Raises:
        DataError: A file cannot be read, lacks a branch or holds something else in it, or no
            file has events.
    """
    optional = optional or {}
    files: list[FileEntry] = []
    empty: list[Path] = []
    left_out: dict[str, str] = {}
    columns: Columns = {}
    refused: dict[str, DataError] = {}
    for path in paths:
        try:
            with RootFile(path, tree) as file:
                if file.entries == 0:
                    empty.append(path)
                    continue
                found = {name: _find(file, name, columns, branches) for name in branches}
                wrong: dict[str, DataError] = {}
                for name in optional:
                    try:
                        if _is_there(file, name, columns, files):
                            found[name] = _find(file, name, columns, optional)
                    except DataError as error:
                        wrong[name] = error
                if wrong and on_bad_file == "error":
                    raise next(iter(wrong.values()))
                files.append(_entry(file, list(found.values())))
                refused = {**wrong, **refused}
                for name, column in found.items():
                    columns[name] = _one_event(column, columns.get(name))
        except DataError as error:
            if on_bad_file == "error":
                raise
            left_out[str(path)] = error.found
            logger.warning("left out, since data.on_bad_file is skip: %s", error.found)
    if not files:
        reasons = [f"tree {tree!r} has no entries in {', '.join(map(str, empty))}"] * bool(empty)
        raise DataError(
            "\n".join([*reasons, *list(left_out.values())[:5]]),
            expected="at least one event",
            remedy="produce the files again or name others",
        )
    for path in empty:
        logger.warning("%s: tree %r has no entries; the file is skipped", path, tree)
    for name, reason in refused.items():
        columns.pop(name, None)
        logger.warning("events come without %r: %s", name, reason.found)
    return Manifest(tree, tuple(files), columns, left_out)


def _find(file: RootFile, name: str, columns: Columns, shapes: Shapes) -> Column:
    """Returns a branch of the shape that is asked for, or that the files before have."""
    return file.column(name, columns[name][0] if name in columns else shapes[name])


def _is_there(file: RootFile, name: str, columns: Columns, others: Collection[FileEntry]) -> bool:
    """Tells whether a file has an optional branch, which all files before have or none."""
    is_there = file.has(name)
    if others and is_there != (name in columns):
        has, has_not = ("has", "have not") if is_there else ("has no", "have")
        raise DataError(
            f"{file.path}: tree {file.tree!r} {has} branch {name!r}, the files before {has_not}",
            expected="the same branches in all files",
            remedy=f"do not ask for {name!r}, or use files that all have it",
        )
    return is_there


def _one_event(
    column: Column, others: tuple[tuple[int, ...], np.dtype] | None
) -> tuple[tuple[int, ...], np.dtype]:
    """Returns shape and dtype of one event; producers differ in how they write one number."""
    if others is None:
        return column.shape if column.shape != (1,) else (), column.dtype
    dtype = np.result_type(column.dtype, others[1])
    if dtype.kind == "f" and "f" not in column.dtype.kind + others[1].kind:
        dtype = np.dtype(np.int64)  # uint64 and int64 have no common type
    return others[0], dtype


def _entry(file: RootFile, columns: Sequence[Column]) -> FileEntry:
    """Returns what a file adds to a data set with these columns."""
    stat = file.path.stat()
    return FileEntry(
        path=file.path,
        size=stat.st_size,
        mtime_ns=stat.st_mtime_ns,
        uuid=file.uuid,
        entries=file.entries,
        clusters=_clusters(columns, file.entries),
    )


def _clusters(columns: Sequence[Column], entries: int) -> tuple[int, ...]:
    """Returns the entries at which the baskets of all branches with many bytes begin.

    Branches with less than 1 % of the bytes do not count: their baskets span thousands of
    events, and reading one twice costs nothing.
    """
    sizes = [column.dtype.itemsize * int(np.prod(column.shape)) for column in columns]
    heavy = [
        column.offsets
        for column, size in zip(columns, sizes, strict=True)
        if size >= 0.01 * sum(sizes)
    ]
    common = reduce(np.intersect1d, heavy)
    return tuple(int(entry) for entry in np.union1d(common, [0, entries]))


def read_branch(
    manifest: Manifest, name: str, *, on_bad_file: str = "error"
) -> tuple[np.ndarray, Lost]:
    """Reads one small branch of all events, in the order of the files.

    Args:
        manifest: The files, with this branch as a column.
        name: The branch.
        on_bad_file: `error`, or `skip`: entries that cannot be read become NaN.

    Returns:
        float64 `[entries ...]`, markers and NaN as they are in the files; and why ranges of
        entries cannot be read.

    Raises:
        DataError: A file cannot be read, and nothing is to be skipped.
    """
    values = np.full((manifest.entries, *manifest.columns[name][0]), np.nan)
    lost: Lost = {}
    for entry, offset in zip(manifest.files, manifest.starts.tolist(), strict=False):
        with RootFile(entry.path, manifest.tree) as file:
            for start, stop in pairwise(file.column(name).offsets.tolist()):
                rows = values[offset + start : offset + stop]
                try:
                    file.read_into(name, rows, start, stop)
                except DataError as error:
                    if on_bad_file == "error":
                        raise
                    rows[...] = np.nan
                    lost[offset + start, offset + stop] = error.found
    return values, lost
