"""How a network learns where a token or a sensor sits: tables of positions.

Everything here is computed once, in numpy; networks add or project the tables.
"""

import difflib

import jax.numpy as jnp
import numpy as np

from xec_jax.errors import ConfigError
from xec_jax.geometry import FACES, Face
from xec_jax.types import Array, wide

POSITIONS = ("learned", "sinusoidal", "geometric", "face_type", "rotary", "none")
N_BANDS = 8
"""Wavelengths of `coordinate_code`: the shortest of eight is 1.6 cm, the size of a SiPM."""


def check_position(name: str) -> None:
    """Checks the name of a position code.

    Raises:
        ConfigError: No code has this name.
    """
    if name not in POSITIONS:
        nearest = difflib.get_close_matches(name, POSITIONS, n=1, cutoff=0)[0]
        raise ConfigError(
            f"position is {name!r}",
            expected="one of " + ", ".join(POSITIONS),
            remedy=f"did you mean {nearest!r}?",
        )


def index_code(n_tokens: int, dim: int) -> np.ndarray:
    """Codes the place of a token in the sequence by sines and cosines, float32 (t d).

    Source:
        Vaswani et al. 2017, arXiv:1706.03762, section 3.5; all sines first, then all cosines.
    """
    angle = _angles(n_tokens, dim)
    return np.concatenate([np.sin(angle), np.cos(angle)], -1).astype(np.float32)


def coordinate_code(xyz: np.ndarray, n_bands: int = N_BANDS) -> np.ndarray:
    """Codes points in space by sines and cosines of 200 cm, 100 cm, 50 cm, ...

    Args:
        xyz: (n 3) in cm.
        n_bands: Wavelengths per coordinate. Sixteen are the predecessor's choice, the last of
            them 0.06 mm long: a hash of the position more than a code.

    Returns:
        float32 (n, 6 n_bands): for x, then y, then z the sines and then the cosines, long waves
        first. The product is rounded to float32 in this order, as in the predecessor.
    """
    scale = 2.0 ** np.arange(n_bands, dtype=np.float32)
    angle = (xyz.astype(np.float32)[..., None] * scale) * np.float32(np.pi / 100)
    return np.concatenate([np.sin(angle), np.cos(angle)], -1).reshape(len(xyz), -1)


def face_types(faces: tuple[Face, ...]) -> np.ndarray:
    """Returns the physical face of every token, int32 (t,), an index into `FACES`.

    Coarse map and centre patch of the outer face are of one type.
    """
    return np.array([FACES.index(face.name.split("_")[0]) for face in faces], np.int32)


def rotate(x: Array) -> Array:
    """Turns query or key vectors by an angle that grows with the place of their token.

    The product of a turned query and a turned key depends on how far apart their tokens are,
    and not on where they are.

    Args:
        x: (b t k c), c even.

    Returns:
        Same shape and type; the arithmetic is float32.

    Source:
        Su et al. 2021, arXiv:2104.09864, section 3.2; pairs are (i, i + c/2).
    """
    angle = _angles(x.shape[1], x.shape[-1])[:, None]
    cosine, sine = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    first, second = jnp.split(wide(x), 2, -1)
    turned = [first * cosine - second * sine, first * sine + second * cosine]
    return jnp.concatenate(turned, -1).astype(x.dtype)


def _angles(n_tokens: int, dim: int) -> np.ndarray:
    """Place times 10000^(-2i/d), (t, d/2)."""
    return np.arange(n_tokens)[:, None] * 10000.0 ** -(2 * np.arange(dim // 2) / dim)
