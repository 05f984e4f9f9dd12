"""Every shipped config: all variants load, `tiny` trains, validates, draws, stops and goes on."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from commands import ROOT, run

from xec_jax import config as configs
from xec_jax.tasks.base import make_task
from xec_jax.train.records import read_jsonl

CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.py"))
EXTRA = {"muon_flow.py": "distrax"}  # packages that are not installed with the others


def skip_without_extra(name):
    if name in EXTRA and find_spec(EXTRA[name]) is None:
        pytest.skip(f"needs {EXTRA[name]}")


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("variant", ["default", "tiny", "gh200"])
def test_variant_makes_a_task(name, variant):
    skip_without_extra(name)
    config = configs.load(str(ROOT / "configs" / f"{name}:{variant}"))
    task = make_task(config)
    assert task.spec
    assert configs.diff(config, configs.from_json(configs.to_json(config))) == {}


@pytest.mark.parametrize("name", CONFIGS)
def test_tiny_trains_and_continues(name, caches, tmp_path):
    skip_without_extra(name)
    path = ROOT / "configs" / f"{name}:tiny"
    command = ["--config", path, "--workdir", tmp_path / "run"]
    demo = configs.load(str(path)).data.demo
    rows = 14 if demo.kind == "muon" else 1  # of an event, about
    steps = rows * demo.events // demo.set.data.batch_size * (demo.set.train.epochs - 1)
    # Not by fewer epochs: they would make another schedule, and that another program to compile.
    code, out, err = run(caches, *command, f"--config.train.max_steps={steps}", cwd=tmp_path)
    assert code == 0, err
    assert "simulated" in out, "says that these are not the user's events"
    records = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    losses = [r["loss"] for r in records if r["split"] == "valid"]
    assert losses[-1] < losses[0]
    assert sorted(Path(tmp_path / "run" / "figures").glob("*.png"))
    assert max(r["step"] for r in records) == steps
    code, out, err = run(caches, *command, cwd=tmp_path)
    assert code == 0, err
    assert f"continuing after step {steps}" in out
    assert len(read_jsonl(tmp_path / "run" / "metrics.jsonl")) > len(records)
