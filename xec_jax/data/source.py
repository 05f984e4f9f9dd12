"""What the training loop may ask of a data source."""

import hashlib
from collections.abc import Collection, Mapping
from typing import Any, Protocol

import numpy as np

from xec_jax.errors import ConfigError

Spec = Mapping[str, tuple[tuple[int, ...], np.dtype]]
"""Per key of a batch: the shape of one event and the dtype."""


class Source(Protocol):
    """Events in batches of a fixed shape, addressed by the step number.

    `batch` is pure in `step`: a fresh source and one that has served a million batches in any
    order return the same arrays. Resuming therefore needs nothing but the step.

    Every batch has the key `weight` (float32): 0 marks padding, 1 a real event unless the data
    bring weights of their own. Padding repeats a real event, so that nothing downstream meets
    values that do not occur in data (a zero vector to normalize, say). The arrays are fresh:
    the source never touches them again.

    Attributes:
        spec: Shape of one event and dtype for each key of a batch.
    """

    spec: Spec

    @property
    def fingerprint(self) -> str:
        """A hash that changes when the events do; a resumed run compares it."""
        ...

    def __len__(self) -> int:
        """Returns the number of events."""
        ...

    def steps_per_epoch(self, *, size: int, shards: int = 1, train: bool = True) -> int:
        """Returns the number of batches after which every event has been seen.

        Args:
            size: Events in the part of one shard.
            shards: Number of shards (processes) that share each batch.
            train: Counts full batches only (at least one); else the padded last one, too.
        """
        ...

    def batch(
        self,
        step: int,
        *,
        size: int,
        shard: tuple[int, int] = (0, 1),
        seed: int = 0,
        train: bool = True,
    ) -> dict[str, np.ndarray]:
        """Returns the events of one step.

        Args:
            step: Counted from 0 over all epochs; each epoch of training has its own order.
            size: Events in the part of one shard.
            shard: This shard and the number of shards, `(i, n)` with 0 <= i < n: rows `i * size`
                to `(i + 1) * size` of the batch of `n * size` events. That batch depends on its
                length but not on n, so a run may go on with another number of processes.
            seed: Seed of the order of the events.
            train: Shuffles and drops the remainder; else file order with a padded last batch,
                starting again from the first event after the last one.

        Returns:
            An array `[size, ...]` for each key of `spec`.
        """
        ...

    def close(self) -> None:
        """Releases files and threads."""
        ...


class ChangedSource:
    """A source that changes the batches of another one; everything else is passed on.

    Args:
        source: Where the events come from.
        mark: Says what is changed, for the fingerprint.
    """

    def __init__(self, source: Source, mark: str) -> None:
        self._source, self._mark = source, mark
        self.spec = source.spec

    def change(self, batch: dict[str, np.ndarray], train: bool) -> None:
        """Changes a batch of the other source in place."""
        raise NotImplementedError

    @property
    def fingerprint(self) -> str:
        """Hash of the events and of the change."""
        return hashlib.sha256(f"{self._source.fingerprint} {self._mark}".encode()).hexdigest()

    def __len__(self) -> int:
        """Returns the number of events."""
        return len(self._source)

    def batch(
        self,
        step: int,
        *,
        size: int,
        shard: tuple[int, int] = (0, 1),
        seed: int = 0,
        train: bool = True,
    ) -> dict[str, np.ndarray]:
        """Returns the events of one step; see `Source`."""
        batch = self._source.batch(step, size=size, shard=shard, seed=seed, train=train)
        self.change(batch, train)
        return batch

    def __getattr__(self, name: str) -> Any:
        """Passes on the other methods, and what some sources have besides: `report`, `stats`."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._source, name)


def check_extra(extra: Collection[str]) -> None:
    """Refuses further branches with the names of keys that a batch has anyway."""
    if taken := sorted({"npho", "time", "weight"} & set(extra)):
        raise ConfigError(
            f"extra branches {taken} have names of other keys of the batch",
            expected="branches besides npho, time and weight",
            remedy="leave them out, or choose them as npho_branch or time_branch",
        )


def batch_dtype(key: str, stored: np.dtype, real: Collection[str]) -> np.dtype:
    """Returns what a branch becomes in a batch: float32, or int64 for identifiers.

    Args:
        key: Key of the batch.
        stored: Type in the files.
        real: Keys that are real numbers even if the files hold whole ones.
    """
    is_real = key in ("npho", "time", *real) or stored.kind == "f"
    return np.dtype(np.float32 if is_real else np.int64)
