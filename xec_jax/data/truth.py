"""A few small branches of all events at once, for statistics before a training."""

import logging
from collections.abc import Iterable, Mapping

import numpy as np
from ml_collections import ConfigDict

from xec_jax.data.fiducial import BRANCH, cut
from xec_jax.data.invalid import rescale
from xec_jax.data.root.manifest import Manifest, Pattern, build_manifest, read_branch, resolve_paths
from xec_jax.data.tfds.folder import read_columns
from xec_jax.errors import ConfigError, DataError
from xec_jax.geometry import N_SENSORS

logger = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[int, ...] | None]


def read_truth(
    config: ConfigDict,
    branches: Shapes,
    path: Pattern | None = None,
    *,
    manifest: Manifest | None = None,
) -> dict[str, np.ndarray]:
    """Reads branches of all events that count, in the order of the files.

    Args:
        config: The `data` group, with the cut and the unit of energies.
        branches: Shape of one event; None for what the first file has.
        path: The files or caches; those of the training by default.
        manifest: ROOT files that are open already, with these branches.

    Returns:
        float64 (n, ...) per branch, energies in GeV, markers and NaN as they are in the files.
        Events that cannot be read are left out, if they are to be skipped.

    Raises:
        DataError: A file cannot be read or lacks a branch, no event is inside of the cut, or
            none can be read.
    """
    found, entries, _ = find_truth(config, branches, path, manifest=manifest)
    arrays = {name: found[name][entries].astype(np.float64) for name in branches}
    for name, factor in energy_scale(config, branches).items():
        rescale(arrays[name], factor)
    return arrays


def find_truth(
    config: ConfigDict,
    branches: Shapes,
    path: Pattern | None = None,
    *,
    manifest: Manifest | None = None,
) -> tuple[dict[str, np.ndarray], np.ndarray, Manifest | None]:
    """Reads branches of all events, and tells which of them count; see `read_truth`.

    Returns:
        Arrays of all events, in the unit of the files; the numbers, from 0, of the events that
        count; and the ROOT files, or None for caches.
    """
    path = config.train if path is None else path
    limits = {name: limit for name, limit in config.fiducial.items() if limit is not None}
    wanted = {**branches, **({BRANCH: (3,)} if limits else {})}
    ranges: set[tuple[int, int]] = set()  # that cannot be read
    if config.source == "tfds":
        manifest, arrays = None, read_columns(path, wanted)
    else:
        if manifest is None or not set(wanted) <= set(manifest.columns):
            manifest = _files(config, wanted, path)
        arrays = {}
        for name in wanted:
            arrays[name], lost = read_branch(manifest, name, on_bad_file=config.on_bad_file)
            ranges.update(lost)
    counts = np.ones(len(next(iter(arrays.values()))), bool)
    for start, stop in ranges:
        counts[start:stop] = False
    if not counts.all():
        found = f"{path}: {np.count_nonzero(~counts)} of {len(counts)} events have no readable "
        found += " and ".join(wanted)
        if not counts.any():
            raise DataError(found, remedy="copy or produce the files again")
        logger.warning("%s; they are skipped", found)
    if limits:
        counts &= cut(arrays[BRANCH], limits)
    return arrays, np.flatnonzero(counts), manifest


def _files(config: ConfigDict, wanted: Shapes, path: Pattern) -> Manifest:
    """Returns the files that events are read from."""
    needed = dict(wanted)
    if config.on_bad_file == "skip":  # files that cannot be used for other reasons do not count
        derived = config.derive_relative and config.npho_branch == "relative_npho"
        sensors = ("npho" if derived else config.npho_branch, config.time_branch)
        needed |= {name: (N_SENSORS,) for name in sensors if name}
    return build_manifest(
        resolve_paths(path), config.tree_name, needed, on_bad_file=config.on_bad_file
    )


def is_energy(branch: str) -> bool:
    """Tells whether a branch holds energies, which `data.energy_unit` is about."""
    return branch.startswith("energy")


def energy_scale(config: ConfigDict, branches: Iterable[str]) -> dict[str, float]:
    """Returns the factors that turn energies of the files into GeV, for those of some branches.

    Raises:
        ConfigError: A unit that is not known.
    """
    factors = {"GeV": 1.0, "MeV": 1e-3}
    if config.energy_unit not in factors:
        raise ConfigError(f"data.energy_unit is {config.energy_unit!r}", expected="GeV or MeV")
    factor = factors[config.energy_unit]
    return {} if factor == 1 else {name: factor for name in branches if is_energy(name)}
