"""What trainings on right and on scrambled pairs of muon and primary reach, and what shows it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xec_jax.plots.style import COLORS, FAINT, house_style, make_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plateau_figure(cases: Sequence[Mapping[str, Any]]) -> "Figure":
    """Draws what each training reached, and three monitors of how it uses its context.

    Args:
        cases: Each with `name`, `constant_std_pooled`, and `test`, the metrics on held-out events
            with right pairs.

    Returns:
        A figure of 11 inches and 0.45 per case.
    """
    names = [case["name"] for case in cases]
    found = {key: np.array([case["test"][key] for case in cases]) for key in cases[0]["test"]}
    still = np.array([case["constant_std_pooled"] for case in cases])
    y = np.arange(len(cases))
    with house_style():
        figure = make_figure(11.0, 1.6 + 0.45 * len(cases), layout="constrained")
        left, middle, right = figure.subplots(1, 3, sharey=True, width_ratios=(1.5, 1, 1))
        left.errorbar(found["nll"], y, xerr=found["excess_error"], fmt="o", color=COLORS[0])
        for key, text in (("nll_oracle", "truth"), ("nll_marginal", "marginal")):
            value = found[key].mean()
            left.axvline(value, color=FAINT, linewidth=1, linestyle="--")
            left.annotate(
                text, (value, 1.01), xycoords=("data", "axes fraction"), ha="center", fontsize=9
            )
        left.set(yticks=y, yticklabels=names, xlabel="held-out NLL / nats per muon")
        middle.barh(y, found["delta_perm"], color=COLORS[0], height=0.5)
        middle.set_xlabel("delta_perm / nats")
        right.barh(y - 0.17, found["context_std_pooled"], color=COLORS[1], height=0.3)
        right.barh(y + 0.17, still, color=COLORS[4], height=0.3)
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
