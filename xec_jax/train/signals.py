"""Stopping a run from outside without losing it."""

import contextlib
import os
import signal
from types import FrameType, TracebackType
from typing import Self

from xec_jax.errors import Preempted

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
AGAIN = "start the same command again to continue"


class StopFlag:
    """Turns SIGTERM, SIGINT and SIGUSR1 into a flag that a loop polls between its steps.

    As long as there is nothing to save, a signal leaves at once: SIGINT as `KeyboardInterrupt`,
    the others as `Preempted`, so that a cluster starts the job again. `defer` ends that time; from
    then on the loop decides. A second SIGINT always interrupts. The former handlers come back on
    exit.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._is_deferred = False

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> Self:
        self._old = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def defer(self) -> None:
        """From now on a signal only sets the flag."""
        self._is_deferred = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGINT and (self.signal or not self._is_deferred):
            raise KeyboardInterrupt
        if not self._is_deferred:
            raise Preempted(f"stopped by {name} before the training began", remedy=AGAIN)
        self.signal = name
        with contextlib.suppress(OSError):  # a full disk, a closed terminal
            # Not print: a handler may interrupt one.
            os.write(2, f"\n{name}: saving after this step, then leaving\n".encode())
