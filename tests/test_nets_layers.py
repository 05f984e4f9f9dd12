"""Layers against the predecessor's numbers, and their promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from parity import load, nhwc

from xec_jax.nets.depthwise import depthwise, grouped_convolution
from xec_jax.nets.layers import (
    GRN,
    Conv,
    ConvTranspose,
    Dense,
    LayerNorm,
    bilinear_matrix,
    drop_path,
    gelu,
    resize,
    resize_mask,
)
from xec_jax.torch_weights import LAYOUTS


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("name", [k for k in load("ref_resize.npz") if k.startswith("in_")])
def test_resize_is_that_of_the_predecessor(name):
    arrays = load("ref_resize.npz")
    want = nhwc(arrays["out_" + name[3:]])
    got = resize(jnp.asarray(nhwc(arrays[name])), want.shape[1:3])
    # 3.6e-6 is how far the predecessor's float32 pixel positions are off.
    np.testing.assert_allclose(got, want, atol=5e-6)


@pytest.mark.parametrize("name", [k for k in load("ref_resize.npz") if k.startswith("nearest")])
def test_masks_are_resized_by_the_floor_rule(name):
    h, w = map(int, name.split("_")[1].split("x"))
    want = load("ref_resize.npz")[name]
    got = resize_mask(jnp.arange(h * w).reshape(1, h, w), want.shape)
    np.testing.assert_array_equal(got[0], want)


@pytest.mark.parametrize(("n_in", "n_out"), [(46, 4), (2, 4), (16, 93), (5, 5)])
def test_interpolation_weights_sum_to_one(n_in, n_out):
    np.testing.assert_allclose(bilinear_matrix(n_in, n_out).sum(1), 1, rtol=1e-6)


@pytest.mark.parametrize("stride", [1, 2])
def test_transposed_convolution(stride):
    arrays = load("ref_decoder_blocks.npz")
    name = f"ct_s{stride}"
    params = {
        "kernel": LAYOUTS["transposed"](arrays[f"{name}.weight"]),
        "bias": arrays[f"{name}.bias"],
    }
    got = ConvTranspose(5, stride).apply({"params": params}, nhwc(arrays["ct_x"]))
    np.testing.assert_allclose(got, nhwc(arrays[f"{name}_out"]), atol=2e-6)


def test_layer_norm_and_grn():
    arrays = load("ref_convblocks.npz")
    params = {"scale": arrays["lncf.weight"], "bias": arrays["lncf.bias"]}
    got = LayerNorm(1e-6).apply({"params": params}, nhwc(arrays["x"]))
    np.testing.assert_allclose(got, nhwc(arrays["lncf_out"]), atol=2e-6)
    params = {"gamma": arrays["grn.gamma"], "beta": arrays["grn.beta"]}
    for n in "34":
        got = GRN().apply({"params": params}, arrays["grn_x" + n])
        np.testing.assert_allclose(got, arrays["grn_out" + n], atol=2e-6)


def test_fresh_grn_is_the_identity_and_its_gradient_survives_zeros():
    x = normal(0, 2, 5, 6, 4)
    params = GRN().init(jax.random.key(0), x)
    np.testing.assert_array_equal(GRN().apply(params, x), x)
    slope = jax.grad(lambda x: GRN().apply({"params": {"gamma": x[0], "beta": x[1]}}, 0 * x).sum())
    assert np.isfinite(slope(normal(1, 2, 4))).all()


def test_gelu_is_the_exact_one_in_value_and_slope():
    x = jnp.linspace(-6, 6, 1001)
    exact = lambda x: jax.nn.gelu(x, approximate=False)  # noqa: E731
    np.testing.assert_allclose(gelu(x), exact(x), atol=1e-6)
    slopes = [jax.vmap(jax.grad(f))(x) for f in (gelu, exact)]
    np.testing.assert_allclose(*slopes, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 11, 9, 5), (1, 4, 5, 3), (3, 2, 2, 4)])
def test_shifted_depthwise_equals_grouped_convolution(shape):
    x, kernel, slope = normal(0, *shape), normal(1, 7, 7, shape[-1]), normal(2, *shape)
    got, pull = jax.vjp(depthwise, x, kernel)
    want, pull_want = jax.vjp(grouped_convolution, x, kernel)
    np.testing.assert_allclose(got, want, atol=2e-5)
    for a, b in zip(pull(slope), pull_want(slope), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-5)


def test_depthwise_adds_in_float32_when_the_data_are_bfloat16():
    x, kernel = normal(0, 2, 9, 9, 8), normal(1, 7, 7, 8)
    want = depthwise(x.astype(jnp.bfloat16).astype(jnp.float32), kernel)
    got, pull = jax.vjp(depthwise, x.astype(jnp.bfloat16), kernel)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), want, atol=2**-8 * abs(want).max())
    slopes = pull(got)
    assert (slopes[0].dtype, slopes[1].dtype) == (jnp.bfloat16, jnp.float32)


def test_drop_path_keeps_the_mean_and_treats_each_event_as_one():
    y = drop_path(jnp.ones((4000, 3, 2)), 0.25, jax.random.key(0))
    assert set(np.unique(y).round(6)) == {0, np.float32(4 / 3).round(6)}
    np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1, :1], y.shape))
    assert abs(float(y.mean()) - 1) < 4 * (0.25 / 0.75 / 4000) ** 0.5


@pytest.mark.parametrize(
    ("layer", "shape", "fan"),
    [
        (Dense(64), (1, 50), 50),
        (Conv(64, 4), (1, 5, 5, 2), 32),
        (ConvTranspose(64, 2), (1, 4, 4, 8), 576),
    ],
)
def test_weights_and_biases_start_uniform_in_the_fan(layer, shape, fan):
    params = layer.init(jax.random.key(0), jnp.zeros(shape))["params"]
    for value in params.values():
        assert float(abs(value).max()) <= fan**-0.5
        np.testing.assert_allclose(value.std(), (3 * fan) ** -0.5, rtol=0.3)


def test_even_kernels_pad_evenly():
    x = jnp.ones((1, 93, 44, 2))
    assert Conv(3, 4, 1, 1).init_with_output(jax.random.key(0), x)[0].shape == (1, 92, 43, 3)


def test_transposed_convolution_is_the_adjoint_of_the_strided_one():
    kernel, x, y = normal(0, 3, 3, 4, 5), normal(1, 1, 6, 6, 4), normal(2, 1, 12, 12, 5)
    params = {"kernel": kernel, "bias": jnp.zeros(5)}
    up = ConvTranspose(5, 2).apply({"params": params}, x)
    mirrored = kernel[::-1, ::-1].swapaxes(2, 3)
    down = lax.conv_general_dilated(
        y, mirrored, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose((up * y).sum(), (x * down).sum(), rtol=1e-4)
