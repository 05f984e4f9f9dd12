"""Memory of devices and host, what limited an epoch, and durations when the clock jumps."""

import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import toy

from xec_jax.train import loggers, system
from xec_jax.train.hooks import RunInfo
from xec_jax.train.loggers import ConsoleLogger, JsonlLogger
from xec_jax.train.records import read_jsonl


def device(used, pool, peak=0, limit=80 * 10**9):
    stats = {"bytes_in_use": used, "pool_bytes": pool, "peak_bytes_in_use": peak}
    return SimpleNamespace(memory_stats=lambda: {**stats, "bytes_limit": limit, "num_allocs": 3})


def test_memory_of_the_fullest_device():
    metrics = system.system_metrics(
        [device(10**9, 4 * 10**9, 10**10), device(2 * 10**10, 2 * 10**10)]
    )
    del metrics["ram_used_gb"]
    assert metrics == {
        "memory_allocated_gb": 20.0,
        "memory_reserved_gb": 20.0,
        "memory_peak_gb": 10.0,
        "gpu_utilization_pct": 25.0,
        "memory_fragmentation": 0.75,
    }


@pytest.mark.parametrize(
    "stats", [None, {}, {"bytes_in_use": 5}, {"pool_bytes": 0, "bytes_limit": 0}]
)
def test_devices_that_tell_little(stats):
    metrics = system.system_metrics([SimpleNamespace(memory_stats=lambda: stats)])
    assert metrics.keys() <= {"ram_used_gb", "memory_allocated_gb"}


def test_host_memory_is_that_of_this_process():
    if not system.STATM.exists():
        pytest.skip("Linux tells")
    before = system.system_metrics(jax.local_devices())
    assert before.keys() == {"ram_used_gb"}, "a CPU has no memory of its own"
    ballast = np.ones(2 * 10**8, np.uint8)
    grown = system.system_metrics([])["ram_used_gb"] - before["ram_used_gb"]
    assert grown == pytest.approx(ballast.nbytes / 1e9, abs=0.1)


def test_elsewhere_the_host_says_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(system, "STATM", tmp_path / "missing")
    assert system.system_metrics([]) == {}


@pytest.mark.parametrize(
    ("waited", "read", "put", "stage"),
    [
        (0.0, 0.0, 0.0, "compute"),
        (0.9, 9.0, 5.0, "compute"),  # reading took long, but beside the computation
        (1.1, 9.0, 5.0, "reading"),
        (5.0, 3.0, 7.0, "copying"),
    ],
)
def test_limiting_stage(waited, read, put, stage):
    assert system.limiting_stage(10.0, waited=waited, read=read, put=put) == stage


def test_the_console_says_what_limited_an_epoch(capsys):
    console = ConsoleLogger(bar=False)
    console.on_start(RunInfo(0, 10, steps_per_epoch=5, global_batch=8))
    record = {"step": 5, "split": "train", "epoch": 1.0, "loss": 1.0, "lr": 1.0}
    console.on_record(record)
    assert "limited" not in capsys.readouterr().out
    console.on_record(record | {"limited_by": "reading"})
    assert "epoch 1 limited by reading" in capsys.readouterr().out


def test_durations_survive_a_clock_that_jumps_back(tmp_path, monkeypatch):
    """An hour less, as when the clock is set: only the time of day in the record shows it."""
    from xec_jax.train.loop import fit

    now = time.time
    shift = 0.0

    def jumping():
        return now() - shift

    class Jump(JsonlLogger):
        def on_step(self, step):
            nonlocal shift
            shift = 3600.0 * (step >= 7)

    monkeypatch.setattr(time, "time", jumping)
    source, valid = toy.sources()
    hook = Jump(tmp_path / "metrics.jsonl")
    fit(toy.task(), toy.config(), source, valid, workdir=tmp_path, hooks=[hook])
    records = read_jsonl(hook.path)
    elapsed = [record["elapsed_s"] for record in records]
    assert elapsed == sorted(elapsed)
    assert elapsed[0] >= 0
    assert elapsed[-1] < 600
    for record in records:
        if record["split"] == "train":
            assert record["events_per_s"] > 0
            assert record["compute_share"] == 1.0 - record["data_wait"]
    times = [record["time"] for record in records]
    assert times[-1] < times[0] - 3000, "the clock did jump"
    assert loggers.time is time
