"""The muon flow as a task: right densities, honest monitors, readable refusals."""

import json
from functools import cache, partial
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import uproot
from commands import ROOT
from scipy import stats

if find_spec("distrax") is None:
    pytest.skip("needs the extra `flow`", allow_module_level=True)

from xec_jax import config as configs
from xec_jax import evaluate, muon_sums, predict
from xec_jax.data.bundle_writer import write_bundles
from xec_jax.data.muons import read_bundles, read_facts
from xec_jax.data.open import open_sources
from xec_jax.errors import ConfigError, DataError
from xec_jax.evaluation.two_samples import bootstrap_ratio, classifier_test, ks_distance
from xec_jax.nets.multiplicity import Multiplicity
from xec_jax.sim.muon import LinearGaussian, MuonBundles, Primaries, facts_of, simulate_range
from xec_jax.simulate import write_sample
from xec_jax.tasks import muon_flow
from xec_jax.tasks.base import example_batch
from xec_jax.train.saved import write_run
from xec_jax.train.step import Tally

parquet = pytest.importorskip("pyarrow.parquet")

BENCHMARK = MuonBundles(3.0)
ROWS = np.arange(250)


def write(path, benchmark=BENCHMARK, n=300, seed=0):
    chunks = simulate_range(benchmark, seed, 0, n)
    write_bundles(path, chunks, {"parameters": facts_of(benchmark)})
    return path


def config_of(path, **keys):
    config = configs.load(str(ROOT / "configs" / "muon_flow.py:tiny")).unlock()
    config.data.train = str(path)
    config.update_from_flattened_dict(keys)
    return muon_flow.prepare(config.lock())


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return write(tmp_path_factory.mktemp("muons") / "a.parquet")


@pytest.fixture(scope="module")
def start(sample):
    """Parameters at the start, which fit all flows of this size."""
    init = jax.jit(muon_flow.Experiment(config_of(sample)).init)  # step by step it takes 10 s
    return init(jax.random.PRNGKey(0), example_batch(muon_flow.SPEC, 2))


@pytest.fixture(scope="module")
def run(sample, start, tmp_path_factory):
    """A run folder with a flow away from its start, and its experiment."""
    config = config_of(sample)
    task, experiment = muon_flow.make_task(config), muon_flow.Experiment(config)
    params = moved(start)
    folder = tmp_path_factory.mktemp("run") / "flow"
    write_run(folder, config, params, task, origin={})
    return folder, experiment, params


def moved(params, size=0.1):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: p + jnp.float32(rng.normal(0, size, p.shape)), params)


def batch_of(config, size=256):
    source, _ = open_sources(config.data)
    batch = {k: v for k, v in source.batch(0, size=size).items() if v.dtype != np.int64}
    return batch | {"_position": np.arange(size, dtype=np.int32)}


def test_losses_do_not_depend_on_chunks_or_on_how_the_batch_is_cut(sample, start):
    config = config_of(sample)
    batch, key = batch_of(config, len(ROWS)), jax.random.PRNGKey(0)
    whole = muon_flow.Experiment(config)
    pieces = muon_flow.Experiment(
        config_of(sample, **{"train.chunk_size": 64, "model.twin": False})
    )
    params = moved(start)

    @partial(jax.jit, static_argnums=2)
    def value_and_slopes(params, batch, experiment):
        def total(params):
            context = experiment.context(batch["primary"])
            log_prob, _ = experiment.log_prob(params, experiment.encoding.stage_a(batch["muon"]),
                                              context)  # fmt: skip
            return (log_prob * batch["weight"]).sum()

        return jax.value_and_grad(total)(params)

    value, slopes = value_and_slopes(params["flow"], batch, whole)
    other, other_slopes = value_and_slopes(params["flow"], batch, pieces)
    np.testing.assert_allclose(other, value, rtol=1e-5)
    scale = max(float(jnp.abs(s).max()) for s in jax.tree.leaves(slopes))
    for a, b in zip(*map(jax.tree.leaves, (slopes, other_slopes)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * scale)
    # Unequal parts, by weights, so that all have the shape of the whole.
    parts = [batch | {"weight": np.float32(rows)} for rows in (ROWS < 80, ROWS >= 80)]
    loss = jax.jit(whole.loss)
    terms = [loss(params, part, key)[0] for part in parts]
    full = loss(params, batch, key)[0]
    for name in full:
        added = sum(t[name].total for t in terms) / sum(t[name].weight for t in terms)
        np.testing.assert_allclose(added, full[name].total / full[name].weight, rtol=1e-5)


def test_weights_count_muons_or_events(sample):
    experiment = muon_flow.Experiment(config_of(sample))
    source, _ = open_sources(config_of(sample).data)
    batch = source.batch(0, size=len(source), train=False)
    weights = experiment.weights(batch)
    bundles = len(np.unique(batch["event"]))
    assert weights["muon"].sum() == len(source)
    assert weights["event"].sum() == pytest.approx(bundles, rel=1e-5)
    assert weights["first"].sum() == bundles


@pytest.mark.parametrize("method", ["standard", "yeo_johnson", "quantile"])
def test_densities_are_those_of_stage_a_whatever_stage_b_is(sample, start, method):
    """The flow's density adds up to one over features of stage A."""
    config = config_of(sample, **{"model.stage_b.muons": method})
    experiment = muon_flow.Experiment(config)
    params = moved(start, 0.05)
    # Cells narrow where the muons are, with edges where the density of quantiles has steps.
    edges = [
        np.float64(column.inverse(np.union1d(np.linspace(-8, 8, 151), column.normal)))
        for column in experiment.encoding.muons.columns
    ]
    centers = [(e[1:] + e[:-1]) / 2 for e in edges]
    grid = np.stack(np.meshgrid(*centers, indexing="ij"), -1).reshape(-1, 2).astype(np.float32)
    context = jnp.broadcast_to(jnp.float32([0.3, -0.5, 0.1, 1.0]), (len(grid), 4))
    log_prob, _ = jax.jit(experiment.log_prob)(params["flow"], grid, context)
    total = (np.exp(log_prob) * np.outer(*map(np.diff, edges)).ravel()).sum()
    assert total == pytest.approx(1, abs=2e-3)


def test_monitors_say_whether_the_context_is_used(sample, start):
    """A flow that ignores its context, on right pairs and on scrambled ones."""
    config = config_of(sample, **{"model.features": "r"})
    experiment = muon_flow.Experiment(config)
    batch, key = batch_of(config, 2048), jax.random.PRNGKey(0)
    params = start

    @jax.jit
    def monitors(params, batch):
        return Tally.pack(experiment.evaluate(params, batch, key)[1])

    blind = muon_sums.derive(Tally.means([monitors(params, batch)]))
    # At its start the flow ignores its context, which the probe notices and a swap does not.
    assert blind["delta_perm"] == pytest.approx(0, abs=1e-6)
    assert blind["information"] == pytest.approx(0, abs=1e-6)
    assert blind["residual_r2"] > 0.2
    assert blind["context_spread"] > 0.01, "an embedding that varies does not show that it is used"
    scrambled = dict(batch, primary=np.roll(batch["primary"], 500, 0))
    found = muon_sums.derive(Tally.means([monitors(params, scrambled)]))
    assert found["residual_r2"] < 0.05, "scrambled pairs leave nothing to explain"
    assert blind["round_trip_failed"] == 0
    assert blind["outside"] < 0.01


@cache
def explained_by_numpy():
    rng = np.random.default_rng(2)
    c, noise = rng.normal(size=(500, 4)), rng.normal(size=(500, 2))
    noise[:, 1] = 0.5 * noise[:, 1] + 0.4 * c[:, 0] * c[:, 2]
    return c, noise


def test_the_probe_is_a_regression():
    """The sums of two halves against least squares on all rows."""
    c, noise = explained_by_numpy()
    ones, halves = jnp.ones(250), (slice(0, 250), slice(250, 500))
    parts = [
        Tally.pack(muon_sums.probe_sums(jnp.float32(noise[s]), jnp.float32(c[s]), ones))
        for s in halves
    ]
    terms = [np.ones(500), *c.T, *(c[:, i] * c[:, j] for i in range(4) for j in range(i, 4))]
    design, target = np.stack(terms, 1), np.clip(noise[:, 1], -4, 4)
    rest = target - design @ np.linalg.lstsq(design, target, rcond=None)[0]
    expected = 1 - rest.var() / target.var()
    assert muon_sums.explained(Tally.means(parts)) == pytest.approx(expected, abs=1e-3)


def test_the_negative_binomial_is_one():
    head = Multiplicity("nb", least=1)
    output = jnp.log(jnp.float32([6.0, 4.0]))
    counts = np.arange(1, 400)
    log_p = -np.asarray(head.loss(output[None], jnp.float32(counts)))
    exact = stats.nbinom.logpmf(counts - 1, 4.0, 4.0 / 10.0)
    np.testing.assert_allclose(log_p, exact, rtol=1e-3)
    assert np.exp(log_p).sum() == pytest.approx(1, abs=1e-4)
    assert np.isnan(head.loss(output, jnp.float32(0)))
    draw = jax.jit(head.sample)(jax.random.PRNGKey(0), jnp.broadcast_to(output, (40000, 2)))
    assert draw.min() == 1
    assert draw.mean() == pytest.approx(7, abs=0.1)
    assert draw.std() == pytest.approx(np.sqrt(6 + 36 / 4), rel=0.05)
    expected = np.log1p(draw).mean()
    assert head.mean_log1p(output) == pytest.approx(expected, abs=0.05)
    point = Multiplicity("mse").sample(jax.random.PRNGKey(0), jnp.log(jnp.float32([[5.6], [0.2]])))
    assert point.tolist() == [5, 0]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"model.features": "rr"}, "features is 'rr'"),
        ({"model.flow.base.name": "box"}, "density 0 outside"),
        ({"model.stage_b.muons": "minmax"}, "one of none, standard"),
        ({"model.context": "some"}, "primary, none"),
        ({"model.multiplicity.head": "poisson"}, "nb, mse"),
        ({"train.weighting": "energy"}, "muon, event"),
        ({"model.offset_m2": -1.0}, "0 or more"),
        ({"model.stage_a": "none", "model.features": "all"}, "no meaning"),
    ],
)
def test_settings_are_refused_with_what_would_do(sample, keys, words):
    with pytest.raises(ConfigError, match=words):
        config_of(sample, **keys)


def test_data_that_do_not_fit_are_refused(tmp_path, sample):
    muons = np.float32([[100, 0, 0, 0], [50, 2, 1, 1]])
    primary = np.float32([[1e6, 0.1, 0.9, 1500], [1e7, 0.2, 13, 1800]])
    chunk = {"event": np.arange(2), "primary": primary, "count": [1, 1], "muons": muons}
    write_bundles(tmp_path / "zero.parquet", [chunk])
    with pytest.raises(DataError, match=r"1 of 2 muons are 0 m or less"):
        config_of(tmp_path / "zero.parquet", **{"data.valid_share": 0.0})
    assert config_of(tmp_path / "zero.parquet", **{"data.valid_share": 0, "model.offset_m2": 0.125})
    with pytest.raises(DataError, match=r"1 of 2 muons are 0 m or less"):  # for validation, too
        config_of(sample, **{"data.valid": str(tmp_path / "zero.parquet")})
    write(tmp_path / "lg.parquet", LinearGaussian())
    with pytest.raises(DataError, match=r"energy of 0 or less.*|impossible numbers"):
        config_of(tmp_path / "lg.parquet")
    with pytest.raises(DataError, match="in memory"):
        config_of(sample, **{"data.max_ram_gb": 1e-6})
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \.parquet file in the folder"):
        config_of(tmp_path / "empty")
    empty = dict(chunk, count=np.array([2, 0]))
    write_bundles(tmp_path / "empty.parquet", [empty])
    keys = {"data.drop_empty": False, "model.multiplicity.least": 1, "model.offset_m2": 0.1}
    with pytest.raises(DataError, match="1 events have fewer than 1"):
        config_of(tmp_path / "empty.parquet", **keys, **{"data.valid_share": 0.0})


def test_samples_are_the_same_in_one_file_or_many(tmp_path):
    (one,) = write_sample("muon", tmp_path / "one", 50, seed=3, parameters={"strength": 2.0})
    three = write_sample("muon", tmp_path / "3", 50, files=3, seed=3, parameters={"strength": 2.0})
    for a, b in zip(read_bundles([one])[:3], read_bundles(three)[:3], strict=True):
        np.testing.assert_array_equal(a, b)
    assert read_facts(one)["parameters"] == {"benchmark": "mb1", "strength": 2.0}
    assert read_facts(one)["seed"] == 3
    with pytest.raises(ConfigError, match="no pileup_rate_hz"):
        write_sample("muon", tmp_path / "x", 5, parameters={"pileup_rate_hz": 1.0})
    with pytest.raises(ConfigError, match="kappa or turns"):
        write_sample("muon", tmp_path / "x", 5, parameters={"kappa": 1.0})


def test_the_linear_benchmark_has_its_densities():
    benchmark = LinearGaussian()
    c, x = benchmark.sample(20000, 1)
    assert -benchmark.log_density(x, c).mean() == pytest.approx(benchmark.entropy, abs=0.03)
    assert -benchmark.log_marginal(x).mean() == pytest.approx(benchmark.marginal_entropy, abs=0.03)
    later = benchmark.sample(100, 1, first=5000)
    np.testing.assert_array_equal(later[1], x[5000:5100])


def test_evaluation_knows_the_truth(run, sample, tmp_path, capsys):
    folder, _, _ = run
    assert evaluate.main(["--run", str(folder), "--input", str(sample), "--output",
                          str(tmp_path / "e")]) == 0  # fmt: skip
    found = json.loads((tmp_path / "e" / "metrics.json").read_text())["metrics"]
    assert found["excess"] == pytest.approx(found["nll"] - found["nll_oracle"], abs=1e-4)
    gap = found["nll_marginal"] - found["nll_oracle"]
    assert found["eta"] == pytest.approx(1 - found["excess"] / gap, abs=1e-3)
    assert found["eta_low"] < found["eta"] < found["eta_high"]
    muons = read_bundles([sample])
    owner = np.repeat(muons.primaries, muons.counts, axis=0)
    truth = BENCHMARK.log_density(muons.muons, Primaries.from_columns(owner))
    assert found["nll_oracle"] == pytest.approx(-truth.mean() - np.log(2 * np.log(10)), abs=1e-4)
    assert found["c2st"] > 0.6, "a flow that learned nothing is found out"
    with uproot.open(tmp_path / "e" / "muon_predictions_epoch_0.root") as file:
        rows = file["muons"].arrays(library="np")
    assert -rows["log_prob"].mean() == pytest.approx(found["nll"], abs=1e-4)
    np.testing.assert_array_equal(np.bincount(rows["event"]), muons.counts[muons.counts > 0])
    drawn = {path.name.removesuffix("_flow.png") for path in (tmp_path / "e/figures").glob("*.png")}
    wanted = {"muons", "profiles", "noise", "multiplicity", "delta_perm", "given_depth"}
    assert wanted <= drawn
    assert (tmp_path / "e" / "report.html").exists()
    muons = np.float32([[100, 0, 0, 0], [50, 2, 1, 1]])
    primary = np.float32([[1e6, 0.1, 0.9, 1500], [1e7, 0.2, 13, 1800]])
    chunk = {"event": np.arange(2), "primary": primary, "count": [1, 1], "muons": muons}
    write_bundles(tmp_path / "zero.parquet", [chunk])
    words = ["--run", folder, "--input", tmp_path / "zero.parquet", "--output", tmp_path / "f"]
    with pytest.raises(DataError, match="1 muons have no finite density, the first in event 0"):
        evaluate.main([*map(str, words), "--no_figures"])
    with pytest.raises(ConfigError, match="--scan with an evaluation of muon bundles"):
        evaluate.main(["--run", str(folder), "--input", str(sample), "--scan", "gain",
                       "--output", str(tmp_path / "f")])  # fmt: skip


def test_bundles_are_drawn_for_primaries(run, sample, tmp_path):
    folder, experiment, params = run
    outputs = [tmp_path / f"{k}.parquet" for k in range(2)]
    for output in outputs:
        words = ["--run", folder, "--input", sample, "--output", output, "--seed", 5]
        assert predict.main([*map(str, words), "--max_muons", "20"]) == 0
    drawn, again = (read_bundles([path]) for path in outputs)
    for a, b in zip(drawn[:3], again[:3], strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(drawn.primaries, read_bundles([sample]).primaries)
    assert drawn.counts.max() <= 20
    r, x, y = drawn.muons[:, 1:].T
    np.testing.assert_allclose(np.hypot(x, y), r, rtol=1e-5)
    log_prob = np.concatenate(parquet.read_table(outputs[0])["log_prob"].to_numpy())
    owner = np.repeat(drawn.primaries, drawn.counts, axis=0)
    features = experiment.encoding.stage_a(drawn.muons)
    expected, _ = jax.jit(experiment.log_prob)(params["flow"], features, experiment.context(owner))
    np.testing.assert_allclose(log_prob, expected - np.log(2 * np.log(10)), atol=2e-3)
    assert read_facts(outputs[0])["density_of"] == "ln(E / GeV), ln(r / m)"
    with pytest.raises(ConfigError, match="exists"):
        predict.main([*map(str, words)])
    with pytest.raises(ConfigError, match="--mc_dropout with a run of task muon_flow"):
        predict.main([*map(str, words), "--mc_dropout", "4"])
    parquet.write_table(parquet.read_table(sample).select(["muons"]), tmp_path / "m.parquet")
    words = ["--run", folder, "--input", tmp_path / "m.parquet", "--output", tmp_path / "x.p"]
    with pytest.raises(DataError, match="no column 'primary'"):
        predict.main([*map(str, words)])
    parquet.write_table(parquet.read_table(sample).slice(0, 0), tmp_path / "none.parquet")
    words[3] = tmp_path / "none.parquet"
    with pytest.raises(DataError, match=r"no primaries in .*none\.parquet"):
        predict.main([*map(str, words)])
    assert not list(tmp_path.glob("*x.p*")), "nothing is left behind"


def test_errors_cover_the_truth():
    """Intervals of the bootstrap over events, whose muons are alike, contain the true ratio."""
    rng, hits = np.random.default_rng(0), 0
    for seed in range(100):
        event = np.repeat(np.arange(150), rng.integers(1, 6, 150))
        shared = rng.normal(2, 1, 150)[event]
        found = bootstrap_ratio(shared, np.ones(len(event)), event, seed=seed, draws=200)
        hits += found.low < 2 < found.high
    assert 87 <= hits <= 100


def test_samples_are_told_apart_if_they_differ():
    rng = np.random.default_rng(1)
    draw, group = partial(rng.normal, size=(2000, 2)), np.arange(2000)
    same = classifier_test(draw(), draw(), group)
    assert abs(same.accuracy - 0.5) < 4 * same.error
    assert classifier_test(draw(), draw() + np.array([2.5, 0]), group).auc > 0.9
    assert ks_distance(stats.norm.cdf(rng.normal(size=4000))) < 0.03
    assert ks_distance(stats.norm.cdf(1.3 * rng.normal(size=4000))) > 0.04
