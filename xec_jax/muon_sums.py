"""Sums behind the metrics of a conditional flow that add up over batches and devices.

A name with a colon is a part of a number that is no mean itself; `derive` puts them together.

Source: tests T3 to T6 of the plateau's analysis, see docs/muon_plateau.md.
"""

import re
from collections.abc import Mapping
from itertools import combinations_with_replacement

import jax.numpy as jnp
import numpy as np

from xec_jax.losses import mean_of
from xec_jax.types import Array, Metrics

CLIP = 4.0
"""Noise beyond this counts as this, so that heavy tails do not drown what a probe explains."""


def probe_sums(noise: Array, conditions: Array, weight: Array) -> Metrics:
    """Sums from which a quadratic of the conditions is fitted to the noise and to its square.

    Args:
        noise: (b d), what a flow left of the features.
        conditions: (b c), of order 1.
        weight: (b,).
    """
    n, d = noise.shape[1], conditions.shape[1]
    pairs = combinations_with_replacement(range(d), 2)
    terms = [
        jnp.ones(len(noise)),
        *conditions.T,
        *(conditions[:, i] * conditions[:, j] for i, j in pairs),
    ]
    inside = jnp.clip(noise, -CLIP, CLIP)
    targets = [*inside.T, *jnp.square(inside).T]
    found: Metrics = {}
    for i, j in combinations_with_replacement(range(len(terms)), 2):
        found[f"probe:{i}:{j}"] = mean_of(terms[i] * terms[j], weight)
    for k in range(2 * n):
        for i, term in enumerate(terms):
            found[f"probe:{i}:t{k}"] = mean_of(term * targets[k], weight)
        found[f"probe:t{k}:t{k}"] = mean_of(jnp.square(targets[k]), weight)
    return found


def explained(metrics: Mapping[str, float]) -> float:
    """R^2 of the best quadratic of the conditions for the noise or its square, the largest one.

    0 if the flow used all that a quadratic can see; its own fit to n muons explains some 15 / n.
    """
    pairs = {k: v for k, v in metrics.items() if k.startswith("probe:")}
    rows = max(int(m[1]) for k in pairs if (m := re.fullmatch(r"probe:(\d+):\d+", k))) + 1
    gram = np.zeros((rows, rows))
    for i, j in combinations_with_replacement(range(rows), 2):
        gram[i, j] = gram[j, i] = pairs[f"probe:{i}:{j}"]
    best = 0.0
    for k in range(sum(bool(re.fullmatch(r"probe:t\d+:t\d+", key)) for key in pairs)):
        moments = np.array([pairs[f"probe:{i}:t{k}"] for i in range(rows)])
        if not np.isfinite(moments).all():
            return float("nan")
        fit = np.linalg.lstsq(gram, moments, rcond=1e-6)[0]
        variance = pairs[f"probe:t{k}:t{k}"] - moments[0] ** 2
        best = max(best, (moments @ fit - moments[0] ** 2) / max(variance, 1e-12))
    return float(best)


def count_sums(predicted: Array, count: Array, weight: Array) -> Metrics:
    """Sums behind what is said of the multiplicity: ln(N + 1) predicted and true, (b,)."""
    target = jnp.log1p(count)
    return {
        "multiplicity_predicted": mean_of(predicted, weight),
        "multiplicity_target": mean_of(target, weight),
        "multiplicity:predicted_square": mean_of(jnp.square(predicted), weight),
        "multiplicity:target_square": mean_of(jnp.square(target), weight),
        "multiplicity:error_square": mean_of(jnp.square(predicted - target), weight),
    }


def derive(metrics: Mapping[str, float]) -> dict[str, float]:
    """Computes what sums over events cannot carry: differences, roots, explained variance."""
    derived = {name: value for name, value in metrics.items() if ":" not in name}
    if "nll_twin" in metrics:
        derived["information"] = metrics["nll_twin"] - metrics["nll"]
    for name in [name for name in metrics if name.startswith("nll_swapped")]:
        part = name.removeprefix("nll_swapped")
        derived[f"delta_perm{part}"] = derived.pop(name) - metrics["nll"]
    if "round_trip:square" in metrics:
        derived["round_trip_rms"] = metrics["round_trip:square"] ** 0.5
    if any(name.startswith("probe:") for name in metrics):
        derived["residual_r2"] = explained(metrics)
    if "multiplicity:target_square" in metrics:
        spread = {}
        for name in ("predicted", "target"):
            mean = metrics[f"multiplicity_{name}"]
            spread[name] = max(metrics[f"multiplicity:{name}_square"] - mean**2, 0.0)
            derived[f"multiplicity_{name}_std"] = spread[name] ** 0.5
        error = metrics["multiplicity:error_square"]
        derived["multiplicity_mse"] = error
        derived["multiplicity_r2"] = 1 - error / max(spread["target"], 1e-12)
    return derived
