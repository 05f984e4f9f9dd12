"""The inpainting task: the predecessor's loss values, masks, no leak, the baseline, metrics."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import GOLDEN, load, weights

from xec_jax import config as configs
from xec_jax.baselines.neighbors import touching_average, touching_sensors
from xec_jax.errors import ConfigError
from xec_jax.geometry import FACES, make_detector
from xec_jax.tasks import hidden as shared
from xec_jax.tasks import inpaint
from xec_jax.tasks.base import example_batch, make_task
from xec_jax.torch_weights import from_torch
from xec_jax.train.saved import COMPARED
from xec_jax.train.step import Tally

LOSSES = json.loads((GOLDEN / "inpainter_losses.json").read_text())
SETTINGS = {
    "smoothl1": ["train.loss_beta=1.0"],
    "smoothl1_beta01": [],
    "mse_noweight": ["train.loss_fn=mse", "train.use_npho_time_weight=false"],
    "l1_w": ["train.loss_fn=l1", "train.npho_weight=2", "train.time_weight=0.5"],
    "smoothl1_nphoweight": ["train.loss_beta=1.0", "train.npho_loss_weight.enabled=true"],
}
NARROW = ["model.encoder_dim=32", "model.num_heads=4", "model.head_dim=8", "model.hex_head_dim=8"]


def load_config(*overrides, variant="default"):
    texts = [f"--config.{text}" for text in ("data.train=x", *overrides)]
    return configs.load(f"configs/inpaint.py:{variant}", texts)


def experiment(config, net=None):
    return inpaint.Experiment(
        inpaint.detector_of(config), inpaint.transform_of(config), net, config
    )


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("model", LOSSES)
def test_loss_values_of_the_predecessor(model, setting):
    """Its predictions, masks and inputs: all terms of both forms.

    It divides weights by their plain mean over the batch; where the weights differ our per-face
    form divides by the mean over events of an event's mean. The factor between the two is known.
    """
    predicted, data = jnp.asarray(load(f"{model}.npz")["pred_all"]), load("ref_masking.npz")
    x, hidden = jnp.asarray(data["x"]), jnp.asarray(data["mask10"], bool)
    for reduction, name in (("flat", "flat"), ("per_face", "perface")):
        ours = experiment(load_config(f"train.loss_reduction={reduction}", *SETTINGS[setting]))
        batch = {"npho": ours.transform.npho_inverse(x[..., 0]), "weight": jnp.ones(len(x))}
        valid = jnp.ones(x.shape, bool)
        terms = ours.terms(predicted, batch, x, valid, hidden)
        expected = LOSSES[model][setting][name]
        for part, term in terms.items():
            factor = 1.0
            if reduction == "per_face":
                factor = plain_mean_factor(ours, part, batch, hidden)
            found = float(term.total / term.weight) * factor
            if f"loss_{part}" in expected:
                wanted = expected[f"loss_{part}"]
                if reduction == "flat":  # reported without the weight of the channel
                    wanted *= getattr(ours.train, f"{part}_weight") if "l1_w" in setting else 1
                assert found == pytest.approx(wanted, rel=3e-6), (reduction, part)
        assert len(terms) == (2 if reduction == "flat" else 12)


def plain_mean_factor(ours, part, batch, hidden):
    """Our weight of a term over the predecessor's: number of events x plain mean of weights."""
    face, channel = part.rsplit("_", 1)
    on = np.asarray(hidden) & (ours.detector.sensor_face == FACES.index(face))
    photons = np.asarray(batch["npho"])
    w = np.ones(on.shape)
    if channel == "time":
        on = on & (photons > 100)
        if ours.train.use_npho_time_weight:
            w = np.sqrt(np.maximum(photons, 100))
    elif ours.train.npho_loss_weight.enabled:
        w = (np.maximum(photons, 1) + 1) ** 0.5
    filled = on.any(1)
    means = [w[e][on[e]].mean() for e in np.flatnonzero(filled)]
    return sum(means) / (filled.sum() * w[on].mean())


@pytest.fixture(scope="module")
def tiny():
    """The task's functions around the network that compiles fastest, with random weights."""
    config = load_config(*NARROW, "model.head_type=cross_attention", variant="tiny")
    net = inpaint.make_network(config)
    ours = experiment(config, net.clone(encoder=net.encoder.clone(portable=True)))
    batch = events(4)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(ours.init, jax.random.PRNGKey(0), batch)
    params = jax.tree.map(lambda s: 0.1 * rng.standard_normal(s.shape, np.float32), shapes)
    for name in ("hide", "fill", "evaluate", "filled"):
        setattr(ours, name, jax.jit(getattr(ours, name)))
    return ours, batch, params


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


def hide(batch, *overrides, key=0):
    ours = experiment(load_config(*overrides))
    return np.asarray(ours.hide(batch, jax.random.PRNGKey(key))[2])


@pytest.mark.parametrize("flat", ["true", "false"])
@pytest.mark.parametrize("ratio", ["0.05", "{'inner': 0.1, 'top': 0.5}"])
def test_masks_have_exact_counts_and_follow_the_event(ratio, flat):
    overrides = (f"model.mask_ratio={ratio}", f"model.mask_npho_flat={flat}")
    batch = events(4)
    valid = batch["npho"] < 1e10
    hidden = hide(batch, *overrides)
    assert not (hidden & ~valid).any()
    face = make_detector().sensor_face
    shares = {"inner": 0.1, "top": 0.5} if "{" in ratio else {"all": 0.05}
    for name, share in shares.items():
        on = np.ones(4760, bool) if name == "all" else face == FACES.index(name)
        expected = (np.float32((valid & on).sum(1)) * np.float32(share)).astype(int)
        np.testing.assert_array_equal((hidden & on).sum(1), expected)
    if "all" not in shares:
        assert not hidden[:, ~np.isin(face, [FACES.index("inner"), FACES.index("top")])].any()
    order = [2, 0, 3, 1]
    again = hide({name: a[order] for name, a in batch.items()}, *overrides)
    np.testing.assert_array_equal(again, hidden[order])
    assert (hide(batch, *overrides, key=1) != hidden).any()


def test_photons_alone_decide_where_there_is_no_time():
    config = ["model.predict_channels=('npho',)", "data.time_branch=None"]
    batch = events(2)
    del batch["time"]
    batch["npho"][-1] = 50.0
    assert hide(batch, *config)[-1].sum() == 238
    task = make_task(load_config(*config, *NARROW, variant="tiny"))
    assert set(task.spec) == {"npho"}
    params = jax.eval_shape(task.init, jax.random.PRNGKey(0), batch)
    terms, _ = jax.eval_shape(task.evaluate, params, batch, jax.random.PRNGKey(0))
    assert set(terms) == {f"{face}_npho" for face in FACES}
    shapes = jax.eval_shape(task.predict, params, batch)
    assert shapes["prediction"].shape == (2, 4760, 1)


def test_nothing_of_a_hidden_sensor_reaches_the_network(tiny):
    ours, batch, params = tiny
    x, valid, hidden = ours.hide(batch, jax.random.PRNGKey(3))
    changed = jnp.where(hidden[..., None], x + 7.0, x)
    a, b = (ours.fill(params, values, valid, hidden) for values in (x, changed))
    np.testing.assert_array_equal(a, b)
    c = ours.fill(params, jnp.where(hidden[..., None], x, x + 0.5), valid, hidden)
    assert float(jnp.abs(c - a)[0].max()) > 0


def means(*results):
    """Metrics of one or more calls of `evaluate`, added up as the loop does."""
    packed = [Tally.pack(metrics, terms) for terms, metrics in results]
    return shared.derive(Tally.means(packed))


def test_padding_and_parts_of_the_batch_change_nothing(tiny):
    ours, batch, params = tiny
    key = jax.random.PRNGKey(5)
    whole = means(ours.evaluate(params, batch, key))
    parts = [{**batch, "weight": np.float32(w)} for w in ([1, 0, 1, 0], [0, 1, 0, 1])]
    split = means(*(ours.evaluate(params, part, key) for part in parts))
    assert split == pytest.approx(whole, rel=1e-4, nan_ok=True)
    padded = {k: v.copy() for k, v in batch.items()}
    padded["weight"][3] = 0
    padded["npho"][3] = batch["npho"][0]
    other = means(ours.evaluate(params, padded, key))
    del whole["n_masked"], other["n_masked"]  # per event; the last one is dark
    assert other == pytest.approx(whole, rel=1e-4, nan_ok=True)


def test_dark_events_alone_are_finite(tiny):
    ours, batch, params = tiny
    dark = {k: v.copy() for k, v in batch.items()}
    dark["npho"][:] = 1e10
    terms, metrics = ours.evaluate(params, dark, jax.random.PRNGKey(0))
    assert Tally.means([Tally.pack(metrics, terms)])["loss"] == 0
    x, valid, hidden = ours.hide(dark, jax.random.PRNGKey(0))
    predicted = ours.fill(params, x, valid, hidden)
    assert np.isfinite(predicted).all()

    def loss(predicted):
        return sum(t.total for t in ours.terms(predicted, dark, x, valid, hidden).values())

    assert (jax.grad(loss)(predicted) == 0).all()


def test_metrics_against_plain_numpy(tiny):
    ours, batch, params = tiny
    key = jax.random.PRNGKey(8)
    found = means(ours.evaluate(params, batch, key))
    x, valid, hidden = (np.asarray(a) for a in ours.hide(batch, key))
    predicted = np.asarray(ours.fill(params, x, valid, hidden))
    photons = np.asarray(ours.transform.npho_inverse(predicted[..., 0]))
    live = valid[..., 0] & ~hidden
    position, face = ours.detector.sensors.positions, ours.detector.sensor_face
    disk = np.zeros(hidden.shape)
    for event, sensor in zip(*np.nonzero(hidden), strict=True):
        away = np.linalg.norm(position - position[sensor], axis=1)
        near = (face == face[sensor]) & (away < 20) & (away > 0) & live[event]
        disk[event, sensor] = batch["npho"][event, near].mean()
    for method, filled in (("", photons), ("_disk", disk)):
        for name, sensors in (("", face >= 0), ("us_", face == 1)):
            use = hidden & sensors
            error = filled[use] - batch["npho"][use]
            key = f"mae_{name}photons{method}"
            assert found[key] == pytest.approx(np.abs(error).mean(), rel=1e-3)
        use = hidden & (batch["npho"] >= 100)
        truth = batch["npho"][use]
        share = (filled[use] - truth) / truth
        assert found[f"rel_mae{method}"] == pytest.approx(np.abs(share).mean(), rel=1e-3)
        assert found[f"rel_rms{method}"] == pytest.approx((share**2).mean() ** 0.5, rel=1e-3)
        assert found[f"bright_bias_photons{method}"] == pytest.approx(
            (share * truth).mean(), rel=1e-3, abs=0.1
        )
    error = (predicted - x)[..., 0][hidden]
    assert found["mae_npho"] == pytest.approx(np.abs(error).mean(), rel=1e-4)
    variance = x[..., 0][hidden].var()
    assert found["r2_npho"] == pytest.approx(1 - (error**2).mean() / variance, rel=1e-3)
    assert found["actual_mask_ratio"] == pytest.approx(0.05, abs=1e-3)
    assert found["n_masked"] == hidden.sum() / 4
    assert found["loss"] == pytest.approx(found["loss_npho"] + found["loss_time"], rel=1e-5)


def test_neighbors_touch():
    """Eight inside a grid, three in its corners, six inside a hex face; on all faces alike."""
    detector = make_detector()
    table = touching_sensors(detector)
    count, face = (table < 4760).sum(1), detector.sensor_face
    assert (np.diff(table, axis=1) >= 0).all()
    rows, columns = np.nonzero(table < 4760)
    links = set(zip(rows.tolist(), table[rows, columns].tolist(), strict=True))
    assert links == {(b, a) for a, b in links}
    assert all(a != b for a, b in links)
    assert all((face[row] == face[near[near < 4760]]).all() for row, near in enumerate(table))
    for name, shape in (("inner", (93, 44)), ("us", (24, 6)), ("ds", (24, 6))):
        expected = np.pad(np.full(np.subtract(shape, 2), 8), 1, constant_values=5)
        expected[np.ix_([0, -1], [0, -1])] = 3
        np.testing.assert_array_equal(count[face == FACES.index(name)], expected.ravel())
    assert count[face == FACES.index("outer")].min() == 3
    assert np.median(count[face == FACES.index("outer")]) == 8
    # Large cells beside the small ones of the centre patch, at its corner, edge and middle.
    for sensor, near in (
        (4176, {4166, 4167, 4168, 4175, 4177, 4184, 4185, 4742}),
        (4744, {4184, 4185, 4193, 4194, 4742, 4745, 4749}),
        (4749, {4194, 4195, 4744, 4745, 4746, 4203, 4751, 4204}),
    ):
        assert set(table[sensor][table[sensor] < 4760].tolist()) == near
    for name in ("top", "bot"):
        values, sensors = np.unique(count[face == FACES.index(name)], return_counts=True)
        assert dict(zip(values.tolist(), sensors.tolist(), strict=True)) == {
            **{2: 2, 3: 4, 4: 25},
            **{5: 2, 6: 40},
        }
    middle = 4308 + 6 * 10 + 3
    around = {middle + d for d in (-7, -6, -5, -1, 1, 5, 6, 7)}
    assert set(table[middle].tolist()) == around


def test_the_neighbor_average_by_hand():
    """Corner and middle of the inner face, a hex node, dead neighbors, a dead face."""
    detector = make_detector()
    rng = np.random.default_rng(0)
    photons = rng.uniform(1, 100, (1, 4760)).astype(np.float32)
    live = np.ones((1, 4760), bool)
    live[0, 1], photons[0, 1] = False, np.nan
    live[0, detector.sensor_face == FACES.index("us")] = False
    alone = np.flatnonzero(detector.sensor_face == FACES.index("top"))
    live[0, alone] = False
    live[0, alone[-1]] = True
    got, found = jax.jit(lambda n, ok: touching_average(detector, n, ok))(photons, live)
    n = photons[0]
    assert got[0, 0] == pytest.approx(n[[44, 45]].mean(), rel=1e-5)
    middle = 50 * 44 + 20
    around = [middle + d for d in (-45, -44, -43, -1, 1, 43, 44, 45)]
    assert got[0, middle] == pytest.approx(n[around].mean(), rel=1e-5)
    row = 4669 + 11  # start of the second row: one beside it, one before, one behind
    around = [row + 1, 4669, row + 12]
    assert got[0, row] == pytest.approx(n[around].mean(), rel=1e-5)
    assert not found[0, 4308]
    assert got[0, 4308] == 0
    assert not found[0, 4596]
    assert got[0, 4596] == n[alone[-1]]
    assert found[0, :4092].all()


def test_an_event_counts_as_much_as_its_weight():
    batch = {**events(3), "weight": np.float32([1, 0.5, 1])}
    ours = experiment(load_config("train.loss_fn=mse"))
    x, valid, hidden = (np.asarray(a) for a in ours.hide(batch, jax.random.PRNGKey(1)))
    terms = ours.terms(jnp.zeros_like(x), batch, x, valid, hidden)
    on = ours.detector.sensor_face == FACES.index("inner")
    means = [(x[e, on & hidden[e], 0].astype(float) ** 2).mean() for e in range(2)]
    term = terms["inner_npho"]
    assert float(term.weight) == pytest.approx(1.5)
    assert float(term.total) == pytest.approx(means[0] + 0.5 * means[1], rel=1e-5)


class Recorder:
    """In place of the network: keeps what it was shown."""

    def apply(self, variables, shown, unseen, deterministic, rngs=None):
        self.shown, self.unseen = np.asarray(shown), np.asarray(unseen)
        return jnp.zeros_like(shown)


@pytest.mark.parametrize("fill", ["None", "-1.0"])
def test_dead_channels_look_like_hidden_ones_when_they_are_to_be_filled(fill):
    ours, batch = experiment(load_config(f"model.fill_npho={fill}"), Recorder()), events(2)
    x, valid, hidden = (np.asarray(a) for a in ours.hide(batch, jax.random.PRNGKey(0)))
    dead = ~valid[..., 0]
    blank = [0.0 if fill == "None" else -1.0, -1.0]
    ours.fill({}, x, valid, hidden)
    assert (ours.net.shown[hidden] == blank).all()
    np.testing.assert_array_equal(ours.net.shown[~hidden], x[~hidden])
    for ask, concealed in ((ours.predict, dead), (ours.preview, dead | hidden)):
        ask({}, batch)
        assert (ours.net.shown[concealed] == blank).all()
        np.testing.assert_array_equal(ours.net.shown[~concealed], x[~concealed])
        np.testing.assert_array_equal(ours.net.unseen, concealed)


def test_only_what_is_missing_is_filled(tiny):
    """Dead sensors in predictions, dead and hidden ones in previews; live ones never change."""
    ours, batch, params = tiny
    for ask, hides in ((ours.predict, False), (ours.preview, True)):
        arrays = ask(params, batch)
        assert bool(arrays["hidden"].any()) is hides
        measured = (batch["npho"] < 1e10) & ~arrays["hidden"]
        np.testing.assert_array_equal(arrays["npho_filled"][measured], batch["npho"][measured])
        assert np.abs(arrays["npho_filled"]).max() < 1e10
        assert arrays["prediction"].shape == (4, 4760, 2)
        np.testing.assert_array_equal(
            arrays["npho_filled"][~measured], arrays["prediction"][..., 0][~measured]
        )
    figures = list(ours.figures({k: np.asarray(v)[:1] for k, v in {**batch, **arrays}.items()}))
    assert [stem for stem, _ in figures] == ["inpainting_0"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.mask_ratio=0.0"], "inside"),
        (["model.mask_ratio=1.0"], "inside"),
        (["model.mask_ratio='some'"], "inside"),
        (["model.mask_ratio={'outer_center': 0.1}"], "outer"),
        (["model.mask_ratio={'inner': 0.0}"], "inside"),
        (["model.maskable=both"], "npho, time"),
        (["model.maskable=time", "model.predict_channels=('npho',)"], "npho"),
        (["model.head_type=perface"], "per_face"),
        (["model.head_dim=20"], "multiple of 8"),
        (["train.loss_reduction=mean"], "per_face"),
        (["model.freeze_encoder=true"], "init_from"),
        (["model.mask_npho_flat=true", "model.time_mask_ratio_scale=2"], "one of them"),
        (["data.time_branch=None"], "without times"),
        (["train.loss_fn=smooth"], "smooth_l1"),
        *(([f"train.loss_fn={name}"], "smooth_l1") for name in ("cosine", "gaussian_nll")),
        (["model.cross_attn_k=4760"], "4759"),
        (["model.cross_attn_k=0"], "4759"),
        (["model.outer_split=raw", "model.fill_npho=-1.0"], "sentinel_npho"),
    ],
)
def test_bad_values(overrides, message):
    with pytest.raises(ConfigError, match=message):
        make_task(load_config(*overrides))


def test_a_frozen_encoder_is_announced_to_the_optimizer():
    task = make_task(load_config("model.freeze_encoder=true", "train.init_from=runs/mae"))
    assert task.frozen == ("^encoder/",)
    assert make_task(load_config()).frozen == ()


def test_weights_go_from_one_default_to_the_next_as_documented():
    """What `train.init_from` compares, along pretraining, inpainting and regression."""

    def facts(name, *overrides):
        texts = [f"--config.{text}" for text in ("data.train=x", *overrides)]
        record = make_task(configs.load(f"configs/{name}.py", texts)).record
        return {key: record[key] for key in COMPARED}

    pooled, fine = facts("mae"), facts("mae", "model.outer_fine_pool=(1,1)")
    assert facts("inpaint") == fine
    assert facts("inpaint", "model.outer_fine_pool=(3,3)") == pooled
    assert facts("regress") == pooled
    assert [key for key in COMPARED if pooled[key] != fine[key]] == ["geometry"]


@pytest.mark.slow
def test_weights_of_the_predecessor_give_its_prediction():
    """From its tensors by name through the config's network to its numbers."""
    name = "ref_inpainter_perface_pool33"
    settings = ["model.geometry=documented", "model.outer_mask=coarse", "model.maskable=time"]
    pool = ["model.outer_fine_pool=(3,3)", "data.normalization.sentinel_npho=-1"]
    config = load_config(*settings, *pool)
    params = from_torch("inpainter", weights(name, "A"), config)
    data = load("ref_masking.npz")
    ours = experiment(config, inpaint.make_network(config))
    x, hidden = jnp.asarray(data["x"]), jnp.asarray(data["mask10"], bool)
    got = jax.jit(ours.fill)(params, x, x != -1, hidden)
    np.testing.assert_allclose(got, load(f"{name}.npz")["pred_all"], atol=2e-6)
