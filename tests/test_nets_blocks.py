"""Blocks and sub-networks against the predecessor's numbers, weights stored beside them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import block, load, nhwc

from xec_jax.geometry import GraphFace, hex_edges
from xec_jax.nets.backbone import FaceBackbone
from xec_jax.nets.convnext import ConvNeXtBlock
from xec_jax.nets.fusion import FusionTransformer
from xec_jax.nets.hexgraph import HexDepthwise, HexEncoder, HexNeXtBlock
from xec_jax.nets.mae import GridDecoder, HexDecoder
from xec_jax.torch_weights import fill

GRAPHS = {
    name: GraphFace("top", np.arange(73, dtype=np.int32), hex_edges(geometry))
    for name, geometry in (("ref", "documented"), ("fix", "physical"))
}


def run(net, kind, tensors, *inputs):
    """Applies `net` with foreign weights."""
    template = jax.eval_shape(lambda: net.init(jax.random.key(0), *inputs))["params"]
    params = fill(kind, tensors, template)
    return jax.jit(lambda p: net.apply({"params": p}, *inputs))(params)


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_convnext_block(masked, portable):
    arrays = load("ref_convblocks.npz")
    hidden = arrays["mask"][:, 0] > 0 if masked else None
    net = ConvNeXtBlock(16, portable=portable)
    got = run(net, "next_block", block(arrays, "blk"), nhwc(arrays["x"]), hidden)
    want = arrays["out_masked" if masked else "out"]
    np.testing.assert_allclose(got, nhwc(want), atol=5e-6)


@pytest.mark.parametrize("name", ["ref", "fix"])
def test_hex_edges(name):
    want = load(f"{name}_hexgraph.npz")["edge_index"]
    np.testing.assert_array_equal(GRAPHS[name].edges, want)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("face", ["us", "outer33", "coarse", "center"])
def test_face_backbone(face, masked):
    arrays = load("ref_backbone.npz")
    hidden = arrays[f"{face}_mask"][:, 0] > 0 if masked else None
    x = nhwc(arrays[f"{face}_x"])
    got = run(FaceBackbone(8), "grid_backbone", block(arrays, "bb"), x, hidden)
    want = arrays[f"{face}_out_masked" if masked else f"{face}_out"]
    np.testing.assert_allclose(got, want, atol=5e-5 if masked else 2e-5)


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("name", ["ref", "fix"])
def test_hex_blocks(name, portable):
    arrays, graph = load(f"{name}_hexblocks.npz"), GRAPHS[name]
    x, hidden = arrays["x"], arrays["mask"] > 0
    params = {"kernel": arrays["dw.weight"][0], "bias": arrays["dw.bias"][0, 0]}
    got = HexDepthwise(portable).apply({"params": params}, x, graph)
    np.testing.assert_allclose(got, arrays["dw_out"], atol=2e-6)
    net, weights = HexNeXtBlock(24, portable=portable), block(arrays, "blk")
    got = run(net, "next_block", weights, x, graph)
    np.testing.assert_allclose(got, arrays["blk_out"], atol=5e-6)
    got = run(net, "next_block", weights, x, graph, hidden)
    np.testing.assert_allclose(got, arrays["blk_out_masked"], atol=5e-6)


@pytest.mark.parametrize("name", ["ref", "fix"])
def test_hex_encoder_and_decoder(name):
    arrays, graph = load(f"{name}_hexblocks.npz"), GRAPHS[name]
    net, weights = HexEncoder(64, 24, 2), block(arrays, "enc")
    got = run(net, "graph_encoder", weights, arrays["enc_x"], graph)
    np.testing.assert_allclose(got, arrays["enc_out"], atol=2e-5)
    got = run(net, "graph_encoder", weights, arrays["enc_x"], graph, arrays["mask"] > 0)
    np.testing.assert_allclose(got, arrays["enc_out_masked"], atol=2e-5)
    decoder = HexDecoder(graph, width=24)
    got = run(decoder, "hex_decoder", block(arrays, "dec"), arrays["dec_z"])
    np.testing.assert_allclose(got, nhwc(arrays["dec_out"]), atol=2e-5)


def test_grid_decoder():
    arrays = load("ref_decoder_blocks.npz")
    net = GridDecoder((24, 6), width=16)
    got = run(net, "grid_decoder", block(arrays, "dec"), arrays["z"])
    np.testing.assert_allclose(got, nhwc(arrays["out"]), atol=2e-5)


def test_fusion_transformer():
    arrays = load("ref_transformer.npz")
    weights = block(arrays, "te")
    for n_layers, want in ((1, "out_layer0"), (2, "out")):
        kept = {k: v for k, v in weights.items() if int(k.split(".")[1]) < n_layers}
        net = FusionTransformer(n_layers, hidden_width=128)
        got = run(net, "fusion", kept, arrays["x"])
        np.testing.assert_allclose(got, arrays[want], atol=5e-6)


def test_hex_blocks_do_not_depend_on_the_numbering_of_the_nodes():
    graph = GRAPHS["fix"]
    order = np.random.default_rng(0).permutation(73)
    edges = graph.edges.copy()
    edges[:2] = np.argsort(order)[edges[:2]]
    renamed = GraphFace("top", graph.sensors[order], edges)
    net, x = HexNeXtBlock(8), jax.random.normal(jax.random.key(0), (2, 73, 8))
    params = net.init(jax.random.key(1), x, graph)
    want = net.apply(params, x, graph)[:, order]
    np.testing.assert_allclose(net.apply(params, x[:, order], renamed), want, atol=2e-6)


def test_messages_flow_from_source_to_target():
    graph = GraphFace("pair", np.arange(2, dtype=np.int32), np.array([[0], [1], [3]], np.int32))
    kernel = jnp.arange(7.0)[:, None]
    params = {"kernel": kernel, "bias": jnp.zeros(1)}
    x = jnp.array([[[5.0], [7.0]]])
    for portable in (False, True):
        y = HexDepthwise(portable).apply({"params": params}, x, graph)
        np.testing.assert_array_equal(y[0, :, 0], [0, 15])


def test_drop_path_needs_a_key_and_spares_evaluation():
    net, x = ConvNeXtBlock(4, drop_path=0.5), jax.random.normal(jax.random.key(0), (64, 5, 5, 4))
    params = net.init(jax.random.key(1), x)
    kept = net.apply(params, x)
    rngs = {"dropout": jax.random.key(2)}
    trained = net.apply(params, x, None, deterministic=False, rngs=rngs)
    is_dropped = np.isclose(trained, x, atol=1e-7).all((1, 2, 3))
    assert 16 < is_dropped.sum() < 48
    np.testing.assert_allclose(
        trained[~is_dropped], (2 * kept - x)[~is_dropped], rtol=1e-5, atol=1e-5
    )
