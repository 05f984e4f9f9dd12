"""The fiducial volume: which events of a data set count at all.

Source: the fiducial cut of the MEG II analysis, |u| < 23.9 cm, |v| < 67.9 cm, on the first
interaction.
"""

from collections.abc import Mapping

import numpy as np

from xec_jax.data.root.manifest import Lost, Manifest, read_branch
from xec_jax.errors import ConfigError, DataError

BRANCH = "uvwTruth"
Limits = Mapping[str, float | None]


def inside(uvw: np.ndarray, limits: Limits) -> np.ndarray:
    """Tells which events lie in the fiducial volume.

    Args:
        uvw: First interaction in cm `[n 3]`; NaN and 1e10 lie outside of every cut.
        limits: In cm: `u` and `v` bound the absolute value, and `w` the depth, which must not
            be negative. None or an absent key: no cut.

    Returns:
        bool `[n]`.
    """
    result = np.ones(len(uvw), bool)
    for axis, name in enumerate("uvw"):
        limit = limits.get(name)
        if limit is None:
            continue
        values = uvw[:, axis]
        result &= (values >= 0) & (values <= limit) if name == "w" else np.abs(values) < limit
    return result


def cut_of(
    manifest: Manifest, limits: Limits, *, on_bad_file: str = "error"
) -> tuple[np.ndarray | None, Lost]:
    """Reads where the events of a data set are, and cuts.

    Args:
        manifest: The files, with the column `BRANCH`.
        limits: See `inside`.
        on_bad_file: See `read_branch`.

    Returns:
        bool, one per entry: True for events inside and for those that cannot be read, or None
        if there is no cut; and why ranges of entries cannot be read.

    Raises:
        ConfigError: A limit that is no length.
        DataError: The branch cannot be read, or no event is inside.
    """
    if all(limit is None for limit in limits.values()):
        return None, {}
    uvw, lost = read_branch(manifest, BRANCH, on_bad_file=on_bad_file)
    keep = cut(uvw, limits)
    for start, stop in lost:
        keep[start:stop] = True
    return keep, lost


def cut(uvw: np.ndarray, limits: Limits) -> np.ndarray:
    """Returns `inside`, bool `[n]`, of all events of a data set; arguments as there.

    Raises:
        ConfigError: A limit that is no length.
        DataError: No event is inside.
    """
    asked = {name: limit for name, limit in limits.items() if limit is not None}
    if any(name not in ("u", "v", "w") or not limit > 0 for name, limit in asked.items()):
        raise ConfigError(
            f"data.fiducial is {asked}",
            expected="lengths above 0 cm for u, v and w, or None",
        )
    keep = inside(uvw, asked)
    if not keep.any():
        raise DataError(
            f"none of {len(uvw)} events has its {BRANCH} inside data.fiducial {asked}",
            expected="events inside, in cm",
            remedy="widen the cut, or look at the unit of the branch",
        )
    return keep
