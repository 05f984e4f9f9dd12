"""The ConvNeXt V2 block, on images here and on graphs in `hexgraph`."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from xec_jax.nets.depthwise import DepthwiseConv
from xec_jax.nets.layers import GRN, Dense, LayerNorm, drop_path, gelu
from xec_jax.types import Array


class NextBlock(nn.Module):
    """What both ConvNeXt blocks have in common: everything after the mixing of neighbors.

    Attributes:
        width: Channels in and out; four times as many inside.
        drop_path: Probability of skipping the branch of an event in training.
        portable: Use forms that export well; equal results.
        dtype: Type of the arithmetic.
    """

    width: int
    drop_path: float = 0.0
    portable: bool = False
    dtype: DTypeLike = jnp.float32

    def mix_channels(
        self, x: Array, mixed: Array, hidden: Array | None, deterministic: bool
    ) -> Array:
        """Adds LayerNorm, dense, GELU, GRN, dense of the mixed neighborhood to the input.

        Hidden positions enter the branch and the residual sum as zeros, but the branch's output
        is not masked: they leave the block with finite values and take part in GRN.

        Args:
            x: (b ... c), input of the block.
            mixed: (b ... c), after the mixing of neighbors.
            hidden: bool (b ...), True where the input must not be seen; None for nowhere.
            deterministic: False in training, where `drop_path` needs a key named `dropout`.
        """
        if hidden is not None:
            shown = (~hidden[..., None]).astype(x.dtype)
            x, mixed = x * shown, mixed * shown
        y = LayerNorm(1e-6, dtype=self.dtype, name="norm")(mixed)
        y = gelu(Dense(4 * self.width, self.dtype, name="expand")(y))
        y = GRN(dtype=self.dtype, name="grn")(y)
        y = Dense(self.width, self.dtype, name="project")(y)
        if self.drop_path > 0 and not deterministic:
            y = drop_path(y, self.drop_path, self.make_rng("dropout"))
        return x + y


class ConvNeXtBlock(NextBlock):
    """ConvNeXt V2 block with a 7 x 7 depthwise convolution on (b h w c).

    Source:
        Woo et al. 2023, arXiv:2301.00808, with the masked form of its autoencoder kept dense.
    """

    @nn.compact
    def __call__(self, x: Array, hidden: Array | None = None, deterministic: bool = True) -> Array:
        """Maps (b h w c) to the same shape; arguments as in `mix_channels`."""
        depthwise = DepthwiseConv(portable=self.portable, dtype=self.dtype, name="depthwise")
        return self.mix_channels(x, depthwise(x), hidden, deterministic)
