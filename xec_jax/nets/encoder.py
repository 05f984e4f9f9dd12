"""The encoder of the calorimeter: one token per face, fused by a transformer."""

from collections.abc import Hashable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from xec_jax.errors import ConfigError
from xec_jax.geometry import FACES, Face, GraphFace
from xec_jax.nets.backbone import FaceBackbone
from xec_jax.nets.faces import face_input, face_mask
from xec_jax.nets.fusion import FusionTransformer
from xec_jax.nets.hexgraph import HexEncoder
from xec_jax.nets.layers import Dense
from xec_jax.nets.positions import check_position, coordinate_code, face_types, index_code
from xec_jax.transforms import SensorTransform
from xec_jax.types import Array, ArrayLike, wide


class XecEncoder(nn.Module):
    """Sensors to tokens.

    All grid faces share one backbone, all graph faces one graph encoder. A code of its position
    is added to every token, or told to the attention (`rotary`).

    Attributes:
        faces: Faces of the detector, in the order of the tokens.
        dim: Width of a token, a multiple of 32 and of `n_heads`; sets the backbone's width too.
        n_layers: Layers of the fusion transformer.
        n_heads: Its attention heads.
        dropout: Its dropout rate in training.
        drop_path: Probability of skipping a ConvNeXt or HexNeXt branch in training.
        hidden_width: Width inside the feed-forward parts of the transformer; 4 `dim` if not given.
        position: How tokens are told apart, one of `positions.POSITIONS`: a learned row each;
            sines of their place in the sequence; a projection of the sines of `centers`; a
            learned row for each of the six physical faces; attention turned by their place;
            not at all, where top and bottom, for instance, are one and the same.
        centers: Center of each face in cm, for `geometric`.
        zero_hidden_input: Zero hidden sensors before the first layer. The predecessor did not
            at first, so that its early networks see the sentinels.
        sentinel_time: Value of invalid times, left out when the outer face is pooled.
        photons: Transform that the input was made with, to divide photons over the cells of a
            fine grid, and not the normalized value; see `face_input`.
        portable: Forms that export well; equal results, slower training.
        dtype: Type of the arithmetic; parameters, norms and softmax stay float32.
    """

    faces: tuple[Face, ...]
    dim: int = 1024
    n_layers: int = 2
    n_heads: int = 8
    dropout: float = 0.1
    drop_path: float = 0.0
    hidden_width: int | None = None
    position: str = "learned"
    centers: tuple[tuple[float, float, float], ...] | None = None
    zero_hidden_input: bool = True
    sentinel_time: float | None = -1.0
    photons: SensorTransform | None = None
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
            ConfigError: `dim` does not fit the backbone, the heads or the position code, or
                there is no such code.
        """
        self._check()
        fusion = FusionTransformer(
            self.n_layers,
            self.n_heads,
            self.hidden_width,
            self.dropout,
            rotary=self.position == "rotary",
            dtype=self.dtype,
            name="fusion",
        )
        tokens = self._face_tokens(x, hidden, deterministic) + self._position_code()
        return wide(fusion(tokens, deterministic))

    def _check(self) -> None:
        check_position(self.position)
        if self.dim % 32 or self.dim % self.n_heads:
            raise ConfigError(
                f"encoder dim is {self.dim} with {self.n_heads} heads",
                expected="a multiple of 32 and of the number of heads",
            )
        if self.position == "rotary" and self.dim // self.n_heads % 2:
            raise ConfigError(
                f"encoder dim is {self.dim} with {self.n_heads} heads, {self.dim // self.n_heads} "
                "channels each, and a rotary position code, which turns pairs of channels",
                expected="an even number of channels for each head",
            )

    def _position_code(self) -> ArrayLike:
        """What is added to the tokens, float32 (t d) or 0."""
        normal, n_tokens = nn.initializers.normal(0.02), len(self.faces)
        match self.position:
            case "learned":
                return self.param("position", normal, (n_tokens, self.dim))
            case "face_type":
                table = self.param("face_type", normal, (len(FACES), self.dim))
                return table[face_types(self.faces)]
            case "sinusoidal":
                return index_code(n_tokens, self.dim)
            case "geometric":
                if self.centers is None or len(self.centers) != n_tokens:
                    raise ConfigError(
                        f"geometric position code of {n_tokens} faces without their centers",
                        expected="one center for each face (`Detector.face_centers`)",
                    )
                code = jnp.asarray(coordinate_code(np.array(self.centers)))
                return Dense(self.dim, name="position_projection")(code)
            case _:
                return np.zeros((), np.float32)

    def _face_tokens(self, x: Array, hidden: Array | None, deterministic: bool) -> Array:
        common: dict[str, Any] = {
            "zero_hidden": self.zero_hidden_input,
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
            stacked = _stack(
                [face_input(face, x, self.sentinel_time, self.photons) for face in group]
            )
            masks = None if hidden is None else _stack([face_mask(f, hidden) for f in group])
            if isinstance(group[0], GraphFace):
                y = graph(stacked, group[0], masks, deterministic)
            else:
                y = grid(stacked, masks, deterministic)
            y = wide(y.reshape(-1, len(group), self.dim))
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
