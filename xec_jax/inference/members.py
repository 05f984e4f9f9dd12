"""Networks in run folders: one, an ensemble, or draws with dropout."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from xec_jax import trained
from xec_jax.errors import ConfigError
from xec_jax.inference.network import Answer, Network
from xec_jax.tasks.base import Task, example_batch
from xec_jax.train.saved import load_run


class Members(Network):
    """Networks, or draws of one network, that are asked the same question.

    Args:
        paths: Run folders.
        mc_dropout: Draws with dropout per network; 0 for none, and no dropout.
        seed: Seed of the draws.
        step: Checkpoint to use; the best one by default.
        ema: Take the moving average where there is one.

    Attributes:
        runs: What was read from the folders.

    Raises:
        CheckpointError: A folder without a trained network.
        ConfigError: Networks that predict nothing, or different things.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        mc_dropout: int = 0,
        seed: int = 0,
        step: int | None = None,
        ema: bool = True,
    ) -> None:
        self.runs = [load_run(path, step=step, ema=ema) for path in paths]
        tasks = trained.make_tasks(paths, self.runs)
        params = [run.params for run in self.runs]
        _check(paths, tasks, params)
        self.task = tasks[0]
        self.data = trained.data_to_read(self.runs[0])
        self.answers = _shapes(self.task)
        self.notes = {
            "runs": [str(path) for path in paths],
            "steps": [run.step for run in self.runs],
            "is_average": [run.is_average for run in self.runs],
            "mc_dropout": mc_dropout,
            "record": dict(self.task.record),
            "config": self.runs[0].config.to_dict(),
        }
        self._keys: list[Any] = [
            jax.random.fold_in(jax.random.PRNGKey(seed), i) for i in range(mc_dropout)
        ] or [None]
        steps: dict[int, Any] = {id(t): jax.jit(t.predict) for t in tasks if t.predict}
        self._networks = [(steps[id(t)], values) for t, values in zip(tasks, params, strict=True)]

    def __call__(self, batch: Mapping[str, Any]) -> Answer:
        """Returns the combined prediction of a batch; inputs that it lacks are invalid."""
        batch = trained.complete(batch, self.task)
        answers = [
            step(params, batch, key) for step, params in self._networks for key in self._keys
        ]
        return self.task.combine(jax.device_get(answers))


def _check(paths: Sequence[Path], tasks: Sequence[Task], params: Sequence[Any]) -> None:
    for path, task, values in zip(paths, tasks, params, strict=True):
        if task.predict is None:
            raise ConfigError(f"{path}: task {task.name} predicts nothing")
        trained.check_parts(path, task, values)
    for (a, first), (b, other) in itertools.pairwise(zip(paths, tasks, strict=True)):
        for fact in ("branches", "normalization"):
            if first.record.get(fact) != other.record.get(fact):
                raise ConfigError(
                    f"{a} and {b} have different {fact}: they cannot read the same files",
                    expected="runs with equal inputs",
                )
        answers = [_shapes(task) for task in (first, other)]
        if first.name != other.name or answers[0] != answers[1]:
            differing = [f"{k} {shape}" for k, shape in answers[0].items() ^ answers[1].items()]
            what = ", ".join(differing) or f"tasks {first.name} and {other.name}"
            found = f"{a} and {b} predict different things: {what}"
            raise ConfigError(found, expected="runs of one task with the same outputs")


def _shapes(task: Task) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what a task predicts for an event, without computing it."""
    batch = example_batch(task.spec, 2)
    params = jax.eval_shape(task.init, jax.random.PRNGKey(0), batch)
    assert task.predict is not None
    found = jax.eval_shape(task.predict, params, batch)
    return {name: value.shape[1:] for name, value in found.items()}
