"""From variables to a command, and to a job in the queue."""

import importlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import LAUNCH, PATIENT, STUB, Cluster, wait_for
from commands import ROOT

from xec_jax import config as configs
from xec_jax import runs
from xec_jax.targets import QUANTITIES
from xec_jax.train import status

SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
CHECKED = [*SCRIPTS, ROOT / "examples/cpp/get_onnxruntime.sh", ROOT / ".ci/run"]


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)


def overrides(words):
    return [word for word in words if word.startswith("--config.")]


def plain(task, config=None):
    return ["--config", config or f"configs/{task}.py", "--workdir", f"runs/{task}"]


# What each variable is to set, and a value that differs from every default.
ALL = {
    "TRAIN_PATH": ("/data/run 1/train*.root", "data.train", "/data/run 1/train*.root"),
    "VAL_PATH": ("/data/v$HOME.root", "data.valid", "/data/v$HOME.root"),
    "EPOCHS": ("7", "train.epochs", 7),
    "LR": ("3e-5", "optim.lr", 3e-5),
    "BATCH_SIZE": ("48", "data.batch_size", 48),
    "BATCH": ("48", "data.batch_size", 48),
    "WEIGHT_DECAY": ("0", "optim.weight_decay", 0),
    "WARMUP_EPOCHS": ("1.5", "optim.warmup_epochs", 1.5),
    "EMA_DECAY": ("0.99", "optim.ema_decay", 0.99),
    "GRAD_CLIP": ("0", "optim.grad_clip", 0),
    "CHANNEL_DROPOUT_RATE": ("0.2", "data.augment.channel_dropout", 0.2),
    "OUTER_MODE": ("split", "model.outer_mode", "split"),
    "OUTER_FINE_POOL": ("5 3", "model.outer_fine_pool", (5, 3)),
    "DROP_PATH_RATE": ("0.3", "model.drop_path_rate", 0.3),
    "NPHO_SCALE": ("0.58", "data.normalization.npho_scale", 0.58),
    "NPHO_SCALE2": ("2", "data.normalization.npho_scale2", 2),
    "TIME_SCALE": ("6.5e-8", "data.normalization.time_scale", 6.5e-8),
    "TIME_SHIFT": ("0.5", "data.normalization.time_shift", 0.5),
    "SENTINEL_VALUE": ("-5", "data.normalization.sentinel_time", -5),
    "LR_SCHEDULER": ("plateau", "optim.lr_scheduler", "plateau"),
    "LR_MIN": ("1e-7", "optim.lr_min", 1e-7),
    "MAE_CHECKPOINT": ("runs/mae 1", "train.init_from", "runs/mae 1"),
}
MASKED = {
    "MASK_RATIO": ("0.4", "model.mask_ratio", 0.4),
    "LOSS_FN": ("l1", "train.loss_fn", "l1"),
    "NPHO_WEIGHT": ("2", "train.npho_weight", 2),
    "TIME_WEIGHT": ("0.5", "train.time_weight", 0.5),
}
OF = {
    "regress": {
        "HIDDEN_DIM": ("64", "model.hidden_dim", 64),
        "LOSS_BALANCE": ("auto", "train.loss_balance", "auto"),
    },
    "mae": {**MASKED, "AUTO_WEIGHT": ("true", "train.auto_channel_weight", True)},
    "inpaint": {**MASKED, "FREEZE_ENCODER": ("true", "model.freeze_encoder", True)},
}
TASKS = tuple(OF)


def settings(cluster, task, **variables):
    """The overrides that the scripts make of variables."""
    code, _, err = cluster.run("local.sh", task, **variables)
    assert code == 0, err
    return overrides(cluster.calls("python")[-1])


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which("shellcheck", path=Path(sys.executable).parent) or shutil.which(
        "shellcheck"
    )
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(
        [shellcheck, "-x", *CHECKED], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert not [path.name for path in SCRIPTS if re.search(r"\beval\b", path.read_text())]


@pytest.mark.parametrize("task", TASKS)
def test_empty_variables_change_nothing(cluster, task):
    names = {**ALL, **OF["mae"], **OF["inpaint"], **OF["regress"]}
    empty = dict.fromkeys(
        [*names, "TASKS", "CHUNK_SIZE", "ONNX", "RESUME_FROM", "XEC_OVERRIDES", "CONFIG_PATH"], ""
    )
    assert cluster.run("local.sh", task, **empty)[0] == 0
    assert cluster.calls("python") == [["-m", "xec_jax.train", *plain(task)]]


@pytest.mark.parametrize("task", TASKS)
def test_each_variable_sets_one_key(cluster, task):
    path = str(ROOT / "configs" / f"{task}.py")
    before = configs.load(path)
    for name, (text, key, value) in {**ALL, **OF[task]}.items():
        after = configs.load(path, settings(cluster, task, **{name: text}))
        # Branches and the like are shared between keys; nothing else may have moved.
        assert list(configs.diff(before, after)) == [key], name
        assert configs.flatten(after)[key] == value, name


@pytest.mark.parametrize("task", TASKS)
def test_a_variable_of_another_task_is_an_error_that_names_the_key(cluster, task):
    path = str(ROOT / "configs" / f"{task}.py")
    strange = {k: v for other in TASKS for k, v in OF[other].items() if k not in OF[task]}
    assert strange
    for name, (text, key, _) in strange.items():
        words = settings(cluster, task, **{name: text})
        with pytest.raises(configs.ConfigError, match=re.escape(key)):
            configs.load(path, words)


def test_tasks_enables_exactly_those(cluster):
    path = str(ROOT / "configs" / "regress.py")
    for text in ("energy timing", "energy,timing"):
        tasks = configs.load(path, settings(cluster, "regress", TASKS=text)).train.tasks
        assert set(tasks) == set(QUANTITIES)
        assert [name for name in tasks if tasks[name].enabled] == ["energy", "timing"]
    with pytest.raises(configs.ConfigError, match="angel"):
        configs.load(path, settings(cluster, "regress", TASKS="angel"))


def test_xec_overrides_are_words_and_nothing_else(cluster):
    words = settings(
        cluster, "mae", XEC_OVERRIDES="optim.lr=1e-3\n  seed=7 data.train=/d/*.root $(id)"
    )
    expected = ["optim.lr=1e-3", "seed=7", "data.train=/d/*.root", "$(id)"]
    assert words == [f"--config.{word}" for word in expected]
    with pytest.raises(configs.ConfigError, match=r"\$\(id\)"):
        configs.load(str(ROOT / "configs" / "mae.py"), words)


def test_an_mlflow_experiment_gets_its_tracker(cluster):
    path = str(ROOT / "configs" / "mae.py")
    log = configs.load(path, settings(cluster, "mae", MLFLOW_EXPERIMENT="gamma mae")).log
    assert (log.experiment, log.trackers) == ("gamma mae", ("mlflow",))
    chosen = {"XEC_OVERRIDES": "seed=7\tlog.trackers=('wandb',)", "MLFLOW_EXPERIMENT": "x"}
    words = settings(cluster, "mae", **chosen)
    assert [word for word in words if "log." in word] == [
        "--config.log.experiment=x",
        "--config.log.trackers=('wandb',)",
    ]


def test_resume_from_the_run_itself_is_what_happens_anyway(cluster):
    run = cluster.root / "runs" / "mae"
    run.mkdir(parents=True)
    for name in ("runs/mae", "runs/mae/checkpoints"):
        assert cluster.run("local.sh", "mae", RESUME_FROM=name)[0] == 2  # no run there yet
    (run / "config.json").touch()
    own = [*plain("mae"), "--resume", "must"]
    for name in ("runs/mae", "runs/mae/", str(run)):
        assert cluster.run("local.sh", "mae", RESUME_FROM=name)[0] == 0
        assert cluster.calls("python")[-1] == ["-m", "xec_jax.train", *own]
    for nodes, script in (("1", "slurm"), ("2", "multi_node")):
        assert cluster.run("submit.sh", "mae", RESUME_FROM="runs/mae", NODES=nodes)[0] == 0
        assert cluster.calls("sbatch")[-1][-len(own) - 1 :] == [f"launch/{script}.sbatch", *own]
        assert cluster.calls("python")[-1] == ["-m", "xec_jax.runs", "register", *plain("mae")]
    code, _, err = cluster.run("local.sh", "mae", RESUME_FROM="runs/mae", RUN_NAME="other")
    assert (code, "here runs/other" in err) == (2, True)
    assert cluster.run("submit.sh", "mae", RESUME_FROM="runs/mae", SWEEP="2")[0] == 2


def test_other_pools_are_left_to_the_config(cluster):
    assert settings(cluster, "mae", OUTER_FINE_POOL="(1,1)") == [
        "--config.model.outer_fine_pool=(1,1)"
    ]


@pytest.mark.parametrize(
    "variables",
    [
        {"CHUNK_SIZE": "256000"},
        {"ONNX": "model.onnx"},
        {"RESUME_FROM": "runs/x"},
        {"BATCH": "8", "BATCH_SIZE": "8"},
        {"MAE_CHECKPOINT": "mae.pth"},
        {"NODES": "2"},
        {"RUN_NAME": "x; touch evil"},
        {"RUN_NAME": "$(touch evil)"},
        {"RUN_NAME": "../x"},
        {"RUN_NAME": "%j"},
        {"RUN_NAME": "-x"},
        {"RUN_NAME": "a\nb"},
    ],
)
def test_what_cannot_be_obeyed_is_refused(cluster, variables):
    code, _, err = cluster.run("local.sh", "mae", **variables)
    assert code == 2
    assert "refused" in err
    assert next(iter(variables)) in err
    assert cluster.record.read_text() == ""
    assert not (cluster.root / "evil").exists()


@pytest.mark.parametrize("words", [(), ("mae", "--config.optim.lr=1"), ("../mae",), ("a b",)])
def test_one_task_is_expected(cluster, words):
    for script in ("local.sh", "submit.sh"):
        code, _, err = cluster.run(script, *words)
        assert (code, "refused: arguments" in err) == (2, True)
    assert cluster.record.read_text() == ""


def test_local_runs_in_place_of_the_shell(cluster):
    assert cluster.run("local.sh", "mae", NUM_GPUS="2", EXIT_python="75")[0] == 75
    assert cluster.calls("python")[0][-1] == "--config.train.mesh.data=2"
    configs.load(str(ROOT / "configs" / "mae.py"), ["--config.train.mesh.data=2"])
    cluster.add("python", PATIENT)
    process = cluster.start("local.sh", "mae")
    wait_for(Path(f"{cluster.record}.started"))
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=30)
    assert process.returncode == 75


def test_local_dry_run_only_checks(cluster):
    _, out, _ = cluster.run("local.sh", "mae:tiny", DRY_RUN="1", SAVE_DIR="/big disk", RUN_NAME="a")
    (words,) = cluster.calls("python")
    assert words[-1] == "--check_config"
    assert words[2:-1] == ["--config", "configs/mae.py:tiny", "--workdir", "/big disk/a"]
    assert "/big\\ disk/a" in out


SBATCH = "--job-name={0} --partition={1} --time={2} --nodes={3} --gres=gpu:{4} --cpus-per-task={5}"


def head(name="mae", partition="a100-daily", hours="12:00:00", nodes=1, gpus=1, cpus=8, mem="48G"):
    line = SBATCH.format(name, partition, hours, nodes, gpus, cpus)
    return [*line.split(), f"--mem={mem}", "--export=ALL"]


def test_submit_checks_registers_and_submits(cluster):
    code, _, err = cluster.run("submit.sh", "mae", EPOCHS="50", SAVE_DIR="/a b", RUN_NAME="m=1")
    assert (code, err) == (0, "")
    words = ["--config", "configs/mae.py", "--workdir", "/a b/m=1", "--config.train.epochs=50"]
    assert cluster.calls("python") == [
        ["-m", "xec_jax.train", "--check_config", *words],
        ["-m", "xec_jax.runs", "register", *words],
    ]
    assert cluster.calls("sbatch") == [[*head("m=1"), "launch/slurm.sbatch", *words]]


def test_scripts_may_be_called_from_anywhere(cluster, tmp_path):
    cluster.add("sbatch", STUB.replace("code=", "pwd; code="))
    out, _ = cluster.start("submit.sh", "mae", cwd=tmp_path).communicate(timeout=30)
    assert out == f"{cluster.root}\n"


def test_submit_asks_for_what_the_variables_say(cluster):
    asked = {"PARTITION": "gh-daily", "TIME": "1-00:00:00", "NUM_GPUS": "4", "NODES": "2"}
    cluster.run("submit.sh", "mae:gh200", **asked)
    words = ["--config", "configs/mae.py:gh200", "--workdir", "runs/mae-gh200"]
    options = head("mae-gh200", "gh-daily", "1-00:00:00", 2, 4, 64, "384G")
    assert cluster.calls("sbatch") == [[*options, "launch/multi_node.sbatch", *words]]
    cluster.run("submit.sh", "mae", MEM="10G", CPUS="3", CONFIG_PATH="/my configs/x.py:v")
    expected = [
        *head(cpus=3, mem="10G"),
        "launch/slurm.sbatch",
        *plain("mae", "/my configs/x.py:v"),
    ]
    assert cluster.calls("sbatch")[1] == expected
    cluster.run("submit.sh", "mae", PARTITION="gh-daily", MEM="10G", CPUS="3")
    assert cluster.calls("sbatch")[2][: len(head())] == head(
        partition="gh-daily", cpus=3, mem="10G"
    )


@pytest.mark.parametrize("variant", ["default", "gh200"])
def test_a_job_has_the_memory_and_cores_that_the_config_uses(cluster, variant):
    data = configs.load(str(ROOT / "configs" / f"mae.py:{variant}")).data
    partition = "gh-daily" if variant == "gh200" else "a100-daily"
    cluster.run("submit.sh", f"mae:{variant}", PARTITION=partition)
    (job,) = cluster.calls("sbatch")
    asked = dict(word.split("=", 1) for word in job if word.startswith("--") and "=" in word)
    assert data.max_ram_gb < int(asked["--mem"].removesuffix("G"))
    assert data.num_threads <= int(asked["--cpus-per-task"])


def test_a_sweep_is_an_array_of_workers(cluster):
    cluster.run("submit.sh", "mae", SWEEP="8", SWEEP_OPTIONS="--trials 30 --max", LR="1e-4")
    study = ["--config", "configs/mae.py", "--output", "runs/mae-sweep", "--trials", "30", "--max"]
    study.append("--config.optim.lr=1e-4")
    array = ["--array=0-7", "launch/slurm_array.sbatch", "--", "xec_jax.sweep", *study]
    assert cluster.calls("sbatch") == [[*head("mae-sweep"), *array]]
    assert cluster.calls("python") == [["-m", "xec_jax.sweep", "--dry_run", *study]]


@pytest.mark.parametrize("kind", ["SWEEP", "GRID"])
def test_many_runs_keep_out_of_the_folder_of_a_plain_training(cluster, tmp_path, kind):
    grid = tmp_path / "grid.txt"
    grid.write_text("seed=1\n")
    many = {"SWEEP": {"SWEEP": "2"}, "GRID": {"GRID": str(grid)}}[kind]
    own = f"mae-tiny-{kind.lower()}"
    for name, variables in ((own, {}), ("mine", {"RUN_NAME": "mine"})):
        assert cluster.run("submit.sh", "mae:tiny", **many, **variables)[0] == 0
        job = cluster.calls("sbatch")[-1]
        assert job[0] == f"--job-name={name}"
        assert f"runs/{name}" in {word.removesuffix("/%a") for word in job}


def test_a_grid_is_one_run_per_line(cluster, tmp_path):
    grid = tmp_path / "my grid.txt"
    grid.write_text("# rates\noptim.lr=1e-4 seed=1\n\n  optim.lr=2e-4")
    cluster.run("submit.sh", "mae", GRID=str(grid), EPOCHS="3")
    common = ["--config", "configs/mae.py", "--workdir", "runs/mae-grid/%a"]
    common.append("--config.train.epochs=3")
    lines = ["optim.lr=1e-4 seed=1", "optim.lr=2e-4"]
    (job,) = cluster.calls("sbatch")
    script = ["--array=0-1", "launch/slurm_array.sbatch"]
    assert job == [*head("mae-grid"), *script, *lines, "--", "xec_jax.train", *common]
    runs = [
        [*(word.replace("%a", str(k)) for word in common), *(f"--config.{w}" for w in line.split())]
        for k, line in enumerate(lines)
    ]
    checks = [["-m", "xec_jax.train", "--check_config", *words] for words in runs]
    notes = [["-m", "xec_jax.runs", "register", *words] for words in runs]
    assert cluster.calls("python") == checks + notes
    for k, words in enumerate(runs):
        task = {"SLURM_ARRAY_TASK_ID": str(k), "SLURM_ARRAY_JOB_ID": "5", "SLURM_JOB_ID": "6"}
        cluster.run("slurm_array.sbatch", *job[len(head()) + 2 :], **task)
        assert cluster.calls("python")[-1] == ["-m", "xec_jax.train", *words]


def test_a_line_of_a_grid_that_does_not_fit_is_named(cluster, tmp_path):
    grid = tmp_path / "grid.txt"
    grid.write_text("# rates\n\noptim.lr=1e-3\noptim.lr=1e-4 # low\n")
    cluster.add(
        "python", STUB.replace("code=EXIT", '[[ "$*" != *config.#* ]] || exit 2; code=EXIT')
    )
    code, _, err = cluster.run("submit.sh", "mae", GRID=str(grid))
    assert (code, err) == (2, f"in {grid}, line 4: optim.lr=1e-4 # low\n")
    assert not cluster.calls("sbatch")


def test_workers_of_a_sweep_run_one_command(cluster):
    words = ["--", "xec_jax.sweep", "--output", "a b"]
    cluster.run("slurm_array.sbatch", *words, SLURM_ARRAY_TASK_ID="3", SLURM_JOB_ID="6")
    assert cluster.calls("python") == [["-m", "xec_jax.sweep", "--output", "a b"]]


@pytest.mark.parametrize("extra", [{}, {"NODES": "2"}, {"SWEEP": "2"}])
def test_dry_run_submits_and_registers_nothing(cluster, extra):
    code, out, _ = cluster.run("submit.sh", "mae", DRY_RUN="1", TRAIN_PATH="/a b/*.root", **extra)
    assert code == 0
    assert not cluster.calls("sbatch")
    assert len(cluster.calls("python")) == 1  # the check
    assert list(cluster.root.iterdir()) == [cluster.root / "launch"]
    # What is printed can be pasted, and is what would have been submitted.
    cluster.run("submit.sh", "mae", TRAIN_PATH="/a b/*.root", **extra)
    assert shlex.split(out) == ["sbatch", *cluster.calls("sbatch")[0]]


@pytest.mark.parametrize("extra", [{}, {"SWEEP": "2", "SWEEP_OPTIONS": "--trials 3"}])
def test_the_commands_know_what_the_scripts_say_to_them(cluster, extra):
    cluster.run("submit.sh", "mae", EPOCHS="3", **extra)
    for _, module, *words in cluster.calls("python"):
        name = "xec_jax.train.__main__" if module == "xec_jax.train" else module
        _, rest = importlib.import_module(name).parser().parse_known_args(words)
        assert rest == ["--config.train.epochs=3"]


def test_a_wrong_config_is_not_submitted(cluster):
    for dry in ("", "1"):
        assert cluster.run("submit.sh", "mae", EXIT_python="2", DRY_RUN=dry)[0] == 2
    assert not cluster.calls("sbatch")


@pytest.mark.parametrize("broken", ["1", "127"])
@pytest.mark.parametrize("extra", [{}, {"DRY_RUN": "1"}, {"SWEEP": "2"}])
def test_a_login_node_without_the_package_is_told_so_in_one_line(cluster, broken, extra):
    (cluster.bin / "my env").mkdir()
    cluster.add("my env/python", STUB)
    cluster.add("python", STUB.replace("if [[", "echo Traceback >&2; if [[", 1))
    code, _, err = cluster.run("submit.sh", "mae", EXIT_import=broken, **extra)
    assert (code, len(err.splitlines())) == (2, 1)
    assert err.startswith("refused: python here")
    assert "PYTHON=..." in err
    assert not cluster.record.read_text()
    other = str(cluster.bin / "my env" / "python")
    assert cluster.run("submit.sh", "mae", PYTHON=other)[::2] == (0, "")


def test_what_submit_asks_of_python_holds_for_this_one():
    (question,) = re.findall(r"^  '(import sys, .*)'", (LAUNCH / "submit.sh").read_text(), re.M)
    assert subprocess.run([sys.executable, "-c", question], cwd=ROOT, check=False).returncode == 0


def test_a_check_that_breaks_only_warns(cluster):
    code, _, err = cluster.run("submit.sh", "mae", EXIT_python="1")
    assert code == 0
    assert err.count("warning") == 2
    assert len(cluster.calls("sbatch")) == 1
    assert cluster.run("submit.sh", "mae", EXIT_python="1", DRY_RUN="1")[0] == 1
    assert cluster.run("submit.sh", "mae", EXIT_sbatch="3")[0] == 3


def test_what_sbatch_refuses_is_not_left_registered(cluster, tmp_path):
    grid = tmp_path / "grid.txt"
    grid.write_text("seed=1\nseed=2\nseed=3\n")
    begun = cluster.root / "runs" / "mae-grid" / "1"
    begun.mkdir(parents=True)
    (begun / "config.json").touch()
    assert cluster.run("submit.sh", "mae", GRID=str(grid), EXIT_sbatch="3")[0] == 3
    failed = [words for words in cluster.calls("python") if words[2] == "fail"]
    assert failed == [
        ["-m", "xec_jax.runs", "fail", f"runs/mae-grid/{k}", "--reason", "sbatch refused it"]
        for k in (0, 2)  # the other one is a run that was to be continued
    ]


def test_a_registered_run_can_be_withdrawn(tmp_path):
    status.register(tmp_path / "run", command=["x"])
    assert runs.main(["fail", str(tmp_path / "run"), "--reason", "sbatch refused it"]) == 0
    entry = status.read(tmp_path / "run")
    assert (entry["state"], entry["reason"]) == ("failed", "by hand: sbatch refused it")


def test_the_job_by_hand_in_the_docs_is_that_of_the_script(cluster):
    text = (ROOT / "docs" / "cluster.md").read_text()
    block = re.search(r"^ +mkdir -p slurm_logs\n((?: +.*\\\n)+.*)", text, re.MULTILINE)
    words = shlex.split(block[1].replace("\\\n", ""))
    cluster.run("submit.sh", "mae", RUN_NAME="x", XEC_OVERRIDES="data.train=")
    (job,) = cluster.calls("sbatch")
    assert words[:-1] == ["sbatch", *job[:-1]]
    assert words[-1].startswith(job[-1])


@pytest.mark.parametrize(
    "variables",
    [
        {"NUM_GPUS": "x[$(touch evil)]"},
        {"NODES": "0"},
        {"CPUS": "-1"},
        {"SWEEP": "many"},
        {"SWEEP": "2", "GRID": "launch/local.sh"},
        {"SWEEP_OPTIONS": "--trials 3"},
        {"GRID": "missing.txt"},
        {"GRID": "/dev/null"},
        {"SWEEP": "2", "NODES": "2"},
    ],
)
def test_wrong_numbers_and_combinations_are_refused(cluster, variables):
    code, _, err = cluster.run("submit.sh", "mae", **variables)
    assert (code, "refused" in err) == (2, True)
    assert not cluster.calls("sbatch")
    assert not (cluster.root / "evil").exists()


def test_images_hold_what_the_package_needs_and_run_as_a_user():
    docker = (LAUNCH / "Dockerfile").read_text()
    assert docker.index("USER xec") < docker.index("ENTRYPOINT [")
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    kept = [line[1:] for line in ignored if line.startswith("!")]
    assert all((ROOT / name).exists() for name in kept)
    copied = re.findall(r"^    (\S+) /opt", (LAUNCH / "apptainer.def").read_text(), re.MULTILINE)
    assert set(copied) <= set(kept)
