"""Writes ROOT trees chunk by chunk, so that a file is either complete or absent."""

import contextlib
import errno
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import uproot
import xxhash

from xec_jax.errors import DataError, DiskError

Compression = Literal["zstd", "lz4", "zlib", "none"]
Layout = dict[str, tuple[np.dtype, tuple[int, ...]]]


def write_tree(
    path: str | Path,
    chunks: Iterable[dict[str, np.ndarray]],
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
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")

    def make_uuid() -> uuid.UUID:
        return uuid.uuid5(uuid.NAMESPACE_OID, identity) if identity else uuid.uuid1()

    codec = {
        "zstd": _zstd_with_checksum(1),
        "lz4": uproot.LZ4(1),
        "zlib": uproot.ZLIB(1),
        "none": None,
    }[compression]
    layout: Layout | None = None
    entries = 0
    with disk_errors(path):
        stream = temporary.open("w+b")  # uproot would take a colon in the path for a tree
    try:
        with disk_errors(path):
            file = uproot.recreate(stream, compression=codec, uuid_function=make_uuid)
        for chunk in chunks:
            found = _layout(chunk, path)
            if layout is None:
                layout = found
                with disk_errors(path):
                    output = file.mktree(tree, layout)
            elif found != layout:
                raise _changed(layout, found, path, entries)
            with disk_errors(path):
                output.extend(dict(chunk))
            entries += len(next(iter(chunk.values())))
        if layout is None:
            raise DataError(f"no events for {path}", expected="at least one chunk")
        with disk_errors(path):
            for name, text in (notes or {}).items():
                file[name] = text
            stream.flush()
            os.fsync(stream.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
    finally:
        # On a full disk, closing tries to write the rest again: not to hide the first error.
        with contextlib.suppress(OSError):
            stream.close()
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return entries


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


def _layout(chunk: dict[str, np.ndarray], path: Path) -> Layout:
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
