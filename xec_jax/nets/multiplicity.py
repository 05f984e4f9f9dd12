"""How many muons a primary makes: a small network whose answer is a distribution, or a point."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln

from xec_jax.errors import ConfigError
from xec_jax.nets.layers import Dense
from xec_jax.types import Array, Key

HEADS = ("nb", "mse")
HIDDEN = (64, 128, 64)


class Multiplicity(nn.Module):
    """Distribution of the number N of muons given conditions.

    `nb`: N - least follows a negative binomial law, whose mean and size are the network's.
    `mse`: the predecessor's point estimate of ln(N + 1). As an estimate of N it is too low, since
    the exponential of a mean logarithm is less than the mean, and it draws no spread.

    Attributes:
        head: One of `HEADS`.
        least: Smallest number that can occur: 1 where events without muons are left out.
    """

    head: str = "nb"
    least: int = 1

    @nn.compact
    def __call__(self, condition: Array) -> Array:
        """Maps conditions (... c) of order 1 to the head's numbers (... 2) or (... 1).

        Raises:
            ConfigError: An unknown head.
        """
        if self.head not in HEADS:
            found = f"model.multiplicity.head is {self.head!r}"
            raise ConfigError(found, expected="one of " + ", ".join(HEADS))
        for width in HIDDEN:
            condition = jax.nn.elu(Dense(width)(condition))
        return Dense(2 if self.head == "nb" else 1)(condition)

    def loss(self, output: Array, count: Array) -> Array:
        """Negative log probability of counts (...), or the squared error of ln(N + 1).

        For `nb`, output (... 2) holds the logarithms of mean and size of N - least; then
        P(k) = G(k + s) / (G(s) k!) (s / (s + m))^s (m / (s + m))^k. Counts below `least` have no
        probability and give NaN.
        """
        if self.head == "mse":
            return jnp.square(output[..., 0] - jnp.log1p(count))
        k = jnp.where(count < self.least, jnp.nan, count - self.least)
        log_mean, log_size = output[..., 0], output[..., 1]
        size = jnp.exp(log_size)
        log_sum = jnp.logaddexp(log_mean, log_size)
        log_ways = gammaln(k + size) - gammaln(size) - gammaln(k + 1)
        return -(log_ways + size * (log_size - log_sum) + k * (log_mean - log_sum))

    def mean_log1p(self, output: Array) -> Array:
        """Returns what the head expects of ln(N + 1); for `nb` to second order in N - mean."""
        if self.head == "mse":
            return output[..., 0]
        mean = jnp.exp(output[..., 0])
        variance = mean + jnp.exp(2 * output[..., 0] - output[..., 1])
        whole = 1 + self.least + mean
        return jnp.log(whole) - variance / (2 * jnp.square(whole))

    def sample(self, key: Key, output: Array) -> Array:
        """Draws numbers of muons, int32 (...); `mse` gives round(exp(prediction) - 1) >= 0."""
        if self.head == "mse":
            return jnp.maximum(jnp.round(jnp.expm1(output[..., 0])), 0).astype(jnp.int32)
        gamma_key, poisson_key = jax.random.split(key)
        size = jnp.exp(output[..., 1])
        rate = jnp.exp(output[..., 0]) * jax.random.gamma(gamma_key, size) / size
        return self.least + jax.random.poisson(poisson_key, rate, dtype=jnp.int32)
