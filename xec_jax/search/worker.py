"""A worker: takes trials, trains them one after another, and enters what came out."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from xec_jax.config import nearest
from xec_jax.errors import (
    ConfigError,
    DeviceMemoryError,
    DiskError,
    DivergedError,
    Preempted,
)
from xec_jax.search import trial as trials
from xec_jax.search.results import short, write_results
from xec_jax.search.study import COMPLETE, FAILED, PRUNED, Study
from xec_jax.train.records import Record
from xec_jax.train.signals import AGAIN, StopFlag

if TYPE_CHECKING:
    from xec_jax.search.study import Trial

PATIENCE = 3
"""Refused trials, the first ones of a worker, after which all would be refused."""


@dataclass
class Worker:
    """One process that works on a study.

    Attributes:
        study: The study.
        stop: Set when the worker shall leave.
    """

    study: Study
    stop: StopFlag
    n_done: int = 0
    n_refused: int = 0

    def run(self, limit: int, hours: float) -> None:
        """Works until the study has so many trials, the time is over, or the worker is told to go.

        A training that has begun is not cut short by the time.

        Raises:
            XecError: See `work` and `Study`.
        """
        end = time.monotonic() + 3600 * hours
        while time.monotonic() < end:
            if self.stop:
                raise Preempted("stopped between trials", remedy=AGAIN)
            with self.study.next_trial(limit) as trial:
                if trial is None:
                    return
                values = [f"{key}={short(value)}" for key, value in trial.params.items()]
                print(f"trial {trial.number}: {', '.join(values)}", flush=True)
                try:
                    print(f"trial {trial.number}: {self.work(trial)}", flush=True)
                finally:
                    write_results(self.study)
            self.study.check()  # trainings read the config file themselves

    def work(self, trial: "Trial") -> str:
        """Trains one trial to its end and returns how it ended, in a few words.

        Raises:
            Preempted: The worker or the training was told to stop; the trial can be continued.
            ConfigError: The metric does not exist, or the first trials were all refused.
            DiskError: The training could not write.
        """
        study, number = self.study, trial.number
        log, workdir = study.log(number), study.workdir(number)
        curve: dict[int, float | None] = {}  # step -> value, of the first validation set

        def report(record: Record) -> bool:
            step = record["step"]
            if record.get("split") == "train" or step in curve:
                return False
            if self.study.plan.metric not in record:
                raise self._no_such_metric(record)
            value = curve[step] = record[self.study.plan.metric]
            return value is not None and study.report(trial, len(curve), float(value))

        code, is_pruned = trials.run(
            study.plan.command(trial.params, workdir),
            log=log,
            record=workdir / "metrics.jsonl",
            report=report,
            stop=self.stop,
        )
        finite = [v for v in curve.values() if v is not None and math.isfinite(v)]
        value = study.plan.better(finite) if finite else None
        if code != 0 and not is_pruned and (self.stop or code in (75, 130)):
            raise Preempted(
                f"stopped during trial {number}; its training can be continued",
                remedy=AGAIN,
            )
        if code == DiskError.exit_code:
            raise DiskError(f"trial {number} cannot write:\n{trials.last_words(log)}")
        state, note = self._judge(code, is_pruned, value, len(curve), log)
        study.finish(trial, state, value, note)
        self.n_done += 1
        # Too large for the devices is up to the values of the trial: the next one may fit.
        is_too_large = f"\n{DeviceMemoryError.__name__}: " in note
        self.n_refused += code == ConfigError.exit_code and not is_too_large
        if self.n_refused == self.n_done == PATIENCE:
            raise ConfigError(
                f"the first {PATIENCE} trials were all refused, the last one with\n{note}",
                expected="a config that can be trained, whatever the space adds",
                remedy=f"try it by hand; the output of the trial is {log}",
            )
        shown = (
            f"{self.study.plan.metric} {value:.6g}" if state == COMPLETE else note.splitlines()[0]
        )
        return f"{state}, {shown}"

    def _judge(
        self, code: int, is_pruned: bool, value: float | None, validations: int, log: Path
    ) -> tuple[str, str]:
        """Returns state and note of a trial that has ended."""
        if code == 0 and value is not None:
            return COMPLETE, ""
        if is_pruned:
            return PRUNED, f"worse than the median at validation {validations}"
        if code == DivergedError.exit_code:
            # Pruned, not failed: the sampler keeps away from pruned trials, failed ones it forgets.
            return PRUNED, f"diverged\n{trials.last_words(log)}"
        if code == 0:
            return FAILED, f"no finite {self.study.plan.metric} on validation events"
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return FAILED, f"{how}\n{trials.last_words(log)}"

    def _no_such_metric(self, record: Record) -> ConfigError:
        known = [k for k in record if k not in ("step", "split", "epoch", "time", "elapsed_s")]
        return ConfigError(
            f"no metric {self.study.plan.metric!r} in the validation of this task",
            expected=nearest(self.study.plan.metric, known),
            remedy="choose it with --metric, and a new --output",
        )
