"""One event on one page: photons, times, and what is known about it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from xec_jax.geometry import INVALID_ABOVE, Detector
from xec_jax.plots.detector import draw_detector
from xec_jax.plots.style import FAINT, INK, Quantity, house_style, make_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Numbers = float | np.ndarray | tuple[float, ...]

PANEL_IN = (8.0, 6.95)
LEFT_IN, TITLE_IN, ROW_IN = 0.55, 0.55, 0.58
NAME_SIZE, VALUE_SIZE = 11, 15
LETTER = 0.6 / 72
"""Mean width of a letter in inches per point."""


def event_facts(
    *,
    rank: int | None = None,
    run: int | None = None,
    event: int | None = None,
    loss: float | None = None,
    energy_gev: float | None = None,
    time_ns: float | None = None,
    uvw_cm: Numbers | None = None,
    angle_deg: Numbers | None = None,
    predicted_angle_deg: Numbers | None = None,
) -> dict[str, str]:
    """Writes what is known about an event as names with units and values, for `event_page`.

    What is not given, NaN, or marked invalid (beyond 9e9) is left out, but for the loss.

    Args:
        rank: Place in a list of events, from 1.
        run: Run number.
        event: Event number.
        loss: Of this event.
        energy_gev: True energy; shown in MeV.
        time_ns: True time.
        uvw_cm: True first interaction, (3,).
        angle_deg: True theta and phi, (2,).
        predicted_angle_deg: Those of a network.
    """
    known = (
        ("rank", rank, 1, "d"),
        ("run", run, 1, "d"),
        ("event", event, 1, "d"),
        ("loss", loss, 1, ".4g"),
        ("energy [MeV]", energy_gev, 1e3, ".2f"),
        ("time [ns]", time_ns, 1, ".2f"),
        ("u, v, w [cm]", uvw_cm, 1, ".1f"),
        ("θ, φ [deg]", angle_deg, 1, ".1f"),
        ("predicted θ, φ [deg]", predicted_angle_deg, 1, ".1f"),
    )
    facts = {}
    for name, value, factor, form in known:
        if value is None:
            continue
        if form == "d":
            facts[name] = str(int(value))  # type: ignore[arg-type]
            continue
        numbers = np.atleast_1d(np.asarray(value, np.float64))
        # False for NaN; a loss of NaN or infinity is a fact.
        if name == "loss" or (np.abs(numbers) < INVALID_ABOVE).all():
            facts[name] = ", ".join(format(number * factor, f"z{form}") for number in numbers)
    return facts


def event_page(
    detector: Detector,
    npho: np.ndarray,
    time: np.ndarray | None,
    facts: Mapping[str, float | str],
    *,
    mark_uv: tuple[float, float] | None = None,
    title: str = "",
    npho_label: str | None = None,
) -> "Figure":
    """Draws an event: photons on the left, times on the right, facts above.

    Args:
        detector: The calorimeter.
        npho: (s,), photons; NaN, 1e10, zero and less are gray.
        time: (s,), seconds; NaN and 1e10 are gray. None for one display of photons only.
        facts: Values by name, the names with their unit; see `event_facts`. Numbers are shown
            with four digits.
        mark_uv: Point (u, v) in cm to be marked on the inner face, say the first conversion.
        title: Headline.
        npho_label: Text at the color bar of the photons, where they are none.

    Returns:
        A figure of 16 inches by about 8, half as wide without times.

    Raises:
        ShapeError: Another number of values than sensors.
    """
    displays: list[tuple[str, np.ndarray, Quantity, str | None]] = [
        ("Photons", npho, "npho", npho_label)
    ]
    if time is not None:
        displays.append(("Time", time, "time", None))
    width = PANEL_IN[0] * len(displays)
    words = [(k, v if isinstance(v, str) else f"{v:.4g}") for k, v in facts.items()]
    places = _places(words, width)
    n_rows = 1 + max((row for row, _ in places), default=-1)
    title_in = TITLE_IN * bool(title)
    above = title_in + ROW_IN * n_rows + 0.1
    figure = make_figure(width, PANEL_IN[1] + above)
    ratios = (above, PANEL_IN[1])
    header, body = figure.subfigures(2, 1, squeeze=False, height_ratios=ratios, hspace=0)[:, 0]
    with house_style():
        header.text(LEFT_IN / width, 1 - 0.12 / above, title, size=18, weight="bold", va="top")
        for (name, text), (row, x) in zip(words, places, strict=True):
            y = above - title_in - ROW_IN * row
            for word, below, size, color in (
                (name, 0.08, NAME_SIZE, FAINT),
                (text, 0.28, VALUE_SIZE, INK),
            ):
                header.text(x / width, (y - below) / above, word, size=size, color=color, va="top")
    panels = body.subfigures(1, len(displays), squeeze=False, wspace=0)[0]
    for panel, (name, values, quantity, label) in zip(panels, displays, strict=True):
        draw_detector(
            panel,
            detector,
            values,
            quantity=quantity,
            title=name,
            label=label,
            mark_uv=mark_uv,
        )
    return figure


def _places(words: list[tuple[str, str]], width: float) -> list[tuple[int, float]]:
    """Sets names and values as a line of text that is broken; returns row and inches from left."""
    places, row, x = [], 0, LEFT_IN
    for name, text in words:
        length = LETTER * max(NAME_SIZE * len(name), VALUE_SIZE * len(text))
        if x > LEFT_IN and x + length > width:
            row, x = row + 1, LEFT_IN
        places.append((row, x))
        x += length + 0.45
    return places
