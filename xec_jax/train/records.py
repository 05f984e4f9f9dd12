"""The record of a run: one JSON object per line, the source of every curve and table."""

import contextlib
import json
import logging
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from xec_jax.config import write_text
from xec_jax.errors import DiskError

log = logging.getLogger(__name__)

Record = dict[str, Any]


class JsonlFile:
    """A file of records that a full disk delays and does not harm.

    Lines that cannot be written wait in memory for the next one; the first failure is reported,
    the others are not.

    Args:
        path: The file; made with the first record.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: list[str] = []
        self._has_warned = False

    def append(self, record: Record) -> None:
        """Adds one line. Numbers that are not finite become null, which JSON can say."""
        self._waiting.append(_line(record))
        try:
            self._write()
        except OSError as error:
            if not self._has_warned:
                log.warning("cannot append to %s (%s): lines wait in memory", self.path, error)
            self._has_warned = True

    def close(self) -> None:
        """Writes what waits.

        Raises:
            DiskError: Lines could not be written and are lost.
        """
        try:
            self._write()
        except OSError as error:
            raise DiskError(
                f"cannot append to {self.path}: {error}",
                expected=f"room for the last {len(self._waiting)} lines, which are lost",
                remedy="free space; the checkpoints are not concerned",
            ) from error

    def _write(self) -> None:
        if not self._waiting:
            return
        rest = memoryview("".join(self._waiting).encode())
        start = None
        try:
            with self.path.open("ab", buffering=0) as file:
                start = file.tell()
                while rest:
                    rest = rest[file.write(rest) :]
        except OSError:
            if start is not None:  # a part of a line would spoil the one that follows
                with contextlib.suppress(OSError):
                    os.truncate(self.path, start)
            raise
        self._waiting.clear()


def write_jsonl(path: Path, records: Iterable[Record]) -> None:
    """Replaces the file by these records."""
    write_text(path, "".join(map(_line, records)))


def read_jsonl(path: Path) -> list[Record]:
    """Reads all records; a last line that a kill cut off is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def _line(record: Record) -> str:
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }
    return json.dumps(finite) + "\n"
