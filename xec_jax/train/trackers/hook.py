"""Trackers beside a training: a thread for each, and the hook that wakes them."""

import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence

from xec_jax.errors import Preempted, XecError
from xec_jax.train.hooks import Hook, RunInfo
from xec_jax.train.records import Record
from xec_jax.train.trackers.copier import Copier
from xec_jax.train.trackers.facts import reason

log = logging.getLogger(__name__)


class Tracker:
    """Keeps a copier at work in a thread of its own.

    Whatever fails is tried three times; then this tracker is given up with one warning, and the
    training goes on.

    Args:
        copier: What sends the records.
        delays: Seconds before the second and the third try.
        interval: Seconds between two sendings, which collect what came meanwhile.
    """

    def __init__(
        self, copier: Copier, *, delays: Sequence[float] = (0.5, 30.0), interval: float = 2.0
    ) -> None:
        self.copier, self.delays, self.interval = copier, delays, interval
        self._wake, self._leave = threading.Event(), threading.Event()
        self._state = "lost"
        self._is_given_up = False
        self._thread = threading.Thread(target=self._work, name=f"xec-{copier.name}", daemon=True)

    def start(self, run: RunInfo) -> None:
        """Starts the thread."""
        self.copier.places.put("n_parameters", run.n_parameters)
        self._thread.start()

    def wake(self) -> None:
        """Lets the thread read what is new in the file."""
        self._wake.set()

    def leave(self, state: str) -> None:
        """Tells the thread that and how the run ended; returns at once."""
        self._state = state
        self._leave.set()
        self._wake.set()

    def join(self, seconds: float) -> None:
        """Waits for the last sending, but not for ever."""
        if self._thread.is_alive():
            self._thread.join(max(seconds, 0.0))
        if self._thread.is_alive():
            self._give_up("not done when the time for it was over")

    def _work(self) -> None:
        """Body of the thread."""
        work: Callable[[], None] = self.copier.copy
        while self._try(work) and not self._leave.is_set():
            self._leave.wait(self.interval)
            self._wake.wait()
            self._wake.clear()
        if not self._is_given_up:
            self._try(lambda: self.copier.finish(self._state))

    def _try(self, work: Callable[[], None]) -> bool:
        for delay in (*self.delays, None):
            try:
                work()
                return True
            except Exception as error:
                why = reason(error)
                if delay is None or isinstance(error, ImportError | XecError):
                    break
            self._leave.wait(delay)
        self._give_up(why)
        return False

    def _give_up(self, why: str) -> None:
        if self._is_given_up:
            return
        self._is_given_up = True
        log.warning(
            "%s gets no more copies (%s). The training is not affected and metrics.jsonl has "
            "everything; to copy the rest later: python -m xec_jax.runs sync %s",
            *(self.copier.name, why, self.copier.workdir),
        )


class Trackers(Hook):
    """Lets trackers follow a run; the loop only wakes them.

    At the end all of them send at the same time, and share one deadline: an exit must not take
    longer because there are more of them.

    Args:
        trackers: One per service.
        complete_s: Seconds that the end of a complete run waits for them.
        stopped_s: The same if it was stopped or failed. SLURM kills 30 s after its signal, and the
            state was saved within these.
        clock: Time in seconds.
    """

    def __init__(
        self,
        trackers: Sequence[Tracker],
        *,
        complete_s: float = 20.0,
        stopped_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.trackers = trackers
        self.complete_s, self.stopped_s, self.clock = complete_s, stopped_s, clock
        self._total = 0

    def on_start(self, run: RunInfo) -> None:
        """Starts all."""
        self._total = run.total_steps
        for tracker in self.trackers:
            tracker.start(run)

    def on_record(self, record: Record) -> None:
        """Wakes all; they read the record from the file."""
        for tracker in self.trackers:
            tracker.wake()

    def on_end(self, step: int) -> None:
        """Waits for the last sending of all."""
        # The loop ends its hooks while an error is on its way: that tells how the run ended.
        error = sys.exception()
        if isinstance(error, Preempted | KeyboardInterrupt) or (not error and step < self._total):
            state = "preempted"
        else:
            state = "failed" if error else "done"
        for tracker in self.trackers:
            tracker.leave(state)
        end = self.clock() + (self.complete_s if state == "done" else self.stopped_s)
        for tracker in self.trackers:
            tracker.join(end - self.clock())
