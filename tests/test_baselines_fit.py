"""Linear formulas fitted to events with odd ones among them; the likelihood fit of files."""

import functools

import jax
import numpy as np
import pytest

from xec_jax.baselines.least_squares import fit_linear, monomials
from xec_jax.baselines.likelihood_fit import calibrate_fit, fit_events
from xec_jax.baselines.vertex_direction import vertex_direction
from xec_jax.errors import DataError
from xec_jax.geometry import INVALID, N_SENSORS, design_positions
from xec_jax.kinematics import uvw_to_xyz, vector_to_angles
from xec_jax.sim import fisher
from xec_jax.sim.lxe_parameters import LxeParameters
from xec_jax.sim.lxe_readout import nominal_efficiency

TABLE = design_positions()
PARAMS = LxeParameters()
EFFICIENCY = nominal_efficiency(PARAMS)


# Least squares


def test_a_linear_formula_is_found_exactly():
    rng = np.random.default_rng(0)
    terms, constants = rng.normal(size=(50, 4)) * [1, 1e3, 1e-6, 1], np.array([2.0, -3.0, 5e6, 0.5])
    np.testing.assert_allclose(fit_linear(terms, terms @ constants), constants, rtol=1e-10)


def test_odd_events_do_not_pull():
    rng = np.random.default_rng(0)
    terms = np.stack([np.ones(1000), rng.normal(size=1000)], 1)
    truth = terms @ [1.0, 2.0] + 0.01 * rng.normal(size=1000)
    truth[:50] += 100.0
    truth[50] = np.nan
    np.testing.assert_allclose(fit_linear(terms, truth), [1, 2], atol=2e-3)


def test_without_odd_events_it_is_nearly_least_squares():
    rng = np.random.default_rng(1)
    terms = np.stack([np.ones(5000), rng.normal(size=5000)], 1)
    truth = terms @ [1.0, 2.0] + rng.normal(size=5000)
    plain = np.linalg.lstsq(terms, truth, rcond=None)[0]
    np.testing.assert_allclose(fit_linear(terms, truth), plain, atol=0.015)


def test_a_term_that_is_always_zero_gets_no_part():
    terms = np.stack([np.arange(20.0), np.zeros(20)], 1)
    np.testing.assert_allclose(fit_linear(terms, 3 * terms[:, 0]), [3, 0])


@pytest.mark.parametrize("n", [0, 1, 7])
def test_too_few_events_are_refused(n):
    with pytest.raises(DataError, match="usable events for the depth"):
        fit_linear(np.ones((n, 4)), np.ones(n), "the depth")


def test_monomials_are_all_products_up_to_the_degree():
    x, y = np.array([2.0, 3.0]), np.array([5.0, 7.0])
    expected = np.stack([x**0, x, y, x * x, x * y, y * y], 1)
    np.testing.assert_array_equal(monomials(np.stack([x, y], 1), 2), expected)
    assert monomials(np.zeros((1, 4)), 3).shape == (1, 35)


# Likelihood fit


@functools.cache
def fitted():
    """Five events that show what is expected, and one without anything, in blocks of four."""
    x = np.random.default_rng(3).uniform([0.02, -18, -50, 2, -8], [0.06, 18, 50, 9, 8], (6, 5))
    respond = jax.jit(jax.vmap(lambda row: fisher.expected(row, TABLE, PARAMS)))
    at = jax.tree.map(np.asarray, respond(np.float32(x[:5])))
    npho = np.full((6, N_SENSORS), INVALID, np.float32)
    time = npho.copy()
    npho[:5] = at.counts / EFFICIENCY
    time[:5] = np.where(at.counts >= 5, at.time_ns * 1e-9, INVALID)
    return x, fit_events({"npho": npho, "time": time}, TABLE, PARAMS, block=4)


def test_expected_events_are_fitted_exactly_whatever_the_block():
    x, found = fitted()
    assert found["converged"].tolist() == [True] * 5 + [False]
    np.testing.assert_allclose(found["energy_fit"][:5], x[:5, 0], rtol=2e-3)
    np.testing.assert_allclose(found["uvw_fit"][:5], x[:5, 1:4], atol=5e-3)
    np.testing.assert_allclose(found["timing_fit"][:5], x[:5, 4], atol=5e-3)
    direction = vector_to_angles(uvw_to_xyz(x[:5, 1:4]))
    np.testing.assert_allclose(found["angle_fit"][:5], direction, atol=5e-3)


def test_an_event_without_any_signal_is_not_fitted():
    _, found = fitted()
    for key in ("energy_fit", "uvw_fit", "timing_fit", "angle_fit", "chi2_fit"):
        assert np.isnan(found[key][5]).all()


def hand_made_fits(n=80):
    rng = np.random.default_rng(0)
    uvw = rng.uniform([-20, -60, 1], [20, 60, 15], (n, 3))
    kappa = rng.uniform(-0.1, 0.4, n)
    truth = {"uvwTruth": uvw.copy()}
    truth["uvwTruth"][:, 2] = 0.9 * uvw[:, 2] - 0.2 + kappa + 0.05 * uvw[:, 2] * kappa
    deeper = uvw[:, 2] - truth["uvwTruth"][:, 2]
    truth["uvwTruth"][:, 0] = uvw[:, 0] * (1 - 0.01 * deeper)
    energy = rng.uniform(0.02, 0.06, n)
    truth["energyTruth"] = energy * (1.02 + 0.003 * truth["uvwTruth"][:, 2])
    truth["timeTruth"] = rng.uniform(-9, 9, n)
    late = 0.1 + 0.02 * uvw[:, 2] - 0.01 * truth["uvwTruth"][:, 2]
    found = {
        "uvw_fit": uvw,
        "energy_fit": energy,
        "timing_fit": truth["timeTruth"] + late,
        "chi2_fit": np.exp(kappa),
        "converged": np.ones(n, bool),
    }
    return found, truth


def test_corrections_of_their_own_form_are_found_exactly():
    found, truth = hand_made_fits()
    # What did not converge may be anything.
    found["converged"][:5] = False
    found["energy_fit"][:5], found["timing_fit"][:5] = 1.0, np.nan
    corrected = calibrate_fit(found, truth).correct(found)
    names = {"uvw": "uvwTruth", "energy": "energyTruth", "timing": "timeTruth"}
    for name, branch in names.items():
        value = corrected[f"{name}_corrected"][5:]
        np.testing.assert_allclose(value, truth[branch][5:], rtol=1e-6, atol=1e-6)
    direction = vertex_direction(corrected["uvw_corrected"])
    np.testing.assert_array_equal(corrected["angle_corrected"], direction)


def test_corrections_without_truth_are_left_out():
    found, truth = hand_made_fits()
    done = calibrate_fit(found, {"uvwTruth": truth["uvwTruth"]})
    assert done.correct(found).keys() == {"uvw_corrected", "angle_corrected"}
