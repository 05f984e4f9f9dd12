"""Inpainting by attention to what was measured: around each cell, or around each sensor."""

import functools
import operator

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from xec_jax.geometry import FACES, Detector
from xec_jax.nets.layers import Dense, LayerNorm, gelu
from xec_jax.nets.neighbors import Neighbors, nearest_sensors
from xec_jax.nets.positions import coordinate_code, face_types
from xec_jax.types import Array, wide

HIDDEN_SCORE = -1e4
"""Score of a neighbor that must not be seen; among such neighbors alone all count alike."""
NO_SCORE = -1e9


def softmax(scores: Array) -> Array:
    """Softmax over the last axis in float32, in a form that exports."""
    scores = wide(scores)
    weights = jnp.exp(scores - lax.stop_gradient(scores.max(-1, keepdims=True)))
    return weights / weights.sum(-1, keepdims=True)


def neighbor_mean(y: Array, scores: Array, hidden: Array, neighbors: Neighbors) -> Array:
    """Averages the features of the neighbors, weighted by the softmax of their scores.

    Takes one neighbor at a time: all 24 features of all cells of the inner face would fill 25 MB
    per event.

    Args:
        y: (b ... c), features of cells or nodes.
        scores: (b ... 1), depends on the neighbor and not on who looks at it.
        hidden: bool (b ...), neighbors not to be looked at.
        neighbors: See `nets.neighbors`.

    Returns:
        float32 (b ... c). Where all neighbors are hidden their plain mean.
    """
    scores = jnp.where(hidden[..., None], HIDDEN_SCORE, wide(scores))
    seen = list(neighbors(scores, NO_SCORE))
    top = lax.stop_gradient(functools.reduce(jnp.maximum, seen))
    weights = [jnp.exp(score - top) for score in seen]
    parts = [w * wide(v) for w, v in zip(weights, neighbors(y, 0.0), strict=True)]
    return functools.reduce(operator.add, parts) / functools.reduce(operator.add, weights)


class NeighborReadout(nn.Module):
    """Predicts a cell from the neighbors that were seen, and from the face's token.

    Attributes:
        out: Channels to predict.
        width: Width inside.
    """

    out: int
    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, y: Array, token: Array, hidden: Array, neighbors: Neighbors) -> Array:
        """Maps features (b ... c) and a token (b c) to float32 (b ... out)."""
        mean = neighbor_mean(y, Dense(1, self.dtype, name="score")(y), hidden, neighbors)
        token = jnp.broadcast_to(token.reshape(-1, *(1,) * (y.ndim - 2), token.shape[-1]), y.shape)
        y = jnp.concatenate([mean.astype(self.dtype), token], -1)
        y = gelu(Dense(self.width, self.dtype, name="hidden")(y))
        return wide(Dense(self.out, self.dtype, name="predict")(y))


class CrossAttentionHead(nn.Module):
    """One head for all sensors, which knows where they are and nothing of grids.

    A sensor asks its nearest neighbors in space, across the edges of faces, and the tokens of
    all faces. What it asks depends on its position and face only.

    Attributes:
        detector: Its sensors are predicted; its faces are those of the tokens.
        out: Channels to predict.
        n_neighbors: Sensors to ask.
        n_bands: Wavelengths of the position code. 16 are the predecessor's; 8 reach from 2 m to
            the size of a sensor.
        width: Width of the attention to sensors.
        token_width: Width of the attention to tokens, a multiple of `n_heads`.
        face_width: Width of the learned code of a face.
        n_heads: Heads of the attention to tokens.
    """

    detector: Detector
    out: int = 2
    n_neighbors: int = 16
    n_bands: int = 16
    width: int = 64
    token_width: int = 128
    face_width: int = 32
    n_heads: int = 4
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, hidden: Array, tokens: Array) -> Array:
        """Predicts from sensors (b s 2), hidden ones bool (b s) and tokens (b t d).

        Returns:
            float32 (b s out).
        """
        detector = self.detector
        faces = self.param("face", nn.initializers.normal(1.0), (len(FACES), self.face_width))
        code = coordinate_code(detector.sensors.positions, self.n_bands)
        place = jnp.concatenate(
            [code, jnp.take(faces, detector.sensor_face, axis=0, mode="clip")], -1
        )
        place = place.astype(self.dtype)
        near = self._ask_sensors(x.astype(self.dtype), hidden, place)
        far = self._ask_tokens(tokens, faces, place)
        y = LayerNorm(1e-5, dtype=self.dtype, name="norm")(jnp.concatenate([near, far], -1))
        y = gelu(Dense(self.width, self.dtype, name="hidden")(y))
        return wide(Dense(self.out, self.dtype, name="predict")(y))

    def _ask_sensors(self, x: Array, hidden: Array, place: Array) -> Array:
        table = nearest_sensors(self.detector, self.n_neighbors)
        query = Dense(self.width, self.dtype, name="sensor_query")(place)
        place = jnp.broadcast_to(place, (*x.shape[:2], place.shape[-1]))
        source = Dense(self.width, self.dtype, name="sensor")(jnp.concatenate([x, place], -1))
        near = _gather(source, table)
        scores = jnp.einsum("sc,bsnc->bsn", query, near) * self.width**-0.5
        weights = softmax(jnp.where(_gather(hidden, table), HIDDEN_SCORE, scores))
        return jnp.einsum("bsn,bsnc->bsc", weights.astype(self.dtype), near)

    def _ask_tokens(self, tokens: Array, faces: Array, place: Array) -> Array:
        width, heads = self.token_width, (self.n_heads, self.token_width // self.n_heads)
        kinds = jnp.take(faces, face_types(self.detector.faces), axis=0, mode="clip")
        y = Dense(width, self.dtype, name="token")(tokens)
        y = y + Dense(width, self.dtype, name="token_face")(kinds)
        query = Dense(width, self.dtype, name="token_query")(place).reshape(-1, *heads)
        key = Dense(width, self.dtype, name="key")(y).reshape(*y.shape[:2], *heads)
        value = Dense(width, self.dtype, name="value")(y).reshape(*y.shape[:2], *heads)
        scores = jnp.einsum("skc,btkc->bskt", query, key) * heads[1] ** -0.5
        y = jnp.einsum("bskt,btkc->bskc", softmax(scores).astype(self.dtype), value)
        return Dense(width, self.dtype, name="token_out")(y.reshape(*y.shape[:2], width))


def _gather(x: Array, table: np.ndarray) -> Array:
    """Takes the rows of a table (s n) from (b s ...): (b s n ...)."""
    return jnp.take(x, table, axis=1, mode="clip")
