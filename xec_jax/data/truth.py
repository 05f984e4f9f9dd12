"""A few small branches of all events at once, for statistics before a training."""

from collections.abc import Mapping

import numpy as np
from ml_collections import ConfigDict

from xec_jax.data.manifest import Pattern, build_manifest, resolve_paths
from xec_jax.data.root_file import RootFile


def read_truth(
    config: ConfigDict,
    branches: Mapping[str, tuple[int, ...] | None],
    path: Pattern | None = None,
) -> dict[str, np.ndarray]:
    """Reads branches of all events, in the order of the files.

    Args:
        config: The `data` group.
        branches: Shape of one event; None for what the first file has.
        path: The files; those of the training by default.

    Returns:
        float64 (n, ...) per branch, markers and NaN as they are in the files.

    Raises:
        DataError: A file cannot be read or lacks a branch.
    """
    manifest = build_manifest(
        resolve_paths(config.train if path is None else path), config.tree_name, branches
    )
    arrays = {
        name: np.empty((manifest.entries, *manifest.columns[name][0]), np.float64)
        for name in branches
    }
    for entry, start in zip(manifest.files, manifest.starts.tolist(), strict=False):
        with RootFile(entry.path, manifest.tree) as file:
            for name, array in arrays.items():
                file.read_into(name, array[start : start + entry.entries], 0, entry.entries)
    return arrays
