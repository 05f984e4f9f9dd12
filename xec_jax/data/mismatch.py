"""Sources that spoil events on purpose: a detector that differs from the one of the training.

For scans of robustness. Every class takes one number, 0 for no change, and changes nothing but
`npho` or `time` of usable sensors; whatever else a batch holds, such as branches relative to the
brightest sensor, stays as it was. The random numbers are the same for all steps of a scan, whose
results then differ by the size of the change alone. They depend on the seed and, by class, on the
run or on the place of the event in the files: batches may be asked for in any order and size, by
any number of processes.
"""

import math

import numpy as np

from xec_jax.data import order
from xec_jax.data.dead import is_invalid
from xec_jax.data.source import ChangedSource, Source
from xec_jax.errors import ConfigError, DataError
from xec_jax.geometry import INVALID, INVALID_ABOVE

_SHARE, _GAIN, _NOISE, _OFFSET, _JITTER = range(5)
"""Streams of random numbers, so that two classes with one seed have nothing in common."""


class _Mismatch(ChangedSource):
    """What the classes below have in common.

    Args:
        source: Where the events come from.
        key: The array that is changed, `npho` or `time`.
        size: How much; 0 for no change.
        largest: The largest size that makes sense.
        stream: Which random numbers.
        seed: Seed of the random numbers.
    """

    def __init__(
        self, source: Source, key: str, size: float, largest: float, stream: int, seed: int
    ) -> None:
        name = type(self).__name__
        if not 0 <= size <= largest or not math.isfinite(size) or seed < 0:
            raise ConfigError(
                f"{name} of {size}, seed {seed}",
                expected=f"a number from 0 to {largest}, and a seed of 0 or more",
            )
        if key not in source.spec:
            raise DataError(
                f"{name} changes {key!r}, the events have {', '.join(sorted(source.spec))}",
                expected=f"a source with {key!r}",
                remedy="leave this out, or read the branch",
            )
        super().__init__(source, f"{name} {size!r} seed {seed}")
        self._key, self._size, self._stream, self._seed = key, size, stream, seed
        self._n_sensors = source.spec[key][0][0]

    def _normal(self, *key: int) -> np.ndarray:
        """Standard normal numbers (s,), float32, that depend on seed, stream and key alone."""
        generator = np.random.default_rng([self._seed, self._stream, *key])
        return generator.standard_normal(self._n_sensors, dtype=np.float32)


class _Steady(_Mismatch):
    """A mismatch by sensor, the same in all events."""

    def __init__(
        self, source: Source, key: str, size: float, largest: float, stream: int, seed: int
    ) -> None:
        super().__init__(source, key, size, largest, stream, seed)
        # Cut at three sigma, as the simulated detector is.
        self._by_sensor = np.float32(size) * np.clip(self._normal(), -3, 3)


class _Fresh(_Mismatch):
    """Gaussian errors, new ones for each sensor of each event."""

    def change(self, batch: dict[str, np.ndarray], train: bool) -> None:
        """Does nothing: `batch` knows the places that the errors depend on."""

    def batch(
        self,
        step: int,
        *,
        size: int,
        shard: tuple[int, int] = (0, 1),
        seed: int = 0,
        train: bool = True,
    ) -> dict[str, np.ndarray]:
        """Returns the events of one step with their errors; see `Source`.

        An event has the same errors each time the file is read in order. In training, each epoch
        has its own. Padding repeats the errors of the event, too.
        """
        batch = super().batch(step, size=size, shard=shard, seed=seed, train=train)
        at = order.place(step, len(self), size=size, shard=shard, train=train)
        epoch = (1 + at.epoch, seed) if train else (0,)
        values = batch[self._key]
        for row in range(size):
            if row < at.taken:
                errors = np.float32(self._size) * self._normal(*epoch, at.first + row)
            _add(values[row], errors)
        return batch


class DeadShare(_Mismatch):
    """Further dead sensors: photon counts and times become 1e10, as `DeadSource` marks them.

    Of all s sensors, `round(share * s)` are dead, those that were dead before among them or not.
    Each run has its own, if the source has the key `run`; otherwise all events share theirs.
    Those of a smaller share are among those of a larger one.

    Args:
        source: Where the events come from.
        share: Of all sensors, from 0 to 1.
        seed: Seed of the choice.
    """

    def __init__(self, source: Source, share: float, seed: int = 0) -> None:
        super().__init__(source, "npho", share, 1.0, _SHARE, seed)
        self._n_dead = round(share * self._n_sensors)

    def change(self, batch: dict[str, np.ndarray], train: bool) -> None:
        """Marks the dead sensors."""
        runs = batch.get("run", np.zeros(len(batch["weight"]), np.int64)).astype(np.int64)
        for run in np.unique(runs):
            cells = np.ix_(np.flatnonzero(runs == run), self.dead(int(run)))
            for name in ("npho", "time"):
                if name in batch:
                    batch[name][cells] = INVALID

    def dead(self, run: int = 0) -> np.ndarray:
        """Returns the numbers of the sensors that are dead in a run, 0 without runs."""
        return order.shuffled(self._n_sensors, self._seed, self._stream, run)[: self._n_dead]


class GainSpread(_Steady):
    """Gains that the calibration does not know: each sensor's photons times `1 + spread * g`.

    g is Gaussian, cut at three sigma, fixed for each sensor.

    Args:
        source: Where the events come from.
        spread: Relative, from 0 to 0.3.
        seed: Seed of the gains.
    """

    def __init__(self, source: Source, spread: float, seed: int = 0) -> None:
        super().__init__(source, "npho", spread, 0.3, _GAIN, seed)

    def change(self, batch: dict[str, np.ndarray], train: bool) -> None:
        """Multiplies the photons."""
        npho = batch["npho"]
        np.multiply(npho, 1 + self._by_sensor, out=npho, where=~is_invalid(npho))


class TimeOffsets(_Steady):
    """Offsets that the time calibration does not know, Gaussian and fixed for each sensor.

    Args:
        source: Where the events come from.
        spread: In the unit of `time`, s, from 0 to 1e-6.
        seed: Seed of the offsets.
    """

    def __init__(self, source: Source, spread: float, seed: int = 0) -> None:
        super().__init__(source, "time", spread, 1e-6, _OFFSET, seed)

    def change(self, batch: dict[str, np.ndarray], train: bool) -> None:
        """Adds the offsets."""
        _add(batch["time"], self._by_sensor)


class NoisePhotons(_Fresh):
    """Further electronic noise in the photon counts.

    Args:
        source: Where the events come from; its `npho` are photons, not shares of the brightest.
        sigma: In photons, from 0 to 1e6.
        seed: Seed of the noise.
    """

    def __init__(self, source: Source, sigma: float, seed: int = 0) -> None:
        super().__init__(source, "npho", sigma, 1e6, _NOISE, seed)


class TimeJitter(_Fresh):
    """Further errors of the times.

    Args:
        source: Where the events come from.
        sigma: In the unit of `time`, s, from 0 to 1e-6.
        seed: Seed of the errors.
    """

    def __init__(self, source: Source, sigma: float, seed: int = 0) -> None:
        super().__init__(source, "time", sigma, 1e-6, _JITTER, seed)


def _add(values: np.ndarray, errors: np.ndarray) -> None:
    """Adds errors to all usable values, in place."""
    np.add(values, errors, out=values, where=np.abs(values) <= INVALID_ABOVE)
