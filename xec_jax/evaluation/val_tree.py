"""The tree `val_tree` of predictions for real data: its columns, written and read.

They are those of an evaluation. What is called true there is only a reference in real data: what
the conventional reconstruction found.

Source: inference script of the PyTorch predecessor, which writes 0 where there is no reference.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from xec_jax.data.invalid import count_valid
from xec_jax.data.root.file import RootFile
from xec_jax.data.root.manifest import build_manifest, read_branch
from xec_jax.errors import DataError
from xec_jax.evaluation.base import Arrays
from xec_jax.evaluation.regress import PLACES, SHORT, TREE, known, rows

AS_MEASURED = "_as_measured"
"""End of the columns of predictions without what was filled in."""

REFERENCES = {
    "true_angle": ("emiAng", "emiAng"),
    "true_angleVec": ("emiVec", "emiVec"),
    "true_energy": ("energyReco", "energyTruth"),
    "true_timing": ("timeReco", "timeTruth"),
    "true_uvwFI": ("uvwRecoFI", "uvwTruth"),
    "energy_truth": ("energyReco", "energyTruth"),
    "xyz_truth": ("xyzRecoFI", "xyzTruth"),
    "xyz_vtx": ("xyzVTX", "xyzVTX"),
}
"""Branches that columns are filled from, in real data and in simulated ones."""

_UNITS = {
    "theta": "deg",
    "phi": "deg",
    "opening": "deg",
    "energy": "GeV",
    "timing": "ns",
    **dict.fromkeys("uvwxyz", "cm"),
}


def columns_of(reference: str) -> tuple[str, ...]:
    """Returns the columns that a key of `REFERENCES` stands for."""
    if reference.startswith("true_"):
        return tuple(f"true_{name}" for name in SHORT[reference.removeprefix("true_")])
    if reference.startswith("xyz"):
        return tuple(f"{axis}{reference.removeprefix('xyz')}" for axis in "xyz")
    return (reference,)


def shape_of(reference: str) -> tuple[int, ...]:
    """Returns the shape of one event in the branch of a reference."""
    n = len(columns_of(reference))
    return (n,) if n > 1 else ()


def unit_of(column: str) -> str:
    """Returns the unit of a column, empty if it has none."""
    name = column.removeprefix("pred_").removeprefix("true_")
    return _UNITS.get(name.partition("_")[0], "")


def to_columns(host: Arrays, found: Arrays, branches: dict[str, str]) -> dict[str, np.ndarray]:
    """Builds the columns of some events.

    Args:
        host: What was read, `run` and `event` among it.
        found: Predictions by quantity, `pred_energy` and so on; those whose names end in
            `AS_MEASURED` get columns of the same ending. `n_filled` is passed on, probabilities
            of classes are not.
        branches: For keys of `REFERENCES` the branch in `host`; what has none is NaN.

    Raises:
        DataError: A number of a run or an event that is too large for the tree.
    """
    truth = {key: known(host[name]) for key, name in branches.items() if key.startswith("true_")}
    places = {PLACES[key]: host[name] for key, name in branches.items() if key in PLACES}
    events = {name: _int32(name, host[name]) for name in ("run", "event")}
    events |= places | {"weight": host["weight"]}
    kinds: dict[str, dict[str, np.ndarray]] = {"": {}, AS_MEASURED: {}}
    for name, values in found.items():
        if "_probability" in name:
            continue  # as many numbers as there are classes
        ending = AS_MEASURED if name.endswith(AS_MEASURED) else ""
        kinds[ending][name.removesuffix(ending)] = values
    table: dict[str, np.ndarray] = {}
    for ending, answers in kinds.items():
        if not answers:
            continue
        part = rows(events, answers | {"loss": host["weight"]}, truth)
        del part["loss"]  # there is none without a truth
        if ending:
            wanted = [name for name in part if name.startswith("pred_") or name == "opening_angle"]
            part = {f"{name}{ending}": part[name] for name in wanted}
        table |= part
    table |= {name: table[name].astype(np.int32) for name in ("run_id", "event_id")}
    table["n_valid"] = count_valid(host["npho"])
    return table | {name: found[name] for name in ("n_filled",) if name in found}


def read_columns(paths: Sequence[Path]) -> dict[str, np.ndarray]:
    """Reads all columns of some files, (n,) each, in the order of the files.

    Raises:
        DataError: No tree of this name, or no predictions in it.
    """
    with RootFile(paths[0], TREE) as file:
        names = file.names()
    if not any(name.startswith("pred_") for name in names):
        raise DataError(
            f"{paths[0]}: tree {TREE!r} has no predictions (it has: {', '.join(names)})",
            expected="a file of `python -m xec_jax.predict --layout val_tree`",
        )
    manifest = build_manifest(paths, TREE, dict.fromkeys(names, ()))
    return {name: read_branch(manifest, name)[0] for name in names}


def quantity(columns: Arrays, side: str, name: str, ending: str = "") -> np.ndarray | None:
    """Returns a quantity (n, k) as it was before it became columns; None if there is none.

    Args:
        columns: What `read_columns` returned.
        side: `pred` or `true`.
        name: A key of `SHORT`.
        ending: End of the columns' names, such as `AS_MEASURED`.
    """
    names = [f"{side}_{short}{ending}" for short in SHORT[name]]
    if any(one not in columns for one in names):
        return None
    return np.stack([columns[one] for one in names], -1)


def _int32(name: str, values: np.ndarray) -> np.ndarray:
    limits = np.iinfo(np.int32)
    outside = (values < limits.min) | (values > limits.max)
    if outside.any():
        raise DataError(
            f"{name} {values[outside][0]} is too large for the column {name}_id of {TREE}",
            expected=f"numbers up to {limits.max}",
            remedy="--layout tree, which keeps 64 bits",
        )
    return values
