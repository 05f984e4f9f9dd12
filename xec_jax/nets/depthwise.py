"""Depthwise convolution as shifted multiply-adds: many times faster than a grouped one on CPU.

At 92 x 43 x 32 a grouped convolution takes 4 ms per event forward, the shifted form 0.12 ms (two
cores). The gradient of the input has the same form with the mirrored kernel; only the gradient of
the kernel is left to the grouped convolution.

On a CPU the events go through a loop. It computes nothing else than one sum over the whole batch,
but XLA does not fuse across its border: without it, the 49 products are computed and compiled once
more inside every later operation that reads their sum. A ConvNeXt block takes 0.65 of the time
forward and 0.8 with its gradients, and the gradient of a whole network compiles in 0.7 of the time.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from xec_jax.nets.layers import fan_in_uniform
from xec_jax.types import Array, wide


def grouped_convolution(x: Array, kernel: Array) -> Array:
    """Depthwise convolution of (b h w c) by (k, k, c), zero padded to the same size."""
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x,
        kernel[:, :, None, :].astype(x.dtype),
        (1, 1),
        ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _shifted_sum(x: Array, kernel: Array) -> Array:
    def one_by_one(x: Array, kernel: Array) -> Array:
        return lax.map(lambda event: _sum_of_shifts(event[None], kernel)[0], x)

    return lax.platform_dependent(x, kernel, cpu=one_by_one, default=_sum_of_shifts)


def _sum_of_shifts(x: Array, kernel: Array) -> Array:
    size = kernel.shape[0]
    h, w = x.shape[1:3]
    pad = size // 2
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    total = wide(jnp.zeros_like(x))
    for i in range(size):
        for j in range(size):
            total += wide(padded[:, i : i + h, j : j + w]) * kernel[i, j]
    return total.astype(x.dtype)


@jax.custom_vjp
def depthwise(x: Array, kernel: Array) -> Array:
    """Equal to `grouped_convolution` up to rounding; sums in float32.

    Args:
        x: (b h w c).
        kernel: float32 (k, k, c), k odd.
    """
    return _shifted_sum(x, kernel)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _shifted_sum(x, kernel), (x, kernel)


def _backward(saved: tuple[Array, Array], slope: Array) -> tuple[Array, Array]:
    x, kernel = saved
    _, pullback = jax.vjp(functools.partial(grouped_convolution, x), kernel)
    return _shifted_sum(slope, kernel[::-1, ::-1]), pullback(slope)[0]


depthwise.defvjp(_forward, _backward)


class DepthwiseConv(nn.Module):
    """Depthwise convolution with bias, zero padded.

    Attributes:
        size: Side of the kernel, odd.
        portable: Use the grouped convolution, which exporters turn into one operator.
    """

    size: int = 7
    portable: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps (b h w c) to the same shape."""
        init = fan_in_uniform(self.size**2)
        kernel = self.param("kernel", init, (self.size, self.size, x.shape[-1]))
        bias = self.param("bias", init, x.shape[-1:])
        convolve = grouped_convolution if self.portable else depthwise
        return convolve(x.astype(self.dtype), kernel) + bias.astype(self.dtype)
