"""Errors of a whole set of events, exact: float64 sums on the host, percentiles over all rows.

`metric_sums` gives the same numbers while training, from sums that add up over devices; here
nothing is approximate. What the names mean is said once, in `metric_definitions`. Rows whose truth
is not known or whose prediction is not finite are left out and counted. Knows numpy only, so that
commands and figures can use it without waking up JAX.

Source: metrics of the PyTorch predecessor; opening angles by atan2, since arccos of a float32
loses everything below 0.02 degrees.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from xec_jax.geometry import FACES, INVALID_ABOVE
from xec_jax.metric_definitions import ALIASES, DIRECTIONS, ERRORS, N_CLASSES, QUANTITIES, SMALLER

Numbers = dict[str, float]

BRIGHT_PHOTONS = 100.0
"""Relative errors are those of sensors with at least as many photons."""

ROUNDING = 1e-24
"""Variances below this share of a mean square are nothing but rounding."""


def percentile68(values: ArrayLike) -> float:
    """The 68th percentile of |values|, linear between order statistics; NaN for an empty set."""
    size = np.abs(np.asarray(values, np.float64)).ravel()
    return float(np.percentile(size, 68)) if size.size else float("nan")


def percentile68_error(values: ArrayLike) -> float:
    """Standard error of `percentile68`; NaN for fewer than two values.

    The share of values below the true percentile is binomial, p = 0.68 +- sqrt(p (1 - p) / n).
    Half the distance between the order statistics at both ends is the error of any distribution.
    """
    size = np.abs(np.asarray(values, np.float64)).ravel()
    if size.size < 2:
        return float("nan")
    away = (0.68 * 0.32 / size.size) ** 0.5
    low, high = np.quantile(size, [max(0.68 - away, 0.0), min(0.68 + away, 1.0)])
    return float(high - low) / 2


def moments(residual: ArrayLike) -> Numbers:
    """Bias (mean), rms about the mean (population) and skew (m3 / m2^1.5) of (n,) residuals."""
    r = np.asarray(residual, np.float64)
    if not r.size:
        return dict.fromkeys(("bias", "rms", "skew"), float("nan"))
    bias = r.mean()
    m2, m3 = (float(((r - bias) ** power).mean()) for power in (2, 3))
    if m2 <= ROUNDING * (r**2).mean():
        m2 = m3 = 0.0
    return {"bias": float(bias), "rms": m2**0.5, "skew": m3 / m2**1.5 if m2 else 0.0}


def skill(residual: ArrayLike, truth: ArrayLike) -> float:
    """1 - mean square of residuals (n,) / variance of the truth (n,); NaN without a variance."""
    r, t = (np.asarray(values, np.float64) for values in (residual, truth))
    if not t.size or (spread := float(t.var())) <= ROUNDING * (t**2).mean():
        return float("nan")
    return 1 - float((r**2).mean()) / spread


def wrap_degrees(angle: np.ndarray) -> np.ndarray:
    """Takes whole turns off a difference of angles, which leaves (-180, 180]."""
    return angle + 360.0 * ((180.0 - angle) // 360.0)


def opening_angle_deg(point: ArrayLike, truth: ArrayLike) -> np.ndarray:
    """The angle between directions in degrees (n,), with all digits at any size.

    Args:
        point: (n, 2), theta and phi in degrees, or (n, 3), vectors of any length.
        truth: The same. A vector of length 0 counts as perpendicular to everything.
    """
    a, b = (_vectors(np.asarray(values, np.float64)) for values in (point, truth))
    psi = np.rad2deg(np.arctan2(np.linalg.norm(np.cross(a, b), axis=-1), (a * b).sum(-1)))
    is_direction = a.any(-1) & b.any(-1)
    return np.where(is_direction, psi, 90.0)


def angle_metrics(point_deg: ArrayLike, truth_deg: ArrayLike, **claims: ArrayLike) -> Numbers:
    """Errors of theta and phi (n, 2) in degrees; `claims` as in `quantity_metrics`."""
    return quantity_metrics("angle", point_deg, truth_deg, **claims)


def energy_metrics(
    point_gev: ArrayLike, truth_gev: ArrayLike, sigma_gev: ArrayLike | None = None
) -> Numbers:
    """Errors of energies (n,) in GeV, whose claimed standard deviations may be known."""
    return quantity_metrics("energy", point_gev, truth_gev, sigma=sigma_gev)


def timing_metrics(
    point_ns: ArrayLike, truth_ns: ArrayLike, zero_ns: ArrayLike | None = None
) -> Numbers:
    """Errors of times (n,) in ns, with the zero that the inputs of each event had, if any."""
    return quantity_metrics("timing", point_ns, truth_ns, zero=zero_ns)


def position_metrics(point_cm: ArrayLike, truth_cm: ArrayLike, **claims: ArrayLike) -> Numbers:
    """Errors of (u, v, w) (n, 3) in cm; `claims` as in `quantity_metrics`."""
    return quantity_metrics("uvwFI", point_cm, truth_cm, **claims)


def direction_metrics(point: ArrayLike, truth: ArrayLike, **claims: ArrayLike) -> Numbers:
    """Errors of direction vectors (n, 3); `claims` as in `quantity_metrics`."""
    return quantity_metrics("angleVec", point, truth, **claims)


def quantity_metrics(
    name: str,
    point: ArrayLike,
    truth: ArrayLike,
    *,
    sigma: ArrayLike | None = None,
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
    zero: ArrayLike | None = None,
) -> Numbers:
    """Everything about the errors of a quantity.

    Args:
        name: A key of `QUANTITIES`, which has the unit and the k components.
        point: Predictions, (n, k), or (n,) for one component.
        truth: The same; NaN and markers beyond 9e9 where it is not known.
        sigma: Standard deviations that the network claims, shaped like `point`.
        low: The lowest of predicted quantiles, shaped like `point`; goes with `high`.
        high: The highest.
        zero: (n,), subtracted from the truth for the skill: a network cannot know this time.

    Returns:
        {metric: value}, NaN where no event counts; under the predecessor's `ALIASES`, too.
    """
    claims = {"sigma": sigma, "low": low, "high": high, "zero": zero}
    return _errors(name, point, truth, claims)[0]


def _errors(
    name: str, point: ArrayLike, truth: ArrayLike, claims: Mapping[str, ArrayLike | None]
) -> tuple[Numbers, np.ndarray]:
    """Returns what `quantity_metrics` does, and the residuals (n, k) of the events that count."""
    parts = QUANTITIES[name][1]
    given = {"point": point, "truth": truth, **claims}
    rows = {key: _rows(value, len(parts)) for key, value in given.items() if value is not None}
    known = [_known(rows[key]) for key in ("truth", "zero") if key in rows]
    used = np.all([*known, *(np.isfinite(value).all(-1) for value in rows.values())], axis=0)
    found = {f"n_{name}": float(used.sum()), f"n_{name}_left_out": float((~used).sum())}
    rows = {key: value[used] for key, value in rows.items()}
    point, truth = rows["point"], rows["truth"]
    residual = residuals(name, point, truth)
    away = residuals(name, truth, rows.get("zero", _center(name, truth)))
    for i, part in enumerate(parts):
        found |= {f"{part}_{key}": value for key, value in moments(residual[:, i]).items()}
        found[f"{part}_skill"] = skill(residual[:, i], away[:, i])
        found |= _percentile(f"{part}_res_68pct", residual[:, i])
    if name in DIRECTIONS:
        psi = opening_angle_deg(point, truth)
        found |= _percentile(f"{name}_resolution_68pct", psi)
        # 1 - cos, of which float64 leaves nothing at 1e-6 degrees.
        found[f"{name}_cos"] = _mean(2 * np.sin(np.deg2rad(psi) / 2) ** 2)
    if name == "uvwFI":
        distance = np.linalg.norm(residual, axis=-1)
        found["uvw_dist_mean"] = _mean(distance)
        found |= _percentile("uvw_dist_68pct", distance)
    if name == "energy":
        share = residual[:, 0] / np.maximum(np.abs(truth[:, 0]), 1e-6)
        found |= _percentile("energy_rel_res_68pct", share)
    if "sigma" in rows:
        found[f"{name}_sigma_mean"] = _mean(rows["sigma"])
        with np.errstate(divide="ignore", invalid="ignore"):
            found[f"{name}_pull_rms"] = _mean((residual / rows["sigma"]) ** 2) ** 0.5
    if "low" in rows and "high" in rows:
        near = point - residual  # the truth, within half a turn of the prediction
        found[f"{name}_coverage"] = _mean((rows["low"] <= near) & (near <= rows["high"]))
    if name in SMALLER:
        unit, factor = SMALLER[name]
        for key in ERRORS:
            found[f"{name}_{key}_{unit.lower()}"] = factor * found[f"{name}_{key}"]
    found |= {old: found[ours] for old, ours in ALIASES.items() if ours in found}
    return found, residual


def residuals(name: str, point: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Returns point - truth (n, k), azimuths without whole turns."""
    difference = point - truth
    if name == "angle":
        difference[:, 1] = wrap_degrees(difference[:, 1])
    return difference


def regression_metrics(
    arrays: Mapping[str, np.ndarray], zero_ns: ArrayLike | None = None
) -> Numbers:
    """Errors of everything that was predicted and has a truth.

    Args:
        arrays: `pred_x` and `true_x` by quantity, and `pred_x_sigma`, `pred_x_low`, `pred_x_high`
            if there are any. Classes have no order: of `n_gamma` the share that is right.
        zero_ns: (n,), see `timing_metrics`.

    Returns:
        The metrics of all quantities, and sums over them that the predecessor has.
    """
    found: Numbers = {}
    sums = dict.fromkeys(("smooth_l1", "l1", "mse"), 0.0)
    names = [name for name in QUANTITIES if {f"pred_{name}", f"true_{name}"} <= arrays.keys()]
    for name in names:
        claims: dict[str, ArrayLike | None] = {"zero": zero_ns if name == "timing" else None}
        claims |= {key: arrays.get(f"pred_{name}_{key}") for key in ("sigma", "low", "high")}
        errors, residual = _errors(name, arrays[f"pred_{name}"], arrays[f"true_{name}"], claims)
        found, size = found | errors, np.abs(residual)
        sums["smooth_l1"] += _mean(np.where(size < 1, size**2 / 2, size - 0.5))
        sums["l1"] += _mean(size)
        sums["mse"] += _mean(size**2)
    if names:
        found |= sums
    if directions := [name for name in names if name in DIRECTIONS]:
        found["cos"] = sum(found[f"{name}_cos"] for name in directions)
    if {"pred_n_gamma", "true_n_gamma"} <= arrays.keys():
        point, truth = (_rows(arrays[f"{key}_n_gamma"], 1) for key in ("pred", "true"))
        used = ((truth >= 0) & (truth < N_CLASSES)).all(-1)
        found["n_n_gamma"], found["n_n_gamma_left_out"] = float(used.sum()), float((~used).sum())
        found["n_gamma_accuracy"] = _mean((point == truth)[used])
    return found


def sensor_metrics(
    predicted: ArrayLike, truth: ArrayLike, at_least: float = BRIGHT_PHOTONS
) -> Numbers:
    """The comparison of filled sensors with their truth, in photons.

    Args:
        predicted: Photons, any shape; not finite where a method has failed.
        truth: The same shape; NaN and markers beyond 9e9 where it is not known.
        at_least: All but the first of the errors are those of sensors with so many photons.

    Returns:
        {metric: value}; NaN where no sensor counts.
    """
    p, t = (np.asarray(values, np.float64).ravel() for values in (predicted, truth))
    known = np.abs(t) <= INVALID_ABOVE
    used = known & np.isfinite(p)
    bright = used & (t >= at_least)
    d = (p - t)[bright]
    share = d / t[bright]
    return {
        "mae_photons": _mean(np.abs((p - t)[used])),
        "bright_mae_photons": _mean(np.abs(d)),
        "bright_rms_photons": _mean(d**2) ** 0.5,
        "bright_bias_photons": _mean(d),
        "rel_mae": _mean(np.abs(share)),
        "rel_rms": _mean(share**2) ** 0.5,
        **_percentile("rel_res_68pct", share),
        "n_masked_total": float(known.sum()),
        "n_bright": float(bright.sum()),
        "failed": _mean(~used[known]),
    }


def by_face(
    predicted: ArrayLike, truth: ArrayLike, face: ArrayLike, at_least: float = BRIGHT_PHOTONS
) -> dict[str, Numbers]:
    """Returns {face: `sensor_metrics`} for the faces that occur.

    Args:
        predicted: See `sensor_metrics`.
        truth: The same shape.
        face: Face code of each sensor (`Detector.sensor_face`), broadcastable to the truth.
        at_least: See `sensor_metrics`.
    """
    p, t = (np.asarray(values) for values in (predicted, truth))
    codes = np.broadcast_to(np.asarray(face), t.shape)
    on = {name: codes == code for code, name in enumerate(FACES)}
    return {name: sensor_metrics(p[m], t[m], at_least) for name, m in on.items() if m.any()}


def by_truth_bins(
    predicted: ArrayLike,
    truth: ArrayLike,
    at_least: float = BRIGHT_PHOTONS,
    n_bins: int = 30,
    fewest: int = 10,
) -> dict[str, np.ndarray]:
    """The errors of sensors of similar brightness, in bins of equal width in log(truth).

    The bins depend on the truth alone, so that methods can be compared bin by bin.

    Args:
        predicted: See `sensor_metrics`.
        truth: The same shape.
        at_least: Where the first bin begins, in photons.
        n_bins: Number of bins.
        fewest: Bins with fewer sensors are left out.

    Returns:
        float64 columns, a row per bin: its edges `low` and `high`, and those of `sensor_metrics`.
    """
    p, t = (np.asarray(values, np.float64).ravel() for values in (predicted, truth))
    names = ("low", "high", *sensor_metrics([], []))
    known = (np.abs(t) <= INVALID_ABOVE) & (t >= at_least)
    p, t = p[known], t[known]
    table = []
    if t.size and t.max() > at_least:
        edges = np.geomspace(at_least, t.max(), n_bins + 1)
        place = np.clip(np.searchsorted(edges, t, "right") - 1, 0, n_bins - 1)
        for k in range(n_bins):
            if (inside := place == k).sum() >= fewest:
                row = sensor_metrics(p[inside], t[inside], at_least)
                table.append([edges[k], edges[k + 1], *row.values()])
    columns = np.array(table, np.float64).reshape(-1, len(names)).T
    return dict(zip(names, columns, strict=True))


def _rows(values: ArrayLike, width: int) -> np.ndarray:
    """Float64 (n, width), always a copy."""
    return np.array(values, np.float64).reshape(-1, width)


def _known(rows: np.ndarray) -> np.ndarray:
    """Bool (n,), False where a number is NaN or a marker."""
    return (np.abs(rows) <= INVALID_ABOVE).all(-1)


def _center(name: str, truth: np.ndarray) -> np.ndarray:
    """A point (k,) near the truth; azimuths are averaged as directions."""
    if name != "angle" or not len(truth):
        return np.zeros(truth.shape[-1])
    phi = np.deg2rad(truth[:, 1])
    return np.array([0.0, np.rad2deg(np.arctan2(np.sin(phi).mean(), np.cos(phi).mean()))])


def _mean(values: np.ndarray) -> float:
    return float(values.mean(dtype=np.float64)) if values.size else float("nan")


def _percentile(name: str, error: np.ndarray) -> Numbers:
    return {name: percentile68(error), f"{name}_error": percentile68_error(error)}


def _vectors(direction: np.ndarray) -> np.ndarray:
    """Unit vectors of (theta, phi) in degrees; vectors as they are."""
    if direction.shape[-1] == 3:
        return direction
    theta, phi = np.moveaxis(np.deg2rad(direction), -1, 0)
    sine = np.sin(theta)
    return np.stack([-sine * np.cos(phi), sine * np.sin(phi), np.cos(theta)], -1)
