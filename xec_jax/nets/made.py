"""Masked networks: the numbers of feature d depend on the features before it and on a context.

The units of a layer are sorted by what they may see, so that the masks are blocks and what they
would hide is never computed: of two features a quarter of the products, of many nearly half.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from xec_jax.errors import ConfigError
from xec_jax.nets.layers import Dense, fan_in_uniform
from xec_jax.types import Array


def degrees(n_features: int, hidden: int) -> np.ndarray:
    """Degree of each hidden unit, ascending from 0 to D - 1, in parts of about equal size.

    Feature d, counted from 1, has degree d. A hidden unit sees what has its degree or less, so
    those of degree 0 see the context alone. The output of feature d sees hidden units below its
    degree.

    Source:
        M. Germain et al. 2015, arXiv:1502.03509, section 4.1; a context has degree 0.
    """
    return np.arange(hidden) * n_features // hidden


class MADE(nn.Module):
    """Two masked hidden layers with ReLU; all outputs are 0 at the start.

    Attributes:
        outputs: Numbers per feature.
        hidden: Units of each hidden layer, at least as many as features.

    Raises:
        ConfigError: Fewer units than features.
    """

    outputs: int
    hidden: int

    @nn.compact
    def __call__(self, x: Array, context: Array, feature: int | None = None) -> Array:
        """Maps features (... d) and context (... e) to (... d outputs).

        With `feature`, to the (... outputs) of that one alone, which costs less.
        """
        d, hidden = x.shape[-1], self.hidden
        if hidden < d:
            raise ConfigError(
                f"{hidden} hidden units for {d} features of a flow",
                expected="at least as many units as features: without, no one sees the last ones",
            )
        degree = degrees(d, hidden)
        ends = np.searchsorted(degree, np.arange(d), side="right")  # of the units of each degree
        zeros = nn.initializers.zeros_init()
        init = fan_in_uniform(d + context.shape[-1])
        shown = self.param("features", init, (d, hidden))
        of_context = Dense(hidden, kernel_init=init, name="context")(context)
        kernel = self.param("kernel", fan_in_uniform(hidden), (hidden, hidden))
        bias = self.param("bias", fan_in_uniform(hidden), (hidden,))
        out_kernel = self.param("out_kernel", zeros, (hidden, d, self.outputs))
        out_bias = self.param("out_bias", zeros, (d, self.outputs))

        n = hidden if feature is None else ends[feature]  # units that matter
        mask = np.arange(1, d + 1)[:, None] <= degree[:n]
        y = jax.nn.relu(x @ (shown[:, :n] * mask) + of_context[..., :n])
        starts = [0, *ends[:-1]]
        parts = [
            y[..., :end] @ kernel[:end, start:end] + bias[start:end]
            for start, end in zip(starts, ends, strict=True)
            if end <= n
        ]
        y = jax.nn.relu(jnp.concatenate(parts, -1))
        wanted = range(d) if feature is None else [feature]
        found = [y[..., : ends[i]] @ out_kernel[: ends[i], i] + out_bias[i] for i in wanted]
        return jnp.stack(found, -2) if feature is None else found[0]
