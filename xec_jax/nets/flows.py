"""Conditional normalizing flows: exact densities of a few features given a context, and samples.

Bijectors map data to noise: the density takes one pass. Sampling an autoregressive layer takes
one pass per feature, a coupling layer one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import distrax
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from xec_jax.errors import ConfigError
from xec_jax.nets.flow_bases import Base, Settings
from xec_jax.nets.layers import Dense
from xec_jax.nets.made import MADE
from xec_jax.nets.splines import SOFT_LIMIT, Spline
from xec_jax.types import Array, Key

KINDS = ("autoregressive", "coupling")


Conditioner = Callable[..., distrax.Bijector]
"""(features (... d), number of a feature or None) -> elementwise bijectors of all features, or of
that one (...); what is done to a feature depends on the features before it."""


class MaskedAutoregressive(distrax.Bijector):
    """Elementwise bijectors, each set by the features before its own.

    Args:
        conditioner: Sets them.
    """

    def __init__(self, conditioner: Conditioner) -> None:
        super().__init__(event_ndims_in=1)
        self._conditioner = conditioner

    def forward_and_log_det(self, x: Array) -> tuple[Array, Array]:
        """See `distrax.Bijector`; (... d) -> (... d), (...)."""
        y, log_det = self._conditioner(x).forward_and_log_det(x)
        return y, log_det.sum(-1)

    def inverse_and_log_det(self, y: Array) -> tuple[Array, Array]:
        """See `distrax.Bijector`; takes one pass per feature."""
        known: list[Array] = []
        log_dets = []
        for i in range(y.shape[-1]):
            unknown = [jnp.zeros_like(y[..., i])] * (y.shape[-1] - i)
            conditioned = self._conditioner(jnp.stack([*known, *unknown], -1), i)
            one, log_det = conditioned.inverse_and_log_det(y[..., i])
            known.append(one)
            log_dets.append(log_det)
        return jnp.stack(known, -1), jnp.stack(log_dets).sum(0)


class Reversing(distrax.Bijector):
    """Layers of one kind in a row, the features turned around after each; one is compiled.

    Args:
        make: Makes a layer from its parameters.
        stacked: Parameters of all layers, along the first axis of every array.
        portable: Without a loop, for export.
    """

    def __init__(
        self, make: Callable[[Any], distrax.Bijector], stacked: Any, portable: bool = False
    ) -> None:
        super().__init__(event_ndims_in=1)
        self._make, self._stacked, self._portable = make, stacked, portable

    def forward_and_log_det(self, x: Array) -> tuple[Array, Array]:
        """See `distrax.Bijector`; (... d) -> (... d), (...)."""

        def step(carry: tuple[Array, Array], params: Any) -> tuple[tuple[Array, Array], None]:
            x, log_det = carry
            y, change = self._make(params).forward_and_log_det(x)
            return (y[..., ::-1], log_det + change), None

        if not self._portable:
            # For the gradient only products are kept: to make a spline again takes less time than
            # to write and read what it left.
            step = jax.checkpoint(
                step, policy=jax.checkpoint_policies.dots_saveable, prevent_cse=False
            )
        start = x, jnp.zeros(x.shape[:-1], x.dtype)
        return lax.scan(step, start, self._stacked, unroll=self._portable)[0]

    def inverse_and_log_det(self, y: Array) -> tuple[Array, Array]:
        """See `distrax.Bijector`; (... d) -> (... d), (...)."""

        def step(carry: tuple[Array, Array], params: Any) -> tuple[tuple[Array, Array], None]:
            y, log_det = carry
            x, change = self._make(params).inverse_and_log_det(y[..., ::-1])
            return (x, log_det + change), None

        start = y, jnp.zeros(y.shape[:-1], y.dtype)
        return lax.scan(step, start, self._stacked, reverse=True, unroll=self._portable)[0]


@dataclass(frozen=True)
class FlowSize:
    """How large a flow is.

    Attributes:
        transforms: Layers.
        bins: Bins of each spline.
        hidden: Units of the two hidden layers of each layer's network.
        context: Width of the embedded context.
    """

    transforms: int = 3
    bins: int = 16
    hidden: int = 64
    context: int = 32


class ConditionalFlow(nn.Module):
    """The density of d features given a context, and samples of it.

    A conditional affine map comes first, the shortest way for the context into the density; then
    layers of splines. At the start the flow is the identity.

    Attributes:
        features: Number of features d, at least 2 for `coupling`.
        size: Layers and widths.
        kind: `autoregressive`, or `coupling` for faster samples.
        base: Base distribution.
        bound: The splines act within +- this, so features should have mean 0 and spread 1.
        portable: Without loops, for export.
    """

    features: int
    size: FlowSize = FlowSize()
    kind: str = "autoregressive"
    base: Settings = Settings()
    bound: float = 5.0
    portable: bool = False

    def setup(self) -> None:
        """Makes the networks."""
        if self.kind not in KINDS or (self.kind == "coupling" and self.features < 2):
            raise ConfigError(
                f"kind is {self.kind!r} with {self.features} features",
                expected="one of " + ", ".join(KINDS) + "; coupling needs 2 features or more",
            )
        width = self.size.context
        self.embedding = [Dense(128), Dense(width), Dense(width)]
        zeros = nn.initializers.zeros
        self.affine = Dense(2 * self.features, kernel_init=zeros, bias_init=zeros)
        self.noise = Base(self.features, self.base)
        self.stacked = self.param("layers", self._make_layers)

    @cached_property
    def _layer(self) -> MADE:
        return MADE(3 * self.size.bins + 1, self.size.hidden, parent=None)

    def _make_layers(self, key: Key) -> Any:
        x, e = jnp.zeros((1, self.features)), jnp.zeros((1, self.size.context))
        keys = jax.random.split(key, self.size.transforms)
        return jax.vmap(lambda key: self._layer.init(key, x, e)["params"])(keys)

    def embed(self, condition: Array) -> Array:
        """Embeds conditions (... c) of order 1 as (... e): once per event, not per muon."""
        for layer in self.embedding:
            condition = jax.nn.elu(layer(condition))
        return condition

    def given(self, embedded: Array) -> distrax.Transformed:
        """Returns the distribution of the features given an embedded context (... e).

        Its batch shape is that of the context, its event shape (d,).
        """
        shift, log_scale = jnp.split(self.affine(embedded), 2, -1)
        scale = jnp.exp(SOFT_LIMIT * jnp.tanh(log_scale / SOFT_LIMIT))
        first = distrax.Block(distrax.ScalarAffine(shift, scale), 1)

        def make(params: Any) -> distrax.Bijector:
            def splines(x: Array, feature: int | None = None) -> distrax.Bijector:
                raw = self._layer.apply({"params": params}, x, embedded, feature)
                return Spline(cast(Array, raw), self.bound)

            if self.kind == "autoregressive":
                return MaskedAutoregressive(splines)
            # The masked network serves here, too: features after the known half are zeros.
            known = jnp.arange(self.features) < self.features // 2
            return distrax.MaskedCoupling(known, lambda x: x, splines)

        to_noise = distrax.Chain(
            [Reversing(make, self.stacked, self.portable), first]
        )  # the last acts first
        return distrax.Transformed(self.noise(embedded.shape[:-1]), distrax.Inverse(to_noise))

    def log_prob(self, x: Array, condition: Array) -> Array:
        """Natural logarithm of the density of features (... d) given conditions (... c)."""
        return self.given(self.embed(condition)).log_prob(x)

    def noise_and_log_prob(self, x: Array, condition: Array) -> tuple[Array, Array]:
        """Maps features (... d) to the noise (... d) behind them, with their log density."""
        given = self.given(self.embed(condition))
        noise, log_det = given.bijector.inverse_and_log_det(x)
        return noise, given.distribution.log_prob(noise) + log_det

    def from_noise(self, noise: Array, condition: Array) -> Array:
        """Maps noise (... d) to features: the inverse of `noise_and_log_prob`."""
        return cast(Array, self.given(self.embed(condition)).bijector.forward(noise))

    def sample(self, key: Key, condition: Array) -> tuple[Array, Array]:
        """Draws features (... d), one set per condition (... c), with their log densities."""
        return self.given(self.embed(condition)).sample_and_log_prob(seed=key)

    __call__ = log_prob
