"""Words on figures: headlines, shares, and what to say where there is nothing to draw."""

from typing import TYPE_CHECKING

from xec_jax.plots.style import FAINT, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def headline(figure: "Figure", text: str, remark: str = "") -> None:
    """Writes a title at the upper left, and what has to be known beside it, small."""
    figure.suptitle(text, x=0.01, ha="left", size=13, weight="bold", color=INK)
    figure.text(0.99, 0.985, remark, ha="right", va="top", size=9, color=FAINT)


def say(axes: "Axes", text: str) -> None:
    """Writes something into the middle of axes that stay empty."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", color=FAINT)


def percent(share: float) -> str:
    """Writes a share; what is not all does not become 100 %."""
    text = f"{100 * share:.3g} %"
    return "> 99.9 %" if text == "100 %" and share < 1 else text
