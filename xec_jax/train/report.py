"""What the loop says of its steps: metrics, speed, and where the time went."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from xec_jax.data.prefetch import Clock
from xec_jax.train.nonfinite import SkipGuard
from xec_jax.train.records import Record
from xec_jax.train.step import Tally, TrainState, bound_queue
from xec_jax.train.stopwatch import Stopwatch
from xec_jax.train.system import limiting_stage, system_metrics
from xec_jax.train.trainer import Trainer

IDENTIFIERS = ("run", "event")


@dataclass
class Report:
    """Collects the steps of a loop until they are recorded.

    Attributes:
        trainer: What makes the steps.
        guard: Ends a run in which too many steps are skipped.
    """

    trainer: Trainer
    guard: SkipGuard
    _pending: list[Tally] = field(default_factory=list)
    _events: list[dict[str, np.ndarray]] = field(default_factory=list)
    _window: Stopwatch = field(default_factory=Stopwatch)
    _epoch: Stopwatch = field(default_factory=Stopwatch)

    def start(self, clock: Clock) -> None:
        """Starts the clocks, of which the data have one."""
        self._window, self._epoch = Stopwatch(clock), Stopwatch(clock)

    def add(self, tally: Tally, host: Mapping[str, np.ndarray]) -> None:
        """Takes what a step has handed to the devices; they are at most two steps behind.

        Args:
            tally: Sums of the step.
            host: The step's batch; only the identifiers of the events are kept.
        """
        self._pending.append(tally)
        self._events.append({name: host[name] for name in IDENTIFIERS if name in host})
        bound_queue(self._pending)

    @property
    def has_steps(self) -> bool:
        """Whether there is anything to record."""
        return bool(self._pending)

    def compiled(self) -> float:
        """Waits for the first step, so that the speed of the others does not include compiling.

        Returns:
            Seconds that it took.
        """
        jax.block_until_ready(self._pending[0].values)
        seconds = self._window.seconds
        self._window.restart(untimed=1)
        self._epoch.restart()
        return seconds

    def restart(self) -> None:
        """Leaves out of the next record what happened since the last one."""
        self._window.restart()

    def record(self, step: int, state: TrainState, *, is_epoch: bool) -> Record:
        """Returns the record of the steps since the last one: here the host waits."""
        trainer, window = self.trainer, self._window
        means = trainer.task.derive(Tally.means(self._pending))
        seconds, waited = window.seconds, window.spent.waited
        n_timed = len(self._pending) - window.untimed
        data_wait = min(waited / seconds, 1.0)
        record: dict[str, Any] = {
            "step": step,
            "split": "train",
            "epoch": step / trainer.steps_per_epoch,
            **means,
            "lr": float(trainer.schedule.rate(step - 1, state.plateau)),
            "events_per_s": n_timed * trainer.global_batch / seconds if n_timed else math.nan,
            "data_wait": data_wait,
            "compute_share": 1.0 - data_wait,
            "data_wait_s": waited / max(n_timed, 1),
            **system_metrics(trainer.mesh.local_devices),
        }
        if means["skipped"]:
            skipped = record["skipped_steps"] = self.guard.skipped(self._pending, step)
            batches = [self._events[i - step - 1] for i in skipped]
            record["skipped_events"] = [
                {name: [int(ids.min()), int(ids.max())] for name, ids in batch.items()}
                for batch in batches
            ]
        if is_epoch:
            record["epoch_s"], data = self._epoch.seconds, self._epoch.spent
            record["limited_by"] = limiting_stage(
                record["epoch_s"], waited=data.waited, read=data.reading, put=data.copying
            )
            self._epoch.restart()
        self._pending.clear()
        self._events.clear()
        window.restart()
        return record

    def check(self, record: Record, state: TrainState) -> None:
        """Judges the skipped steps of a record.

        Raises:
            DivergedError: Too many.
        """
        skipped = record.get("skipped_steps", ())
        self.guard.check(skipped, record["step"], int(state.skipped_in_row))
        if "epoch_s" in record:
            self.guard.end_epoch()
