"""What was hidden of one event and how it was filled in: five rows, a column per channel."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from xec_jax.errors import ShapeError
from xec_jax.geometry import INVALID_ABOVE, Detector
from xec_jax.plots.detector import color_norm, draw_detector
from xec_jax.plots.style import Quantity, house_style, make_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHANNELS: tuple[tuple[Quantity, str, float], ...] = (
    ("npho", "photons", 1.0),
    ("time", "ns", 1e9),
)
"""Channel, its unit in displays, and the factor from that of the arrays."""

ROWS = ("Truth", "Masked input", "Prediction", "Residual", "Mask")
PANEL_IN, HEADER_IN = (5.8, 5.05), 0.6


def sensor_comparison(
    detector: Detector,
    *,
    truth: Mapping[str, np.ndarray],
    masked: Mapping[str, np.ndarray],
    prediction: Mapping[str, np.ndarray],
    hidden: np.ndarray,
    title: str = "",
    mark_uv: tuple[float, float] | None = None,
) -> "Figure":
    """Draws truth, masked input, prediction, residual and mask of one event, one below the other.

    Truth, masked input and prediction share their colors, which follow the truth. As in
    `reconstruction_figure`, the prediction is drawn where the network had to fill in something,
    on hidden and on dead sensors (no valid photon count), together with the input elsewhere.
    The residual, prediction - truth, and its numbers are those of hidden sensors with a valid
    truth.

    Args:
        detector: The calorimeter.
        truth: By channel (`npho` in photons, `time` in seconds) arrays (s,), NaN or 1e10 where
            there is none.
        masked: The same of what the network was shown; hidden sensors are gray in any case.
        prediction: The same of what it answered; its channels are drawn.
        hidden: bool (s,), True where the network did not see the sensor.
        title: Headline.
        mark_uv: Point (u, v) in cm to be marked on the inner face.

    Returns:
        A figure of 5.8 inches per channel x 25.85 inches, which can be cut between rows.

    Raises:
        ShapeError: An array that does not fit the detector, or no channel at all.
    """
    channels = [channel for channel in CHANNELS if channel[0] in prediction]
    if not channels:
        found = f"the prediction has the channels {', '.join(prediction) or 'none'}"
        raise ShapeError(found, expected="npho, time or both")
    n = detector.n_sensors
    arrays = {"hidden": np.asarray(hidden)}
    for name, group in (("truth", truth), ("masked", masked), ("prediction", prediction)):
        arrays |= {f"{name} {c}": np.asarray(group[c], np.float64) for c, _, _ in channels}
    for name, array in arrays.items():
        if array.shape != (n,):
            raise ShapeError(f"{name} has shape {array.shape}", expected=f"({n},)")
    is_hidden = arrays["hidden"].astype(bool)

    height = PANEL_IN[1] * len(ROWS)
    figure = make_figure(PANEL_IN[0] * len(channels), height + HEADER_IN)
    ratios = (HEADER_IN, height)
    header, body = figure.subfigures(2, 1, squeeze=False, height_ratios=ratios, hspace=0)[:, 0]
    with house_style():
        header.text(0.45 / figure.get_figwidth(), 0.45, title, size=17, weight="bold", va="center")
    panels = body.subfigures(len(ROWS), len(channels), squeeze=False, wspace=0, hspace=0)
    for column, (quantity, unit, factor) in zip(panels.T, channels, strict=True):
        true, seen, filled = (
            arrays[f"{name} {quantity}"] for name in ("truth", "masked", "prediction")
        )
        is_valid = _is_valid(true)
        judged = is_hidden & is_valid
        residual = np.where(judged, filled - np.where(judged, true, 0), np.nan) * factor
        shown = np.where(is_valid, true, np.nan)
        is_dead = ~_is_valid(arrays.get("truth npho", true))
        seen = np.where(is_hidden, np.nan, seen)
        completed = np.where(judged | is_dead, filled, seen)
        known_mask = np.where(is_valid, is_hidden, np.nan)
        share = f" ({judged.sum() / is_valid.sum():.0%})" if is_valid.any() else ""
        hidden_note = f"hidden: {judged.sum()} of\n{is_valid.sum()} valid{share}"
        drawn = (shown, seen, completed, residual, known_mask)
        notes = ("", "", "", _numbers(residual[judged], unit), hidden_note)
        norm = color_norm(shown, quantity)
        for k, (panel, row) in enumerate(zip(column, ROWS, strict=True)):
            kind = quantity if k < 3 else ("residual", "mask")[k - 3]
            draw_detector(
                panel,
                detector,
                drawn[k],
                quantity=kind,
                norm=norm if k < 3 else None,
                title=f"{row}, {'photons' if quantity == 'npho' else 'time'}",
                label=f"residual [{unit}]" if kind == "residual" else None,
                note=notes[k],
                mark_uv=mark_uv,
            )
    return figure


def _is_valid(values: np.ndarray) -> np.ndarray:
    return np.isfinite(values) & (np.abs(values) < INVALID_ABOVE)


def _numbers(residual: np.ndarray, unit: str) -> str:
    """Says how large residuals are; NaN stays NaN, since it is to be noticed."""
    if not len(residual):
        return "none hidden"
    rms, mean = np.sqrt(np.mean(residual**2)), residual.mean()
    return f"on hidden sensors\nmean {mean:.3g} {unit}\nRMS {rms:.3g} {unit}"
