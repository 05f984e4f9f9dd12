"""Lists of dead channels: sensors that give no usable number, in all runs or run by run.

A list is a text file: one sensor id (0 to 4759) per line, `#` starts a comment. Ids after a line
`run 430000` hold for that run alone, ids before the first such line for all runs. A file without
runs holds for every event, and one without ids says that nothing is dead.
"""

import hashlib
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from xec_jax.config import write_text
from xec_jax.errors import ConfigError, DataError
from xec_jax.geometry import FACES, INVALID_ABOVE, N_SENSORS, design_positions

logger = logging.getLogger(__name__)

DeadChannels = Mapping[int | None, np.ndarray]
"""Dead sensors, bool (s,), per run; a single entry under None holds for all runs."""


def read_dead(path: str | os.PathLike[str]) -> DeadChannels:
    """Reads a list of dead channels; repeated ids and runs collapse with a warning.

    Raises:
        DataError: No such file, or a line that is neither an id in 0..4759 nor a run.
    """
    ids: defaultdict[int | None, Counter[int]] = defaultdict(Counter)
    run: int | None = None
    sections: Counter[int] = Counter()
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if not (text := line.partition("#")[0].strip()):
                    continue
                if found := re.fullmatch(r"run\s+([0-9]{1,18})", text):
                    run = int(found[1])
                    sections[run] += 1
                elif re.fullmatch(r"[0-9]{1,9}", text) and int(text) < N_SENSORS:
                    ids[run][int(text)] += 1
                else:
                    raise DataError(
                        f"{path}, line {number}: {text[:40]!r} is no sensor",
                        expected=f"a whole number from 0 to {N_SENSORS - 1}, `run NUMBER`, or a "
                        "comment after #",
                        remedy="correct this line",
                    )
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "no text"
        raise DataError(
            f"cannot read the list of dead channels {path}: {why}; working directory {os.getcwd()}",
            expected="a text file with one sensor id per line",
            remedy="check the path; relative paths start in the working directory",
        ) from error
    if repeated := [run for run, n in sections.items() if n > 1]:
        logger.warning("%s: run %s begins several times; its parts are joined", path, repeated[0])
    if repeated := [sensor for found in ids.values() for sensor, n in found.items() if n > 1]:
        logger.warning(
            "%s: %d ids are repeated, such as %d; they count once", path, len(repeated), repeated[0]
        )
    always = _mask(ids[None])
    return {run: always | _mask(ids[run]) for run in sections} or {None: always}


def write_dead(
    path: str | os.PathLike[str], patterns: DeadChannels, notes: Sequence[str] = ()
) -> None:
    """Writes a list of dead channels; the file is complete or absent.

    Args:
        path: The file; an existing one is replaced.
        patterns: Dead sensors per run.
        notes: Comments at its top: where the list is from.

    Raises:
        DataError: No pattern at all, which is not the same as nothing dead.
        DiskError: The folder cannot be written or the disk is full.
    """
    if not patterns:
        raise DataError(f"no run to write to {path}", expected="a pattern for one run or for all")
    lines = [f"# {line}" for note in notes for line in note.splitlines()]
    for run, dead in sorted(patterns.items(), key=lambda item: item[0] or 0):
        title = "all runs" if run is None else f"run {run}"
        lines.append(f"{'# ' if run is None else ''}{title}  # {describe(dead)}")
        lines += map(str, np.flatnonzero(dead))
    write_text(Path(path), "\n".join(lines) + "\n")


def mask(
    patterns: DeadChannels, run: int | None, name: str = "the list of dead channels"
) -> np.ndarray:
    """Returns the dead sensors of a run, bool (s,).

    Args:
        patterns: Dead sensors per run.
        run: Its number; None where it is not known, which only a list for all runs allows.
        name: Where the patterns come from, for the message.

    Raises:
        DataError: The list does not know the run: that is not the same as nothing dead.
    """
    if None in patterns:
        return patterns[None]
    if run in patterns:
        return patterns[run]
    known = [number for number in patterns if number is not None]
    near = sorted(sorted(known, key=lambda number: abs(number - (run or 0)))[:4])
    raise DataError(
        f"{name} does not hold run {run}",
        expected=f"one of its {len(known)} runs, like {', '.join(map(str, near))}, or a list for "
        "all runs (without `run` lines)",
        remedy="add the run to the list, or choose the pattern of another run",
    )


def patterns_of(
    invalid: Mapping[int | None, np.ndarray], events: Mapping[int | None, int], *, above: float
) -> DeadChannels:
    """Decides from counts which sensors are dead; the one place of this decision.

    Args:
        invalid: Per run, the events (s,) in which a sensor had no usable photon count
            (`is_invalid`).
        events: Per run, the number of events; runs without any are left out.
        above: A sensor is dead if more than this share of the run's events is invalid, [0, 1).

    Raises:
        ConfigError: `above` out of its range.
    """
    if not 0 <= above < 1:
        raise ConfigError(f"the share of invalid events is {above}", expected="a number in [0, 1)")
    return {run: invalid[run] > above * n for run, n in sorted(events.items()) if n}


def is_invalid(npho: np.ndarray) -> np.ndarray:
    """Tells which photon counts are no usable numbers: markers, NaN and infinite ones.

    Counts of 0 and below are usable here: faint light and a subtracted pedestal make them.
    """
    return ~(np.abs(npho) <= INVALID_ABOVE)


def per_face(dead: np.ndarray) -> dict[str, int]:
    """Counts the dead sensors of each face, in the order of `geometry.FACES`."""
    counts = np.bincount(_faces()[dead], minlength=len(FACES))
    return dict(zip(FACES, counts.tolist(), strict=True))


def describe(dead: np.ndarray) -> str:
    """Returns a pattern in words, like `12 of 4760 sensors dead: inner 10, us 2`."""
    counts = {name: n for name, n in per_face(dead).items() if n}
    faces = ", ".join(f"{name} {n}" for name, n in counts.items())
    return f"{sum(counts.values())} of {len(dead)} sensors dead" + (f": {faces}" if faces else "")


def digest(patterns: DeadChannels) -> str:
    """Returns a sha256 (hex) of what a list says, whatever its comments and its order."""
    text = hashlib.sha256()
    for run, dead in sorted(patterns.items(), key=lambda item: item[0] or 0):
        text.update(f"{run}:".encode() + np.packbits(dead).tobytes())
    return text.hexdigest()


def _mask(ids: Counter[int]) -> np.ndarray:
    dead = np.zeros(N_SENSORS, bool)
    dead[list(ids)] = True
    return dead


@lru_cache
def _faces() -> np.ndarray:
    """Face codes int32 (s,), that no survey changes."""
    return design_positions().face
