"""Classical methods that fill hidden sensors, beside the network, and what nobody can do better."""

from collections.abc import Iterator
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from xec_jax.baselines.local_fit import local_fit
from xec_jax.baselines.ridge import Ridge, fit_ridge
from xec_jax.baselines.solid_angle import solid_angle_average
from xec_jax.evaluation.base import Arrays, Setting
from xec_jax.evaluation.calibration import calibration_batches
from xec_jax.geometry import INVALID_ABOVE, make_detector
from xec_jax.sim.counting import counting_limit

NETWORK = "network"
METHODS = ("neighbors", "disk", "solid_angle", "local_fit", "ridge")
POINTS = ("xyzTruth", "xyzRecoFI")
"""Branches with the conversion point (3,) in cm, in the order of preference."""


class Fillers:
    """All methods, made ready for a run.

    The touching neighbors and those within 20 cm come with the task. The solid angle needs a
    conversion point, and the ridge events to be fitted to; without them, they say nothing.

    Args:
        setting: The run; `Options.opponents` of 0 leaves all but the averages out.
    """

    LABELS: ClassVar = {
        NETWORK: "network",
        "neighbors": "touching neighbors",
        "disk": "within 20 cm",
        "solid_angle": "solid angle",
        "local_fit": "local fit",
        "ridge": "ridge",
    }
    SHORT: ClassVar = {
        "neighbors": "near",
        "disk": "avg",
        "solid_angle": "sa",
        "local_fit": "localfit",
        "ridge": "ridge",
    }
    """Names in branches."""

    LIMIT_NOTE = (
        "counting limit: what photon statistics, charges of single photoelectrons and noise of the "
        "sensor leave to those who do not see it, for measured photons in the place of expected "
        "ones, and so right to a few percent"
    )

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.detector = make_detector()  # where sensors are, whatever map the network is shown
        branch = setting.run.config.data.npho_branch
        self.is_on = setting.options.opponents > 0 and "relative" not in branch
        self.ridge: Ridge | None = self._fitted() if self.is_on else None

    def _fitted(self) -> Ridge | None:
        pairs = ((b["npho"], _is_live(b["npho"])) for b in calibration_batches(self.setting))
        first = next(pairs, None)
        if first is None:
            return None

        def chained() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            yield first
            yield from pairs

        return fit_ridge(self.detector, chained())

    def __call__(self, host: Arrays, found: Arrays) -> dict[str, np.ndarray]:
        """Fills a batch: photons (b s) by method, NaN where it says nothing.

        Args:
            host: Arrays of the events.
            found: What `Task.inspect` returned: `hidden`, `valid` and the averages.
        """
        filled = {name: found[name] for name in ("neighbors", "disk")}
        if not self.is_on:
            return filled
        n, size = len(host["npho"]), self.setting.options.batch_size
        photons, live = host["npho"], found["valid"][..., 0] & ~found["hidden"]
        full = [_filled_up(values, size) for values in (photons, live)]
        filled["local_fit"] = np.asarray(local_fit(self.detector, *full).filled)[:n]
        point = next((host[name] for name in POINTS if name in host), None)
        if point is not None:
            value, _ = solid_angle_average(
                self.detector, *map(jnp.asarray, full), jnp.asarray(_filled_up(point, size))
            )
            is_known = np.asarray(np.abs(point) < INVALID_ABOVE).all(-1, keepdims=True)
            filled["solid_angle"] = np.where(is_known, np.asarray(value)[:n], np.float32(np.nan))
        if self.ridge is not None:
            wanted = found["hidden"] | ~found["valid"][..., 0]
            filled["ridge"] = self.ridge.fill(photons, live, wanted)
        return filled

    def limit(self, host: Arrays, row: np.ndarray, sensor: np.ndarray) -> dict[str, np.ndarray]:
        """The least mean error (n,) of sensors in photons; nothing if the detector is not known."""
        if self.setting.sample is None or not self.is_on:
            return {}
        limit = counting_limit(host["npho"], self.setting.sample).mean_absolute
        return {"limit": limit[row, sensor].astype(np.float32)}

    def methods(self, arrays: Arrays) -> list[str]:
        """Returns the methods that columns are there for, the network first."""
        return [name for name in (NETWORK, *METHODS) if name in arrays]


def _is_live(npho: np.ndarray) -> np.ndarray:
    return np.asarray((npho > 0) & (npho <= INVALID_ABOVE))


def _filled_up(values: Any, size: int) -> np.ndarray:
    """Repeats the last event: one shape, one compilation."""
    values = np.asarray(values)
    return np.concatenate([values, np.repeat(values[-1:], size - len(values), 0)])
