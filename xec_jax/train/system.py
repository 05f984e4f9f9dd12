"""What a run costs its machine: memory of devices and host, and what an epoch waited for."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

GB = 1e9
STATM = Path("/proc/self/statm")


def system_metrics(devices: Sequence[Any]) -> dict[str, float]:
    """Returns the memory in use, in GB (1e9 bytes); of several devices, the largest values.

    Args:
        devices: Devices of this process.

    Returns:
        `ram_used_gb`, the memory of this process on the host (Linux only); and where the devices
        tell, as GPUs do: `memory_allocated_gb`, `memory_peak_gb`, `memory_reserved_gb` (pool
        taken from the device), `gpu_utilization_pct` (allocated in percent of what JAX may take),
        `memory_fragmentation` (1 - allocated/reserved).
    """
    metrics: dict[str, float] = {}
    for device in devices:
        for key, value in _of_device(device.memory_stats() or {}).items():
            metrics[key] = max(value, metrics.get(key, value))
    if STATM.exists():
        pages = int(STATM.read_text().split()[1])
        metrics["ram_used_gb"] = pages * os.sysconf("SC_PAGE_SIZE") / GB
    return metrics


def limiting_stage(seconds: float, *, waited: float, read: float, put: float) -> str:
    """Returns what limited an epoch: "compute", "reading" or "copying".

    Args:
        seconds: Duration of the steps, between two points where the host waited for the devices.
        waited: Seconds of these in which the loop waited for a batch.
        read: Seconds that the thread beside the loop took to read batches.
        put: Seconds that it took to copy them to the devices.

    Returns:
        "compute" if less than a tenth of the time was waited for data, however long reading took
        beside it; otherwise the longer of the two ways to make the loop wait.
    """
    if waited < 0.1 * seconds:
        return "compute"
    return "reading" if read >= put else "copying"


def _of_device(stats: dict[str, int]) -> dict[str, float]:
    metrics = {}
    used = stats.get("bytes_in_use")
    pool, limit = stats.get("pool_bytes"), stats.get("bytes_limit")
    if used is not None:
        metrics["memory_allocated_gb"] = used / GB
        if limit:
            metrics["gpu_utilization_pct"] = 100.0 * used / limit
        if pool:
            metrics["memory_reserved_gb"] = pool / GB
            metrics["memory_fragmentation"] = max(1.0 - used / pool, 0.0)
    if "peak_bytes_in_use" in stats:
        metrics["memory_peak_gb"] = stats["peak_bytes_in_use"] / GB
    return metrics
