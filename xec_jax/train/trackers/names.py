"""What the numbers of a record are called in a tracker."""

import re
from typing import NamedTuple

from xec_jax.train.records import Record


class Row(NamedTuple):
    """One number about the machine: its key in `metrics.jsonl`, its name elsewhere."""

    key: str
    name: str
    meaning: str


TABLE = (
    Row("epoch", "epoch", "passes over the training events"),
    Row("lr", "lr", "learning rate"),
    Row("events_per_s", "system/throughput_events_per_sec", "events per second, measured between "
        "two points where the host waited for the devices"),
    Row("data_wait", "system/data_wait", "share of the time in which the loop waited for data"),
    Row("compute_share", "system/compute_efficiency", "1 - data_wait"),
    Row("data_wait_s", "system/avg_data_load_sec", "wait for a batch (s)"),
    Row("epoch_s", "system/epoch_duration_sec", "duration of the epoch (s)"),
    Row("memory_allocated_gb", "system/memory_allocated_GB", "device memory in use (GB)"),
    Row("memory_reserved_gb", "system/memory_reserved_GB", "pool taken from the device (GB)"),
    Row("memory_peak_gb", "system/memory_peak_GB", "most that was ever in use (GB)"),
    Row("gpu_utilization_pct", "system/gpu_utilization_pct", "memory in use, in percent of what "
        "JAX may take; not the load of the processors"),
    Row("memory_fragmentation", "system/memory_fragmentation", "1 - allocated/reserved"),
    Row("ram_used_gb", "system/ram_used_gb", "memory of this process on the host (GB)"),
)  # fmt: skip
"""Numbers with a name of their own; every other one is `SPLIT/KEY`, like `valid/loss`."""

_NAMES = {row.key: row.name for row in TABLE}
_PLACE = ("step", "split", "time", "elapsed_s")


def named(record: Record) -> dict[str, float]:
    """Returns {name: value} of a record's numbers; null and texts are left out."""
    own = _NAMES if record["split"] == "train" else {}
    return {
        re.sub(r"[^\w./ -]", "_", own.get(key, f"{record['split']}/{key}")): float(value)
        for key, value in record.items()
        if key not in _PLACE and isinstance(value, int | float) and (own or key != "epoch")
    }


def markdown() -> str:
    """Returns the table for the documentation."""
    lines = [f"| `{row.key}` | `{row.name}` | {row.meaning} |" for row in TABLE]
    return "\n".join(["| in `metrics.jsonl` | in a tracker | |", "|---|---|---|", *lines])
