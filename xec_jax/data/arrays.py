"""A source of events that are in memory already: small data sets, simulations, tests."""

import hashlib
from collections.abc import Mapping

import numpy as np

from xec_jax.data import order
from xec_jax.data.source import Spec
from xec_jax.errors import DataError


class ArraySource:
    """Serves arrays that share their first axis, fully shuffled in every epoch.

    float64 becomes float32; everything else, non-finite numbers included, comes out as it went
    in. An array named `weight` holds the weights of the events and is set to 0 in padding.

    Args:
        arrays: One array `[n_events, ...]` per key of the batch.
        shuffle: False keeps the order of the arrays in training, too.

    Raises:
        DataError: There are no events or the arrays differ in length.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], *, shuffle: bool = True) -> None:
        values = {name: np.asarray(array) for name, array in arrays.items()}
        lengths = {name: len(array) if array.ndim else 0 for name, array in values.items()}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise DataError(
                f"arrays with these numbers of events: {lengths}",
                expected="the same number for all arrays, at least one",
                remedy="give every array the events along its first axis",
            )
        self._length = next(iter(lengths.values()))
        self._shuffle = shuffle
        self._arrays = {
            name: array.astype(np.float32) if array.dtype == np.float64 else array
            for name, array in values.items()
        }
        if "weight" in self._arrays:
            self._arrays["weight"] = self._arrays["weight"].astype(np.float32)
        self.spec: Spec = {
            name: (array.shape[1:], array.dtype) for name, array in self._arrays.items()
        } | {"weight": ((), np.dtype(np.float32))}

    @property
    def fingerprint(self) -> str:
        """Hash of names and contents of the arrays."""
        digest = hashlib.sha256()
        for name, array in self._arrays.items():
            digest.update(f"{name}:{array.dtype}:{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        """Returns the number of events."""
        return self._length

    def steps_per_epoch(self, *, size: int, shards: int = 1, train: bool = True) -> int:
        """Returns the number of batches of an epoch; see `Source`."""
        return order.steps_per_epoch(self._length, size=size, shards=shards, train=train)

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
        at = order.place(step, self._length, size=size, shard=shard, train=train)
        rows = np.arange(at.first, at.first + at.taken)
        if train and self._shuffle:
            rows = order.shuffled(self._length, *order.key(seed, at.epoch))[rows]
        rows = np.pad(rows, (0, size - at.taken), mode="edge")
        batch = {name: array[rows] for name, array in self._arrays.items()}
        padding = order.padding_weight(size, at.real)
        batch["weight"] = batch["weight"] * padding if "weight" in batch else padding
        return batch

    def close(self) -> None:
        """Does nothing: there are no files."""
