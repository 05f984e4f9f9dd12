"""Sixteen bits per sensor: what comes back is as close as the documentation says."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from xec_jax.data.tfds.packing import CODES, photons, times
from xec_jax.errors import ConfigError

PACKINGS = {
    "photons": photons("npho"),
    "relative": photons("relative_npho"),
    "times": times(-100, 225),
    "wide times": times(-1000, 1000),
}
RNG = np.random.default_rng(0)


def numbers(packing):
    """float32 over the whole range, dense around 0 and at both ends."""
    low, high = packing.range
    near = np.geomspace(packing.unit * 1e-9, min(high, -low), 100_000)
    x = [RNG.uniform(low, high, 100_000), near, -near, [0, low, high]]
    return np.concatenate(x).astype(np.float32)


@pytest.mark.parametrize("packing", PACKINGS.values(), ids=PACKINGS)
def test_the_error_is_within_its_bound(packing):
    x = numbers(packing)
    codes, outside = packing.encode(x)
    back = packing.table[codes]
    assert outside == 0
    assert back.dtype == np.float32
    assert (np.abs(back - x.astype(np.float64)) <= packing.error(x)).all()
    assert (np.sign(back) == np.sign(x)).all(), "0 comes back as 0, and nothing else does"


@pytest.mark.parametrize("packing", PACKINGS.values(), ids=PACKINGS)
def test_the_tiniest_numbers_keep_their_sign(packing):
    x = np.array([1e-17, -1e-17, 1e-30, -1e-45, 0.0, -0.0]) * packing.unit
    back = packing.table[packing.encode(x)[0]]
    np.testing.assert_array_equal(np.sign(back), [1, -1, 1, -1, 0, 0])


@pytest.mark.parametrize("packing", PACKINGS.values(), ids=PACKINGS)
def test_packing_again_changes_nothing(packing):
    codes, outside = packing.encode(packing.table)
    np.testing.assert_array_equal(codes, np.arange(CODES + 1))
    assert outside == 0
    assert (np.diff(packing.table[1:]) > 0).all()


@pytest.mark.parametrize("packing", PACKINGS.values(), ids=PACKINGS)
def test_what_is_no_number_comes_back_as_the_marker(packing):
    codes, outside = packing.encode(np.array([np.nan, np.inf, -np.inf, 1e10, 9.1e9], np.float32))
    assert (packing.table[codes] == np.float32(1e10)).all()
    assert outside == 0


@pytest.mark.parametrize("packing", PACKINGS.values(), ids=PACKINGS)
def test_numbers_out_of_range_are_counted(packing):
    low, high = packing.range
    codes, outside = packing.encode(np.array([1.01 * low, low, 0, high, 1.01 * high, 8e9]))
    assert outside == 3
    np.testing.assert_array_equal(codes[[0, 1, 3, 4, 5]], [1, 1, CODES, CODES, CODES])


def test_the_documented_numbers():
    """Photons: far below Poisson noise. Times: 2.5 ps."""
    packing = PACKINGS["photons"]
    low, high = packing.range
    assert low < -98_000
    assert high > 3.0e6
    n = np.geomspace(1, 3e6)
    assert (packing.error(n) < np.sqrt(n) / 22).all()
    assert (packing.error(n[n > 100]) < np.sqrt(n[n > 100]) / 31).all()
    variance = np.mean((packing.table[packing.encode(n)[0]] - n) ** 2 / n)
    assert variance < 1e-3, "1.0005 times the variance of the photons alone"
    low, high = PACKINGS["times"].range
    assert low <= -100e-9
    assert high >= 225e-9
    assert PACKINGS["times"].error(np.array(0.0)) == pytest.approx(2.5e-12, rel=1e-6)
    low, high = PACKINGS["relative"].range
    assert low < -0.6
    assert high > 1.6


@example(-195.0, 89125.0)
@given(st.floats(-1e5, -1e-3), st.floats(1e-3, 1e5))
def test_any_range_of_times_fits(low, high):
    packing = times(low, high)
    assert packing.range[0] <= low * 1e-9 * (1 - 1e-6)
    assert packing.range[1] >= high * 1e-9 * (1 - 1e-6)
    assert packing.unit <= max(1e-12, (high - low) * 1e-9 / 65000 + 1e-12)


@pytest.mark.parametrize("ends", [(0, 100), (-100, 0), (5, 1), (-np.inf, 1), (np.nan, 1)])
def test_a_range_without_zero_is_refused(ends):
    with pytest.raises(ConfigError, match="range of times"):
        times(*ends)
