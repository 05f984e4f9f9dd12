"""Steps whose loss or gradient is not finite: counted, skipped, and explained at the end."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from xec_jax.config import write_text
from xec_jax.data.source import Source
from xec_jax.errors import DivergedError
from xec_jax.train.step import Tally
from xec_jax.train.trainer import Trainer
from xec_jax.types import Params

KEPT = 64  # events in the dump

log = logging.getLogger(__name__)


class SkipGuard:
    """Counts skipped steps and ends a run that has too many of them.

    Args:
        in_row: So many in a row are too many.
        per_epoch: So many in an epoch are too many.
    """

    def __init__(self, in_row: int, per_epoch: float) -> None:
        self.in_row, self.per_epoch = in_row, per_epoch
        self.first = 0  # step, the first one that was skipped
        self._this_epoch: list[int] = []

    def skipped(self, tallies: Sequence[Tally], step: int) -> list[int]:
        """Returns which of the steps up to `step`, one for each tally, were skipped."""
        row = tallies[0].names.index("skipped")
        flags = jax.device_get([tally.values[row, 0] for tally in tallies])
        first = step - len(flags) + 1
        return [first + i for i, flag in enumerate(flags) if flag]

    def check(self, skipped: Sequence[int], step: int, in_row: int) -> None:
        """Takes the skipped steps of one record.

        Raises:
            DivergedError: Too many.
        """
        self._this_epoch += skipped
        self.first = self.first or (skipped[0] if skipped else 0)
        n = len(self._this_epoch)
        if in_row < self.in_row and n <= max(self.per_epoch, self.in_row):
            return
        which = f"last {in_row}" if in_row >= self.in_row else f"{n} of this epoch's"
        raise DivergedError(
            f"the {which} updates up to step {step} were not finite and were skipped",
            expected=f"fewer than {self.in_row} in a row (train.max_skipped_in_row) and not more "
            f"than {max(self.per_epoch, self.in_row):.0f} in an epoch (train.max_skipped_share)",
            remedy="nonfinite.json in the run folder says what the batch held; lower optim.lr or "
            "optim.grad_clip, or mend the data; the checkpoints are from before the failure",
        )

    def end_epoch(self) -> None:
        """Starts to count anew."""
        self._this_epoch.clear()


def dump(workdir: Path, trainer: Trainer, source: Source, step: int, params: Params) -> None:
    """Writes what can be known about a step that was skipped; never raises.

    `nonfinite.json` holds, for each array of the step's batch, its range and how many values are
    not finite, the identifiers of the events concerned, and the norm of the gradient for each
    module and micro-batch; `nonfinite.npz` the events concerned, or the first ones if all inputs
    are finite. Batches are functions of the step, so nothing had to be kept for this.

    Args:
        workdir: Run folder.
        trainer: The task on its devices.
        source: Training events, used by nobody else any more.
        step: The step (1-based) that was skipped.
        params: The parameters that the run has now, which may have moved since.
    """
    try:
        batch = source.batch(
            step - 1, size=trainer.global_batch, seed=trainer.config.seed, train=True
        )
        rows = suspects(batch)
        chosen = rows[:KEPT] if len(rows) else np.arange(min(KEPT, trainer.global_batch))
        kept: dict[str, Any] = {name: array[chosen] for name, array in batch.items()}
        np.savez_compressed(workdir / "nonfinite.npz", **kept)
        report = {
            "step": step,
            "inputs": {name: _describe(array) for name, array in batch.items()},
            "events": {n: batch[n][rows].tolist() for n in ("run", "event") if n in batch},
            "rows": rows.tolist(),
            "parameters": {
                name: sum(int((~jnp.isfinite(x)).sum()) for x in jax.tree.leaves(module))
                for name, module in params.items()
            },
        }
        path = workdir / "nonfinite.json"
        write_text(path, json.dumps(report, indent=2) + "\n")
        report["gradient_norms"] = _gradient_norms(trainer, batch, step, params)
        write_text(path, json.dumps(report, indent=2) + "\n")
    except Exception as error:  # out of memory, a full disk: the failure itself is what counts
        log.warning("no complete report on step %d: %s: %s", step, type(error).__name__, error)


def suspects(batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns the rows of a batch with a value that is not finite."""
    bad = np.zeros(len(batch["weight"]), bool)
    for array in batch.values():
        if array.dtype.kind == "f":
            bad |= ~np.isfinite(array).reshape(len(array), -1).all(1)
    return np.flatnonzero(bad)


def _describe(array: np.ndarray) -> dict[str, Any]:
    if array.dtype.kind != "f":
        return {"min": array.min().item(), "max": array.max().item()}
    finite = array[np.isfinite(array)]
    numbers: dict[str, Any] = {"not_finite": int(array.size - finite.size)}
    if finite.size:
        numbers |= {"min": float(finite.min()), "max": float(finite.max())}
        numbers["mean"] = float(finite.mean(dtype=np.float64))
    return numbers


def _gradient_norms(
    trainer: Trainer, batch: Mapping[str, np.ndarray], step: int, params: Params
) -> list[dict[str, str]]:
    """Norm of the gradient of the summed loss terms, per module, for each micro-batch."""
    key = jax.random.fold_in(jax.random.PRNGKey(trainer.config.seed), step - 1)

    @jax.jit
    def norms(params: Params, part: Any) -> dict[str, jax.Array]:
        def total(params: Params) -> jax.Array:
            terms, _ = trainer.task.loss(params, part, key)
            return jnp.stack([term.total for term in terms.values()]).sum()

        return {name: optax.tree.norm(g) for name, g in jax.grad(total)(params).items()}

    size = trainer.config.data.batch_size  # one device takes a micro-batch at a time
    whole = dict(batch)
    whole["_position"] = np.arange(trainer.global_batch, dtype=np.int32)
    whole["_step"] = np.full(trainer.global_batch, step - 1, np.int32)
    parts = [
        {name: array[i : i + size] for name, array in whole.items() if name in trainer.keys}
        for i in range(0, trainer.global_batch, size)
    ]
    # As text: JSON has no word for NaN.
    return [
        {name: f"{float(value):.4g}" for name, value in norms(params, part).items()}
        for part in parts
    ]
