"""How a training went: loss, learning rate and speed against the step."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from xec_jax.plots.style import COLORS, FAINT, house_style, make_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOG_FROM = 10.0
"""A loss that falls by this factor or more is drawn on a logarithmic axis."""

_FIRST_COLORS = {"train": COLORS[0], "valid": COLORS[1]}
_SMALL = (("lr", "learning rate"), ("events_per_s", "events / s"))


def training_curves(
    records: Iterable[Mapping[str, Any]], *, loss: str = "loss", title: str = ""
) -> "Figure":
    """Draws the records of a training.

    Training losses are shown as they are, faint, with their running median on top; other splits
    with a dot per evaluation. Values that are not finite appear as crosses on the lower edge.
    Where a step occurs again, because a run was continued from an earlier checkpoint, the later
    record counts.

    Args:
        records: Flat dictionaries with `step`, `split`, the loss, and perhaps `lr` and
            `events_per_s`; those without a step are passed over.
        loss: Key of the loss to be drawn.
        title: Headline.

    Returns:
        A figure of 10 x 4.5 inches; with no records, axes that say so.
    """
    from matplotlib.ticker import MaxNLocator

    records = [record for record in records if _number(record.get("step")) is not None]
    splits = list(dict.fromkeys(str(record.get("split", "train")) for record in records))
    figure = make_figure(10, 4.5, layout="constrained")
    small = [(key, label) for key, label in _SMALL if any(key in record for record in records)]
    with house_style():
        if title:
            figure.suptitle(title, x=0.01, ha="left", weight="bold")
        grid = figure.add_gridspec(max(len(small), 1), 3)
        axes = figure.add_subplot(grid[:, :2] if small else grid[:, :])
        _draw_losses(axes, records, splits, loss)
        for k, (key, label) in enumerate(small):
            panel = figure.add_subplot(grid[k, 2])
            step, value = _series(records, "train", key)
            panel.plot(step, value, color=COLORS[2], marker="." if len(step) < 10 else "")
            panel.set_title(label, weight="normal", size=10)
            top = value[np.isfinite(value)].max(initial=0.0)
            panel.set(xlim=axes.get_xlim(), ylim=(0, 1.12 * top if top > 0 else 1))
            panel.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
            panel.ticklabel_format(axis="y", scilimits=(-2, 4), useMathText=True)
            if k < len(small) - 1:
                panel.tick_params(labelbottom=False)
            else:
                panel.set_xlabel("step")
    return figure


def _draw_losses(
    axes: "Axes", records: list[Mapping[str, Any]], splits: list[str], loss: str
) -> None:
    spare = iter(COLORS[2:] * (len(splits) + 1))
    shown, broken = [], []
    for split in splits:
        step, value = _series(records, split, loss)
        color = _FIRST_COLORS.get(split) or next(spare)
        finite = np.isfinite(value)
        broken.append(step[~finite])
        step, value = step[finite], value[finite]
        if not len(step):
            continue
        shown.append(value)
        if split == "train":
            is_long = len(step) > 40
            axes.plot(
                step,
                value,
                color=color,
                alpha=0.3 if is_long else 1,
                lw=0.8 if is_long else 1.6,
                marker="" if is_long else ".",
                label=None if is_long else split,
            )
            if is_long:
                axes.plot(step, _running_median(value), color=color, label=f"{split} (median)")
        else:
            best = int(np.argmin(value))
            axes.plot(step, value, "o-", color=color, markersize=3.5, label=split)
            axes.plot(
                step[best],
                value[best],
                "o",
                markersize=9,
                markerfacecolor="none",
                color=color,
                label=f"best {value[best]:.4g} at step {step[best]:.0f}",
            )
    values = np.concatenate(shown) if shown else np.array([])
    if len(values) and values.min() > 0 and values.max() / values.min() >= LOG_FROM:
        axes.set_yscale("log")
    if sum(map(len, broken)):
        step = np.concatenate(broken)
        axes.plot(
            step,
            np.zeros(len(step)),
            "x",
            color="red",
            transform=axes.get_xaxis_transform(),
            clip_on=False,
            label=f"not finite ({len(step)})",
        )
    axes.set(xlabel="step", ylabel=loss)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper right")
    else:
        axes.text(
            0.5, 0.5, f"no {loss} recorded", transform=axes.transAxes, ha="center", color=FAINT
        )


def _number(value: Any) -> float | None:
    """Returns a record's value as a number, None for what is none."""
    if value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _series(
    records: list[Mapping[str, Any]], split: str, key: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns ascending steps and the last value recorded at each; null is NaN."""
    last: dict[float, float] = {}
    for record in records:
        if key in record and str(record.get("split", "train")) == split:
            value = _number(record[key])
            last[float(record["step"])] = np.nan if value is None else value
    step = np.array(sorted(last))
    return step, np.array([last[k] for k in step])


def _running_median(value: np.ndarray) -> np.ndarray:
    """Median over a window of a twentieth of the curve, narrower towards its ends."""
    half = max(len(value) // 40, 2)
    return np.array([np.median(value[max(i - half, 0) : i + half + 1]) for i in range(len(value))])
