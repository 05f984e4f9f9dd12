"""The table of runs: complete, honest about what is broken, and safe to show."""

import csv
import io
import json
import os
import re
import sys

import pytest
import toy
from listing import COMMAND, make_run, rows_of

from xec_jax import runs as command
from xec_jax.errors import ConfigError
from xec_jax.registry import scan, table
from xec_jax.registry.run import Metric
from xec_jax.registry.text import to_text
from xec_jax.train import status


def test_all_that_a_run_says(tmp_path, capsys):
    make_run(tmp_path / "a" / "b" / "run", losses=(3.0, 1.25, 2.0), commit="a" * 40 + "+changes")
    row = rows_of(tmp_path, capsys=capsys)["a/b/run"]
    expected = {
        "state": "done",
        "kind": "run",
        "task": "toy",
        "step": 12,
        "steps": 16,
        "epoch": 3.0,
        "best": 1.25,
        "best_step": 8,
        "last": 2.0,
        "events_per_s": 112.0,
        "commit": "a" * 10 + "+",
        "data": "feedfeedfe",
        "hours": 1.5,
        "attempts": 2,
        "job": "77",
    }
    assert {key: row[key] for key in expected} == expected


def test_best_is_a_query_that_knows_null_and_direction(tmp_path, capsys):
    make_run(tmp_path / "gone", losses=(None, None))
    make_run(tmp_path / "high", losses=(0.9, None))
    make_run(tmp_path / "low", losses=(0.5, 0.2, 0.7))
    text = make_run(tmp_path / "nan", losses=(4.0,)) / "metrics.jsonl"
    text.write_text(text.read_text() + '{"step": 5, "split": "valid", "loss": NaN}\n')
    claim = {"kind": "claim", "attempt": 1, "title": "x", "state": "done", "best": 0.0}
    (tmp_path / "claims.jsonl").write_text(json.dumps(claim) + "\n")
    best = rows_of(tmp_path, "--best", 2, capsys=capsys)
    assert [(name, row["best"]) for name, row in best.items()] == [("low", 0.2), ("high", 0.9)]
    best = rows_of(tmp_path, "--best", 9, "--metric", "accuracy", "--max", capsys=capsys)
    assert list(best) == ["low", "high", "nan"]
    best = rows_of(tmp_path, "--best", 1, "--metric", "other/loss", capsys=capsys)
    assert best["gone"]["best"] == -5.0
    best = rows_of(tmp_path, "--best", 1, "--metric", "train/lr", capsys=capsys)
    assert best["gone"]["best"] == 0.1


def test_lost_runs_are_told_from_running_ones(tmp_path, capsys):
    from xec_jax.train.lock import Lock

    for name in ("alive", "lost"):
        make_run(tmp_path / name, state="running")
    with Lock(tmp_path / "alive"):
        rows = rows_of(tmp_path, capsys=capsys)
    assert {name: row["state"] for name, row in rows.items()} == {
        "alive": "running",
        "lost": "lost",
    }
    assert rows["alive"]["hours"] > 1.5


def test_a_half_written_line_is_passed_over(tmp_path, capsys):
    path = make_run(tmp_path / "run") / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 99, "split": "valid", "lo')
    row = rows_of(tmp_path, capsys=capsys)["run"]
    assert (row["state"], row["step"], row["last"]) == ("done", 8, 2.0)


def test_where_runs_are_looked_for(tmp_path, capsys):
    make_run(tmp_path / "r10", state=None)
    make_run(tmp_path / "r2")
    make_run(tmp_path / "r2" / "checkpoints" / "9")
    make_run(tmp_path / ".trash" / "old")
    (tmp_path / "deep" / "link").parent.mkdir()
    (tmp_path / "deep" / "link").symlink_to(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    rows = rows_of(tmp_path, capsys=capsys)
    assert list(rows) == ["r2", "r10"]
    assert rows["r10"]["state"] == "unknown"
    assert list(rows_of(tmp_path / "r2", capsys=capsys)) == ["r2"], "the folder itself"


@pytest.mark.parametrize(
    "copy", ["mlartifacts/toy/123/artifacts", "wandb/run-1/files", "tensorboard/x", "mlruns/0/1"]
)
def test_copies_that_trackers_made_are_no_runs(tmp_path, capsys, copy):
    make_run(tmp_path / "run")
    make_run(tmp_path / copy)
    make_run(tmp_path / "run" / copy)
    assert list(rows_of(tmp_path, capsys=capsys)) == ["run"]


def test_differences(tmp_path):
    make_run(tmp_path / "a", optim__lr=1e-3, seed=1)
    make_run(tmp_path / "b", optim__lr=1e-4, seed=1)
    make_run(tmp_path / "c", task="mae", seed=2)
    for name in "ab":
        path = tmp_path / name / "config.json"
        config = json.loads(path.read_text())
        config["data"]["train"] = f"/data/{name}.root"
        config["model"] = {"new": 1} if name == "a" else {}
        path.write_text(json.dumps(config))
    runs = scan.scan(tmp_path, Metric())
    assert table.differing_keys(runs) == ["optim.lr"], "not of other tasks, nor what one lacks"
    for run in runs:
        run.config.pop("optim.lr")
    assert table.differing_keys(runs) == ["data.train"], "unless it is all"


def test_selecting_and_sorting(tmp_path, capsys):
    make_run(tmp_path / "a", optim__lr=1e-3, losses=(3.0,), state="failed")
    make_run(tmp_path / "b", optim__lr=1e-4, losses=(1.0,))
    make_run(tmp_path / "c", task="mae", losses=(2.0,))

    def names(*arguments):
        return "".join(rows_of(tmp_path, *arguments, capsys=capsys))

    assert names() == "abc"
    assert names("--reverse") == "cba"
    assert names("--sort", "best") == "bca"
    assert names("--sort", "best", "--reverse") == "acb"
    assert names("--sort", "optim.lr") == "bac"
    assert names("--task", "toy") == "ab"
    assert names("--state", "failed") == "a"
    assert names("--where", "optim.lr=0.0001") == "b"
    assert names("--where", "optim.lr=1e-3", "--where", "task=toy") == "a"
    assert names("--where", "optim.amsgrad=False") == "abc"
    with pytest.raises(ConfigError, match=r"optim\.lrr"):
        names("--where", "optim.lrr=1")
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        names("--where", "optim.lr")
    with pytest.raises(ConfigError, match="no folder"):
        names(tmp_path / "none")


def test_csv_holds_everything(tmp_path, capsys):
    run = make_run(tmp_path / 'a, "b"\nc', optim__lr=0.1 + 0.2)
    make_run(tmp_path / "d", optim__lr=1e-4)
    made = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(made | {"note": 'x,"y"'}))
    output = tmp_path / "new" / "runs.csv"
    assert command.main([str(tmp_path), "--format", "csv", "--output", str(output)]) == 0
    rows = list(csv.DictReader(io.StringIO(output.read_text())))
    assert [row["run"] for row in rows] == ['a, "b" c', "d"]
    assert set(rows[0]) == {*table.COLUMNS, "optim.lr"}
    assert [float(row["optim.lr"]) for row in rows] == [0.1 + 0.2, 1e-4], "all digits"
    assert rows[0]["note"] == 'x,"y"'
    assert rows[0]["reason"] == ""


def test_text_fits_its_width(tmp_path):
    for k in range(3):
        make_run(tmp_path / f"run-with-a-rather-long-name-{k}", optim__lr=10.0**-k, seed=k)
    path = make_run(tmp_path / "[bold]no markup[/bold]", state="failed") / "status.json"
    facts = json.loads(path.read_text()) | {"reason": "no space left on device " * 5}
    path.write_text(json.dumps(facts))
    runs = scan.scan(tmp_path, Metric())
    for width in (60, 100, 160):
        lines = to_text(runs, Metric(), width=width).splitlines()
        assert max(map(len, lines)) <= width
        squeezed = "".join("".join(lines).split())
        assert "failed" in squeezed
    assert "[bold]no markup[/bold]" in to_text(runs, Metric(), width=250)
    assert "all: task toy, commit aaaaaaaaaa, data feedfeedfe" in to_text(runs, Metric(), width=100)
    assert "best [/x]" in to_text(runs, Metric("[/x]"), width=250)
    assert "\x1b[" not in to_text(runs, Metric(), width=100)
    assert "\x1b[31mfailed" in to_text(runs, Metric(), width=100, color=True)
    assert re.search(r"last +lr +seed", to_text(runs, Metric(), width=160))
    assert "no room for" in to_text(runs, Metric(), width=60)


def test_nothing_to_list(tmp_path, capsys):
    assert command.main([str(tmp_path)]) == 0
    assert "no runs below" in capsys.readouterr().err
    make_run(tmp_path / "a")
    assert command.main([str(tmp_path), "--task", "mae"]) == 0
    assert "none of 1 runs" in capsys.readouterr().err


def test_a_metric_that_nobody_recorded(tmp_path, capsys):
    make_run(tmp_path / "run", losses=(1.0, None))
    for name, hint in {
        "los": "loss",
        "acuracy": "accuracy",
        "vaild/loss": "valid/loss",
        "train/los": "train/loss",
    }.items():
        with pytest.raises(ConfigError, match=f"no run has recorded '{name}'") as caught:
            rows_of(tmp_path, "--metric", name, capsys=capsys)
        assert hint in caught.value.expected
    make_run(tmp_path / "empty" / "null", losses=(None,))
    for name in ("loss", "valid/accuracy", "train/lr"):
        assert rows_of(tmp_path / "empty", "--metric", name, capsys=capsys)
    make_run(tmp_path / "early" / "unvalidated", losses=())
    record = '{"step": 1, "split": "train", "loss": 1.0}\n'
    (tmp_path / "early" / "unvalidated" / "metrics.jsonl").write_text(record)
    assert rows_of(tmp_path / "early", capsys=capsys)
    assert rows_of(tmp_path / "early", "--metric", "accuracy", capsys=capsys), "perhaps later"


CONFIG = """
from toy import config
def get_config(variant="default"):
    return config(epochs=2 if variant == "tiny" else 9)
"""


@pytest.fixture
def config_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo.py").write_text(CONFIG)
    return "demo.py"


def test_registering_before_the_start(tmp_path, config_file, capsys):
    arguments = ["register", "--config", f"{config_file}:tiny", "--config.optim.lr=0.25"]
    assert command.main([*arguments, "--note", "a quarter"]) == 0
    folder = tmp_path / "runs" / "demo-tiny"
    assert [path.name for path in folder.iterdir()] == ["status.json"]
    out = capsys.readouterr().out
    assert "python -m xec_jax.train --config demo.py:tiny --workdir runs/demo-tiny" in out
    assert "--config.optim.lr=0.25" in out
    row = rows_of(tmp_path / "runs", capsys=capsys)["demo-tiny"]
    assert (row["state"], row["task"], row["note"]) == ("registered", "toy", "a quarter")
    assert row["config"]["optim.lr"] == 0.25
    assert row["config"]["train.epochs"] == 2


def test_registered_run_is_opened_by_training(tmp_path, config_file, capsys):
    """The folder with the status is new to the training, which puts its own config there."""
    from xec_jax.train.workdir import open_workdir

    assert command.main(["register", "--config", config_file, "--workdir", "here"]) == 0
    folder = tmp_path / "here"
    with status.recorded(folder, COMMAND):
        assert open_workdir(folder, toy.config(), record={}) is False
    assert status.read(folder)["planned"]["config"] == config_file
    before = status.read(folder)
    assert command.main(["register", "--config", config_file, "--workdir", "here"]) == 0
    assert "started already" in capsys.readouterr().out
    assert status.read(folder) == before


def test_registering_checks_the_config(tmp_path, config_file):
    with pytest.raises(ConfigError, match="unknown key"):
        command.main(["register", "--config", config_file, "--config.optim.lrr=1"])
    assert not (tmp_path / "runs").exists()


def test_finish_and_fail(tmp_path, capsys):
    for name in ("one", "two"):
        make_run(tmp_path / name, state="running")
    assert command.main(["finish", str(tmp_path / "one"), "--reason", "good enough"]) == 0
    assert command.main(["fail", str(tmp_path / "two"), "--reason", "node died"]) == 0
    rows = rows_of(tmp_path, capsys=capsys)
    assert (rows["one"]["state"], rows["one"]["reason"]) == ("done", "by hand: good enough")
    assert (rows["two"]["state"], rows["two"]["reason"]) == ("failed", "by hand: node died")


def test_wrong_usage(tmp_path, capsys):
    for words in (
        ["--bset", "3"],
        ["--best", "0"],
        ["list", "--config.a=1"],
        ["register"],
        ["fail", "x"],
    ):
        with pytest.raises(SystemExit) as caught:
            command.main(words)
        assert caught.value.code == 2


def test_listing_does_not_wake_jax(tmp_path):
    import subprocess

    make_run(tmp_path / "a")
    script = (
        "import sys; from xec_jax.runs import main; main(sys.argv[1:])\n"
        "assert not {'jax', 'flax', 'numpy', 'matplotlib'} & set(sys.modules)"
    )
    words = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert "done" in done.stdout
