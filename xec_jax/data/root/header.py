"""What can be wrong with a ROOT file, in words that help: no reading beyond the first bytes."""

import difflib
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from xec_jax.errors import DataError

COPY_AGAIN = "copy or produce the file again, or take it out of the list"


@contextmanager
def data_errors(found: str) -> Iterator[None]:
    """Turns any exception into a `DataError` that begins with `found`."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise DataError(
            f"{found} ({type(error).__name__}: {reason})",
            expected="a complete, readable ROOT file",
            remedy=COPY_AGAIN,
        ) from error


def check_header(path: Path) -> None:
    """Looks at the first bytes of a file, where ROOT says how long the file is.

    Raises:
        DataError: The file is missing, empty, no ROOT file, or shorter than it says.
    """
    with data_errors(f"{path} cannot be opened"):
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(20)
    if size == 0:
        found = f"{path} is empty (0 bytes)"
    elif len(head) < 20 or head[:4] != b"root":
        found = f"{path} is not a ROOT file (it begins with {head[:4]!r}, not b'root')"
    else:
        version, _, end = struct.unpack(">iii", head[4:16])
        if version >= 10**6:  # files above 2 GB have offsets of eight bytes
            (end,) = struct.unpack(">q", head[12:20])
        if end <= size:
            return
        found = f"{path} is truncated: {size} of {end} bytes"
    raise DataError(found, expected="a complete ROOT file", remedy=COPY_AGAIN)


def suggest(name: str, names: Iterable[str]) -> str:
    """Returns a hint such as `: did you mean 'npho'?`, empty if nothing resembles `name`."""
    others = [other for other in names if other and other != name]
    siblings = [other for other in others if other in name or name in other]
    similar = difflib.get_close_matches(name, others, n=2, cutoff=0.5)
    found = list(dict.fromkeys(siblings + similar))[:3]
    return f": did you mean {' or '.join(map(repr, found))}?" if found else ""


def describe(shape: tuple[int, ...] | None) -> str:
    """Returns the shape of one event in words; None stands for any shape."""
    if shape is None:
        return "numbers"
    return "x".join(map(str, shape)) + " values" if shape not in ((), (1,)) else "one value"
