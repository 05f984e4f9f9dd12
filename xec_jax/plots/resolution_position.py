"""How well the first interaction is found: along each axis, and in space."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from xec_jax.plots.panels import (
    PLACE_LABELS,
    SIGMA,
    draw_profiles,
    draw_residuals,
    draw_unknown,
    page,
    residual_counts,
)
from xec_jax.plots.profiles import effective_sigma, profile, resolution

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def position_page(
    truth: np.ndarray, point: np.ndarray, where: Mapping[str, np.ndarray]
) -> tuple["Figure", dict[str, np.ndarray]]:
    """Draws residuals and widths of u, v, w and the distance, against place and energy.

    Args:
        truth: (n, 3), u, v, w in cm, n > 0.
        point: (n, 3) in cm.
        where: What `panels.known_places` returned; of the energy only.

    Returns:
        A page with a column for each axis and one for the distance: its residuals, the width
        against the coordinate itself (of the distance: against the depth) and against the energy;
        and what is drawn in it.
    """
    residual = point - truth
    distance = np.linalg.norm(residual, axis=-1)
    data: dict[str, np.ndarray] = {}
    columns = [
        *(
            (name, truth[:, i], residual[:, i], f"{SIGMA} of {name}")
            for i, name in enumerate("uvw")
        ),
        ("distance", truth[:, 2], distance, "68 % of distance"),
    ]
    title = f"Position of the first interaction: resolution  ({len(truth)} events)"
    with page(3, 4, title, size=(3.7, 2.75)) as (figure, panels):
        for column, (name, own, values, label) in zip(panels.T, columns, strict=True):
            is_distance = name == "distance"
            counts = residual_counts(values, is_positive=is_distance)
            data |= counts.arrays(f"{name}_residual")
            what = "distance to the truth [cm]" if is_distance else f"Δ{name} [cm]"
            draw_residuals(column[0], counts, what, "cm")
            statistic = resolution if is_distance else effective_sigma
            key = f"{name}_68pct" if is_distance else f"{name}_sigma"
            axis = "w" if is_distance else name
            line = profile(own, values, statistic)
            data |= line.arrays(f"{key}_by_{axis}")
            draw_profiles(column[1], {"": line}, PLACE_LABELS[axis], f"{label} [cm]")
            if "energy" not in where:
                draw_unknown(column[2], "energy")
                continue
            line = profile(where["energy"], values, statistic)
            data |= line.arrays(f"{key}_by_energy")
            draw_profiles(column[2], {"": line}, PLACE_LABELS["energy"], f"{label} [cm]")
    return figure, data
