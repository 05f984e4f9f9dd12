"""F24: runs of older versions go on, those of newer ones are refused.

`golden/run_format1` was made by the version before there was a format: the toy task of
`toy.config()`, stopped after 8 of 20 steps.
"""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import toy

from xec_jax.config import diff, flatten
from xec_jax.errors import CheckpointError
from xec_jax.train.loop import fit
from xec_jax.train.migrations import FORMAT, migrate, read_config
from xec_jax.train.records import read_jsonl
from xec_jax.train.saved import load_run
from xec_jax.train.workdir import MAY_CHANGE, open_workdir

GOLDEN = Path(__file__).parents[1] / "golden" / "run_format1"


@pytest.fixture
def old_run(tmp_path):
    return Path(shutil.copytree(GOLDEN, tmp_path / "run"))


def test_config_of_format_1_says_what_it_meant(old_run):
    config = read_config(old_run)
    assert "devices" not in config.train
    assert config.train.mesh.to_dict() == {"data": 1, "model": 1}
    assert flatten(config).keys() == flatten(toy.config()).keys()
    changed = {k: v for k, v in diff(config, toy.config()).items() if not k.startswith(MAY_CHANGE)}
    assert changed == {}


def test_migration_twice_is_migration_once():
    """A run killed between writing config and environment meets that."""
    old = json.loads((GOLDEN / "config.json").read_text())
    before = json.dumps(old)
    new = migrate(old, 1)
    assert json.dumps(old) == before
    assert migrate(new, 1) == new
    assert migrate(new, FORMAT) == new


def test_weights_of_format_1(old_run, caplog):
    run = load_run(old_run)
    assert (run.step, run.is_average) == (8, True)
    assert run.record == {"toy": 1}
    assert "cannot be verified" in caplog.text


def test_run_of_format_1_goes_on(old_run, tmp_path):
    source, valid = toy.sources()
    events = {name: s.fingerprint[:16] for name, s in {"train": source, **valid}.items()}
    record = {"toy": 1, "events": events, "events_per_step": 8}
    assert open_workdir(old_run, toy.config(), record=record) is True
    assert json.loads((old_run / "environment.json").read_text())["format"] == FORMAT
    resumed = fit(toy.task(), toy.config(), source, valid, workdir=old_run)
    assert resumed.steps_run == 12
    whole = fit(toy.task(), toy.config(), source, valid, workdir=tmp_path / "whole")
    for a, b in zip(*(jax.tree.leaves(r.state) for r in (whole, resumed)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert [r["step"] for r in read_jsonl(old_run / "metrics.jsonl")] != []


def test_newer_format_is_refused(old_run):
    environment = {"format": FORMAT + 1, "xec_jax": "9.0"}
    (old_run / "environment.json").write_text(json.dumps(environment))
    for action in (load_run, lambda run: open_workdir(run, toy.config(), record={})):
        with pytest.raises(CheckpointError, match=f"has format {FORMAT + 1}") as error:
            action(old_run)
        assert str(old_run) in error.value.found
        assert f"format {FORMAT} or older" in error.value.expected


def test_damaged_environment(old_run):
    (old_run / "environment.json").write_text('{"for')
    with pytest.raises(CheckpointError, match="is not JSON") as error:
        load_run(old_run)
    assert "nobody checks any more that data and geometry" in error.value.remedy


def test_golden_run_is_small():
    assert sum(p.stat().st_size for p in GOLDEN.rglob("*") if p.is_file()) < 100_000
