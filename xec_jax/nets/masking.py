"""Which sensors the autoencoder and the inpainter have to reconstruct."""

import jax
import jax.numpy as jnp

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
