"""Four virtual devices, before JAX wakes up, and the caches that started commands share."""

import os

import pytest

# Tests compile large programs to run them once: compiling fast is worth more than running fast.
FAST_COMPILE = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ["XLA_FLAGS"] = " ".join(
    (os.environ.get("XLA_FLAGS", ""), FAST_COMPILE, "--xla_force_host_platform_device_count=4")
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")


@pytest.fixture(scope="session")
def caches(tmp_path_factory):
    """Compiled programs and simulated samples, shared by all commands of a test run."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all workers
    folder = folder / "caches"
    return {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "XEC_JAX_CACHE": str(folder / "samples"),
        "XLA_FLAGS": FAST_COMPILE,
        "PYTHONUNBUFFERED": "1",
    }
