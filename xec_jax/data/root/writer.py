"""Writes ROOT trees chunk by chunk, so that a file is either complete or absent."""

import contextlib
import errno
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import uproot
import xxhash

from xec_jax.errors import DataError, DiskError

Compression = Literal["zstd", "lz4", "zlib", "none"]
Layout = dict[str, tuple[np.dtype, tuple[int, ...]]]


class TreeFile:
    """A ROOT file under construction, which gets its name when everything is in it.

    Use it as a context: left without an error, the file is complete and replaces an existing
    one; left with one, nothing remains. Until then it has a hidden temporary name in the same
    folder. Memory holds one chunk at a time.

    Args:
        path: The file.
        compression: As in `write_tree`.
        identity: As in `write_tree`.

    Attributes:
        entries: Number of entries written so far, by tree.

    Raises:
        DiskError: The folder cannot be written, or the disk is full.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        compression: Compression = "zstd",
        identity: str | None = None,
    ) -> None:
        self.path, self._identity = Path(path), identity
        self.entries: dict[str, int] = {}
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        self._codec = {
            "zstd": _zstd_with_checksum(1),
            "lz4": uproot.LZ4(1),
            "zlib": uproot.ZLIB(1),
            "none": None,
        }[compression]
        self._trees: dict[str, tuple[Layout, Any]] = {}

    def __enter__(self) -> "TreeFile":
        def make_uuid() -> uuid.UUID:
            name = self._identity
            return uuid.uuid5(uuid.NAMESPACE_OID, name) if name else uuid.uuid1()

        with disk_errors(self.path):
            self._stream = self._temporary.open("w+b")
        try:
            with disk_errors(self.path):
                # A stream: uproot would take a colon in the path for a tree.
                options = {"compression": self._codec, "uuid_function": make_uuid}
                self._file = uproot.recreate(self._stream, **options)
        except BaseException:
            self._discard()
            raise
        return self

    def extend(self, chunk: Mapping[str, np.ndarray], tree: str = "tree") -> None:
        """Adds entries; the first chunk of a tree, which may be empty, says what its branches are.

        Raises:
            DataError: Arrays that do not fit each other, earlier ones, or a tree.
            DiskError: The disk is full.
        """
        found = _layout(chunk, self.path)
        if tree not in self._trees:
            with disk_errors(self.path):
                self._trees[tree] = found, self._file.mktree(tree, found)
            self.entries[tree] = 0
        layout, output = self._trees[tree]
        if found != layout:
            raise _changed(layout, found, self.path, self.entries[tree])
        n = len(next(iter(chunk.values())))
        if n:
            with disk_errors(self.path):
                output.extend(dict(chunk))
        self.entries[tree] += n

    def table(self, name: str, values: Mapping[str, float | str]) -> None:
        """Writes a tree of one entry whose branches are numbers (double) and texts (char*)."""
        branches = {
            key: "string" if isinstance(value, str) else np.dtype(np.float64)
            for key, value in values.items()
        }
        with disk_errors(self.path):
            tree = self._file.mktree(name, branches)
            tree.extend(
                {k: [v] if isinstance(v, str) else np.array([v], float) for k, v in values.items()}
            )

    def note(self, name: str, text: str) -> None:
        """Writes a text as TObjString."""
        with disk_errors(self.path):
            self._file[name] = text

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        try:
            if kind is None:
                with disk_errors(self.path):
                    self._stream.flush()
                    os.fsync(self._stream.fileno())
                    self._temporary.replace(self.path)
                    sync_folder(self.path.parent)
        finally:
            self._discard()

    def _discard(self) -> None:
        """Closes the temporary file and removes it where it still has its name."""
        # On a full disk, closing tries to write the rest again: not to hide the first error.
        with contextlib.suppress(OSError):
            self._stream.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)


def write_tree(
    path: str | Path,
    chunks: Iterable[Mapping[str, np.ndarray]],
    *,
    tree: str = "tree",
    compression: Compression = "zstd",
    identity: str | None = None,
    notes: Mapping[str, str] | None = None,
) -> int:
    """Writes one tree; an existing file is replaced once the new one is complete.

    Branches are fixed-size arrays with the types and trailing shapes of the first chunk; each
    chunk becomes one basket per branch. Memory holds one chunk at a time.

    Args:
        path: The file. While it is written it has a hidden temporary name in the same folder.
        chunks: Arrays by branch name, equal lengths on the first axis. 100 events or more per
            chunk keep the file fast to read.
        tree: Name of the tree.
        compression: `zstd` (ROOT 6.20 or newer) stores simulated events in 50 kB, as small as
            `zlib`, and writes nine times faster. All but `none` notice damaged bytes.
        identity: Text that the file's UUID is made from, for content that can be made again;
            random if not given.
        notes: Texts by name, written beside the tree as TObjString.

    Returns:
        Number of entries written.

    Raises:
        DataError: No chunk at all, or chunks that do not fit each other or a tree.
        DiskError: The folder cannot be written, or the disk is full.
    """
    with TreeFile(path, compression=compression, identity=identity) as file:
        for chunk in chunks:
            file.extend(chunk, tree)
        if not file.entries:
            raise DataError(f"no events for {path}", expected="at least one chunk")
        for name, text in (notes or {}).items():
            file.note(name, text)
    return file.entries[tree]


def _zstd_with_checksum(level: int) -> uproot.ZSTD:
    """Returns ZSTD whose frames end with a checksum, which all readers compare.

    The library and ROOT write none: one flipped bit in three would become other numbers. RFC 8878,
    section 3.1.1: bit 2 of the descriptor announces the low half of the XXH64 of the content.
    """
    codec = uproot.ZSTD(level)
    plain = codec.compress

    def compress(data: bytes) -> bytes:
        frame = bytearray(plain(data))
        frame[4] |= 0b100
        return bytes(frame) + (xxhash.xxh64_intdigest(data) & 0xFFFFFFFF).to_bytes(4, "little")

    codec.compress = compress  # a class of its own would have no number in the file
    return codec


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns the operating system's refusals to write `path` into a `DiskError`."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise DiskError(
            f"cannot write {path}: {error.strerror or error}",
            expected="free space on the disk" if full else "a folder that may be written",
            remedy="make room or choose another disk; nothing incomplete was left behind"
            if full
            else "choose another folder or ask for permission to write",
        ) from error


def sync_folder(folder: Path) -> None:
    """Makes a rename inside the folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _layout(chunk: Mapping[str, np.ndarray], path: Path) -> Layout:
    """Returns types and trailing shapes of the branches; refuses what no tree can hold."""
    lengths = {name: len(values) if np.ndim(values) else -1 for name, values in chunk.items()}
    if len(set(lengths.values())) != 1 or -1 in lengths.values():
        raise DataError(
            f"branches for {path} have lengths {lengths}",
            expected="one length for all branches",
        )
    for name, values in chunk.items():
        if values.dtype.kind not in "iufb" or values.dtype.itemsize > 8:
            raise DataError(
                f"branch {name!r} for {path} has type {values.dtype}",
                expected="booleans, integers or floats of at most 64 bits",
            )
    return {name: (values.dtype, values.shape[1:]) for name, values in chunk.items()}


def _changed(layout: Layout, found: Layout, path: Path, entries: int) -> DataError:
    names = sorted(layout.keys() | found.keys())
    name = next(name for name in names if layout.get(name) != found.get(name))
    return DataError(
        f"branch {name!r} for {path} is {found.get(name, 'absent')} at entry {entries}",
        expected=f"{layout.get(name, 'no such branch')}, as in the first chunk",
        remedy="give all chunks the same branches, types and shapes",
    )
