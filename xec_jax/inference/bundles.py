"""Draws muon bundles for primaries: how many muons, then the muons; writes them as parquet."""

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xec_jax.data.bundle_writer import write_bundles
from xec_jax.data.muons import read_primaries
from xec_jax.errors import DataError
from xec_jax.muon_features import LATERAL_M
from xec_jax.tasks.bundles import Encoding
from xec_jax.tasks.muon_flow import Experiment
from xec_jax.train.saved import SavedRun
from xec_jax.types import Array, Params

EVENTS = 8192
"""Events that are drawn together; what is drawn depends on the seed and the place in the input."""
MUONS = 32768
"""Muons that are drawn together, always as many, so that one program serves all."""

DENSITY_OF = {
    "r": "ln(E / GeV), ln(r / m)",
    "xy": "ln(E / GeV), x / m, y / m",
    "all": "ln(E / GeV), ln(r / m), x / m, y / m",
}
"""What `log_prob` in the output is the density of."""


def predict(
    run: SavedRun, files: Sequence[Path], output: Path, *, seed: int, max_muons: int
) -> None:
    """Writes a bundle for every primary of some files, in their order.

    The output has the columns `primary`, `muons` (energy in GeV, r, x, y in m; the azimuth is even
    where the run knows r alone), `log_prob` (one number per muon, natural logarithm of the density
    of `DENSITY_OF`) and the shower's number, and facts about its origin.

    Args:
        run: A trained flow.
        files: Parquet files with the column `primary`.
        output: The file to make.
        seed: Of the draws.
        max_muons: An event gets no more than this many.

    Raises:
        DataError: Files that cannot be used.
        DiskError: The folder cannot be written, or the disk is full.
    """
    begun = time.monotonic()
    totals = {"muons": 0, "capped": 0}
    features = run.config.model.features
    facts: dict[str, Any] = {
        "made_by": "xec_jax.predict",
        "task": "muon_flow",
        "step": run.step,
        "seed": seed,
        "density_of": DENSITY_OF[features] if run.config.model.stage_a == "physics" else "features",
        "input": [path.name for path in files],
    }
    chunks = bundles(run, files, seed=seed, max_muons=max_muons, totals=totals)
    n = write_bundles(output, chunks, facts)
    if not n:
        raise DataError(
            f"no primaries in {', '.join(map(str, files))}", expected="at least one row"
        )
    seconds = time.monotonic() - begun
    print(
        f"wrote {n:,} events with {totals['muons']:,} muons to {output}, "
        f"{totals['muons'] / seconds:,.0f} muons/s with compilation"
    )
    if totals["capped"]:
        print(f"WARNING: {totals['capped']} events were cut at --max_muons {max_muons}")


def bundles(
    run: SavedRun,
    files: Sequence[Path],
    *,
    seed: int,
    max_muons: int,
    totals: dict[str, int] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields events as `write_bundles` takes them; arguments as in `predict`.

    Args:
        run: See `predict`.
        files: See `predict`.
        seed: See `predict`.
        max_muons: See `predict`.
        totals: Gets the numbers of `muons`, and of events that were `capped`.
    """
    experiment, params = Experiment(run.config), run.params
    encoding, head = experiment.encoding, experiment.multiplicity
    totals = {} if totals is None else totals

    @jax.jit
    def numbers(params: Params, key: Array, primary: Array) -> Array:
        conditions = encoding.conditions(primary)
        output = head.apply({"params": params["multiplicity"]}, conditions)
        return head.sample(key, jnp.asarray(output))

    @jax.jit
    def muons(params: Params, key: Array, primary: Array) -> tuple[Array, Array]:
        draw_key, angle_key = jax.random.split(key)
        features, log_prob = experiment.sample(params, draw_key, primary)
        return physical(encoding, features, log_prob, angle_key)

    key, first = jax.random.PRNGKey(seed), 0
    for primaries in read_primaries(files, EVENTS):
        block = jax.random.fold_in(key, first)
        full = np.pad(primaries, ((0, EVENTS - len(primaries)), (0, 0)), mode="edge")
        wanted = np.asarray(numbers(params, block, full))[: len(primaries)]
        counts = np.minimum(wanted, max_muons).astype(np.int64)
        owner = np.repeat(np.arange(len(primaries)), counts)
        drawn: list[tuple[np.ndarray, np.ndarray]] = []
        for start in range(0, len(owner), MUONS):
            own = owner[start : start + MUONS]
            own_key = jax.random.fold_in(block, start + 1)
            rows = np.pad(own, (0, MUONS - len(own)), mode="edge")
            found = muons(params, own_key, primaries[rows])
            drawn.append((np.asarray(found[0])[: len(own)], np.asarray(found[1])[: len(own)]))
        none = (np.empty((0, 4), np.float32), np.empty(0, np.float32))
        both = [np.concatenate(parts) for parts in zip(none, *drawn, strict=True)]
        totals["muons"] = totals.get("muons", 0) + len(owner)
        totals["capped"] = totals.get("capped", 0) + int((wanted > max_muons).sum())
        yield {
            "event": np.arange(first, first + len(primaries)),
            "primary": primaries,
            "count": counts,
            "muons": both[0],
            "log_prob": both[1],
        }
        first += len(primaries)


def physical(
    encoding: Encoding, features: Array, log_prob: Array, key: Array
) -> tuple[Array, Array]:
    """Turns features of stage A into muons, and their density into that of `DENSITY_OF`.

    Args:
        encoding: That of the run.
        features: (m d).
        log_prob: (m,), in units of stage A.
        key: For the azimuth, where only r is known.

    Returns:
        Energy, r, x, y (m 4), and log densities (m,). Without units (`model.stage_a` = none), the
        features in their places, 0 where there is none, and the density as it is.
    """
    found = encoding.decode(features)
    zero = jnp.zeros_like(log_prob)
    if not encoding.is_physical:
        columns = [found.get(name, zero) for name in ("energy", "radius", "x", "y")]
        return jnp.stack(columns, -1), log_prob
    if "x" not in found:
        angle = jax.random.uniform(key, log_prob.shape, maxval=2 * math.pi)
        found["x"], found["y"] = (found["radius"] * f(angle) for f in (jnp.sin, jnp.cos))
    else:
        log_prob = log_prob - 2 * math.log(LATERAL_M)
    if "radius" in found:
        square = jnp.square(found["radius"])
        log_prob = log_prob + jnp.log(square / (square + encoding.offset_m2))
    else:
        found["radius"] = jnp.hypot(found["x"], found["y"])
    muons = jnp.stack([found[name] for name in ("energy", "radius", "x", "y")], -1)
    return muons, log_prob - math.log(2 * math.log(10))
