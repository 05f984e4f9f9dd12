"""Which devices train, and how batch and state are laid over them."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from xec_jax.errors import ConfigError
from xec_jax.types import Batch

Mode = Literal["jit", "pmap"]
DATA, MODEL = "data", "model"
PMAP = "devices"  # the axis of a pmapped step
EVENTS = PartitionSpec((DATA, MODEL))  # every device has events of its own
SMALLEST_SPLIT = 2**14  # elements; gathering less costs more than holding it everywhere


def make_mesh(data: int = 0, model: int = 1) -> Mesh:
    """Builds the mesh of all devices that train, over all processes.

    Axes are of type Auto: with explicit axes, which newer JAX makes by default, every gather on
    a sharded array would need an annotation, and sensor maps and graphs are gathers.

    Args:
        data: Groups of devices that hold the whole state; 0 takes all devices.
        model: Devices in such a group; each holds a part of the state.

    Raises:
        ConfigError: Numbers that do not fit the devices.
    """
    devices = jax.devices()
    n = len(devices)
    if model < 1 or model > n or (data == 0 and n % model):
        raise ConfigError(
            f"train.mesh.model is {model}, with {n} device(s) ({devices[0].platform})",
            expected="a divisor of the number of devices",
            remedy="1 keeps the whole state on every device",
        )
    data = data or n // model
    if data < 1 or data * model > n:
        raise ConfigError(
            f"train.mesh.data is {data} and train.mesh.model is {model}",
            expected=f"a product of 1 to {n}, the number of devices ({devices[0].platform})",
            remedy="train.mesh.data=0 takes all devices",
        )
    shares = Counter(device.process_index for device in devices[: data * model])
    if list(shares.values()) != [data * model // jax.process_count()] * jax.process_count():
        raise ConfigError(
            f"train.mesh takes {data * model} of {n} devices, of {jax.process_count()} processes "
            + ", ".join(map(str, shares.values())),
            expected="all devices, and as many in each process",
            remedy="set train.mesh.data=0, and start the processes alike",
        )
    grid = np.array(devices[: data * model]).reshape(data, model)
    return Mesh(grid, (DATA, MODEL), axis_types=(AxisType.Auto,) * 2)


def check_mode(mode: str, model: int) -> Mode:
    """Returns the parallel mode if it is known and can divide the state among `model` devices.

    Raises:
        ConfigError: Neither jit nor pmap, or pmap with a divided state.
    """
    if mode not in get_args(Mode):
        raise ConfigError(f"train.parallel is {mode!r}", expected="jit or pmap")
    if mode == "pmap" and model > 1:
        raise ConfigError(
            f"train.mesh.model is {model} with train.parallel=pmap",
            expected="1: under pmap every device holds the whole state",
            remedy="set train.parallel=jit to divide the state",
        )
    return mode  # type: ignore[return-value]


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of whatever every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(mesh: Mesh, shapes: Any, *, smallest: int = SMALLEST_SPLIT) -> Any:
    """Decides how parameters, optimizer moments and averages are divided over the model axis.

    Each array is cut along its largest dimension that the axis divides, so that a device holds
    1 / `train.mesh.model` of it. What is small, or cannot be cut evenly, stays whole.

    Args:
        mesh: From `make_mesh`.
        shapes: Tree of arrays or `ShapeDtypeStruct`, the state or a part of it.
        smallest: Elements from which an array is cut.

    Returns:
        The same tree of shardings.
    """
    parts = mesh.shape[MODEL]

    def one(array: Any) -> NamedSharding:
        cut = [axis for axis, length in enumerate(array.shape) if length % parts == 0]
        if parts == 1 or array.size < smallest or not cut:
            return replicated(mesh)
        longest = max(cut, key=lambda axis: array.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*(None,) * longest, MODEL))

    return jax.tree.map(one, shapes)


def batch_putter(mesh: Mesh, mode: Mode) -> Callable[[Mapping[str, np.ndarray]], Batch]:
    """Returns the function that copies this process's part of a batch onto its devices.

    Events are cut into contiguous parts, one per device, in the order of the mesh. In pmap mode
    the arrays get a leading axis over the devices of this process. The copy is not waited for.
    """
    if mode == "pmap":
        local = _pmap_mesh(mesh)
        return lambda batch: jax.device_put(
            {k: v.reshape(local.size, -1, *v.shape[1:]) for k, v in batch.items()},
            NamedSharding(local, PartitionSpec(PMAP)),
        )
    sharding = NamedSharding(mesh, EVENTS)
    return lambda batch: jax.make_array_from_process_local_data(sharding, dict(batch))


def local_copy(tree: Any, mesh: Mesh) -> Any:
    """Returns the arrays whole on one device of this process, for figures and predictions.

    With several processes all of them must call it. The copy outlives the arrays that it is
    made of, which the next step may overwrite.
    """
    if not all(x.is_fully_replicated for x in jax.tree.leaves(tree)):
        tree = jax.device_put(tree, replicated(mesh))
    device = mesh.local_devices[0]
    return jax.tree.map(
        lambda x: jax.device_put(x.addressable_data(0), device, may_alias=False), tree
    )


def _pmap_mesh(mesh: Mesh) -> Mesh:
    """The mesh of a pmapped step: one axis over the devices of this process."""
    return Mesh(np.array(mesh.local_devices), (PMAP,), axis_types=(AxisType.Auto,))


def for_steps(tree: Any, mesh: Mesh, mode: Mode) -> Any:
    """Returns a state, or a part of it, in the form in which the steps return it themselves.

    A pmapped step that is given arrays over the mesh first is compiled twice by newer JAX, and
    refused by older ones, for its batch has another mesh. No data move.
    """
    if mode == "jit":
        return tree
    whole = replicated(_pmap_mesh(mesh))

    def one(x: jax.Array) -> jax.Array:
        parts = [shard.data for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(x.shape, whole, parts)

    return jax.tree.map(one, tree)


def global_arrays(tree: Any, mesh: Mesh) -> Any:
    """Returns arrays over the devices of all processes, as checkpoints with one writer need them.

    Only pmap with several processes makes other ones: every process holds arrays of its own,
    equal everywhere. No data move.
    """
    if jax.process_count() == 1:
        return tree

    def one(x: jax.Array) -> jax.Array:
        if x.sharding.num_devices == mesh.size:
            return x
        parts = [shard.data for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(x.shape, replicated(mesh), parts)

    return jax.tree.map(one, tree)
