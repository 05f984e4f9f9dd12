"""Environments of their own for the exporters, whose packages fit no newer JAX.

They are made on first use, or beforehand where there is a network (`export --setup`), and run the
code of the package that calls them: a run folder goes in, a file comes out.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import xec_jax
from xec_jax.errors import ConfigError, DiskError

FOLDER = "XEC_JAX_EXPORT_ENV"
"""Variable with the folder that holds the environments; `~/.cache/xec_jax` if not set."""


def requirements(backend: str) -> Path:
    """Returns the list of packages of a backend's environment."""
    return Path(__file__).parent / "environments" / f"{backend}.txt"


def location(backend: str) -> Path:
    """Returns where the environment of a backend is, or would be.

    The name holds a digest of the list: another list is another environment.
    """
    root = os.environ.get(FOLDER) or os.environ.get("XEC_JAX_CACHE") or "~/.cache/xec_jax"
    text = requirements(backend).read_bytes()
    version = f"py{sys.version_info.major}{sys.version_info.minor}"
    name = f"export-{backend}-{version}-{hashlib.sha256(text).hexdigest()[:8]}"
    return Path(root).expanduser() / name


def set_up(backend: str, wheelhouse: Path | None = None) -> Path:
    """Makes the environment of a backend, unless it is there; returns its Python.

    Args:
        backend: `jax2tf` or `jax2onnx`.
        wheelhouse: Folder with the packages, for machines without a network.

    Raises:
        ConfigError: Packages that cannot be installed.
        DiskError: The folder cannot be written.
    """
    folder = location(backend)
    python, done = folder / "bin" / "python", folder / "complete"
    with _lock(folder):
        if done.exists():
            return python
        print(f"making the environment of {backend} in {folder}, once; this takes minutes")
        shutil.rmtree(folder, ignore_errors=True)
        source = ["--no-index", "--find-links", str(wheelhouse)] if wheelhouse else []
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        steps = (
            [sys.executable, "-m", "venv", str(folder)],
            [*install, *source, "-r", str(requirements(backend))],
        )
        for words in steps:
            result = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603 - our own words
            if result.returncode:
                shutil.rmtree(folder, ignore_errors=True)
                raise _failed(backend, words, result.stderr)
        done.touch()
    return python


def call(python: Path, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs a module of this package in another environment: `python -m ARGUMENTS`."""
    with tempfile.TemporaryDirectory() as folder:
        # A link with nothing beside it: that environment shall see this code, and its own packages.
        (Path(folder) / "xec_jax").symlink_to(Path(xec_jax.__file__).parent.resolve())
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "XLA_"))}
        variables = inherited | {"PYTHONPATH": folder, "JAX_PLATFORMS": "cpu"}
        words = [str(python), "-m", *arguments]
        return subprocess.run(  # noqa: S603 - our own words
            words, env=variables, capture_output=True, text=True, check=False, cwd=folder
        )


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Lets one process at a time make an environment."""
    path = folder.with_name(f"{folder.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise DiskError(
            f"cannot write {path.parent}: {error.strerror}",
            expected="a folder for the environment of the exporter",
            remedy=f"set {FOLDER} to a folder that may be written",
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _failed(backend: str, words: Sequence[str], error: str) -> ConfigError:
    lines = [line for line in error.strip().splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if "ERROR" in line), lines[-1] if lines else "")
    return ConfigError(
        f"the environment of {backend} cannot be made: {said} ({Path(words[0]).name} "
        f"{' '.join(words[1:3])})",
        expected="a network with a package registry, or --wheelhouse DIR with the packages",
        remedy="where there is a network: python -m pip download -d DIR -r "
        f"{requirements(backend)}; then here: python -m xec_jax.export --setup --wheelhouse DIR",
    )
