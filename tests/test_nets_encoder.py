"""The whole networks: the predecessor's numbers, and what any input must not do to them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import block, load, nhwc, weights

from xec_jax import torch_weights
from xec_jax.errors import ConfigError
from xec_jax.geometry import make_detector
from xec_jax.nets.encoder import XecEncoder
from xec_jax.nets.mae import HexDecoder, MaskedAutoencoder
from xec_jax.transforms import SensorTransform

ARRAYS = load("ref_masking.npz")
HIDDEN = ARRAYS["mask65"] | (ARRAYS["x"][..., 1] == -1)
slow = pytest.mark.slow


def detector(name, model):
    """The arrangement of a parity set; its masks follow the predecessor's coarse rule."""
    geometry = "physical" if name == "fix" else "documented"
    mode = "split" if model.endswith("split") else "finegrid"
    pool = (3, 3) if model.endswith("pool33") else None
    return make_detector(geometry, mode, pool, "coarse")


def template(net):
    return jax.eval_shape(net.init, jax.random.key(0), ARRAYS["x"])["params"]


def state(name, model, fill):
    has_own = name == "seed" or (name == "fix" and not model.startswith("mae"))
    tensors = weights(f"{name if has_own else 'ref'}_{model}", fill)
    return {k.replace("proj_global", "proj_in"): v for k, v in tensors.items()}


def options(name):
    """The predecessor's first networks saw sentinels, and averaged them when pooling."""
    return {"zero_hidden_input": False, "sentinel_time": None} if name == "seed" else {}


@pytest.mark.parametrize(
    ("name", "model", "fill"),
    [
        ("ref", "mae_pool33", "A"),
        ("refB", "mae_pool33", "B"),
        pytest.param("ref", "mae_nopool", "A", marks=slow),
        ("fix", "mae_pool33", "A"),
        pytest.param("fix", "mae_nopool", "A", marks=slow),
        pytest.param("seed", "mae_pool33", "A", marks=slow),
    ],
)
def test_autoencoder(name, model, fill):
    want = load(f"{name}_{model}.npz")
    encoder = XecEncoder(detector(name, model).faces, **options(name))
    net = MaskedAutoencoder(encoder, hex_decoder_dim=1024 if name == "seed" else None)
    params = torch_weights.fill("mae", state(name, model, fill), template(net))
    for hidden, prefix in ((HIDDEN, "recon_"), (None, "recon_nofcmae_")):
        apply = jax.jit(lambda p, x, h=hidden: net.apply({"params": p}, x, h))
        faces = apply(params, ARRAYS["xmasked65"])
        assert set(faces) == {"inner", "us", "ds", "outer", "top", "bot"}
        for face, got in faces.items():
            if prefix + face in want:
                expected = nhwc(want[prefix + face])
                np.testing.assert_allclose(got, expected, atol=5e-6 if fill == "A" else 1e-4)


def test_wide_hex_decoder_of_the_first_autoencoder():
    want = load("seed_mae_pool33.npz")
    tensors = block(state("seed", "mae_pool33", "A"), "dec_top")
    face = make_detector("documented").face("top")
    net, latent = HexDecoder(face, width=1024), want["latent"][:, 4]
    params = jax.eval_shape(net.init, jax.random.key(0), latent)["params"]
    params = torch_weights.fill("hex_decoder", tensors, params)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 17_952_770
    got = jax.jit(net.apply)({"params": params}, latent)
    np.testing.assert_allclose(got, nhwc(want["recon_top"]), atol=5e-6)


def taps(net, params, x, hidden):
    """Tokens of the faces, after the first layer and at the end, in one forward pass."""
    seen = {}

    def listen(call, args, kwargs, context):
        out = call(*args, **kwargs)
        if context.module.name == "fusion":
            seen["tokens_face"] = args[0] - params["position"]
        if context.module.name == "layer0":
            seen["tokens_layer0"] = out
        return out

    with nn.intercept_methods(listen):
        seen["tokens_out"] = net.apply({"params": params}, x, hidden)
    return seen


@pytest.mark.parametrize(
    ("name", "model", "fill"),
    [
        ("ref", "tokens_pool33", "A"),
        pytest.param("refB", "regressor_pool33", "B", marks=slow),
        pytest.param("ref", "regressor_nopool", "A", marks=slow),
        pytest.param("ref", "regressor_split", "A", marks=slow),
        pytest.param("fix", "regressor_pool33", "A", marks=slow),
        pytest.param("fix", "regressor_nopool", "A", marks=slow),
        pytest.param("fix", "regressor_split", "A", marks=slow),
    ],
)
def test_encoder(name, model, fill):
    want = load(f"{name}_{model}.npz")
    net = XecEncoder(detector(name, model).faces)
    tensors = state(name, model.replace("tokens", "regressor"), fill)
    params = torch_weights.fill("regressor", tensors, {"encoder": template(net)})["encoder"]
    for prefix, x, hidden in (("", ARRAYS["x"], None), ("m_", ARRAYS["xmasked65"], HIDDEN)):
        got = jax.jit(lambda p, x, h=hidden: taps(net, p, x, h))(params, x)
        atol = 5e-6 if fill == "A" else 5e-5 if prefix else 2e-5
        for key, value in got.items():
            if prefix + key in want:
                np.testing.assert_allclose(value, want[prefix + key], atol=atol)


@pytest.fixture(scope="module")
def small():
    """A narrow autoencoder with large weights, so that no path through it is nearly constant.

    The inner face is left out to save compile time: it takes the same path as the others.
    """
    net = MaskedAutoencoder(XecEncoder(make_detector().faces[1:], dim=128, n_heads=2), 8)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: np.float32(0.3) * rng.standard_normal(leaf.shape, np.float32), template(net)
    )
    return net, params, jax.jit(lambda p, x, h: net.apply({"params": p}, x, h))


def test_events_do_not_see_each_other(small):
    _, params, apply = small
    x, hidden = ARRAYS["xmasked65"], HIDDEN
    both = apply(params, x, hidden)
    swapped = apply(params, x[::-1], hidden[::-1])
    for face in both:
        np.testing.assert_allclose(swapped[face][::-1], both[face], atol=1e-5)


def test_hidden_values_do_not_leak(small):
    _, params, apply = small
    x = ARRAYS["x"]
    changed = np.where(HIDDEN[..., None], x + 5, x)
    one, other = apply(params, x, HIDDEN), apply(params, changed, HIDDEN)
    for face in one:
        np.testing.assert_array_equal(one[face], other[face])


def test_portable_forms_are_equal(small):
    net, params, apply = small
    portable = net.clone(encoder=net.encoder.clone(portable=True))
    want = apply(params, ARRAYS["x"], HIDDEN)
    got = jax.jit(lambda p, x, h: portable.apply({"params": p}, x, h))(params, ARRAYS["x"], HIDDEN)
    for face in want:
        np.testing.assert_allclose(got[face], want[face], atol=2e-5)


def test_portable_forms_hold_nothing_that_exporters_get_wrong(small):
    net, params, _ = small
    portable = net.clone(encoder=net.encoder.clone(portable=True))
    (batch,) = jax.export.symbolic_shape("b")
    args = jax.ShapeDtypeStruct((batch, 4760, 2), jnp.float32)
    exported = jax.export.export(jax.jit(lambda x: portable.apply({"params": params}, x)))(args)
    text = exported.mlir_module()
    forbidden = ("stablehlo.scatter", "stablehlo.sort", "erfc", "log_plus_one", "0x7FC0")
    found = [op for op in forbidden if op in text]
    assert not found


def test_bfloat16_stays_close_and_keeps_float32_parameters(small):
    net, params, apply = small
    rough = net.clone(encoder=net.encoder.clone(dtype=jnp.bfloat16))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(template(rough)))
    want = apply(params, ARRAYS["x"], HIDDEN)
    got = jax.jit(lambda p, x, h: rough.apply({"params": p}, x, h))(params, ARRAYS["x"], HIDDEN)
    for face in want:
        assert got[face].dtype == jnp.float32
        error = np.sqrt(np.square(got[face] - want[face]).mean())
        assert error < 0.1 * np.std(want[face])


FLOAT32_ONLY = {
    *("exp", "log", "log1p", "expm1", "erf", "rsqrt", "sqrt", "div"),
    *("reduce_sum", "reduce_max", "eq", "ne"),
}
"""Operations of norms, softmax, GELU, denormalization and comparisons of masks."""


def operations(jaxpr):
    """All equations of a traced function and of the functions that it calls."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from operations(inner)


def test_bfloat16_is_left_where_it_would_hurt():
    faces = make_detector().faces
    net = XecEncoder(
        faces, dim=32, n_heads=2, position="rotary", photons=SensorTransform(), dtype=jnp.bfloat16
    )
    net = MaskedAutoencoder(net, 8)
    traced = jax.make_jaxpr(net.apply)({"params": template(net)}, ARRAYS["x"], HIDDEN)
    seen = {}
    for operation in operations(traced.jaxpr):
        types = {
            v.aval.dtype for v in operation.invars if jnp.issubdtype(v.aval.dtype, jnp.floating)
        }
        seen.setdefault(operation.primitive.name, set()).update(types)
    bfloat16 = jnp.dtype(jnp.bfloat16)
    assert bfloat16 in seen["conv_general_dilated"]
    assert bfloat16 in seen["dot_general"]
    assert {"exp", "log1p", "expm1", "rsqrt", "ne"} <= seen.keys()
    assert not [name for name in FLOAT32_ONLY if bfloat16 in seen.get(name, ())]


@pytest.mark.parametrize(
    ("dim", "n_layers", "width"), [(1024, 2, None), (512, 3, 1024), (64, 1, 8)]
)
def test_parameter_counts(dim, n_layers, width):
    net = XecEncoder(
        make_detector().faces, dim=dim, n_layers=n_layers, n_heads=8, hidden_width=width
    )
    sizes = {
        name: sum(leaf.size for leaf in jax.tree.leaves(part))
        for name, part in template(net).items()
    }
    attention, norms = 4 * dim * (dim + 1), 4 * dim
    feed_forward = 2 * dim * (width or 4 * dim) + (width or 4 * dim) + dim
    assert sizes["fusion"] == n_layers * (attention + norms + feed_forward)
    assert sizes["position"] == 6 * dim
    assert sizes["graph_encoder"] == 403_744 - 97 * (1024 - dim)
    if dim == 1024:
        assert sizes["grid_backbone"] == 140_768
        assert sum(sizes.values()) == 25_743_104


def test_gradients_stay_finite(small):
    net, params, _ = small
    # All-zero parameters send nothing but zeros through GRN, the hardest place for a gradient.
    zeros = jax.tree.map(jnp.zeros_like, params)

    @jax.jit
    @jax.grad
    def slope(p, x, hidden):
        rngs = {"dropout": jax.random.key(1)}
        faces = net.apply({"params": p}, x, hidden, deterministic=False, rngs=rngs)
        return sum(jnp.square(face).mean() for face in faces.values())

    for value, is_hidden in ((-1.0, True), (0.0, True), (-1.0, False), (0.0, False)):
        x, hidden = jnp.full((1, 4760, 2), value), jnp.full((1, 4760), is_hidden)
        for p in (params, zeros):
            leaves = jax.tree.leaves(slope(p, x, hidden))
            assert all(np.isfinite(leaf).all() for leaf in leaves)


def test_layers_start_different_and_tables_small():
    net = XecEncoder(make_detector().faces[4:], dim=64)
    params = jax.jit(net.init)(jax.random.key(0), ARRAYS["x"][:1])["params"]
    a, b = (params["fusion"][f"layer{i}"]["attention"]["qkv"] for i in range(2))
    assert (a["kernel"] != b["kernel"]).any()
    np.testing.assert_array_equal(a["bias"], 0)
    bound = (6 / (64 + 192)) ** 0.5
    np.testing.assert_allclose(abs(a["kernel"]).max(), bound, rtol=0.01)
    np.testing.assert_allclose(params["position"].std(), 0.02, rtol=0.2)


def test_the_split_arrangement_has_seven_tokens_and_skips_the_centre_when_decoding():
    net = MaskedAutoencoder(
        XecEncoder(make_detector(outer_mode="split").faces, dim=32), 8, ("npho",)
    )
    shapes = jax.eval_shape(net.init_with_output, jax.random.key(0), ARRAYS["x"])[0]
    assert shapes["outer_coarse"].shape == (2, 9, 24, 1)
    assert "outer_center" not in shapes
    assert len(shapes) == 6


@pytest.mark.parametrize(("dim", "n_heads"), [(40, 8), (96, 64)])
def test_widths_that_do_not_fit_are_refused(dim, n_heads):
    net = XecEncoder(make_detector().faces, dim=dim, n_heads=n_heads)
    with pytest.raises(ConfigError, match="multiple of 32"):
        template(net)
