"""Metrics of a whole data set: sums over all its batches, divided once at the end."""

from collections.abc import Callable, Mapping

import jax
import numpy as np

from xec_jax.data.prefetch import prefetch
from xec_jax.data.source import Source
from xec_jax.train.step import EvalStep, Tally, bound_queue
from xec_jax.types import Batch, Params


def evaluate(
    step: EvalStep,
    params: Params,
    source: Source,
    *,
    size: int,
    put: Callable[[Mapping[str, np.ndarray]], Batch],
    keys: frozenset[str],
    seed: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Evaluates every event of a source exactly once.

    Random choices of the metrics (masks) are keyed with a fixed seed and the event's place in the
    set, so that two evaluations compare the same thing, whatever the size of their batches.

    Args:
        step: Compiled evaluation step.
        params: Parameters on the devices.
        source: Events; the last batch is padded with weight 0.
        size: Events per batch over all devices.
        put: Copies a host batch to the devices.
        keys: Names of the arrays that the step reads.
        seed: Seed of the random choices.
        stop: Polled between batches; True ends the evaluation.

    Returns:
        Metrics, or None if it was stopped.
    """
    key = jax.random.PRNGKey(seed)
    batches = source.steps_per_epoch(size=size, shards=1, train=False)
    tallies: list[Tally] = []
    stream = prefetch(
        source, start=0, stop=batches, size=size, seed=seed, train=False, put=put, keys=keys
    )
    with stream:
        for _, _, batch in stream:
            if stop():
                return None
            tallies.append(step(params, batch, key))
            bound_queue(tallies)
    return Tally.means(tallies)
