"""From the `data` group of a config to sources."""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from xec_jax.data.dead_source import without_dead
from xec_jax.data.muons import Bundles, muon_source, read_bundles, split_showers
from xec_jax.data.reweight import bins_of, reweighted, zeros_of
from xec_jax.data.root.manifest import Pattern, resolve_paths
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
    if config.source == "bundles":
        return muon_source(_bundles(config, path), shuffle=shuffle and config.shuffle)
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
        found = f"data.source is {config.source!r}"
        raise ConfigError(found, expected="root or tfds, bundles for muons")
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


def read_bundle_sets(config: ConfigDict) -> tuple[Bundles, Bundles | None]:
    """Reads muon bundles for training and validation.

    Where `valid` is None, `valid_share` of the showers are held out for it; 0 for none.

    Raises:
        DataError: A file that cannot be used, or none at all.
    """
    train = _bundles(config, config.train)
    if config.valid is not None:
        return train, _bundles(config, config.valid)
    if not config.valid_share:
        return train, None
    return split_showers(train, config.valid_share, config.split_seed)


def _bundles(config: ConfigDict, path: Pattern) -> Bundles:
    bundles = read_bundles(resolve_paths(path, ".parquet"), max_ram_gb=config.max_ram_gb)
    return bundles.take(np.flatnonzero(bundles.counts)) if config.drop_empty else bundles


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
    if config.source == "bundles":
        bundles, held_out = read_bundle_sets(config)
        valid = {} if held_out is None else {"valid": muon_source(held_out)}
        return muon_source(bundles, shuffle=config.shuffle), valid
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
