"""Conditional flows: exact densities, exact inverses, identity at the start, known bases."""

import warnings
from functools import cache, partial
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from xec_jax.errors import ConfigError

if find_spec("distrax") is None:  # one that is there and broken is an error
    pytest.skip("needs the extra `flow`", allow_module_level=True)
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of what distrax itself imports
    import distrax

from xec_jax.nets.flow_bases import (
    BASES,
    MIN_TAIL,
    Base,
    Settings,
    TailTransform,
    logistic_log_density,
    student_t_log_density,
)
from xec_jax.nets.flows import KINDS, ConditionalFlow, FlowSize
from xec_jax.nets.made import MADE, degrees
from xec_jax.nets.splines import MIN_BIN, MIN_SLOPE, SOFT_LIMIT, Spline

SMALL = FlowSize(transforms=2, bins=8, hidden=12, context=6)


@cache
def make(features=3, **options):
    """A flow, its compiled density, parameters at and away from its start, and an input."""
    flow = ConditionalFlow(features, SMALL, **options)
    keys = jax.random.split(jax.random.PRNGKey(0), 4)
    x, c = jax.random.normal(keys[0], (32, features)), jax.random.normal(keys[1], (32, 4))
    start = jax.jit(flow.init)(keys[2], x, c)
    noise = iter(jax.random.split(keys[3], len(jax.tree.leaves(start))))
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(next(noise), p.shape), start)
    return flow, jax.jit(flow.apply), start, params, x, c


@pytest.mark.parametrize("features", [1, 2, 3, 4])
def test_blocks_are_what_masks_leave_of_a_full_network(features):
    """The blocks of the network against masks over all products (Germain et al., section 4.1)."""
    net, hidden = MADE(5, 16), 16
    rng = np.random.default_rng(0)
    x, e = (jnp.float32(rng.normal(size=(7, n))) for n in (features, 3))
    params = jax.jit(net.init)(jax.random.PRNGKey(1), x, e)
    params = jax.tree.map(lambda p: jnp.float32(rng.normal(size=p.shape)), params)
    p, degree = params["params"], degrees(features, hidden)
    seen = np.arange(1, features + 1)[:, None] <= degree
    y = x @ (p["features"] * seen) + e @ p["context"]["kernel"] + p["context"]["bias"]
    y = jax.nn.relu(jax.nn.relu(y) @ (p["kernel"] * (degree[:, None] <= degree)) + p["bias"])
    seen = degree[:, None, None] < np.arange(1, features + 1)[:, None]
    expected = jnp.einsum("bh,hdo->bdo", y, p["out_kernel"] * seen) + p["out_bias"]
    np.testing.assert_allclose(net.apply(params, x, e), expected, rtol=2e-5, atol=2e-5)
    for i in range(features):
        alone = net.apply(params, x, e, i)
        np.testing.assert_allclose(alone, expected[:, i], rtol=2e-5, atol=2e-5)
    assert (np.diff(degree) >= 0).all()
    assert set(degree) == set(range(features)), "every feature is seen by what comes after"


def test_a_masked_network_obeys_its_masks():
    net = MADE(3, 16)
    x, e = jnp.ones(3), jnp.ones(5)
    params = jax.tree.map(lambda p: p + 0.3, jax.jit(net.init)(jax.random.PRNGKey(1), x, e))
    by_x, by_context = jax.jit(jax.jacobian(lambda *a: net.apply(params, *a), (0, 1)))(x, e)
    np.testing.assert_array_equal(np.abs(by_x).sum(1) > 0, np.tri(3, k=-1, dtype=bool))
    assert (np.abs(by_context).sum((1, 2)) > 0).all()


def test_the_spline_equals_its_textbook_formula():
    """Durkan et al. 2019, equations 4 to 8, for one number at a time."""
    rng = np.random.default_rng(3)
    raw, x = rng.normal(0, 3, (80, 3 * 5 + 1)).astype(np.float32), rng.uniform(-7, 7, 80)
    forward = jax.jit(lambda r, x: Spline(r, 5.0).forward_and_log_det(x))
    found, log_slope = forward(raw, jnp.float32(x))
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


@pytest.mark.parametrize("bins", [1, 16, 64])
def test_the_spline_equals_distrax(bins):
    """Both ways and the slopes of both, against the other implementation in float64."""
    rng = np.random.default_rng(bins)
    raw = rng.normal(0, 0.7, (400, 3 * bins + 1))
    x = np.concatenate([rng.uniform(-5.5, 5.5, 396), [-5, 5, 0, 40]])
    limit = np.where(np.arange(3 * bins + 1) < 2 * bins, SOFT_LIMIT / 2, SOFT_LIMIT)

    def other(raw, x, way):
        clipped = raw / (1 + jnp.abs(raw) / limit)
        options = {"min_bin_size": MIN_BIN, "min_knot_slope": MIN_SLOPE}
        made = distrax.RationalQuadraticSpline(
            clipped, -5.0, 5.0, boundary_slopes="identity", **options
        )
        return getattr(made, way)(x)

    for way in ("forward_and_log_det", "inverse_and_log_det"):
        found = jax.jit(lambda r, x, way=way: getattr(Spline(r, 5.0), way)(x))(
            jnp.float32(raw), jnp.float32(x)
        )
        with jax.enable_x64(True):
            expected = jax.jit(partial(other, way=way))(raw, x)
        np.testing.assert_allclose(found[0], expected[0], atol=2e-5)
        np.testing.assert_allclose(found[1], expected[1], atol=2e-3)
    slopes = jax.jit(jax.grad(lambda r, x: Spline(r, 5.0).forward_and_log_det(x)[1].sum()))
    with jax.enable_x64(True):
        expected = jax.jit(jax.grad(lambda r, x: other(r, x, "forward_and_log_det")[1].sum()))(
            raw, x
        )
    found = slopes(jnp.float32(raw), jnp.float32(x))
    np.testing.assert_allclose(found, expected, atol=5e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_flow_starts_as_its_base(kind):
    _, density, start, _, x, c = make(kind=kind)
    np.testing.assert_allclose(density(start, x, c), stats.norm.logpdf(x).sum(-1), rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_come_with_their_density(kind):
    flow, density, _, params, _, c = make(kind=kind)
    sample = jax.jit(partial(flow.apply, method="sample"))
    x, log_density = sample(params, jax.random.PRNGKey(5), c)
    assert x.shape == (32, 3)
    np.testing.assert_allclose(density(params, x, c), log_density, atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_density_is_the_slope_of_the_map(kind):
    """Log determinants against the Jacobian of the whole map by automatic differentiation."""
    flow, density, _, params, x, c = make(kind=kind)

    def to_noise(x, c):
        z = flow.apply(params, c, method=lambda m, c: m.given(m.embed(c)).bijector.inverse(x))
        return z, z

    jacobian, noise = jax.jit(jax.vmap(jax.jacobian(to_noise, has_aux=True)))(x, c)
    expected = stats.norm.logpdf(noise).sum(-1) + np.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(density(params, x, c), expected, atol=1e-3)


def test_the_density_adds_up_to_one():
    _, density, start, params, _, c = make(2, base=Settings("tail_transform"))
    # Equal steps in asinh: fine in the middle, far into the tails.
    t = np.linspace(-8, 8, 121)
    grid = np.sinh(t)
    area = np.outer(np.cosh(t), np.cosh(t)) * (t[1] - t[0]) ** 2
    x = jnp.float32(np.stack(np.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2))
    condition = jnp.broadcast_to(c[0], (len(x), 4))
    found = np.exp(density(params, x, condition)).reshape(area.shape)
    assert (found * area).sum() == pytest.approx(1, abs=0.01)
    # At its start, it is its base.
    noise = {"params": start["params"]["noise"]}
    base = jax.jit(
        lambda x: Base(2, Settings("tail_transform")).apply(noise, (len(x),)).log_prob(x)
    )
    np.testing.assert_allclose(density(start, x, condition), base(x), rtol=1e-4)


def test_gradients_are_finite_far_outside():
    flow, _, _, params, x, c = make(kind="autoregressive")
    slope = jax.grad(lambda p, x: flow.apply(p, x, c).sum(), argnums=(0, 1))
    slopes = jax.jit(slope)(params, 60 * x)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(slopes))


def test_bases_have_their_textbook_densities():
    z = np.linspace(-30, 30, 101).astype(np.float32)
    for df in (3.0, 5.0):
        expected = stats.t.logpdf(z, df)
        np.testing.assert_allclose(student_t_log_density(z, df), expected, rtol=2e-5)
    np.testing.assert_allclose(logistic_log_density(z), stats.logistic.logpdf(z), rtol=2e-5)


def base_of(name):
    """A base of one feature away from its start, its parameters, and its exact distribution."""
    module = Base(1, Settings(name, df=3.0))
    params = module.init(jax.random.PRNGKey(0), (1,))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda p: p + jnp.float32(rng.normal(0, 0.5, p.shape)), params)
    raw = {key: np.asarray(value, float) for key, value in params.get("params", {}).items()}
    if name == "mixture":
        weight = np.exp(raw["logits"]) / np.exp(raw["logits"]).sum()
        parts = stats.norm(raw["means"][:, 0], np.exp(raw["log_scales"][:, 0]))
        return module, params, lambda x: (weight * parts.cdf(np.asarray(x)[:, None])).sum(-1)
    if name == "tail_transform":
        lower, upper = MIN_TAIL + np.log1p(np.exp(raw["tails"][:, 0]))

        def cdf(x):
            tail = np.where(x < 0, lower, upper)
            beyond = 0.5 * (1 + tail * np.abs(x)) ** (-1 / tail)
            return np.where(x < 0, beyond, 1 - beyond)

        return module, params, cdf
    exact = {"normal": stats.norm, "student_t": stats.t(3.0), "logistic": stats.logistic}
    return module, params, exact[name].cdf


@pytest.mark.parametrize("base", BASES)
def test_bases_have_the_distribution_that_their_name_promises(base):
    """Their densities and their samples, against the exact distribution function."""
    module, params, cdf = base_of(base)
    draw = jax.jit(lambda p, key: module.apply(p, (4000,)).sample(seed=key))
    x = np.asarray(draw(params, jax.random.PRNGKey(1)))
    assert x.shape == (4000, 1)
    assert stats.kstest(x[:, 0], cdf).pvalue > 1e-3
    edges = np.sinh(np.linspace(-9, 9, 8001))
    grid = (edges[1:] + edges[:-1]) / 2
    log_prob = jax.jit(lambda p, x: module.apply(p, (8000,)).log_prob(x))
    density = np.exp(log_prob(params, jnp.float32(grid)[:, None]))
    # Up to each edge; what is beyond the first one is less than 1e-3 of a heavy tail.
    found = cdf(edges[:1]) + np.cumsum(density * np.diff(edges))
    np.testing.assert_allclose(found, cdf(edges[1:]), atol=2e-4)


@pytest.mark.parametrize("base", BASES)
def test_gradients_of_bases_lead_back_from_far_outside(base):
    module, params, _ = base_of(base)
    if base == "tail_transform":
        params = {"params": {"tails": jnp.array([[-2.0], [-8.0]])}}  # a tail close to a normal one
    x = jnp.array([[sign * size] for size in (1.0, 60.0, 1e4, 1e8) for sign in (-1, 1)])
    slopes = jax.grad(lambda p, x: module.apply(p, (8,)).log_prob(x).sum(), argnums=(0, 1))
    of_params, of_x = jax.jit(slopes)(params, x)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(of_params))
    assert (np.sign(of_x[2:]) == -np.sign(x[2:])).all()
    if base == "tail_transform":
        tail = MIN_TAIL + np.log1p(np.exp(np.where(x < 0, -2.0, -8.0)))
        exact = -np.sign(x) * (tail + 1) / (1 + tail * np.abs(x))
        np.testing.assert_allclose(of_x, exact, rtol=1e-3)


def test_masked_networks_need_a_unit_per_feature():
    with pytest.raises(ConfigError, match="3 hidden units for 4 features"):
        MADE(3, 3).init(jax.random.PRNGKey(0), jnp.ones(4), jnp.ones(5))


def test_tails_fall_as_their_weights_say():
    tails = TailTransform(jnp.array([0.5]), jnp.array([0.25]))
    z = jnp.linspace(-16, 16, 201)[:, None]  # the probabilities of the last ones are no float32
    y, log_det = jax.jit(tails.forward_and_log_det)(z)
    back, inverse = jax.jit(tails.inverse_and_log_det)(y)
    np.testing.assert_allclose(back, z, atol=1e-4)
    np.testing.assert_allclose(inverse, -log_det, atol=1e-3)
    # P(|x| > t) falls as t^(-1/L): 2 on the left, 4 on the right.
    for side, power in ((-1, 2), (1, 4)):
        a, b = (float(y[np.argmin(np.abs(z - side * s)), 0]) for s in (6.08, 7.04))
        fall = (stats.norm.logsf(7.04) - stats.norm.logsf(6.08)) / np.log(b / a)
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
