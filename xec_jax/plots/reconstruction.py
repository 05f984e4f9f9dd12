"""What the masked autoencoder was shown of an event, and what it made of it."""

from typing import TYPE_CHECKING

import numpy as np

from xec_jax.errors import ShapeError
from xec_jax.geometry import INVALID_ABOVE, Detector
from xec_jax.plots.detector import color_norm, draw_detector
from xec_jax.plots.style import Quantity, house_style, make_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CHANNELS: tuple[tuple[Quantity, str, float], ...] = (
    ("npho", "photons", 1.0),
    ("time", "ns", 1e9),
)


def reconstruction_figure(
    detector: Detector,
    *,
    truth: np.ndarray,
    masked: np.ndarray,
    prediction: np.ndarray,
    hidden: np.ndarray,
    valid: np.ndarray,
    run: int | None = None,
    event: int | None = None,
    title: str = "Reconstruction of hidden sensors",
) -> "Figure":
    """Draws truth, masked input, prediction and residual of one event, photons above time.

    The prediction is shown where the network had to fill in something, on hidden and on dead
    sensors (no valid photon count), together with the input elsewhere: what it says about
    sensors that it saw, or about times of sensors without light, is not trained. The residual,
    prediction - truth, is confined to hidden sensors with a valid truth. Truth, input and
    prediction share their colors, which follow the truth.

    Args:
        detector: Any description of the calorimeter.
        truth: (s, 2), photons and seconds.
        masked: (s, 2), the input in the same units; hidden sensors are gray in any case.
        prediction: (s, 2), in the same units.
        hidden: bool (s,), True where the network did not see the sensor.
        valid: bool (s, 2), True where the truth is a measurement.
        run: Run number for the headline.
        event: Event number for the headline.
        title: Start of the headline.

    Returns:
        A figure of 16 x 8.4 inches, two rows of four displays.

    Raises:
        ShapeError: An array that does not fit the detector.
        GeometryError: The detector cannot be unrolled.
    """
    n = detector.n_sensors
    arrays = [np.asarray(a) for a in (truth, masked, prediction, hidden, valid)]
    names = ("truth", "masked", "prediction", "hidden", "valid")
    for name, array in zip(names, arrays, strict=True):
        shape = (n,) if name == "hidden" else (n, 2)
        if array.shape != shape:
            raise ShapeError(f"{name} has shape {array.shape}", expected=f"{shape}")
    truth, masked, prediction = (array.astype(np.float64) for array in arrays[:3])
    hidden, valid = arrays[3].astype(bool), arrays[4].astype(bool)
    # A sensor that is called valid but holds the files' invalid value is not.
    valid = valid & np.isfinite(truth) & (np.abs(truth) < INVALID_ABOVE)

    figure = make_figure(16, 8.4)
    header, body = figure.subfigures(2, 1, squeeze=False, height_ratios=(1, 17), hspace=0)[:, 0]
    panels = body.subfigures(2, 4, wspace=0, hspace=0)
    numbers = (("run", run), ("event", event))
    headline = [title, *(f"{name} {k}" for name, k in numbers if k is not None)]
    with house_style():
        text = ", ".join(filter(None, headline))
        header.text(0.006, 0.45, text, size=17, weight="bold", va="center")
    for channel, (quantity, unit, factor) in enumerate(_CHANNELS):
        is_valid = valid[:, channel]
        true, seen, filled = (a[:, channel] for a in (truth, masked, prediction))
        judged = hidden & is_valid
        residual = np.full(n, np.nan)
        residual[judged] = (filled[judged] - true[judged]) * factor
        shown = np.where(is_valid, true, np.nan)
        seen = np.where(is_valid & ~hidden, seen, np.nan)
        norm = color_norm(shown, quantity)

        n_hidden, n_valid = int(judged.sum()), int(is_valid.sum())
        share = f"{n_hidden / n_valid:.0%}" if n_valid else "none"
        rms = f"{_rms(residual[judged]):.3g} {unit}" if n_hidden else "none hidden"
        notes = (
            "",
            f"hidden: {n_hidden} of\n{n_valid} valid ({share})",
            "",
            f"RMS on hidden\n{rms}",
        )
        completed = np.where(judged | ~valid[:, 0], filled, seen)
        columns = (("Truth", shown), ("Masked input", seen), ("Prediction", completed))
        for k, (name, values) in enumerate(columns):
            draw_detector(
                panels[channel, k],
                detector,
                values,
                quantity=quantity,
                norm=norm,
                title=name,
                note=notes[k],
            )
        draw_detector(
            panels[channel, 3],
            detector,
            residual,
            quantity="residual",
            title="Residual",
            label=f"residual [{unit}]",
            note=notes[3],
        )
    return figure


def _rms(residual: np.ndarray) -> float:
    """Root of the mean square; NaN stays NaN, since it is to be noticed."""
    with np.errstate(invalid="ignore", over="ignore"):
        return float(np.sqrt(np.mean(np.square(residual))))
