"""One number per sensor over many events, on the unrolled calorimeter."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from xec_jax.geometry import Detector
from xec_jax.plots.detector import draw_detector
from xec_jax.plots.style import make_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def invalid_share(
    share: np.ndarray, detector: Detector, *, title: str = "", note: Sequence[str] = ()
) -> "Figure":
    """Draws the share of events in which each sensor gave no usable number.

    Args:
        share: float (s,), 0 to 1; the colors end at the largest one.
        detector: The calorimeter.
        title: Headline.
        note: Lines for the free corner.

    Raises:
        ShapeError: Another number of values than sensors.
    """
    import matplotlib
    from matplotlib.colors import Normalize

    figure = make_figure(9.2, 8.0)
    draw_detector(
        figure,
        detector,
        100 * share,
        quantity=None,
        norm=Normalize(0, max(100 * np.nanmax(share), 1)),
        cmap=matplotlib.colormaps["YlOrRd"].with_extremes(bad="#cfcfcf"),
        title=title,
        label="% of events without a valid value",
        note="\n".join(note),
    )
    return figure
