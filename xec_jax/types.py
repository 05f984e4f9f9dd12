"""The words that all rooms of the house share: arrays, batches, and sums that are divided once.

Axis letters in shape annotations, the same everywhere: `b` events, `s` sensors (4760), `f`
sensor features (0 npho, 1 time), `h w` rows and columns of a face, `t` tokens (faces), `d`
width, `k` heads, `n e g` nodes, edges, graphs, `q` parameters theta, `c` condition features,
`m` samples drawn, `p` wire planes, `l` layers.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
ArrayLike = jax.Array | np.ndarray
Key = jax.Array
Params = Any
Batch = Mapping[str, Array]


class Mean(NamedTuple):
    """A quantity that adds up over events, micro-batches, devices and hosts.

    Keeping sum and weight apart until the very end is what makes one device, many devices and
    gradient accumulation compute the same number: a mean of per-device means is another
    objective.

    Attributes:
        total: Scalar, sum of weight x value.
        weight: Scalar, sum of weights. Never depends on the parameters.
    """

    total: Array
    weight: Array


Terms = Mapping[str, Mean]
Metrics = dict[str, Mean]
LossFn = Callable[[Params, Batch, Key], tuple[Terms, Metrics]]
"""Loss terms and metrics. The loss is the sum over terms of total / weight over the whole batch."""

PredictFn = Callable[..., dict[str, Array]]
"""(params, batch, key=None) -> arrays with a leading event axis."""

InspectFn = Callable[[Params, Batch, Key], tuple[dict[str, Array], Terms, Metrics]]
"""Arrays with a leading event axis beside the loss terms and metrics of the same events."""


def wide(x: ArrayLike) -> Array:
    """Returns x for sums and other delicate arithmetic: in float32, or in float64 if it is that."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
