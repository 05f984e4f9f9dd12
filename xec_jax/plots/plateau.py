"""What trainings on right and on scrambled pairs of muon and primary reach, and what shows it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xec_jax.plots.style import COLORS, FAINT, house_style, make_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plateau_figure(rows: Sequence[Mapping[str, Any]]) -> "Figure":
    """Draws what each training reached, and two monitors of how it uses its context.

    Args:
        rows: Each with `pairs`, `size`, and the numbers of the table of benchmarks/plateau.py.

    Returns:
        A figure of 11 inches and 0.45 per row.
    """
    found = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    y = np.arange(len(rows))
    with house_style():
        figure = make_figure(11.0, 1.6 + 0.45 * len(rows), layout="constrained")
        left, middle, right = figure.subplots(1, 3, sharey=True, width_ratios=(1.5, 1, 1))
        left.plot(found["NLL"], y, "o", color=COLORS[0])
        for key, text in (("NLL of the truth", "truth"), ("NLL without the primary", "marginal")):
            value = found[key].mean()
            left.axvline(value, color=FAINT, linewidth=1, linestyle="--")
            left.annotate(
                text, (value, 1.01), xycoords=("data", "axes fraction"), ha="center", fontsize=9
            )
        left.set(xlabel="held-out NLL / nats per muon")
        left.set_yticks(y, [f"{row['pairs']}, {row['size']}" for row in rows])
        middle.barh(y, found["delta_perm"], color=COLORS[0], height=0.5)
        middle.axvline(0, color=FAINT, linewidth=0.8)
        middle.set_xlabel("delta_perm / nats")
        right.barh(y - 0.17, found["pooled std"], color=COLORS[1], height=0.3)
        right.barh(y + 0.17, found["pooled std, constant input"], color=COLORS[4], height=0.3)
        right.set_xlabel("pooled std of the embedded context")
        right.legend(
            ["held-out primaries", "one primary for all"],
            loc="lower center",
            bbox_to_anchor=(0.5, 1.0),
            fontsize=8,
            ncols=2,
        )
        for panel in (left, middle, right):
            panel.grid(visible=False, axis="y")
        left.invert_yaxis()
    return figure
