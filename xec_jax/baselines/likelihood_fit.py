"""The likelihood fit of a point-like shower (`xec_jax.sim.likelihood`), for files of events.

A shower is not a point: the fit finds the middle of the light, some three centimeters deeper than
the conversion, and is the worse the longer the shower. A conventional reconstruction takes off what
is the same for all; `calibrate_fit` finds these corrections on events with truth, with w_f and
kappa = ln(chi2 / freedom), which tells long showers from short ones:

    w = polynomial of degree 2 in w_f and kappa                    6 constants
    u = u_f (a + b (w_f - w)), v likewise                          2 each
    E = E_f (a + b w + c u^2 + d v^2)                              4
    t = t_f + a + b w_f + c w                                      3

u needs the second constant since photons from the target, and their showers, lean outward.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from xec_jax.baselines.earliest_time import absolute_time
from xec_jax.baselines.least_squares import fit_linear, monomials
from xec_jax.baselines.light_sum import LARGEST_W_CM, light_place
from xec_jax.baselines.vertex_direction import vertex_direction
from xec_jax.geometry import SensorTable
from xec_jax.sim import likelihood
from xec_jax.sim.lxe_parameters import LxeParameters

BLOCK = 64
"""Events of one call: all calls have the same shape, and one compilation serves them."""
LONGEST_SHOWER = 2.0
"""kappa is kept within +- this: pile-up makes it arbitrarily large."""


def fit_events(
    events: Mapping[str, np.ndarray],
    table: SensorTable,
    params: LxeParameters,
    *,
    block: int = BLOCK,
    batch_size: int = 1,
) -> dict[str, np.ndarray]:
    """Fits events, a block at a time.

    Args:
        events: `npho` (n, s) in photons, `time` (n, s) in s, absolute, or relative to
            `time_min_used` (n,) if that is there; `xyzVTX` (n, 3) in cm, if known. Dead sensors
            beyond 9e9 or NaN.
        table: Positions and normals of the sensors.
        params: The detector.
        block: Events per call.
        batch_size: Events computed at once, 1 for a CPU and up to `block` for a GPU.

    Returns:
        float64 `energy_fit` (n,) in GeV, `uvw_fit` (n, 3) in cm, `timing_fit` (n,) in ns,
        `angle_fit` (n, 2) in degrees from the vertex (or the center of the target), and
        `chi2_fit` (n,), per degree of freedom; NaN where there is nothing to fit. `converged`
        bool (n,).
    """
    n = len(events["npho"])
    positions, normals = (np.asarray(a, np.float32) for a in table[:2])
    table = SensorTable(positions, normals, table.face)
    estimates = np.full((n, 5), np.nan)
    quality, converged = np.full(n, np.nan), np.zeros(n, bool)
    # A known vertex at the center and an unknown one are the same fit, but two compilations.
    vertex = np.zeros((n, 3), np.float32)
    if "xyzVTX" in events:
        vertex = np.asarray(events["xyzVTX"], np.float32)
    for start in range(0, n, block):
        part = slice(start, min(start + block, n))
        here = {key: np.asarray(events[key][part]) for key in _SENSORS if key in events}
        arrays = here["npho"], absolute_time(here), vertex[part]
        padded = [_padded(array, block) for array in arrays]
        found = likelihood.fit(*padded[:2], table, params, padded[2], batch_size=batch_size)
        count, freedom = part.stop - start, np.asarray(found.freedom)
        chi2 = np.asarray(found.chi2, np.float64) / np.maximum(freedom, 1)
        is_fit = ((freedom > 0) & np.isfinite(chi2))[:count]
        estimates[part] = np.where(is_fit[:, None], np.asarray(found.estimate)[:count], np.nan)
        quality[part] = np.where(is_fit, chi2[:count], np.nan)
        converged[part] = np.asarray(found.converged)[:count] & is_fit
    return _named(estimates, vertex) | {"chi2_fit": quality, "converged": converged}


_SENSORS = ("npho", "time", "time_min_used")


@dataclass(frozen=True, eq=False)
class FitCalibration:
    """Constants of the corrections; None where calibration events had no truth for one.

    Attributes:
        depth: (6,).
        u: (2,).
        v: (2,).
        energy: (4,).
        late_ns: (3,).
    """

    depth: np.ndarray
    u: np.ndarray
    v: np.ndarray
    energy: np.ndarray | None = None
    late_ns: np.ndarray | None = None

    def correct(
        self, found: Mapping[str, np.ndarray], vertex: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Takes the corrections off.

        Args:
            found: What `fit_events` returned.
            vertex: Where the photons came from (n, 3) in cm, the center of the target if not given.

        Returns:
            `uvw_corrected`, `angle_corrected` and, if they were calibrated, `energy_corrected` and
            `timing_corrected`, as the keys of `fit_events` that end in `_fit`.
        """
        uvw = self._place(found)
        corrected = {"uvw_corrected": uvw, "angle_corrected": vertex_direction(uvw, vertex)}
        if self.energy is not None:
            terms = _energy_terms(found, uvw)
            corrected["energy_corrected"] = terms @ self.energy
        if self.late_ns is not None:
            late = _late_terms(found, uvw) @ self.late_ns
            corrected["timing_corrected"] = found["timing_fit"] + late
        return corrected

    def _place(self, found: Mapping[str, np.ndarray]) -> np.ndarray:
        depth = np.maximum(_depth_terms(found) @ self.depth, 0.0)
        sides = [_side_terms(found, depth, k) @ c for k, c in enumerate((self.u, self.v))]
        return np.stack([*sides, depth], 1)


def calibrate_fit(
    found: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray]
) -> FitCalibration:
    """Finds the corrections from events with truth.

    Args:
        found: What `fit_events` returned for them.
        truth: `uvwTruth` (n, 3) in cm; `energyTruth` (n,) in GeV and `timeTruth` (n,) in ns, if
            there are any. Events that did not converge do not count.

    Raises:
        DataError: Too few events.
    """
    good = found["converged"]
    found = {key: value[good] for key, value in found.items()}
    uvw = np.asarray(truth["uvwTruth"], np.float64)[good]
    depth = fit_linear(_depth_terms(found), uvw[:, 2], "the depth of the fit")
    corrected = np.maximum(_depth_terms(found) @ depth, 0.0)
    sides = [
        fit_linear(_side_terms(found, corrected, k), uvw[:, k], f"{'uv'[k]} of the fit")
        for k in (0, 1)
    ]
    done = FitCalibration(depth, *sides)
    place = done._place(found)
    if "energyTruth" in truth:
        energy = np.asarray(truth["energyTruth"], np.float64).reshape(-1)[good]
        terms = _energy_terms(found, place) / energy[:, None]
        energy = fit_linear(terms, np.ones(len(energy)), "the energy of the fit")
        done = dataclasses.replace(done, energy=energy)
    if "timeTruth" in truth:
        late = np.asarray(truth["timeTruth"], np.float64).reshape(-1)[good] - found["timing_fit"]
        late = fit_linear(_late_terms(found, place), late, "the time of the fit")
        done = dataclasses.replace(done, late_ns=late)
    return done


def _depth_terms(found: Mapping[str, np.ndarray]) -> np.ndarray:
    kappa = np.clip(np.log(found["chi2_fit"]), -LONGEST_SHOWER, LONGEST_SHOWER)
    depth = found["uvw_fit"][:, 2] / LARGEST_W_CM
    return monomials(np.stack([depth, kappa], 1), 2)


def _side_terms(found: Mapping[str, np.ndarray], depth: np.ndarray, axis: int) -> np.ndarray:
    fitted = found["uvw_fit"]
    return np.stack([fitted[:, axis], fitted[:, axis] * (fitted[:, 2] - depth)], 1)


def _energy_terms(found: Mapping[str, np.ndarray], uvw: np.ndarray) -> np.ndarray:
    return found["energy_fit"][:, None] * monomials(light_place(uvw), 1)


def _late_terms(found: Mapping[str, np.ndarray], uvw: np.ndarray) -> np.ndarray:
    return np.stack([np.ones(len(uvw)), found["uvw_fit"][:, 2], uvw[:, 2]], 1)


def _named(estimates: np.ndarray, vertex: np.ndarray) -> dict[str, np.ndarray]:
    uvw = estimates[:, 1:4]
    return {
        "energy_fit": estimates[:, 0],
        "uvw_fit": uvw,
        "timing_fit": estimates[:, 4],
        "angle_fit": vertex_direction(uvw, vertex),
    }


def _padded(array: np.ndarray, block: int) -> jnp.ndarray:
    """Fills a block up with events without any measurement, which the fit leaves at once."""
    missing = [(0, block - len(array))] + [(0, 0)] * (array.ndim - 1)
    return jnp.asarray(np.pad(array.astype(np.float32), missing, constant_values=np.nan))
