"""Which sensors look dead, hot or blind, from the light that they saw in many events."""

from collections import defaultdict
from functools import lru_cache

import numpy as np

from xec_jax.data.dead import DeadChannels, is_invalid, patterns_of
from xec_jax.geometry import N_SENSORS, design_positions

ASKED_EVENTS, ASKED_STEP = 128, 16  # sensors are compared in the first ones, then in every 16th
ENOUGH_EVENTS = 20  # for a judgement about a sensor
NEIGHBORS = 8
HOT, BLIND = 5.0, 0.3  # times the light of the neighbors,
HOT_SHARE, BLIND_SHARE = 0.2, 0.75  # in more than this share of the events


class SensorHealth:
    """What each sensor did, added up over events.

    Attributes:
        events: Number of events with a usable number per run; the run is None where files do not
            say it. Others say nothing about single sensors.
        invalid: Per run, events int32 (s,) in which a sensor had no usable photon count.
    """

    def __init__(self) -> None:
        self.events: dict[int | None, int] = defaultdict(int)
        self.invalid: dict[int | None, np.ndarray] = defaultdict(
            lambda: np.zeros(N_SENSORS, np.int32)
        )
        self._asked = np.zeros((2, N_SENSORS), np.int64)
        self._answers = np.zeros((2, N_SENSORS), np.int64)  # hot, blind

    def update(
        self, npho: np.ndarray, runs: np.ndarray | None, dead: np.ndarray | None = None
    ) -> None:
        """Adds events: photons (b, s), their runs (b,), and marks of dead sensors (b, s)."""
        bad = is_invalid(npho)
        if dead is not None:
            bad |= dead != 0
        keep = ~bad.all(axis=1)
        npho, bad, runs = npho[keep], bad[keep], None if runs is None else runs[keep]
        number = sum(self.events.values()) + np.arange(len(npho))
        groups: list[tuple[int | None, np.ndarray | slice]] = [(None, slice(None))]
        if runs is not None:
            groups = [(int(run), runs == run) for run in np.unique(runs)]
        for run, rows in groups:
            part = bad[rows]
            self.events[run] += len(part)
            self.invalid[run] += part.sum(axis=0, dtype=np.int32)
        asked = (number < ASKED_EVENTS) | (number % ASKED_STEP == 0)
        self._compare(npho[asked], bad[asked])

    def share_invalid(self) -> np.ndarray:
        """Returns the share of all events in which a sensor was invalid, float (s,)."""
        events = sum(self.events.values())
        return sum(self.invalid.values(), np.zeros(N_SENSORS)) / max(events, 1)

    def candidates(self, above: float) -> DeadChannels:
        """Returns the sensors that are dead, per run; see `patterns_of`."""
        return patterns_of(self.invalid, self.events, above=above)

    def few(self) -> list[int | None]:
        """Returns the runs with too few events for a judgement about their sensors."""
        return [run for run, n in self.events.items() if 0 < n < ENOUGH_EVENTS]

    def hot(self) -> np.ndarray:
        """Returns the ids of sensors that see far more light than those around them."""
        return self._often(0, HOT_SHARE)

    def blind(self) -> np.ndarray:
        """Returns the ids of sensors that give numbers but see no light where others do."""
        return self._often(1, BLIND_SHARE)

    def _often(self, question: int, share: float) -> np.ndarray:
        asked, answers = self._asked[question], self._answers[question]
        return np.flatnonzero((asked >= ENOUGH_EVENTS) & (answers > share * asked))

    def _compare(self, npho: np.ndarray, bad: np.ndarray) -> None:
        """Compares each sensor with its neighbors, event by event.

        Event by event, because a shower just behind the inner face lights up one sensor with more
        photons than it otherwise sees in a thousand events.
        """
        light = np.where(bad, np.nan, npho)
        near = np.sort(light[:, _neighbors()], axis=-1)  # NaN comes last
        middle = np.maximum(np.isfinite(near).sum(-1, keepdims=True) - 1, 0) // 2
        around = np.take_along_axis(near, middle, -1)[..., 0]
        usual = np.sort(light, axis=-1)
        middle = np.maximum(np.isfinite(usual).sum(-1, keepdims=True) - 1, 0) // 2
        usual = np.take_along_axis(usual, middle, -1)
        known = np.isfinite(light) & np.isfinite(around)
        lit = known & (around > np.maximum(usual, 0))  # where light is expected
        self._asked += known.sum(0), lit.sum(0)
        is_hot = known & (light > HOT * np.maximum(around, usual)) & (light > 0)
        self._answers += is_hot.sum(0), (lit & (light < BLIND * around)).sum(0)


@lru_cache
def _neighbors() -> np.ndarray:
    """Returns the nearest sensors on the same face, int (s, NEIGHBORS)."""
    table = design_positions()
    result = np.empty((N_SENSORS, NEIGHBORS), np.int64)
    for face in np.unique(table.face):
        ids = np.flatnonzero(table.face == face)
        xyz = table.positions[ids].astype(np.float32)
        size = (xyz**2).sum(axis=1)
        for start in range(0, len(ids), 512):
            part = slice(start, start + 512)
            distance = size[part, None] + size - 2 * xyz[part] @ xyz.T  # squared
            rows = np.arange(len(distance))
            distance[rows, start + rows] = np.inf  # no sensor is its own neighbor
            result[ids[part]] = ids[np.argpartition(distance, NEIGHBORS, axis=1)[:, :NEIGHBORS]]
    return result
