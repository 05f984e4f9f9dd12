"""What can be found wrong with a config on a login node: without data, without devices."""

from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from xec_jax.data.root.manifest import Pattern, resolve_paths
from xec_jax.data.tfds.folder import open_caches
from xec_jax.errors import ConfigError
from xec_jax.tasks.base import example_batch, make_task
from xec_jax.train import xla
from xec_jax.train.mesh import check_mode
from xec_jax.train.optim import make_optimizer
from xec_jax.train.schedules import make_schedule
from xec_jax.train.trackers import make_trackers
from xec_jax.train.trainer import check_numbers


def check_config(config: ConfigDict) -> None:
    """Builds the experiment of a config and traces its network; nothing is computed.

    Raises:
        ConfigError: A value that task or engine cannot use, a pattern that finds no parameter.
    """
    task = make_task(config)
    check_numbers(config)
    check_mode(config.train.parallel, config.train.mesh.model)
    check_files(config.data)
    xla.check(config.train)
    make_trackers(config, Path())  # checks their names
    schedule = make_schedule(config.optim, steps_per_epoch=1, epochs=config.train.epochs)
    tx = make_optimizer(config.optim, schedule, task.frozen)
    example = jax.tree.map(jnp.asarray, example_batch(task.spec, 2))
    jax.eval_shape(lambda: tx.init(task.init(jax.random.PRNGKey(0), example)))


def check_files(data: ConfigDict) -> None:
    """Checks that validation events do not come without training events.

    Raises:
        ConfigError: They do.
    """
    if data.train is None and data.valid is not None:
        raise ConfigError(
            f"data.valid is {data.valid!r}, but data.train is not set",
            expected="both, or neither for the simulated demonstration",
        )


def shared_files(data: ConfigDict) -> list[Path]:
    """Returns the files that training and validation both read, under whatever names.

    Raises:
        DataError: A path that matches nothing.
    """
    if data.valid is None:
        return []
    files = {_identity(path): path for path in _files(data, data.train)}
    again = {_identity(path) for path in _files(data, data.valid)}
    return [path for key, path in files.items() if key in again]


def _files(data: ConfigDict, pattern: Pattern) -> list[Path]:
    if data.source == "tfds":
        return [path for cache in open_caches(pattern) for path in cache.files]
    return resolve_paths(pattern, ".parquet" if data.source == "bundles" else ".root")


def _identity(path: Path) -> tuple[int, int]:
    """Two names of a file, linked in whatever way, have this in common."""
    stat = path.stat()
    return stat.st_dev, stat.st_ino
