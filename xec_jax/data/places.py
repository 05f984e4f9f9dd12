"""Where an event of a data set is, for messages about it."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from xec_jax.data.root.manifest import Pattern
from xec_jax.data.truth import find_truth


def place_of(
    config: ConfigDict, branches: Mapping[str, tuple[int, ...]], path: Pattern, row: int
) -> str:
    """Names file and entry of an event, in words.

    Args:
        config: The `data` group, with the cut.
        branches: What was read by `read_truth`.
        path: The files or caches that it was read from.
        row: Its place in the arrays of `read_truth`, in which events outside of the cut lack.
    """
    _, entries, manifest = find_truth(config, branches, path)
    event = int(entries[row])
    if manifest is None:
        return f"event {event} of the cache"
    file, entry = manifest.locate(event)
    return f"entry {entry} of {manifest.files[file].path}"
