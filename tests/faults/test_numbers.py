"""Numbers that are not finite, and memory that is short: F10, F13."""

import json

import jax
import numpy as np
import pytest
import toy

from xec_jax.errors import DeviceMemoryError, DivergedError
from xec_jax.train import trainer as trainers
from xec_jax.train.job import run_job
from xec_jax.train.records import read_jsonl
from xec_jax.train.signals import StopFlag

BAD = (3, 9, 15, 21)


def job(workdir, config=None, poison=(), **options):
    source, valid = toy.sources(poison=poison)
    return run_job(
        *(toy.task(), config or toy.config(), source, valid, workdir), stop=StopFlag(), **options
    )


def test_one_bad_event_is_skipped_and_named(tmp_path):
    result = job(tmp_path / "run", poison=(3,))
    assert int(result.state.skipped) == 4, "once in each of 4 epochs"
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.state.params))
    source, _ = toy.sources(poison=(3,))
    bad = [
        step + 1
        for step in range(20)
        if not np.isfinite(source.batch(step, size=8, seed=3, train=True)["x"]).all()
    ]
    records = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [s for r in records for s in r.get("skipped_steps", ())] == bad


def test_too_many_in_a_row_end_the_run_with_a_report(tmp_path):
    with pytest.raises(DivergedError, match="last 4 updates up to step 4") as error:
        job(tmp_path / "run", poison=range(39))
    assert error.value.exit_code == 3
    report = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
    assert report["inputs"]["x"]["not_finite"] > 0
    assert report["inputs"]["weight"] == {"not_finite": 0, "min": 1.0, "max": 1.0, "mean": 1.0}
    assert set(report["parameters"].values()) == {0}
    assert report["gradient_norms"][0] == {"bias": "nan", "kernel": "nan"}
    with np.load(tmp_path / "run" / "nonfinite.npz") as arrays:
        assert not np.isfinite(arrays["x"]).any(1).all()
        assert len(arrays["x"]) == len(report["rows"])
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["exit_code"] == 3


def test_too_many_in_an_epoch_end_the_run(tmp_path):
    """One step of five is bad, never two in a row: 4 of 20 steps of an epoch are above 3."""

    def config(share):
        c = toy.config(epochs=2, max_skipped_share=share)
        c.data.batch_size = 2
        return c

    with pytest.raises(DivergedError, match="4 of this epoch's updates"):
        job(tmp_path / "run", config(0.01), poison=BAD)
    assert int(job(tmp_path / "patient", config(0.3), poison=BAD).state.skipped) >= 6


@pytest.fixture
def small_device(monkeypatch):
    """A device that holds 4 events."""
    make = trainers.make_train_step

    def make_small(*arguments, accum_steps, **options):
        step = make(*arguments, accum_steps=accum_steps, **options)

        def train_step(state, batch):
            if len(batch["x"]) // accum_steps > 4:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory: 9 GiB")
            return step(state, batch)

        return train_step

    monkeypatch.setattr(trainers, "make_train_step", make_small)


def test_out_of_memory_says_what_fits(small_device, tmp_path):
    with pytest.raises(DeviceMemoryError) as error:
        job(tmp_path / "run")
    text = str(error.value)
    assert "data.batch_size=8, train.grad_accum_steps=1" in text
    assert "--config.data.batch_size=4 --config.train.grad_accum_steps=2" in text
    assert error.value.exit_code == 2
    assert not list((tmp_path / "run" / "checkpoints").iterdir()), "nothing half-written"


def test_out_of_memory_halves_the_batch_on_demand(small_device, tmp_path, monkeypatch, caplog):
    config = toy.config(auto_batch=True)
    config.data.batch_size = 16
    small = job(tmp_path / "small", config)
    assert caplog.text.count("half the batch") == 2
    saved = json.loads((tmp_path / "small" / "config.json").read_text())
    assert saved["data"]["batch_size"] == 4
    assert saved["train"]["grad_accum_steps"] == 4
    caplog.clear()
    job(tmp_path / "small", config)  # finished, and without another search
    assert "half the batch" not in caplog.text
    monkeypatch.undo()
    whole = job(tmp_path / "large", config)
    for a, b in zip(*(jax.tree.leaves(r.state.params) for r in (small, whole)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
