"""Where results go: checked before hours of work, not after."""

from collections.abc import Iterable
from pathlib import Path

from xec_jax.errors import ConfigError, DiskError


def check_new(paths: Iterable[Path], *, overwrite: bool, inputs: Iterable[str | Path] = ()) -> None:
    """Refuses outputs that cannot be written or should not be.

    Args:
        paths: Files or folders to be made.
        overwrite: Whether those that exist may be replaced.
        inputs: Files that are read, which nothing may replace.

    Raises:
        ConfigError: An output that exists, or is an input.
        DiskError: A folder that does not exist.
    """
    read = [Path(path) for path in inputs]
    for path in paths:
        if not path.parent.is_dir():
            raise DiskError(
                f"{path} cannot be written: there is no folder {path.parent}",
                remedy=f"mkdir -p {path.parent}",
            )
        if not path.exists():
            continue
        if any(other.exists() and path.samefile(other) for other in read):
            raise ConfigError(f"{path} is an input as well", expected="another --output")
        if not overwrite:
            raise ConfigError(
                f"{path} exists",
                expected="a new file",
                remedy="choose another --output, or --overwrite",
            )
