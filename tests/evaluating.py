"""Runs with networks that need no compiler's patience, and events for them, to be evaluated."""

import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import uproot
from checking import make_events, write
from jax.experimental.compilation_cache import compilation_cache

from xec_jax import config as configs
from xec_jax.evaluate import main
from xec_jax.kinematics import uvw_to_xyz
from xec_jax.tasks import base, inpaint, mae, regress
from xec_jax.tasks.calorimeter import detector_of
from xec_jax.train.saved import write_run

S = 4760


class Linear:
    """A regressor: every output is a linear function of the mean features of two halves."""

    def __init__(self):
        self.heads = {"angle": 2, "energy": 1, "timing": 1, "uvwFI": 3}

    def init(self, key, x):
        rng = np.random.default_rng(7)
        kernels = {f"head_{n}": {"stem": {"kernel": rng.normal(0, 0.3, (12, k))}}
                   for n, k in self.heads.items()}  # fmt: skip
        return {"params": {n: {"stem": {"kernel": jnp.float32(v["stem"]["kernel"])}}
                           for n, v in kernels.items()}}  # fmt: skip

    def apply(self, variables, x, hidden, deterministic, rngs=None):
        parts = [x[:, a:b].mean(1) for a, b in ((0, 800), (800, 1600), (1600, 2400), (2400, 3200),
                                                (3200, 4092), (4092, S))]  # fmt: skip
        features = jnp.concatenate(parts, -1)
        params = variables["params"]
        return {n: features @ params[f"head_{n}"]["stem"]["kernel"] for n in self.heads}


class Flat:
    """A reconstruction: `level` everywhere."""

    def __init__(self, config, shape):
        self.detector, self.shape = detector_of(config), shape
        self.out = len(config.model.predict_channels)

    def init(self, key, x, hidden):
        return {"params": {"level": jnp.float32([0.1, 0.4])}}

    def apply(self, variables, x, hidden, deterministic, rngs=None):
        level = variables["params"]["level"][: self.out]
        if self.shape == "sensors":
            return jnp.broadcast_to(level, (*x.shape[:2], self.out))
        faces = {}
        for face in self.detector.faces:
            cells = (face.n_nodes,) if face.kind == "graph" else face.shape
            faces[face.name] = jnp.broadcast_to(level, (len(x), *cells, self.out))
        return faces


@contextlib.contextmanager
def small_networks(folder):
    """Puts the networks above in the place of the real ones, and keeps what is compiled."""
    keys = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {key: getattr(jax.config, key) for key in keys}
    with pytest.MonkeyPatch.context() as patch:
        patch_networks(patch)
        for key, value in keys.items():
            jax.config.update(key, value)
        yield
        for key, value in before.items():
            jax.config.update(key, value)
        compilation_cache.reset_cache()


def patch_networks(patch):
    """Puts the networks above in the place of the real ones."""
    patch.setattr(regress, "make_network", lambda config: Linear())
    patch.setattr(mae, "make_network", lambda config: Flat(config, "faces"))
    patch.setattr(inpaint, "make_network", lambda config: Flat(config, "sensors"))


def make_run(folder, task, *changes):
    """Writes a run of such a network."""
    config = configs.load(
        f"configs/{task}.py:tiny",
        [
            *("--config.data.train=x", "--config.data.valid=x"),
            "--config.train.compilation_cache=false",
            *changes,
        ],
    )
    if task == "regress":
        config.unlock()
        for name, mean, std in (
            ("angle", (90.0, 0.0), (20.0, 30.0)),
            ("energy", (0.04,), (0.01,)),
            ("timing", (0.0,), (5.0,)),
            ("uvwFI", (0.0, 0.0, 5.0), (10.0, 30.0, 5.0)),
        ):
            config.model.affine[name].update({"mean": mean, "std": std})
        config.lock()
    made = base.make_task(config)
    batch = {k: jnp.asarray(v) for k, v in base.example_batch(made.spec, 2).items()}
    params = made.init(np.zeros(2, np.uint32), batch)
    write_run(folder, config, params, made, origin={"by": "hand"})
    return folder


def write_events(path, n=70, **changes):
    """Events with all the truth, directions and places spread over the detector."""
    events = make_events(n, run=(430001, 430002))
    rng = np.random.default_rng(3)
    is_live = events["npho"] < 9e9
    events["npho"] *= np.where(is_live, rng.uniform(0.5, 2, (n, 1)), 1).astype(np.float32)
    theta, phi = rng.uniform(60, 120, n), rng.uniform(-60, 60, n)
    events["emiAng"] = np.stack([theta, phi], 1).astype(np.float32)
    events["uvwTruth"] = rng.uniform([-24, -67, 0.05], [24, 67, 20], (n, 3)).astype(np.float32)
    events["xyzTruth"] = np.asarray(uvw_to_xyz(events["uvwTruth"]), np.float32)
    events["time_min_used"] = rng.uniform(-1e-8, 1e-8, n).astype(np.float32)
    events |= changes
    return write(path, {k: v for k, v in events.items() if v is not None})


def evaluate(run, files, output, *words):
    """Runs the command; returns metrics.json."""
    paths = [str(f) for f in (files if isinstance(files, list) else [files])]
    main(["--run", str(run), "--input", *paths, "--output", str(output), *map(str, words)])
    return json.loads((output / "metrics.json").read_text())


def read(path, tree):
    """Arrays of a tree, and the constants beside it."""
    with uproot.open(path) as file:
        arrays = file[tree].arrays(library="np")
        metadata = {k: v[0] for k, v in file["metadata"].arrays(library="np").items()}
        return arrays, metadata
