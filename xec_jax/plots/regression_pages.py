"""All pages about how well a network regresses, from predictions and truth alone."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from xec_jax.errors import ShapeError
from xec_jax.metrics import opening_angle_deg, residuals
from xec_jax.plots.panels import known_places
from xec_jax.plots.resolution_angle import (
    COMPONENTS,
    angle_dependence_page,
    angle_page,
    cosine_figure,
    vector_angles,
)
from xec_jax.plots.resolution_energy import SIGNAL_MEV, energy_page
from xec_jax.plots.resolution_position import position_page
from xec_jax.plots.resolution_timing import timing_page
from xec_jax.plots.scatter import profile_figure, scatter_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Arrays = Mapping[str, np.ndarray]
Page = tuple[str, "Figure", dict[str, np.ndarray]]
Components = dict[str, tuple[np.ndarray, np.ndarray, str, str]]

_SIZES = {"angle": 2, "angleVec": 3, "energy": 1, "timing": 1, "uvwFI": 3}


def regression_pages(truth: Arrays, point: Arrays, where: Arrays) -> Iterator[Page]:
    """Draws every page for the quantities that have both a prediction and a truth.

    Args:
        truth: Any of `angle` (n, 2) in degrees, `angleVec` (n, 3), `energy` (n,) in GeV, `timing`
            (n,) in ns and `uvwFI` (n, 3) in cm; NaN where it is not known, which leaves the event
            out of the quantity.
        point: The predictions, under the same names; NaN as for the truth.
        where: `energy` (n,) in GeV and `uvw` (n, 3) in cm of the truth, as far as they are known:
            what resolutions are drawn against.

    Yields:
        Stem of the file, the figure, and the arrays that are drawn in it. A quantity without a
        single event has no page. If there are both `angle` and `angleVec`, the stems of the
        latter end in `_angleVec`.

    Raises:
        ShapeError: Arrays that do not fit together.
    """
    scattered: Components = {}
    direction = None
    for name in _SIZES:
        if name not in truth or name not in point:
            continue
        pair = [_columns(name, arrays[name]) for arrays in (truth, point)]
        if len(pair[0]) != len(pair[1]):
            raise ShapeError(f"{name}: truth {pair[0].shape}, prediction {pair[1].shape}")
        for key, values in where.items():
            if len(values) != len(pair[0]):
                raise ShapeError(
                    f"where[{key!r}] has {len(values)} rows", expected=f"{len(pair[0])}"
                )
        used = np.isfinite(np.concatenate(pair, -1)).all(-1)
        if name == "energy":
            used &= pair[0][:, 0] > 0  # resolutions are relative
        if not used.any():
            continue
        true, found = (values[used] for values in pair)
        places = known_places(where, used)
        if name == "energy":
            yield from _energy_pages(true[:, 0], found[:, 0], places, scattered)
        elif name == "timing":
            figure, data = timing_page(true[:, 0], found[:, 0], places)
            scattered["timing"] = (true[:, 0], found[:, 0], "time", "ns")
            yield "resolution_timing", figure, data
        elif name == "uvwFI":
            figure, data = position_page(true, found, places)
            for i, axis in enumerate("uvw"):
                scattered[axis] = (true[:, i], found[:, i], axis, "cm")
            yield "resolution_uvwFI", figure, data
        else:
            ending = "" if direction is None else f"_{name}"
            direction = name
            yield from _direction_pages(name, true, found, places, scattered, ending)
    if scattered:
        yield "scatter", *scatter_page(scattered)


def _columns(name: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or values.shape[1] != _SIZES[name]:
        raise ShapeError(f"{name} {values.shape}", expected=f"(n, {_SIZES[name]})")
    return values


def _direction_pages(
    name: str,
    true: np.ndarray,
    found: np.ndarray,
    places: Arrays,
    scattered: Components,
    ending: str,
) -> Iterator[Page]:
    is_vector = name == "angleVec"
    psi = opening_angle_deg(found, true)
    if is_vector:
        true, found = vector_angles(true), vector_angles(found)
    residual = residuals("angle", found, true)
    yield f"resolution_angle{ending}", *angle_page(true, residual, psi)
    yield (
        f"resolution_angle_dependence{ending}",
        *angle_dependence_page(true, residual, psi, places),
    )
    for i, (component, sign) in enumerate(COMPONENTS.items()):
        # The prediction on the turn of the truth, else 359 degrees would be drawn far from 1.
        near = true[:, i] + residual[:, i]
        yield f"profile_{component}{ending}", *profile_figure(true[:, i], near, sign, "deg")
        label = f"{sign} of vector" if ending else sign
        scattered[f"{component}{ending}"] = (true[:, i], near, label, "deg")
    yield f"cos_res{ending}", *cosine_figure(psi)


def _energy_pages(
    true: np.ndarray, found: np.ndarray, places: Arrays, scattered: Components
) -> Iterator[Page]:
    yield "resolution_energy", *energy_page(true, found, places)
    signal = (1e3 * true >= SIGNAL_MEV[0]) & (1e3 * true <= SIGNAL_MEV[1])
    if signal.any():
        here = {name: values[signal] for name, values in places.items()}
        yield (
            "resolution_energy_signal",
            *energy_page(true[signal], found[signal], here, signal=True),
        )
    scattered["energy"] = (1e3 * true, 1e3 * found, "energy", "MeV")
