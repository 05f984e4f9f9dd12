"""Position codes: their numbers, and that each of them tells the faces apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xec_jax.errors import ConfigError
from xec_jax.geometry import make_detector
from xec_jax.nets.encoder import XecEncoder
from xec_jax.nets.fusion import SelfAttention
from xec_jax.nets.positions import (
    POSITIONS,
    coordinate_code,
    face_types,
    index_code,
    rotate,
)

SPLIT = make_detector(outer_mode="split")


def encoder(detector, position, **fields):
    centers = tuple(map(tuple, detector.face_centers().tolist()))
    fields = {"dim": 32, "n_layers": 1, "n_heads": 2, "centers": centers, **fields}
    return XecEncoder(detector.faces, position=position, **fields)


def test_coordinate_code_is_made_of_waves_of_halved_lengths():
    xyz = np.random.default_rng(0).uniform(-100, 100, (5, 3))
    code = coordinate_code(xyz)
    assert code.shape == (5, 48)
    assert code.dtype == np.float32
    for axis in range(3):
        for band in range(8):
            angle = 2 * np.pi * xyz[:, axis] / (200 / 2**band)
            column = axis * 16 + band
            np.testing.assert_allclose(code[:, column], np.sin(angle), atol=2e-4)
            np.testing.assert_allclose(code[:, column + 8], np.cos(angle), atol=2e-4)
    np.testing.assert_array_equal(coordinate_code(xyz, 16)[:, :8], code[:, :8])


def test_no_two_sensors_have_the_same_coordinate_code():
    code = coordinate_code(SPLIT.sensors.positions)
    assert len(np.unique(np.round(code, 3), axis=0)) == 4760


def test_products_of_index_codes_depend_on_the_distance_alone():
    code = index_code(7, 64)
    product = code @ code.T
    for distance in range(7):
        np.testing.assert_allclose(np.diag(product, distance), product[0, distance], atol=1e-4)
    assert (np.diff(product[0, :4]) < 0).all()


def test_rotation():
    rng = np.random.default_rng(1)
    query, key = (rng.standard_normal((1, 1, 2, 8)).astype(np.float32) for _ in "qk")
    turned = [np.asarray(rotate(jnp.repeat(x, 6, 1))) for x in (query, key)]
    np.testing.assert_array_equal(turned[0][:, 0], query[:, 0])
    lengths = np.linalg.norm(turned[0], axis=-1)
    np.testing.assert_allclose(lengths, np.broadcast_to(lengths[:, :1], lengths.shape), rtol=1e-5)
    product = np.einsum("bqkc,btkc->kqt", *turned)
    for distance in range(-5, 6):
        diagonal = np.diagonal(product, distance, 1, 2)
        np.testing.assert_allclose(
            diagonal, diagonal[:, :1].repeat(diagonal.shape[1], 1), atol=1e-4
        )
    assert abs(product[0, 0, 1] - product[0, 1, 0]) > 1e-3
    assert rotate(jnp.ones((1, 3, 1, 4), jnp.bfloat16)).dtype == jnp.bfloat16


def test_attention_knows_the_order_of_tokens_only_if_told():
    x = jax.random.normal(jax.random.key(0), (2, 5, 16))
    order = np.array([3, 0, 4, 1, 2])
    for rotary in (False, True):
        net = SelfAttention(4, rotary=rotary)
        params = net.init(jax.random.key(1), x)
        straight, shuffled = net.apply(params, x), net.apply(params, x[:, order])
        difference = float(jnp.abs(straight[:, order] - shuffled).max())
        assert (difference > 1e-3) == rotary


def test_centers_lie_where_the_faces_are():
    centers = dict(zip((f.name for f in SPLIT.faces), SPLIT.face_centers(), strict=True))
    half = np.deg2rad(46.5 * 1.34968)  # an arc's center of gravity is not on the arc
    assert centers["inner"][0] == pytest.approx(-64.97 * np.sin(half) / half, abs=0.05)
    for name in ("inner", "outer_coarse", "outer_center"):
        np.testing.assert_allclose(centers[name][1:], 0, atol=0.02)
    assert centers["outer_center"][0] < centers["outer_coarse"][0] - 5
    np.testing.assert_allclose(centers["us"] * [1, 1, -1], centers["ds"], atol=1e-6)
    np.testing.assert_allclose(centers["top"] * [1, -1, 1], centers["bot"], atol=1e-6)
    assert centers["top"][1] > 50
    code = coordinate_code(SPLIT.face_centers())
    assert np.linalg.norm(code[:, None] - code, axis=-1)[np.triu_indices(7, 1)].min() > 1


def test_both_outer_maps_are_of_one_type():
    np.testing.assert_array_equal(face_types(make_detector().faces), [0, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(face_types(SPLIT.faces), [0, 3, 3, 1, 2, 4, 5])


@pytest.mark.parametrize("position", POSITIONS)
def test_parameters(position):
    """Seven tokens of width 32; six types of faces; 48 waves and a bias; nothing at all."""
    added = {"learned": 7 * 32, "face_type": 6 * 32, "geometric": 49 * 32}
    sizes = {}
    for kind in (position, "none"):
        shapes = jax.eval_shape(
            encoder(SPLIT, kind).init_with_output, jax.random.key(0), jnp.zeros((1, 4760, 2))
        )
        assert shapes[0].shape == (1, 7, 32)
        sizes[kind] = sum(leaf.size for leaf in jax.tree.leaves(shapes[1]))
    assert sizes[position] - sizes["none"] == added.get(position, 0)


@pytest.mark.parametrize("position", ["geometric", "rotary", "none"])
def test_top_and_bottom_are_told_apart(position):
    """The network of both is one: without a code, exchanged faces give exchanged tokens."""
    detector = make_detector()
    net = encoder(detector, position)
    top, bot = detector.faces[4:]
    centers = tuple(net.centers[4:])
    net = net.clone(faces=(top, bot), centers=centers)
    x = np.random.default_rng(2).uniform(0, 1, (1, 4760, 2)).astype(np.float32)
    other = x.copy()
    other[:, top.sensors], other[:, bot.sensors] = x[:, bot.sensors], x[:, top.sensors]

    @jax.jit
    def tokens(x):
        params = net.init(jax.random.key(3), x)
        return net.apply(params, x)

    difference = np.abs(tokens(x) - tokens(other)[:, ::-1]).max()
    assert (difference < 1e-5) == (position == "none")


def test_unknown_names_and_missing_centers():
    x = jax.ShapeDtypeStruct((1, 4760, 2), jnp.float32)
    for fields, message in (
        ({"position": "geometry"}, "did you mean 'geometric'"),
        ({"position": "geometric", "centers": None}, "face_centers"),
        ({"position": "rotary", "dim": 96, "n_heads": 32}, "even number"),
    ):
        net = encoder(SPLIT, fields.pop("position"), **fields)
        with pytest.raises(ConfigError, match=message):
            jax.eval_shape(net.init, jax.random.key(0), x)
