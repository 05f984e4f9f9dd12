"""Out of device memory: what to tell the user, and the cut that needs less of it."""

import contextlib
from collections.abc import Iterator

import jax
from ml_collections import ConfigDict

from xec_jax.errors import DeviceMemoryError


@contextlib.contextmanager
def explained(config: ConfigDict) -> Iterator[None]:
    """Turns the error with which XLA reports that memory is short into advice.

    Raises:
        DeviceMemoryError: In its place; while compiling, too.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise _advice(error, config) from None


def halved(config: ConfigDict) -> ConfigDict | None:
    """Returns the config with half the batch and twice the accumulation.

    The events per step, and with them the result, stay the same. None if the batch is odd.
    """
    if config.data.batch_size % 2:
        return None
    config = config.copy_and_resolve_references().unlock()
    config.data.batch_size //= 2
    config.train.grad_accum_steps *= 2
    return config.lock()


def as_found(config: ConfigDict, earlier: ConfigDict) -> ConfigDict:
    """Returns the config with the cut of the batch that an earlier start of the run has found."""
    old, new = ((c.data.batch_size, c.train.grad_accum_steps) for c in (earlier, config))
    if old[0] >= new[0] or old[0] * old[1] != new[0] * new[1]:
        return config
    config = config.copy_and_resolve_references().unlock()
    config.data.batch_size, config.train.grad_accum_steps = old
    return config.lock()


def _advice(error: BaseException, config: ConfigDict) -> DeviceMemoryError:
    size, accum = config.data.batch_size, config.train.grad_accum_steps
    smaller = halved(config)
    remedy = "lower data.batch_size or the size of the network"
    if smaller is not None:
        remedy = (
            f"--config.data.batch_size={smaller.data.batch_size} "
            f"--config.train.grad_accum_steps={smaller.train.grad_accum_steps} takes the same "
            "events per step with half the memory; --config.train.auto_batch=true does it by "
            "itself"
        )
    if config.train.precision == "float32":
        remedy += "; --config.train.precision=bfloat16 also saves memory"
    reason = " ".join(str(error).split())[:200]
    return DeviceMemoryError(
        f"a step with data.batch_size={size}, train.grad_accum_steps={accum} does not fit into "
        f"the memory of the devices{_memory()}: {reason}",
        remedy=remedy,
    )


def _memory() -> str:
    """Size of one device's memory, where the device says it."""
    stats = jax.local_devices()[0].memory_stats() or {}
    limit = stats.get("bytes_limit")
    return f" ({limit / 1e9:.1f} GB each)" if limit else ""
