"""From the `data` group of a config to sources."""

from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from xec_jax.data.root import RootSource
from xec_jax.data.source import Source
from xec_jax.errors import ConfigError


def open_source(config: ConfigDict, path: str | Sequence[str], *, shuffle: bool) -> Source:
    """Opens the files behind a path; all of them are looked at now, none is read.

    Args:
        config: The `data` group.
        path: File, folder, glob, or a list of these.
        shuffle: Whether training batches come in a seeded random order.

    Raises:
        ConfigError: Unknown kind of source.
        DataError: A file that cannot be used, or none at all.
    """
    if config.source != "root":
        raise ConfigError(f"data.source is {config.source!r}", expected="root")
    return RootSource(
        path,
        tree=config.tree_name,
        npho_branch=config.npho_branch,
        time_branch=config.time_branch,
        extra=tuple(config.extra_branches),
        shuffle=shuffle and config.shuffle,
        shuffle_buffer=config.shuffle_buffer,
        max_ram_gb=config.max_ram_gb,
        threads=config.num_threads,
    )


def open_sources(config: ConfigDict) -> tuple[Source, Mapping[str, Source]]:
    """Opens training and validation events.

    Returns:
        The training source, and {"valid": source} or nothing where `valid` is None.

    Raises:
        ConfigError: Unknown kind of source.
        DataError: A file that cannot be used, or none at all.
    """
    train = open_source(config, config.train, shuffle=True)
    if config.valid is None:
        return train, {}
    return train, {"valid": open_source(config, config.valid, shuffle=False)}
