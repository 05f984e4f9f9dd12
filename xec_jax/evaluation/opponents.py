"""The network beside classical reconstruction and physical limits, on the same events."""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import numpy as np

from xec_jax.baselines.likelihood_fit import calibrate_fit, fit_events
from xec_jax.baselines.reconstruction import calibrate
from xec_jax.baselines.vertex_direction import vertex_direction
from xec_jax.errors import XecError
from xec_jax.evaluation.base import Arrays, Columns, Drawing, Setting, Table
from xec_jax.evaluation.calibration import calibration_batches
from xec_jax.geometry import INVALID_ABOVE, design_positions, make_detector
from xec_jax.metrics import opening_angle_deg, percentile68, percentile68_error
from xec_jax.plots.panels import with_error
from xec_jax.sim.limits import TRUTH, event_limits, metrics_at_limit

log = logging.getLogger(__name__)

Found = TypeVar("Found")

BRANCHES = (*TRUTH, "time_min_used", "emiAng")
NETWORK, SIMPLE, FIT = "network", "classical", "likelihood fit"
BOUND, LINEAR = "Cramer-Rao bound", "best linear, showers"
SHOWER_EVENTS = 32
"""Events for the best linear estimator: 1 to 2 s each."""
FIT_EVENTS = 1000
"""Events that the corrections of the likelihood fit are found with: 3 ms each."""

NAMES = {
    "energy_rel_res_68pct": ("energy", "%", 100.0),
    "uvw_u_res_68pct": ("u", "mm", 10.0),
    "uvw_v_res_68pct": ("v", "mm", 10.0),
    "uvw_w_res_68pct": ("w", "mm", 10.0),
    "uvw_dist_68pct": ("distance", "mm", 10.0),
    "timing_res_68pct": ("time", "ps", 1000.0),
    "angle_resolution_68pct": ("direction", "deg", 1.0),
    "angle_resolution_68pct_vertex": ("direction, known vertex", "deg", 1.0),
}
"""Metric -> name, unit and factor in the table; 68th percentiles of absolute errors all of them."""

CLASSICAL = {
    "energy": "energy_light_sum",
    "uvwFI": "uvw_centroid",
    "timing": "timing_earliest",
    "angle": "angle_center",
}
FITTED = {
    "energy": "energy_corrected",
    "uvwFI": "uvw_corrected",
    "timing": "timing_corrected",
    "angle": "angle_fit",
}
AIMED = "aimed"
"""Direction of those who know where the photon started, as from the positron."""


class Opponents:
    """Keeps the first events as they were measured, and lets the others have a try at them.

    The classical column: light sum, charge centroid, earliest time, and the direction from the
    center of the target to the centroid; with constants from calibration events. The likelihood fit
    is that of a point-like shower, with its known bias taken off. Bound: point-like showers, known
    sensors and spread of vertices. Best linear: showers of unknown form. None of them sees more
    than the network: the vertex is known in a row of its own alone.

    Args:
        setting: The run; `Options.opponents` says how many events.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting, self.kept, self.n = setting, Columns(), 0
        self._results: dict[str, dict[str, tuple[float, float]]] | None = None
        self._has_warned = False

    def add(self, host: Arrays) -> None:
        """Keeps what is needed of a batch."""
        n = min(self.setting.options.opponents - self.n, len(host["weight"]))
        if n > 0 and self.setting.is_simulated and self._has_photons():
            names = ("npho", "time", *BRANCHES)
            self.kept.add({name: _flat(host[name][:n]) for name in names if name in host})
            self.n += n

    def _has_photons(self) -> bool:
        """Says, once, that shares of the brightest sensor are no photons."""
        branch = self.setting.run.config.data.npho_branch
        if "relative" in branch and not self._has_warned:
            log.warning("no classical methods and limits: %s holds no photons", branch)
            self._has_warned = True
        return "relative" not in branch

    def results(self, arrays: Arrays) -> dict[str, dict[str, tuple[float, float]]]:
        """Returns resolution and error by metric and method, computed once.

        Args:
            arrays: `pred_x` and `true_x` of all events, in their order.
        """
        if self._results is None:
            self._results = self._compute(arrays) if self.n else {}
        return self._results

    def _compute(self, arrays: Arrays) -> dict[str, dict[str, tuple[float, float]]]:
        truth = {
            name: arrays[f"true_{name}"][: self.n] for name in CLASSICAL if f"true_{name}" in arrays
        }
        if not truth:
            return {}
        estimates = {NETWORK: {name: arrays[f"pred_{name}"][: self.n] for name in truth}}
        if "angle" in truth:
            truth[AIMED] = truth["angle"]
        events = self.kept.arrays()
        estimates |= _tried(self._classical, events)
        found: dict[str, dict[str, tuple[float, float]]] = {name: {} for name in NAMES}
        for method, values in estimates.items():
            for quantity, estimate in values.items():
                if quantity in truth:
                    for name, error in errors(quantity, estimate, truth[quantity]).items():
                        found[name][method] = percentile68(error), percentile68_error(error)
        for method, limits in _tried(self._limits, events).items():
            for name, limit in limits.items():
                if name in found:
                    found[name][method] = limit, float("nan")
        is_asked = {name for name in found if NETWORK in found[name]}
        if "angle_resolution_68pct" in is_asked:
            is_asked.add("angle_resolution_68pct_vertex")
        return {name: found[name] for name in NAMES if name in is_asked and found[name]}

    def _classical(self, events: Arrays) -> dict[str, dict[str, np.ndarray]]:
        columns = Columns()
        for batch in calibration_batches(self.setting, BRANCHES):
            names = ("npho", "time", *BRANCHES)
            columns.add({name: _flat(batch[name]) for name in names if name in batch})
        known = columns.arrays()
        if "uvwTruth" not in known:
            return {}
        print(f"classical methods: {len(known['npho']):,} events to calibrate with", flush=True)
        known, asked = self._as_seen(known), self._as_seen(events)
        sample, vertex = self.setting.sample, events.get("xyzVTX")
        rebuilt = calibrate(known, make_detector(), sample).reconstruct(asked)
        found = {SIMPLE: {q: rebuilt[key] for q, key in CLASSICAL.items() if key in rebuilt}}
        places = {SIMPLE: rebuilt["uvw_centroid"]}
        if sample is not None and "time" in asked:
            table = design_positions()
            some = {name: values[:FIT_EVENTS] for name, values in known.items()}
            corrections = calibrate_fit(fit_events(some, table, sample), some)
            fitted = fit_events(asked, table, sample)
            fitted |= corrections.correct(fitted)
            found[FIT] = {q: fitted[key] for q, key in FITTED.items() if key in fitted}
            # Its error in depth lies along the flight: corrections do not help the direction.
            places[FIT] = fitted["uvw_fit"]
        if vertex is not None:
            for method, place in places.items():
                found[method][AIMED] = vertex_direction(place, vertex)
        return found

    def _as_seen(self, events: Arrays) -> dict[str, np.ndarray]:
        """Leaves out what the network does not see: the vertex, and times without their zero.

        Absolute times have no zero: the one of the files is that of other branches.
        """
        is_relative = "relative" in str(self.setting.run.config.data.time_branch)
        is_lost = {"xyzVTX"}
        if not is_relative:
            is_lost.add("time_min_used")
        elif "time_min_used" not in events:
            is_lost.add("time")
        return {name: values for name, values in events.items() if name not in is_lost}

    def _limits(self, events: Arrays) -> dict[str, dict[str, float]]:
        sample = self.setting.sample
        if sample is None or not set(TRUTH) <= events.keys():
            return {}
        live = events["npho"] < INVALID_ABOVE
        truth = {name: events[name] for name in TRUTH}
        points = event_limits(truth, sample, live)
        bound = metrics_at_limit(points)
        some = {name: values[:SHOWER_EVENTS] for name, values in truth.items()}
        linear = metrics_at_limit(event_limits(some, sample, live[:SHOWER_EVENTS], showers=True))
        # Few events are other events: the bound, known for both, takes off most of what differs.
        few = metrics_at_limit({name: values[:SHOWER_EVENTS] for name, values in points.items()})
        linear = {name: value * bound[name] / few[name] for name, value in linear.items()}
        return {BOUND: bound, LINEAR: linear}

    def tables(self, arrays: Arrays) -> list[Table]:
        """Returns the comparison: resolutions of all methods, and ratios to the network's."""
        results = self.results(arrays)
        methods = [
            m
            for m in (NETWORK, SIMPLE, FIT, LINEAR, BOUND)
            if any(m in found for found in results.values())
        ]
        if len(methods) < 2:
            return []
        rows: list[list[str | float]] = []
        for name, found in results.items():
            label, unit, factor = NAMES[name]
            cells = [_cell(found.get(m), factor) for m in methods]
            rows.append([label, unit, *cells, *_ratios(found)])
        note = (
            f"68 % of the first {self.n:,} events have smaller errors. Classical: light sum, "
            "centroid, earliest time, direction from the center of the target. Bound: point-like "
            f"showers. Best linear: showers of unknown form, {SHOWER_EVENTS} events, scaled to all "
            "of them by the bound."
        )
        columns = ("quantity", "unit", *methods, *RATIOS)
        return [Table("opponents", "Network, classical methods, limits", columns, rows, note)]

    def drawings(self) -> Iterator[Drawing]:
        """Yields the same as a figure."""
        from xec_jax.plots.limits import limits_figure

        results = self._results or {}
        if any(len(found) > 1 for found in results.values()):
            table: dict[str, Mapping[str, tuple[float, float]]] = {}
            for name, found in results.items():
                label, unit, factor = NAMES[name]
                table[f"{label} [{unit}]"] = {
                    m: (factor * value, factor * error) for m, (value, error) in found.items()
                }
            data = {
                f"{quantity}/{method}": np.array(pair)
                for quantity, found in table.items()
                for method, pair in found.items()
            }
            yield Drawing("limits", limits_figure(table, BOUND), data)


def _tried(compute: Callable[[Arrays], dict[str, Found]], events: Arrays) -> dict[str, Found]:
    """Computes opponents; where that cannot be, the network stands alone, and a warning says why.

    What it was trained for is known by then, and is not to be lost.
    """
    try:
        return compute(events)
    except XecError as error:
        log.warning("left out of the comparison: %s", error)
        return {}


RATIOS = ("network / best classical", "network / best linear", "network / bound")


def _ratios(found: Mapping[str, tuple[float, float]]) -> list[float]:
    """Returns the network's resolution over that of others; NaN where there are none."""
    network = found.get(NETWORK, (np.nan,))[0]
    classical = [found[m][0] for m in (SIMPLE, FIT) if m in found]
    others = [
        min(classical, default=np.nan),
        *(found.get(m, (np.nan,))[0] for m in (LINEAR, BOUND)),
    ]
    return [network / other for other in others]


def _cell(pair: tuple[float, float] | None, factor: float) -> str | float:
    if pair is None:
        return float("nan")
    value, error = (factor * part for part in pair)
    return with_error(value, error) if np.isfinite(error) else value


def errors(quantity: str, estimate: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the errors behind the metrics, of events whose truth and estimate are known."""
    n = len(truth)
    estimate, truth = (np.asarray(v, np.float64).reshape(n, -1) for v in (estimate, truth))
    used = (np.isfinite(estimate) & np.isfinite(truth)).all(-1)
    estimate, truth = estimate[used], truth[used]
    difference = estimate - truth
    if quantity in ("angle", AIMED):
        ending = "_vertex" if quantity == AIMED else ""
        return {f"angle_resolution_68pct{ending}": opening_angle_deg(estimate, truth)}
    if quantity == "energy":
        return {"energy_rel_res_68pct": difference[:, 0] / truth[:, 0]}
    if quantity == "timing":
        return {"timing_res_68pct": difference[:, 0]}
    found = {f"uvw_{axis}_res_68pct": difference[:, i] for i, axis in enumerate("uvw")}
    return found | {"uvw_dist_68pct": np.linalg.norm(difference, axis=-1)}


def _flat(values: np.ndarray) -> np.ndarray:
    """Drops an axis of length 1 that some files have."""
    return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
