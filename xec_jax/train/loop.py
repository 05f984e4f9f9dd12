"""The training loop, dull on purpose: batch, step, hooks; everything else stands elsewhere."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from xec_jax.data.prefetch import prefetch
from xec_jax.data.source import Source
from xec_jax.errors import DivergedError, Preempted
from xec_jax.tasks.base import Task
from xec_jax.train.checkpoint import Checkpoints
from xec_jax.train.hooks import Hook, RunInfo, call
from xec_jax.train.mesh import replicated
from xec_jax.train.signals import StopFlag
from xec_jax.train.step import Tally, TrainState, bound_queue
from xec_jax.train.trainer import Trainer


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

    Raises:
        Preempted: The stop flag was set; the state is saved.
        DivergedError: Too many steps in a row were not finite.
        CheckpointError: The checkpoints are those of another network, or damaged.
        DiskError: The run folder cannot be written.
    """
    trainer = Trainer(task, config, train)
    keep = {"keep_last": config.train.keep_last, "keep_best": config.train.keep_best}
    with Checkpoints(workdir / "checkpoints", **keep) as checkpoints:
        is_validated = True
        if checkpoints.steps:
            state = checkpoints.restore(trainer.state_shapes(), replicated(trainer.mesh))
            is_validated = checkpoints.meta(int(state.step))["metric"] is not None
            call(hooks, "on_message", f"continuing after step {int(state.step)}")
        elif state is None:
            state = trainer.fresh_state()
        run = RunInfo(
            start_step=int(state.step),
            total_steps=trainer.total_steps,
            steps_per_epoch=trainer.steps_per_epoch,
            global_batch=trainer.global_batch,
            n_parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
            devices=trainer.devices,
        )
        stop = StopFlag() if stop is None else stop
        loop = _Loop(trainer, run, FitResult(state), valid, checkpoints, hooks, stop)
        del state  # the loop replaces its own; a name here would keep the first one in memory
        call(hooks, "on_start", run)
        try:
            if valid and not is_validated and loop.is_epoch_end(run.start_step):
                # The run was stopped between an epoch and its validation.
                loop.validate(run.start_step)
            loop.run_over(train)
            checkpoints.wait()
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
    checkpoints: Checkpoints
    hooks: Sequence[Hook]
    stop: StopFlag
    pending: list[Tally] = field(default_factory=list)
    window_start: float = 0.0
    waited_s: float = 0.0
    untimed_steps: int = 0

    def is_epoch_end(self, step: int) -> bool:
        """True where a validation is due."""
        steps = self.trainer.config.eval.every_epochs * self.run.steps_per_epoch
        return step > 0 and (step == self.run.total_steps or step % steps == 0)

    def run_over(self, train: Source) -> None:
        """Makes all steps that are left."""
        config, run = self.trainer.config, self.run
        stream = prefetch(
            train,
            start=run.start_step,
            stop=run.total_steps,
            size=run.global_batch,
            shard=(0, 1),
            seed=config.seed,
            train=True,
            depth=config.data.prefetch_factor,
            put=self.trainer.put,
            keys=self.trainer.keys,
        )
        self.window_start = time.monotonic()
        with stream:
            for number, _, batch in stream:
                step = number + 1
                self.result.state, tally = self.trainer.train_step(self.result.state, batch)
                self.result.steps_run += 1
                self.pending.append(tally)
                if self.result.steps_run == 1:
                    self.announce_compilation(tally)
                bound_queue(self.pending)
                call(self.hooks, "on_step", step)
                is_stopped = bool(self.stop)
                is_epoch = self.is_epoch_end(step)
                if is_epoch or is_stopped or step % config.log.every == 0:
                    self.record(step, stream.wait_s)
                if is_stopped:
                    self.preempt()
                if is_epoch and self.valid:
                    self.save(self.validate(step))
                    self.window_start = time.monotonic()
                elif is_epoch or step % config.train.save_every == 0:
                    self.save()

    def announce_compilation(self, first: Tally) -> None:
        """Waits for the first step, so that the speed of the others does not include compiling."""
        jax.block_until_ready(first.values)
        seconds = time.monotonic() - self.window_start
        call(self.hooks, "on_message", f"compiled and made the first step in {seconds:.0f} s")
        self.window_start, self.untimed_steps = time.monotonic(), 1

    def record(self, step: int, waited_s: float) -> None:
        """Reports the steps since the last record: the only place where the host waits."""
        means = self.trainer.task.derive(Tally.means(self.pending))
        now = time.monotonic()
        seconds = max(now - self.window_start, 1e-9)
        n_timed, self.untimed_steps = len(self.pending) - self.untimed_steps, 0
        record = {
            "step": step,
            "split": "train",
            "epoch": step / self.run.steps_per_epoch,
            **means,
            "lr": float(self.trainer.schedule(step - 1)),
            "events_per_s": n_timed * self.run.global_batch / seconds if n_timed else math.nan,
            "data_wait": min((waited_s - self.waited_s) / seconds, 1.0),
        }
        self.pending.clear()
        self.window_start, self.waited_s = now, waited_s
        call(self.hooks, "on_record", record)
        limit = self.trainer.config.train.max_skipped_in_row
        if (in_row := int(self.result.state.skipped_in_row)) >= limit:
            raise DivergedError(
                f"the last {in_row} updates up to step {step} were not finite and were skipped",
                expected=f"fewer than {limit} in a row (train.max_skipped_in_row)",
                remedy="lower optim.lr or optim.grad_clip, or look at the data with a short run; "
                "the checkpoints are from before the failure",
            )

    def validate(self, step: int) -> float:
        """Evaluates all validation sets, reports them and returns the loss of the first."""
        params = self.result.state.eval_params
        metrics = self.trainer.validate(params, self.valid, self.stop)
        if metrics is None:
            self.preempt()
        self.result.metrics = metrics
        for name, values in metrics.items():
            place = {"step": step, "split": name, "epoch": step / self.run.steps_per_epoch}
            call(self.hooks, "on_record", place | values)
        call(self.hooks, "on_validation", step, params)
        return next(iter(metrics.values()))["loss"]

    def save(self, metric: float | None = None) -> None:
        """Saves the state; a broken one must not replace a good checkpoint.

        Raises:
            DivergedError: Parameters that are not finite.
        """
        state = self.result.state
        if not bool(_all_finite(state.params)):
            raise DivergedError(
                f"parameters are not finite after step {int(state.step)}",
                remedy="set train.skip_nonfinite=true, or lower optim.lr; the checkpoints are from "
                "before the failure",
            )
        metric = metric if metric is not None and math.isfinite(metric) else None
        config = self.trainer.config.to_dict()
        facts = {"config": config, "record": dict(self.trainer.task.record), "metric": metric}
        self.checkpoints.save(state, facts, metric)

    def preempt(self) -> NoReturn:
        """Saves and leaves."""
        self.save()
        self.checkpoints.wait()
        raise Preempted(
            f"stopped by {self.stop.signal} after step {int(self.result.state.step)}, state saved",
            remedy="start the same command again to continue",
        )


@jax.jit
def _all_finite(tree: object) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
