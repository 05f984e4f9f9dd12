"""Learning rates as functions of the step, and of the validations where they follow a plateau."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import flax.struct
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from xec_jax.errors import ConfigError
from xec_jax.types import Array, ArrayLike

SCHEDULERS = ("none", "cosine", "onecycle", "plateau", "cosine_restarts")
IMPROVEMENT = 1e-4
"""Share of the best validation loss by which another one must be lower to count as better."""


class Plateau(flax.struct.PyTreeNode):
    """What a rate that follows the validations has to remember; part of the training state.

    Attributes:
        scale: float32, factor on the rate by all reductions so far.
        best: float32, lowest validation loss; inf before the first.
        waited: int32, validations without improvement since the last one or the last reduction.
    """

    scale: Array
    best: Array
    waited: Array


@dataclass(frozen=True)
class Schedule:
    """The learning rate of a run.

    Attributes:
        curve: Rate as a function of the completed steps, without reductions.
        patience: Validations without improvement that are let pass; None if they do not matter.
        factor: Of a reduction.
        floor: No reduction goes below this rate.
    """

    curve: Callable[[ArrayLike | int], Array]
    patience: int | None = None
    factor: float = 1.0
    floor: float = 0.0

    def init(self) -> Plateau | None:
        """Returns the state before the first validation; None if the step says everything."""
        if self.patience is None:
            return None
        zero = jnp.zeros((), jnp.float32)
        return Plateau(zero + 1, zero + jnp.inf, jnp.zeros((), jnp.int32))

    def rate(self, step: ArrayLike | int, plateau: Plateau | None = None) -> Array:
        """Returns the rate of the update that follows `step` completed ones."""
        rate = self.curve(step)
        if self.patience is None:
            return rate
        if plateau is None:
            raise ValueError("a rate that follows validations needs their state")
        # A warm-up that begins below the floor is not lifted to it.
        return jnp.maximum(rate * plateau.scale, jnp.minimum(rate, self.floor))

    def after_validation(self, plateau: Plateau | None, loss: ArrayLike | float) -> Plateau | None:
        """Returns the state after a validation; a loss that is NaN is no improvement."""
        if plateau is None or self.patience is None:
            return plateau
        loss, best = jnp.asarray(loss, jnp.float32), plateau.best
        # Losses with learned variances can be negative, where a factor would ask for less.
        margin = jnp.where(jnp.isinf(best), 0, IMPROVEMENT * jnp.abs(best))
        is_better = loss < best - margin
        waited = jnp.where(is_better, 0, plateau.waited + 1)
        is_due = waited > self.patience
        return Plateau(
            scale=jnp.where(is_due, plateau.scale * self.factor, plateau.scale),
            best=jnp.where(is_better, loss, best),
            waited=jnp.where(is_due, 0, waited),
        )


def make_schedule(optim: ConfigDict, *, steps_per_epoch: int, epochs: int) -> Schedule:
    """Builds the schedule `optim.lr_scheduler`; docs/optimizers.md has the formulas.

    Time goes by in epochs, or in steps if `optim.lr_per_step`. A warm-up precedes all schedules but
    the constant one and `onecycle`, which has a rise of its own.

    Args:
        optim: The group `optim` of a config.
        steps_per_epoch: From 1.
        epochs: Those of the whole run, from 1.

    Raises:
        ConfigError: Unknown schedule, or a value out of its range.
    """
    name = optim.lr_scheduler or "none"
    _check(optim, name, epochs)
    per_epoch = steps_per_epoch if optim.lr_per_step else 1
    lr, low, end = optim.lr, optim.lr_min, epochs * per_epoch
    warmup = optim.warmup_epochs * per_epoch
    peak = lr if optim.max_lr is None else optim.max_lr
    top = max(optim.pct_start * end - 1, 0)
    edges = [warmup]
    while edges[-1] < end:
        length = optim.lr_restart_period * optim.lr_restart_mult ** (len(edges) - 1)
        edges.append(edges[-1] + length * per_epoch)
    restarts = np.asarray(edges, np.float32)

    def after_warmup(time: Array) -> Array:
        if name == "cosine":
            return _swing(lr, low, (time - warmup) / (end - warmup))
        if name == "cosine_restarts":
            last = jnp.searchsorted(restarts[1:-1], time, side="right")
            begin, length = jnp.asarray(restarts)[last], jnp.asarray(np.diff(restarts))[last]
            return _swing(lr, low, (time - begin) / length)
        if name == "onecycle":
            rise = _swing(peak / 25, peak, time / (top or 1))
            fall = _swing(peak, peak / 25e4, (time - top) / (max(end - 1 - top, 0) or 1))
            return jnp.where(time < top, rise, fall)
        return jnp.full_like(time, lr)

    def curve(step: ArrayLike | int) -> Array:
        # Whole numbers: a quotient that is rounded down would depend on the device's division.
        whole = jnp.asarray(step) // (1 if optim.lr_per_step else steps_per_epoch)
        time = whole.astype(jnp.float32)
        if name in ("none", "onecycle"):
            return after_warmup(time)
        rise = lr * (0.01 + 0.99 * time / (warmup or 1))
        return jnp.where(time < warmup, rise, after_warmup(time))

    if name == "plateau":
        return Schedule(curve, optim.lr_patience, optim.lr_factor, low)
    return Schedule(curve)


def _swing(start: float, stop: float, share: Array) -> Array:
    """Half a wave from `start` to `stop` while `share` goes from 0 to 1."""
    angle = 0.5 * jnp.pi * jnp.clip(share, 0, 1)
    return start * jnp.cos(angle) ** 2 + stop * jnp.sin(angle) ** 2  # exact at both ends


def _check(optim: ConfigDict, name: str, epochs: int) -> None:
    if name not in SCHEDULERS:
        raise ConfigError(
            f"optim.lr_scheduler is {name!r}", expected="one of " + ", ".join(SCHEDULERS)
        )
    if not 0 <= optim.warmup_epochs < max(epochs, 1):
        raise ConfigError(
            f"optim.warmup_epochs is {optim.warmup_epochs} in a run of {epochs} epochs",
            expected="0 <= warmup_epochs < train.epochs",
            remedy="set optim.warmup_epochs below train.epochs, 0 for none",
        )
    ends_low = name in ("cosine", "plateau", "cosine_restarts")
    ranges = {
        "lr": (0 <= optim.lr < math.inf, "0 or more"),
        "lr_min": (0 <= optim.lr_min <= (optim.lr if ends_low else math.inf), "from 0 to optim.lr"),
        "max_lr": (optim.max_lr is None or 0 < optim.max_lr < math.inf, "above 0, None for lr"),
        "pct_start": (0 < optim.pct_start < 1, "between 0 and 1"),
        "lr_patience": (_is_whole(optim.lr_patience, 0), "a whole number from 0"),
        "lr_factor": (0 < optim.lr_factor < 1, "between 0 and 1"),
        "lr_restart_period": (_is_whole(optim.lr_restart_period, 1), "a whole number from 1"),
        "lr_restart_mult": (_is_whole(optim.lr_restart_mult, 1), "a whole number from 1"),
    }
    for key, (is_inside, expected) in ranges.items():
        if not is_inside:
            raise ConfigError(f"optim.{key} is {optim[key]}", expected=expected)


def _is_whole(value: float, least: int) -> bool:
    return least <= value < math.inf and value == int(value)
