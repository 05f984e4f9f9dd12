"""Small layers with the predecessor's defaults: dense, convolutions, norms, GELU, resizing.

Channels are always last. Parameters are float32; `dtype` is the type of the arithmetic, and sums
over many elements (norms) are float32 whatever it is. Written so that they export: erfc, `jnp.var`
and gathers in the default mode either have no ONNX operator or hide a NaN on the way there.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from xec_jax.types import Array, Key, wide

Initializer = Callable[..., Array]


def fan_in_uniform(fan_in: int) -> Initializer:
    """Uniform in +-1/sqrt(fan_in), the default of PyTorch for weights and biases alike."""
    bound = fan_in**-0.5

    def init(key: Key, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def gelu(x: Array) -> Array:
    """Exact GELU, x Phi(x).

    `jax.nn.gelu(approximate=False)` uses erfc, which is seven times slower on CPU and has no
    ONNX operator.
    """
    y = wide(x)
    return (0.5 * y * (1 + lax.erf(y * 0.5**0.5))).astype(x.dtype)


def sum_by_axis(x: Array, axes: Sequence[int]) -> Array:
    """Sums over axes and keeps them, one after the other, the last one first.

    ONNX Runtime adds one number to the other: over the pixels of a face at once, roundings grow to
    many last bits. XLA makes one sum of it again.
    """
    for axis in reversed(axes):
        x = x.sum(axis, keepdims=True)
    return x


class Dense(nn.Module):
    """Affine map of the last axis.

    Attributes:
        features: Width of the output.
        kernel_init: Fan-in uniform if not given.
        bias_init: Fan-in uniform if not given.
    """

    features: int
    dtype: DTypeLike = jnp.float32
    kernel_init: Initializer | None = None
    bias_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps (... c) to (... features)."""
        init = fan_in_uniform(x.shape[-1])
        kernel = self.param("kernel", self.kernel_init or init, (x.shape[-1], self.features))
        bias = self.param("bias", self.bias_init or init, (self.features,))
        return x.astype(self.dtype) @ kernel.astype(self.dtype) + bias.astype(self.dtype)


class Conv(nn.Module):
    """Two-dimensional convolution (b h w c) -> (b h' w' features).

    Attributes:
        features: Output channels.
        kernel: Side of the square kernel.
        stride: Step in both directions.
        pad: Zeros on each of the four sides, never "SAME", which is uneven for even kernels.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    pad: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps (b h w c) to (b h' w' features)."""
        init = fan_in_uniform(self.kernel**2 * x.shape[-1])
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", init, shape)
        bias = self.param("bias", init, (self.features,))
        return _convolve(x, kernel, self.stride, self.pad, self.dtype) + bias.astype(self.dtype)


class ConvTranspose(nn.Module):
    """Transposed 3 x 3 convolution with padding 1; stride 2 doubles rows and columns.

    Computed as a plain convolution of the map with zeros between its pixels, so `kernel` is the
    mirror image of the kernel of the transposed form.
    """

    features: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps (b h w c) to (b stride*h stride*w features)."""
        init = fan_in_uniform(9 * self.features)
        kernel = self.param("kernel", init, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", init, (self.features,))
        x = _spread(x, self.stride)
        return _convolve(x, kernel, 1, 1, self.dtype) + bias.astype(self.dtype)


def _convolve(x: Array, kernel: Array, stride: int, pad: int, dtype: DTypeLike) -> Array:
    return lax.conv_general_dilated(
        x.astype(dtype),
        kernel.astype(dtype),
        (stride, stride),
        ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _spread(x: Array, stride: int) -> Array:
    """Puts stride - 1 zeros after every row and column of (b h w c)."""
    if stride == 1:
        return x
    _, h, w, c = x.shape
    none, after = (0, 0), (0, stride - 1)
    x = jnp.pad(x[:, :, None, :, None], (none, none, after, none, after, none))
    return x.reshape(-1, h * stride, w * stride, c)


class LayerNorm(nn.Module):
    """Normalizes the trailing axes to mean 0 and variance 1, then scales and shifts.

    Attributes:
        epsilon: Added to the variance. 1e-6 inside the convolutional parts, 1e-5 elsewhere.
        axes: Number of trailing axes normalized together.
    """

    epsilon: float
    axes: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps any shape to the same shape."""
        shape, axes = x.shape[-self.axes :], tuple(range(-self.axes, 0))
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        y = wide(x)
        y = y - y.mean(axes, keepdims=True)
        y = y * lax.rsqrt((y * y).mean(axes, keepdims=True) + self.epsilon)
        return (y * scale + bias).astype(self.dtype)


class GRN(nn.Module):
    """Global response normalization: y = gamma x n + beta + x with n = g / (mean of g + eps).

    g is the L2 norm of a channel over all positions of the event (pixels or nodes), its mean is
    taken over the channels.

    Source:
        Woo et al. 2023, arXiv:2301.00808, section 3.3.
    """

    epsilon: float = 1e-6
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps (b ... c) to the same shape."""
        gamma = self.param("gamma", nn.initializers.zeros, x.shape[-1:])
        beta = self.param("beta", nn.initializers.zeros, x.shape[-1:])
        y = wide(x)
        power = sum_by_axis(y * y, range(1, y.ndim - 1))
        # The slope of a square root at 0 is infinite; a channel that is 0 everywhere gets 0.
        is_on = power > 0
        norm = jnp.where(is_on, jnp.sqrt(jnp.where(is_on, power, 1.0)), 0.0)
        norm = norm / (norm.mean(-1, keepdims=True) + self.epsilon)
        return (y * (gamma * norm + 1) + beta).astype(self.dtype)


def drop_path(branch: Array, rate: float, key: Key) -> Array:
    """Drops the whole branch of an event with probability `rate` < 1, and scales up the others."""
    shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
    keep = jax.random.bernoulli(key, 1 - rate, shape)
    return jnp.where(keep, branch / (1 - rate), jnp.zeros_like(branch))


def bilinear_matrix(n_in: int, n_out: int) -> np.ndarray:
    """Weights float32 (n_out, n_in) of linear interpolation between pixel centers.

    Edges are repeated. Shrinking samples between two neighbors and skips the rest (no
    antialiasing), as `torch.nn.functional.interpolate(align_corners=False)` does.
    """
    at = np.maximum((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, n_in - 1)
    weights = np.zeros((n_out, n_in))
    np.add.at(weights, (np.arange(n_out), low), 1 - (at - low))
    np.add.at(weights, (np.arange(n_out), high), at - low)
    return weights.astype(np.float32)


def resize(x: Array, shape: tuple[int, int]) -> Array:
    """Resizes (b h w c) bilinearly to (b *shape c), as two constant matrices."""
    rows = jnp.asarray(bilinear_matrix(x.shape[1], shape[0]), x.dtype)
    columns = jnp.asarray(bilinear_matrix(x.shape[2], shape[1]), x.dtype)
    # Full precision: the default on GPU would round float32 pixels to ten bits.
    x = jnp.einsum("ph,bhwc->bpwc", rows, x, precision=lax.Precision.HIGHEST)
    return jnp.einsum("qw,bpwc->bpqc", columns, x, precision=lax.Precision.HIGHEST)


def resize_mask(mask: Array, shape: tuple[int, ...]) -> Array:
    """Resizes (b h w) to (b *shape); each cell copies input cell floor(i n_in / n_out)."""
    for axis, n_out in enumerate(shape, start=1):
        source = np.arange(n_out) * mask.shape[axis] // n_out
        mask = jnp.take(mask, source, axis=axis, mode="clip")
    return mask
