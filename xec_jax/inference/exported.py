"""Exported networks, asked like those of run folders: normalization around, physical units out."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xec_jax import defaults, trained
from xec_jax.errors import CheckpointError, ConfigError
from xec_jax.evaluation.regress import known
from xec_jax.export.model import OnnxModel
from xec_jax.geometry import N_SENSORS
from xec_jax.inference.network import Answer, Network
from xec_jax.nets.faces import CHANNELS
from xec_jax.targets import QUANTITIES, Target
from xec_jax.tasks.base import Task
from xec_jax.tasks.calorimeter import encode
from xec_jax.transforms import SensorTransform

log = logging.getLogger(__name__)

OVERRIDES = {
    "npho_branch": "npho",
    "time_branch": "time",
    "npho_scale": "npho_scale",
    "npho_scale2": "npho_scale2",
    "time_scale": "time_scale",
    "time_shift": "time_shift",
    "sentinel_value": "sentinel_time",
}
"""What a user may put in place of the metadata, with the names there."""
MASKS = ("hidden_mask", "dead_mask")
LOSSES = {"normal": "gaussian_nll", "class": "cross_entropy", "point": "l1"}
"""A loss that leads to the form of a head."""


class Exported(Network):
    """A network in an ONNX file.

    Args:
        path: The file.
        overrides: Values for keys of `OVERRIDES` in place of those of the training; None for none.

    Attributes:
        model: The file at work.

    Raises:
        CheckpointError: A file that cannot be used.
        ConfigError: A value for the normalization of a model that normalizes by itself.
    """

    def __init__(self, path: Path, overrides: Mapping[str, Any] | None = None) -> None:
        self.model = model = OnnxModel(path)
        print(f"{path}: ONNX Runtime {model.version}, {model.provider}")
        branches, normalization, replaced = _settings(model, overrides or {})
        transform = SensorTransform(**normalization)
        self._encode = jax.jit(partial(encode, transform))
        self._npho_inverse = jax.jit(transform.npho_inverse)
        self._time_inverse = jax.jit(transform.time_inverse)
        self._is_raw, self._targets = bool(model.facts["raw"]), _targets_of(model)
        self.task = _as_task(model, self._targets, branches, transform)
        self.answers = dict(model.outputs) if self._is_raw else self._physical_shapes()
        self.put = dict  # nothing goes to a device of JAX
        self.data = defaults.data()
        self.data.npho_branch, self.data.time_branch = branches["npho"], branches["time"]
        self.data.normalization.update(transform.as_dict())
        self.data.strict_scheme = True  # nobody here knows what the network was trained with
        self.notes = {
            "model": str(path),
            "sha256": model.sha256,
            "provider": model.provider,
            "onnxruntime": model.version,
            "overrides": replaced,
            "record": dict(self.task.record),
            "facts": model.facts,
        }

    def __call__(self, batch: Mapping[str, Any]) -> Answer:
        """Returns what is predicted; energies, photons and so on in the units of `predict`."""
        batch = trained.complete(batch, self.task)
        found = self.model(self.given(batch))
        if self._is_raw:
            return found
        if self._targets:
            return self._predictions(found, batch)
        return self._filled(found, batch) if "npho_filled" in found else found

    def given(self, batch: Mapping[str, Any]) -> Answer:
        """Returns the inputs of the model for the events of a batch."""
        batch = trained.complete(batch, self.task)
        nothing = np.zeros((len(batch["weight"]), N_SENSORS), np.float32)
        arrays = {**batch, "hidden_mask": nothing, "dead_mask": nothing}
        if not self._is_raw:
            x, valid = self._features(batch)
            arrays |= {"input": x, "npho": x[..., 0], "time": x[..., 1]}
            arrays["dead_mask"] = ~valid[..., 0]
        return {name: np.asarray(arrays[name]) for name in self.model.inputs}

    def _features(self, batch: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Normalized features and whether they are valid, both (b s 2)."""
        x, valid = self._encode({name: batch[name] for name in CHANNELS if name in batch})
        return np.asarray(x), np.asarray(valid)

    def _predictions(self, found: Answer, batch: Mapping[str, Any]) -> Answer:
        values: dict[str, Any] = {}
        for target in self._targets:
            name = "output" if "output" in found else f"output_{target.name}"
            values |= target.predictions(jnp.asarray(found[name]), batch)
        return {name: np.asarray(value) for name, value in values.items()}

    def _filled(self, found: Answer, batch: Mapping[str, Any]) -> Answer:
        values = {"npho_filled": self._npho_inverse(found["npho_filled"])}
        if "time_filled" in found:
            values["time_filled"] = self._time_inverse(found["time_filled"])
        _, valid = self._features(batch)
        # What was measured comes back as it was, without the rounding of there and back.
        return {
            name: np.where(valid[..., 0], batch[name.removesuffix("_filled")], value)
            for name, value in values.items()
        }

    def _physical_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the answers, found by asking for those of two events."""
        if not self._targets:
            return dict(self.model.outputs)
        zeros = {n: np.zeros((2, *shape), np.float32) for n, shape in self.model.outputs.items()}
        batch = {name: jnp.zeros(2) for name in self.task.inputs or ()}
        return {n: value.shape[1:] for n, value in self._predictions(zeros, batch).items()}


def _settings(
    model: OnnxModel, overrides: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Returns branches, normalization, and what of them is not that of the training."""
    branches, normalization = dict(model.facts["branches"]), dict(model.facts["normalization"])
    replaced: dict[str, Any] = {}
    for name, value in overrides.items():
        group = branches if name.endswith("_branch") else normalization
        key = OVERRIDES[name]
        if value is None or group.get(key) == value:
            continue
        if group is normalization and model.facts["raw"]:
            raise ConfigError(
                f"--{name} {value}, but {model.path} normalizes by itself, with {key} {group[key]}",
                expected=f"no --{name}",
                remedy="export the run without --raw to choose the normalization here",
            )
        log.warning(
            "--%s %s in place of %s, which %s was trained with", name, value, group[key], model.path
        )
        group[key] = replaced[name] = value
    return branches, normalization, replaced


def _targets_of(model: OnnxModel) -> tuple[Target, ...]:
    """Returns the quantities of an exported regression, none for everything else."""
    if model.facts["task"] != "regress" or model.facts["part"] != "network":
        return ()
    targets = []
    for name, meaning in model.facts["tasks"].items():
        form = meaning["form"]
        is_quantile = not isinstance(form, str)
        target = Target(
            name,
            branch=QUANTITIES[name].branch or "",
            loss_fn="quantile" if is_quantile else LOSSES[form],
            log_transform=meaning["log_transform"],
            reference=meaning["reference"],
        )
        targets.append(replace(target, quantiles=tuple(form)) if is_quantile else target)
    return tuple(targets)


def _as_task(
    model: OnnxModel,
    targets: tuple[Target, ...],
    branches: Mapping[str, Any],
    transform: SensorTransform,
) -> Task:
    """Describes a model like the experiment that it is from, which cannot be trained here."""
    references = {target.reference: () for target in targets if target.reference}
    sensors = dict.fromkeys((name for name in CHANNELS if branches[name]), (N_SENSORS,))
    known_here = {*CHANNELS, *MASKS, "input", *references}
    if unknown := [name for name in model.inputs if name not in known_here]:
        raise CheckpointError(
            f"{model.path} has the input {unknown[0]!r}, which is not known here",
            expected=", ".join(sorted(known_here)),
            remedy="use the version of xec_jax that wrote it",
        )
    truth = {t.name: t.branch for t in targets if t.branch}
    shapes = {k: v for t in targets if t.branch for k, v in t.branches.items()}

    def true_values(arrays: Mapping[str, np.ndarray]) -> Answer:
        return {
            f"true_{n}": known(arrays[branch]) for n, branch in truth.items() if branch in arrays
        }

    def refuse(*_: Any) -> Any:
        raise CheckpointError(f"{model.path} cannot be trained", expected="a run folder")

    facts = ("geometry", "detector", "tasks")
    record = {name: model.facts[name] for name in facts if name in model.facts}
    return Task(
        name=model.facts["task"],
        spec={
            k: (shape, np.dtype(np.float32)) for k, shape in (sensors | references | shapes).items()
        },
        init=refuse,
        loss=refuse,
        evaluate=refuse,
        units={port["name"]: port["unit"] for port in model.facts["outputs"] if port.get("unit")},
        record=record | {"normalization": transform.as_dict(), "branches": dict(branches)},
        inputs=(*sensors, *references),
        truth=true_values if targets else None,
    )
