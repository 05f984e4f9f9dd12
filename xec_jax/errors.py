"""The errors that a user can cause, and how a command reports them.

Every message has three parts: what was found and where, what was expected, what to do. A
command prints the message as one block and leaves with the exit code of the error's class; only
mistakes of ours show a traceback.
"""

import os
import sys
import threading
from collections.abc import Callable, Sequence

EXIT_CODES = """exit codes:
  0  done
  2  the user's input: configuration, data files, geometry, checkpoint of another run
  3  training diverged (non-finite losses or gradients)
  4  the disk: a folder that cannot be written, no space left
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
    try:
        code = main(sys.argv[1:] if argv is None else argv)
    except XecError as error:
        sys.stdout.flush()
        print(f"\n{type(error).__name__}: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        code = 130
    if any(thread.name.startswith("xec-") for thread in threading.enumerate()):
        # A reader that hangs: Python would wait for its thread for ever, and a job that has saved
        # its state would be killed for it. Everything is closed by now.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
