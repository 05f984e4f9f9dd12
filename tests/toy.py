"""A small task and source for tests of the engine: masked regression with random masks."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from xec_jax import defaults
from xec_jax.data.arrays import ArraySource
from xec_jax.tasks.base import Task
from xec_jax.types import Mean

N = 40
SPEC = {"x": ((3,), np.dtype(np.float32))}


def config(**train) -> ConfigDict:
    """A complete config of the engine's keys."""
    c = ConfigDict({"task": "toy", "seed": 3})
    shared = defaults.calorimeter()
    c.data = ConfigDict({"batch_size": 8, "prefetch_factor": 2, "timeout_s": 60.0})
    c.model, c.export = ConfigDict(), ConfigDict()
    c.optim = shared.optim
    c.optim.update({"lr": 5e-2, "lr_scheduler": "cosine", "lr_min": 1e-5})
    c.optim.update({"warmup_epochs": 1.0, "weight_decay": 1e-2})
    c.optim.update({"no_decay": ("bias",), "grad_clip": 1.0, "ema_decay": 0.9})
    c.train = shared.train
    c.train.update({"epochs": 4, "max_skipped_in_row": 3, "save_every": 3})
    c.train.mesh.data = 1
    c.eval = ConfigDict({"every_epochs": 1, "seed": 0, "figure_events": 0})
    c.eval.update({"report": False, "opponents": 0})
    c.log = shared.log
    c.log.every = 2
    c.train.update(train)
    return c


def sources(n: int = N, poison: tuple[int, ...] = ()) -> tuple[ArraySource, dict]:
    """Training and validation events; `poison` lists training events whose input is NaN."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 3)).astype(np.float32)
    x[list(poison)] = np.nan
    return ArraySource({"x": x}), {"valid": ArraySource({"x": x[np.isfinite(x).all(1)][:11]})}


def _loss(params, batch, key):
    keys = jax.vmap(lambda p: jax.random.fold_in(key, p))(batch["_position"])
    chosen = jax.vmap(lambda k: jax.random.uniform(k, (5,)))(keys) < 0.5
    y = batch["x"] @ params["kernel"] + params["bias"] - jnp.arange(5.0)
    w = chosen * batch["weight"][:, None]
    bright = w * (batch["x"][:, :1] > 0.3)
    terms = {
        "all": Mean((w * y**2).sum(), w.sum()),
        "bright": Mean((bright * jnp.abs(y)).sum(), bright.sum()),
    }
    return terms, {"chosen": Mean(w.sum(), batch["weight"].sum())}


def task() -> Task:
    """The task: two loss terms with denominators of their own."""

    def init(key, batch):
        return {"kernel": jax.random.normal(key, (3, 5)), "bias": jnp.zeros(5)}

    return Task("toy", SPEC, init, _loss, _loss, record={"toy": 1})
