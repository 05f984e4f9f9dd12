"""Predictions for real data beside what the conventional reconstruction found: figures, widths.

Source: real-data plots of the PyTorch predecessor, whose names the files have.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xec_jax.data.root.event import EventFile
from xec_jax.data.root.writer import disk_errors
from xec_jax.errors import DataError
from xec_jax.evaluation import report
from xec_jax.evaluation.base import Arrays, Drawing, Setting, Table
from xec_jax.evaluation.opponents import CLASSICAL as COMPARED
from xec_jax.evaluation.opponents import NAMES, errors
from xec_jax.evaluation.regress import SHORT, TREE, face_weights
from xec_jax.evaluation.val_tree import AS_MEASURED, quantity, read_columns
from xec_jax.kinematics import xyz_to_uvw
from xec_jax.metrics import percentile68, percentile68_error
from xec_jax.tasks.calorimeter import detector_of

REPORT = "report.html"
STEMS = {"resolution_angle": "resolution_profile", "cos_res": "cos_residual"}
"""Names of figures that are called otherwise here than in an evaluation."""

POSITIVE = ("angle_resolution_68pct", "uvw_dist_68pct")
"""Differences that have no sign, and hence no bias."""
NOTE = (
    "Differences between prediction and reference: both have errors, and neither is the truth. "
    "68 %: what that share of the absolute differences stays below."
)


def draw(
    paths: Sequence[Path], folder: Path, facts: Mapping[str, Any], setting: Setting | None = None
) -> Table:
    """Draws the figures of some predictions, and writes them and a report into a folder.

    Args:
        paths: Files of `predict` with the tree `val_tree`.
        folder: Where to write; made if missing.
        facts: What else the report says.
        setting: The run that predicted, for the weights of its faces.

    Returns:
        How far predictions and references are apart.

    Raises:
        DataError: Another file, or one without any reference.
        DiskError: The folder cannot be written.
    """
    columns = read_columns(paths)
    table = differences(columns)
    if not table.rows:
        raise DataError(
            f"{paths[0]}: no event has both a prediction and a reference",
            expected="numbers in true_theta, true_energy, ...",
            remedy="predict for files with emiAng, energyReco, timeReco or uvwRecoFI",
        )
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    pictures = [_saved(drawing, folder) for drawing in drawings(columns, setting)]
    runs = columns["run_id"]
    known = {
        "predictions": ", ".join(str(path) for path in paths),
        "events": f"{len(runs):,}",
        "runs": f"{runs.min():.0f} to {runs.max():.0f}",
        **_origin(paths[0]),
        **facts,
    }
    found = report.Report("Predictions for real data", known, [table], figures=pictures)
    report.write_report(folder / REPORT, found)
    return table


def differences(columns: Arrays) -> Table:
    """Compares predictions, and those without what was filled in, with the references."""
    is_filled = any(name.endswith(AS_MEASURED) for name in columns)
    rows: list[Sequence[str | float]] = []
    for name in COMPARED:
        reference = quantity(columns, "true", name)
        for ending in ("", AS_MEASURED):
            point = quantity(columns, "pred", name, ending)
            if point is None or reference is None:
                continue
            how = ("as measured" if ending else "dead channels filled") if is_filled else "network"
            for key, values in errors(name, point, reference).items():
                if len(values):
                    rows.append(_row(key, how, values))
    titles = ("quantity", "prediction", "unit", "events", "bias", "error", "68 %", "error")
    return Table("differences", "Predictions and references", titles, rows, NOTE)


def _row(key: str, how: str, values: np.ndarray) -> list[str | float]:
    label, unit, factor = NAMES[key]
    bias = [float("nan")] * 2
    if key not in POSITIVE:
        spread = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
        bias = [factor * float(values.mean()), factor * float(spread)]
    width = [factor * percentile68(values), factor * percentile68_error(values)]
    return [label, how, unit, len(values), *bias, *width]


def drawings(columns: Arrays, setting: Setting | None = None) -> Iterator[Drawing]:
    """Yields the figures; those of quantities without a reference are missing."""
    from xec_jax.plots.reference import call_reference
    from xec_jax.plots.regression_pages import regression_pages
    from xec_jax.plots.saliency import face_weights_figure

    pairs: dict[str, dict[str, np.ndarray]] = {"true": {}, "pred": {}}
    for name in SHORT:
        for side, values in pairs.items():
            found = quantity(columns, side, name)
            if found is not None and name != "n_gamma":
                values[name] = found
    places = np.stack([columns[f"{axis}_truth"] for axis in "xyz"], -1)
    where = {"energy": columns["energy_truth"], "uvw": np.asarray(xyz_to_uvw(places))}
    for stem, figure, data in regression_pages(pairs["true"], pairs["pred"], where):
        call_reference(figure)
        yield Drawing(STEMS.get(stem, stem), figure, data)
    if setting is not None and (shares := face_weights(setting)):
        faces = [face.name for face in detector_of(setting.run.config).faces]
        yield Drawing("face_weights", face_weights_figure(shares, faces), shares)


def _saved(drawing: Drawing, folder: Path) -> report.Picture:
    from xec_jax.plots.style import save

    paths = save(drawing.figure, folder / drawing.stem, ("png", "pdf"), drawing.data)
    title, names = drawing.stem.replace("_", " "), [path.name for path in paths[1:]]
    return report.Picture(title, paths[0].read_bytes(), drawing.caption, names)


def _origin(path: Path) -> dict[str, Any]:
    """Says who predicted, and where the references are from, as far as the file knows."""
    with EventFile(path, TREE) as file:
        notes = file.metadata()
    found = {"network": notes.get("model") or ", ".join(notes.get("runs", ())) or "not known"}
    if inpainter := notes.get("inpainter"):
        found["inpainter"] = inpainter.get("model") or ", ".join(inpainter.get("runs", ()))
    if references := notes.get("references"):
        found["references"] = ", ".join(dict.fromkeys(references.values()))
    return found
