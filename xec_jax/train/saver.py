"""When a state may be saved, and what a full disk costs: a checkpoint, not the run."""

import logging
import math
import time
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from xec_jax.errors import DiskError, DivergedError
from xec_jax.train.checkpoint import Checkpoints
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
    """

    checkpoints: Checkpoints
    trainer: Trainer
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
        state = global_arrays(state, self.trainer.mesh)
        self._saved_at = time.monotonic()
        try:
            self.checkpoints.save(state, facts, metric)
        except DiskError as error:
            self._warn(error)
            if last:  # the error may have been that of the save before this one
                self.checkpoints.save(state, facts, metric)
        if last:
            self.checkpoints.wait()

    def _warn(self, error: DiskError) -> None:
        if not self._is_warned:
            log.warning("%s\n  training goes on without this checkpoint", error)
        self._is_warned = True


@jax.jit
def _all_finite(tree: object) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
