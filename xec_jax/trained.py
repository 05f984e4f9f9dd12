"""Trained runs and the events to ask them about: what `predict` and `evaluate` share.

Heavy packages are imported inside functions, so that the `--help` of a command answers at once.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xec_jax.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from xec_jax.data.source import Source
    from xec_jax.tasks.base import Task
    from xec_jax.train.saved import SavedRun

MEASURED = ("emiAng", "emiVec")
"""Branches that hold the truth in simulated files, and what was measured in real ones."""

log = logging.getLogger(__name__)


def make_tasks(paths: Sequence[Path], runs: "Sequence[SavedRun]") -> "list[Task]":
    """Makes the runs' tasks; equal networks share one, and with it one compilation.

    Raises:
        CheckpointError: A run of a version whose configs lack keys.
    """
    from xec_jax.tasks import base

    made: dict[str, Task] = {}
    tasks = []
    for path, run in zip(paths, runs, strict=True):
        config = run.config.copy_and_resolve_references()
        if "augment" in config.data:  # of training alone: its bank may be gone by now
            config.data.augment.update({"dead_patterns": None, "dead_pattern_share": 0.0})
        plain = config.to_dict()
        same = json.dumps([plain[group] for group in ("task", "model", "data", "train")])
        try:
            tasks.append(made.setdefault(same, base.make_task(config)))
        except (AttributeError, KeyError) as error:
            raise CheckpointError(
                f"{path}/config.json lacks a key: {str(error).splitlines()[0]}",
                expected="a run of this version",
                remedy="use the version that is named in its environment.json",
            ) from error
    return tasks


def reads_bundles(path: Path) -> bool:
    """Returns whether a run is about muon bundles, in parquet files instead of ROOT files."""
    from xec_jax.train.migrations import read_config

    return (path / "config.json").is_file() and read_config(path).data.source == "bundles"


def check_parts(path: Path, task: "Task", params: Any) -> None:
    """Refuses a run that lacks parts of its network, such as a converted encoder.

    Raises:
        CheckpointError: The parameters have no head.
    """
    import jax

    from xec_jax.tasks.base import example_batch

    wanted = jax.eval_shape(task.init, jax.random.PRNGKey(0), example_batch(task.spec, 2))
    if absent := [name for name in wanted if name not in params]:
        raise CheckpointError(
            f"{path} holds {', '.join(params)} and no {', '.join(absent)}",
            expected=f"all parts of a network of task {task.name}",
            remedy="such a run can be trained on: --config.train.init_from=RUN",
        )


def data_to_read(
    run: "SavedRun", tree: str | None = None, *, has_cut: bool = False
) -> "ConfigDict":
    """The group `data` to read with: ROOT files whatever the training read.

    Args:
        run: Has the group of its training.
        tree: Name of the tree in place of that of the training.
        has_cut: Keep the fiducial cut of the training; without it, every event comes.
    """
    data = run.config.data.copy_and_resolve_references().unlock()
    data.source, data.on_bad_file, data.dead_channels = "root", "error", None
    data.tree_name = tree or data.tree_name
    if not has_cut:
        data.fiducial.update(dict.fromkeys(data.fiducial))
    return data


def refuse_caches(inputs: Sequence[str]) -> None:
    """Refuses folders that `xec_jax.data.build` made.

    Raises:
        ConfigError: One of the inputs is such a folder.
    """
    for name in inputs:
        if (Path(name).expanduser() / "dataset_info.json").exists():
            raise ConfigError(
                f"--input {name} is a cache of xec_jax.data.build",
                expected="ROOT files; caches are for training alone",
                remedy="name the files that it was made of",
            )


def wanted_branches(
    task: "Task", tree: str, first: Path, more: Sequence[str] = ()
) -> tuple[list[str], bool]:
    """Chooses what to read: the inputs, and of the truth what the first file has.

    Args:
        task: Who asks.
        tree: Name of the tree.
        first: A file that stands for all.
        more: Branches to read where the file has them, besides those of the task.

    Returns:
        The names, and whether the file holds a simulation: a branch whose name ends in `Truth`.
    """
    from xec_jax.data.root.file import RootFile
    from xec_jax.nets.faces import CHANNELS

    inputs = list(task.spec if task.inputs is None else task.inputs)
    with RootFile(first, tree) as file:
        present = [name for name in dict.fromkeys((*task.spec, *more)) if file.has(name)]
        is_simulated = any(name.endswith("Truth") for name in file.names())
    sensors = [name for name in inputs if name in CHANNELS]
    if absent := [name for name in inputs if name not in sensors + present]:
        log.warning(
            "%s: no branch %s; what needs it becomes NaN", first, ", ".join(map(repr, absent))
        )
    truth = [name for name in task.spec if name not in (*inputs, *CHANNELS, "run", "event")]
    if not is_simulated and (measured := [name for name in MEASURED if name in present]):
        log.warning(
            "%s: no branch with a name ending in Truth: %s counts as measured and is no truth",
            *(first, ", ".join(map(repr, measured))),
        )
        present = [name for name in present if name not in measured]
    if task.truth and (unknown := [name for name in truth if name not in present]):
        log.warning("%s: no truth %s; no column true_... of it", first, ", ".join(unknown))
    return list(dict.fromkeys(sensors + present)), is_simulated


def complete(batch: Mapping[str, Any], task: "Task") -> dict[str, Any]:
    """Returns a batch with the marker of a missing value for every input that it lacks."""
    import jax.numpy as jnp

    from xec_jax.geometry import INVALID

    found = dict(batch)
    for name in task.inputs or ():
        if name not in found:
            shape = (len(batch["weight"]), *task.spec[name][0])
            found[name] = jnp.full(shape, INVALID, jnp.float32)
    return found


def dead_list_of(
    runs: "Sequence[SavedRun]", chosen: str | None, run_number: int | None
) -> str | None:
    """Returns the path of the list of dead channels, if there is one.

    Args:
        runs: Their `data.dead_channels` counts where nothing is chosen.
        chosen: A list in its place.
        run_number: Whose dead channels to leave out in all events.

    Raises:
        ConfigError: Runs with different lists, or a run number and no list.
    """
    lists = {run.config.data.dead_channels for run in runs}
    if chosen is None and len(lists) > 1:
        raise ConfigError(
            f"the runs have different data.dead_channels: {', '.join(map(str, lists))}",
            expected="one list for all of them",
            remedy="name it: --dead_channels LIST",
        )
    path = lists.pop() if chosen is None else chosen
    if path is None and run_number is not None:
        raise ConfigError(
            f"--run_number {run_number}, but no list of dead channels",
            expected="--dead_channels LIST, or a run with data.dead_channels",
        )
    return path


def leave_out(
    source: "Source", path: str, number: int | None, data: "ConfigDict", files: Sequence[Path]
) -> "tuple[Source, dict[str, Any]]":
    """Takes the sensors of a list out of all events; returns facts for the output, too.

    Args:
        source: The events.
        path: List of dead channels, see `xec_jax.data.dead`.
        number: The run whose channels are dead in all events; by the branch `run` if None.
        data: The group `data` that the source was opened with.
        files: The files of the source.
    """
    from xec_jax.data.dead import describe, mask, per_face, read_dead
    from xec_jax.data.dead_source import DeadSource, used_of

    patterns = read_dead(path)
    if number is not None:
        patterns = {None: mask(patterns, number, path)}
    source = DeadSource(source, patterns)
    counts = {}
    for run, dead in used_of(patterns, data, files, path).items():
        name = "all events" if run is None else f"run {run}"
        counts[name] = per_face(dead)
        if len(counts) <= 10:
            print(f"dead channels, {name}: {describe(dead)}")
    return source, {"list": path, "run_number": number, "per_face": counts}
