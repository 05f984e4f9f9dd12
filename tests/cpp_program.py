"""The programs of the C++ example, built once for all tests that run them.

A test file that says `pytest_plugins = ["cpp_program"]` has the fixtures; nobody imports them.
"""

import fcntl
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "cpp"


@dataclass(frozen=True)
class Programs:
    """Programs by name, and whether they can read ROOT files."""

    folder: Path
    has_root: bool

    def run(self, name, *arguments, code=0, **options):
        """Runs a program, which has to leave with `code`; returns what it printed."""
        words = [str(self.folder / name), *map(str, arguments)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300, **options)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stderr if code else done.stdout


@pytest.fixture(scope="session")
def cpp_programs(tmp_path_factory):
    """The programs; onnxruntime comes from XEC_JAX_ORT or from the package registries."""
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all workers
    folder = folder / "cpp"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _build(folder)
    cache = (folder / "build" / "CMakeCache.txt").read_text()
    return Programs(folder / "build", "ROOT_DIR:PATH=/" in cache)


@pytest.fixture(scope="session")
def xec_infer(cpp_programs):
    """The path of the program xec_infer."""
    return cpp_programs.folder / "xec_infer"


def _build(folder):
    ort = os.environ.get("XEC_JAX_ORT")
    if ort is None:
        ort = folder / "onnxruntime"
        script = EXAMPLE / "get_onnxruntime.sh"
        done = subprocess.run([script, ort], capture_output=True, text=True, timeout=600)
        if done.returncode:
            pytest.skip(f"no onnxruntime for C++: {done.stderr.strip()}")
    options = ["-DXEC_CHECKS=ON", "-DCMAKE_COMPILE_WARNING_AS_ERROR=ON", f"-DXEC_JAX_ORT={ort}"]
    for words in (
        ["cmake", "-S", EXAMPLE, "-B", folder / "build", *options],
        ["cmake", "--build", folder / "build", "--parallel", "2"],
    ):
        done = subprocess.run(words, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
