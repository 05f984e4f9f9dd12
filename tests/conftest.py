"""Four virtual devices, before JAX wakes up, and the caches that started commands share."""

import os
import shutil
import subprocess

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
        "XEC_JAX_CACHE": os.environ.get("XEC_JAX_CACHE", str(folder)),
        "XLA_FLAGS": FAST_COMPILE,
        "PYTHONUNBUFFERED": "1",
    }


@pytest.fixture
def small_disk(tmp_path, request):
    """A file system of 1 MB, or of the size that the test is parametrized with."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = f"size={getattr(request, 'param', '1m')}"
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
