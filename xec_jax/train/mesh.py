"""Which devices train, and how a batch is laid over them."""

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from xec_jax.errors import ConfigError
from xec_jax.types import Batch

Mode = Literal["jit", "pmap"]
AXIS = "data"


def make_mesh(n_devices: int | None = None) -> Mesh:
    """Builds the one-dimensional mesh of the data-parallel axis.

    Axes are of type Auto: with explicit axes, which newer JAX makes by default, every gather on
    a sharded array would need an annotation, and sensor maps and graphs are gathers.

    Args:
        n_devices: How many devices to use; all if None or 0.

    Raises:
        ConfigError: More devices asked for than there are.
    """
    devices = jax.devices()
    n = n_devices or len(devices)
    if not 0 < n <= len(devices):
        raise ConfigError(
            f"train.devices is {n}",
            expected=f"1 to {len(devices)} ({devices[0].platform})",
            remedy="0 takes all devices",
        )
    return Mesh(np.array(devices[:n]), (AXIS,), axis_types=(AxisType.Auto,))


def check_mode(mode: str) -> Mode:
    """Returns the parallel mode if it is known.

    Raises:
        ConfigError: Neither jit nor pmap.
    """
    if mode not in get_args(Mode):
        raise ConfigError(f"train.parallel is {mode!r}", expected="jit or pmap")
    return mode  # type: ignore[return-value]


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of whatever every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_putter(mesh: Mesh, mode: Mode) -> Callable[[Mapping[str, np.ndarray]], Batch]:
    """Returns the function that copies a host batch onto the mesh without waiting for it.

    Events are cut into contiguous parts, one per device. In pmap mode the arrays get a leading
    device axis.
    """
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))

    def put(batch: Mapping[str, np.ndarray]) -> Batch:
        if mode == "pmap":
            batch = {k: v.reshape(mesh.size, -1, *v.shape[1:]) for k, v in batch.items()}
        return jax.device_put(dict(batch), sharding)

    return put
