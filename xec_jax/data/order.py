"""Which events a step takes: epochs, shards, padding and seeded shuffles, in integers only.

Shared by all sources, so that they cannot disagree. Knows nothing of files or arrays of events.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np


class Place(NamedTuple):
    """The events that one shard takes in one step, as positions in the order of the epoch.

    Attributes:
        epoch: How often the data set has been seen completely before.
        first: Position of the first event that is taken.
        taken: Number of events to take from there, at least 1 (the model for the padding).
        real: How many of them count; the rest of the shard is padding.
    """

    epoch: int
    first: int
    taken: int
    real: int


def steps_per_epoch(n_events: int, *, size: int, shards: int = 1, train: bool = True) -> int:
    """Returns the number of batches in an epoch.

    Training counts full batches only, but at least one (padded if there are so few events).
    Otherwise all events count, and the last batch is padded.
    """
    if size < 1:
        raise ValueError(f"batch size {size}: expected at least 1")
    whole = shards * size
    return max(1, n_events // whole if train else -(-n_events // whole))


def place(step: int, n_events: int, *, size: int, shard: tuple[int, int], train: bool) -> Place:
    """Finds the events of a step.

    The batch of a step has `n * size` rows and is the same for every n: shard i holds its rows
    `i * size` to `(i + 1) * size`, the padding included.

    Args:
        step: Counted from 0 over all epochs.
        n_events: Events in the data set, at least 1.
        size: Events in the part of one shard.
        shard: `(i, n)`.
        train: See `steps_per_epoch`.

    Raises:
        ValueError: A step, size or shard that cannot be.
    """
    index, count = shard
    if step < 0:
        raise ValueError(f"step {step}: expected 0 or more")
    if not 0 <= index < count:
        raise ValueError(f"shard {shard}: expected (i, n) with 0 <= i < n")
    steps = steps_per_epoch(n_events, size=size, shards=count, train=train)
    epoch, number = divmod(step, steps)
    begin = number * count * size
    end = min(begin + count * size, n_events)  # of the events that count in this step
    first = begin + index * size
    real = min(max(end - first, 0), size)
    return Place(epoch, min(first, end - 1), max(real, 1), real)


def key(seed: int, epoch: int) -> tuple[int, ...]:
    """Returns what the order of an epoch depends on; the 0 is part of the order of old runs."""
    return seed, epoch, 0


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
