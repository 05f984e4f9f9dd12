"""The transformer that lets the tokens of the faces exchange what they know."""

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.initializers import xavier_uniform, zeros
from jax import lax
from jax.typing import DTypeLike

from xec_jax.nets.layers import Dense, LayerNorm, gelu
from xec_jax.nets.positions import rotate
from xec_jax.types import Array


class SelfAttention(nn.Module):
    """Multi-head self-attention over (b t d), softmax in float32.

    Attributes:
        n_heads: Heads of width d / n_heads each.
        dropout: Probability of dropping an attention weight in training.
        rotary: Turn queries and keys by the place of their token.
    """

    n_heads: int = 8
    dropout: float = 0.0
    rotary: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, deterministic: bool = True) -> Array:
        """Maps (b t d) to the same shape."""
        _, t, d = x.shape
        project = Dense(3 * d, self.dtype, xavier_uniform(), zeros, name="qkv")
        query, key, value = jnp.moveaxis(
            project(x).reshape(-1, t, 3, self.n_heads, d // self.n_heads), 2, 0
        )
        if self.rotary:
            query, key = rotate(query), rotate(key)
        exact = jnp.promote_types(self.dtype, jnp.float32)
        scores = jnp.einsum("bqkc,btkc->bkqt", query, key, preferred_element_type=exact)
        scores = scores * (d // self.n_heads) ** -0.5
        weights = jnp.exp(scores - lax.stop_gradient(scores.max(-1, keepdims=True)))
        weights = weights / weights.sum(-1, keepdims=True)
        weights = nn.Dropout(self.dropout)(weights.astype(self.dtype), deterministic)
        y = jnp.einsum("bkqt,btkc->bqkc", weights, value).reshape(-1, t, d)
        return Dense(d, self.dtype, bias_init=zeros, name="out")(y)


class FusionLayer(nn.Module):
    """Attention and feed-forward part, each followed by the sum with its input and a LayerNorm.

    Attributes:
        n_heads: Attention heads.
        hidden_width: Width inside the feed-forward part; 4 d if not given.
        dropout: Rate in all four places: attention weights, both sums, inside the feed-forward.
        rotary: As in `SelfAttention`.
    """

    n_heads: int = 8
    hidden_width: int | None = None
    dropout: float = 0.1
    rotary: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, deterministic: bool = True) -> Array:
        """Maps (b t d) to the same shape."""
        drop = nn.Dropout(self.dropout, deterministic=deterministic)
        width = x.shape[-1]
        attention = SelfAttention(
            self.n_heads, self.dropout, self.rotary, self.dtype, name="attention"
        )
        y = drop(attention(x, deterministic))
        x = LayerNorm(1e-5, dtype=self.dtype, name="attention_norm")(x + y)
        y = gelu(Dense(self.hidden_width or 4 * width, self.dtype, name="expand")(x))
        y = drop(Dense(width, self.dtype, name="project")(drop(y)))
        return LayerNorm(1e-5, dtype=self.dtype, name="norm")(x + y)


class FusionTransformer(nn.Module):
    """Post-norm transformer encoder over (b t d), without a mask and without a final norm.

    Unlike in the predecessor, whose layers start as copies of one another, every layer draws its
    own initial weights.
    """

    n_layers: int = 2
    n_heads: int = 8
    hidden_width: int | None = None
    dropout: float = 0.1
    rotary: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, deterministic: bool = True) -> Array:
        """Maps (b t d) to the same shape."""
        x = x.astype(self.dtype)
        for i in range(self.n_layers):
            layer = FusionLayer(
                self.n_heads,
                self.hidden_width,
                self.dropout,
                self.rotary,
                self.dtype,
                name=f"layer{i}",
            )
            x = layer(x, deterministic)
        return x
