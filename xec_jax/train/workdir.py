"""The folder of a run: made, recognized, and refused when it belongs to another config."""

import json
import os
import platform
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from xec_jax import __version__
from xec_jax.config import diff, from_json, to_json, write_text
from xec_jax.errors import CheckpointError, DiskError

MAY_CHANGE = (
    "log.",
    "eval.",
    "export.",
    "train.epochs",
    "train.max_steps",
    "train.save_every",
    "train.keep_last",
    "train.keep_best",
    "train.max_skipped_in_row",
    "train.devices",
    "train.parallel",
    "train.grad_accum_steps",
    "data.batch_size",
    "data.train",
    "data.valid",
    "data.num_threads",
    "data.prefetch_factor",
    "data.demo.",
)
"""Keys that a resumed run may change: they steer what is shown and kept, how long to go on, or how
a step is cut. What must not change with them is compared by itself: events per step, event data."""

CONTENT = ("config.json", "environment.json", "metrics.jsonl", "checkpoints", "figures")
"""What a run folder holds."""


def open_workdir(
    workdir: Path, config: ConfigDict, *, record: Mapping[str, Any], overwrite: bool = False
) -> bool:
    """Makes a run folder, or checks that an existing one holds the same run.

    Writes `config.json` (resolved config) and `environment.json` (versions, and the task's
    record).

    Args:
        workdir: The folder.
        config: Resolved config of this start.
        record: Facts that must not change within a run: those of the task, the hash of the events,
            the number of events per step.
        overwrite: Remove what another run left here.

    Returns:
        True if the folder holds a run to continue.

    Raises:
        CheckpointError: The folder holds a run of another config.
        DiskError: The folder cannot be made or written.
    """
    old_path = workdir / "config.json"
    try:
        if workdir.exists() and not workdir.is_dir():
            raise DiskError(f"{workdir} is a file", expected="a folder for the run")
        if overwrite and workdir.is_dir():
            _remove_run(workdir)
        exists = old_path.exists()
        if exists:
            old = from_json(old_path.read_text(), str(old_path))
            _refuse_other_run(workdir, old, config, record)
        elif workdir.is_dir() and any(workdir.iterdir()):
            raise CheckpointError(
                f"{workdir} is not empty and holds no run (no config.json)",
                expected="a new or empty folder, or the folder of a run",
                remedy="choose another --workdir",
            )
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"cannot make the run folder {workdir}: {error}") from error
    if not os.access(workdir, os.W_OK):
        raise DiskError(f"the run folder {workdir} is not writable")
    write_text(old_path, to_json(config) + "\n")
    write_text(workdir / "environment.json", json.dumps(environment(record), indent=2) + "\n")
    return exists


def _remove_run(workdir: Path) -> None:
    """Deletes what a run leaves in its folder, and nothing else."""
    for name in CONTENT:
        path = workdir / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _refuse_other_run(
    workdir: Path, old: ConfigDict, new: ConfigDict, record: Mapping[str, Any]
) -> None:
    changed = {k: v for k, v in diff(old, new).items() if not k.startswith(MAY_CHANGE)}
    path = workdir / "environment.json"
    if path.exists():
        before = json.loads(path.read_text()).get("record", {})
        now = json.loads(json.dumps(dict(record)))
        changed |= {k: (before.get(k), now.get(k)) for k in now if before.get(k) != now.get(k)}
        if "events" in changed:
            changed["events (hash of the data files)"] = changed.pop("events")
    if changed:
        lines = "".join(f"\n    {key}: {a!r} there, {b!r} now" for key, (a, b) in changed.items())
        raise CheckpointError(
            f"{workdir} holds a run of another config:{lines}",
            expected="the same config, to continue that run",
            remedy="another --workdir for a new run, or --overwrite to delete the old one",
        )


def environment(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the numbers of a run may depend on besides its config."""
    import jax

    devices = jax.devices()
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "uproot")
    return {
        "xec_jax": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{name: metadata.version(name) for name in packages},
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "record": dict(record),
    }
