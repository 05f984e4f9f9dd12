"""Foreign weights: everything used, everything filled, or an error that says what is wrong."""

import jax
import numpy as np
import pytest
from parity import weights

from xec_jax.errors import ConfigError
from xec_jax.geometry import make_detector
from xec_jax.nets.encoder import XecEncoder
from xec_jax.nets.mae import MaskedAutoencoder
from xec_jax.torch_weights import fill

X = np.zeros((1, 4760, 2), np.float32)


@pytest.fixture(scope="module")
def template():
    net = MaskedAutoencoder(XecEncoder(make_detector("documented").faces))
    return jax.eval_shape(net.init, jax.random.key(0), X)["params"]


@pytest.fixture(scope="module")
def tensors():
    return weights("ref_mae_pool33", "A")


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_parameter_counts_are_those_of_the_predecessor(template):
    encoder = template["encoder"]
    assert count(encoder) == 25_743_104
    assert count(encoder["grid_backbone"]) == 140_768
    assert count(encoder["graph_encoder"]) == 403_744
    assert count(encoder["fusion"]) == 25_192_448
    assert count(template) == 45_031_436


def test_all_values_arrive(template, tensors):
    params = fill("mae", tensors, template)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, template)
    foreign = sum(v.sum(dtype=float) for k, v in tensors.items() if k != "channel_log_vars")
    ours = sum(leaf.sum(dtype=float) for leaf in jax.tree.leaves(params))
    np.testing.assert_allclose(ours, foreign, rtol=1e-9)


def test_encoders_come_from_regressors_and_autoencoders_alike(template, tensors):
    prefix = "encoder."
    bare = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
    want = fill("mae", tensors, template)["encoder"]
    got = fill("encoder", bare, template["encoder"])
    jax.tree.map(np.testing.assert_array_equal, got, want)
    renamed = {f"backbone.{k}": v for k, v in bare.items()}
    renamed |= {"backbone.hex_edge_index": np.zeros((3, 431)), "heads.angle.0.bias": np.zeros(3)}
    got = fill("regressor", renamed, {"encoder": template["encoder"]})["encoder"]
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_misfits_are_listed(template, tensors):
    bad = dict(tensors)
    del bad["encoder.pos_embed"]
    bad["encoder.extra.weight"] = np.zeros(3)
    bad["dec_top.head.1.bias"] = np.zeros(7)
    stem = "encoder.backbone.stage1.0.dwconv.weight"
    bad[stem] = np.zeros((32, 2, 7, 7))
    with pytest.raises(ConfigError) as caught:
        fill("mae", bad, template)
    message = str(caught.value)
    assert "4 tensors" in message
    assert "missing encoder/position (6, 1024)" in message
    assert "unexpected encoder.extra.weight (3,)" in message
    assert "dec_top.head.1.bias: (7,) does not become (2,) of decoder_top/predict/bias" in message
    assert f"wrong shape {stem}" in message


def test_a_split_checkpoint_does_not_fit_a_fine_grid(tensors, template):
    bad = tensors | {"encoder.pos_embed": np.zeros((1, 7, 1024), np.float32)}
    with pytest.raises(ConfigError, match="outer mode"):
        fill("mae", bad, template)


def test_unknown_kinds_are_named():
    with pytest.raises(ConfigError, match=r"one of .*inpainter"):
        fill("denoiser", {}, {})
