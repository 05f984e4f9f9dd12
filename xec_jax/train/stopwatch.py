"""How long a piece of a run took, and what the data did meanwhile."""

import time
from dataclasses import dataclass, field, replace

from xec_jax.data.prefetch import Clock


@dataclass
class Stopwatch:
    """Measures between two points where the host has waited for the devices.

    Dispatch runs ahead of the devices, so that the time of a single step means nothing. Durations
    are differences of the monotonic clock: the one on the wall may be set.

    Attributes:
        clock: The running clock of the data.
        untimed: Steps made before the start that are reported after it.
    """

    clock: Clock = field(default_factory=Clock)
    untimed: int = 0
    _start: float = field(default_factory=time.monotonic)
    _before: Clock = field(default_factory=Clock)

    def restart(self, *, untimed: int = 0) -> None:
        """Begins the next piece."""
        self._start, self._before, self.untimed = time.monotonic(), replace(self.clock), untimed

    @property
    def seconds(self) -> float:
        """Since the start; never 0."""
        return max(time.monotonic() - self._start, 1e-9)

    @property
    def spent(self) -> Clock:
        """What the data did since the start."""
        now, old = self.clock, self._before
        waited, reading = now.waited - old.waited, now.reading - old.reading
        return Clock(waited, reading, now.copying - old.copying)
