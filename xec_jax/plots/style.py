"""The look that all figures share, and how a figure reaches the disk.

Figures are made as `matplotlib.figure.Figure` objects, never through pyplot: no backend, no
display and no list of open figures is involved, so that a long training can draw as it likes.
Matplotlib is imported inside the functions, which keeps `import xec_jax.plots.style` cheap.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np

from xec_jax.errors import ConfigError, DiskError

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

Quantity = Literal["npho", "time", "residual", "mask"]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Line colors (Okabe and Ito), told apart with any color vision and in gray."""

INK, FAINT = "#222222", "#8a8a8a"

STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": FAINT,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.prop_cycle": f"cycler('color', {list(COLORS)})",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "font.size": 10,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "pdf.fonttype": 42,  # TrueType: text in a PDF stays text in an editor
    "text.color": INK,
    "xtick.color": FAINT,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.color": FAINT,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 9,
}

# Name, and color of a sensor without a value. The middle of coolwarm is a light gray itself,
# hence the darker gray for times.
_COLORMAPS: dict[Quantity, tuple[str, str]] = {
    "npho": ("viridis", "#cfcfcf"),
    "time": ("coolwarm", "#b4b4b4"),
    "residual": ("RdBu_r", "#cfcfcf"),
    "mask": ("mask", "#cfcfcf"),
}


@contextmanager
def house_style() -> Iterator[None]:
    """Applies the common look to every artist that is created inside the context."""
    import matplotlib

    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        yield


def make_figure(width_in: float, height_in: float, layout: str | None = None) -> "Figure":
    """Returns an empty figure that belongs to nobody: dropped, it is gone."""
    from matplotlib.figure import Figure

    with house_style():
        return Figure(figsize=(width_in, height_in), layout=layout)  # type: ignore[arg-type]


def colormap(quantity: Quantity) -> "Colormap":
    """Returns the colors of a quantity; values that are masked or NaN come out gray."""
    import matplotlib
    from matplotlib.colors import ListedColormap

    if quantity not in _COLORMAPS:
        raise ConfigError(f"quantity is {quantity!r}", expected="one of " + ", ".join(_COLORMAPS))
    name, gray = _COLORMAPS[quantity]
    if quantity == "mask":
        return ListedColormap(["#e6e9ef", "#30446e"], name).with_extremes(bad=gray)
    return matplotlib.colormaps[name].with_extremes(bad=gray)


def save(
    figure: "Figure",
    path_stem: str | Path,
    formats: Sequence[str] = ("png", "pdf"),
    data: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Writes a figure in several formats, each file either complete or untouched.

    Equal figures give equal PNG and PDF bytes: no file carries the time of its making.

    Args:
        figure: The figure.
        path_stem: Path without the ending; missing folders are made.
        formats: Endings that matplotlib knows.
        data: Arrays the figure was drawn from, written to `<path_stem>.npz` for redrawing.

    Returns:
        The files, in the order of `formats`, then the data.

    Raises:
        ConfigError: A format that matplotlib cannot write.
        DiskError: The folder or a file cannot be written.
    """
    known = figure.canvas.get_supported_filetypes()
    for name in formats:
        if name not in known:
            raise ConfigError(
                f"figure format is {name!r}", expected="one of " + ", ".join(sorted(known))
            )
    paths = []
    for name in formats:
        paths.append(Path(f"{path_stem}.{name}"))
        with house_style(), _replacing(paths[-1]) as handle:
            stamp = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(name)
            figure.savefig(handle, format=name, dpi=200, metadata=stamp)
    if data is not None:
        paths.append(Path(f"{path_stem}.npz"))
        with _replacing(paths[-1]) as handle:
            arrays: dict[str, Any] = {key: np.asarray(data[key]) for key in data}
            np.savez_compressed(handle, **arrays)
    return paths


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """Opens a neighbor of `path` that takes its place once it is complete."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as handle:
            yield handle
        os.replace(partial, path)
    except OSError as error:
        raise DiskError(
            f"cannot write the figure {path}: {error}",
            expected="a folder that can be written, with space left",
            remedy="choose another output folder, or free some space",
        ) from error
    finally:
        # The error that brought us here is the one to report, not that of tidying up.
        with suppress(OSError):
            partial.unlink(missing_ok=True)
