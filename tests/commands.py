"""Starting the project's commands as a user would, in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def start(caches, *arguments, command="train", **options):
    words = [sys.executable, "-m", f"xec_jax.{command}", *map(str, arguments)]
    environment = {**os.environ, **caches, "PYTHONPATH": str(ROOT)}
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, env=environment, **pipe, **options)


def run(caches, *arguments, **options):
    process = start(caches, *arguments, **options)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err
