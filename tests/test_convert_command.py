"""The convert command: files of the predecessor in, ordinary runs and commands out."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import uproot
from parity import EXTRA, load, weights

from xec_jax import config as configs
from xec_jax import predict, torch_configs, yaml_configs
from xec_jax.convert import main, read_checkpoint
from xec_jax.data.root.writer import write_tree
from xec_jax.errors import CheckpointError, ConfigError
from xec_jax.geometry import hex_edges, make_detector
from xec_jax.nets.neighbors import nearest_sensors
from xec_jax.nets.positions import coordinate_code
from xec_jax.tasks import inpaint as inpaint_task
from xec_jax.tasks import mae as mae_task
from xec_jax.tasks.base import example_batch, make_task
from xec_jax.torch_weights import check_maps, fill
from xec_jax.train.saved import hand_over, load_run
from xec_jax.yaml_tables import KINDS, shipped

torch = pytest.importorskip("torch")
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from torch_reference import mae, regressor  # noqa: E402
from torch_reference.encoder import XECEncoder  # noqa: E402

WIDTHS = {"dim": 32, "n_heads": 4}
HEADS = "--config.model.num_heads=4"
SETTINGS = {
    "outer_mode": "finegrid",
    "outer_fine_pool": [3, 3],
    "hidden_dim": 16,
    "normalization": {
        "npho_scheme": "sqrt",
        "npho_scale": 20000.0,
        "npho_scale2": 1.0,
        "time_scale": 1.14e-7,
        "time_shift": -0.46,
        "sentinel_time": -1.0,
        "sentinel_npho": -1.0,
        "npho_threshold": 100.0,
    },
    "active_tasks": ["angle", "uvwFI"],
    "nll_tasks": ["uvwFI"],
    "branches": {"npho_branch": "npho", "time_branch": "relative_time"},
}


def shaken(net, scale=0.1):
    """Moves every parameter away from its start, as a training does."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += scale * torch.randn_like(parameter)
    return net.eval()


@pytest.fixture(scope="module")
def net():
    encoder = XECEncoder("documented", "finegrid", (3, 3), **WIDTHS)
    return shaken(regressor.XECRegressor(encoder, hidden=16, doubled=["uvwFI"]))


@pytest.fixture(scope="module")
def autoencoder():
    encoder = XECEncoder("documented", "split", **WIDTHS)
    return shaken(mae.XECMAE(encoder, width=8, hex_width=12, out=1))


def convert(*words):
    return main([str(word) for word in words])


def test_predictions_are_those_of_the_network(net, tmp_path, capsys):
    """From the file of a training, average and all, to rows of a ROOT file."""
    state = net.state_dict()
    average = {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}
    content = {
        "epoch": 12,
        "model_state_dict": {name: torch.zeros_like(t) for name, t in state.items()},
        "ema_state_dict": {"n_averaged": torch.tensor(7), **average},
        "optimizer_state_dict": {"state": {}, "param_groups": [{"lr": 1e-4}]},
        "scheduler_state_dict": None,
        "best_val": np.float64(0.5),
        "config": SETTINGS,
    }
    torch.save(content, tmp_path / "checkpoint_best.pth")
    run = tmp_path / "run"
    assert convert("--checkpoint", tmp_path / "checkpoint_best.pth", "--output", run, HEADS) == 0
    said = capsys.readouterr().out
    assert "moving average of epoch 12" in said
    assert "missing 0, unexpected 0" in said
    assert "ignored heads.energy.0.weight" in said
    assert "assumed, since" not in said
    assert "code: newer than January 2026, by the names of its tensors" in said

    rng = np.random.default_rng(0)
    events = {
        "npho": rng.uniform(1, 5000, (3, 4760)).astype(np.float32),
        "relative_time": rng.uniform(0, 1e-7, (3, 4760)).astype(np.float32),
        "event": np.arange(3, dtype=np.int32),
    }
    events["npho"][:, ::17] = 1e10
    write_tree(tmp_path / "events.root", [events])
    words = ("--run", run, "--input", tmp_path / "events.root", "--output", tmp_path / "out.root")
    predict.main([*map(str, words), "--batch_size", "3"])
    with uproot.open(tmp_path / "out.root") as file:
        found = file["tree"].arrays(library="np")

    is_dead = events["npho"] > 9e9
    npho = np.where(is_dead, -1, np.sqrt(events["npho"] / 20000))
    is_dim = is_dead | (events["npho"] < 100)
    time = np.where(is_dim, -1, events["relative_time"] / 1.14e-7 + 0.46)
    with torch.no_grad():
        expected = net(torch.tensor(np.stack([npho, time], -1)).float())
    np.testing.assert_allclose(found["pred_angle"], expected["angle"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["pred_uvwFI"], expected["uvwFI"][:, :3], rtol=1e-4, atol=1e-4)
    assert "pred_energy" not in found


def test_autoencoders_and_their_encoders(autoencoder, tmp_path, capsys):
    """Another outer mode, widths and channels, without settings and without an average."""
    state = {f"module.{k}": v for k, v in autoencoder.state_dict().items()}
    torch.save({"epoch": 3, "model_state_dict": state, "ema_state_dict": None}, tmp_path / "m.pth")
    torch.save(autoencoder.encoder.state_dict(), tmp_path / "mae_encoder_epoch_3.pth")
    words = (HEADS, "--config.data.normalization.npho_scale=500")
    assert convert("--checkpoint", tmp_path / "m.pth", "--output", tmp_path / "mae", *words) == 0
    said = capsys.readouterr().out
    assert "data.normalization.time_scale=1.14e-07" in said
    assert "npho_scale=1000" not in said, "the user has said it"
    run = load_run(tmp_path / "mae")
    model = run.config.model
    assert model.outer_mode == "split"
    assert (model.decoder_dim, model.hex_decoder_dim) == (8, 12)
    assert model.predict_channels == ("npho",)
    assert model.maskable == "npho"
    assert (model.geometry, model.outer_mask) == ("documented", "coarse")
    assert run.config.data.normalization.invalid_rule == "domain"
    assert run.step == 0
    assert not run.is_average
    tensors = {k: v.numpy() for k, v in autoencoder.state_dict().items()}
    jax.tree.map(np.testing.assert_array_equal, run.params, fill("mae", tensors, run.params))
    for text in ("npho_scheme=log1p", "invalid_rule=domain", "sentinel_npho=-1.0", "maskable=npho"):
        assert text in said, text
    rng = np.random.default_rng(0)
    x, hidden = rng.normal(size=(2, 4760, 2)).astype(np.float32), rng.uniform(size=(2, 4760)) < 0.5
    found = jax.jit(mae_task.make_network(run.config).apply)({"params": run.params}, x, hidden)
    with torch.no_grad():
        expected = autoencoder(torch.tensor(x), torch.tensor(hidden))
    for face, values in expected.items():
        ours = found["outer_coarse" if face == "outer" else face]
        np.testing.assert_allclose(np.moveaxis(ours, -1, 1), values, atol=2e-4, err_msg=face)

    file = tmp_path / "mae_encoder_epoch_3.pth"
    assert convert("--checkpoint", file, "--output", tmp_path / "e", HEADS) == 0
    assert "train.init_from" in capsys.readouterr().out
    encoder = load_run(tmp_path / "e")
    assert set(encoder.params) == {"encoder"}
    fresh = {"encoder": encoder.params["encoder"], "head_angle": {"kernel": np.zeros(3)}}
    taken, _ = hand_over(encoder, fresh, encoder.record, encoder.config)
    jax.tree.map(np.testing.assert_array_equal, taken["encoder"], run.params["encoder"])


def test_untrained_heads_stay_behind(net, tmp_path, capsys):
    """Without settings, the heads that have moved are the active ones."""
    state = {k: v.clone() for k, v in net.state_dict().items()}
    for task in ("timing", "angleVec", "n_gamma"):
        state[f"heads.{task}.1.weight"].fill_(1)
        state[f"heads.{task}.1.bias"].fill_(0)
    torch.save(state, tmp_path / "state.pth")
    words = ("--checkpoint", tmp_path / "state.pth", "--output", tmp_path / "run", HEADS)
    assert convert(*words) == 0
    assert set(load_run(tmp_path / "run").params) - {"encoder"} == {
        "head_angle",
        "head_energy",
        "head_uvwFI",
    }
    assert "train.tasks.energy.log_transform=false" in capsys.readouterr().out


def saved(tmp_path, name, buffers=()):
    """A checkpoint with the tensors of a parity set in it; its run folder is `run`."""
    state = weights(name, "A") | dict(buffers)
    state = {key: torch.tensor(value) for key, value in state.items()}
    torch.save({"epoch": 1, "model_state_dict": state}, tmp_path / "a.pth")
    return ("--checkpoint", tmp_path / "a.pth", "--output", tmp_path / "run")


POOL = "--config.model.outer_fine_pool=(3,3)"


def test_inpainter_heads_of_the_predecessor(tmp_path, capsys):
    """Full size, from the file to its numbers, but for the encoder, which takes long."""
    convert(*saved(tmp_path, "ref_inpainter_globalonly_pool33"), POOL)
    said = capsys.readouterr().out
    for text in ("npho_scheme=sqrt", "npho_scale=20000.0", "npho_threshold=100.0", "maskable=time"):
        assert text in said, text
    run = load_run(tmp_path / "run")
    net, data = inpaint_task.make_network(run.config), load("ref_masking.npz")
    hidden = data["mask10"].astype(bool)
    shown = np.where(hidden[..., None], np.float32(-1), data["x"])
    heads = {name: part for name, part in run.params.items() if name != "encoder"}
    tokens = load("ref_inpainter_perface_pool33.npz")["latent"]
    apply = jax.jit(lambda p: net.apply({"params": p}, tokens, shown, hidden, method="heads"))
    want = load("ref_inpainter_globalonly_pool33.npz")["pred_all"]
    np.testing.assert_allclose(apply(heads), want, atol=2e-6)


@pytest.mark.slow
def test_whole_inpainter_of_the_predecessor(tmp_path):
    convert(*saved(tmp_path, "ref_inpainter_perface_pool33"), POOL)
    run, data = load_run(tmp_path / "run"), load("ref_masking.npz")
    net, hidden = inpaint_task.make_network(run.config), data["mask10"].astype(bool)
    shown = np.where(hidden[..., None], np.float32(-1), data["x"])
    unseen = hidden | (data["x"][..., 1] == -1)

    @jax.jit
    def apply(params):
        tokens = net.apply({"params": params}, shown, unseen, method=lambda n, *a: n.encoder(*a))
        return net.apply({"params": params}, tokens, shown, hidden, method="heads")

    want = load("ref_inpainter_perface_pool33.npz")["pred_all"]
    np.testing.assert_allclose(apply(run.params)[hidden], want[hidden], atol=2e-6)


@pytest.mark.slow
def test_attention_of_the_predecessor_comes_with_remarks(tmp_path, capsys):
    near = nearest_sensors(make_detector("documented"), 16) + 1
    code = coordinate_code(make_detector("documented").sensors.positions, 16)
    maps = {"cross_attn_head.knn_indices": near, "cross_attn_head.pos_embed": code}
    convert(*saved(tmp_path, "ref_inpainter_crossattn_nopool", maps))
    assert "other than in the checkpoint: neighbors of 4760 sensors" in capsys.readouterr().out
    words = saved(tmp_path, "ref_inpainter_maskedattn_nopool")[:-1]
    convert(*words, tmp_path / "run2", "--config.model.outer_fine_pool=(1,1)")
    said = capsys.readouterr().out
    assert "dead neighbors are left out" in said
    assert "outer face: the documented map" in said


@pytest.mark.slow
def test_whole_autoencoder_of_the_predecessor(tmp_path):
    convert(*saved(tmp_path, "ref_mae_pool33"), POOL)
    run, data = load_run(tmp_path / "run"), load("ref_masking.npz")
    unseen = data["mask65"].astype(bool) | (data["x"][..., 1] == -1)
    apply = jax.jit(mae_task.make_network(run.config).apply)
    want = load("ref_mae_pool33.npz")
    for face, values in apply({"params": run.params}, data["xmasked65"], unseen).items():
        values = np.moveaxis(values, -1, 1)
        np.testing.assert_allclose(values, want[f"recon_{face}"], atol=5e-6, err_msg=face)


def test_maps_in_a_checkpoint_are_compared():
    """Pixels of outer sensors, position codes and neighbors."""
    start = ["model.geometry=documented", "model.outer_mask=coarse", "model.encoder_dim=32"]
    texts = [f"--config.{text}" for text in start]
    pooled = configs.load("configs/inpaint.py", [*texts, POOL])
    pixels = load("ref_inpainter_perface_pool33.npz")["outer_gather_indices"]
    assert not check_maps({"head_outer_sensor.gather_indices": pixels}, pooled)
    with pytest.raises(CheckpointError, match=r"outer_fine_pool=\(1, 1\)"):
        check_maps(
            {"head_outer_sensor.gather_indices": pixels},
            configs.load("configs/inpaint.py", texts),
        )
    other = [text.replace("documented", "physical") for text in texts]
    with pytest.raises(CheckpointError, match="geometry=physical"):
        check_maps(
            {"head_outer_sensor.gather_indices": pixels},
            configs.load("configs/inpaint.py", [*other, POOL]),
        )

    cross = configs.load("configs/inpaint.py", [*texts, "--config.model.head_type=cross_attention"])
    detector = make_detector("documented")
    where = detector.sensors.positions
    near = np.array(nearest_sensors(detector, 16)[:, ::-1])
    maps = {
        "cross_attn_head.knn_indices": near,
        "cross_attn_head.pos_embed": coordinate_code(where, 16),
    }
    assert not check_maps(maps, cross)
    near[:7, 3] = 4000
    maps["cross_attn_head.pos_embed"] = coordinate_code(where + 0.001, 16)
    said = check_maps(maps, cross)
    assert said == "codes of 4760 positions and neighbors of 7 sensors"
    maps["cross_attn_head.pos_embed"] = coordinate_code(where + np.array([0, 3, 0]), 16)
    with pytest.raises(CheckpointError, match="pos_embed places 4760 sensors"):
        check_maps(maps, cross)


def test_hexagonal_graphs_are_told_apart_by_their_edges():
    tensors = {
        "pos_embed": np.zeros((1, 6, 32)),
        "fusion_transformer.layers.0.linear1.weight": np.zeros((128, 32)),
    }
    for variant in ("documented", "physical"):
        edges = hex_edges(variant)[:, ::-1].astype(np.int64)
        found = torch_configs.shape_overrides("encoder", tensors | {"hex_edge_index": edges})
        assert found["model.geometry"] == variant
    edges[0, 5] = 70
    with pytest.raises(CheckpointError, match="other edges"):
        torch_configs.shape_overrides("encoder", tensors | {"hex_edge_index": edges})


def test_angle_regressors_of_one_task_are_recognized(autoencoder, tmp_path, capsys):
    """An encoder with a head that moved is none that a pretraining left behind."""
    state = autoencoder.encoder.state_dict()
    head = {"head.0.weight": torch.zeros(16, 7 * 32), "head.0.bias": torch.zeros(16)}
    head |= {"head.1.weight": torch.ones(16), "head.1.bias": torch.zeros(16)}
    for scale, constant in ((1.0, "npho_scale=1000.0"), (1.1, "npho_scale=0.58")):
        head["head.1.weight"] = torch.full((16,), scale)
        torch.save(state | head, tmp_path / "a.pth")
        run = tmp_path / f"run{scale}"
        convert("--checkpoint", tmp_path / "a.pth", "--output", run, HEADS)
        said = capsys.readouterr().out
        assert constant in said
        assert "code: January 2026" in said
        assert ("single-task angle regressor" in said) == (scale != 1)
        branch = "npho" if scale == 1 else "relative_npho"
        assert load_run(run).config.data.npho_branch == branch


def test_half_precision_and_silent_settings(net, tmp_path):
    """None says nothing, but for the pooling; bfloat16 becomes float32."""
    state = {k: v.bfloat16() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    silent = SETTINGS | {"hidden_dim": None, "outer_fine_pool": None, "nll_tasks": None}
    torch.save({"model_state_dict": state, "config": silent}, tmp_path / "a.pth")
    found = read_checkpoint(tmp_path / "a.pth")
    assert found.tensors["backbone.pos_embed"].dtype == np.float32
    assert found.tensors["backbone.hex_edge_index"].dtype == np.int64
    settings = torch_configs.settings_of(found.config)
    assert settings["model.outer_fine_pool"] is None
    assert not {"model.hidden_dim", "model.nll_tasks"} & set(settings)
    yaml_configs.translate(settings, "regressor")


def test_an_average_of_other_tensors_is_refused(net, tmp_path):
    state = net.state_dict()
    for average in ({"shadow": list(state.values())}, {"decay": 0.999, **state}, {"n_averaged": 3}):
        torch.save({"model_state_dict": state, "ema_state_dict": average}, tmp_path / "a.pth")
        with pytest.raises(CheckpointError, match="--no_ema takes"):
            read_checkpoint(tmp_path / "a.pth")
        assert read_checkpoint(tmp_path / "a.pth", ema=False).source == "weights"


def test_another_training_is_recognized(net, tmp_path):
    """A YAML file that contradicts the shapes belongs to another checkpoint."""
    torch.save(net.state_dict(), tmp_path / "a.pth")
    path = tmp_path / "config.yaml"
    path.write_text("model: {outer_mode: split}")
    words = ("--checkpoint", tmp_path / "a.pth", "--yaml", path, "--output", tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"outer_mode=split, but the tensors finegrid"):
        convert(*words, HEADS)


def test_a_clock_without_zero_is_left_out(net, tmp_path, capsys):
    content = {"model_state_dict": net.state_dict(), "config": SETTINGS | {"active_tasks": TIMING}}
    torch.save(content, tmp_path / "a.pth")
    convert("--checkpoint", tmp_path / "a.pth", "--output", tmp_path / "run", HEADS)
    assert "timing is left out" in capsys.readouterr().out
    assert set(load_run(tmp_path / "run").params) == {"encoder", "head_angle"}
    absolute = (HEADS, "--config.data.time_branch=time")
    convert("--checkpoint", tmp_path / "a.pth", "--output", tmp_path / "run2", *absolute)
    assert "head_timing" in load_run(tmp_path / "run2").params


TIMING = ["angle", "timing"]


def test_misfits_leave_nothing_behind(net, tmp_path):
    state = net.state_dict()
    del state["backbone.hex_encoder.proj.1.bias"]
    state["backbone.more.weight"] = torch.zeros(2)
    torch.save({"model_state_dict": state, "config": SETTINGS}, tmp_path / "a.pth")
    words = ("--checkpoint", tmp_path / "a.pth", "--output", tmp_path / "run", HEADS)
    with pytest.raises(ConfigError) as caught:
        convert(*words)
    assert "missing encoder/graph_encoder/project/bias" in str(caught.value)
    assert "unexpected backbone.more.weight" in str(caught.value)
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        convert(*words)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]


class Foreign:
    """Something that a checkpoint must not be able to make."""


def test_files_that_are_no_checkpoints(net, tmp_path):
    good, path = tmp_path / "good.pth", tmp_path / "bad.pth"
    torch.save(net.state_dict(), good)
    for content, message in (
        (good.read_bytes()[:5000], "cannot be read"),
        (b"# a text file", "cannot be read"),
        (b"", "cannot be read"),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(path)
    for content, message in (
        ({"model_state_dict": {"a": Foreign()}}, "Foreign"),
        ([torch.zeros(3)], "holds list"),
        ({"epoch": 3, "note": "hello"}, "epoch, note"),
        ({}, "nothing"),
    ):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(path)
    with pytest.raises(CheckpointError, match="is no file"):
        read_checkpoint(tmp_path / "absent.pth")
    torch.save({"fc.weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="no network of the predecessor"):
        convert("--checkpoint", path, "--output", tmp_path / "run")
    with pytest.raises(CheckpointError, match="lacks the tensor"):
        convert("--checkpoint", good, "--output", tmp_path / "run", "--kind", "mae")


def test_without_pytorch_the_message_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[torch\]'"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("model", "kind", "facts"),
    [
        ("ref_regressor_split", "regressor", {"model.outer_mode": "split"}),
        ("ref_inpainter_perface_nopool_nphoonly", "inpainter", {"model.head_type": "per_face"}),
        ("ref_inpainter_globalonly_pool33", "inpainter", {"model.outer_fine_pool": (3, 3)}),
        ("ref_inpainter_maskedattn_nopool", "inpainter", {"model.outer_fine_pool": (1, 1)}),
        ("ref_inpainter_crossattn_nopool", "inpainter", {"model.cross_attn_k": 16}),
        ("fix_mae_pool33", "mae", {"model.geometry": "physical"}),
        ("seed_regressor_pool33", "regressor", {}),
        ("seed_mae_pool33", "mae", {"model.hex_decoder_dim": 1024}),
        ("seed_inpainter_pool33", "inpainter", {"model.head_dim": 64}),
        ("seed_singletask_encoder_pool33", "encoder", {"model.num_fusion_layers": 2}),
    ],
)
def test_every_layout_is_recognized_and_filled(model, kind, facts):
    path = EXTRA / f"{model.split('_')[0]}_params.json"
    if not path.exists():
        pytest.skip("no list")
    listed = json.loads(path.read_text())[model]["state"]
    zero = np.float32(0.5)  # one number, shown in every shape
    tensors = {name: np.broadcast_to(zero, shape) for name, shape, *_ in listed}
    edges = hex_edges("physical" if model.startswith("fix") else "documented")
    tensors |= {name: edges for name in tensors if name.endswith("hex_edge_index")}
    assert torch_configs.kind_of(tensors) == kind
    is_later = torch_configs.is_later(kind, tensors)
    assert is_later != model.startswith("seed")
    found = torch_configs.shape_overrides(kind, tensors)
    assert found | facts == found
    program = "mae" if kind == "encoder" else kind
    silent = shipped(program, is_later=is_later)
    translation = yaml_configs.translate({}, program, silent=silent, facts=found, is_later=is_later)
    overrides = translation.overrides
    if kind == "regressor":
        overrides |= {f"train.tasks.{t}.enabled": False for t in ("timing", "n_gamma")}
    file = f"configs/{KINDS[program]}.py"
    config = configs.load(file, yaml_configs.arguments(overrides))
    task = make_task(config)
    template = jax.eval_shape(task.init, jax.random.PRNGKey(0), example_batch(task.spec, 1))
    template = template["encoder"] if kind == "encoder" else template
    assert jax.tree.map(np.shape, fill(kind, tensors, template)) == jax.tree.map(
        lambda leaf: leaf.shape, template
    )
