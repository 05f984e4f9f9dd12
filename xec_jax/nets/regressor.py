"""The regressor: an encoder and one small head per quantity, each fed by all tokens."""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from xec_jax.nets.encoder import XecEncoder
from xec_jax.nets.layers import Dense, LayerNorm, gelu
from xec_jax.types import Array, wide


class TaskHead(nn.Module):
    """Turns the tokens of an event into a few numbers.

    Attributes:
        out: How many numbers.
        hidden: Width of both hidden layers.
        dropout: Rate in training, after the first of them.
        dtype: Type of the arithmetic in the first layer, which is nearly all of it; what follows
            is float32.
    """

    out: int
    hidden: int = 256
    dropout: float = 0.2
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array, deterministic: bool = True) -> Array:
        """Maps (b t d) to float32 (b out)."""
        y = tokens.reshape(tokens.shape[0], -1)
        y = wide(Dense(self.hidden, self.dtype, name="stem")(y))
        y = gelu(LayerNorm(1e-5, name="norm")(y))
        y = nn.Dropout(self.dropout)(y, deterministic)
        y = gelu(Dense(self.hidden, name="expand")(y))
        return Dense(self.out, name="predict")(y)


class Regressor(nn.Module):
    """Predicts several quantities of an event at once.

    Attributes:
        encoder: Shared by all heads.
        heads: Name of each head and its number of outputs.
        hidden: Width of the heads.
        dropout: Dropout rate of the heads in training; the encoder has its own.
    """

    encoder: XecEncoder
    heads: Mapping[str, int]
    hidden: int = 256
    dropout: float = 0.2

    @nn.compact
    def __call__(
        self, x: Array, hidden: Array | None = None, deterministic: bool = True
    ) -> dict[str, Array]:
        """Predicts.

        Args:
            x: (b s 2), normalized npho and time.
            hidden: bool (b s), True for sensors that must not be seen; None to show all.
            deterministic: False in training, where a key named `dropout` is needed.

        Returns:
            Per head, float32 (b out).
        """
        tokens = self.encoder(x, hidden, deterministic)
        outputs = {}
        for name, out in self.heads.items():
            head = TaskHead(out, self.hidden, self.dropout, self.encoder.dtype, name=f"head_{name}")
            outputs[name] = head(tokens, deterministic)
        return outputs
