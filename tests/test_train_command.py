"""`python -m xec_jax.train` as a user meets it: foreign files, wrong input, kills, other runs."""

import signal
import time

import numpy as np
import pytest
import uproot
from commands import ROOT, run, start, state_of

from xec_jax import config as configs
from xec_jax.train.records import read_jsonl

CONFIG = str(ROOT / "configs" / "mae.py:tiny")


@pytest.fixture(scope="session")
def foreign(tmp_path_factory):
    """A file as another program would write it: plain uproot, other order, extra branches."""
    path = tmp_path_factory.mktemp("data") / "run 01:a.root"
    rng = np.random.default_rng(0)
    n = 64
    light = np.exp(rng.normal(4, 1.5, (n, 4760))).astype(np.float32)
    light[rng.uniform(size=light.shape) < 0.05] = 1e10
    times = rng.normal(2e-8, 1e-8, (n, 4760)).astype(np.float32)
    with uproot.recreate(path) as file:
        sensors = ("f4", (4760,))
        kinds = {"energyTruth": "f4", "relative_time": sensors, "event": "i4", "npho": sensors}
        file.mktree("tree", kinds)
        for part in np.array_split(np.arange(n), 3):
            file["tree"].extend(
                {
                    "npho": light[part],
                    "relative_time": times[part],
                    "event": part.astype(np.int32),
                    "energyTruth": np.full(len(part), 0.0528, np.float32),
                }
            )
    return path


def on_foreign(foreign, *more):
    paths = [f"--config.data.train={foreign}", f"--config.data.valid={foreign}"]
    # The numbers of the demonstration, so that programs compiled for it serve here, too.
    sizes = ["--config.data.batch_size=8", "--config.train.epochs=3", "--config.log.every=1"]
    sizes += ["--config.train.grad_accum_steps=1", "--config.model.dropout=0.0"]
    rates = ["--config.optim.lr=5e-4", "--config.optim.lr_scheduler=cosine"]
    rates += ["--config.optim.lr_per_step=true", "--config.optim.warmup_epochs=0.2"]
    return ["--config", CONFIG, *paths, *sizes, *rates, "--config.train.save_every=3", *more]


@pytest.fixture(scope="session")
def undisturbed(caches, foreign, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    code, out, err = run(caches, *on_foreign(foreign), "--workdir", workdir)
    assert code == 0, err
    return workdir, out, err


def test_trains_on_a_file_of_somebody_else(undisturbed):
    workdir, out, err = undisturbed
    assert "64 training events" in out
    assert "608,202 parameters" in out
    assert "training and validation share events" in out
    assert "Traceback" not in err
    records = read_jsonl(workdir / "metrics.jsonl")
    assert [r["step"] for r in records if r["split"] == "valid"] == [8, 16, 24]
    losses = [r["loss"] for r in records if r["split"] == "valid"]
    assert losses[-1] < 0.7 * losses[0]
    for name in ("reconstruction_0.png", "reconstruction_0.pdf", "training_curves.png"):
        assert (workdir / "figures" / name).stat().st_size > 10_000
    config = configs.from_json((workdir / "config.json").read_text())
    assert config.optim.warmup_epochs == 0.2


@pytest.mark.slow  # tests/faults does this to a small network at every start
def test_kill_and_resume_gives_the_same_bits(undisturbed, caches, foreign, tmp_path):
    """kill -9 in the middle, SIGTERM further on, then to the end."""
    workdir = tmp_path / "cut"
    arguments = [*on_foreign(foreign), "--workdir", workdir]
    for number, after_step in ((signal.SIGKILL, 5), (signal.SIGTERM, 11)):
        process = start(caches, *arguments)
        deadline = time.monotonic() + 500
        while time.monotonic() < deadline and process.poll() is None:
            steps = [r["step"] for r in read_jsonl(workdir / "metrics.jsonl")]
            if max(steps, default=0) >= after_step:
                break
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=500)
        if number == signal.SIGTERM:
            assert process.returncode == 75, out + err
            assert "SIGTERM" in err
            assert "start the same command again" in err
    code, out, err = run(caches, *arguments)
    assert code == 0, err
    assert "continuing after step" in out
    step, resumed = state_of(workdir)
    whole_step, whole = state_of(undisturbed[0])
    assert step == whole_step == 24
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(value, resumed[name], err_msg=name)


def test_finished_run_and_another_config(undisturbed, caches, foreign):
    workdir = undisturbed[0]
    code, out, _ = run(caches, *on_foreign(foreign), "--workdir", workdir)
    assert code == 0
    assert "already complete after 24 steps" in out
    before = (workdir / "config.json").read_text()
    other = on_foreign(foreign, "--config.model.mask_ratio=0.5", "--config.data.tree_name=tree")
    code, _, err = run(caches, *other, "--workdir", workdir)
    assert code == 2
    assert "model.mask_ratio: 0.65 there, 0.5 now" in err
    assert "--overwrite" in err
    code, _, err = run(
        caches, *on_foreign(foreign, "--config.data.batch_size=4"), "--workdir", workdir
    )
    assert code == 2
    assert "events_per_step: 8 there, 4 now" in err
    assert (workdir / "config.json").read_text() == before


@pytest.fixture(scope="session")
def bad_files(tmp_path_factory, foreign):
    folder = tmp_path_factory.mktemp("bad")
    (folder / "empty_folder").mkdir()
    (folder / "text.root").write_text("not a ROOT file")
    (folder / "zero.root").touch()
    (folder / "cut.root").write_bytes(foreign.read_bytes()[:3000])
    short = {"npho": np.ones((4, 846), np.float32), "relative_time": np.ones((4, 846), np.float32)}
    dead = {k: np.full((4, 4760), 1e10, np.float32) for k in short}
    for name, arrays in (("short", short), ("dead", dead), ("lone", {"npho": dead["npho"]})):
        with uproot.recreate(folder / f"{name}.root") as file:
            file.mktree("tree", {k: (v.dtype, v.shape[1:]) for k, v in arrays.items()})
            file["tree"].extend(arrays)
    return folder


@pytest.mark.parametrize(
    ("override", "messages"),
    [
        ("data.train={bad}/nothing.root", ["nothing.root"]),
        ("data.train={bad}/*.txt", ["*.txt", "remedy"]),
        ("data.train={bad}/empty_folder", ["empty_folder", ".root"]),
        ("data.train={bad}/text.root", ["text.root", "ROOT"]),
        ("data.train={bad}/zero.root", ["zero.root"]),
        ("data.train={bad}/cut.root", ["cut.root"]),
        ("data.train={bad}/short.root", ["short.root", "846", "4760"]),
        ("data.train={bad}/dead.root", ["dead.root", "no valid sensor"]),
        ("data.train={bad}/lone.root", ["lone.root", "relative_time"]),
        ("data.tree_name=events", ["events", "tree"]),
        ("data.npho_branch=relative_npho", ["relative_npho", "npho"]),
        ("data.source=parquet", ["parquet", "root"]),
        ("model.mask_ratio=1.5", ["mask_ratio", "(0, 1)"]),
        ("model.outer_fine_pool=(2,2)", ["divisors"]),
        ("model.geometry=exact", ["physical, documented"]),
        ("train.loss_fn=smooth_l2", ["smooth_l1"]),
        ("train.precision=float16", ["bfloat16"]),
        ("train.parallel=ddp", ["jit or pmap"]),
        ("train.mesh.data=99", ["99"]),
        ("optim.lr_scheduler=cosin", ["cosine"]),
        ("data.normalization.npho_scheme=log", ["log1p"]),
        ("optim.learning_rate=1", ["learning_rate", "optim.lr"]),
        ("train.devices=2", ["train.mesh.data, its new name"]),
        ("task=mea", ["mea", "mae"]),
        ("data.train=", ["path ''", "empty"]),
        ("model.encoder_dim=100", ["multiple of 32"]),
        ("model.num_heads=0", ["num_heads"]),
        ("optim.lr=none", ["float"]),
        ("optim.no_decay=('[',)", ["regular expressions"]),
        ("log.every=0", ["log.every"]),
        ("eval.every_epochs=0", ["every_epochs"]),
        ("data.prefetch_factor=0", ["prefetch_factor"]),
    ],
    ids=lambda value: value.split("=")[0] if isinstance(value, str) else "",
)
def test_bad_input_is_one_readable_block(
    monkeypatch, capsys, bad_files, foreign, tmp_path, override, messages
):
    """Run in this process, where it is fast; the exit code is that of the command."""
    from xec_jax.errors import run_command
    from xec_jax.train.__main__ import main

    monkeypatch.chdir(tmp_path)
    changed = f"--config.{override}".format(bad=bad_files)
    arguments = [*on_foreign(foreign), changed, "--workdir", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as exit_:
        run_command(main, arguments)
    err = capsys.readouterr().err
    assert exit_.value.code == 2
    for message in messages:
        assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "run" / "config.json").exists(), "no half-written run"


def test_folders_that_cannot_be_used(monkeypatch, capsys, foreign, tmp_path):
    from xec_jax.errors import run_command
    from xec_jax.train.__main__ import main

    def attempt(workdir):
        with pytest.raises(SystemExit) as exit_:
            run_command(main, [*on_foreign(foreign), "--workdir", str(workdir)])
        return exit_.value.code, capsys.readouterr().err

    (tmp_path / "file").write_text("")
    assert attempt(tmp_path / "file")[0] == 4
    code, err = attempt(tmp_path / "file" / "below")
    assert code == 4
    assert "cannot lock the run folder" in err
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_text("")
    code, err = attempt(tmp_path / "photos")
    assert code == 2
    assert "holds no run" in err
    monkeypatch.setattr("os.access", lambda path, mode: False)
    code, err = attempt(tmp_path / "new")
    assert code == 4
    assert "not writable" in err


def test_dry_run_writes_nothing(caches, foreign, tmp_path):
    arguments = [*on_foreign(foreign), "--workdir", tmp_path / "run", "--dry_run"]
    code, out, err = run(caches, *arguments, cwd=tmp_path)
    assert code == 0, err
    assert "loss of the first step" in out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.matmul_precision=tf32", "one of default, high, highest"),
        ("optim.lr_scheduler=constant", "one of none, cosine"),
        ("optim.frozen=('^encodr/',)", "perhaps encoder"),
        ("log.trackers=('mlfow',)", "perhaps mlflow"),
        ("data.valid=x.root", "data.train is not set"),
        ("train.epochs=0", "train.epochs"),
    ],
)
def test_a_login_node_finds_what_the_job_would_refuse(capsys, override, message):
    from xec_jax.errors import run_command
    from xec_jax.train.__main__ import main

    with pytest.raises(SystemExit) as exit_:
        run_command(main, ["--config", CONFIG, "--check_config", f"--config.{override}"])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_a_config_that_is_fine(capsys):
    from xec_jax.train.__main__ import main

    assert main(["--config", CONFIG, "--check_config", "--config.optim.lr=1e-5"]) == 0
    assert "optim.lr: 0.00025 -> 1e-05" in capsys.readouterr().out
