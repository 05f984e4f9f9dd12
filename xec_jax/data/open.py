"""From the `data` group of a config to sources."""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from xec_jax.data.dead_source import without_dead
from xec_jax.data.reweight import bins_of, reweighted, zeros_of
from xec_jax.data.root.manifest import Pattern
from xec_jax.data.root.source import RootSource
from xec_jax.data.source import Source
from xec_jax.data.tfds.source import TfdsSource
from xec_jax.data.truth import energy_scale
from xec_jax.errors import ConfigError


def open_source(
    config: ConfigDict,
    path: Pattern,
    *,
    wanted: Collection[str] = ("npho", "time"),
    shuffle: bool = False,
) -> Source:
    """Opens the files behind a path; all of them are looked at now, none is read.

    Args:
        config: The `data` group.
        path: File, folder, glob, or a list of these; for `tfds`, folders with caches.
        wanted: What the experiment reads, the keys of its spec. `npho` and `time` stand for
            `npho_branch` and `time_branch`, other names for the branches of that name; those of
            `extra_branches` come along.
        shuffle: Whether training batches come in a seeded random order.

    Raises:
        ConfigError: Unknown kind of source, or a cache that was built from other branches.
        DataError: A file that cannot be used, or none at all.
    """
    branches = [name for name in wanted if name not in ("npho", "time")]
    extra = tuple(dict.fromkeys([*branches, *config.extra_branches]))
    options: dict[str, Any] = {
        "npho_branch": config.npho_branch,
        "time_branch": config.time_branch if "time" in wanted else None,
        "extra": extra,
        "real": [name for name in branches if name not in config.extra_branches],
        "shuffle": shuffle and config.shuffle,
        "threads": config.num_threads,
        "fiducial": config.fiducial.to_dict(),
        "derive_relative": config.derive_relative,
        "scale": energy_scale(config, extra),
        "normalization": config.normalization.to_dict(),
        "strict_scheme": config.strict_scheme,
    }
    if config.source not in ("root", "tfds"):
        raise ConfigError(f"data.source is {config.source!r}", expected="root or tfds")
    source: Source
    if config.source == "tfds":
        source = TfdsSource(path, **options)
    else:
        source = RootSource(
            path,
            tree=config.tree_name,
            shuffle_buffer=config.shuffle_buffer,
            max_ram_gb=config.max_ram_gb,
            on_bad_file=config.on_bad_file,
            **options,
        )
    with _closed_on_error(source):
        return without_dead(source, config, path)


@contextlib.contextmanager
def _closed_on_error(source: Source) -> Iterator[None]:
    try:
        yield
    except BaseException:
        source.close()
        raise


def open_sources(
    config: ConfigDict, wanted: Collection[str] = ("npho", "time")
) -> tuple[Source, Mapping[str, Source]]:
    """Opens training and validation events; arguments as in `open_source`.

    Returns:
        The training source, and {"valid": source} or nothing where `valid` is None.

    Raises:
        ConfigError: Unknown kind of source.
        DataError: A file that cannot be used, or none at all.
    """
    train = open_source(
        config,
        config.train,
        wanted=[*wanted, *bins_of(config), *zeros_of(config).values()],
        shuffle=True,
    )
    with _closed_on_error(train):
        train = reweighted(train, config)
        if config.valid is None:
            return train, {}
        return train, {"valid": open_source(config, config.valid, wanted=wanted)}
