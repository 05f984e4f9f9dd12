"""Runs as sources of weights: reading a run folder, and starting another run from it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from xec_jax.config import flatten
from xec_jax.errors import CheckpointError
from xec_jax.tasks.base import Task
from xec_jax.train.checkpoint import Checkpoints
from xec_jax.train.migrations import read_config
from xec_jax.train.optim import make_optimizer, parameter_path
from xec_jax.train.schedules import make_schedule
from xec_jax.train.step import init_state
from xec_jax.train.workdir import open_workdir
from xec_jax.types import Params

COMPARED = ("geometry", "normalization", "branches", "encoder")
"""Facts of a task's record that two runs must share to exchange weights."""


class SavedRun(NamedTuple):
    """What a run folder gives to others.

    Attributes:
        config: Resolved config.
        params: Parameters, on the default device.
        step: Step they are from.
        is_average: Whether they are the moving average.
        record: What the task recorded: geometry, normalization.
        metric: Validation loss of that step, None where there was no validation.
    """

    config: ConfigDict
    params: Params
    step: int
    is_average: bool
    record: Mapping[str, Any]
    metric: float | None = None


def load_run(workdir: Path, *, step: int | None = None, ema: bool = True) -> SavedRun:
    """Reads the weights of a run; no config file is executed.

    Args:
        workdir: The run folder.
        step: Which checkpoint; the best one by default, or the newest if none was validated.
        ema: Take the moving average of the parameters where there is one.

    Raises:
        CheckpointError: No such run, or a checkpoint that cannot be read.
    """
    config = read_config(workdir)
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        steps = checkpoints.steps
        if not steps or (step is not None and step not in steps):
            wanted = "" if step is None else f" of step {step}"
            raise CheckpointError(
                f"{workdir} has no checkpoint{wanted}",
                expected="one of " + (", ".join(map(str, steps)) or "them; there is none at all"),
            )
        if step is None:
            best = checkpoints.best_step
            step = steps[-1] if best is None else best
        params, is_average = checkpoints.restore_params(step, ema=ema)
        meta = checkpoints.meta(step)
    return SavedRun(config, params, step, is_average, meta["record"], meta.get("metric"))


def write_run(
    workdir: Path, config: ConfigDict, params: Params, task: Task, *, origin: Mapping[str, Any]
) -> None:
    """Writes parameters as a run that has made no step yet; training it goes on from them.

    Args:
        workdir: A new or empty folder.
        config: Resolved config of the task.
        params: Parameters of the task's network.
        task: The experiment.
        origin: JSON facts about where the parameters are from, kept with the checkpoint.

    Raises:
        CheckpointError: The folder is not empty.
        DiskError: The folder cannot be written.
    """
    open_workdir(workdir, config, record=task.record)
    schedule = make_schedule(config.optim, steps_per_epoch=1, epochs=config.train.epochs)
    tx = make_optimizer(config.optim, schedule, task.frozen)
    with_ema = config.optim.ema_decay is not None
    params = jax.tree.map(jnp.asarray, params)
    state = init_state(params, tx, seed=config.seed, with_ema=with_ema)
    state = state.replace(plateau=schedule.init())
    facts = {"config": config.to_dict(), "record": dict(task.record), "metric": None}
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save(state, facts | {"origin": dict(origin)})
        checkpoints.wait()


def hand_over(
    run: SavedRun, fresh: Params, record: Mapping[str, Any], config: ConfigDict
) -> tuple[Params, str]:
    """Replaces fresh parameters by those of another run, module by module.

    A module (the first part of a parameter's path: `encoder`, `head_energy`) that both networks
    have is taken over and must fit in every shape; modules that only the new network has stay
    fresh, those that only the other one has are left behind. A head whose numbers mean something
    else there (`record["modules"]`: another loss, another scale) stays fresh, too. Where only the
    first of two channels is predicted now (`record["channels"]`), the outputs for it are taken.

    Args:
        run: Where the weights come from.
        fresh: Initial parameters of the new network.
        record: Facts of the new task, compared with those of the run.
        config: Resolved config of the new task, to name what differs.

    Returns:
        The parameters, and a sentence that says what was taken.

    Raises:
        CheckpointError: Another geometry, normalization or branches, shapes that differ, or
            nothing in common.
    """
    there, here = dict(run.record), _plain(record)
    differing = [
        f"{name}: {there[name]} there, {here[name]} here"
        for name in COMPARED
        if name in there and name in here and there[name] != here[name]
    ]
    if differing and there.get("detector") != here.get("detector"):
        differing.insert(0, f"detector: {there.get('detector')} there, {here.get('detector')} here")
    meaning = [r.get("modules", {}) for r in (there, here)]
    same = [name for name in fresh if meaning[0].get(name) == meaning[1].get(name)]
    shared = [name for name in same if name in run.params]
    channels = [list(facts.get("channels", ())) for facts in (there, here)]
    taken = {name: jax.tree.map(jnp.asarray, run.params[name]) for name in shared}
    if len(channels[1]) < len(channels[0]) and channels[0][: len(channels[1])] == channels[1]:
        taken = {
            n: _first_outputs(values, fresh[n], *map(len, channels)) for n, values in taken.items()
        }
    for name in shared:
        old, new = _shapes({name: taken[name]}), _shapes({name: fresh[name]})
        differing += [
            f"{path}: {old.get(path, 'absent')} there, {new.get(path, 'absent')} here"
            for path in sorted(old | new)
            if old.get(path) != new.get(path)
        ]
    if differing:
        differing = _different_keys(run.config, config) + differing
        more = [f"and {len(differing) - 8} more"] if len(differing) > 8 else []
        raise CheckpointError(
            "the weights to start from belong to another network:\n    "
            + "\n    ".join(differing[:8] + more),
            expected="the same normalization, branches, geometry and widths",
            remedy="set these keys as in the config.json of that run, or train without "
            "train.init_from",
        )
    if not shared:
        raise CheckpointError(
            f"nothing to start from: that run has {', '.join(run.params)}",
            expected=f"one of {', '.join(fresh)}",
        )
    average = "moving average" if run.is_average else "parameters"
    left = [name for name in run.params if name not in shared]
    news = [name for name in fresh if name not in shared]
    count = sum(leaf.size for leaf in jax.tree.leaves(taken))
    text = f"loaded {count:,} {average} of step {run.step}: {', '.join(shared)}"
    text += f"; fresh: {', '.join(news)}" if news else ""
    text += f"; left behind: {', '.join(left)}" if left else ""
    return {**fresh, **taken}, text


def _first_outputs(values: Params, fresh: Params, n_old: int, n_new: int) -> Params:
    """Keeps the outputs for the first channels, wherever a parameter has one for each channel."""

    def fit(old: jax.Array, new: jax.Array) -> jax.Array:
        is_output = (*old.shape[:-1], n_new) == new.shape and old.shape[-1:] == (n_old,)
        return old[..., :n_new] if is_output and old.shape != new.shape else old

    same = _shapes(values).keys() == _shapes(fresh).keys()
    return jax.tree.map(fit, values, fresh) if same else values


def _different_keys(there: ConfigDict, here: ConfigDict) -> list[str]:
    """Lists the keys behind other shapes or inputs, as far as both configs have them."""
    old, new = flatten(there), flatten(here)
    kinds = ("model.", "data.normalization.", "data.npho_branch", "data.time_branch")
    harmless = ("dropout", "drop_path", "affine", "mask_", "maskable", "freeze", "heads")
    return [
        f"{key}: {old[key]!r} there, {new[key]!r} here"
        for key in sorted(old.keys() & new.keys())
        if key.startswith(kinds) and old[key] != new[key] and not any(h in key for h in harmless)
    ]


def _plain(value: Any) -> Any:
    """What JSON makes of a value: tuples become lists."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple | list) else value


def _shapes(tree: Params) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {parameter_path(path): tuple(leaf.shape) for path, leaf in leaves}
