"""How well the time is found, against energy, place and the time itself."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from xec_jax.plots.panels import (
    PLACE_LABELS,
    draw_profiles,
    draw_residuals,
    draw_unknown,
    page,
    residual_counts,
)
from xec_jax.plots.profiles import mean, profile, resolution

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def timing_page(
    truth: np.ndarray, point: np.ndarray, where: Mapping[str, np.ndarray]
) -> tuple["Figure", dict[str, np.ndarray]]:
    """Draws residuals, and resolution and bias against whatever they may depend on.

    Args:
        truth: (n,) in ns, n > 0.
        point: (n,) in ns.
        where: What `panels.known_places` returned.

    Returns:
        A page of two rows and three columns, and what is drawn in it, in ps.
    """
    residual = 1e3 * (point - truth)
    data: dict[str, np.ndarray] = {}
    with page(2, 3, f"Time: resolution  ({len(truth)} events)") as (figure, panels):
        first, by_energy, by_time, *by_place = panels.ravel()
        counts = residual_counts(residual)
        data |= counts.arrays("residual")
        draw_residuals(first, counts, "prediction - truth [ps]", "ps")
        by = {"time": truth, **where}
        labels = {"time": "true time [ns]", **PLACE_LABELS}
        for axes, name in zip((by_time, by_energy, *by_place), labels, strict=True):
            if name not in by:
                draw_unknown(axes, name)
                continue
            width = profile(by[name], residual, resolution)
            bias = profile(by[name], residual, mean, width.edges)
            data |= width.arrays(f"68pct_by_{name}") | bias.arrays(f"bias_by_{name}")
            lines = {"68 % of |Δt|": width, "bias": bias}
            draw_profiles(axes, lines, labels[name], "Δt [ps]", from_zero=False)
    return figure, data
