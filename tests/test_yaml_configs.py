"""YAML files of the predecessor: every key where it belongs, every silence what it meant."""

import shlex

import pytest

from xec_jax import config as configs
from xec_jax import yaml_configs, yaml_tables
from xec_jax.convert import main
from xec_jax.errors import ConfigError
from xec_jax.train import schedules
from xec_jax.yaml_tables import (
    COMMON,
    DEFAULTS,
    INPAINTER,
    KINDS,
    MAE,
    MASKED,
    REGRESSOR,
    TABLES,
    defaults,
    later_keys,
    shipped,
)

pytest.importorskip("yaml")


def convert(*words):
    return main([str(word) for word in words])


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
training: {epochs: 50, lr: 8e-4, amp: true, ema_decay: 0, channel_dropout_rate: 0.1}
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
        "# code: January 2026, it has no key that is newer",
        "data.num_workers: one process",
        "checkpoint.resume_from: the same command",
    ):
        assert text in said, text
    assert "normalization.npho_scale=" not in said, "equal to ours"


def final(path, capsys):
    """The config that the printed command leads to, and what was printed."""
    convert("--yaml", path)
    said = capsys.readouterr().out
    words = shlex.split(said[said.index("python -m") : said.index("assumed")].replace("\\\n", " "))
    file = words[words.index("--config") + 1]
    return configs.load(file, [word for word in words if word.startswith("--config.")]), said


def test_what_a_file_leaves_out_is_as_in_its_code(tmp_path, capsys):
    text = "tasks: {angle: {enabled: true}}\nloss_balance: manual"
    config, said = final(yaml_file(tmp_path, text), capsys)
    tasks = config.train.tasks
    assert [name for name, task in tasks.items() if task.enabled] == ["angle"]
    assert tasks.angle.loss_fn == "smooth_l1"
    assert "uvwFI.loss_fn" not in said, "it is off"
    assert config.data.augment.channel_dropout == 0.1
    assert (config.data.batch_size, config.train.grad_accum_steps) == (256, 1)
    assert config.train.precision == "bfloat16"
    assert config.data.npho_branch == "relative_npho"
    assert config.data.normalization.npho_scale == 0.58
    assert "data.normalization.npho_scale=0.58" in said
    assert "optim.ema_decay" not in said, "as here"
    text = "tasks: {energy: {enabled: true}, uvwFI: {enabled: true, weight: 2}}"
    config, said = final(yaml_file(tmp_path, text), capsys)
    assert config.train.tasks.energy.loss_fn == config.train.tasks.uvwFI.loss_fn == "smooth_l1"
    assert not config.train.tasks.angle.enabled
    assert "train.tasks.energy.log_transform=false" in said

    config, said = final(yaml_file(tmp_path, "model: {decoder_dim: 128}"), capsys)
    assert "code: newer than January 2026, it has model.decoder_dim" in said
    assert (config.optim.lr, config.optim.weight_decay, config.optim.lr_min) == (1e-4, 1e-4, 1e-6)
    assert (config.model.mask_ratio, config.optim.warmup_epochs) == (0.6, 0)
    assert config.data.batch_size == 1024

    config, _ = final(yaml_file(tmp_path, "training: {mae_checkpoint: null}"), capsys)
    assert config.train.loss_beta == 1.0
    assert config.model.freeze_encoder
    assert config.optim.lr_scheduler == "none"
    assert config.model.predict_channels == ("npho", "time")
    text = "training: {mae_checkpoint: null}\nmodel: {cross_attn_k: 16}"
    assert final(yaml_file(tmp_path, text), capsys)[0].model.predict_channels == ("npho",)


@pytest.mark.parametrize(("more", "photons"), [({}, 10.0), ({"model.mask_npho_flat": True}, 100.0)])
def test_a_threshold_of_null_depends_on_the_age(more, photons):
    settings = {"training.npho_threshold": None, "data.npho_branch": "npho"} | more
    found = yaml_configs.translate(settings, "inpainter").overrides
    assert found["train.npho_threshold"] == photons
    assert found["data.normalization.npho_threshold"] == photons


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
        "# code: newer than January 2026, it has model.predict_channels",
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


TASKS = ("angle", "energy", "timing", "uvwFI", "angleVec", "n_gamma")
FORMS = {"enabled": True, "loss_fn": "mse", "loss_beta": 0.5, "weight": 2.0, "log_transform": True}
NORMALIZATION = {
    "npho_scheme": "sqrt",
    "npho_scale": 20000.0,
    "npho_scale2": 2.5,
    "time_scale": 6e-8,
    "time_shift": 0.25,
    "sentinel_time": -3.0,
    "sentinel_npho": -2.0,
    "npho_threshold": 50.0,
}
BINS = {"angle.nbins_2d": (9, 8), "energy.nbins": 7, "timing.nbins": 6, "uvwFI.nbins_2d": (5, 4)}
# Key there, a value that is no default, what it changes here; None if it has no equivalent.
ROWS = {
    "common": [
        ("data.train_path", "/d/a.root", {"data.train": "/d/a.root"}),
        ("data.val_path", ["/d/a.root", "/d/b"], {"data.valid": ("/d/a.root", "/d/b")}),
        ("data.tree_name", "gammas", {"data.tree_name": "gammas"}),
        ("data.batch_size", 4096, {"data.batch_size": 4096}),
        ("data.chunksize", 256000, None),
        ("data.num_workers", 8, None),
        ("data.num_threads", 7, {"data.num_threads": 7}),
        (
            "data.npho_branch",
            "relative_npho",
            {"data.npho_branch": "relative_npho", "data.allow_relative_energy": True},
        ),
        ("data.time_branch", "time", {"data.time_branch": "time"}),
        ("data.prefetch_factor", 3, {"data.prefetch_factor": 3}),
        ("data.log_invalid_npho", True, None),
        ("data.fiducial.enabled", True, None),
        ("normalization.sentinel_value", -4.0, {"data.normalization.sentinel_time": -4.0}),
        *(
            (f"normalization.{key}", value, {f"data.normalization.{key}": value})
            for key, value in NORMALIZATION.items()
        ),
        ("model.outer_mode", "split", {"model.outer_mode": "split"}),
        ("model.outer_fine_pool", [5, 3], {"model.outer_fine_pool": (5, 3)}),
        ("model.encoder_dim", 512, {"model.encoder_dim": 512}),
        ("model.dim_feedforward", 2048, {"model.dim_feedforward": 2048}),
        ("model.num_fusion_layers", 3, {"model.num_fusion_layers": 3}),
        ("training.epochs", 33, {"train.epochs": 33}),
        ("training.lr", "1e-5", {"optim.lr": 1e-5}),
        ("training.lr_scheduler", None, {"optim.lr_scheduler": "none"}),
        ("training.lr_min", 1e-9, {"optim.lr_min": 1e-9}),
        ("training.warmup_epochs", 4.0, {"optim.warmup_epochs": 4.0}),
        ("training.weight_decay", 0.02, {"optim.weight_decay": 0.02}),
        ("training.amp", False, {"train.precision": "float32"}),
        ("training.compile", True, None),
        ("training.ema_decay", 0.5, {"optim.ema_decay": 0.5}),
        ("training.grad_clip", 2.5, {"optim.grad_clip": 2.5}),
        ("training.grad_accum_steps", 3, {"train.grad_accum_steps": 3}),
        ("checkpoint.resume_from", "old.pth", None),
        ("checkpoint.save_dir", "artifacts", None),
        ("checkpoint.save_interval", 10, None),
        ("checkpoint.save_artifacts", True, None),
        ("checkpoint.refresh_lr", True, None),
        ("checkpoint.reset_epoch", True, None),
        ("checkpoint.new_mlflow_run", True, None),
        ("mlflow.experiment", "gamma", None),
        ("mlflow.run_name", "mine", None),
        ("distributed.num_gpus", 4, {"train.mesh.data": 4}),
    ],
    "regressor": [
        ("model.hidden_dim", 128, {"model.hidden_dim": 128}),
        ("model.drop_path_rate", 0.2, {"model.drop_path_rate": 0.2}),
        *(
            (f"tasks.{task}.{key}", value, {f"train.tasks.{task}.{key}": value})
            for task in TASKS
            for key, value in FORMS.items()
        ),
        ("training.use_scheduler", False, {"optim.lr_scheduler": "none"}),
        ("training.lr_scheduler", "onecycle", {"optim.lr_scheduler": "onecycle"}),
        ("training.lr_scheduler", "plateau", {"optim.lr_scheduler": "plateau"}),
        ("training.lr_scheduler", "cosine_restarts", {"optim.lr_scheduler": "cosine_restarts"}),
        ("training.lr_scheduler", "linear", None),
        ("training.max_lr", "1e-3", {"optim.max_lr": 1e-3}),
        ("training.max_lr", None, {"optim.max_lr": None}),
        ("training.pct_start", 0.4, {"optim.pct_start": 0.4}),
        ("training.lr_patience", 6, {"optim.lr_patience": 6}),
        ("training.lr_factor", 0.2, {"optim.lr_factor": 0.2}),
        ("training.lr_restart_period", 11, {"optim.lr_restart_period": 11}),
        ("training.lr_restart_mult", 3, {"optim.lr_restart_mult": 3}),
        ("training.channel_dropout_rate", 0.3, {"data.augment.channel_dropout": 0.3}),
        ("training.ema_decay", None, {"optim.ema_decay": 0.0}),
        ("loss_balance", "auto", {"train.loss_balance": "auto"}),
        *(
            (f"reweighting.{task}.enabled", True, {f"data.reweight.{task}.enabled": True})
            for task in TASKS[:4]
        ),
        *(
            (f"reweighting.{key}", bins, {f"data.reweight.{key.removesuffix('_2d')}": bins})
            for key, bins in BINS.items()
        ),
        ("export.onnx", "a.onnx", None),
    ],
    "masked": [
        ("model.time_mask_ratio_scale", 2.0, {"model.time_mask_ratio_scale": 2.0}),
        ("training.loss_fn", "l1", {"train.loss_fn": "l1"}),
        ("training.loss_beta", 0.25, {"train.loss_beta": 0.25}),
        ("training.npho_weight", 3.0, {"train.npho_weight": 3.0}),
        ("training.time_weight", 4.0, {"train.time_weight": 4.0}),
        (
            "training.npho_threshold",
            30.0,
            {"train.npho_threshold": 30.0, "data.normalization.npho_threshold": 30.0},
        ),
        ("training.use_npho_time_weight", False, {"train.use_npho_time_weight": False}),
        ("training.track_mae_rmse", True, None),
        ("training.track_train_metrics", True, None),
        ("training.npho_loss_weight.enabled", True, {"train.npho_loss_weight.enabled": True}),
        ("training.npho_loss_weight.alpha", 0.75, {"train.npho_loss_weight.alpha": 0.75}),
        ("training.intensity_reweighting.nbins", 5, None),
        ("training.lr_scheduler", "cosine", {"optim.lr_scheduler": "cosine"}),
        ("training.ema_decay", 0.5, {"optim.ema_decay": 0.5}),
        ("checkpoint.save_predictions", True, None),
        ("checkpoint.root_save_interval", 10, None),
    ],
    "mae": [
        ("model.mask_ratio", 0.3, {"model.mask_ratio": 0.3}),
        (
            "model.predict_channels",
            ["npho"],
            {"model.predict_channels": ("npho",), "model.maskable": "npho"},
        ),
        ("model.decoder_dim", 64, {"model.decoder_dim": 64}),
        ("training.auto_channel_weight", True, {"train.auto_channel_weight": True}),
        ("training.channel_dropout_rate", 0.1, None),
    ],
    "inpainter": [
        ("model.mask_ratio", {"inner": 0.3}, {"model.mask_ratio": {"inner": 0.3}}),
        (
            "model.predict_channels",
            ["npho", "time"],
            {"model.predict_channels": ("npho", "time"), "model.maskable": "time"},
        ),
        ("model.freeze_encoder", False, {"model.freeze_encoder": False}),
        ("model.head_type", "cross_attention", {"model.head_type": "cross_attention"}),
        ("model.use_local_context", False, {"model.head_type": "global_only"}),
        ("model.use_masked_attention", True, {"model.head_type": "masked_attention"}),
        ("model.mask_npho_flat", True, {"model.mask_npho_flat": True}),
        ("model.cross_attn_k", 8, {"model.cross_attn_k": 8}),
        ("model.cross_attn_hidden", 32, {"model.cross_attn_hidden": 32}),
        ("model.cross_attn_latent", 256, {"model.cross_attn_latent": 256}),
        ("model.cross_attn_pos", 48, {"model.cross_attn_pos": 48}),
        ("model.sensor_positions_file", "a.txt", None),
        ("training.mae_checkpoint", "mae.pth", None),
        ("training.save_root_predictions", True, None),
    ],
}
PROGRAMS = {
    "regressor": ("common", "regressor"),
    "mae": ("masked", "mae"),
    "inpainter": ("masked", "inpainter"),
}
CASES = [
    pytest.param(kind, *row, id=f"{kind}-{row[0]}")
    for kind, groups in PROGRAMS.items()
    for group in groups
    for row in ROWS[group]
]


@pytest.mark.parametrize(("kind", "key", "value", "changed"), CASES)
def test_every_key_leads_where_it_should(kind, key, value, changed):
    """To these keys and no others, which exist and take the value."""
    start = {"data.npho_branch": "npho"}
    before = yaml_configs.translate(start, kind, is_later=True)
    after = yaml_configs.translate(start | {key: value}, kind, is_later=True)
    nothing = object()
    pairs = after.overrides.items()
    found = {k: v for k, v in pairs if before.overrides.get(k, nothing) != v}
    assert found == (changed or {})
    assert set(after.unmapped) == (set() if changed else {key})
    config = configs.load(f"configs/{KINDS[kind]}.py", yaml_configs.arguments(after.overrides))
    loaded = configs.flatten(config)
    for path, expected in configs.flatten(found).items():
        is_none = path == "optim.lr_scheduler" and expected == "none"
        assert loaded[path] == expected or (is_none and loaded[path] is None)


def test_every_key_is_among_the_rows():
    keys = {group: {row[0] for row in rows} for group, rows in ROWS.items()}
    keys["common"] = {"data.fiducial.*" if "fiducial" in k else k for k in keys["common"]}
    intensity = {"training.intensity_reweighting.*"}
    assert keys["common"] == set(COMMON)
    assert keys["regressor"] - {"training.lr_scheduler"} == set(REGRESSOR)
    assert set(MASKED) - keys["masked"] - intensity == {
        "model.mask_ratio",
        "model.predict_channels",
    }
    assert set(MAE) <= keys["mae"]
    assert set(INPAINTER) <= keys["inpainter"]
    for kind, table in TABLES.items():
        for is_later in (False, True):
            assert set(defaults(kind, is_later=is_later)) <= set(table)
            assert set(shipped(kind, is_later=is_later)) <= set(table)
        assert set(DEFAULTS[kind]) <= set(table)


def test_every_schedule_is_known():
    assert yaml_tables.SCHEDULERS == schedules.SCHEDULERS


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("max_lr", 0, "not above 0"),
        ("pct_start", 1.0, "not between 0 and 1"),
        ("lr_factor", 1.5, "not between 0 and 1"),
        ("lr_patience", -1, "less than 0"),
        ("lr_patience", 2.5, "not a whole number"),
        ("lr_restart_period", 0, "less than 1"),
        ("lr_restart_mult", 0, "less than 1"),
    ],
)
def test_values_of_schedules_are_checked(key, value, message):
    with pytest.raises(ConfigError, match=rf"training.{key} in YAML is {value}: {message}"):
        yaml_configs.translate({f"training.{key}": value}, "regressor")


def test_newer_keys_are_known_for_each_program():
    for kind, key, is_newer in (
        ("regressor", "training.lr_scheduler", True),
        ("mae", "training.lr_scheduler", False),
        ("mae", "training.loss_beta", True),
        ("inpainter", "training.ema_decay", True),
        ("mae", "training.ema_decay", False),
        ("inpainter", "data.fiducial.enabled", True),
        ("regressor", "normalization.sentinel_value", False),
        ("regressor", "tasks.energy.log_transform", True),
    ):
        assert later_keys({key: 1}, kind) == [key] * is_newer, key


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
