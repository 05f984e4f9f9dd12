"""Starting the project's commands as a user would, in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

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


def newest_step(workdir):
    """The step of the newest checkpoint, by its name alone: that is safe while a run writes."""
    folder = workdir / "checkpoints"
    return max(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def state_of(workdir):
    """The newest state on disk, every array of it, read without the trainer, which has ended."""
    import jax
    import orbax.checkpoint as ocp

    folder, step = workdir / "checkpoints", newest_step(workdir)
    tree = ocp.StandardCheckpointer().restore((folder / str(step) / "state").absolute())
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return step, {str(path): np.asarray(value) for path, value in leaves}
