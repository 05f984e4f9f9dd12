"""Errors of hidden sensors of a whole set, in sums that need no rows: there are 3000 per event."""

import numpy as np

from xec_jax.geometry import FACES


class ChannelSums:
    """Errors of a channel of hidden sensors, over all faces and face by face, in float64.

    Args:
        channel: `npho` or `time`.
        unit_ns: What one normalized unit of a time is in ns, for `mae_time_ns`.
    """

    def __init__(self, channel: str, unit_ns: float | None = None) -> None:
        self.channel, self.unit_ns = channel, unit_ns
        self._sums = np.zeros((5, len(FACES)))

    def add(self, predicted: np.ndarray, truth: np.ndarray, face: np.ndarray) -> None:
        """Adds sensors (n,) that count: normalized prediction and truth, and the face code.

        Those whose prediction is not finite are no error of any size: they are left out, and
        `sensor_metrics` says how many there are.
        """
        p, t = (np.asarray(values, np.float64) for values in (predicted, truth))
        used = np.isfinite(p) & np.isfinite(t)
        d, t, face = (p - t)[used], t[used], np.asarray(face)[used]
        for k, values in enumerate((np.ones_like(t), np.abs(d), d**2, t, t**2)):
            self._sums[k] += np.bincount(face, values, len(FACES))

    def metrics(self) -> dict[str, float]:
        """Returns `mae_`, `rmse_` and `r2_` of all sensors and of each face; NaN for none."""
        found = {}
        table = {"": self._sums.sum(1)}
        table |= {f"{name}_": self._sums[:, code] for code, name in enumerate(FACES)}
        for prefix, (n, size, square, mean, power) in table.items():
            name, n = f"{prefix}{self.channel}", n or np.nan
            spread = power / n - (mean / n) ** 2
            found[f"mae_{name}"] = float(size / n)
            found[f"rmse_{name}"] = float(square / n) ** 0.5
            found[f"r2_{name}"] = float(1 - square / n / max(spread, 1e-12))
        if self.unit_ns is not None:
            found[f"mae_{self.channel}_ns"] = self.unit_ns * found[f"mae_{self.channel}"]
        return found
