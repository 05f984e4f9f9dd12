"""What a file of predictions holds: columns as networks name them, or those of `val_tree`."""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from xec_jax import trained
from xec_jax.data.invalid import count_valid
from xec_jax.data.root.file import RootFile
from xec_jax.errors import ConfigError, DataError
from xec_jax.evaluation import val_tree
from xec_jax.evaluation.regress import SHORT, TREE
from xec_jax.evaluation.val_tree import AS_MEASURED, REFERENCES
from xec_jax.inference.network import Answer, Layout, Network
from xec_jax.targets import QUANTITIES

log = logging.getLogger(__name__)

IDENTIFIERS = ("run", "event")


class Plain(Layout):
    """Predictions as networks name them, beside the truth of simulated events.

    Args:
        network: Who is asked.
        tree: Name of the tree in the files.
        first: A file that stands for all.
    """

    tree, has_truth = "tree", True

    def __init__(self, network: Network, tree: str, first: Path) -> None:
        self._truth = network.task.truth
        self.branches, _ = trained.wanted_branches(network.task, tree, first)

    def __call__(self, host: Mapping[str, np.ndarray], found: Answer) -> Answer:
        """Returns `run`, `event`, `n_valid`, the predictions and `true_...`."""
        rows = {name: host[name] for name in IDENTIFIERS if name in host}
        if "npho" in host:
            rows["n_valid"] = count_valid(host["npho"])
        return rows | found | (self._truth(host) if self._truth else {})

    def unit(self, column: str) -> str:
        """Returns the unit of a column, empty if it has none."""
        known = {"npho_filled": "photons", "time_filled": "s", "prediction": "photons, s"}
        quantity = QUANTITIES.get(_quantity(column))
        return quantity.unit if quantity else known.get(column, "")


class ValTree(Layout):
    """Predictions beside what the reconstruction found in real data.

    In files with a branch whose name ends in `Truth`, the truth takes its place.

    Args:
        network: Who is asked.
        tree: Name of the tree in the files.
        first: A file that stands for all.

    Raises:
        ConfigError: The network predicts nothing of an event.
        DataError: The file has no runs or events, or a reference of another shape.
    """

    tree = TREE

    def __init__(self, network: Network, tree: str, first: Path) -> None:
        quantities = {_quantity(name) for name in network.answers} & SHORT.keys()
        if not quantities:
            raise ConfigError(
                f"--layout val_tree, but the network predicts {', '.join(network.answers)}",
                expected="a regression, or --layout tree",
            )
        task = network.task
        inputs = task.inputs or tuple(task.spec)
        sensors = [name for name in inputs if name in ("npho", "time")]
        zeros = [name for name in inputs if name not in sensors]
        with RootFile(first, tree) as file:
            if absent := [name for name in IDENTIFIERS if not file.has(name)]:
                raise DataError(
                    f"{first}: tree {tree!r} has no branch {' and no '.join(map(repr, absent))}",
                    expected="run and event of every row, to find it again",
                    remedy="--layout tree, which does without",
                )
            self.has_truth = any(name.endswith("Truth") for name in file.names())
            wanted = {
                key: pair[self.has_truth]
                for key, pair in REFERENCES.items()
                if not key.startswith("true_") or key.removeprefix("true_") in quantities
            }
            self.references = {key: name for key, name in wanted.items() if file.has(name)}
            for key, name in self.references.items():
                file.column(name, val_tree.shape_of(key))
            self.notes = {"references": self.references}
            unknown = {key: name for key, name in wanted.items() if key not in self.references}
            missing_zeros = [name for name in zeros if not file.has(name)]
        self._warn(first, unknown, missing_zeros, quantities)
        present = [name for name in zeros if name not in missing_zeros]
        read = (*sensors, *present, *IDENTIFIERS, *self.references.values())
        self.branches = list(dict.fromkeys(read))

    def _warn(
        self, first: Path, unknown: Mapping[str, str], zeros: list[str], quantities: set[str]
    ) -> None:
        """Says once which branches are missing, and what is NaN for it."""
        columns = [column for key in unknown for column in val_tree.columns_of(key)]
        if quantities & {"angle", "angleVec"} and {"true_angle", "true_angleVec"} & unknown.keys():
            columns.append("opening_angle")
        columns += ["pred_timing"] if zeros else []
        if columns:
            log.warning(
                "%s: no branch %s; NaN in %s",
                *(first, ", ".join(map(repr, dict.fromkeys((*zeros, *unknown.values()))))),
                ", ".join(columns),
            )

    def __call__(self, host: Mapping[str, np.ndarray], found: Answer) -> Answer:
        """Returns the columns of `evaluation.val_tree`."""
        return val_tree.to_columns(host, found, self.references)

    def unit(self, column: str) -> str:
        """Returns the unit of a column, empty if it has none."""
        return val_tree.unit_of(column)


def _quantity(column: str) -> str:
    """Returns the quantity that a prediction or its truth is about, such as `pred_energy_std`."""
    name = column.removesuffix(AS_MEASURED)
    is_one = name.startswith(("pred_", "true_"))
    if is_one and name[5:].startswith("n_gamma"):
        return "n_gamma"
    return name[5:].partition("_")[0] if is_one else ""
