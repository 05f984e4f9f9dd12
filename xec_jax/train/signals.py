"""Stopping a run from outside without losing it."""

import os
import signal
from types import FrameType, TracebackType
from typing import Self

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopFlag:
    """Turns SIGTERM, SIGINT and SIGUSR1 into a flag that the loop polls between steps.

    A second SIGINT interrupts at once. The former handlers come back on exit.
    """

    def __init__(self) -> None:
        self.signal: str | None = None

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

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name
        # Not print: a handler may interrupt one.
        os.write(2, f"\n{self.signal}: saving after this step, then leaving\n".encode())
