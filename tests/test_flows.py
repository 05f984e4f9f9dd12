"""Conditional flows: exact densities, exact inverses, identity at the start, known bases."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from xec_jax.errors import ConfigError
from xec_jax.nets.made import MADE, made_masks

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of what distrax itself imports
    pytest.importorskip("distrax")

from xec_jax.nets.flow_bases import (
    BASES,
    Base,
    Settings,
    TailTransform,
    logistic_log_density,
    student_t_log_density,
)
from xec_jax.nets.flows import KINDS, ConditionalFlow, FlowSize, spline

SMALL = FlowSize(transforms=2, bins=8, hidden=12, context=6)


def make(features=2, shake=0.1, **options):
    """A flow away from its start, with parameters, features and conditions."""
    flow = ConditionalFlow(features, SMALL, **options)
    keys = jax.random.split(jax.random.PRNGKey(0), 4)
    x, c = jax.random.normal(keys[0], (32, features)), jax.random.normal(keys[1], (32, 4))
    params = flow.init(keys[2], x, c)
    noise = iter(jax.random.split(keys[3], len(jax.tree.leaves(params))))
    params = jax.tree.map(lambda p: p + shake * jax.random.normal(next(noise), p.shape), params)
    return flow, params, x, c


@pytest.mark.parametrize("features", [1, 2, 3, 4])
def test_masks_let_each_feature_see_those_before_it(features):
    net = MADE(3, 16)
    x, e = jnp.ones(features), jnp.ones(5)
    params = net.init(jax.random.PRNGKey(1), x, e)
    params = jax.tree.map(lambda p: p + 0.3, params)
    seen = np.abs(jax.jacobian(lambda x: net.apply(params, x, e))(x)).sum(1) > 0
    np.testing.assert_array_equal(seen, np.tri(features, k=-1, dtype=bool))
    context = np.abs(jax.jacobian(lambda e: net.apply(params, x, e))(e)).sum((1, 2)) > 0
    assert context.all(), "every feature sees the context, the first one included"
    assert sum(made_masks(features, 16)[2].any(0)) == features


def test_the_spline_equals_its_textbook_formula():
    """Durkan et al. 2019, equations 4 to 8, for one number at a time."""
    rng = np.random.default_rng(3)
    raw, x = rng.normal(0, 3, (200, 3 * 5 + 1)).astype(np.float32), rng.uniform(-7, 7, 200)
    found, log_slope = spline(jnp.asarray(raw), 5.0).forward_and_log_det(jnp.float32(x))
    for r, value, y, ls in zip(raw.astype(float), x, found, log_slope, strict=True):
        limit = np.log(1e3)
        w, h, d = r[:5], r[5:10], r[10:]
        w, h = (np.exp(v / (1 + np.abs(2 * v / limit))) for v in (w, h))
        w, h = ((10 - 5e-3) * v / v.sum() + 1e-3 for v in (w, h))
        d = np.log1p(np.exp(d / (1 + np.abs(d / limit)) + np.log(np.exp(1 - 1e-3) - 1))) + 1e-3
        d[[0, -1]] = 1
        if abs(value) >= 5:
            assert (y, ls) == pytest.approx((value, 0), abs=1e-5)
            continue
        xs, ys = (-5 + np.concatenate([[0], np.cumsum(v)]) for v in (w, h))
        k = np.searchsorted(xs, value) - 1
        s, t = h[k] / w[k], (value - xs[k]) / w[k]
        below = s + (d[k + 1] + d[k] - 2 * s) * t * (1 - t)
        exact = ys[k] + h[k] * (s * t * t + d[k] * t * (1 - t)) / below
        slope = s * s * (d[k + 1] * t * t + 2 * s * t * (1 - t) + d[k] * (1 - t) ** 2) / below**2
        assert y == pytest.approx(exact, abs=2e-4)
        assert ls == pytest.approx(np.log(slope), abs=2e-2)


@pytest.mark.parametrize(
    ("kind", "base"), [("coupling", "normal"), *(("autoregressive", base) for base in BASES)]
)
def test_a_flow_starts_as_its_base(kind, base):
    flow, params, x, c = make(3, shake=0.0, kind=kind, base=Settings(base))
    noise = params["params"].get("noise", {})
    start = Base(3, Settings(base)).apply({"params": noise}, (32,)).log_prob(x)
    np.testing.assert_allclose(jax.jit(flow.apply)(params, x, c), start, rtol=1e-5)


@pytest.mark.parametrize(("kind", "features"), [("autoregressive", 3), ("coupling", 2)])
def test_samples_come_with_their_density(kind, features):
    flow, params, _, c = make(features, kind=kind)
    sample = jax.jit(partial(flow.apply, method="sample"))
    x, log_density = sample(params, jax.random.PRNGKey(5), c)
    assert x.shape == (32, features)
    np.testing.assert_allclose(jax.jit(flow.apply)(params, x, c), log_density, atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_density_is_the_slope_of_the_map(kind):
    """Log determinants against the Jacobian of the whole map by automatic differentiation."""
    flow, params, x, c = make(3, kind=kind)

    def to_noise(x, c):
        return flow.apply(params, c, method=lambda m, c: m.given(m.embed(c)).bijector.inverse(x))

    jacobian = jax.jit(jax.vmap(jax.jacobian(to_noise)))(x, c)
    expected = stats.norm.logpdf(jax.jit(jax.vmap(to_noise))(x, c)).sum(-1)
    expected += np.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(jax.jit(flow.apply)(params, x, c), expected, atol=1e-3)


@pytest.mark.parametrize("base", ["normal", "student_t", "tail_transform"])
def test_the_density_adds_up_to_one(base):
    flow, params, _, c = make(2, kind="autoregressive", base=Settings(base))
    # Equal steps in asinh: fine in the middle, far into the tails.
    t = np.linspace(-9, 9, 161)
    grid = np.sinh(t)
    area = np.outer(np.cosh(t), np.cosh(t)) * (t[1] - t[0]) ** 2
    x = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    condition = jnp.broadcast_to(c[0], (len(x), 4))
    density = np.exp(jax.jit(flow.apply)(params, jnp.float32(x), condition))
    assert (density.reshape(area.shape) * area).sum() == pytest.approx(1, abs=0.01)


def test_gradients_are_finite_far_outside():
    flow, params, x, c = make(3)
    slope = jax.grad(lambda p, x: flow.apply(p, x, c).sum(), argnums=(0, 1))
    slopes = jax.jit(slope)(params, 60 * x)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(slopes))


def test_bases_have_their_textbook_densities():
    z = np.linspace(-30, 30, 101).astype(np.float32)
    for df in (3.0, 5.0):
        expected = stats.t.logpdf(z, df)
        np.testing.assert_allclose(student_t_log_density(z, df), expected, rtol=2e-5)
    np.testing.assert_allclose(logistic_log_density(z), stats.logistic.logpdf(z), rtol=2e-5)


@pytest.mark.parametrize("base", BASES)
def test_samples_of_bases_have_their_quantiles(base):
    settings = Settings(base, df=3.0)
    module = Base(2, settings)
    params = module.init(jax.random.PRNGKey(0), (1,))
    dist = module.apply(params, (20000,))
    x = np.asarray(dist.sample(seed=jax.random.PRNGKey(1)))
    assert x.shape == (20000, 2)
    exact = {
        "normal": stats.norm,
        "student_t": stats.t(3),
        "logistic": stats.logistic,
    }.get(base)
    if exact is not None:
        assert stats.kstest(x[:, 0], exact.cdf).pvalue > 1e-3
    # The mean log density of samples is minus the entropy: two independent draws agree.
    again = dist.log_prob(dist.sample(seed=jax.random.PRNGKey(2)))
    assert float(dist.log_prob(x).mean()) == pytest.approx(float(again.mean()), abs=0.06)


def test_tails_fall_as_their_weights_say():
    tails = TailTransform(jnp.array([0.5]), jnp.array([0.25]))
    z = jnp.linspace(-8, 8, 101)[:, None]
    y, log_det = tails.forward_and_log_det(z)
    back, inverse = tails.inverse_and_log_det(y)
    np.testing.assert_allclose(back, z, atol=1e-4)
    np.testing.assert_allclose(inverse, -log_det, atol=1e-3)
    # P(|x| > t) falls as t^(-1/L): 2 on the left, 4 on the right.
    for side, power in ((-1, 2), (1, 4)):
        a, b = (float(tails.forward(jnp.array([side * s]))[0]) for s in (6.0, 7.0))
        fall = (stats.norm.logsf(7.0) - stats.norm.logsf(6.0)) / np.log(b / a)
        assert -fall == pytest.approx(power, rel=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": Settings("box")}, "one outlier makes the loss infinite"),
        ({"base": Settings("cauchy")}, "base is 'cauchy'"),
        ({"base": Settings("student_t", df=2.0)}, "df is 2"),
        ({"kind": "glow"}, "kind is 'glow'"),
        ({"kind": "coupling", "features": 1}, "coupling needs 2 features"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(ConfigError) as error:
        make(**options)
    assert message in str(error.value)
