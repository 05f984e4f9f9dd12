"""Evaluation of regressions: the tree `val_tree`, resolutions, worst events, what it looks at.

Source: artifacts of the PyTorch predecessor, whose x, y, z hold u, v, w; here they are true
coordinates, and u, v, w have columns of their own.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from xec_jax.evaluation.base import Arrays, Columns, Drawing, Evaluation, Headline, Setting, Table
from xec_jax.evaluation.opponents import BRANCHES as OPPONENTS
from xec_jax.evaluation.opponents import CLASSICAL as COMPARED
from xec_jax.evaluation.opponents import NAMES, Opponents, errors
from xec_jax.evaluation.worst import WorstEvents
from xec_jax.geometry import INVALID_ABOVE
from xec_jax.metric_catalog import unit_of
from xec_jax.metric_definitions import QUANTITIES
from xec_jax.metrics import (
    opening_angle_deg,
    percentile68,
    percentile68_error,
    regression_metrics,
)
from xec_jax.tasks.base import Spec
from xec_jax.tasks.calorimeter import detector_of, encode, transform_of

TREE = "val_tree"
SHORT = {
    "angle": ("theta", "phi"),
    "energy": ("energy",),
    "timing": ("timing",),
    "uvwFI": ("u", "v", "w"),
    "angleVec": ("vec_x", "vec_y", "vec_z"),
    "n_gamma": ("n_gamma",),
}
"""Names of the columns of a quantity, after `pred_` and `true_`."""

PLACES = {"energy_truth": "energyTruth", "xyz_truth": "xyzTruth", "xyz_vtx": "xyzVTX"}
SALIENCY_EVENTS = 256
SALIENCY = (
    "how strongly outputs depend on normalized photons and times: mean size of the derivative over "
    f"the first {SALIENCY_EVENTS} events and the sensors of a face"
)


class RegressEvaluation(Evaluation):
    """Keeps predictions and truth of all events, and all of the worst and of some more events."""

    branches: ClassVar = (*OPPONENTS, "xyzTruth")

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.stem = f"validation_results_{setting.name}"
        self.trees = {self.stem: TREE}
        self.columns, self.worst = Columns(), WorstEvents()
        self.opponents = Opponents(setting)
        self.looked, self.n_looked = Columns(), 0

    def expected_rows(self, events: int) -> Mapping[str, tuple[int, bool]]:
        """One row per event."""
        return {self.stem: (events, True)}

    def add(self, host: Arrays, found: Arrays) -> Mapping[str, dict[str, np.ndarray]]:
        """Keeps the numbers of a batch and returns them as rows."""
        task, options = self.setting.task, self.setting.options
        assert task.truth is not None
        truth = task.truth(host) if self.setting.is_simulated else {}
        kept = {name: values for name, values in found.items() if name != "loss"}
        kept |= truth | {"loss": found["loss"]} | _where(host)
        if "time_min_used" in host and "time_min_used" in (task.inputs or ()):
            kept["zero_ns"] = 1e9 * known(host["time_min_used"])
        self.columns.add({k: v for k, v in kept.items() if not k.endswith("_probability")})
        if truth:
            self.worst.add(host, found, truth)
        if options.has_figures and self.n_looked < SALIENCY_EVENTS:
            names = [name for name in task.spec if name in host]
            self.looked.add({name: host[name] for name in names})
            self.n_looked += len(host["weight"])
        self.opponents.add(host)
        return {self.stem: rows(host, found, truth)}

    def metrics(self) -> dict[str, float]:
        """Returns exact errors of all events."""
        arrays = self.columns.arrays()
        return regression_metrics(arrays, arrays.get("zero_ns"))

    def headline(self, metrics: Mapping[str, float], used: np.ndarray | None = None) -> Headline:
        """Returns the resolutions of the opponents' table, of all events or some."""
        arrays = self.columns.arrays()
        found: Headline = {}
        for quantity in COMPARED:
            if {f"pred_{quantity}", f"true_{quantity}"} <= arrays.keys():
                pair = [arrays[f"{side}_{quantity}"] for side in ("pred", "true")]
                pair = pair if used is None else [values[used] for values in pair]
                for name, error in errors(quantity, *pair).items():
                    label, unit, factor = NAMES[name]
                    values = percentile68(error), percentile68_error(error)
                    found[f"{label} [{unit}]"] = factor * values[0], factor * values[1]
        return found

    def place(self, name: str) -> np.ndarray:
        """Returns energy in MeV, u, v, w in cm, theta or phi in degrees of all events."""
        arrays = self.columns.arrays()
        if name == "energy":
            return 1e3 * arrays["energy_gev"]
        if name in "uvw":
            return arrays["uvw"][:, "uvw".index(name)]
        return arrays["direction"][:, ("theta", "phi").index(name)]

    def check_bins(self, name: str) -> None:
        """Accepts all: predictions and truth of single events are kept."""

    def tables(self) -> list[Table]:
        """Returns the comparison with classical methods and bounds."""
        return self.opponents.tables(self.columns.arrays())

    def texts(self) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """Yields the CSV files: stem, and columns by name."""
        arrays = self.columns.arrays()
        for quantity, names in SHORT.items():
            if not {f"pred_{quantity}", f"true_{quantity}"} <= arrays.keys():
                continue
            table: dict[str, np.ndarray] = {}
            for side in ("true", "pred"):
                values = arrays[f"{side}_{quantity}"].reshape(-1, len(names))
                table |= {f"{side}_{n}": values[:, i] for i, n in enumerate(names)}
            if quantity == "energy":
                table |= {f"true_{n}": arrays["uvw"][:, i] for i, n in enumerate("uvw")}
            yield f"predictions_{quantity}_{self.setting.name}", table

    def drawings(self) -> Iterator[Drawing]:
        """Yields resolutions, comparison, worst events, saliency and weights of the faces."""
        from xec_jax.plots.regression_pages import regression_pages

        arrays = self.columns.arrays()
        truth, point = (
            {n: arrays[f"{side}_{n}"] for n in SHORT if n != "n_gamma" and f"{side}_{n}" in arrays}
            for side in ("true", "pred")
        )
        where = {"energy": arrays["energy_gev"], "uvw": arrays["uvw"]}
        for stem, figure, data in regression_pages(truth, point, where):
            yield Drawing(stem, figure, data)
        yield from self.opponents.drawings()
        yield from self.worst.drawings(detector_of(self.setting.run.config))
        yield from self._looks()

    def _looks(self) -> Iterator[Drawing]:
        from xec_jax.plots.saliency import face_weights_figure, saliency_figure

        scores = saliency(self.setting, self.looked.arrays()) if self.n_looked else {}
        if scores:
            units = {name: unit_of(f"{name}_bias") for name in scores}
            figure = saliency_figure(scores, units)
            yield Drawing("saliency_profile", figure, scores, SALIENCY)
        shares = face_weights(self.setting)
        if shares:
            faces = [face.name for face in detector_of(self.setting.run.config).faces]
            yield Drawing("face_weights", face_weights_figure(shares, faces), shares)


EVALUATION = RegressEvaluation


def known(values: np.ndarray) -> np.ndarray:
    """Returns float32 with NaN in the place of markers."""
    values = np.asarray(values, np.float32)
    return np.where(np.abs(values) <= INVALID_ABOVE, values, np.float32(np.nan))


def _where(host: Arrays) -> dict[str, np.ndarray]:
    """True energy (n,) in GeV, position (n, 3) in cm and direction (n, 2) in degrees, or NaN."""
    n = len(host["weight"])
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "energy_gev": ("energyTruth", (n,)),
        "uvw": ("uvwTruth", (n, 3)),
        "direction": ("emiAng", (n, 2)),
    }
    return {
        name: known(host[branch]).reshape(shape)
        if branch in host
        else np.full(shape, np.nan, np.float32)
        for name, (branch, shape) in shapes.items()
    }


def rows(host: Arrays, found: Arrays, truth: Arrays) -> dict[str, np.ndarray]:
    """Builds rows of `val_tree`.

    Columns: `run_id`, `event_id` (int64, -1 if the files do not say); float32 in deg, GeV, ns, cm:
    `pred_*` and `true_*` of the quantities that the network predicts, claimed errors and intervals
    (`pred_*_sigma`, `_low`, `_high`), `opening_angle` where there is a direction, `energy_truth`,
    `x_truth`, ..., `x_vtx`, ... and the `loss` of the event. NaN stands for what is not known.
    """
    n = len(host["weight"])
    table: dict[str, np.ndarray] = {
        f"{name}_id": host[name].astype(np.int64) if name in host else np.full(n, -1)
        for name in ("run", "event")
    }
    for name, values in found.items():
        quantity, _, suffix = name.removeprefix("pred_").partition("_")
        if name.startswith("pred_n_gamma"):
            quantity, suffix = "n_gamma", name.removeprefix("pred_n_gamma").lstrip("_")
        if quantity not in SHORT or suffix == "probability":
            continue
        ending = f"_{suffix}" if suffix else ""
        parts = np.asarray(values, np.float32).reshape(n, len(SHORT[quantity]))
        table |= {f"pred_{s}{ending}": parts[:, i] for i, s in enumerate(SHORT[quantity])}
        if not suffix:
            missing = np.full((n, len(SHORT[quantity])), np.nan, np.float32)
            true = truth.get(f"true_{quantity}", missing).reshape(missing.shape)
            table |= {f"true_{s}": true[:, i] for i, s in enumerate(SHORT[quantity])}
    for direction in ("angle", "angleVec"):
        pair = f"pred_{direction}", f"true_{direction}"
        if pair[0] in found:
            psi = np.full(n, np.nan)
            if pair[1] in truth:
                psi = opening_angle_deg(found[pair[0]], truth[pair[1]])
                psi[~np.isfinite(truth[pair[1]]).all(-1)] = np.nan
            table["opening_angle"] = psi.astype(np.float32)
            break
    for column, branch in PLACES.items():
        width = 3 if column.startswith("xyz") else 1
        values = known(host[branch]) if branch in host else np.full((n, width), np.nan, np.float32)
        values = values.reshape(n, width)
        if width == 1:
            table[column] = values[:, 0]
        else:
            ending = column.removeprefix("xyz")
            table |= {f"{axis}{ending}": values[:, i] for i, axis in enumerate("xyz")}
    return table | {"loss": np.asarray(found["loss"], np.float32)}


def saliency(setting: Setting, host: Arrays) -> dict[str, np.ndarray]:
    """How strongly each output depends on the faces: mean absolute gradient by face and channel.

    The gradient of the sum over the events of an output with respect to all features of all
    sensors is averaged, as |g|, over events and the sensors of a face.

    Returns:
        Per output (6, 2): faces in the order of `FACES`, npho and time; unit of the output per
        normalized unit.
    """
    task, config = setting.task, setting.run.config
    if task.respond is None:
        return {}
    respond, transform = task.respond, transform_of(config)
    spec: Spec = task.spec
    batch = {k: jnp.asarray(host[k][:SALIENCY_EVENTS]) for k in spec if k in host}
    batch["weight"] = jnp.ones(len(batch["npho"]), jnp.float32)
    face = detector_of(config).sensor_face

    @jax.jit
    def scores(params: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        x, _ = encode(transform, batch)
        values, back = jax.vjp(lambda x: respond(params, x, batch), x)
        names = list(values)

        def one(direction: jax.Array) -> jax.Array:
            given = {n: direction[i] * jnp.ones_like(values[n]) for i, n in enumerate(names)}
            size = jnp.abs(back(given)[0]).mean(0)
            n_sensors = jnp.bincount(jnp.asarray(face), length=6)
            return jax.ops.segment_sum(size, face, 6) / n_sensors[:, None]

        found = jax.lax.map(one, jnp.eye(len(names)))  # one output at a time: memory
        return dict(zip(names, found, strict=True))

    found = scores(setting.run.params, batch)  # which jit has sorted by name
    order = [part for _, parts in QUANTITIES.values() for part in parts]
    return {name: np.asarray(found[name]) for name in order if name in found}


def face_weights(setting: Setting) -> dict[str, np.ndarray]:
    """Share of each token in the first layer of each head: norms of its columns, sum 1.

    Returns:
        Per head (t,), in the order of the detector's faces.
    """
    n_tokens, frozen = len(detector_of(setting.run.config).faces), setting.task.frozen
    shares = {}
    for name, parts in setting.run.params.items():
        if name.startswith("head_") and "stem" in parts and f"^{name}/" not in frozen:
            kernel = np.asarray(parts["stem"]["kernel"], np.float64)
            norms = np.linalg.norm(kernel.reshape(n_tokens, -1), axis=1)
            shares[name.removeprefix("head_")] = norms / norms.sum()
    return shares
