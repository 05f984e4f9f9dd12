"""The inpainter's heads: the predecessor's numbers, neighbor tables, and what must not leak."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import load, weights

from xec_jax.geometry import (
    OUTER_IDS,
    make_detector,
    outer_coarse_map,
    sensor_rectangles,
)
from xec_jax.nets.encoder import XecEncoder
from xec_jax.nets.inpaint_attention import CrossAttentionHead, neighbor_mean
from xec_jax.nets.inpaint_grid import SensorRegions
from xec_jax.nets.inpainter import Inpainter
from xec_jax.nets.neighbors import box_neighbors, nearest_sensors, node_neighbors, nodes_within
from xec_jax.torch_weights import fill

ARRAYS = load("ref_masking.npz")
X, MASK = ARRAYS["x"], ARRAYS["mask10"].astype(bool)
SHOWN = np.where(MASK[..., None], np.float32(-1), X)
HEADS = {
    "perface": "per_face",
    "globalonly": "global_only",
    "maskedattn": "masked_attention",
    "crossattn": "cross_attention",
}
slow = pytest.mark.slow


def network(name: str, **encoder) -> Inpainter:
    """The network of a parity set, for instance `ref_inpainter_perface_pool33`."""
    kind, _, head, pool, *channels = name.split("_")
    geometry = "physical" if kind == "fix" else "documented"
    detector = make_detector(geometry, "finegrid", (3, 3) if pool == "pool33" else None, "coarse")
    regions = SensorRegions(OUTER_IDS, sensor_rectangles(outer_coarse_map(geometry)))
    predicted = ("npho",) if channels else ("npho", "time")
    net = XecEncoder(detector.faces, **encoder)
    return Inpainter(net, detector, regions, HEADS[head], predicted)


def template(net):
    return jax.eval_shape(net.init, jax.random.key(0), X)["params"]


def parameters(name, net):
    letter = "B" if name.startswith("refB") else "A"
    tensors = weights(name.replace("refB", "ref").replace("fix", "ref"), letter)
    return fill("inpainter", tensors, template(net))


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("ref_inpainter_perface_pool33", ""),
        ("refB_inpainter_perface_pool33", ""),
        ("ref_inpainter_globalonly_pool33", "ref_inpainter_perface_pool33"),
        ("ref_inpainter_maskedattn_nopool", "ref_tokens_nopool"),
        pytest.param("ref_inpainter_perface_nopool", "", marks=slow),
        pytest.param("fix_inpainter_perface_pool33", "", marks=slow),
        pytest.param("fix_inpainter_perface_nopool", "", marks=slow),
        pytest.param("fix_inpainter_maskedattn_nopool", "fix_inpainter_perface_nopool", marks=slow),
    ],
)
def test_heads_of_the_predecessor(name, tokens):
    """Its tokens and its masks through our heads; it gives masked attention where masked only."""
    net, want = network(name), load(f"{name}.npz")
    params = parameters(name, net)
    heads = {key: value for key, value in params.items() if key != "encoder"}
    latent = load(f"{tokens or name}.npz")["latent"]
    apply = jax.jit(lambda p, t: net.apply({"params": p}, t, SHOWN, MASK, method="heads"))
    got = apply(heads, latent)
    judged = MASK if "maskedattn" in name else np.ones_like(MASK)
    atol = 2e-5 if name.startswith("refB") else 2e-6
    np.testing.assert_allclose(got[judged], want["pred_all"][judged], atol=atol)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("ref_inpainter_perface_pool33", marks=slow),
        pytest.param("ref_inpainter_globalonly_pool33", marks=slow),
        pytest.param("ref_inpainter_perface_nopool_nphoonly", marks=slow),
        pytest.param("refB_inpainter_maskedattn_nopool", marks=slow),
    ],
)
def test_whole_inpainters_of_the_predecessor(name):
    """Encoder and heads; invalid is what has no time or, for photons alone, no photon count."""
    net, want = network(name), load(f"{name}.npz")
    unseen = MASK | (X[..., 0 if name.endswith("nphoonly") else 1] == -1)

    @jax.jit
    def apply(params):
        tokens = net.apply({"params": params}, SHOWN, unseen, method=lambda n, *a: n.encoder(*a))
        return tokens, net.apply({"params": params}, tokens, SHOWN, MASK, method="heads")

    tokens, got = apply(parameters(name, net))
    is_strong = name.startswith("refB")
    if "latent" in want:
        np.testing.assert_allclose(tokens, want["latent"], atol=5e-5 if is_strong else 5e-6)
    error = np.abs(got - want["pred_all"])[MASK]
    assert error.max() < (2e-5 if is_strong else 2e-6)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("ref_inpainter_perface_pool33", 27_199_117),
        ("ref_inpainter_maskedattn_nopool", 27_196_626),
        ("ref_inpainter_crossattn_nopool", 25_974_274),
        ("ref_inpainter_globalonly_pool33", 26_537_452),
    ],
)
def test_parameter_counts_are_those_of_the_predecessor(name, count):
    shapes = template(network(name))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count
    filled = parameters(name, network(name))
    assert jax.tree.map(np.shape, filled) == jax.tree.map(np.shape, shapes)


def test_buffers_of_a_checkpoint_are_passed_over():
    name = "ref_inpainter_crossattn_nopool"
    tensors = weights(name, "A")
    for buffer in (
        "us_idx",
        "head_us.nbr_counts",
        "cross_attn_head.pos_embed",
        "head_top.edge_index",
    ):
        tensors[buffer] = np.zeros(3)
    tensors["encoder.head.0.bias"] = np.zeros(256, np.float32)
    fill("inpainter", tensors, template(network(name)))


@pytest.mark.parametrize("pool", ["pool33", "nopool"])
def test_pixels_of_sensors_are_those_of_the_predecessor(pool):
    name = f"ref_inpainter_perface_{pool}"
    want, net = load(f"{name}.npz"), network(name)
    table, exists = net.regions.pixels(net.detector.face("outer"))
    np.testing.assert_array_equal(exists, want["outer_valid_positions"])
    np.testing.assert_array_equal(table[exists], want["outer_gather_indices"][exists])
    np.testing.assert_array_equal(net.regions.sensors, want["outer_sensor_ids"])


def test_neighbors_are_those_of_the_predecessor():
    want = load("ref_inpainter_maskedattn_nopool.npz")
    top = make_detector("documented").face("top")
    table = nodes_within(top)
    counts = want["hex_nbr_counts"]
    np.testing.assert_array_equal((table < 73).sum(1), counts)
    for row, expected, n in zip(table, want["hex_nbr_indices"], counts, strict=True):
        np.testing.assert_array_equal(row[:n], expected[:n])
    ids = jnp.arange(1, 145.0).reshape(1, 24, 6, 1)
    seen = np.stack([np.ravel(x) for x in box_neighbors(ids, 0.0)], 1).astype(int) - 1
    np.testing.assert_array_equal((seen >= 0).sum(1), want["us_nbr_counts"])
    for row, expected, n in zip(seen, want["us_nbr_indices"], want["us_nbr_counts"], strict=True):
        np.testing.assert_array_equal(row[row >= 0], expected[:n])


def test_nearest_sensors_break_ties_by_id():
    detector = make_detector()
    table, position = nearest_sensors(detector, 16), detector.sensors.positions
    for sensor in (0, 46 * 44 + 21, 4092, 4300, 4600, 4750, 4759):
        distance = np.round(np.linalg.norm(position - position[sensor], axis=1), 4)
        distance[sensor] = np.inf
        expected = sorted(range(4760), key=lambda i, d=distance: (d[i], i))[:16]
        np.testing.assert_array_equal(table[sensor], expected)


def test_hidden_neighbors_do_not_count():
    """A mean by hand, on a grid and on a graph, at a corner and where all neighbors are hidden."""
    rng = np.random.default_rng(0)
    y, score = rng.normal(size=(1, 5, 6, 3)), rng.normal(size=(1, 5, 6, 1))
    hidden = np.zeros((1, 5, 6), bool)
    hidden[0, 0, 1:3] = hidden[0, 4, 5] = True
    got = neighbor_mean(jnp.asarray(y), jnp.asarray(score), jnp.asarray(hidden), box_neighbors)
    cells = [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]
    use = [c for c in cells if not hidden[0][c]]
    w = np.exp([score[0, r, c, 0] for r, c in use])
    np.testing.assert_allclose(got[0, 0, 0], w @ [y[0][c] for c in use] / w.sum(), rtol=1e-5)
    everything = jnp.ones((1, 5, 6), bool)
    got = neighbor_mean(jnp.asarray(y), jnp.asarray(score), everything, box_neighbors)
    np.testing.assert_allclose(got[0, 0, 0], np.mean([y[0][c] for c in cells], 0), rtol=1e-5)
    top = make_detector().face("top")
    y, score = rng.normal(size=(1, 73, 3)), rng.normal(size=(1, 73, 1))
    hidden = rng.uniform(size=(1, 73)) < 0.3
    neighbors = node_neighbors(top)
    got = neighbor_mean(jnp.asarray(y), jnp.asarray(score), jnp.asarray(hidden), neighbors)
    use = [i for i in nodes_within(top)[40] if i < 73 and not hidden[0, i]]
    w = np.exp(score[0, use, 0])
    np.testing.assert_allclose(got[0, 40], w @ y[0, use] / w.sum(), rtol=1e-5)


def test_cross_attention_against_plain_numpy():
    """Written from the definition, in float64, for some sensors; the code's waves included."""
    detector = make_detector()
    head = CrossAttentionHead(detector)
    rng = np.random.default_rng(1)
    tokens = rng.normal(size=(2, 6, 32)).astype(np.float32)
    unseen = MASK | (X[..., 0] == -1)
    args = (jnp.asarray(SHOWN), jnp.asarray(unseen), jnp.asarray(tokens))
    shapes = jax.eval_shape(head.init, jax.random.key(0), *args)["params"]
    params = jax.tree.map(lambda s: 0.3 * rng.standard_normal(s.shape, np.float32), shapes)
    got = jax.jit(head.apply)({"params": params}, *args)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, float), params)

    def dense(name, x):
        return x @ p[name]["kernel"] + p[name]["bias"]

    def softmax(s):
        return np.exp(s - s.max()) / np.exp(s - s.max()).sum()

    def place(i):
        xyz = detector.sensors.positions[i].astype(np.float32)
        angle = (xyz[:, None] * 2 ** np.arange(16, dtype=np.float32)) * np.float32(np.pi / 100)
        code = np.concatenate([np.sin(angle), np.cos(angle)], 1).ravel()
        return np.r_[code, p["face"][detector.sensor_face[i]]]

    for event, i in ((0, 0), (1, 2000), (0, 4200), (1, 4752), (0, 4700)):
        near = nearest_sensors(detector, 16)[i]
        source = dense("sensor", np.array([np.r_[SHOWN[event, j], place(j)] for j in near]))
        scores = source @ dense("sensor_query", place(i)) / 8
        local = softmax(np.where(unseen[event, near], -1e4, scores)) @ source
        kinds = dense("token_face", p["face"])
        y = dense("token", tokens[event].astype(float)) + kinds
        query = dense("token_query", place(i)).reshape(4, 32)
        key, value = (dense(name, y).reshape(6, 4, 32) for name in ("key", "value"))
        far = [softmax(key[:, k] @ query[k] / 32**0.5) @ value[:, k] for k in range(4)]
        z = np.r_[local, dense("token_out", np.concatenate(far))]
        z = (z - z.mean()) / np.sqrt(z.var() + 1e-5) * p["norm"]["scale"] + p["norm"]["bias"]
        z = dense("hidden", z)
        z = z * np.array([0.5 * (1 + float(jax.lax.erf(v / 2**0.5))) for v in z])
        np.testing.assert_allclose(got[event, i], dense("predict", z), atol=2e-4)


def few_faces(*names: str) -> Inpainter:
    """A narrow network for a detector that has only some of its faces."""
    net = network("fix_inpainter_perface_pool33", dim=32, n_heads=4)
    faces = tuple(net.detector.face(name) for name in names)
    detector = dataclasses.replace(net.detector, faces=faces)
    encoder = net.encoder.clone(faces=faces)
    return net.clone(detector=detector, encoder=encoder, grid_width=8, graph_width=8)


@pytest.fixture(scope="module", params=HEADS.values())
def small(request):
    """Narrow networks of each head type, with large weights, for a detector of three faces."""
    net = few_faces("us", "outer", "top").clone(head_type=request.param)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(net.init, jax.random.key(0), X)["params"]
    params = {
        head: jax.tree.map(
            lambda leaf: np.float32(0.3) * rng.standard_normal(leaf.shape, np.float32), tree
        )
        for head, tree in shapes.items()
        if head != "encoder"
    }
    tokens = rng.normal(size=(2, 3, 32)).astype(np.float32)
    apply = jax.jit(lambda p, t, x, h: net.apply({"params": p}, t, x, h, method="heads"))
    return net, params, tokens, apply


def test_every_sensor_is_predicted_and_events_do_not_see_each_other(small):
    net, params, tokens, apply = small
    both = apply(params, tokens, SHOWN, MASK)
    assert both.shape == (2, 4760, 2)
    assert np.isfinite(both).all()
    on_faces = np.isin(np.arange(4760), np.r_[OUTER_IDS, 4308:4452, 4596:4669])
    if net.head_type == "cross_attention":
        assert (np.std(both, 0) > 0).all()
    else:
        assert (np.std(both, 0)[on_faces] > 0).all()
        assert (both[:, ~on_faces] == 0).all()
    swapped = apply(params, tokens[::-1], SHOWN[::-1], MASK[::-1])
    np.testing.assert_allclose(swapped[::-1], both, atol=1e-4)


def test_gradients_of_dead_events_stay_finite(small):
    net, params, tokens, _ = small
    quick = net.clone(encoder=net.encoder.clone(portable=True))

    @jax.jit
    @jax.grad
    def slope(p, x, hidden):
        out = quick.apply({"params": p}, tokens[:1], x, hidden, method="heads")
        return jnp.square(out).mean()

    for p in (params, jax.tree.map(jnp.zeros_like, params)):
        leaves = jax.tree.leaves(slope(p, jnp.full((1, 4760, 2), -1.0), jnp.ones((1, 4760), bool)))
        assert all(np.isfinite(leaf).all() for leaf in leaves)


def test_exported_forms_hold_nothing_that_exporters_get_wrong(small):
    net, params, tokens, apply = small
    portable = net.clone(encoder=net.encoder.clone(portable=True))

    def run(t, x, h):
        return portable.apply({"params": params}, t, x, h, method="heads")

    (b,) = jax.export.symbolic_shape("b")
    args = [jax.ShapeDtypeStruct((b, *a.shape[1:]), a.dtype) for a in (tokens, SHOWN, MASK)]
    text = jax.export.export(jax.jit(run))(*args).mlir_module()
    forbidden = ("stablehlo.scatter", "stablehlo.sort", "erfc", "log_plus_one", "0x7FC0")
    assert not [op for op in forbidden if op in text]
    if net.head_type == "per_face":
        want = apply(params, tokens, SHOWN, MASK)
        np.testing.assert_allclose(jax.jit(run)(tokens, SHOWN, MASK), want, atol=1e-4)


def test_bfloat16_stays_close(small):
    net, params, tokens, apply = small
    rough = net.clone(encoder=net.encoder.clone(dtype=jnp.bfloat16))
    want = apply(params, tokens, SHOWN, MASK)
    got = jax.jit(lambda p: rough.apply({"params": p}, tokens, SHOWN, MASK, method="heads"))(params)
    assert got.dtype == jnp.float32
    assert np.sqrt(np.square(got - want).mean()) < 0.1 * np.std(want)


def test_the_centre_patch_of_the_split_arrangement_has_a_head_of_its_own():
    detector = make_detector(outer_mode="split")
    net = Inpainter(XecEncoder(detector.faces, dim=32, n_heads=4), detector)
    shapes = jax.eval_shape(net.init_with_output, jax.random.key(0), X)
    assert shapes[0].shape == (2, 4760, 2)
    heads = {"inner", "outer_coarse", "outer_center", "us", "ds", "top", "bot"}
    assert set(shapes[1]["params"]) == {"encoder", *(f"head_{name}" for name in heads)}


def test_a_frozen_encoder_gets_no_gradient():
    net = few_faces("top").clone(frozen=True)
    params = jax.jit(net.init)(jax.random.key(0), X[:1])["params"]
    # In training a fine-tuned encoder would ask for a dropout key here.
    slope = jax.jit(jax.grad(lambda p: net.apply({"params": p}, X[:1], None, False).sum()))(params)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(slope["encoder"]))
    assert any((leaf != 0).any() for leaf in jax.tree.leaves(slope["head_top"]))
