"""What a process tells JAX before the first program is compiled."""

import hashlib
import logging
import os
import platform
from pathlib import Path

import jax
from ml_collections import ConfigDict

from xec_jax.errors import ConfigError

PRECISIONS = {"default": None, "high": "high", "highest": "highest"}

log = logging.getLogger(__name__)


def configure(train: ConfigDict) -> None:
    """Sets the precision of matrix products and the cache of compiled programs.

    Args:
        train: Keys `matmul_precision` (of float32 products on GPUs: `default` is TF32 on an
            A100 and newer, `high` three passes of it, `highest` true float32) and
            `compilation_cache`.

    Raises:
        ConfigError: Unknown precision, or no device.
    """
    check(train)
    jax.config.update("jax_default_matmul_precision", PRECISIONS[train.matmul_precision])
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where a GPU is asked for in vain
        raise ConfigError(
            f"no device to train on (JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}): {error}",
            expected="a GPU that this job may use, and the extra cuda12 or cuda13",
            remedy="ask the cluster for a GPU, or set JAX_PLATFORMS=cpu to do without; in jobs of "
            "launch/ XEC_PLATFORMS=cpu",
        ) from error
    if train.compilation_cache and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        _use_cache()


def check(train: ConfigDict) -> None:
    """Checks the keys that `configure` reads.

    Raises:
        ConfigError: Unknown precision.
    """
    name = train.matmul_precision
    if name not in PRECISIONS:
        raise ConfigError(
            f"train.matmul_precision is {name!r}", expected="one of " + ", ".join(PRECISIONS)
        )


def cache_folder() -> Path:
    """Returns the folder of compiled programs for this kind of machine.

    One for each kind of CPU: login node and compute nodes often share a home folder, and a program
    compiled for one CPU may hold instructions that another lacks.
    """
    root = Path(os.environ.get("XEC_JAX_CACHE") or "~/.cache/xec_jax").expanduser()
    return root / "compiled" / f"{platform.machine()}-{_cpu_key()}"


def _cpu_key() -> str:
    """Hash of what the CPU can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    # x86 and Arm name the list of instructions differently.
    abilities = sorted(
        {line for line in lines if line.startswith(("flags", "Features", "model n"))}
    )
    return hashlib.sha256("\n".join(abilities or lines[:1]).encode()).hexdigest()[:12]


def _use_cache() -> None:
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        log.warning("no cache of compiled programs in %s: %s", folder, error)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
