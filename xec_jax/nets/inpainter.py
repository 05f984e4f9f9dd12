"""The inpainter: an encoder, and heads that say what the sensors should have measured.

Heads see the values of the sensors too, with sentinels in place of what was hidden, so that
neighbors count directly and not only through a face's token.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from xec_jax.errors import GeometryError
from xec_jax.geometry import Detector, Face, GraphFace
from xec_jax.nets.encoder import XecEncoder
from xec_jax.nets.faces import CHANNELS, face_input, face_mask
from xec_jax.nets.hexgraph import HexNeXtBlock
from xec_jax.nets.inpaint_attention import CrossAttentionHead, NeighborReadout
from xec_jax.nets.inpaint_grid import FineGridHead, GridHead, HeadType, SensorRegions
from xec_jax.nets.layers import Dense, LayerNorm, gelu
from xec_jax.nets.neighbors import node_neighbors
from xec_jax.types import Array, wide

HEAD_TYPES = ("per_face", "masked_attention", "cross_attention", "global_only")


class GraphHead(nn.Module):
    """Predicts every node of a graph face; `head_type` as in `GridHead`.

    Attributes:
        graph: The face.
        out: Channels to predict.
        width: Channels of a node.
        n_blocks: Number of HexNeXt blocks.
    """

    graph: GraphFace
    out: int = 2
    head_type: HeadType = "per_face"
    width: int = 96
    n_blocks: int = 3
    portable: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, nodes: Array, token: Array, hidden: Array) -> Array:
        """Maps nodes (b n f), a token (b d), hidden nodes bool (b n) to float32 (b n out)."""
        token = gelu(Dense(self.width, self.dtype, name="token")(token))
        shape = (*nodes.shape[:2], self.width)
        if self.head_type == "global_only":
            y = gelu(Dense(self.width, self.dtype, name="global0")(token))
            y = gelu(Dense(self.width, self.dtype, name="global1")(y))
            y = jnp.broadcast_to(y[:, None], shape)
        else:
            around = jnp.broadcast_to(token[:, None], shape)
            y = jnp.concatenate([nodes.astype(self.dtype), around], -1)
            y = Dense(self.width, self.dtype, name="stem")(y)
            for i in range(self.n_blocks):
                block = HexNeXtBlock(
                    self.width, portable=self.portable, dtype=self.dtype, name=f"block{i}"
                )
                y = block(y, self.graph)
        if self.head_type == "masked_attention":
            readout = NeighborReadout(self.out, self.width, self.dtype, name="readout")
            return readout(y, token, hidden, node_neighbors(self.graph))
        y = LayerNorm(1e-5, dtype=self.dtype, name="norm")(y)
        y = gelu(Dense(self.width // 2, self.dtype, name="hidden")(y))
        return wide(Dense(self.out, self.dtype, name="predict")(y))


class Inpainter(nn.Module):
    """Predicts all sensors of an event from those that are not hidden.

    In split mode, coarse map and centre patch of the outer face have a head each. The patch
    determines all its 30 sensors, the twelve that the coarse map shows too among them.

    Attributes:
        encoder: Its faces have one head each, `head_<face>`.
        detector: The detector whose faces those are.
        regions: Sensors of the fine grid, where there is one.
        head_type: One of `HEAD_TYPES`. `cross_attention` has one head for all sensors,
            `head_cross`.
        grid_width: Channels inside the heads of grids, a multiple of 8.
        graph_width: Channels inside the heads of graphs.
        predict_channels: Features to predict, of `npho` and `time`.
        frozen: Whether the encoder passes no gradient and never drops anything out.
        cross: Fields of the `CrossAttentionHead` that differ from its defaults.
    """

    encoder: XecEncoder
    detector: Detector
    regions: SensorRegions | None = None
    head_type: str = "per_face"
    predict_channels: tuple[str, ...] = CHANNELS
    frozen: bool = False
    grid_width: int = 64
    graph_width: int = 96
    cross: tuple[tuple[str, int], ...] = ()

    def __call__(self, x: Array, hidden: Array | None = None, deterministic: bool = True) -> Array:
        """Predicts events.

        Args:
            x: (b s 2), hidden sensors already filled with the sentinels.
            hidden: bool (b s), True for sensors that were hidden or are invalid; None for none.
            deterministic: False in training, where a key named `dropout` is needed.

        Returns:
            float32 (b s f), the channels in `predict_channels`, for all sensors.
        """
        tokens = self.encoder(x, hidden, deterministic or self.frozen)
        if self.frozen:
            tokens = lax.stop_gradient(tokens)
        return self.heads(tokens, x, hidden)

    @nn.compact
    def heads(self, tokens: Array, x: Array, hidden: Array | None = None) -> Array:
        """Predicts from tokens (b t d) and sensors; the rest as in `__call__`."""
        hidden = jnp.zeros(x.shape[:2], bool) if hidden is None else hidden
        out, dtype = len(self.predict_channels), self.encoder.dtype
        if self.head_type == "cross_attention":
            widths: dict[str, Any] = dict(self.cross)
            head = CrossAttentionHead(self.detector, out, dtype=dtype, name="head_cross", **widths)
            return head(x, hidden, tokens)
        values, ids = [], []
        for i, face in enumerate(self.encoder.faces):
            y = self._face(face, tokens[:, i], x, hidden)
            values.append(y.reshape(y.shape[0], -1, out))
            ids.append(_sensors(face, self.regions))
        # Of a sensor that two faces show, the later face decides; one that none shows gets 0.
        order = np.concatenate(ids)
        position = np.full(self.detector.n_sensors, len(order))
        position[order] = np.arange(len(order))
        packed = jnp.pad(jnp.concatenate(values, 1), ((0, 0), (0, 1), (0, 0)))
        return jnp.take(packed, position, axis=1, mode="clip")

    def _face(self, face: Face, token: Array, x: Array, hidden: Array) -> Array:
        common: dict[str, Any] = {
            "out": len(self.predict_channels),
            "head_type": self.head_type,
            "portable": self.encoder.portable,
            "dtype": self.encoder.dtype,
            "name": f"head_{face.name}",
        }
        shown = face_input(face, x, self.encoder.sentinel_time, self.encoder.photons)
        if isinstance(face, GraphFace):
            return GraphHead(face, width=self.graph_width, **common)(
                shown, token, face_mask(face, hidden)
            )
        if face.is_plain:
            return GridHead(width=self.grid_width, **common)(shown, token, face_mask(face, hidden))
        if self.regions is None:
            found = f"face {face.name} is a fine grid, but there are no regions of its sensors"
            raise GeometryError(found, expected="Inpainter(regions=SensorRegions(...))")
        head = FineGridHead(face, self.regions, width=self.grid_width, **common)
        return head(shown, token)


def _sensors(face: Face, regions: SensorRegions | None) -> np.ndarray:
    """Sensors in the order in which the head of a face predicts them."""
    if isinstance(face, GraphFace):
        return face.sensors
    if face.is_plain or regions is None:
        return face.index.ravel()
    return regions.sensors
