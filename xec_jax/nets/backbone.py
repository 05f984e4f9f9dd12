"""The convolutional network that turns any rectangular face into one token."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from xec_jax.nets.convnext import ConvNeXtBlock
from xec_jax.nets.layers import Conv, LayerNorm, resize, resize_mask
from xec_jax.types import Array

TOKEN_GRID = (4, 4)
"""Rows and columns of the last feature map, whatever the size of the face."""


class FaceBackbone(nn.Module):
    """Stem, two blocks, downsampling, three blocks, resize to 4 x 4, flatten.

    The same parameters serve faces of all sizes. Hidden cells are zero at the input; the deeper
    maps get the face's mask by nearest-neighbor resizing.

    Attributes:
        width: Channels before the downsampling, twice as many after it.
        zero_hidden: Zero hidden cells at the input, too, and not in the blocks alone.
    """

    width: int = 32
    zero_hidden: bool = True
    drop_path: float = 0.0
    portable: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, hidden: Array | None = None, deterministic: bool = True) -> Array:
        """Encodes one face.

        Args:
            x: (b h w f), at least 5 x 5 cells.
            hidden: bool (b h w), True where the network must not see the cell.
            deterministic: False in training.

        Returns:
            (b, 32 width), the 4 x 4 map flattened channel by channel.
        """
        x = x.astype(self.dtype)
        if hidden is not None and self.zero_hidden:
            x = x * (~hidden[..., None]).astype(x.dtype)
        x = Conv(self.width, 4, 1, 1, self.dtype, name="stem")(x)
        x = LayerNorm(1e-6, dtype=self.dtype, name="stem_norm")(x)
        x = self._stage("stage1", 2, x, hidden, deterministic)
        x = LayerNorm(1e-6, dtype=self.dtype, name="down_norm")(x)
        x = Conv(2 * self.width, 2, 2, 0, self.dtype, name="down")(x)
        x = self._stage("stage2", 3, x, hidden, deterministic)
        x = resize(x, TOKEN_GRID)
        # Channel-major, the order in which all foreign weights of the later layers are stored.
        return x.transpose(0, 3, 1, 2).reshape(-1, 16 * x.shape[-1])

    def _stage(
        self, name: str, n_blocks: int, x: Array, hidden: Array | None, deterministic: bool
    ) -> Array:
        if hidden is not None:
            hidden = resize_mask(hidden, x.shape[1:3])
        for i in range(n_blocks):
            block = ConvNeXtBlock(
                x.shape[-1], self.drop_path, self.portable, self.dtype, name=f"{name}_block{i}"
            )
            x = block(x, hidden, deterministic)
        return x
