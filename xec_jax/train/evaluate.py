"""Metrics of a whole data set: sums over all its batches, divided once at the end."""

import math
from collections.abc import Callable, Mapping

import numpy as np

from xec_jax.data.prefetch import prefetch
from xec_jax.data.source import Source
from xec_jax.train import distributed
from xec_jax.train.step import EvalStep, Tally, bound_queue
from xec_jax.types import Batch, Key, Params


def evaluate(
    step: EvalStep,
    params: Params,
    source: Source,
    *,
    size: int,
    put: Callable[[Mapping[str, np.ndarray]], Batch],
    keys: frozenset[str],
    key: Key,
    timeout_s: float = math.inf,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Evaluates every event of a source exactly once.

    Random choices of the metrics (masks) are keyed with a fixed seed and the event's place in the
    set, so that two evaluations compare the same thing, whatever the size of their batches.

    Args:
        step: Compiled evaluation step.
        params: Parameters on the devices.
        source: Events; the last batch is padded with weight 0.
        size: Events per batch over all devices of all processes.
        put: Copies this process's part of a batch to its devices.
        keys: Names of the arrays that the step reads.
        key: Of the random choices, on the devices.
        timeout_s: How long to wait for a batch.
        stop: Polled between batches; True in any process ends the evaluation in all.

    Returns:
        Metrics, the same in all processes, or None if it was stopped.
    """
    index, count = distributed.index(), distributed.count()
    size //= count
    batches = source.steps_per_epoch(size=size, shards=count, train=False)
    tallies: list[Tally] = []
    stream = prefetch(
        source,
        start=0,
        stop=batches,
        size=size,
        shard=(index, count),
        train=False,
        put=put,
        keys=keys,
        timeout_s=timeout_s,
        interrupt=stop if count == 1 else lambda: False,
    )
    with stream:
        for _, _, batch in stream:
            if distributed.agree(stop()):
                return None
            tallies.append(step(params, batch, key))
            bound_queue(tallies)
    return Tally.means(tallies) if len(tallies) == batches else None
