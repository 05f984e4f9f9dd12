"""Element-wise losses by name, and weighted means of them as sums that add up over a run.

A loss takes prediction and target of the same shape and returns one value per element. Entries
behind weight 0 should be finite; `mean_loss` copes with NaN there, in value and gradient.
"""

import difflib
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from xec_jax.errors import ConfigError
from xec_jax.kinematics import angles_to_vector
from xec_jax.types import Array, ArrayLike, Mean

Loss = Callable[[Array, Array], Array]


def smooth_l1(prediction: Array, target: Array, beta: float = 1.0) -> Array:
    """d^2 / (2 beta) where |d| < beta, else |d| - beta / 2, with d = prediction - target.

    At beta 0 it is |d|.
    """
    distance = jnp.abs(prediction - target)
    if beta == 0:
        return distance
    square = 0.5 * distance**2 / beta
    return jnp.where(distance < beta, square, distance - 0.5 * beta)


def l1(prediction: Array, target: Array) -> Array:
    """|prediction - target|."""
    return jnp.abs(prediction - target)


def mse(prediction: Array, target: Array) -> Array:
    """(prediction - target)^2."""
    return jnp.square(prediction - target)


def relative_l1(prediction: Array, target: Array) -> Array:
    """L1 over |target|, which counts as at least 1e-3."""
    return l1(prediction, target) / jnp.maximum(jnp.abs(target), 1e-3)


def relative_smooth_l1(prediction: Array, target: Array, beta: float = 1.0) -> Array:
    """Smooth L1 over |target|, which counts as at least 1e-3."""
    return smooth_l1(prediction, target, beta) / jnp.maximum(jnp.abs(target), 1e-3)


def relative_mse(prediction: Array, target: Array) -> Array:
    """Squared error over target^2, which counts as at least 1e-6."""
    return mse(prediction, target) / jnp.maximum(jnp.square(target), 1e-6)


def cosine(prediction: Array, target: Array) -> Array:
    """1 - cos of the opening angle between two directions.

    Args:
        prediction: (..., 2), theta and phi in degrees, or (..., 3), a vector of any length.
        target: The same shape.

    Returns:
        (..., 1). A vector of length 0 counts as perpendicular to everything and is told to
        grow towards the target.
    """
    a, b = _direction(prediction), _direction(target)
    has_length = [jnp.square(v).sum(-1, keepdims=True) > 0.5 for v in (a, b)]
    # Of unit vectors 1 - cos is |a - b|^2 / 2, which keeps its digits at small angles.
    half_square = 0.5 * jnp.square(a - b).sum(-1, keepdims=True)
    dot = (a * b).sum(-1, keepdims=True)
    return jnp.where(has_length[0] & has_length[1], half_square, 1 - dot)


def _direction(x: Array) -> Array:
    if x.shape[-1] == 2:
        return angles_to_vector(x)
    # The slope of a length at 0 is NaN, also where a `where` discards it afterwards.
    square = jnp.square(x).sum(-1, keepdims=True)
    return x * lax.rsqrt(jnp.where(square > 1e-12, square, 1.0))


def gaussian_nll(prediction: Array, target: Array, beta: float = 0.5) -> Array:
    """Negative log-likelihood of a normal distribution, weighted by its variance^beta.

    The weight passes no gradient. At beta 0 it is the plain likelihood, whose gradient favors
    points that are known well already; at 1 the mean learns as under a squared error.

    Args:
        prediction: (..., 2k), k means and then k logarithms of variances.
        target: (..., k).
        beta: Exponent of the weight.

    Returns:
        (..., k).

    Source:
        Seitzer et al. 2022, arXiv:2203.09168, equation 5; constant term left out.
    """
    mean, log_variance = jnp.split(prediction, 2, -1)
    nll = 0.5 * (log_variance + jnp.square(target - mean) * jnp.exp(-log_variance))
    return jnp.exp(beta * lax.stop_gradient(log_variance)) * nll


def quantile(
    prediction: Array, target: Array, quantiles: Sequence[float] = (0.16, 0.5, 0.84)
) -> Array:
    """Pinball loss, least where each prediction has its share of the targets below it.

    Args:
        prediction: (..., q k), the k outputs of the first quantile, then those of the next.
        target: (..., k).
        quantiles: The q shares, in (0, 1).

    Returns:
        (..., k), mean over the quantiles.

    Source:
        Koenker and Bassett 1978, Econometrica 46, 33.
    """
    parts = jnp.split(prediction, len(quantiles), -1)
    excess = [target - part for part in parts]
    losses = [jnp.maximum(q * e, (q - 1) * e) for q, e in zip(quantiles, excess, strict=True)]
    return sum(losses, jnp.zeros_like(target)) / len(quantiles)


def cross_entropy(prediction: Array, target: Array) -> Array:
    """Minus the logarithm of the probability that the prediction gives to the true class.

    Args:
        prediction: (..., c) logits.
        target: (..., 1), the number of the class from 0, of any type.

    Returns:
        (..., 1).
    """
    is_true = jnp.arange(prediction.shape[-1]) == target.astype(jnp.int32)
    return -jnp.where(is_true, jax.nn.log_softmax(prediction), 0.0).sum(-1, keepdims=True)


LOSSES: dict[str, Callable[..., Array]] = {
    "smooth_l1": smooth_l1,
    # The predecessor's name for smooth_l1; a true Huber loss would be beta times as large.
    "huber": smooth_l1,
    "l1": l1,
    "mse": mse,
    "l2": mse,
    "relative_l1": relative_l1,
    "relative_smooth_l1": relative_smooth_l1,
    "relative_mse": relative_mse,
    "cosine": cosine,
    "angular": cosine,
    "gaussian_nll": gaussian_nll,
    "quantile": quantile,
    "cross_entropy": cross_entropy,
}
WITH_BETA = ("smooth_l1", "huber", "relative_smooth_l1", "gaussian_nll")


def make_loss(
    name: str, beta: float | None = None, quantiles: Sequence[float] | None = None
) -> Loss:
    """Looks up an element-wise loss.

    Args:
        name: A key of `LOSSES`.
        beta: Parameter of the losses in `WITH_BETA`, if not their default; others ignore it.
        quantiles: Parameter of `quantile`, if not its default; others ignore it.

    Raises:
        ConfigError: No loss has this name, or beta is negative.
    """
    if name not in LOSSES:
        nearest = difflib.get_close_matches(name, LOSSES, n=1, cutoff=0)[0]
        raise ConfigError(
            f"loss_fn is {name!r}",
            expected="one of " + ", ".join(LOSSES),
            remedy=f"did you mean {nearest!r}?",
        )
    if beta is not None and not beta >= 0:
        raise ConfigError(f"loss_beta is {beta}", expected="0 or a positive number")
    if name == "quantile" and quantiles is not None:
        return functools.partial(quantile, quantiles=tuple(quantiles))
    if beta is None or name not in WITH_BETA:
        return LOSSES[name]
    return functools.partial(LOSSES[name], beta=beta)


def mean_of(values: Array, weights: ArrayLike) -> Mean:
    """Sums values and weights; values behind weight 0 count for nothing, NaN included.

    Args:
        values: Any shape.
        weights: Broadcastable to `values`, never negative, bool or float.
    """
    weights = jnp.broadcast_to(jnp.asarray(weights, jnp.float32), values.shape)
    values = jnp.where(weights > 0, values.astype(jnp.float32), 0.0)
    return Mean((values * weights).sum(), weights.sum())


def mean_loss(loss: Loss, prediction: Array, target: Array, weights: ArrayLike) -> Mean:
    """Sums a loss over the entries that have a weight.

    NaN behind weight 0 stays out of the gradient too. Masking the values of a loss would not do:
    the slope of the mask, 0, is multiplied by the slope of the loss, NaN. So prediction and
    target are masked before.

    Args:
        loss: Element-wise.
        prediction: Same shape as `target`, or a multiple of it on the last axis (`gaussian_nll`).
        target: Any shape.
        weights: Broadcastable to `target` and to the result of `loss`, never negative.
    """
    is_used = jnp.broadcast_to(jnp.asarray(weights) > 0, target.shape)
    copies = prediction.shape[-1] // target.shape[-1]
    prediction = jnp.where(jnp.concatenate([is_used] * copies, -1), prediction, 0.0)
    return mean_of(loss(prediction, jnp.where(is_used, target, 0.0)), weights)


def ratio(mean: Mean) -> Array:
    """Returns total / weight, and 0 with slope 0 where the weight is 0."""
    is_used = mean.weight > 0
    return jnp.where(is_used, mean.total / jnp.where(is_used, mean.weight, 1.0), 0.0)


def balanced(loss: Array, log_variance: Array) -> Array:
    """Weighs a loss by a learned variance: exp(-s) L / 2 + s / 2 with s = log variance.

    Source:
        Kendall et al. 2018, arXiv:1705.07115, equation 10.
    """
    return 0.5 * (jnp.exp(-log_variance) * loss + log_variance)
