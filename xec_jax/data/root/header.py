"""What can be wrong with a ROOT file, in words that help: no reading beyond the first bytes."""

import difflib
import re
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from xec_jax.errors import DataError

MEASURED = re.compile("reco|pileup|cosmic", re.IGNORECASE)
COPY_AGAIN = "copy or produce the file again, or take it out of the list"
# Of the header from byte 8: fBEGIN, fEND, fNbytesName, fSeekInfo and fNbytesInfo.
HEADER, LARGE_HEADER = struct.Struct(">ii12xi5xii"), struct.Struct(">iq16xi5xqi")


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
            head = file.read(64)
    if size == 0:
        found = f"{path} is empty (0 bytes)"
    elif len(head) < 64 or head[:4] != b"root":
        found = f"{path} is not a ROOT file (it begins with {head[:4]!r}, not b'root')"
    else:
        (version,) = struct.unpack_from(">i", head, 4)
        # Files above 2 GB have offsets of eight bytes.
        header = LARGE_HEADER if version >= 10**6 else HEADER
        begin, end, name, info, info_size = header.unpack(head[8 : 8 + header.size])
        if end > size:
            found = f"{path} is truncated: {size} of {end} bytes"
        elif min(begin, name, info, info_size) < 0 or max(begin + name, info + info_size) > end:
            found = f"{path}: the header is damaged (it points outside of the file)"
        else:
            return
    raise DataError(found, expected="a complete ROOT file", remedy=COPY_AGAIN)


def suggest(name: str, names: Iterable[str]) -> str:
    """Returns a hint such as `: did you mean 'npho'?`, empty if nothing resembles `name`."""
    others = [other for other in names if other and other != name]
    if "truth" in name.lower():  # what was measured is no truth
        others = [other for other in others if not MEASURED.search(other)]

    def likeness(other: str) -> float:
        is_part = other in name or name in other
        return difflib.SequenceMatcher(None, name, other).ratio() + 0.35 * is_part

    best = sorted(others, key=likeness, reverse=True)[:3]
    least = max(0.55, likeness(best[0]) - 0.1) if best else 0
    found = [other for other in best if likeness(other) >= least]
    return f": did you mean {' or '.join(map(repr, found))}?" if found else ""


def describe(shape: tuple[int, ...] | None) -> str:
    """Returns the shape of one event in words; None stands for any shape."""
    if shape is None:
        return "numbers"
    return "x".join(map(str, shape)) + " values" if shape not in ((), (1,)) else "one value"
