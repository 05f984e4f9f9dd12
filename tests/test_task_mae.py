"""The pretraining task: the predecessor's loss values, no leak, padding, masks, metrics."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import GOLDEN, load, weights

from xec_jax import config as configs
from xec_jax.errors import ConfigError
from xec_jax.nets.augment import DROPPED
from xec_jax.nets.faces import face_input
from xec_jax.tasks import hidden as shared
from xec_jax.tasks import mae
from xec_jax.tasks.base import example_batch, make_task
from xec_jax.torch_weights import from_torch
from xec_jax.train.step import Tally

LOSSES = json.loads((GOLDEN / "mae_losses.json").read_text())
SETTINGS = {
    "smoothl1_default": [],
    "mse_noweight": ["train.loss_fn=mse", "train.use_npho_time_weight=false"],
    "l1_w2_w05": ["train.loss_fn=l1", "train.npho_weight=2", "train.time_weight=0.5"],
    "smoothl1_beta01": ["train.loss_beta=0.1"],
    "smoothl1_thr1000": ["train.npho_threshold=1000"],
}
PREDECESSOR = [
    "model.outer_mask=coarse",
    "model.maskable=time",
    "data.normalization.sentinel_npho=-1",
]


def load_config(*overrides, variant="default"):
    texts = [f"--config.{text}" for text in ("data.train=x", *overrides)]
    return configs.load(f"configs/mae.py:{variant}", texts)


def experiment(config):
    return mae.Experiment(mae.detector_of(config), mae.transform_of(config), None, config)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("model", LOSSES)
def test_loss_values_of_the_predecessor(model, setting):
    """Its reconstructions, its masks, its inputs: each of the twelve terms and their sum."""
    geometry = "physical" if model.startswith("fix") else "documented"
    pool = "(1,1)" if model.endswith("nopool") else "(3,3)"
    variant = [f"model.geometry={geometry}", f"model.outer_fine_pool={pool}"]
    ours = experiment(load_config(*PREDECESSOR, *variant, *SETTINGS[setting]))
    reconstructed, data = load(f"{model}.npz"), load("ref_masking.npz")
    faces = {}
    for face in ours.detector.faces:
        faces[face.name] = jnp.moveaxis(jnp.asarray(reconstructed[f"recon_{face.name}"]), 1, -1)
    x = jnp.asarray(data["x"])
    # The predecessor turns sentinels back into photons (-983 of them) for the time weight of a
    # pooled pixel, where ours count as 0; told that all is valid, ours does the same.
    valid = jnp.ones(x.shape, bool)
    batch = {"npho": ours.transform.npho_inverse(x[..., 0]), "weight": jnp.ones(len(x))}
    terms = ours.terms(faces, batch, x, valid, jnp.asarray(data["mask65"], bool))
    found = {name: float(term.total / term.weight) for name, term in terms.items()}
    expected = LOSSES[model][setting]
    assert sum(found.values()) == pytest.approx(expected["total_loss"], rel=2e-6)
    for name, value in found.items():
        assert value == pytest.approx(expected[f"loss_{name}"], rel=3e-6), name


def test_weights_of_the_predecessor_give_its_reconstruction():
    """From its tensors by name through the config's network to its numbers."""
    config = load_config(*PREDECESSOR, "model.geometry=documented")
    params = from_torch("mae", weights("ref_mae_pool33", "A"), config)
    data, expected = load("ref_masking.npz"), load("ref_mae_pool33.npz")
    task, net = make_task(config), mae.make_network(config)
    shapes = jax.eval_shape(task.init, jax.random.PRNGKey(0), example_batch(task.spec, 2))
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    shown = data["xmasked65"]
    unseen = data["mask65"].astype(bool) | (data["x"][..., 1] == -1)
    found = jax.jit(net.apply)({"params": params}, shown, unseen)
    for name, values in found.items():
        reference = np.moveaxis(expected[f"recon_{name}"], 1, -1)
        np.testing.assert_allclose(values, reference, atol=5e-6, err_msg=name)


@pytest.fixture(scope="module")
def tiny():
    config = load_config("model.encoder_dim=32", "model.num_heads=4", variant="tiny")
    task, ours = make_task(config), experiment(config)
    ours.net = mae.make_network(config)
    ours.hide = jax.jit(ours.hide)
    ours.reconstruct = jax.jit(ours.reconstruct)
    jitted = {name: jax.jit(getattr(task, name)) for name in ("evaluate", "predict")}
    task = dataclasses.replace(task, **jitted)
    batch = events(4)
    params = jax.jit(task.init)(jax.random.PRNGKey(0), batch)
    return task, ours, batch, params


def events(n, seed=0):
    """Raw events with all that occurs: dead channels, invalid times, one event without light."""
    rng = np.random.default_rng(seed)
    batch = example_batch({name: ((4760,), np.float32) for name in ("npho", "time")}, n)
    batch["npho"] = np.exp(rng.normal(4, 2, (n, 4760))).astype(np.float32)
    batch["time"] = rng.normal(2e-8, 1e-8, (n, 4760)).astype(np.float32)
    batch["npho"][rng.uniform(size=(n, 4760)) < 0.05] = 1e10
    batch["time"][rng.uniform(size=(n, 4760)) < 0.2] = 1e10
    batch["npho"][-1] = 1e10
    return batch


def test_masks(tiny):
    _, ours, batch, _ = tiny
    _, valid, hidden = ours.hide(batch, jax.random.PRNGKey(3))
    n_valid = np.asarray(valid[..., 0].sum(-1))
    np.testing.assert_array_equal(hidden.sum(-1), np.floor(np.float32(0.65) * n_valid))
    assert not (hidden & ~valid[..., 0]).any()
    assert (hidden & ~valid[..., 1]).any(), "a sensor without a time may be asked for its photons"
    assert hidden[-1].sum() == 0
    _, _, again = ours.hide(batch, jax.random.PRNGKey(3))
    _, _, other = ours.hide(batch, jax.random.PRNGKey(4))
    np.testing.assert_array_equal(hidden, again)
    assert (hidden != other).any()


def test_training_and_validation_hide_alike(tiny):
    task, _, batch, params = tiny
    key = jax.random.PRNGKey(3)

    @jax.jit
    def trained(batch):
        """Weights alone: the compiler drops the network."""
        return {name: term.weight for name, term in task.loss(params, batch, key)[0].items()}

    validated, _ = task.evaluate(params, batch, key)
    for name, weight in trained(batch).items():
        assert float(weight) == pytest.approx(float(validated[name].weight))


def test_nothing_of_a_hidden_sensor_reaches_the_network(tiny):
    _, ours, batch, params = tiny
    x, valid, hidden = ours.hide(batch, jax.random.PRNGKey(3))
    changed = jnp.where(hidden[..., None], x + 7.0, x)
    a = ours.reconstruct(params, x, valid, hidden)
    b = ours.reconstruct(params, changed, valid, hidden)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    seen = jnp.where(hidden[..., None], x, x + 0.5)
    c = ours.reconstruct(params, seen, valid, hidden)
    assert float(jnp.abs(c["inner"] - a["inner"])[0].max()) > 0


def test_padding_changes_nothing(tiny):
    task, _, batch, params = tiny
    results = []
    for content in (0, 1):
        padded = {k: v.copy() for k, v in batch.items()}
        padded["weight"][3] = 0
        padded["npho"][3], padded["time"][3] = batch["npho"][content], batch["time"][content]
        terms, metrics = task.evaluate(params, padded, jax.random.PRNGKey(5))
        results.append(task.derive(Tally.means([Tally.pack(metrics, terms)])))
    assert results[0] == pytest.approx(results[1], rel=1e-6)


def test_dark_events_alone_are_finite(tiny):
    task, ours, batch, params = tiny
    dark = {k: v.copy() for k, v in batch.items()}
    dark["npho"][:] = 1e10
    terms, metrics = task.evaluate(params, dark, jax.random.PRNGKey(0))
    assert Tally.means([Tally.pack(metrics, terms)])["loss"] == 0
    x, valid, hidden = ours.hide(dark, jax.random.PRNGKey(0))
    faces = ours.reconstruct(params, x, valid, hidden)

    def loss(faces):
        return sum(t.total for t in ours.terms(faces, dark, x, valid, hidden).values())

    gradient = jax.grad(loss)(faces)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))


def test_metrics_against_plain_numpy(tiny):
    task, ours, batch, params = tiny
    key = jax.random.PRNGKey(8)
    terms, metrics = task.evaluate(params, batch, key)
    found = task.derive(Tally.means([Tally.pack(metrics, terms)]))
    x, valid, hidden = (np.asarray(a) for a in ours.hide(batch, key))
    faces = ours.reconstruct(params, x, valid, hidden)
    predicted, known = ours.per_sensor(faces)
    predicted = np.asarray(predicted)
    assert known.all()
    top = np.isin(np.arange(4760), np.arange(4596, 4669))
    for part, sensors in (("", np.ones(4760, bool)), ("top_", top)):
        use = hidden & sensors
        error, truth = predicted[..., 0][use] - x[..., 0][use], x[..., 0][use]
        assert found[f"mae_{part}npho"] == pytest.approx(np.abs(error).mean(), rel=1e-4)
        assert found[f"rmse_{part}npho"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-4)
        r2 = 1 - (error**2).mean() / truth.var()
        assert found[f"r2_{part}npho"] == pytest.approx(r2, rel=1e-3)
        photons = np.asarray(ours.transform.npho_inverse(predicted[..., 0]))
        error = photons[use] - batch["npho"][use]
        assert found[f"mae_{part}photons"] == pytest.approx(np.abs(error).mean(), rel=1e-3)
    use = hidden & valid[..., 1] & (np.where(valid[..., 0], batch["npho"], 0) > 100)
    error_ns = (predicted[..., 1] - x[..., 1])[use] * 1.14e-7 * 1e9
    assert found["mae_time_ns"] == pytest.approx(np.abs(error_ns).mean(), rel=1e-4)
    assert found["actual_mask_ratio"] == pytest.approx(0.65, abs=1e-3)
    assert found["loss"] == pytest.approx(found["loss_npho"] + found["loss_time"], rel=1e-5)
    assert found["loss"] == pytest.approx(
        sum(found[f"loss_{face.name}"] for face in ours.detector.faces), rel=1e-5
    )


def test_prediction_is_physical(tiny):
    task, _, batch, params = tiny
    arrays = task.predict(params, batch)
    assert arrays["prediction"].shape == (4, 4760, 2)
    assert np.isfinite(arrays["prediction"]).all()
    assert arrays["hidden"].sum() > 5000
    figures = list(task.figures({k: np.asarray(v)[:1] for k, v in {**batch, **arrays}.items()}))
    assert [stem for stem, _ in figures] == ["reconstruction_0"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.mask_ratio=0.0", "inside"),
        ("model.mask_ratio=1.0", "inside"),
        ("model.maskable=both", "npho, time"),
        ("model.predict_channels=('time',)", "npho"),
        ("model.encoder_dim=100", "multiple of 32"),
        ("model.hex_decoder_dim=0", "positive"),
        ("model.time_mask_ratio_scale=0.0", "positive"),
        ("model.dim_feedforward=0", "positive"),
        ("model.position=geometry", "did you mean 'geometric'"),
        ("model.outer_split=both", "normalized or raw"),
        ("data.augment.channel_dropout=1.0", r"\[0, 1\)"),
        ("model.dropout=1.0", r"model.dropout is 1.0.*\n.*\[0, 1\)"),
        ("model.drop_path_rate=-0.1", r"model.drop_path_rate is -0.1.*\n.*\[0, 1\)"),
        ("train.loss_fn=cosine", "smooth_l1"),
        ("train.loss_fn=angular", "smooth_l1"),
        ("train.loss_fn=gaussian_nll", "smooth_l1"),
        ("train.loss_fn=quantile", "smooth_l1"),
        ("train.loss_fn=cross_entropy", "smooth_l1"),
    ],
)
def test_bad_values(override, message):
    config = load_config(override)

    def build():
        task = make_task(config)
        jax.eval_shape(task.init, jax.random.PRNGKey(0), example_batch(task.spec, 1))

    with pytest.raises(ConfigError, match=message):
        build()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.time_branch=None"], "predict_channels"),
        (
            ["data.time_branch=None", "model.predict_channels=('npho',)", "model.maskable=time"],
            "nothing could be hidden",
        ),
        (
            [
                "data.npho_branch=relative_npho",
                "train.npho_threshold=0.1",
                "data.augment.energy_scale=0.1",
            ],
            "fractions",
        ),
        (["model.outer_split=raw", "model.fill_npho=-1.0"], "sentinel_npho"),
    ],
)
def test_combinations_that_cannot_work(overrides, message):
    with pytest.raises(ConfigError, match=message):
        make_task(load_config(*overrides))


class Flat:
    """In place of the network: predicts one number everywhere, and keeps what it was shown."""

    def __init__(self, ours, value=0.5):
        self.ours, self.value = ours, value

    def apply(self, variables, shown, unseen, deterministic, rngs=None):
        self.shown, self.unseen = shown, unseen
        shapes = {
            f.name: getattr(f, "shape", None) or (f.n_nodes,) for f in self.ours.detector.faces
        }
        channels = len(self.ours.model.predict_channels)
        return {
            name: jnp.full((len(shown), *shape, channels), self.value)
            for name, shape in shapes.items()
        }


def flat(*overrides):
    ours = experiment(load_config(*overrides))
    ours.net = Flat(ours)
    return ours


def test_bright_sensors_are_hidden_more_often_if_asked_to():
    batch, key = events(4), jax.random.PRNGKey(1)
    _, valid, even = flat().hide(batch, key)
    _, _, hidden = flat("model.time_mask_ratio_scale=2.0").hide(batch, key)
    np.testing.assert_array_equal(hidden.sum(-1), even.sum(-1))
    bright = np.asarray(valid[:3, :, 0] & (batch["npho"][:3] > 100))
    dim = np.asarray(valid[:3, :, 0]) & ~bright
    assert hidden[:3][bright].mean() > even[:3][bright].mean() + 0.05
    assert hidden[:3][dim].mean() < even[:3][dim].mean() - 0.05


@pytest.mark.parametrize(("rule", "cells"), [("painted", 2), ("coarse", 0)])
def test_sensors_of_the_centre_patch_alone_are_asked_for(rule, cells):
    """Sensor 4744 has six cells of the fine grid, in two pixels; no coarse cell shows it."""
    ours, batch = flat(f"model.outer_mask={rule}"), events(1)
    batch["npho"] = np.full((1, 4760), 500, np.float32)
    x, valid = mae.encode(ours.transform, batch)
    hidden = np.zeros((1, 4760), bool)
    hidden[0, 4744] = True
    faces = ours.net.apply(None, x, hidden, True)
    terms = jax.jit(ours.terms)(faces, batch, x, valid, hidden)
    assert terms["outer_npho"].weight == cells
    assert all(float(t.weight) == 0 for n, t in terms.items() if not n.startswith("outer"))


def test_bright_cells_weigh_more_in_the_photon_loss_if_asked_to():
    batch, key = events(2), jax.random.PRNGKey(2)
    ours = flat("train.npho_loss_weight.enabled=true", "train.npho_loss_weight.alpha=0.7")
    x, valid, hidden = ours.hide(batch, key)
    faces = ours.reconstruct({}, x, valid, hidden)
    terms = jax.jit(ours.terms)(faces, batch, x, valid, hidden)
    plain = jax.jit(flat().terms)(faces, batch, x, valid, hidden)
    use = np.asarray(hidden[:, :4092])
    error = 0.5 - np.asarray(x[:, :4092, 0], float)[use]
    loss = np.where(abs(error) < 1, error**2 / 2, abs(error) - 0.5)
    weight = (np.maximum(batch["npho"][:, :4092].astype(float)[use], 1) + 1) ** 0.7
    expected = (weight * loss).sum() / weight.sum()
    term = terms["inner_npho"]
    assert float(term.total / term.weight) == pytest.approx(expected, rel=1e-4)
    for name in plain:
        if name.endswith("_time"):
            assert float(terms[name].total) == pytest.approx(float(plain[name].total), rel=1e-6)


@pytest.fixture(scope="module")
def balanced():
    """The loss of the flat network with learned variances, and events."""
    return jax.jit(flat("train.auto_channel_weight=true").loss), events(4)


def total(terms):
    return sum(float(t.total / t.weight) for t in terms.values() if t.weight > 0)


def test_channels_are_balanced_once(balanced):
    loss, batch = balanced
    key = jax.random.PRNGKey(3)
    plain, _ = jax.jit(flat().loss)({}, batch, key)
    sums = [total({n: t for n, t in plain.items() if n.endswith(c)}) for c in ("npho", "time")]
    s = np.array([0.3, -1.2], np.float32)
    terms, metrics = loss({mae.LOG_VARIANCES: s}, batch, key)
    expected = sum(0.5 * np.exp(-v) * part + 0.5 * v for v, part in zip(s, sums, strict=True))
    assert total(terms) == pytest.approx(expected, rel=1e-5)
    for channel, value in zip(("npho", "time"), s, strict=True):
        mean = metrics[f"channel_logvar_{channel}"]
        assert float(mean.total / mean.weight) == pytest.approx(value)
    best, _ = loss({mae.LOG_VARIANCES: np.log(np.float32(sums))}, batch, key)
    assert total(best) == pytest.approx(sum(0.5 + 0.5 * np.log(sums)), rel=1e-5)


def test_the_balance_does_not_depend_on_the_cut_of_the_batch(balanced):
    loss, batch = balanced
    params, key = {mae.LOG_VARIANCES: np.float32([0.3, -1.2])}, jax.random.PRNGKey(3)
    whole, _ = loss(params, batch, key)
    parts = [loss(params, {k: v[i::2] for k, v in batch.items()}, key)[0] for i in range(2)]
    merged = jax.tree.map(lambda a, b: a + b, *parts)
    assert total(merged) == pytest.approx(total(whole), rel=1e-5)


def test_events_without_times_leave_the_balance_of_times_alone(balanced):
    loss, batch = balanced
    dark = {**batch, "time": np.full_like(batch["time"], 1e10)}
    terms, _ = loss({mae.LOG_VARIANCES: np.float32([0, 5])}, dark, jax.random.PRNGKey(3))
    assert terms["balance_time"].weight == 0
    assert terms["balance_npho"].weight > 0


def test_learned_variances_are_parameters_of_their_own_and_do_not_decay():
    config = load_config("train.auto_channel_weight=true", "model.predict_channels=('npho',)")
    task = make_task(config)
    shapes = jax.eval_shape(task.init, jax.random.PRNGKey(0), example_batch(task.spec, 1))
    assert shapes[mae.LOG_VARIANCES].shape == (1,)
    assert any(re.search(p, mae.LOG_VARIANCES) for p in config.optim.no_decay)


def test_files_without_times_train_on_photons():
    ours = flat("data.time_branch=None", "model.predict_channels=('npho',)")
    batch = {k: v for k, v in events(4).items() if k != "time"}
    terms, metrics = jax.jit(ours.evaluate)({}, batch, jax.random.PRNGKey(0))
    found = shared.derive(Tally.means([Tally.pack(metrics, terms)]))
    faces = ("inner", "us", "ds", "outer", "top", "bot")
    assert set(terms) == {f"{face}_npho" for face in faces}
    assert not [name for name in found if "time" in name and name != "time_valid_ratio"]
    assert found["time_valid_ratio"] == 0
    assert all(np.isfinite(list(found.values())))
    arrays = jax.jit(ours.predict)({}, batch)
    assert np.isnan(arrays["prediction"][..., 1]).all()
    assert np.isfinite(arrays["prediction"][..., 0]).all()
    assert len(list(ours.figures({k: np.asarray(v)[:1] for k, v in {**batch, **arrays}.items()})))


def test_hidden_counts_are_filled_as_asked():
    for overrides, fill in (([], 0.0), (["model.fill_npho=-1.0"], -1.0)):
        ours, batch = flat(*overrides), events(2)
        x, valid, hidden = ours.hide(batch, jax.random.PRNGKey(0))
        ours.reconstruct({}, x, valid, hidden)
        shown = np.asarray(ours.net.shown)
        assert (shown[np.asarray(hidden)] == [fill, -1.0]).all()
        np.testing.assert_array_equal(shown[~np.asarray(hidden)], x[~hidden])


def test_augmentation_changes_training_and_nothing_else():
    batch, key = events(3), jax.random.PRNGKey(5)
    dropping = "data.augment.channel_dropout=0.3"
    plain, changed = flat(), flat(dropping, "data.augment.npho_noise=0.1")
    n_plain, n_changed = (
        float(jax.jit(ours.loss)({}, batch, key)[1]["actual_mask_ratio"].weight)
        for ours in (plain, changed)
    )
    assert n_changed == pytest.approx(0.7 * n_plain, rel=0.03)
    for name in ("evaluate", "predict"):
        args = ({}, batch, key) if name == "evaluate" else ({}, batch)
        results = [jax.jit(getattr(ours, name))(*args) for ours in (plain, changed)]
        jax.tree.map(np.testing.assert_array_equal, *results)


def test_sensors_dropped_as_zeros_are_shown_as_zeros_and_never_asked_for():
    ours = flat("data.augment.channel_dropout=0.3", "data.augment.channel_dropout_mode=zero")
    batch = ours.augment(events(2), jax.random.PRNGKey(5))
    x, valid, hidden = ours.hide(batch, jax.random.PRNGKey(5))
    dropped = np.asarray(batch[DROPPED])
    assert (np.asarray(x)[dropped] == 0).all()
    assert not (np.asarray(hidden) & dropped).any()
    assert not np.asarray(valid)[dropped].any()


def test_photons_divided_as_photons_are_targets_too():
    """A perfect reconstruction has no loss, and its sensors have their photons."""
    batch, key = events(2), jax.random.PRNGKey(6)
    ours = flat("model.outer_split=raw", "model.outer_fine_pool=(1,1)")
    x, valid, hidden = ours.hide(batch, key)
    faces = {f.name: face_input(f, x, **ours.view) for f in ours.detector.faces}
    terms = ours.terms(faces, batch, x, valid, hidden)
    assert all(float(term.total) == 0 for term in terms.values())
    predicted, _ = ours.per_sensor(faces)
    good = np.asarray(valid[..., 0])
    np.testing.assert_allclose(np.asarray(predicted)[good, 0], x[good, 0], atol=1e-5)
    plain = flat("model.outer_fine_pool=(1,1)")
    outer = ours.detector.face("outer")
    assert float(jnp.abs(faces["outer"] - face_input(outer, x, **plain.view)).max()) > 0.05


def test_photons_alone(tiny):
    config = load_config("model.predict_channels=('npho',)", variant="tiny")
    task = make_task(config)
    batch = events(2)
    shapes = jax.eval_shape(task.init, jax.random.PRNGKey(0), batch)
    terms, _ = jax.eval_shape(task.evaluate, shapes, batch, jax.random.PRNGKey(0))
    assert set(terms) == {f"{face}_npho" for face in ("inner", "us", "ds", "outer", "top", "bot")}
