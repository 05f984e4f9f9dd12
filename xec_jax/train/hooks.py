"""What may happen beside the loop: things that watch a run without steering it."""

import contextlib
import logging
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from xec_jax.data.source import Source
from xec_jax.errors import DiskError
from xec_jax.tasks.base import Task
from xec_jax.train.records import Record, read_jsonl
from xec_jax.types import Params

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunInfo:
    """What a run is going to do, told to hooks at its start.

    Attributes:
        start_step: First step of this process; above 0 when resuming.
        total_steps: Step at which the run is complete.
        steps_per_epoch: Steps per pass over the training events.
        global_batch: Events per step over all devices and micro-batches.
        is_validated: Whether the first step's state needs no validation any more.
        n_parameters: Size of the network.
        devices: Number and kind of the devices, and how they are used.
    """

    start_step: int
    total_steps: int
    steps_per_epoch: int
    global_batch: int
    is_validated: bool = True
    n_parameters: int = 0
    devices: str = ""


class Hook:
    """Base of all hooks; every method does nothing by default.

    Hooks run on the host between steps. `on_step` is called at every step and must neither read
    device arrays nor take time.
    """

    def on_start(self, run: RunInfo) -> None:
        """Called once, after restoring and before the first step."""

    def on_step(self, step: int) -> None:
        """Called after step number `step` (1-based) was handed to the devices."""

    def on_record(self, record: Record) -> None:
        """Called with each line of metrics: `split` is "train" or the name of a validation set."""

    def on_message(self, text: str) -> None:
        """Called with a line for the user."""

    def on_validation(self, step: int, params: Params) -> None:
        """Called after each validation with the parameters that were validated."""

    def before_save(self, step: int) -> None:
        """Called before a state is saved; what it raises prevents that and ends the run."""

    def on_end(self, step: int) -> None:
        """Called when the loop ends, also after an error or a signal."""


class Drawing(Hook):
    """Base of hooks that draw: PNG after each validation, PDF once at the end.

    A figure that fails is reported and never ends a training.
    """

    def __init__(self, workdir: Path) -> None:
        self.folder = workdir / "figures"
        self.figures: dict[str, Any] = {}

    def draw(self, params: Params) -> Iterable[tuple[str, Any]]:
        """Returns (file stem, figure) pairs of the present state."""
        raise NotImplementedError

    def on_validation(self, step: int, params: Params) -> None:
        """Replaces the pictures in `workdir/figures`."""
        with _reported():
            self.figures = dict(self.draw(params))
            self._save("png")

    def on_end(self, step: int) -> None:
        """Saves the last figures for print; vector graphics take seconds."""
        with _reported():
            self._save("pdf")

    def _save(self, form: str) -> None:
        from xec_jax.plots.style import save

        for stem, figure in self.figures.items():
            save(figure, self.folder / stem, formats=(form,))


class Figures(Drawing):
    """Draws the task's figures from the first validation events."""

    def __init__(self, task: Task, source: Source, *, events: int, workdir: Path) -> None:
        super().__init__(workdir)
        self.task = task
        events = min(events, len(source))
        self.batch = source.batch(0, size=events, shard=(0, 1), seed=0, train=False)
        positions = np.arange(events, dtype=np.int32)
        self.batch |= {"_position": positions, "_step": np.zeros(events, np.int32)}
        predict = task.preview or task.predict
        self.predict = None if predict is None else jax.jit(predict)

    def draw(self, params: Params) -> Iterable[tuple[str, Any]]:
        """Predicts and hands the arrays to the task's `figures`."""
        if self.predict is None or self.task.figures is None:
            return ()
        arrays = {k: v for k, v in self.batch.items() if k in self.task.spec or k[0] == "_"}
        return self.task.figures({**self.batch, **jax.device_get(self.predict(params, arrays))})


class TrainingCurves(Drawing):
    """Draws loss, learning rate and speed of the whole run."""

    def __init__(self, workdir: Path) -> None:
        super().__init__(workdir)
        self.records = workdir / "metrics.jsonl"

    def draw(self, params: Params) -> Iterable[tuple[str, Any]]:
        """Reads the record of the run."""
        from xec_jax.plots.curves import training_curves

        yield "training_curves", training_curves(read_jsonl(self.records))


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    try:
        yield
    except (DiskError, OSError) as error:
        log.warning("%s", error)
    except Exception:
        log.warning("a figure failed:\n%s", traceback.format_exc())


def call(hooks: Sequence[Hook], name: str, *args: Any) -> None:
    """Calls one method of all hooks, in their order."""
    for hook in hooks:
        getattr(hook, name)(*args)


def format_metrics(metrics: Mapping[str, float], names: Sequence[str]) -> str:
    """Formats some metrics as `name 1.234  name 5.678`, leaving out what is absent."""
    return "  ".join(f"{name} {metrics[name]:.4g}" for name in names if name in metrics)
