"""Coordinates: inverse pairs, and values worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xec_jax import kinematics
from xec_jax.geometry import make_detector

u, v, w = st.floats(-30, 30), st.floats(-100, 100), st.floats(0, 40)


@settings(deadline=None, max_examples=50)
@given(u, v, w)
def test_uvw_round_trip(u, v, w):
    xyz = kinematics.uvw_to_xyz(np.array([u, v, w]))
    np.testing.assert_allclose(kinematics.xyz_to_uvw(xyz), [u, v, w], atol=2e-4)


def test_uvw_by_hand():
    np.testing.assert_allclose(kinematics.uvw_to_xyz(np.array([3.0, 0, 2])), [-66.97, 0, 3])
    quarter = np.pi / 2 * 64.97
    np.testing.assert_allclose(kinematics.uvw_to_xyz([0, quarter, 0]), [0, 64.97, 0], atol=1e-5)


def test_inner_face_lies_at_depth_zero():
    detector = make_detector()
    uvw = np.asarray(kinematics.xyz_to_uvw(detector.sensors.positions[:4092]))
    np.testing.assert_allclose(uvw[:, 2], 0, atol=1e-4)
    assert (np.diff(uvw.reshape(93, 44, 3)[:, 0, 1]) < 0).all(), "v falls with the row"
    assert np.abs(uvw[:, 1]).max() == pytest.approx(46 * np.deg2rad(1.34968) * 64.97, rel=1e-4)


@settings(deadline=None, max_examples=50)
@given(st.floats(1, 179), st.floats(-179, 179))
def test_angles_round_trip(theta, phi):
    vector = kinematics.angles_to_vector(np.array([theta, phi]))
    np.testing.assert_allclose(np.linalg.norm(vector), 1, rtol=1e-6)
    np.testing.assert_allclose(kinematics.vector_to_angles(3 * vector), [theta, phi], atol=1e-3)


def test_angles_by_hand():
    np.testing.assert_allclose(kinematics.angles_to_vector([90.0, 0]), [-1, 0, 0], atol=1e-7)
    np.testing.assert_allclose(kinematics.angles_to_vector([90.0, 90]), [0, 1, 0], atol=1e-7)


def test_opening_angle_of_nearly_parallel_vectors():
    """acos of the dot product would give 0 or 3e-4 here."""
    a = np.array([0.0, 0, 1], np.float32)
    b = np.array([1e-5, 0, 1], np.float32)
    assert float(kinematics.opening_angle(a, b)) == pytest.approx(1e-5, rel=1e-4)
    assert float(kinematics.opening_angle(a, -a)) == pytest.approx(np.pi, rel=1e-6)


@pytest.mark.parametrize("angle", [0.0, 179.0, 180.0, -180.0, 181.0, 359.0, 360.0, 720.5, -541.0])
def test_wrapped_angles_lie_in_one_turn(angle):
    wrapped = float(kinematics.wrap_degrees(angle))
    assert -180 < wrapped <= 180
    assert ((angle - wrapped) / 360).is_integer()


def test_wrapping_keeps_small_angles_and_slopes():
    assert float(kinematics.wrap_degrees(np.float32(1e-6))) == np.float32(1e-6)
    slope = jax.grad(kinematics.wrap_degrees)(jnp.float32(359.0))
    assert slope == 1
