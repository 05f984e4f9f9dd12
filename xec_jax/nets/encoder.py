"""The encoder of the calorimeter: one token per face, fused by a transformer."""

from collections.abc import Hashable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from xec_jax.errors import ConfigError
from xec_jax.geometry import Face, GraphFace
from xec_jax.nets.backbone import FaceBackbone
from xec_jax.nets.faces import face_input, face_mask
from xec_jax.nets.fusion import FusionTransformer
from xec_jax.nets.hexgraph import HexEncoder
from xec_jax.types import Array


class XecEncoder(nn.Module):
    """Sensors to tokens.

    All grid faces share one backbone, all graph faces one graph encoder. A learned table tells
    the tokens apart.

    Attributes:
        faces: Faces of the detector, in the order of the tokens.
        dim: Width of a token, a multiple of 32 and of `n_heads`; sets the backbone's width too.
        n_layers: Layers of the fusion transformer.
        n_heads: Its attention heads.
        dropout: Its dropout rate in training.
        drop_path: Probability of skipping a ConvNeXt or HexNeXt branch in training.
        sentinel_time: Value of invalid times, left out when the outer face is pooled.
        portable: Forms that export well; equal results, slower training.
        dtype: Type of the arithmetic; parameters, norms and softmax stay float32.
    """

    faces: tuple[Face, ...]
    dim: int = 1024
    n_layers: int = 2
    n_heads: int = 8
    dropout: float = 0.1
    drop_path: float = 0.0
    sentinel_time: float | None = -1.0
    portable: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, hidden: Array | None = None, deterministic: bool = True) -> Array:
        """Encodes events.

        Args:
            x: (b s 2), normalized npho and time.
            hidden: bool (b s), True for sensors that must not be seen; None to show all.
            deterministic: False in training, where a key named `dropout` is needed.

        Returns:
            float32 (b t d).

        Raises:
            ConfigError: `dim` does not fit the backbone or the heads.
        """
        if self.dim % 32 or self.dim % self.n_heads:
            raise ConfigError(
                f"encoder dim is {self.dim} with {self.n_heads} heads",
                expected="a multiple of 32 and of the number of heads",
            )
        tokens = self._face_tokens(x, hidden, deterministic)
        position = self.param("position", nn.initializers.normal(0.02), tokens.shape[1:])
        fusion = FusionTransformer(
            self.n_layers, self.n_heads, dropout=self.dropout, dtype=self.dtype, name="fusion"
        )
        return fusion(tokens + position, deterministic).astype(jnp.float32)

    def _face_tokens(self, x: Array, hidden: Array | None, deterministic: bool) -> Array:
        common: dict[str, Any] = {
            "drop_path": self.drop_path,
            "portable": self.portable,
            "dtype": self.dtype,
        }
        grid = FaceBackbone(self.dim // 32, **common, name="grid_backbone")
        graph = HexEncoder(self.dim, **common, name="graph_encoder")
        tokens = {}
        for group in _alike(self.faces):
            # Faces of one shape pass as one batch, stacked inside each event so that a batch
            # that is spread over devices stays where it is.
            stacked = _stack([face_input(face, x, self.sentinel_time) for face in group])
            masks = None if hidden is None else _stack([face_mask(f, hidden) for f in group])
            if isinstance(group[0], GraphFace):
                y = graph(stacked, group[0], masks, deterministic)
            else:
                y = grid(stacked, masks, deterministic)
            y = y.reshape(-1, len(group), self.dim).astype(jnp.float32)
            tokens.update({face.name: y[:, i] for i, face in enumerate(group)})
        return jnp.stack([tokens[face.name] for face in self.faces], 1)


def _alike(faces: tuple[Face, ...]) -> list[list[Face]]:
    """Groups grids of equal shape and graphs with equal edges, in order of first appearance."""
    groups: dict[Hashable, list[Face]] = {}
    for face in faces:
        key: Hashable = face.shape if face.kind == "grid" else face.edges.tobytes()
        groups.setdefault(key, []).append(face)
    return list(groups.values())


def _stack(faces: list[Array]) -> Array:
    """Joins k arrays (b ...) to (b k ...) and merges the first two axes."""
    return jnp.stack(faces, 1).reshape(-1, *faces[0].shape[1:])
