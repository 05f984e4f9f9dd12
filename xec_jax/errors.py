"""The errors that a user can cause, and how a command reports them.

Every message has three parts: what was found and where, what was expected, what to do. A
command prints the message as one block and leaves with the exit code of the error's class; only
mistakes of ours show a traceback.
"""

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

EXIT_CODES = """exit codes:
  0  done
  2  the user's input: configuration, data files, geometry, checkpoint of another run
  3  training diverged (non-finite losses or gradients)
  4  the disk: a folder that cannot be written or read, no space left
  75 stopped by a signal after saving; start the same command again to continue
  130 interrupted from the keyboard before there was anything to save"""


class XecError(Exception):
    """Base of all errors with a remedy for the user.

    Args:
        found: What was found and where (value, file, key).
        expected: What would have been right.
        remedy: What the user can do about it.
    """

    exit_code = 2

    def __init__(self, found: str, *, expected: str = "", remedy: str = "") -> None:
        self.found, self.expected, self.remedy = found, expected, remedy
        lines = [found]
        if expected:
            lines.append(f"  expected: {expected}")
        if remedy:
            lines.append(f"  remedy:   {remedy}")
        super().__init__("\n".join(lines))


class ConfigError(XecError):
    """A configuration key or value that cannot be used."""


class GeometryError(XecError):
    """A detector description that contradicts itself or a file that does not describe one."""


class DataError(XecError):
    """A data file, tree or branch that cannot be read as asked."""


class CheckpointError(XecError):
    """A checkpoint or run folder that does not fit what was asked of it."""


class ShapeError(XecError):
    """An array of another shape than its user declared."""


class DeviceMemoryError(XecError):
    """A step that does not fit into the memory of the devices."""


class DivergedError(XecError):
    """Training cannot go on: too many non-finite losses or gradients."""

    exit_code = 3


class DiskError(XecError):
    """A folder that cannot be written or a disk that is full."""

    exit_code = 4


class Preempted(XecError):
    """The run was told to stop, has saved its state and can be continued."""

    exit_code = 75


def run_command(main: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> None:
    """Runs the `main` of a command and leaves the process with its exit code.

    Args:
        main: Takes the arguments after the command's name, returns an exit code.
        argv: Arguments; those of the process if not given.
    """
    streams = [_Unfailing(sys.stdout), _Unfailing(sys.stderr)] if argv is None else []
    if streams:
        sys.stdout, sys.stderr = streams
    try:
        code = main(sys.argv[1:] if argv is None else argv)
    except XecError as error:
        sys.stdout.flush()
        print(f"\n{type(error).__name__}: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        code = 130
    except Exception:
        if argv is not None:
            raise
        traceback.print_exc()
        code = 1
    for stream in streams:
        stream.end()
    if streams and _has_hanging_reader():
        # Python would wait for its thread for ever, and a job that has saved its state would be
        # killed for it. Everything is closed by now.
        os._exit(code)
    sys.exit(code)


class _Unfailing:
    """A text stream that loses what it cannot write: a full disk must not end a run."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def end(self) -> None:
        """Gives up what cannot be written: Python would fail on it again, with another code."""
        try:
            self._stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _has_hanging_reader() -> bool:
    """True if a thread of ours, which reads data or tells a tracker, does not end."""
    readers = [thread for thread in threading.enumerate() if thread.name.startswith("xec-")]
    deadline = time.monotonic() + 1.0  # for all of them
    for thread in readers:
        thread.join(max(deadline - time.monotonic(), 0))
    return any(thread.is_alive() for thread in readers)
