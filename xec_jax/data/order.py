"""Which events a step takes: shards, epochs, padding and seeded shuffles, in integers only.

Shared by all sources, so that they cannot disagree. Knows nothing of files or arrays of events.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from xec_jax.errors import DataError


class Place(NamedTuple):
    """The events of one step, as positions in the order of the shard's epoch.

    Attributes:
        epoch: How often the shard has been seen completely before.
        start: First entry of the shard in the whole data set.
        stop: One past its last entry; the range is never empty.
        first: Position of the first event that is taken, counted inside the shard.
        taken: Number of events to take from there, at least 1 (the model for the padding).
        real: How many of them count; the rest of the batch is padding.
    """

    epoch: int
    start: int
    stop: int
    first: int
    taken: int
    real: int


def shard_range(n_events: int, shard: tuple[int, int], *, train: bool) -> tuple[int, int]:
    """Returns the entries `(start, stop)` that belong to a shard.

    In training all shards get the same number of events, and up to n - 1 events at the end
    belong to nobody; otherwise the ranges are an exact partition whose lengths differ by one at
    most (and may be empty).

    Raises:
        DataError: There are fewer events than shards in training.
        ValueError: `shard` is not `(i, n)` with 0 <= i < n.
    """
    index, count = shard
    if not 0 <= index < count:
        raise ValueError(f"shard {shard}: expected (i, n) with 0 <= i < n")
    if not train:
        return index * n_events // count, (index + 1) * n_events // count
    length = n_events // count
    if length == 0:
        raise DataError(
            f"{n_events} events for {count} processes",
            expected="at least one event for each process in training",
            remedy="add data or start fewer processes",
        )
    return index * length, (index + 1) * length


def steps_per_epoch(n_events: int, *, size: int, shards: int = 1, train: bool = True) -> int:
    """Returns the number of batches in an epoch, the same for every shard.

    Training counts full batches only, but at least one (padded if the shard is that small).
    Otherwise all events count: the longest shard decides, and shorter ones are padded.
    """
    if size < 1:
        raise ValueError(f"batch size {size}: expected at least 1")
    if train:
        return max(1, n_events // shards // size)
    return max(1, -(-n_events // (shards * size)))


def place(step: int, n_events: int, *, size: int, shard: tuple[int, int], train: bool) -> Place:
    """Finds the events of a step.

    Args:
        step: Counted from 0 over all epochs.
        n_events: Events in the whole data set, at least 1.
        size: Events in a batch of one shard.
        shard: `(i, n)`.
        train: See `shard_range` and `steps_per_epoch`.
    """
    if step < 0:
        raise ValueError(f"step {step}: expected 0 or more")
    start, stop = shard_range(n_events, shard, train=train)
    steps = steps_per_epoch(n_events, size=size, shards=shard[1], train=train)
    epoch, index = divmod(step, steps)
    real = min(max(stop - start - index * size, 0), size)
    if start == stop:  # a shard of nothing pads with any event of the data set
        start, stop = min(start, n_events - 1), min(start, n_events - 1) + 1
    first = min(index * size, stop - start - 1)
    return Place(epoch, start, stop, first, max(real, 1), real)


@lru_cache(maxsize=8)
def shuffled(n: int, *key: int) -> np.ndarray:
    """Returns a permutation of `range(n)` that depends on `key` alone.

    It ranks raw 64-bit words because numpy promises that these stay the same in all its
    versions, unlike the output of `Generator.permutation`: an old run must resume in its old
    order.

    Args:
        n: Length.
        *key: Any integers, for example seed and epoch.

    Returns:
        Read-only int64 array `[n]`.
    """
    words = np.random.PCG64(np.random.SeedSequence([k % 2**64 for k in key])).random_raw(n)
    ranks = np.argsort(words, kind="stable")
    ranks.setflags(write=False)
    return ranks


def pad(values: np.ndarray, taken: int) -> None:
    """Repeats event `taken - 1` in all later rows of `values`, in place."""
    values[taken:] = values[taken - 1]


def padding_weight(size: int, real: int) -> np.ndarray:
    """Returns float32 `[size]`: 1 for the first `real` events, 0 for the padding."""
    return (np.arange(size) < real).astype(np.float32)
