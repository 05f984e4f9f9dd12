"""Masked networks: the numbers of feature d depend on the features before it and on a context."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from xec_jax.errors import ConfigError
from xec_jax.nets.layers import Dense, fan_in_uniform
from xec_jax.types import Array


def made_masks(n_features: int, hidden: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which inputs each unit may see: bool (inputs, units) of two hidden layers and the output.

    Feature d, counted from 1, has degree d. Hidden units have the degrees 0 to D - 1 in turn and
    see what has their degree or less, so those of degree 0 see the context alone. The output of
    feature d sees hidden units below its degree.

    Source:
        M. Germain et al. 2015, arXiv:1502.03509, section 4.1; a context has degree 0.
    """
    features, units = np.arange(1, n_features + 1), np.arange(hidden) % n_features
    return (
        features[:, None] <= units,
        units[:, None] <= units,
        units[:, None] < features,
    )


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
    def __call__(self, x: Array, context: Array) -> Array:
        """Maps features (... d) and context (... e) to (... d outputs)."""
        d = x.shape[-1]
        if self.hidden < d:
            raise ConfigError(
                f"{self.hidden} hidden units for {d} features of a flow",
                expected="at least as many units as features: without, no one sees the last ones",
            )
        first, second, last = made_masks(d, self.hidden)
        init = fan_in_uniform(d + context.shape[-1])
        shown = self.param("features", init, (d, self.hidden))
        y = x @ (shown * first) + Dense(self.hidden, kernel_init=init, name="context")(context)
        kernel = self.param("kernel", fan_in_uniform(self.hidden), (self.hidden, self.hidden))
        bias = self.param("bias", fan_in_uniform(self.hidden), (self.hidden,))
        y = jax.nn.relu(y) @ (kernel * second) + bias
        zeros = nn.initializers.zeros_init()
        kernel = self.param("out_kernel", zeros, (self.hidden, d, self.outputs))
        bias = self.param("out_bias", zeros, (d, self.outputs))
        return jnp.tensordot(jax.nn.relu(y), kernel * last[..., None], 1) + bias
