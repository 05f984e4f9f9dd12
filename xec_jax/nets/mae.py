"""The masked autoencoder: an encoder and one decoder per face, each fed by its face's token."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from xec_jax.geometry import GraphFace
from xec_jax.nets.encoder import XecEncoder
from xec_jax.nets.faces import CHANNELS
from xec_jax.nets.hexgraph import HexNeXtBlock
from xec_jax.nets.layers import ConvTranspose, Dense, LayerNorm, gelu, resize
from xec_jax.types import Array, wide


class GridDecoder(nn.Module):
    """Draws a rectangular face from its token: 4 x 4, 8 x 8, 16 x 16, then a bilinear resize.

    Every face comes from a 16 x 16 map, so the large inner face is a smooth picture by design.

    Attributes:
        shape: Rows and columns of the face.
        out: Channels to predict.
        width: Channels at 8 x 8; twice as many before, half as many after.
    """

    shape: tuple[int, int]
    out: int = 2
    width: int = 128
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, token: Array) -> Array:
        """Decodes (b d) to float32 (b h w out)."""
        y = Dense(2 * self.width * 16, self.dtype, name="project")(token)
        y = y.reshape(-1, 2 * self.width, 4, 4).transpose(0, 2, 3, 1)
        for i, width in enumerate((self.width, self.width // 2)):
            y = ConvTranspose(width, 2, self.dtype, name=f"up{i}")(y)
            y = gelu(LayerNorm(1e-5, axes=3, dtype=self.dtype, name=f"norm{i}")(y))
        y = ConvTranspose(self.out, 1, self.dtype, name="predict")(y)
        return resize(wide(y), self.shape)


class HexDecoder(nn.Module):
    """Predicts a graph face from its token, copied to all nodes and told apart by a table.

    Attributes:
        graph: The face.
        out: Channels to predict.
        width: Channels of a node.
        n_blocks: Number of HexNeXt blocks.
    """

    graph: GraphFace
    out: int = 2
    width: int = 128
    n_blocks: int = 2
    portable: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, token: Array) -> Array:
        """Decodes (b d) to float32 (b n out)."""
        shape = (self.graph.n_nodes, self.width)
        position = self.param("position", nn.initializers.normal(0.02), shape)
        y = Dense(self.width, self.dtype, name="stem")(token)
        y = y[:, None] + position.astype(self.dtype)
        for i in range(self.n_blocks):
            block = HexNeXtBlock(
                self.width, portable=self.portable, dtype=self.dtype, name=f"block{i}"
            )
            y = block(y, self.graph)
        y = LayerNorm(1e-5, dtype=self.dtype, name="norm")(y)
        return wide(Dense(self.out, self.dtype, name="predict")(y))


class MaskedAutoencoder(nn.Module):
    """Reconstructs the faces of the detector from the sensors that are not hidden.

    Attributes:
        encoder: Its faces are decoded, save those that ask not to be.
        decoder_dim: Width of the decoders.
        hex_decoder_dim: Width of those of graph faces, if another.
        predict_channels: Features to reconstruct, of `npho` and `time`.
    """

    encoder: XecEncoder
    decoder_dim: int = 128
    predict_channels: tuple[str, ...] = CHANNELS
    hex_decoder_dim: int | None = None

    @nn.compact
    def __call__(
        self, x: Array, hidden: Array | None = None, deterministic: bool = True
    ) -> dict[str, Array]:
        """Reconstructs events.

        Args:
            x: (b s 2), hidden sensors already filled with the sentinels.
            hidden: bool (b s), True for sensors that were hidden or are invalid.
            deterministic: False in training, where a key named `dropout` is needed.

        Returns:
            Per face name, float32 (b h w f) or (b n f), the channels in `predict_channels`.
        """
        tokens = self.encoder(x, hidden, deterministic)
        out, dtype = len(self.predict_channels), self.encoder.dtype
        faces = {}
        for i, face in enumerate(self.encoder.faces):
            if not face.is_decoded:
                continue
            common: dict[str, Any] = {"out": out, "dtype": dtype, "name": f"decoder_{face.name}"}
            if isinstance(face, GraphFace):
                width = self.hex_decoder_dim or self.decoder_dim
                portable = self.encoder.portable
                decode: nn.Module = HexDecoder(face, width=width, portable=portable, **common)
            else:
                decode = GridDecoder(face.shape, width=self.decoder_dim, **common)
            faces[face.name] = decode(tokens[:, i])
        return faces
