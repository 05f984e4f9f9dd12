"""The folder of a run: made, recognized, and refused when it belongs to another config."""

import json
import logging
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

from ml_collections import ConfigDict

from xec_jax import __version__
from xec_jax.config import diff, to_json, write_text
from xec_jax.errors import CheckpointError, ConfigError, DiskError
from xec_jax.train.lock import NAME as LOCK
from xec_jax.train.migrations import FORMAT, read_config, read_environment

log = logging.getLogger(__name__)

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
    "train.max_skipped_share",
    "train.save_minutes",
    "train.auto_batch",
    "train.compilation_cache",
    "train.mesh.",
    "train.parallel",
    "train.grad_accum_steps",
    "data.batch_size",
    "data.train",
    "data.valid",
    "data.num_threads",
    "data.prefetch_factor",
    "data.timeout_s",
    "data.demo.",
)
"""Keys that a resumed run may change: they steer what is shown and kept, how long to go on, or how
a step is cut. What must not change with them is compared by itself: events per step, event data."""

BEFORE_START = (LOCK, "status.json", "trackers.json")
"""What a folder may hold before its run starts: a lock, a registration."""

CONTENT = (
    *BEFORE_START,
    "config.json",
    "environment.json",
    "metrics.jsonl",
    "checkpoints",
    "figures",
    "evaluation",
    "tensorboard",
    "wandb",
    "nonfinite.json",
    "nonfinite.npz",
)
"""What a run folder holds."""

_TEMPORARY = re.compile(
    rf"\.({'|'.join(map(re.escape, CONTENT))})\.\d+\.tmp|{re.escape(LOCK)}\.(takeover|new)"
)
"""What a kill leaves of a file that was being written (`config.write_text`, `Lock`)."""

_APART = ("record", "time", "earlier")
"""What of `environment.json` does not say in which environment a run was."""

Resume = Literal["auto", "never", "must"]


def open_workdir(
    workdir: Path,
    config: ConfigDict,
    *,
    record: Mapping[str, Any],
    overwrite: bool = False,
    accept_new_data: bool = False,
    resume: str = "auto",
) -> bool:
    """Makes a run folder, or checks that an existing one holds the same run.

    Writes `config.json` (resolved config) and `environment.json` (versions, those of earlier starts
    where they were others, and the task's record). The caller holds the lock of the folder.

    Args:
        workdir: The folder.
        config: Resolved config of this start.
        record: Facts that must not change within a run: those of the task, the hash of the events,
            the number of events per step.
        overwrite: Remove what another run left here, but for the lock.
        accept_new_data: Continue with other events than those that the run began with; from then
            on these are the run's.
        resume: `auto`: continue a run if there is one; `never`: refuse a folder with checkpoints;
            `must`: refuse one without.

    Returns:
        True if the folder holds a run to continue.

    Raises:
        ConfigError: `resume` is none of the three.
        CheckpointError: The folder holds a run of another config, or of a newer version.
        DiskError: The folder cannot be made or written.
    """
    if resume not in get_args(Resume):
        raise ConfigError(f"resume is {resume!r}", expected=" or ".join(get_args(Resume)))
    try:
        if workdir.exists() and not workdir.is_dir():
            raise DiskError(f"{workdir} is a file", expected="a folder for the run")
        if workdir.is_dir():
            _remove_temporaries(workdir)
        if overwrite and workdir.is_dir():
            _remove_run(workdir)
        exists = (workdir / "config.json").exists()
        _check_resume(workdir, resume)
        if exists:
            _refuse_other_run(workdir, config, record, accept_new_data)
        elif workdir.is_dir() and {path.name for path in workdir.iterdir()} - {*BEFORE_START}:
            raise CheckpointError(
                f"{workdir} is not empty and holds no run (no config.json)",
                expected="a new or empty folder, or the folder of a run",
                remedy="choose another --workdir",
            )
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"cannot make the run folder {workdir}: {error}") from error
    if not os.access(workdir, os.W_OK):
        raise DiskError(
            f"the run folder {workdir} is not writable",
            remedy="choose a --workdir that you may write",
        )
    write_text(workdir / "config.json", to_json(config) + "\n")
    now = _with_history(environment(record), read_environment(workdir))
    write_text(workdir / "environment.json", json.dumps(now, indent=2) + "\n")
    return exists


def _with_history(now: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Adds the environments of former starts, where they differ; `time` is when this one began."""
    facts, old = ({k: v for k, v in e.items() if k not in _APART} for e in (now, before))
    earlier = before.get("earlier", [])
    if facts == old:
        return {**now, "time": before.get("time", now["time"]), "earlier": earlier}
    if old:
        earlier = [*earlier, {**old, "time": before.get("time")}]
    return {**now, "earlier": earlier}


def _remove_temporaries(workdir: Path) -> None:
    for path in workdir.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _remove_run(workdir: Path) -> None:
    """Deletes what a run leaves in its folder, and nothing else; the lock is that of this job."""
    for name in CONTENT:
        path = workdir / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif name != LOCK:
            path.unlink(missing_ok=True)


def _check_resume(workdir: Path, resume: str) -> None:
    has_steps = any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*"))
    if resume == "never" and has_steps:
        raise CheckpointError(
            f"{workdir} holds a run",
            expected="a new folder, as resume is 'never'",
            remedy="choose another --workdir, or --overwrite to delete that run",
        )
    if resume == "must" and not has_steps:
        raise CheckpointError(
            f"{workdir} has no checkpoint to continue from",
            expected="one, as resume is 'must'",
            remedy="look at the path, or start without this option",
        )


def _refuse_other_run(
    workdir: Path, new: ConfigDict, record: Mapping[str, Any], accept_new_data: bool
) -> None:
    old = read_config(workdir)
    changed = {k: v for k, v in diff(old, new).items() if not k.startswith(MAY_CHANGE)}
    before = read_environment(workdir).get("record")
    now = json.loads(json.dumps(dict(record)))
    if before is not None:
        changed |= {k: (before.get(k), now.get(k)) for k in now if before.get(k) != now.get(k)}
    remedy = "another --workdir for a new run, or --overwrite to delete the old one"
    if "events" in changed:
        events = changed.pop("events")
        if accept_new_data:
            log.warning("%s goes on with other events: %s then, %s now", workdir, *events)
        else:
            changed["events (hash of the data files)"] = events
            remedy = f"--accept_new_data to go on with these events; {remedy}"
    if changed:
        lines = "".join(f"\n    {key}: {a!r} there, {b!r} now" for key, (a, b) in changed.items())
        raise CheckpointError(
            f"{workdir} holds a run of another config:{lines}",
            expected="the same config, to continue that run",
            remedy=remedy,
        )


def environment(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the numbers of a run may depend on besides its config."""
    import jax

    devices = jax.devices()
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "uproot")
    return {
        "format": FORMAT,
        "xec_jax": __version__,
        "git": git_commit(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{name: metadata.version(name) for name in packages},
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "record": dict(record),
    }


def git_commit() -> str | None:
    """Returns the commit of the checkout that this package lies in, None if it lies in none.

    Local changes are marked by `+changes`.
    """
    root = Path(__file__).resolve().parents[2]
    # An installed package may lie below somebody else's repository.
    if not (root / "xec_jax").is_dir() or not (root / "pyproject.toml").exists():
        return None
    answers = []
    for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        command = ["git", "-C", str(root), *words]
        try:
            done = subprocess.run(  # noqa: S603  (fixed words)
                command, capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        answers.append(done.stdout.strip())
    commit, changes = answers
    return f"{commit}+changes" if changes else commit
