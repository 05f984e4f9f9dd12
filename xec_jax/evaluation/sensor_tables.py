"""Tables that compare methods on hidden sensors, the network first.

Source: comparison table of the PyTorch predecessor's validation.
"""

from collections.abc import Mapping

import numpy as np

from xec_jax.evaluation.base import Table
from xec_jax.geometry import FACES
from xec_jax.metrics import BRIGHT_PHOTONS, by_truth_bins, sensor_metrics

Methods = Mapping[str, np.ndarray]
"""Name of a method -> photons (n,) that it predicts, NaN where it says nothing."""

NEARLY_ALL = 0.98
"""A method that fills fewer of the sensors of a face chose them, and is not compared there."""

ERRORS = {
    "mae_photons": "MAE [photons]",
    "bright_mae_photons": "MAE, bright",
    "bright_rms_photons": "RMS, bright",
    "bright_bias_photons": "bias, bright",
    "rel_mae": "rel. MAE",
    "rel_rms": "rel. RMS",
    "rel_res_68pct": "rel., 68 %",
}


def methods_table(methods: Methods, truth: np.ndarray) -> Table:
    """All sensors together; each method on those that it fills."""
    found = {name: sensor_metrics(values, truth) for name, values in methods.items()}
    rows: list[list[str | float]] = [
        [name, *(errors[key] for key in ERRORS), 1 - errors["failed"]]
        for name, errors in found.items()
    ]
    n, bright = np.isfinite(truth).sum(), (truth >= BRIGHT_PHOTONS).sum()
    note = (
        f"{n:,} hidden sensors, {bright:,} of them bright: {BRIGHT_PHOTONS:.0f} photons or more. "
        "Errors are those of the sensors that a method fills, which not all do: faces compare."
    )
    return Table("methods", "All methods", ("method", *ERRORS.values(), "filled"), rows, note)


def faces_table(
    methods: Methods,
    truth: np.ndarray,
    face: np.ndarray,
    limit: np.ndarray | None,
    note: str,
) -> Table:
    """Mean absolute errors by face, of all methods on the same sensors.

    Methods that fill less than `NEARLY_ALL` of a face are not compared there.

    Args:
        methods: The network first.
        truth: (n,) photons, NaN where unknown.
        face: Face codes (n,).
        limit: Smallest mean error (n,) that is possible; None if it is not known.
        note: What to know about the limit.
    """
    rows: list[list[str | float]] = []
    for code, name in enumerate(FACES):
        here = np.flatnonzero((face == code) & np.isfinite(truth))
        if not len(here):
            continue
        filled = {m: np.isfinite(values[here]) for m, values in methods.items()}
        judged = [m for m in methods if filled[m].mean() >= NEARLY_ALL]
        common = here[np.all([filled[m] for m in judged], axis=0)] if judged else here[:0]
        true = truth[common].astype(np.float64)
        mae = {m: float(np.abs(methods[m][common] - true).mean()) for m in judged if len(common)}
        cells = [mae.get(m, float("nan")) for m in methods]
        best = min((value for value in cells[1:] if np.isfinite(value)), default=float("nan"))
        least = float("nan") if limit is None else float(limit[common].mean(dtype=np.float64))
        rows.append([name, len(common), *cells, least, cells[0] / best, cells[0] / least])
    columns = ("face", "sensors", *methods, "counting limit")
    columns = (*columns, "network / best other", "network / limit")
    title = "Mean absolute error by face [photons]"
    return Table("faces", title, columns, rows, f"All methods on the same sensors; {note}.")


def details_table(methods: Methods, truth: np.ndarray, face: np.ndarray) -> Table:
    """Everything by face and method; each method on those that it fills."""
    rows: list[list[str | float]] = []
    for code, name in enumerate(FACES):
        on = face == code
        for method, values in methods.items() if on.any() else ():
            errors = sensor_metrics(values[on], truth[on])
            numbers = [errors[key] for key in ERRORS]
            rows.append([name, method, *numbers, errors["n_masked_total"], 1 - errors["failed"]])
    columns = ("face", "method", *ERRORS.values(), "sensors", "filled")
    return Table("details", "Errors by face and method", columns, rows)


def bins_table(methods: Methods, truth: np.ndarray) -> Table:
    """Relative MAE in bins of the truth; what else is known of them is in the figure's data."""
    found = {name: by_truth_bins(values, truth) for name, values in methods.items()}
    first = next(iter(found.values()))
    rows: list[list[str | float]] = [
        [
            f"{first['low'][k]:.0f} to {first['high'][k]:.0f}",
            float(first["n_masked_total"][k]),
            *(float(errors["rel_mae"][k]) for errors in found.values()),
        ]
        for k in range(len(first["low"]))
    ]
    columns = ("true photons", "sensors", *methods)
    return Table("bins", "Relative MAE by brightness", columns, rows)
