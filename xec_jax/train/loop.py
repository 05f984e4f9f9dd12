"""The training loop, dull on purpose: batch, step, hooks; everything else stands elsewhere."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import jax
from ml_collections import ConfigDict

from xec_jax.data.source import Source
from xec_jax.errors import DataError, DivergedError, Preempted
from xec_jax.tasks.base import Task
from xec_jax.train import distributed, memory
from xec_jax.train.checkpoint import Checkpoints
from xec_jax.train.hooks import Hook, RunInfo, call
from xec_jax.train.mesh import local_copy
from xec_jax.train.nonfinite import SkipGuard, dump
from xec_jax.train.optim import describe_groups
from xec_jax.train.report import Report
from xec_jax.train.saver import Saver, first_state
from xec_jax.train.signals import AGAIN, StopFlag
from xec_jax.train.step import TrainState
from xec_jax.train.trainer import Trainer

GO_ON, SAVE, LEAVE = range(3)
SPIKE = 5.0  # a validation loss above this many times the best one is worth a warning


@dataclass
class FitResult:
    """What a training gives back.

    Attributes:
        state: Final state, on the devices.
        metrics: {validation set: metrics} of the last validation.
        steps_run: Steps made by this process.
    """

    state: TrainState
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    steps_run: int = 0


def fit(
    task: Task,
    config: ConfigDict,
    train: Source,
    valid: Mapping[str, Source],
    *,
    workdir: Path,
    state: TrainState | None = None,
    hooks: Sequence[Hook] = (),
    stop: StopFlag | None = None,
    trainer: Trainer | None = None,
) -> FitResult:
    """Trains a task until `train.epochs`, continuing from the newest checkpoint in the workdir.

    The state depends on the config, the data and the step number only: batches and random keys are
    functions of the step, so a run that was killed and resumed ends with the same parameters.

    Args:
        task: The experiment.
        config: Resolved config.
        train: Training events.
        valid: Validation sets by name; the first one's `loss` picks the best checkpoint.
        workdir: Run folder; checkpoints go into `checkpoints`.
        state: Starting state in place of a fresh one; a checkpoint in the workdir wins.
        hooks: Watchers, called in order.
        stop: Flag polled between steps and in validation; when set, the state is saved.
        trainer: Made of the first three, where the caller has one already.

    Raises:
        Preempted: The stop flag was set; the state is saved.
        DivergedError: Too many steps were not finite.
        CheckpointError: The checkpoints are those of another network, or damaged.
        DeviceMemoryError: A step does not fit into the memory of the devices.
        DiskError: The last state cannot be saved. Earlier ones may be missed with a warning.
    """
    trainer = trainer or Trainer(task, config, train)
    keep = {"keep_last": config.train.keep_last, "keep_best": config.train.keep_best}
    with (
        memory.explained(config),
        Checkpoints(workdir / "checkpoints", **keep) as checkpoints,
    ):
        state, is_validated = first_state(trainer, checkpoints, state)
        if int(state.step):
            call(hooks, "on_message", f"continuing after step {int(state.step)}")
        run = RunInfo(
            start_step=int(state.step),
            total_steps=trainer.total_steps,
            steps_per_epoch=trainer.steps_per_epoch,
            global_batch=trainer.global_batch,
            is_validated=is_validated,
            n_parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
            devices=trainer.devices,
        )
        stop = StopFlag() if stop is None else stop
        guard = SkipGuard(
            config.train.max_skipped_in_row,
            config.train.max_skipped_share * trainer.steps_per_epoch,
        )
        result = FitResult(trainer.for_steps(state))
        saver, report = Saver(checkpoints, trainer, hooks), Report(trainer, guard)
        loop = _Loop(trainer, run, result, valid, saver, workdir, hooks, stop, report)
        del state  # the loop replaces its own; a name here would keep the first one in memory
        call(hooks, "on_start", run)
        for line in describe_groups(trainer.state_shapes.params, config.optim, task.frozen):
            call(hooks, "on_message", line)
        try:
            if valid and not is_validated and loop.is_epoch_end(run.start_step):
                # The run was stopped between an epoch and its validation.
                loop.save(loop.validate(run.start_step))
            loop.run_over(train)
        finally:
            call(hooks, "on_end", run.start_step + loop.result.steps_run)
    return loop.result


@dataclass
class _Loop:
    """The state of the loop itself."""

    trainer: Trainer
    run: RunInfo
    result: FitResult
    valid: Mapping[str, Source]
    saver: Saver
    workdir: Path
    hooks: Sequence[Hook]
    stop: StopFlag
    report: Report
    best: float = math.inf

    def is_epoch_end(self, step: int) -> bool:
        """True where a validation is due."""
        steps = self.trainer.config.eval.every_epochs * self.run.steps_per_epoch
        return step > 0 and (step == self.run.total_steps or step % steps == 0)

    def run_over(self, train: Source) -> None:
        """Makes all steps that are left, and saves the last state."""
        try:
            self.make_steps(train)
        except DivergedError:
            self.explain(train)
            raise
        except (DataError, OSError):
            self.saver.rescue(self.result.state)
            raise
        self.explain(train)

    def make_steps(self, train: Source) -> None:
        """Batch, step, hooks, until the end or the stop flag."""
        config, run = self.trainer.config, self.run
        alone = distributed.count() == 1
        asked = (lambda: bool(self.stop)) if alone else (lambda: False)
        if distributed.agree(bool(self.stop)):
            self.preempt()  # before anything is compiled
        with self.trainer.stream(train, run.start_step, run.total_steps, asked) as stream:
            self.report.start(stream.clock)
            for number, host, batch in stream:
                step = number + 1
                self.result.state, tally = self.trainer.train_step(self.result.state, batch)
                self.result.steps_run += 1
                self.report.add(tally, host)
                if self.result.steps_run == 1:
                    text = f"compiled and made the first step in {self.report.compiled():.0f} s"
                    call(self.hooks, "on_message", text)
                call(self.hooks, "on_step", step)
                is_epoch = self.is_epoch_end(step)
                is_logged = is_epoch or step % config.log.every == 0
                wish = self.wish(is_logged)
                if is_logged or wish == LEAVE:
                    self.record(step, is_epoch=is_epoch)
                if wish == LEAVE:
                    self.preempt()
                if is_epoch and self.valid:
                    self.save(self.validate(step))
                    self.report.restart()
                elif is_epoch or wish == SAVE or step % config.train.save_every == 0:
                    self.save()
        if (step := int(self.result.state.step)) < run.total_steps:
            if self.report.has_steps:
                self.record(step, is_epoch=False)
            self.preempt()  # asked to stop while waiting for data

    def explain(self, train: Source) -> None:
        """Writes down what is known about the first step that was skipped, if any was."""
        if step := self.report.guard.first:
            params = local_copy(self.result.state.params, self.trainer.mesh)
            if distributed.is_first():
                dump(self.workdir, self.trainer, train, step, params)

    def wish(self, is_logged: bool) -> int:
        """Whether to go on, to save, or to save and leave.

        Several processes must decide the same thing at the same step. They agree where all of them
        wait for the devices anyway.
        """
        own = LEAVE if self.stop else SAVE if self.saver.is_due else GO_ON
        if distributed.count() == 1:
            return own
        return distributed.agree(own) if is_logged else GO_ON

    def record(self, step: int, *, is_epoch: bool) -> None:
        """Reports the steps since the last record: the only place where the host waits."""
        record = self.report.record(step, self.result.state, is_epoch=is_epoch)
        call(self.hooks, "on_record", record)
        self.report.check(record, self.result.state)

    def validate(self, step: int) -> float:
        """Evaluates all validation sets, reports them and returns the loss of the first."""
        params = self.result.state.eval_params
        try:
            metrics = self.trainer.validate(params, self.valid, lambda: bool(self.stop))
        except Exception:
            self.saver.rescue(self.result.state)
            raise
        if metrics is None:
            self.preempt()
        self.result.metrics = metrics
        for name, values in metrics.items():
            place = {"step": step, "split": name, "epoch": step / self.run.steps_per_epoch}
            call(self.hooks, "on_record", place | values)
        loss = next(iter(metrics.values()))["loss"]
        if loss > SPIKE * self.best:
            text = f"WARNING: validation loss {loss:.4g}, the best was {self.best:.4g}"
            call(self.hooks, "on_message", text)
        self.best = min(self.best, loss)
        self.result.state = self.trainer.after_validation(self.result.state, loss)
        call(self.hooks, "on_validation", step, local_copy(params, self.trainer.mesh))
        return loss

    def save(self, metric: float | None = None) -> None:
        """Saves the state; only the last one must succeed."""
        state = self.result.state
        self.saver.save(state, metric, last=int(state.step) == self.run.total_steps)

    def preempt(self) -> NoReturn:
        """Saves and leaves."""
        where = f"after step {int(self.result.state.step)}, state saved"
        if self.result.steps_run:
            self.saver.save(self.result.state, last=True)
        else:
            where = "before the first step"
        who = self.stop.signal or "a signal to another process"
        raise Preempted(f"stopped by {who} {where}", remedy=AGAIN)
