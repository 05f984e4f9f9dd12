"""Sums for the validation during training: errors of regressed quantities that add up over devices.

`metrics` has the same numbers of a whole set of events, exactly.

Functions that make sums return {name: Mean}. A name with a colon is one of several parts of a
number that is no mean itself; `derive` puts them together: roots, ratios, percentiles.
"""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from xec_jax.kinematics import angles_to_vector, opening_angle
from xec_jax.losses import l1, mean_of, mse, smooth_l1
from xec_jax.metric_catalog import unit_of
from xec_jax.metric_definitions import ERRORS, SMALLER
from xec_jax.targets import DIRECTIONS, Target
from xec_jax.types import Array, Mean, Metrics

PLAIN = {"smooth_l1": smooth_l1, "l1": l1, "mse": mse}
"""Reported whatever is trained: sums over quantities in their own units, as the predecessor's."""

N_THRESHOLDS = 52
"""Of an error over five decades; adjacent ones differ by a factor of 1.25."""


def error_sums(target: Target, output: Array, truth: Array, weight: Array) -> Metrics:
    """Sums behind the errors of a quantity, in its unit.

    Args:
        target: The quantity.
        output: (b m), see `Target.output`.
        truth: (b n), see `Target.truth`.
        weight: (b,), 0 where the truth is not known.
    """
    point = target.point(output)
    truth_here = target.physical(truth)
    if target.log_transform:
        residual = target.physical(point) - truth_here
    else:
        residual = target.residual(point, truth)
    found: Metrics = {}
    largest = target.quantity.largest
    center = target.physical(jnp.asarray(target.mean)) if target.mean else jnp.zeros(1)
    away = target.residual(truth_here, center)
    for i, name in enumerate(target.quantity.components):
        found |= residual_sums(name, residual[:, i], away[:, i], weight)
        found |= percentile_sums(f"{name}_res_68pct", residual[:, i], weight, largest)
    each = weight[:, None]
    for name, loss in PLAIN.items():
        values = loss(residual, jnp.zeros_like(residual)).mean(-1)
        found[f"{name}:{target.name}"] = mean_of(values, weight)
    if target.name in DIRECTIONS:
        directions = (point, truth)
        if target.name == "angle":
            directions = (angles_to_vector(point), angles_to_vector(truth))
        psi = opening_angle(*directions)
        name = f"{target.name}_resolution_68pct"
        found |= percentile_sums(name, jnp.rad2deg(psi), weight, largest=180.0)
        found[f"cos:{target.name}"] = mean_of(2 * jnp.square(jnp.sin(psi / 2)), weight)
    if target.name == "uvwFI":
        distance = jnp.sqrt(jnp.square(residual).sum(-1))
        found["uvw_dist_mean"] = mean_of(distance, weight)
        found |= percentile_sums("uvw_dist_68pct", distance, weight, largest)
    if target.name == "energy":
        share = residual[:, 0] / jnp.maximum(jnp.abs(truth_here[:, 0]), 1e-6)
        found |= percentile_sums("energy_rel_res_68pct", share, weight, largest=10.0)
    if target.loss_fn == "gaussian_nll":
        log_sigma = 0.5 * output[:, target.n_components :]
        pull = target.residual(point, truth) * jnp.exp(-log_sigma)
        found[f"{target.name}_sigma_mean"] = mean_of(target.sigma(output), each)
        found[f"{target.name}_pull_rms:square"] = mean_of(jnp.square(pull), each)
    if target.loss_fn == "quantile":
        low, high = target.interval(output)
        near = point - target.residual(point, truth)
        inside = (low <= near) & (near <= high)
        found[f"{target.name}_coverage"] = mean_of(inside * 1.0, each)
    return found


def class_sums(target: Target, output: Array, truth: Array, weight: Array) -> Metrics:
    """Share of events whose class is the most probable one; arguments as in `error_sums`."""
    is_right = output.argmax(-1) == truth[:, 0].astype(jnp.int32)
    return {f"{target.name}_accuracy": mean_of(is_right * 1.0, weight)}


def residual_sums(prefix: str, residual: Array, truth: Array, weight: Array) -> Metrics:
    """Sums behind `{prefix}_bias`, `_rms`, `_skew` and `_skill`.

    rms and skew are about the mean; skill is 1 - MSE / variance of the truth: 0 for predicting
    the mean, 1 for perfect.

    Args:
        prefix: Name of the quantity.
        residual: (b,) prediction - truth.
        truth: (b,), best less a constant near its mean, since squares are float32.
        weight: (b,).
    """
    powers = {f"{prefix}:r{n}": residual**n for n in (1, 2, 3)}
    powers |= {f"{prefix}:t{n}": truth**n for n in (1, 2)}
    return {name: mean_of(value, weight) for name, value in powers.items()}


def percentile_sums(name: str, error: Array, weight: Array, largest: float) -> Metrics:
    """Sums behind the 68th percentile of |error|, reported as `name`.

    A percentile is no sum, but the share of events below a threshold is one. Smooth
    distributions are interpolated to better than 1 %.

    Args:
        name: Name of the metric.
        error: (b,).
        weight: (b,).
        largest: Last of `N_THRESHOLDS` thresholds, the first is 1e-5 of it.
    """
    thresholds = np.geomspace(1e-5 * largest, largest, N_THRESHOLDS).astype(np.float32)
    below = jnp.where(jnp.abs(error)[:, None] <= thresholds, weight[:, None], 0.0).sum(0)
    return {
        f"{name}:{t:.6e}": Mean(total, weight.sum())
        for t, total in zip(thresholds, below, strict=True)
    }


def derive(metrics: Mapping[str, float]) -> dict[str, float]:
    """Puts the parts of metrics together; names without a colon pass unchanged."""
    plain = {name: value for name, value in metrics.items() if ":" not in name}
    groups: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        if ":" in name:
            group, part = name.split(":")
            groups.setdefault(group, {})[part] = value
    for group, parts in groups.items():
        if "r1" in parts:
            plain |= {f"{group}_{key}": value for key, value in _moments(parts).items()}
        elif "square" in parts:
            plain[group] = parts["square"] ** 0.5
        elif group in (*PLAIN, "cos"):
            plain[group] = sum(parts.values())
        else:
            plain[group] = _percentile({float(t): share for t, share in parts.items()})
    for name, (small, factor) in SMALLER.items():
        for key in (f"{name}_{kind}" for kind in ERRORS):
            if key in plain:
                plain[f"{key}_{small.lower()}"] = factor * plain[key]
    return plain


def units_of(target: Target) -> dict[str, str]:
    """Units of the metrics of a quantity that have one."""
    if target.is_class:
        return {}
    errors = [f"{part}_{kind}" for part in target.quantity.components for kind in ERRORS]
    names = [*errors]
    if target.name in SMALLER:
        names += [f"{name}_{SMALLER[target.name][0].lower()}" for name in errors]
    if target.name in DIRECTIONS:
        names.append(f"{target.name}_resolution_68pct")
    if target.name == "uvwFI":
        names += ["uvw_dist_mean", "uvw_dist_68pct"]
    if target.loss_fn == "gaussian_nll":
        names.append(f"{target.name}_sigma_mean")
    return {name: unit for name in names if (unit := unit_of(name))}


def _moments(parts: Mapping[str, float]) -> dict[str, float]:
    bias, square, cube = (parts[f"r{n}"] for n in (1, 2, 3))
    variance = max(square - bias**2, 0.0)
    third = cube - 3 * bias * square + 2 * bias**3
    spread = max(parts["t2"] - parts["t1"] ** 2, 0.0)
    return {
        "bias": bias,
        "rms": variance**0.5,
        "skew": third / variance**1.5 if variance > 0 else 0.0,
        "skill": 1 - square / spread if spread > 0 else float("nan"),
    }


def _percentile(shares: Mapping[float, float], wanted: float = 0.68) -> float:
    """Interpolates between thresholds, on a logarithmic axis; at most the last one."""
    # Transformations of JAX sort the keys of a dict as texts, psum over the devices among them.
    thresholds, share = np.array(sorted(shares.items())).T
    if np.isnan(share).any():
        return float("nan")
    above = int(np.searchsorted(share, wanted))
    if above in (0, len(share)):
        return float(thresholds[min(above, len(share) - 1)])
    pair = slice(above - 1, above + 1)
    return float(np.exp(np.interp(wanted, share[pair], np.log(thresholds[pair]))))
