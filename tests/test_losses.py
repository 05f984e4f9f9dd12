"""Element-wise losses against the predecessor's numbers, and the promises of weighted sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import load

from xec_jax.errors import ConfigError
from xec_jax.kinematics import angles_to_vector
from xec_jax.losses import (
    LOSSES,
    balanced,
    cosine,
    cross_entropy,
    gaussian_nll,
    make_loss,
    mean_loss,
    mean_of,
    quantile,
    ratio,
    smooth_l1,
)
from xec_jax.types import Mean

ARRAYS = load("ref_losses.npz")
PLAIN = ("smooth_l1", "l1", "mse", "relative_l1", "relative_smooth_l1", "relative_mse")


@pytest.mark.parametrize("name", PLAIN)
def test_losses_by_name(name):
    got = make_loss(name)(ARRAYS["pred"], ARRAYS["target"])
    np.testing.assert_allclose(got, ARRAYS[f"loss_{name}"], rtol=2e-6)


@pytest.mark.parametrize("name", ["smooth_l1", "huber"])
def test_huber_is_another_name_of_smooth_l1(name):
    got = make_loss(name, 0.1)(ARRAYS["pred"], ARRAYS["target"])
    np.testing.assert_allclose(got, ARRAYS[f"loss_{name}_beta01"], rtol=2e-6)


def test_cosine_and_gaussian_nll():
    got = cosine(ARRAYS["ang_pred"], ARRAYS["ang_true"])
    np.testing.assert_allclose(got, ARRAYS["loss_cosine"], atol=2e-7)
    got = gaussian_nll(ARRAYS["pred_gnll"], ARRAYS["target"], 0.5)
    np.testing.assert_allclose(got, ARRAYS["loss_gaussian_nll_beta05"], rtol=3e-6)


def test_gaussian_nll_without_weight_is_least_at_the_true_variance():
    log_variance = jnp.linspace(-3, 3, 601)
    prediction = jnp.stack([jnp.zeros(601), log_variance], -1)
    nll = gaussian_nll(prediction, jnp.full((601, 1), 2.0), beta=0.0)
    assert abs(float(log_variance[nll.argmin()]) - np.log(4)) < 0.02


def test_unknown_names_get_the_nearest_known_one():
    with pytest.raises(ConfigError, match="did you mean 'smooth_l1'"):
        make_loss("smoothl1")


def test_beta_goes_to_the_losses_that_have_one():
    for name in LOSSES:
        target = jnp.ones((2, 1 if name == "cross_entropy" else 2))
        width = {"gaussian_nll": 4, "quantile": 6}.get(name, 2)
        assert np.isfinite(make_loss(name, 0.3)(jnp.ones((2, width)), target)).all()


@pytest.mark.parametrize("name", ["smooth_l1", "huber"])
def test_at_beta_0_only_the_distance_is_left(name):
    loss = make_loss(name, 0.0)
    np.testing.assert_array_equal(loss(ARRAYS["pred"], ARRAYS["target"]), ARRAYS["loss_l1"])
    assert jax.grad(lambda x: loss(x, jnp.float32(1.0)))(3.0) == 1
    with pytest.raises(ConfigError, match="positive"):
        make_loss(name, -1.0)


def test_angular_compares_angles_and_vectors_alike():
    angles = jnp.array(ARRAYS["ang_pred"]), jnp.array(ARRAYS["ang_true"])
    vectors = [3.0 * angles_to_vector(a) for a in angles]
    want = make_loss("cosine")(*angles)
    np.testing.assert_allclose(make_loss("angular")(*vectors), want, atol=3e-7)


def test_a_vector_of_length_0_has_a_slope_towards_the_target():
    target = jnp.array([[0.0, 0.6, 0.8]])
    value, slope = jax.value_and_grad(lambda x: cosine(x, target).sum())(jnp.zeros((1, 3)))
    assert value == 1
    np.testing.assert_allclose(slope, -target, rtol=1e-6)


def test_quantiles_settle_where_their_share_of_the_targets_lies_below():
    target = jax.random.normal(jax.random.key(0), (4001, 1))
    shares = (0.1, 0.5, 0.84)
    for i, share in enumerate(shares):
        grid = jnp.linspace(-3, 3, 241)
        prediction = jnp.zeros((241, 1, 3)).at[..., i].set(grid[:, None])
        losses = quantile(prediction, target, shares).mean((1, 2))
        best = float(grid[losses.argmin()])
        assert abs(best - np.quantile(target, share)) < 0.03


def test_cross_entropy():
    logits = jnp.log(jnp.array([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]]))
    found = cross_entropy(logits, jnp.array([[0.0], [2.0]]))
    np.testing.assert_allclose(found, -np.log([[0.7], [0.5]]), rtol=1e-6)


def test_halves_add_up_to_the_whole():
    values, weights = jax.random.normal(jax.random.key(0), (2, 6, 5))
    weights = abs(weights)
    whole = mean_of(values, weights)
    parts = [mean_of(values[i : i + 3], weights[i : i + 3]) for i in (0, 3)]
    summed = Mean(*(a + b for a, b in zip(*parts, strict=True)))
    np.testing.assert_allclose(ratio(summed), np.average(values, weights=weights), rtol=1e-5)
    np.testing.assert_allclose(ratio(summed), ratio(whole), rtol=1e-6)


@pytest.mark.parametrize("name", [*PLAIN, "gaussian_nll", "cosine", "quantile"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_behind_weight_0_stays_out_of_value_and_gradient(name, bad):
    target = jnp.array([[bad, 1.0], [2.0, 3.0]])
    prediction = jnp.array([[bad, 0.4], [1.0, 2.5]])
    copies = {"gaussian_nll": 2, "quantile": 3}.get(name, 1)
    prediction = jnp.concatenate([prediction] * copies, -1)
    weights = jnp.array([[0.0], [1.0]])

    def objective(prediction):
        return ratio(mean_loss(make_loss(name), prediction, target, weights))

    value, slope = jax.value_and_grad(objective)(prediction)
    assert np.isfinite(value)
    assert np.isfinite(slope).all()
    np.testing.assert_array_equal(slope[0], 0)


def test_nothing_weighed_is_zero_with_zero_slope():
    def objective(x):
        return ratio(mean_loss(smooth_l1, x, jnp.full(3, jnp.nan), 0.0))

    value, slope = jax.value_and_grad(objective)(jnp.ones(3))
    assert value == 0
    np.testing.assert_array_equal(slope, 0)


def test_the_balance_of_a_loss_is_best_at_its_own_logarithm():
    slope = jax.grad(balanced, argnums=1)(jnp.array(1.7), jnp.log(1.7))
    np.testing.assert_allclose(slope, 0, atol=1e-7)
