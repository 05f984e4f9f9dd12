"""Four virtual devices, before JAX wakes up, and the caches that started commands share."""

import os

import pytest

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")


@pytest.fixture(scope="session")
def caches(tmp_path_factory):
    """Compiled programs and simulated samples, shared by all commands of a test run."""
    folder = tmp_path_factory.mktemp("caches")
    return {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "XEC_JAX_CACHE": str(folder / "samples"),
        "XLA_FLAGS": "",
        "PYTHONUNBUFFERED": "1",
    }
