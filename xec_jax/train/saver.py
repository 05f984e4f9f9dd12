"""When a state may be saved, and what a full disk costs: a checkpoint, not the run."""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from xec_jax.errors import DiskError, DivergedError, XecError
from xec_jax.train import distributed
from xec_jax.train.checkpoint import Checkpoints
from xec_jax.train.hooks import Hook, call
from xec_jax.train.mesh import global_arrays
from xec_jax.train.step import TrainState
from xec_jax.train.trainer import Trainer

log = logging.getLogger(__name__)


@dataclass
class Saver:
    """Saves the states of a loop.

    Attributes:
        checkpoints: Where to.
        trainer: What the states belong to.
        hooks: Asked before each save.
    """

    checkpoints: Checkpoints
    trainer: Trainer
    hooks: Sequence[Hook] = ()
    _saved_at: float = field(default_factory=time.monotonic)
    _is_warned: bool = False

    @property
    def is_due(self) -> bool:
        """True when `train.save_minutes` have passed since the last save."""
        minutes = self.trainer.config.train.save_minutes
        return minutes > 0 and time.monotonic() - self._saved_at > 60 * minutes

    def save(self, state: TrainState, metric: float | None = None, *, last: bool = False) -> None:
        """Starts saving a state; the write goes on in the background.

        Args:
            state: The state; one that is broken must not replace a good checkpoint.
            metric: Validation loss.
            last: Wait until it is on disk; nothing comes after it that could make up for it.

        Raises:
            DivergedError: Parameters that are not finite.
            CheckpointError: The folder was lost to another job.
            DiskError: The last state cannot be saved. The others are missed with one warning.
        """
        if not bool(_all_finite(state.params)):
            raise DivergedError(
                f"parameters are not finite after step {int(state.step)}",
                remedy="set train.skip_nonfinite=true, or lower optim.lr; the checkpoints are from "
                "before the failure",
            )
        facts = {
            "config": self.trainer.config.to_dict(),
            "record": dict(self.trainer.task.record),
            "is_validated": metric is not None,
        }
        if metric is not None and not math.isfinite(metric):
            metric = None
        step = int(state.step)
        distributed.first_does(lambda: call(self.hooks, "before_save", step))
        state = global_arrays(state, self.trainer.mesh)
        self._saved_at = time.monotonic()
        try:
            self.checkpoints.save(state, facts, metric)
        except DiskError as error:
            if last:
                raise
            if not self._is_warned:
                log.warning("%s\n  training goes on without this checkpoint", error)
            self._is_warned = True
        if last:
            self.checkpoints.wait()

    def rescue(self, state: TrainState) -> None:
        """Saves what was learned before an error of the data; that error is what counts.

        Several processes save together or not at all, and the others know nothing of this error.
        """
        if distributed.count() > 1 or not int(state.step):
            return
        try:
            self.save(state, last=True)
        except XecError as error:
            log.warning("nothing saved: %s", error)


def first_state(
    trainer: Trainer, checkpoints: Checkpoints, start: TrainState | None
) -> tuple[TrainState, bool]:
    """Returns the state that a loop begins with, and whether it was validated if that was due.

    Args:
        trainer: What makes the steps.
        checkpoints: Of the run; the newest one wins.
        start: Otherwise; a fresh one if None.
    """
    if not distributed.first_does(lambda: checkpoints.steps):
        return trainer.fresh_state() if start is None else start, True
    state = checkpoints.restore(trainer.state_shapes, trainer.shardings)
    facts = checkpoints.meta(int(state.step))
    has_metric = facts["metric"] is not None
    saw_it = facts.get("is_validated", has_metric)
    if has_metric and not saw_it:  # validated after it was saved, by a resumed run
        state = trainer.after_validation(state, facts["metric"])
    return state, has_metric or saw_it


@jax.jit
def _all_finite(tree: object) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
