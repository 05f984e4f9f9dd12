"""Errors of hidden sensors in photons as float64 sums by face, for sets too large to be kept."""

import numpy as np

from xec_jax.geometry import FACES
from xec_jax.metrics import BRIGHT_PHOTONS

N_FACES = len(FACES)


class PhotonSums:
    """Errors of a method on hidden sensors, over all faces and face by face.

    Args:
        method: Ending of the names of metrics, such as `_ridge`; empty for the network.
    """

    def __init__(self, method: str = "") -> None:
        self.method = method
        self._size = np.zeros((2, N_FACES))
        self._bright = np.zeros(6)
        self._asked = np.zeros(2)

    def add(self, predicted: np.ndarray, truth: np.ndarray, face: np.ndarray) -> None:
        """Adds sensors (n,): photons predicted and true, and the face code.

        Predictions that are not finite count as failed, and for nothing else.
        """
        p, t = (np.asarray(values, np.float64) for values in (predicted, truth))
        used = np.isfinite(p)
        self._asked += np.array([len(used), np.count_nonzero(~used)], float)
        d, t = (p - t)[used], t[used]
        for k, values in enumerate((np.ones_like(d), np.abs(d))):
            self._size[k] += np.bincount(np.asarray(face)[used], values, N_FACES)
        bright = t >= BRIGHT_PHOTONS
        d, share = d[bright], d[bright] / t[bright]
        sums = (np.abs(d), d, d**2, np.abs(share), share**2)
        self._bright += np.array([len(d), *(values.sum() for values in sums)])

    def metrics(self) -> dict[str, float]:
        """Returns the names of `metrics.sensor_metrics` but percentiles; NaN for no sensor."""
        n, size = self._size
        ending = self.method
        found = {f"mae_photons{ending}": _ratio(size.sum(), n.sum())}
        for code, name in enumerate(FACES):
            found[f"mae_{name}_photons{ending}"] = _ratio(size[code], n[code])
        number, mae, bias, square, rel, rel_square = self._bright
        found |= {
            f"bright_mae_photons{ending}": _ratio(mae, number),
            f"bright_bias_photons{ending}": _ratio(bias, number),
            f"bright_rms_photons{ending}": _ratio(square, number) ** 0.5,
            f"rel_mae{ending}": _ratio(rel, number),
            f"rel_rms{ending}": _ratio(rel_square, number) ** 0.5,
            f"failed{ending}": _ratio(self._asked[1], self._asked[0]),
        }
        return found


def _ratio(total: float, n: float) -> float:
    return float(total / n) if n else float("nan")
