"""Inpainting heads of the rectangular faces: per cell, and per sensor on the fine grid."""

import math
from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from xec_jax.geometry import GridFace
from xec_jax.nets.convnext import ConvNeXtBlock
from xec_jax.nets.inpaint_attention import NO_SCORE, NeighborReadout, softmax
from xec_jax.nets.layers import Conv, ConvTranspose, Dense, gelu, sum_by_axis
from xec_jax.nets.neighbors import box_neighbors
from xec_jax.types import Array, wide

HeadType = Literal["per_face", "masked_attention", "global_only"]


@dataclass(frozen=True, eq=False)
class SensorRegions:
    """Where the sensors of a fine grid are.

    Attributes:
        sensors: int32 (m,), sensor ids.
        rectangles: int32 (m, 4), row0, row1, column0, column1 before pooling, half open.
    """

    sensors: np.ndarray
    rectangles: np.ndarray

    def pixels(self, face: GridFace) -> tuple[np.ndarray, np.ndarray]:
        """Returns the pixels of each sensor after pooling, row by row.

        The bounds are divided and rounded down, as in the predecessor; a sensor has at least one
        pixel.

        Returns:
            int32 (m, k), index into the flattened face, and bool (m, k), False past the end.
        """
        pool, shape = np.repeat(face.pool, 2), np.repeat(face.shape, 2)
        bounds = self.rectangles // pool
        starts = np.minimum(bounds[:, ::2], shape[::2] - 1)
        stops = np.clip(bounds[:, 1::2], starts + 1, shape[::2])
        index = np.arange(shape[0] * shape[2]).reshape(face.shape)
        cells = [
            index[r0:r1, c0:c1].ravel() for (r0, c0), (r1, c1) in zip(starts, stops, strict=True)
        ]
        table = np.zeros((len(cells), max(map(len, cells))), np.int32)
        exists = np.zeros(table.shape, bool)
        for row, found in enumerate(cells):
            table[row, : len(found)], exists[row, : len(found)] = found, True
        return table, exists


class GroupNorm(nn.Module):
    """Normalizes (b h w c) over all cells and over groups of neighboring channels.

    Source:
        Wu and He 2018, arXiv:1803.08494.
    """

    n_groups: int = 8
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps (b h w c) to the same shape."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        y = wide(x).reshape(*x.shape[:3], self.n_groups, -1)
        axes = (1, 2, 4)
        n = math.prod(y.shape[axis] for axis in axes)
        y = y - sum_by_axis(y, axes) / n
        y = y * lax.rsqrt(sum_by_axis(y * y, axes) / n + self.epsilon)
        return (y.reshape(x.shape) * scale + bias).astype(self.dtype)


class GridContext(nn.Module):
    """Features of every cell from the values around it and the face's token."""

    width: int = 64
    n_blocks: int = 2
    portable: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, cells: Array, token: Array) -> Array:
        """Maps (b h w f) and (b c) to (b h w width)."""
        token = jnp.broadcast_to(token[:, None, None], (*cells.shape[:3], token.shape[-1]))
        y = jnp.concatenate([cells.astype(self.dtype), token], -1)
        y = Conv(self.width, 3, 1, 1, self.dtype, name="mix")(y)
        y = gelu(GroupNorm(dtype=self.dtype, name="norm")(y))
        for i in range(self.n_blocks):
            block = ConvNeXtBlock(
                self.width, portable=self.portable, dtype=self.dtype, name=f"block{i}"
            )
            y = block(y)
        return y


class GridHead(nn.Module):
    """Predicts every cell of a rectangular face.

    Attributes:
        out: Channels to predict.
        head_type: `per_face` predicts from the features of the cell, `masked_attention` from
            those of the cells around it that were seen, `global_only` from the token alone.
        width: Channels inside.
    """

    out: int = 2
    head_type: HeadType = "per_face"
    width: int = 64
    portable: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, cells: Array, token: Array, hidden: Array) -> Array:
        """Maps cells (b h w f), a token (b d), hidden cells bool (b h w) to (b h w out)."""
        token = gelu(Dense(self.width, self.dtype, name="token")(token))
        if self.head_type == "global_only":
            y = jnp.broadcast_to(token[:, None, None], (*cells.shape[:3], self.width))
            y = ConvTranspose(self.width, dtype=self.dtype, name="spread")(y)
            y = gelu(GroupNorm(dtype=self.dtype, name="norm")(y))
            y = gelu(Conv(self.width, 3, 1, 1, self.dtype, name="mix")(y))
        else:
            context = GridContext(
                self.width, portable=self.portable, dtype=self.dtype, name="context"
            )
            y = context(cells, token)
        if self.head_type == "masked_attention":
            readout = NeighborReadout(self.out, self.width, self.dtype, name="readout")
            return readout(y, token, hidden, box_neighbors)
        y = gelu(Conv(self.width // 2, 3, 1, 1, self.dtype, name="hidden")(y))
        return wide(Conv(self.out, 1, dtype=self.dtype, name="predict")(y))


class FineGridHead(nn.Module):
    """Predicts the sensors of a face that is shown on a finer grid.

    A sensor reads the features of the pixels in its rectangle, weighted by a learned score.

    Attributes:
        face: The fine grid.
        regions: Where its sensors are.
        out: Channels to predict.
        head_type: `global_only` predicts from the token alone, the same for all sensors.
        width: Channels inside.
    """

    face: GridFace
    regions: SensorRegions
    out: int = 2
    head_type: HeadType = "per_face"
    width: int = 64
    portable: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, cells: Array, token: Array) -> Array:
        """Maps pixels (b h w f) and a token (b d) to float32 (b m out), m sensors."""
        n_sensors, width = len(self.regions.sensors), self.width
        token = gelu(Dense(width, self.dtype, name="token")(token))
        if self.head_type == "global_only":
            y = gelu(Dense(width, self.dtype, name="global0")(token))
            y = gelu(Dense(width, self.dtype, name="global1")(y))
            y = gelu(Dense(width // 2, self.dtype, name="hidden")(y))[:, None]
        else:
            context = GridContext(width, portable=self.portable, dtype=self.dtype, name="context")
            table, exists = self.regions.pixels(self.face)
            y = context(cells, token).reshape(-1, self.face.shape[0] * self.face.shape[1], width)
            scores = wide(Dense(1, self.dtype, name="score")(y)[..., 0])
            scores = jnp.where(exists, jnp.take(scores, table, axis=1, mode="clip"), NO_SCORE)
            y = jnp.take(y, table, axis=1, mode="clip")
            y = jnp.einsum("bmk,bmkc->bmc", softmax(scores).astype(self.dtype), y)
            token = jnp.broadcast_to(token[:, None], (*y.shape[:2], width))
            y = jnp.concatenate([y, token], -1)
            y = gelu(Dense(width, self.dtype, name="hidden")(y))
        y = wide(Dense(self.out, self.dtype, name="predict")(y))
        return jnp.broadcast_to(y, (y.shape[0], n_sensors, self.out))
