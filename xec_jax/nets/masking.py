"""Which sensors the autoencoder and the inpainter have to reconstruct."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from xec_jax.types import Array, Key


def event_noise(key: Key, position: Array, n_sensors: int) -> Array:
    """Draws uniform noise in [0, 1) with a key of its own for every event.

    Args:
        key: Key of this step.
        position: int (b,), place of each event in the global batch. Folded into the key, so the
            noise of an event does not depend on how the batch is cut over devices and
            micro-batches.
        n_sensors: Numbers per event.

    Returns:
        float32 (b s).
    """
    return jax.vmap(lambda p: jax.random.uniform(jax.random.fold_in(key, p), (n_sensors,)))(
        position
    )


def hide_sensors(
    maskable: Array,
    noise: Array,
    ratio: float | Array,
    favored: Array | None = None,
    favor: float = 1.0,
) -> Array:
    """Chooses the sensors to hide: those with the smallest noise among the maskable ones.

    With n maskable sensors exactly floor(float32(n) ratio) are hidden, in every event. The
    count stays exact when two draws tie (likely among 4760 float32 numbers), because ranks
    decide and not a threshold.

    Args:
        maskable: bool (b s), True where the truth is known and may be asked for.
        noise: float32 (b s), see `event_noise`.
        ratio: Part of the maskable sensors to hide, in [0, 1]; a scalar or one per event (b,).
        favored: bool (b s), sensors to hide more often, for instance those with enough photons
            for a time.
        favor: Factor by which their noise is divided; above 1 hides more of them.

    Returns:
        bool (b s), True where hidden; a subset of `maskable`.

    Source:
        He et al. 2022, arXiv:2111.06377, section 3; counts and `favor` as in the predecessor.
    """
    if favored is not None and favor != 1:
        noise = jnp.where(favored, noise / favor, noise)
    n_maskable = maskable.sum(-1).astype(jnp.float32)
    n_hidden = (n_maskable * jnp.asarray(ratio, jnp.float32)).astype(jnp.int32)
    order = jnp.argsort(jnp.where(maskable, noise, jnp.inf), -1, stable=True)
    rank = jnp.argsort(order, -1, stable=True)
    return rank < n_hidden[..., None]


def hide_per_face(
    maskable: Array,
    noise: Array,
    ratios: Mapping[int, float],
    sensor_face: np.ndarray,
    choose: Callable[[Array, Array, float], Array] = hide_sensors,
) -> Array:
    """Hides a share of its own on every face, with exact counts on each of them.

    Args:
        maskable: bool (b s).
        noise: float32 (b s).
        ratios: Face code -> share to hide; nothing is hidden on other faces.
        sensor_face: (s,), face code of each sensor.
        choose: (maskable, noise, ratio) -> hidden.

    Returns:
        bool (b s).
    """
    hidden = jnp.zeros_like(maskable)
    for code, ratio in ratios.items():
        if ratio > 0:
            hidden |= choose(maskable & (sensor_face == code), noise, ratio)
    return hidden


def hide_flat(
    maskable: Array, noise: Array, ratio: float | Array, photons: Array, refill: Array
) -> Array:
    """Hides bright and faint sensors alike: spread over the logarithm of the photon count.

    With k sensors to hide, as many as `hide_sensors` would, the range from 0.01 photons to the
    brightest maskable sensor of the event is cut into k equal steps of the logarithm. One sensor
    of each step that has any is hidden, and from all others as many as it takes to make k.

    Args:
        maskable: bool (b s).
        noise: float32 (b s), decides inside a step.
        ratio: Part of the maskable sensors to hide.
        photons: float32 (b s); may hold anything where not maskable.
        refill: float32 (b s), second noise, decides among the others. With the first one, a
            sensor that lost in a sparse step would have worse chances than one in a full step.

    Returns:
        bool (b s), a subset of `maskable`.
    """
    k = (maskable.sum(-1).astype(jnp.float32) * jnp.asarray(ratio, jnp.float32)).astype(jnp.int32)
    faintest = jnp.log(0.01)
    value = jnp.log(jnp.maximum(jnp.where(maskable, photons, 0.0), 0.01)) - faintest
    top = value.max(-1, keepdims=True) + 1e-3
    step = jnp.minimum((value / top * k[:, None]).astype(jnp.int32), k[:, None] - 1)
    step = jnp.where(maskable, step, maskable.shape[-1])
    order = jnp.lexsort((noise, step), axis=-1)
    is_sorted_first = jnp.diff(jnp.take_along_axis(step, order, -1), axis=-1, prepend=-2) != 0
    is_first = jnp.take_along_axis(is_sorted_first, jnp.argsort(order, -1), -1)
    return hide_sensors(maskable, jnp.where(is_first, -1.0, refill), ratio)
