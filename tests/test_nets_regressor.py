"""The heads and the whole regressor: the predecessor's numbers and parameter counts."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import GOLDEN, filled, load, weights

from xec_jax.geometry import make_detector
from xec_jax.nets.encoder import XecEncoder
from xec_jax.nets.regressor import Regressor, TaskHead
from xec_jax.torch_weights import fill

OUT = {"angle": 2, "energy": 1, "timing": 1, "uvwFI": 3, "angleVec": 3, "n_gamma": 5}
FOUR = {name: OUT[name] for name in ("angle", "energy", "timing", "uvwFI")}
SETS = [
    ("ref", "pool33", "A"),
    ("ref", "split", "A"),
    ("refB", "pool33", "B"),
    ("ref", "nopool", "A"),
    ("fix", "pool33", "A"),
    ("fix", "nopool", "A"),
    ("fix", "split", "A"),
]
ATOL = {"A": 2e-6, "B": 2e-5}


def expected(name, model):
    """Tokens and outputs; a small file in the tree or the whole one beside it."""
    short = f"{name}_heads_{model}.npz"
    return load(short if (GOLDEN / short).exists() else f"{name}_regressor_{model}.npz")


def detector(name, model):
    geometry = "physical" if name == "fix" else "documented"
    mode = "split" if model == "split" else "finegrid"
    return make_detector(geometry, mode, (3, 3) if model == "pool33" else None, "coarse")


@cache
def head_tensors(n_tokens, fill_name):
    tensors = {}
    for task, out in OUT.items():
        layers = {"0": (256, 1024 * n_tokens), "1": (256,), "4": (256, 256), "6": (out, 256)}
        for layer, shape in layers.items():
            kind = "norm_weight" if layer == "1" else "param"
            for leaf, size in (("weight", shape), ("bias", shape[:1])):
                name = f"heads.{task}.{layer}.{leaf}"
                tensors[name] = filled(name, size, kind if leaf == "weight" else "param", fill_name)
    return tensors


@pytest.mark.parametrize(("name", "model", "fill_name"), SETS)
def test_heads(name, model, fill_name):
    want = expected(name, model)
    tokens = jnp.asarray(want["tokens_out"])
    heads = {f"head_{task}": TaskHead(out) for task, out in OUT.items()}
    template = {
        key: jax.eval_shape(head.init, jax.random.key(0), tokens)["params"]
        for key, head in heads.items()
    }
    params = fill("regressor", head_tensors(tokens.shape[1], fill_name), template)
    for task in OUT:
        head = f"head_{task}"
        got = heads[head].apply({"params": params[head]}, tokens)
        np.testing.assert_allclose(got, want[f"out_{task}"], atol=ATOL[fill_name])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "model", "fill_name"), SETS)
def test_whole_network(name, model, fill_name):
    net = Regressor(XecEncoder(detector(name, model).faces), OUT)
    x, want = load("ref_masking.npz")["x"], expected(name, model)
    tensors = weights(f"{'fix' if name == 'fix' else 'ref'}_regressor_{model}", fill_name)
    tensors |= head_tensors(want["tokens_out"].shape[1], fill_name)
    params = fill("regressor", tensors, jax.eval_shape(net.init, jax.random.key(0), x)["params"])
    got = jax.jit(net.apply)({"params": params}, x)
    for task in OUT:
        np.testing.assert_allclose(got[task], want[f"out_{task}"], atol=ATOL[fill_name])


@pytest.mark.parametrize(
    ("model", "heads", "total"),
    [
        ("pool33", OUT, 35_583_503),
        ("pool33", FOUR, 32_302_599),
        ("split", OUT, 37_157_391),
    ],
)
def test_parameter_counts(model, heads, total):
    net = Regressor(XecEncoder(detector("fix", model).faces), heads)
    x = jnp.zeros((1, 4760, 2))
    params = jax.eval_shape(net.init, jax.random.key(0), x)["params"]
    assert set(params) == {"encoder", *(f"head_{task}" for task in heads)}
    counts = {k: sum(leaf.size for leaf in jax.tree.leaves(v)) for k, v in params.items()}
    assert sum(counts.values()) == total
    if model == "pool33":
        assert counts["head_energy"] == 1_639_681
        assert counts["head_angle"] == 1_639_938
        assert counts["head_uvwFI"] == 1_640_195
        assert counts.get("head_n_gamma", 1_640_709) == 1_640_709


def test_heads_that_the_network_does_not_have_are_left_out():
    tensors = head_tensors(6, "A")
    head = TaskHead(1)
    template = jax.eval_shape(head.init, jax.random.key(0), jnp.zeros((1, 6, 1024)))["params"]
    params = fill("regressor", tensors, {"head_energy": template})
    assert set(params) == {"head_energy"}


def test_dropout_acts_in_training_only():
    head, tokens = TaskHead(2, hidden=8, dropout=0.5), jnp.ones((64, 6, 4))
    params = head.init(jax.random.key(0), tokens)
    np.testing.assert_array_equal(head.apply(params, tokens)[0], head.apply(params, tokens)[1])
    noisy = head.apply(params, tokens, False, rngs={"dropout": jax.random.key(1)})
    assert len(np.unique(noisy[:, 0])) > 8


def test_bfloat16_tokens_give_float32_numbers():
    head, tokens = TaskHead(2, dtype=jnp.bfloat16), jnp.ones((3, 6, 32))
    params = head.init(jax.random.key(0), tokens)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    assert head.apply(params, tokens).dtype == jnp.float32
