"""The regression task: refusals, numbers from the data, losses, and a small network."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_targets import target

from xec_jax import config as configs
from xec_jax.data.reweight import zeros_of
from xec_jax.data.root.writer import write_tree
from xec_jax.errors import ConfigError, DataError
from xec_jax.geometry import FACES, design_positions
from xec_jax.losses import ratio
from xec_jax.sim.lxe import simulate_range
from xec_jax.targets import QUANTITIES
from xec_jax.tasks import regress
from xec_jax.tasks.base import example_batch, make_task, prepare
from xec_jax.train.mesh import make_mesh
from xec_jax.train.step import Tally, init_state, make_train_step
from xec_jax.types import Mean

RNG = np.random.default_rng(0)
FOUR = ("angle", "energy", "timing", "uvwFI")


def load_config(*overrides, variant="default", train="x"):
    texts = [f"--config.{text}" for text in (f"data.train={train}", *overrides)]
    return configs.load(f"configs/regress.py:{variant}", texts)


# --- the zero of the times ----------------------------------------------------------------------


def test_times_are_learned_relative_to_their_reference():
    t = target("timing", reference="time_min_used", mean=(3.0,), std=(1.0,))
    batch = {
        "timeTruth": jnp.array([5.0, -7.0, 1.0]),
        "time_min_used": jnp.array([4e-9, -9.5e-9, 1e10]),
    }
    truth, is_known = t.truth(batch)
    np.testing.assert_allclose(truth[:2, 0], [1.0, 2.5], atol=1e-6)
    np.testing.assert_array_equal(is_known, [True, True, False])
    found = t.predictions(t.output(truth - 3.0), batch)["pred_timing"]
    np.testing.assert_allclose(found[:2], [5.0, -7.0], atol=1e-6)
    assert np.isnan(found[2])


@pytest.mark.parametrize(
    ("branch", "chosen", "expected"),
    [
        ("relative_time", "auto", "time_min_used"),
        ("relative_time", "time_min_used", "time_min_used"),
        ("time", "auto", None),
        ("time", "none", None),
        ("time", "time_min_used", "time_min_used"),
    ],
)
def test_reference(branch, chosen, expected):
    choice = f"train.tasks.timing.reference={chosen}"
    task = make_task(load_config(f"data.time_branch={branch}", choice))
    assert ("time_min_used" in task.spec) == (expected is not None)
    assert task.inputs == ("npho", "time", *filter(None, [expected]))


# --- configs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.tasks.angle.loss_fn=smoothl1"], "did you mean 'smooth_l1'"),
        (["train.tasks.angle.loss_beta=-1.0"], "positive"),
        (["train.tasks.energy.loss_fn=cosine"], "directions are angle"),
        (["train.tasks.energy.loss_fn=cross_entropy"], "class"),
        (["train.tasks.n_gamma.enabled=true"], "branch is not set"),
        (
            [f"train.tasks.n_gamma.{x}" for x in ("enabled=true", "branch=n", "loss_fn=l1")],
            "cross_entropy",
        ),
        ([f"train.tasks.{name}.enabled=false" for name in FOUR], "no quantity is switched on"),
        (["train.tasks.timing.log_transform=true"], "always positive"),
        (["train.tasks.angle.weight=-1.0"], "positive"),
        (["train.tasks.uvwFI.loss_fn=quantile", "train.tasks.uvwFI.quantiles=(0.1,0.9)"], "0.5"),
        (["train.tasks.uvwFI.loss_fn=quantile", "train.tasks.uvwFI.quantiles=(0.5,0.1)"], "asc"),
        (["train.loss_balance=auto", "train.tasks.uvwFI.loss_fn=gaussian_nll"], "no minimum"),
        (["train.loss_balance=automatic"], "manual or auto"),
        (["train.tasks.timing.reference=none"], "time is not in the input"),
        (["data.time_branch=None"], "time is not in the input"),
        (["train.tasks.timing.reference=first"], "auto, none or"),
        (["data.npho_branch=relative_npho"], "know the energy"),
        (["model.heads=both"], "active or all"),
        (["train.loss_units=cm"], "std or physical"),
        (["model.output_affine=yes"], "auto or none"),
        (["model.hidden_dim=0"], "positive"),
        (["model.head_dropout=1.0"], "inside"),
        (["model.output_affine=none"], "no standard deviation"),
        (["model.affine.energy.mean=(1.0,)"], "both, or None"),
        (
            [
                "model.output_affine=none",
                "train.loss_units=physical",
                "model.affine.energy.mean=(1.0,)",
                "model.affine.energy.std=(1.0,)",
            ],
            "keeps what is set",
        ),
        ([f"train.tasks.{name}.weight=0.0" for name in FOUR], "none has a weight"),
        (
            ["train.tasks.energy.log_transform=true", "train.tasks.energy.loss_fn=relative_l1"],
            "relative already",
        ),
        (["model.affine.angle.mean=(1.0,)", "model.affine.angle.std=(1.0,)"], "2 number"),
        (["model.affine.energy.mean=(1.0,)", "model.affine.energy.std=(0.0,)"], "above 0"),
        (
            ["data.augment.energy_scale=0.1", "train.tasks.energy.branch=energyReco"],
            "scaled with the photons",
        ),
        (["data.energy_unit=MeV", "train.tasks.energy.branch=eGamma"], "begins with energy"),
    ],
)
def test_what_cannot_work_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        make_task(load_config(*overrides))


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="angle"):
        load_config("train.tasks.angel.enabled=true")
    config = load_config().copy_and_resolve_references().unlock()
    config.train.tasks.angel = config.train.tasks.angle
    with pytest.raises(ConfigError, match=r"'angel'[\s\S]*angle"):
        make_task(config)


def test_energies_from_fractions_for_those_who_insist():
    relative = ["data.npho_branch=relative_npho"]
    make_task(load_config(*relative, "data.allow_relative_energy=true"))
    make_task(load_config(*relative, "train.tasks.energy.enabled=false"))


def test_branches_of_truth_and_weights_follow_each_other():
    config = load_config("train.tasks.energy.branch=energyReco")
    assert config.data.reweight.energy.branch == "energyReco"
    assert "energyReco" in make_task(config).spec


# --- numbers from the training data -------------------------------------------------------------


@pytest.fixture(scope="module")
def events():
    """Simulated events, all branches."""
    chunks = list(simulate_range(3, 0, 100))
    return {name: np.concatenate([c[name] for c in chunks]) for name in chunks[0]}


def write_truth(path, events, **changed):
    branches = {QUANTITIES[name].branch for name in FOUR} | {"time_min_used"}
    chunk = {name: events[name] for name in branches} | changed
    write_tree(path, [{name: v for name, v in chunk.items() if v is not None}])
    return path


def test_the_simulation_agrees_on_the_zero_of_times(events):
    """The absolute time is not in the input, the time since the reference nearly is."""
    t = target("timing", reference="time_min_used")
    truth, is_known = t.truth(events)
    assert is_known.all()
    absolute, relative = events["timeTruth"].std(), truth.std()
    assert absolute > 5
    assert relative < 1.5
    back = events["relative_time"] + events["time_min_used"][:, None]
    valid = events["relative_time"] < 9e9
    np.testing.assert_allclose(back[valid], events["time"][valid], atol=1e-14)


def test_prepare_fills_in_what_is_not_set(events, tmp_path):
    path = write_truth(tmp_path / "a.root", events)
    own = ["model.affine.energy.mean=(0.5,)", "model.affine.energy.std=(0.25,)"]
    config = prepare(load_config(*own, train=path))
    affine = config.model.affine
    assert (affine.energy.mean, affine.energy.std) == ((0.5,), (0.25,))
    np.testing.assert_allclose(affine.uvwFI.mean, events["uvwTruth"].mean(0), rtol=1e-5)
    np.testing.assert_allclose(affine.uvwFI.std, events["uvwTruth"].std(0), rtol=1e-5)
    relative = events["timeTruth"] - 1e9 * events["time_min_used"]
    np.testing.assert_allclose(affine.timing.mean, relative.mean(), rtol=1e-4)
    assert all(value == float(f"{value:.5e}") for value in affine.angle.mean)
    assert affine.angleVec.mean is None, "nobody asked for it"
    again = configs.from_json(configs.to_json(config))
    assert configs.diff(config, again) == {}
    assert configs.diff(prepare(again), config) == {}
    assert make_task(again).spec == make_task(config).spec


def test_prepare_leaves_alone(events, tmp_path):
    path = write_truth(tmp_path / "a.root", events)
    plain = ["model.output_affine=none", "train.loss_units=physical"]
    config = load_config(*plain, "train.tasks.timing.enabled=false", train=path)
    assert configs.diff(prepare(config), config) == {}
    config = configs.load("configs/regress.py")
    assert prepare(config) is config, "no files yet"


def test_a_head_from_another_run_keeps_its_scale(events, tmp_path):
    """The weights of a head mean nothing without the mean and std that they were trained with."""
    here = write_truth(tmp_path / "a.root", events)
    start = load_config().copy_and_resolve_references().unlock()
    start.model.affine.energy.update({"mean": (0.5,), "std": (0.25,)})
    start.model.affine.angle.update({"mean": (1.0, 2.0), "std": (3.0, 4.0)})
    start.train.tasks.angle.loss_fn = "gaussian_nll"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(configs.to_json(start))
    config = prepare(load_config(f"train.init_from={tmp_path / 'run'}", train=here))
    assert config.model.affine.energy.mean == (0.5,)
    assert config.model.affine.energy.std == (0.25,)
    assert config.model.affine.angle.mean != (1.0, 2.0), "another loss: the head starts fresh"
    old, new = make_task(start).record["modules"], make_task(config).record["modules"]
    assert old["head_energy"] == new["head_energy"]
    assert old["head_angle"] != new["head_angle"]


def test_reweighted_times_are_those_that_are_learned(events, tmp_path):
    path = write_truth(tmp_path / "a.root", events)
    config = prepare(load_config("data.reweight.timing.enabled=true", train=path))
    assert zeros_of(config.data) == {"timeTruth": "time_min_used"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"energyTruth": None}, r"energyTruth[\s\S]*train.tasks.energy.enabled=false"),
        ({"time_min_used": None}, r"time_min_used[\s\S]*train.tasks.timing"),
        ({"energyTruth": lambda e: 1e3 * e["energyTruth"]}, "GeV, not in MeV"),
        ({"emiAng": lambda e: np.deg2rad(e["emiAng"])}, "degrees, not radians"),
        (
            {"uvwTruth": lambda e: np.where(np.arange(100) < 3, np.nan, e["uvwTruth"].T).T},
            "3.0% of 100",
        ),
        ({"energyTruth": lambda e: np.full(100, 1e10)}, "100.0% of 100"),
    ],
)
def test_truth_that_cannot_be_used(events, tmp_path, changed, message):
    changed = {k: v and v(events).astype(np.float32) for k, v in changed.items()}
    path = write_truth(tmp_path / "bad.root", events, **changed)
    with pytest.raises(DataError, match=message):
        prepare(load_config(train=path))


def test_bad_truth_by_permission(events, tmp_path):
    uvw = events["uvwTruth"].copy()
    uvw[:3] = np.nan
    path = write_truth(tmp_path / "a.root", events, uvwTruth=uvw)
    config = prepare(load_config("data.allow_bad_truth=true", train=path))
    np.testing.assert_allclose(config.model.affine.uvwFI.mean, uvw[3:].mean(0), rtol=1e-5)


# --- loss ---------------------------------------------------------------------------------------


def experiment(*overrides):
    config = load_config(*overrides)
    return regress.Experiment(config, None, regress.targets_of(config))


def truths(n):
    """Raw truth of n events; the first has none of its energy, the second no reference."""
    batch = {
        "emiAng": RNG.normal(90, 20, (n, 2)),
        "energyTruth": RNG.uniform(0.02, 0.06, n),
        "timeTruth": RNG.normal(0, 5, n),
        "time_min_used": RNG.normal(0, 5e-9, n),
        "uvwTruth": RNG.normal(0, 20, (n, 3)),
        "weight": np.ones(n),
    }
    batch["energyTruth"][0], batch["time_min_used"][1] = np.nan, 1e10
    batch["weight"][-1] = 0
    return {k: jnp.asarray(v, jnp.float32) for k, v in batch.items()}


def guesses(ours, n):
    return {t.name: jnp.asarray(RNG.normal(size=(n, t.n_raw)), jnp.float32) for t in ours.targets}


def test_loss_terms_against_plain_numpy():
    ours = experiment("train.tasks.uvwFI.weight=0.5", "train.tasks.energy.loss_fn=mse")
    batch, n = truths(8), 8
    outputs = guesses(ours, n)
    terms, found = ours.terms({}, outputs, batch)
    raw = {k: np.asarray(v) for k, v in {**batch, **outputs}.items()}
    d = np.abs(raw["angle"] - raw["emiAng"])[:-1]
    want = {"angle": np.where(d < 1, d**2 / 2, d - 0.5).mean()}
    want["energy"] = np.square(raw["energy"][1:-1, 0] - raw["energyTruth"][1:-1]).mean()
    zero = raw["timeTruth"] - 1e9 * raw["time_min_used"]
    late = np.abs(raw["timing"][:, 0] - zero)
    want["timing"] = np.delete(late, [1, 7]).mean()
    want["uvwFI"] = 0.5 * np.square(raw["uvwFI"] - raw["uvwTruth"])[:-1].mean()
    assert list(terms) == list(want)
    for name, term in terms.items():
        assert float(ratio(term)) == pytest.approx(want[name], rel=1e-5)
    assert float(ratio(found["no_truth_energy"])) == pytest.approx(1 / 7)
    assert float(ratio(found["no_truth_angle"])) == 0


@pytest.mark.parametrize("loss_fn", ["l1", "gaussian_nll", "quantile", "relative_l1"])
def test_missing_truth_stays_out_of_the_gradient(loss_fn):
    ours = experiment(*(f"train.tasks.{name}.loss_fn={loss_fn}" for name in FOUR))
    batch = truths(4)
    outputs = guesses(ours, 4)

    def loss(outputs):
        return sum(ratio(term) for term in ours.terms({}, outputs, batch)[0].values())

    slopes = jax.grad(loss)(outputs)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
    np.testing.assert_array_equal(slopes["energy"][0], 0)
    np.testing.assert_array_equal(slopes["timing"][1], 0)
    assert (slopes["energy"][1] != 0).any()
    none = {**batch, "energyTruth": jnp.full(4, jnp.nan)}
    assert float(ours.terms({}, outputs, none)[0]["energy"].weight) == 0


def test_learned_balance():
    ours, manual = experiment("train.loss_balance=auto"), experiment()
    batch, outputs = truths(8), guesses(ours, 8)
    plain_terms, _ = manual.terms({}, outputs, batch)
    params = {f"log_var_{t.name}": jnp.float32(RNG.normal()) for t in ours.targets}
    terms, found = ours.terms(params, outputs, batch)
    for name, term in terms.items():
        s, loss = params[f"log_var_{name}"], ratio(plain_terms[name])
        want = 0.5 * np.exp(-s) * loss + 0.5 * s
        assert float(ratio(term)) == pytest.approx(float(want), rel=1e-5)
        assert float(ratio(found[f"learned_weight_{name}"])) == pytest.approx(0.5 * np.exp(-s))
    halves = [
        ours.terms(params, *(jax.tree.map(lambda x, i=i: x[i::2], y) for y in (outputs, batch)))[0]
        for i in range(2)
    ]
    for name, term in terms.items():
        summed = Mean(*(a + b for a, b in zip(*(h[name] for h in halves), strict=True)))
        assert float(ratio(summed)) == pytest.approx(float(ratio(term)), rel=1e-5)


# --- the whole task -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(events):
    """A narrow network with all kinds of outputs, its compiled functions, simulated events.

    It sees top and bottom only, to save compile time.
    """
    options = ["model.encoder_dim=32", "model.num_heads=4", "model.hidden_dim=16"]
    kinds = ["energy.loss_fn=gaussian_nll", "uvwFI.loss_fn=quantile", "timing.weight=0.5"]
    config = load_config(*options, *(f"train.tasks.{kind}" for kind in kinds), variant="tiny")
    config = config.copy_and_resolve_references().unlock()
    config.model.affine.angle.update({"mean": (90.0, 170.0), "std": (15.0, 30.0)})
    whole = regress.make_network(config)
    net = whole.clone(encoder=whole.encoder.clone(faces=whole.encoder.faces[4:]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regress, "make_network", lambda _: net)
        task = make_task(config)
    batch = example_batch(task.spec, 6)
    batch |= {name: np.array(events[name][:6], np.float32) for name in task.spec}
    jitted = {name: jax.jit(getattr(task, name)) for name in ("init", "evaluate", "predict")}
    task = dataclasses.replace(task, **jitted)
    return task, batch, task.init(jax.random.PRNGKey(0), batch)


def test_a_step_does_not_depend_on_the_cut(small):
    """Accumulation with missing truth, padding, a dark event and unequal event weights."""
    task, batch, params = small
    batch = {k: v.copy() for k, v in batch.items()}
    batch["weight"][:] = [1, 0.5, 2, 1, 0, 1.5]
    batch["energyTruth"][[0, 3]] = np.nan, 1e10
    batch["npho"][5] = batch["time"][5] = 1e10
    tx, after = optax.sgd(0.1), []
    for parts in (1, 2):
        step = make_train_step(task.evaluate, tx, mesh=make_mesh(1), accum_steps=parts)
        start = init_state(jax.tree.map(jnp.copy, params), tx, seed=0, with_ema=False)
        state, tally = step(start, batch)
        after.append((state.params, Tally.means([tally])["loss"]))
    assert after[0][1] == pytest.approx(after[1][1], rel=1e-6)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), after[0][0], params)
    assert max(jax.tree.leaves(moved)) > 1e-3
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6),
        after[0][0],
        after[1][0],
    )


def test_padding_and_missing_truth_change_nothing_else(small):
    task, batch, params = small
    results = []
    for content in (0, 1):
        padded = {k: v.copy() for k, v in batch.items()}
        padded["weight"][5] = 0
        padded["energyTruth"][4] = (1e10, np.nan)[content]
        for name in task.spec:
            padded[name][5] = padded[name][content]
        terms, found = task.evaluate(params, padded, jax.random.PRNGKey(5))
        results.append(task.derive(Tally.means([Tally.pack(found, terms)])))
    assert results[0] == pytest.approx(results[1], rel=1e-6, nan_ok=True)
    assert results[0]["no_truth_energy"] == pytest.approx(0.2)
    shown = set(results[0])
    assert {"angle_resolution_68pct", "energy_pull_rms", "uvwFI_coverage"} <= shown
    assert shown >= {"smooth_l1", "l1", "mse", "cos", "loss", "loss_timing"}
    assert set(task.units) <= shown
    assert results[0]["loss"] == pytest.approx(sum(results[0][f"loss_{n}"] for n in FOUR))


def test_predictions_are_physical(small):
    task, batch, params = small
    inputs = {k: v for k, v in batch.items() if k in task.inputs or k == "_position"}
    found = jax.device_get(task.predict(params, inputs))
    shapes = {k: v.shape[1:] for k, v in found.items()}
    names = ("pred_uvwFI", "pred_uvwFI_low", "pred_uvwFI_high")
    assert shapes == {
        "pred_angle": (2,),
        "pred_energy": (),
        "pred_energy_sigma": (),
        "pred_timing": (),
        **dict.fromkeys(names, (3,)),
    }
    assert (np.abs(found["pred_angle"] - [90, 170]) < [30, 60]).all(), "starts near the mean"
    assert (found["pred_uvwFI_low"] < found["pred_uvwFI_high"]).all()
    zero = 1e9 * batch["time_min_used"]
    assert (np.abs(found["pred_timing"] - zero) < 3).all(), "the zero is added back"
    truth = task.truth(batch)
    assert {name.replace("true", "pred") for name in truth} <= set(found)
    figures = list(task.figures({**batch, **found}))
    assert [stem for stem, _ in figures] == [f"regression_{name}" for name in FOUR]


def test_events_without_any_valid_sensor_get_numbers(small):
    """Nor do whole dead faces harm: first one of those that the network sees, then the other."""
    task, batch, params = small
    inputs = {k: v.copy() for k, v in batch.items() if k in task.inputs or k == "_position"}
    inputs["npho"][:3], inputs["time"][:2] = [[1e10], [0], [-1]], 1e10
    for row, name in ((3, "top"), (4, "bot")):
        inputs["npho"][row, design_positions().face == FACES.index(name)] = 1e10
    found = jax.device_get(task.predict(params, inputs))
    assert all(np.isfinite(values).all() for values in found.values())
    np.testing.assert_array_equal(found["pred_energy"][0], found["pred_energy"][1:3])


def test_dropout_by_request_only(small):
    task, batch, params = small
    fixed = [task.predict(params, batch) for _ in range(2)]
    draws = [task.predict(params, batch, jax.random.PRNGKey(k)) for k in (1, 1, 2)]
    jax.tree.map(np.testing.assert_array_equal, *fixed)
    jax.tree.map(np.testing.assert_array_equal, *draws[:2])
    assert (draws[0]["pred_energy"] != draws[2]["pred_energy"]).any()
    assert (draws[0]["pred_energy"] != fixed[0]["pred_energy"]).any()


def test_several_predictions_agree_on_the_azimuth(small):
    task, _, _ = small
    angles = np.array([[[90.0, 179.0]], [[92.0, -177.0]]], np.float32)
    found = task.combine([{"pred_angle": a, "pred_angle_low": a - 5} for a in angles])
    np.testing.assert_allclose(found["pred_angle"], [[91.0, -179.0]])
    np.testing.assert_allclose(found["pred_angle_low"], [[86.0, -184.0]])
    np.testing.assert_allclose(found["pred_angle_std"], [[2**0.5, 8**0.5]], rtol=1e-5)


@pytest.mark.parametrize("heads", ["active", "all"])
def test_heads_and_parameters(heads):
    options = ["model.encoder_dim=32", "model.num_heads=4", "train.loss_balance=auto"]
    off = ["train.tasks.uvwFI.enabled=false", "train.tasks.timing.enabled=false"]
    task = make_task(load_config(*options, *off, f"model.heads={heads}"))
    params = jax.eval_shape(task.init, jax.random.PRNGKey(0), example_batch(task.spec, 2))
    used = ("angle", "energy") if heads == "active" else tuple(QUANTITIES)
    balance = ("log_var_angle", "log_var_energy")
    assert set(params) == {"encoder", *(f"head_{name}" for name in used), *balance}
    idle = set(used) - {"angle", "energy"}
    assert set(task.frozen) == {f"^head_{name}/" for name in idle}
    assert "uvwTruth" not in task.spec
    terms, _ = jax.eval_shape(task.loss, params, example_batch(task.spec, 2), jax.random.PRNGKey(0))
    assert set(terms) == {"angle", "energy"}
