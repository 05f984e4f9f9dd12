"""A few small branches of all events at once, for statistics before a training."""

from collections.abc import Mapping

import numpy as np
from ml_collections import ConfigDict

from xec_jax.data.fiducial import BRANCH, cut
from xec_jax.data.invalid import rescale
from xec_jax.data.root.manifest import Pattern, build_manifest, read_branch, resolve_paths
from xec_jax.data.tfds.folder import read_columns
from xec_jax.errors import ConfigError

ENERGIES = ("energyTruth", "energyReco")
Shapes = Mapping[str, tuple[int, ...] | None]


def read_truth(
    config: ConfigDict, branches: Shapes, path: Pattern | None = None
) -> dict[str, np.ndarray]:
    """Reads branches of all events that count, in the order of the files.

    Args:
        config: The `data` group, with the cut and the unit of energies.
        branches: Shape of one event; None for what the first file has.
        path: The files or caches; those of the training by default.

    Returns:
        float64 (n, ...) per branch, energies in GeV, markers and NaN as they are in the files.

    Raises:
        DataError: A file cannot be read or lacks a branch, or no event is inside of the cut.
    """
    path = config.train if path is None else path
    limits = {name: limit for name, limit in config.fiducial.items() if limit is not None}
    wanted = {**branches, **({BRANCH: (3,)} if limits else {})}
    if config.source == "tfds":
        found = read_columns(path, wanted)
    else:
        policy = config.on_bad_file
        manifest = build_manifest(resolve_paths(path), config.tree_name, wanted, on_bad_file=policy)
        found = {name: read_branch(manifest, name, on_bad_file=policy) for name in wanted}
    arrays = {name: found[name].astype(np.float64) for name in branches}
    if limits:
        keep = cut(found[BRANCH], limits)
        arrays = {name: values[keep] for name, values in arrays.items()}
    for name, factor in energy_scale(config).items():
        if name in arrays:
            rescale(arrays[name], factor)
    return arrays


def energy_scale(config: ConfigDict) -> dict[str, float]:
    """Returns the factors that turn the energies of the files into GeV, by branch.

    Raises:
        ConfigError: A unit that is not known.
    """
    factors = {"GeV": 1.0, "MeV": 1e-3}
    if config.energy_unit not in factors:
        raise ConfigError(f"data.energy_unit is {config.energy_unit!r}", expected="GeV or MeV")
    factor = factors[config.energy_unit]
    return {} if factor == 1 else dict.fromkeys(ENERGIES, factor)
