"""The convert command: files of the predecessor in, ordinary runs and commands out."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import uproot
from parity import EXTRA

from xec_jax import config as configs
from xec_jax import predict, torch_configs, yaml_configs
from xec_jax.convert import main, read_checkpoint
from xec_jax.data.root_writer import write_tree
from xec_jax.errors import CheckpointError, ConfigError
from xec_jax.tasks.base import example_batch, make_task
from xec_jax.torch_weights import fill
from xec_jax.train.saved import hand_over, load_run

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
    assert "assumed" not in said

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

    words = ("--checkpoint", tmp_path / "mae_encoder_epoch_3.pth", "--output", tmp_path / "e")
    assert convert(*words, HEADS) == 0
    assert "train.init_from" in capsys.readouterr().out
    encoder = load_run(tmp_path / "e")
    assert set(encoder.params) == {"encoder"}
    fresh = {"encoder": encoder.params["encoder"], "head_angle": {"kernel": np.zeros(3)}}
    taken, _ = hand_over(encoder, fresh, encoder.record)
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
    assert "assumed" in capsys.readouterr().out


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
    with pytest.raises(ConfigError, match=r"pip install 'xec_jax\[torch\]'"):
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
    assert torch_configs.kind_of(tensors) == kind
    is_later = torch_configs.is_later(kind, tensors)
    assert is_later != model.startswith("seed")
    found = torch_configs.shape_overrides(kind, tensors)
    assert found | facts == found
    program = "mae" if kind == "encoder" else kind
    translation = yaml_configs.translate({}, program, is_later=is_later)
    overrides = translation.overrides | found
    if kind == "regressor":
        overrides |= {f"train.tasks.{t}.enabled": False for t in ("timing", "n_gamma")}
    file = f"configs/{yaml_configs.KINDS[program]}.py"
    config = configs.load(file, yaml_configs.arguments(overrides))
    task = make_task(config)
    template = jax.eval_shape(task.init, jax.random.PRNGKey(0), example_batch(task.spec, 1))
    template = template["encoder"] if kind == "encoder" else template
    assert jax.tree.map(np.shape, fill(kind, tensors, template)) == jax.tree.map(
        lambda leaf: leaf.shape, template
    )


# YAML


def yaml_file(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def test_a_training_is_translated(tmp_path, capsys):
    path = yaml_file(
        tmp_path,
        """
data: {train_path: /d/train.root, val_path: [/d/a.root, /d/b.root], batch_size: 4096,
       num_workers: 1, npho_branch: npho, time_branch: relative_time, treename: tree}
normalization: {npho_scale: 1000, npho_scale2: 4.08, time_scale: 1.14e-7, time_shift: -0.46,
                sentinel_value: -1}
model: {outer_mode: finegrid, outer_fine_pool: null, hidden_dim: 128}
tasks:
  angle: {enabled: false}
  energy: {enabled: true, loss_fn: smooth_l1, loss_beta: 2e-3, weight: 2}
training: {epochs: 50, lr: 8e-4, amp: true, ema_decay: 0, lr_scheduler: onecycle,
           channel_dropout_rate: 0.1}
loss_balance: auto
reweighting: {uvwFI: {enabled: true, nbins_2d: [10, 5]}}
checkpoint: {save_dir: artifacts, resume_from: old.pth}
mlflow: {experiment: gamma, run_name: my run}
""",
    )
    assert convert("--yaml", path, "--config.optim.grad_clip=5.0") == 0
    said = capsys.readouterr().out
    for text in (
        "python -m xec_jax.train --config configs/regress.py --workdir 'artifacts/my run'",
        "--config.data.train=/d/train.root",
        """'--config.data.valid=('"'"'/d/a.root'"'"', '"'"'/d/b.root'"'"')'""",
        "--config.data.batch_size=4096",
        "'--config.model.outer_fine_pool=(1, 1)'",
        "--config.model.geometry=documented",
        "--config.model.pool_valid_times=false",
        "--config.train.tasks.angle.enabled=false",
        "--config.train.tasks.energy.loss_beta=0.002",
        "--config.optim.lr=0.0008",
        "--config.optim.ema_decay=0.0",
        "--config.optim.grad_clip=5.0",
        "--config.train.precision=bfloat16",
        "--config.data.augment.channel_dropout=0.1",
        "--config.train.loss_balance=auto",
        "'--config.data.reweight.uvwFI.nbins=(10, 5)'",
        "data.treename: unknown key of the regressor; did you mean data.tree_name?",
        "training.lr_scheduler: the schedule 'onecycle'",
        "data.num_workers: one process",
        "checkpoint.resume_from: the same command",
    ):
        assert text in said, text
    assert "npho_scale=" not in said, "equal to ours"


SAMPLES = {
    "mae": """
data: {npho_branch: npho}
model: {mask_ratio: 0.6, predict_channels: [npho], decoder_dim: 64}
training: {npho_threshold: null, auto_channel_weight: true, npho_loss_weight: {enabled: true}}
""",
    "inpainter": """
model: {mask_ratio: {inner: 0.05, us: 0.1}, freeze_encoder: true, use_masked_attention: true,
        head_type: per_face}
training: {mae_checkpoint: artifacts/mae.pth, lr: 1e-4}
normalization: {npho_scheme: sqrt, npho_scale: 20000, npho_scale2: 1.0}
""",
}


def test_programs_are_told_apart(tmp_path, capsys):
    convert("--yaml", yaml_file(tmp_path, SAMPLES["mae"]))
    said = capsys.readouterr().out
    for text in (
        "configs/mae.py",
        "'--config.model.predict_channels=('",
        "--config.train.npho_threshold=10.0",
        "--config.train.npho_loss_weight.enabled=true",
        "assumed",
    ):
        assert text in said, text
    convert("--yaml", yaml_file(tmp_path, SAMPLES["inpainter"]))
    said = capsys.readouterr().out
    for text in (
        "configs/inpaint.py",
        "model.mask_ratio={",
        "--config.model.head_type=masked_attention",
        "--config.data.normalization.npho_scheme=sqrt",
        "--config.data.normalization.invalid_rule=domain",
        "convert that checkpoint first",
    ):
        assert text in said, text


VALUES = (True, 2, 0.5, "npho", None, [2, 3], ["npho"], {"inner": 0.5})


@pytest.mark.parametrize("kind", yaml_configs.KINDS)
def test_every_entry_leads_to_a_key_that_exists(kind):
    """Each key is tried with values of all types until one fits it."""
    known = set(configs.flatten(configs.load(f"configs/{yaml_configs.KINDS[kind]}.py")))
    reached = set()
    for key in yaml_configs.TABLES[kind]:
        for value in VALUES:
            try:
                found = yaml_configs.translate({key: value}, kind)
            except ConfigError:
                continue
            reached.add(key)
            assert set(found.overrides) <= known, key
    assert reached == set(yaml_configs.TABLES[kind])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {lr: abc}\nloss_balance: auto", "training.lr in .* is 'abc'"),
        ("training: {lr: .nan}\nloss_balance: auto", "finite"),
        ("training: {epochs: 2.5}\nloss_balance: auto", "whole number"),
        ("training: {amp: 3}\nloss_balance: auto", "neither true nor false"),
        ("data: [", "is not YAML"),
        ("", "holds NoneType"),
        ("data: {train_path: x}", "cannot tell which program"),
        ("a: !!python/object/apply:os.system [ls]", "is not YAML"),
    ],
)
def test_bad_yaml(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        convert("--yaml", yaml_file(tmp_path, text))
    with pytest.raises(ConfigError, match="nothing to convert"):
        convert()
