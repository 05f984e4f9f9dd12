"""Base distributions of flows: what the noise looks like, above all in its tails.

The features of an event are independent in all of them, apart from the mixture. A box is not
among them: its density outside is 0, so one outlier makes the loss infinite, and it has no slope
inside that could say so.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import distrax
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr, ndtri

from xec_jax.errors import ConfigError
from xec_jax.types import Array, Key

BASES = ("normal", "student_t", "logistic", "mixture", "tail_transform")
MIN_TAIL = 1e-2
DEEPEST = -80.0  # log of the smallest probability whose float32 is a normal number


def check_base(base: str, df: float) -> None:
    """Checks name and degrees of freedom.

    Raises:
        ConfigError: An unknown base, or degrees of freedom without a variance.
    """
    if base == "box":
        raise ConfigError(
            "base is 'box'",
            expected="one of " + ", ".join(BASES),
            remedy="a box has density 0 outside, so one outlier makes the loss infinite; put a "
            "true bound into the variable instead, e.g. ln(bound / energy)",
        )
    if base not in BASES:
        raise ConfigError(f"base is {base!r}", expected="one of " + ", ".join(BASES))
    if not df > 2:
        raise ConfigError(f"df is {df}", expected="more than 2; 3 to 5 for heavy tails")


class Product(distrax.Distribution):
    """Independent features of the same one-dimensional law.

    Args:
        log_density: Elementwise logarithm of the density.
        draw: (key, shape) -> random numbers.
        shape: (... d); all but the last axis are events.
    """

    def __init__(
        self,
        log_density: Callable[[Array], Array],
        draw: Callable[[Key, tuple[int, ...]], Array],
        shape: tuple[int, ...],
    ) -> None:
        super().__init__()
        self._log_density, self._draw, self._shape = log_density, draw, shape

    def _sample_n(self, key: Key, n: int) -> Array:
        return self._draw(key, (n, *self._shape))

    def log_prob(self, value: Array) -> Array:
        """See `distrax.Distribution`."""
        return self._log_density(value).sum(-1)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """See `distrax.Distribution`."""
        return self._shape[-1:]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """See `distrax.Distribution`."""
        return self._shape[:-1]


def normal_log_density(z: Array) -> Array:
    """Logarithm of the standard normal density, elementwise."""
    return -0.5 * (z * z + math.log(2 * math.pi))


def student_t_log_density(z: Array, df: float) -> Array:
    """Logarithm of the density of a unit Student-T with `df` degrees of freedom, elementwise."""
    log_norm = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi)
    return log_norm - (df + 1) / 2 * jnp.log1p(z * z / df)


def logistic_log_density(z: Array) -> Array:
    """Logarithm of the density of a unit logistic, elementwise."""
    return -jnp.abs(z) - 2 * jax.nn.softplus(-jnp.abs(z))


class TailTransform(distrax.Bijector):
    """Normal noise -> noise whose two tails fall as powers, with weights of their own.

    x = s / L_s (erfc(|z| / sqrt 2)^(-L_s) - 1) with s = sign z: the tail on side s falls as
    |x|^-(1 + 1 / L_s). Computed from logarithms, so that no noise is too far out for float32.

    Args:
        lower: Tail weight L > 0 on the negative side, (d).
        upper: The same on the positive side.

    Source:
        T. Hickling and D. Prangle 2024, arXiv:2406.16971, section 3.
    """

    def __init__(self, lower: Array, upper: Array) -> None:
        super().__init__(event_ndims_in=1)
        self._lower, self._upper = lower, upper

    def forward_and_log_det(self, x: Array) -> tuple[Array, Array]:
        """See `distrax.Bijector`; (... d) -> (... d), (...)."""
        tail = jnp.where(x < 0, self._lower, self._upper)
        log_erfc = jnp.log(2.0) + log_ndtr(-jnp.abs(x))
        y = jnp.sign(x) / tail * jnp.expm1(-tail * log_erfc)
        return y, self._log_slope(x, tail, log_erfc).sum(-1)

    def inverse_and_log_det(self, y: Array) -> tuple[Array, Array]:
        """See `distrax.Bijector`; (... d) -> (... d), (...)."""
        tail = jnp.where(y < 0, self._lower, self._upper)
        log_erfc = -jnp.log1p(tail * jnp.abs(y)) / tail
        x = jnp.sign(y) * _size_of_noise(log_erfc)
        return x, -self._log_slope(x, tail, log_erfc).sum(-1)

    @staticmethod
    def _log_slope(x: Array, tail: Array, log_erfc: Array) -> Array:
        """Logarithm of dx/dz = erfc^(-L-1) sqrt(2/pi) exp(-z^2/2), elementwise."""
        return -(tail + 1) * log_erfc + math.log(2.0) + normal_log_density(x)


def _size_of_noise(log_erfc: Array) -> Array:
    """Solves erfc(x / sqrt 2) = e^log_erfc for x >= 0, elementwise.

    Beyond x = 12.5, where the probability is no float32, by iterating the asymptotic series
    -2 log_erfc = x^2 + log x^2 - log(2 / pi) - 2 log(1 - x^-2 + 3 x^-4).
    """
    near = -ndtri(0.5 * jnp.exp(jnp.maximum(log_erfc, DEEPEST)))
    target = math.log(2 / math.pi) - 2 * jnp.minimum(log_erfc, DEEPEST)
    square = target
    for _ in range(3):
        square = target - jnp.log(square) + 2 * jnp.log1p((3 / square - 1) / square)
    return jnp.where(log_erfc > DEEPEST, near, jnp.sqrt(square))


@dataclass(frozen=True)
class Settings:
    """Which base distribution.

    Attributes:
        name: One of `BASES`.
        df: Degrees of freedom of `student_t`.
        components: Components of `mixture`.
    """

    name: str = "normal"
    df: float = 4.0
    components: int = 8


class Base(nn.Module):
    """A base distribution; those of `mixture` and `tail_transform` are trained.

    Attributes:
        features: Number of features d.
        settings: Which one.
    """

    features: int
    settings: Settings = Settings()

    @nn.compact
    def __call__(self, events: tuple[int, ...]) -> distrax.Distribution:
        """Returns the distribution of events of the shape `(*events, d)`."""
        name, df = self.settings.name, self.settings.df
        check_base(name, df)
        shape = (*events, self.features)
        normal = Product(normal_log_density, jax.random.normal, shape)
        if name == "student_t":
            return Product(
                lambda z: student_t_log_density(z, df),
                lambda key, shape: jax.random.t(key, df, shape),
                shape,
            )
        if name == "logistic":
            return Product(logistic_log_density, jax.random.logistic, shape)
        if name == "tail_transform":
            start = nn.initializers.constant(-2.0)  # weight 0.14: close to normal
            raw = self.param("tails", start, (2, self.features))
            return distrax.Transformed(normal, TailTransform(*(MIN_TAIL + nn.softplus(raw))))
        if name == "mixture":
            n = self.settings.components
            # Half of them begin as they are; the others are wider and rarer, each twice as wide as
            # the one before: none learns of an outlier that it does not reach.
            wider = jnp.maximum(jnp.arange(n) - (n - 1) // 2, 0.0)
            step = wider[:, None] * jnp.ones(self.features)
            logits = self.param("logits", lambda _: -2 * wider)
            means = self.param(
                "means", lambda key: jax.random.normal(key, step.shape) * (step == 0)
            )
            log_scales = self.param("log_scales", lambda _: math.log(2) * step)
            return distrax.MixtureSameFamily(
                distrax.Categorical(logits=jnp.broadcast_to(logits, (*events, n))),
                distrax.MultivariateNormalDiag(
                    *(
                        jnp.broadcast_to(a, (*events, *a.shape))
                        for a in (means, jnp.exp(log_scales))
                    )
                ),
            )
        return normal
