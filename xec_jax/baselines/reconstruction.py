"""The classical reconstruction: light sum, centroid, earliest time and direction, put together.

    fitted = calibrate(events, detector)     constants, from a few thousand events with truth
    fitted.reconstruct(others)               arrays, one row per event

Position first: the energy is corrected for it, and paths of the light start there.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from xec_jax.baselines.centroid import Centroid, calibrate_centroid, centroid, light_moments
from xec_jax.baselines.earliest_time import absolute_time, earliest_time
from xec_jax.baselines.fill_dead import fill_dead
from xec_jax.baselines.least_squares import fit_linear
from xec_jax.baselines.light_sum import calibrate_light_sum, face_sums, light_sum
from xec_jax.baselines.vertex_direction import vertex_direction
from xec_jax.errors import DataError
from xec_jax.geometry import INVALID_ABOVE, Detector
from xec_jax.kinematics import uvw_to_xyz
from xec_jax.sim.lxe_parameters import LxeParameters
from xec_jax.sim.lxe_readout import nominal_efficiency

BLOCK = 128
"""Events at a time: some 5 MB per array of doubles."""

Events = Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """The methods with their constants; None where calibration events had no truth for one.

    Attributes:
        detector: Faces and positions of the sensors.
        params: Efficiencies and constants of the times; nothing else is used.
        place: Constants of the position.
        light: Of the energy (6,), or (15,) with its correction for the position.
        late_ns: Mean error of the times by depth: first plus second times w in cm (2,).
    """

    detector: Detector
    params: LxeParameters
    place: Centroid | None = None
    light: np.ndarray | None = None
    late_ns: np.ndarray | None = None

    def reconstruct(self, events: Events) -> dict[str, np.ndarray]:
        """Reconstructs events.

        Args:
            events: `npho` (n, s) in photons, dead sensors beyond 9e9 or NaN; if times are wanted
                `time` (n, s) in s, with `time_min_used` (n,) in s if they are relative to it
                (`absolute_time`); and `xyzVTX` (n, 3) in cm, if known.

        Returns:
            float64, NaN where an event does not have what is needed: `energy_light_sum` (n,) in
            GeV, `uvw_centroid` (n, 3) in cm, `timing_earliest` (n,) in ns, `angle_vertex` (n, 2)
            in degrees, from the known vertex, and `angle_center` from the center of the target.
            Those that were not calibrated, or lack their branch, are left out.
        """
        parts = [self._block(part) for part in _blocks(events)]
        found = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        if "uvw_centroid" in found:
            if "xyzVTX" in events:
                found["angle_vertex"] = vertex_direction(found["uvw_centroid"], events["xyzVTX"])
            found["angle_center"] = vertex_direction(found["uvw_centroid"])
        return found

    def _block(self, events: Events) -> dict[str, np.ndarray]:
        sums, moments = light_of(self.detector, events)
        found, uvw = {}, None
        if self.place is not None:
            uvw = found["uvw_centroid"] = centroid(moments, self.place)
        if self.light is not None:
            found["energy_light_sum"] = light_sum(sums, self.light, uvw)
        if uvw is not None and self.late_ns is not None and "time" in events:
            late = self.late_ns[0] + self.late_ns[1] * uvw[:, 2]
            found["timing_earliest"] = time_of(self.detector, self.params, events, uvw) - late
        return found


def calibrate(
    events: Events, detector: Detector, params: LxeParameters | None = None
) -> Reconstruction:
    """Finds the constants of all methods that the events have truth for.

    Args:
        events: Branches as for `Reconstruction.reconstruct`, and the truth: `uvwTruth` (n, 3) in cm
            for position, times and directions, `energyTruth` (n,) in GeV, `timeTruth` (n,) in
            ns. At least 30 events, better a few thousand; not those to be reconstructed.
        detector: With the `physical` geometry.
        params: The defaults if not given; see `Reconstruction`.

    Raises:
        DataError: Too few events, or no truth at all.
    """
    params = LxeParameters() if params is None else params
    has = {key: key in events for key in ("uvwTruth", "energyTruth", "timeTruth", "time")}
    if not (has["uvwTruth"] or has["energyTruth"]):
        raise DataError(
            "calibration events without truth (have: " + ", ".join(sorted(events)) + ")",
            expected="uvwTruth, energyTruth, timeTruth or some of them",
            remedy="give simulated events, or leave the classical reconstruction out",
        )
    parts = [light_of(detector, part) for part in _blocks(events)]
    sums, moments = (np.concatenate(part) for part in zip(*parts, strict=True))
    found, uvw = Reconstruction(detector, params), None
    if has["uvwTruth"]:
        place = calibrate_centroid(moments, events["uvwTruth"])
        found, uvw = dataclasses.replace(found, place=place), centroid(moments, place)
    if has["energyTruth"]:
        light = calibrate_light_sum(sums, _flat(events["energyTruth"]), uvw)
        found = dataclasses.replace(found, light=light)
    if uvw is not None and has["timeTruth"] and has["time"]:
        blocks = zip(_blocks(events), _blocks({"uvw": uvw}), strict=True)
        times = [time_of(detector, params, part, at["uvw"]) for part, at in blocks]
        error = np.concatenate(times) - _flat(events["timeTruth"])
        terms = np.stack([np.ones(len(uvw)), uvw[:, 2]], 1)
        found = dataclasses.replace(found, late_ns=fit_linear(terms, error, "the times"))
    return found


def light_of(detector: Detector, events: Events) -> tuple[np.ndarray, np.ndarray]:
    """Returns the photons of each face (n, 6) and the `light_moments` of the inner face."""
    photons = fill_dead(detector, np.asarray(events["npho"]))
    return face_sums(detector, photons), light_moments(detector, photons)


def time_of(
    detector: Detector, params: LxeParameters, events: Events, uvw: np.ndarray
) -> np.ndarray:
    """Returns the `earliest_time` (n,) in ns of photons that convert at u, v, w (n, 3) in cm."""
    npho = np.asarray(events["npho"], np.float64)
    live = np.isfinite(npho) & (npho < INVALID_ABOVE)
    charge = np.where(live, npho, np.nan) * nominal_efficiency(params)
    conversion = np.asarray(uvw_to_xyz(uvw), np.float64)
    vertex = np.asarray(events.get("xyzVTX", np.zeros_like(conversion)), np.float64)
    time_ns = absolute_time(events) * 1e9
    positions = np.asarray(detector.sensors.positions, np.float64)
    return earliest_time(time_ns, charge, conversion, vertex, positions, params)


def _blocks(events: Events) -> Iterator[dict[str, np.ndarray]]:
    n = len(next(iter(events.values())))
    for start in range(0, max(n, 1), BLOCK):  # without events, one block without events
        yield {key: np.asarray(value[start : start + BLOCK]) for key, value in events.items()}


def _flat(truth: np.ndarray) -> np.ndarray:
    """(n,) in float64: scalars come as (n,) or (n, 1)."""
    return np.asarray(truth, np.float64).reshape(len(truth))
