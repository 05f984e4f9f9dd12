"""From sensors to faces and back."""

import jax.numpy as jnp
import numpy as np
import pytest
from parity import load, nhwc

from xec_jax.errors import ShapeError
from xec_jax.geometry import make_detector
from xec_jax.nets.faces import (
    CHANNELS,
    face_input,
    face_mask,
    face_to_sensors,
    owned_sensors,
    sensors_from_faces,
)
from xec_jax.transforms import SCHEMES, SensorTransform

GEOMETRY = {"ref": "documented", "fix": "physical"}


@pytest.mark.parametrize("name", ["ref", "fix"])
def test_fine_grid_and_pooling(name):
    arrays = load(f"{name}_finegrid.npz")
    fine = make_detector(GEOMETRY[name], outer_pool=None).face("outer")
    pooled = make_detector(GEOMETRY[name]).face("outer")
    for face, x, sentinel, want in (
        (fine, "x", None, "fine"),
        (fine, "x", -1.0, "fine"),
        (pooled, "x", None, "pool33"),
        (pooled, "xs", -1.0, "pool33_sent"),
        (pooled, "xs", None, "pool33_sent_plain"),
    ):
        got = face_input(face, jnp.asarray(arrays[x]), sentinel)
        np.testing.assert_allclose(got, nhwc(arrays[want]), atol=1e-6)


def test_a_pixel_without_a_valid_time_gets_the_sentinel():
    face = make_detector().face("outer")
    x = jnp.full((1, 4760, 2), -1.0)
    np.testing.assert_array_equal(face_input(face, x, -1.0)[..., 1], -1)


@pytest.mark.parametrize("geometry", ["physical", "documented"])
@pytest.mark.parametrize("pool", [None, (3, 3), (5, 3)])
def test_masks_are_true_where_any_cell_is(geometry, pool):
    face = make_detector(geometry, outer_pool=pool).face("outer")
    mask = np.random.default_rng(0).random((2, 4760)) < 0.1
    got = np.array(face_mask(face, jnp.asarray(mask)))
    ph, pw = face.pool
    for h, w in np.ndindex(face.shape):
        cells = face.mask_index[h * ph : (h + 1) * ph, w * pw : (w + 1) * pw]
        np.testing.assert_array_equal(got[:, h, w], mask[:, cells.ravel()].any(1))


@pytest.mark.parametrize("mode", ["finegrid", "split"])
@pytest.mark.parametrize("geometry", ["physical", "documented"])
def test_what_comes_back_is_what_went_in(geometry, mode):
    detector = make_detector(geometry, mode, outer_pool=None)
    x = jnp.asarray(np.random.default_rng(1).random((2, 4760, 2)), jnp.float32)
    values = {face.name: face_input(face, x) for face in detector.faces}
    back = np.array(sensors_from_faces(detector.faces, values, 4760))
    owned = np.unique(np.concatenate([owned_sensors(face) for face in detector.faces]))
    np.testing.assert_allclose(back[:, owned], x[:, owned], atol=1e-6)
    assert len(owned) == (4760 if (geometry, mode) != ("documented", "finegrid") else 4748)
    assert np.isnan(np.delete(back, owned, 1)).all()


def test_pooled_values_are_repeated_before_they_are_summed():
    face = make_detector().face("outer")
    values = np.random.default_rng(2).random((1, 15, 24, 2)).astype(np.float32)
    fine = values.repeat(3, 1).repeat(3, 2)
    got = np.array(face_to_sensors(face, jnp.asarray(values)))
    for i, sensor in enumerate(owned_sensors(face)):
        cells = fine[0][face.owner == sensor]
        want = [cells[:, 0].sum(), cells[:, 1].mean()]
        np.testing.assert_allclose(got[0, i], want, rtol=1e-5)


def photon_counts(transform, marked, seed=3):
    """Normalized events with their photons, 0 where marked as invalid."""
    photons = np.exp(np.random.default_rng(seed).normal(5, 2, (2, 4760))).astype(np.float32)
    photons[:, marked] = 1e10
    x, _ = transform.encode(photons, np.zeros_like(photons))
    return x, np.where(photons < 9e9, photons, 0)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("sentinel", [0.0, -1.0])
def test_photons_are_divided_and_pooled_as_photons(scheme, sentinel):
    transform = SensorTransform(npho_scheme=scheme, sentinel_npho=sentinel)
    dead = np.r_[4185, 4742, 4092:4100]
    x, photons = photon_counts(transform, dead)
    face = make_detector().face("outer")
    image = np.array(face_input(face, x, -1.0, transform)[..., 0])
    n_dark = 0
    for h, w in np.ndindex(face.shape):
        cells = np.s_[3 * h : 3 * h + 3, 3 * w : 3 * w + 3]
        ids = face.index[cells]
        good = ~np.isin(ids, dead)
        n_dark += not good.any()
        for k in range(2):
            if good.any():
                shown = (photons[k, ids] * face.share[cells])[good].mean()
                np.testing.assert_allclose(image[k, h, w], transform.npho(shown), rtol=2e-4)
            else:
                assert image[k, h, w] == np.float32(sentinel)
    assert n_dark > 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_divided_photons_come_back(scheme):
    transform = SensorTransform(npho_scheme=scheme)
    x, photons = photon_counts(transform, [])
    for pool in (None, (3, 3)):
        detector = make_detector(outer_pool=pool)
        values = {f.name: face_input(f, x, -1.0, transform) for f in detector.faces}
        back = sensors_from_faces(detector.faces, values, 4760, CHANNELS, photons=transform)
        back = np.array(transform.npho_inverse(back[..., 0]))
        outer = owned_sensors(detector.face("outer"))
        if pool is None:
            np.testing.assert_allclose(back, photons, rtol=1e-3)
        # Pooling mixes neighbors, but loses no photon of the face.
        sums = back[:, outer].sum(-1), photons[:, outer].sum(-1)
        np.testing.assert_allclose(*sums, rtol=1e-3)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_negative_predictions_stay_finite(scheme):
    transform, face = SensorTransform(npho_scheme=scheme), make_detector().face("outer")
    values = jnp.linspace(-3, 3, 15 * 24 * 2).reshape(1, 15, 24, 2)
    assert np.isfinite(face_to_sensors(face, values, photons=transform)).all()


def test_faces_that_show_each_sensor_once_divide_nothing():
    transform = SensorTransform(sentinel_npho=-1.0)
    x, _ = photon_counts(transform, np.arange(0, 4760, 7))
    for face in make_detector(outer_mode="split").faces:
        np.testing.assert_array_equal(
            face_input(face, x, -1.0, transform), face_input(face, x, -1.0)
        )


def test_undecoded_faces_and_single_channels():
    detector = make_detector(outer_mode="split")
    values = {
        face.name: face_input(face, jnp.ones((1, 4760, 2)))[..., :1]
        for face in detector.faces
        if face.is_decoded
    }
    back = sensors_from_faces(detector.faces, values, 4760, ("npho",), fill=-1.0)
    np.testing.assert_array_equal(np.flatnonzero(back[0, :, 0] == -1), np.arange(4742, 4760))


def test_values_of_another_shape_are_refused():
    with pytest.raises(ShapeError, match=r"face us"):
        face_to_sensors(make_detector().face("us"), jnp.zeros((1, 6, 24, 2)))
