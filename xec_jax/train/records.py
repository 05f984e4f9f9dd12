"""The record of a run: one JSON object per line, the source of every curve and table."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from xec_jax.config import write_text
from xec_jax.errors import DiskError

Record = dict[str, Any]


def append(path: Path, record: Record) -> None:
    """Adds one line. Numbers that are not finite become null, which JSON can say.

    Raises:
        DiskError: The file cannot be written.
    """
    try:
        with path.open("a") as file:
            file.write(_line(record))
    except OSError as error:
        raise DiskError(f"cannot append to {path}: {error}") from error


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
