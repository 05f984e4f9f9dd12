"""Questions to the values of some events: which events cannot be what their branches promise.

Source: units and conventions of the MEG II liquid-xenon trees. Energies are in GeV (signal
0.0528, selection above 0.0145), true times in ns, times of sensors in s, positions in cm, angles
in degrees.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from xec_jax.data.invalid import dead_events
from xec_jax.geometry import INNER_RADIUS_CM, INVALID_ABOVE

LARGEST_NPHO = 1e7  # photons in a sensor; a signal has a million in all sensors together
LARGEST_TIME_S = 1e-5  # the digitizers record 1e-6 s
BRIGHT_NPHO = 100.0  # photons; a sensor with more of them should have a time
LARGEST_FRACTION = 1.5  # of the brightest sensor: `relative_npho` is at most 1
LARGEST_ENERGY_GEV = 0.15  # the most energetic photons of pion capture have 0.129
MANY_NAN = 0.01  # share of NaN and infinite values that is worth a word
BROKEN_SENSORS = 0.01  # a larger share with impossible values is a wrong unit, not broken sensors

SHAPES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("energyTruth", "energyReco", "timeTruth"), ()),
    **dict.fromkeys(("npho_max_used", "time_min_used"), ()),
    "emiAng": (2,),
    **dict.fromkeys(("emiVec", "uvwTruth", "xyzTruth", "xyzVTX"), (3,)),
}
"""Branches that are looked at besides those of the sensors, with the shape of one event."""

TRUTH = ("energyTruth", "timeTruth", "emiAng", "emiVec", "uvwTruth", "xyzTruth", "xyzVTX")

Arrays = Mapping[str, np.ndarray]


class Evidence(NamedTuple):
    """What one question found in some events.

    Attributes:
        wrong: Events that look wrong.
        events: Events that the question could be asked about.
        example: A wrong value, with its unit.
    """

    wrong: int
    events: int
    example: str


Findings = dict[tuple[str, str], Evidence]
"""What was found, by rule and branch."""


def gather(
    arrays: Arrays,
    *,
    npho_branch: str,
    time_branch: str | None,
    normalization: Mapping[str, Any] | None = None,
    energy_unit: str = "GeV",
) -> Findings:
    """Asks all questions about some events; arguments as for `doubts.doubts`."""
    arrays = {name: _flat(np.asarray(values)) for name, values in arrays.items()}
    arrays = {
        name: values
        for name, values in arrays.items()
        if len(values) and values.shape[1:] == SHAPES.get(name, values.shape[1:])
    }
    sensors = {
        name: values for name, values in arrays.items() if values.ndim == 2 and name not in SHAPES
    }
    found: Findings = {}

    def note(
        rule: str,
        branch: str,
        wrong: np.ndarray,
        example: Callable[[int], str] = lambda event: "",
        asked: np.ndarray | None = None,
    ) -> None:
        """Counts the wrong events among those that were asked about."""
        wrong = wrong if asked is None else wrong & asked
        events = len(wrong) if asked is None else int(asked.sum())
        first = example(int(np.argmax(wrong))) if wrong.any() else ""
        found[rule, branch] = Evidence(int(wrong.sum()), events, first)

    for name in dict.fromkeys((npho_branch, "npho")):
        if name in sensors:
            _photons(note, name, sensors[name], normalization if name == npho_branch else None)
    for name in dict.fromkeys((time_branch or "time", "time")):
        if name in sensors:
            _times(note, name, sensors[name], sensors.get(npho_branch))
    _relative(note, sensors, arrays)
    for name in ("energyTruth", "energyReco"):
        if name in arrays:
            _energy(note, name, arrays[name], energy_unit)
    _truth(note, arrays)
    return found


def _photons(note: Callable, name: str, values: np.ndarray, constants: Mapping | None) -> None:
    usable = _usable(values)
    _size(note, "npho_size", name, values, usable, LARGEST_NPHO, "photons")
    dead = dead_events(values)
    note("dead", name, dead)
    n_usable = usable.sum(axis=1)
    note("npho_invalid", name, 2 * n_usable < values.shape[1])
    negative = np.count_nonzero(usable & (values < 0), axis=1)
    note("npho_negative", name, 2 * negative > n_usable)
    brightest = np.where(usable, values, -np.inf).max(axis=1)
    scale = float(constants["npho_scale"]) if constants else 0.0
    if constants and scale < 10 and constants.get("npho_scheme", "log1p") != "log1p":
        return  # photons and fractions are as likely

    def show(event: int) -> str:
        return f"{brightest[event]:.3g} in the brightest sensor"

    if scale < 10 if constants else name.startswith("relative"):
        limit = 100 if constants else LARGEST_FRACTION
        note("photons", name, brightest > limit, show, ~dead)
    else:
        note("fractions", name, brightest <= LARGEST_FRACTION, show, ~dead)


def _times(note: Callable, name: str, values: np.ndarray, npho: np.ndarray | None) -> None:
    usable = _usable(values)
    _size(note, "time_size", name, values, usable, LARGEST_TIME_S, "s")
    if npho is not None and npho.shape == values.shape:
        bright = (npho > BRIGHT_NPHO) & _usable(npho)  # dim sensors often have no time
        n_bright = bright.sum(axis=1)
        timed = np.count_nonzero(bright & usable, axis=1)
        note("time_invalid", name, 2 * timed < n_bright, asked=n_bright > 0)


def _size(
    note: Callable,
    rule: str,
    name: str,
    values: np.ndarray,
    usable: np.ndarray,
    limit: float,
    unit: str,
) -> None:
    beyond = usable & (np.abs(values) > limit)
    n_beyond = beyond.sum(axis=1)
    is_broken = n_beyond <= BROKEN_SENSORS * usable.sum(axis=1)

    def show(event: int) -> str:
        return ", ".join(f"{value:.3g}" for value in values[event][beyond[event]][:3]) + f" {unit}"

    note(f"{rule}_broken", name, (n_beyond > 0) & is_broken, show)
    note(rule, name, (n_beyond > 0) & ~is_broken, show)


def _relative(note: Callable, sensors: Arrays, arrays: Arrays) -> None:
    """Compares relative branches with the absolute ones and their reference."""
    for quantity, used in (("npho", "npho_max_used"), ("time", "time_min_used")):
        relative, absolute = sensors.get(f"relative_{quantity}"), sensors.get(quantity)
        if relative is None or absolute is None or used not in arrays:
            continue
        if relative.shape != absolute.shape:
            continue
        reference = arrays[used].astype(np.float64)[:, None]
        if quantity == "npho":
            is_gap = _usable(relative) & ~_usable(absolute)
            note("relative_gaps", "relative_npho", is_gap.any(axis=1))
        good = _usable(relative) & _usable(absolute) & _usable(reference)
        with np.errstate(over="ignore", invalid="ignore"):  # markers and NaN do not count
            is_time = quantity == "time"
            expected = reference + relative if is_time else reference * relative
            tolerance = 1e-11 if is_time else 1e-3 * np.abs(reference)  # s or photons
            wrong = good & (np.abs(expected - absolute) > tolerance)
        note("relative", f"relative_{quantity}", wrong.any(axis=1), asked=good.any(axis=1))


def _energy(note: Callable, name: str, values: np.ndarray, unit: str) -> None:
    usable = _usable(values)
    values = np.where(usable, values, 0.05).astype(np.float64)
    gev = values if unit == "GeV" else values * 1e-3

    def show(event: int) -> str:
        return f"{values[event]:.4g} {unit}"

    # A photon of less than 1 MeV is none: the files hold GeV though MeV were announced.
    mistaken = gev > 1 if unit == "GeV" else (gev > 0) & (gev < 1e-3)
    note("energy_unit", name, mistaken, show, usable)
    outside = ~mistaken & ((gev <= 0) | (gev > LARGEST_ENERGY_GEV))
    note("energy_range", name, outside, show, usable)


def _truth(note: Callable, arrays: Arrays) -> None:
    """Looks at the other true values, and whether they agree with each other."""
    truth = {name: arrays[name].astype(np.float64) for name in TRUTH if name in arrays}
    good = {name: _usable(v.reshape(len(v), -1)).all(axis=1) for name, v in truth.items()}
    for name, usable in good.items():
        note("truth_invalid", name, ~usable)
        truth[name][~usable] = np.nan  # compares as False from here on
    if "timeTruth" in truth:
        time = truth["timeTruth"]
        size = np.abs(time)
        wrong = (size > 1e5) | ((size > 0) & (size < 1e-4))
        note("true_time", "timeTruth", wrong, lambda e: f"{time[e]:.3g}", good["timeTruth"])
    angles = truth.get("emiAng")
    if angles is not None:
        radians = np.abs(angles).max(axis=1) <= 3.2
        note("radians", "emiAng", radians, lambda e: _show(angles[e]), good["emiAng"])
    if "emiVec" in truth:
        vector = truth["emiVec"]
        norm = np.linalg.norm(vector, axis=1)
        off = np.abs(norm - 1) > 1e-3
        note("norm", "emiVec", off, lambda e: f"{norm[e]:.3g}", good["emiVec"])
        if angles is not None:
            theta, phi = np.deg2rad(angles).T
            sine = np.sin(theta)
            by_angles = np.stack([-sine * np.cos(phi), sine * np.sin(phi), np.cos(theta)], -1)
            both = good["emiVec"] & good["emiAng"] & ~off & ~radians
            wrong = _degrees(by_angles, vector) > 0.1
            note("direction", "emiAng", wrong, lambda e: _show(angles[e]) + " degrees", both)
        if {"xyzTruth", "xyzVTX"} <= truth.keys():
            flight = truth["xyzTruth"] - truth["xyzVTX"]
            length = np.linalg.norm(flight, axis=1)
            both = good["emiVec"] & (length > 0) & ~off
            flight /= np.where(length > 0, length, 1)[:, None]
            wrong = _degrees(flight, vector) > 0.1
            note("direction", "xyzTruth", wrong, lambda e: _show(flight[e]), both)
    if {"uvwTruth", "xyzTruth"} <= truth.keys():
        uvw, (x, y, z) = truth["uvwTruth"], truth["xyzTruth"].T
        # As `kinematics.xyz_to_uvw`, without JAX.
        v = -np.arctan2(-y, -x) * INNER_RADIUS_CM
        expected = np.stack([z, v, np.hypot(x, y) - INNER_RADIUS_CM], -1)
        wrong = np.abs(uvw - expected).max(axis=1) > 0.1

        def show(event: int) -> str:
            return f"{_show(uvw[event])} cm against {_show(expected[event])} cm"

        note("position", "uvwTruth", wrong, show, good["uvwTruth"] & good["xyzTruth"])


def _flat(values: np.ndarray) -> np.ndarray:
    """Turns `[b, 1]` into `[b]`: producers differ in how they write one number."""
    return values[:, 0] if values.shape[1:] == (1,) else values


def _usable(values: np.ndarray) -> np.ndarray:
    """True where a value is neither NaN nor infinite nor the marker of invalid values."""
    return np.abs(values) <= INVALID_ABOVE  # False for NaN


def _degrees(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns small angles between unit vectors (b, 3), in degrees."""
    return np.rad2deg(np.linalg.norm(a - b, axis=1))


def _show(vector: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in vector) + ")"
