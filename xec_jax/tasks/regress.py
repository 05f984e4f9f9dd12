"""Regression of what is known about a photon in simulation: direction, energy, time, position.

The loss is the sum over quantities of weight x mean over events and components; an event whose
truth is not known counts for the other quantities. Differences are taken in units of the
standard deviation of the training events: squared centimeters would drown GeV. With
`train.loss_balance="auto"` the weights are learned, exp(-s) L / 2 + s / 2 each.

Source: multi-task regression of the PyTorch predecessor, with targets brought to order one,
azimuths compared without whole turns, and times relative to the zero of the inputs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from xec_jax import metric_sums
from xec_jax.config import from_json
from xec_jax.data.places import place_of
from xec_jax.data.truth import read_truth
from xec_jax.errors import ConfigError, DataError
from xec_jax.geometry import INVALID_ABOVE
from xec_jax.kinematics import angles_to_vector, opening_angle, wrap_degrees
from xec_jax.losses import mean_of
from xec_jax.nets.regressor import Regressor
from xec_jax.targets import DIRECTIONS, N_CLASSES, QUANTITIES, Target
from xec_jax.tasks import calorimeter
from xec_jax.tasks.base import Arrays, Task, mean_and_spread
from xec_jax.tasks.quantities import targets_of
from xec_jax.types import Array, Batch, Key, Mean, Metrics, Params, Terms


def check(config: ConfigDict) -> None:
    """Checks the values that only this task understands, besides those of its quantities.

    Raises:
        ConfigError: A value out of its range.
    """
    calorimeter.check(config)
    choices = {
        "data.energy_unit": ("GeV", "MeV"),
        "model.heads": ("active", "all"),
        "model.output_affine": ("auto", "none"),
        "train.loss_balance": ("manual", "auto"),
        "train.loss_units": ("std", "physical"),
    }
    for key, allowed in choices.items():
        group, name = key.split(".")
        if config[group][name] not in allowed:
            raise ConfigError(f"{key} is {config[group][name]!r}", expected=" or ".join(allowed))
    if config.train.loss_units == "std" and config.model.output_affine != "auto":
        raise ConfigError(
            f"train.loss_units is 'std', but model.output_affine is "
            f"{config.model.output_affine!r}: there is no standard deviation",
            expected="model.output_affine=auto, or train.loss_units=physical",
        )
    if config.model.hidden_dim < 1:
        found = f"model.hidden_dim is {config.model.hidden_dim}"
        raise ConfigError(found, expected="a positive number")
    if not 0 <= config.model.head_dropout < 1:
        found = f"model.head_dropout is {config.model.head_dropout}"
        raise ConfigError(found, expected="a rate inside [0, 1)")


def make_network(config: ConfigDict) -> Regressor:
    """Builds the network that the config describes."""
    heads = {target.name: target.n_raw for target in targets_of(config)}
    if config.model.heads == "all":
        widths = {name: len(q.components) for name, q in QUANTITIES.items()}
        heads = {**widths, "n_gamma": N_CLASSES, **heads}
    encoder = calorimeter.encoder_of(config)
    return Regressor(encoder, heads, config.model.hidden_dim, config.model.head_dropout)


def make_task(config: ConfigDict) -> Task:
    """Builds the regression task.

    Raises:
        ConfigError: A value out of its range, or a combination that cannot work.
    """
    check(config)
    targets, net = targets_of(config), make_network(config)
    experiment = Experiment(config, net, targets)
    spec = dict(calorimeter.sensor_spec(config, calorimeter.detector_of(config)))
    inputs = [*spec, *(t.reference for t in targets if t.reference)]
    for target in targets:
        spec |= {k: (shape, np.dtype(np.float32)) for k, shape in target.branches.items()}
    record = calorimeter.record_of(config)
    record["modules"] = {f"head_{target.name}": target.meaning for target in targets}
    idle = set(net.heads) - {target.name for target in targets}
    return Task(
        name="regress",
        spec=spec,
        init=experiment.init,
        loss=experiment.loss,
        evaluate=experiment.evaluate,
        derive=metric_sums.derive,
        predict=experiment.predict,
        inspect=experiment.inspect,
        respond=experiment.respond,
        figures=experiment.figures,
        units={k: unit for t in targets for k, unit in metric_sums.units_of(t).items()},
        record=record,
        inputs=tuple(inputs),
        truth=experiment.truth,
        combine=experiment.combine,
        frozen=tuple(f"^head_{name}/" for name in sorted(idle)),
    )


def prepare(config: ConfigDict) -> ConfigDict:
    """Fills in mean and standard deviation of the targets, and looks at the truth.

    Values that are set already stay, and their truth is not read. A head that is taken over from
    another run (`train.init_from`) keeps the values that it was trained with.

    Raises:
        ConfigError: A combination that cannot work.
        DataError: A missing branch, another unit, or too many events without truth.
    """
    check(config)
    if config.data.train is None:
        return config
    config = config.copy_and_resolve_references().unlock()
    _take_affine_of_start(config)
    for target in targets_of(config):
        if target.reference and "reweight" in config.data:
            config.data.reweight.timing.reference = target.reference
    targets = [t for t in targets_of(config) if not t.std]
    truth = _truth(config, targets, config.data.train)
    if targets and config.data.valid is not None:
        _truth(config, targets, config.data.valid)
    for target in targets:
        if config.model.output_affine == "auto" and not target.is_class:
            mean, std = target.statistics(truth[target.name])
            config.model.affine[target.name].update({"mean": mean, "std": std})
    return config.lock()


def _take_affine_of_start(config: ConfigDict) -> None:
    """Copies mean and std of the heads that `train.init_from` brings along."""
    path = Path(config.train.init_from or "") / "config.json"
    if config.train.init_from is None or not path.is_file():
        return  # the training will say what is wrong with the folder
    start = from_json(path.read_text(), str(path))
    if start.task != config.task:
        return
    known = {target.name: target for target in targets_of(start)}
    for target in targets_of(config):
        there = known.get(target.name)
        if there is None or not there.std or target.std:
            continue
        if replace(target, mean=there.mean, std=there.std).meaning == there.meaning:
            config.model.affine[target.name].update({"mean": there.mean, "std": there.std})


def _truth(config: ConfigDict, targets: Sequence[Target], path: Any) -> dict[str, np.ndarray]:
    """Reads and checks the truth of some files: what is known of each target, (n, k)."""
    branches = {k: shape for target in targets for k, shape in target.branches.items()}
    if not branches:
        return {}
    try:
        arrays = read_truth(config.data, branches, path)
    except DataError as error:
        needs = [t.name for t in targets if any(repr(b) in error.found for b in t.branches)]
        if not needs:
            raise
        off = " and ".join(f"train.tasks.{name}.enabled=false" for name in needs)
        raise DataError(
            f"{error.found}, for train.tasks.{', '.join(needs)}",
            expected=error.expected,
            remedy=f"{error.remedy}; or {off}",
        ) from error
    return {
        target.name: target.known(
            arrays,
            where=f"{path}",
            place=partial(place_of, config.data, branches, path),
            energy_unit=config.data.energy_unit,
            allow_bad=config.data.allow_bad_truth,
        )
        for target in targets
    }


class Experiment:
    """The functions of the task, over what they share."""

    def __init__(self, config: ConfigDict, net: Regressor, targets: tuple[Target, ...]) -> None:
        self.net, self.targets = net, targets
        self.transform = calorimeter.transform_of(config)
        self.augment = calorimeter.augmentation_of(config)
        self.is_balanced = config.train.loss_balance == "auto"

    def init(self, key: Key, batch: Batch) -> Params:
        """Returns initial parameters."""
        x, _ = calorimeter.encode(self.transform, batch)
        params = dict(self.net.init(key, x)["params"])
        if self.is_balanced:
            params |= {f"log_var_{t.name}": jnp.zeros(()) for t in self.targets}
        return params

    def outputs(self, params: Params, batch: Batch, dropout: Key | None = None) -> dict[str, Array]:
        """Runs the network; what the losses compare with the truth, by quantity."""
        x, _ = calorimeter.encode(self.transform, batch)
        return self.outputs_from(params, x, dropout)

    def outputs_from(
        self, params: Params, x: Array, dropout: Key | None = None
    ) -> dict[str, Array]:
        """Runs the network on the features of the sensors (b s 2)."""
        rngs = None if dropout is None else {"dropout": dropout}
        raw = self.net.apply({"params": params}, x, None, dropout is None, rngs=rngs)
        raw = cast(dict[str, Array], raw)
        return {t.name: t.output(raw[t.name]) for t in self.targets}

    def loss(self, params: Params, batch: Batch, key: Key) -> tuple[Terms, Metrics]:
        """Returns the loss terms of training events, and what is worth knowing about them."""
        batch = self.augment(batch, key)
        outputs = self.outputs(params, batch, calorimeter.dropout_key(key, batch))
        return self.terms(params, outputs, batch)

    def terms(
        self, params: Params, outputs: Mapping[str, Array], batch: Batch
    ) -> tuple[Terms, Metrics]:
        """Loss terms by quantity, and what is worth knowing about them."""
        terms, metrics = {}, {}
        for target in self.targets:
            name, (truth, is_known) = target.name, target.truth(batch)
            total, weight = target.loss(outputs[name], truth, batch["weight"] * is_known)
            metrics[f"no_truth_{name}"] = mean_of(~is_known * 1.0, batch["weight"])
            if self.is_balanced:
                s = params[f"log_var_{name}"]
                # exp(-s) L / 2 + s / 2 with L = total / weight, as a sum over events.
                terms[name] = Mean(0.5 * (jnp.exp(-s) * total + s * weight), weight)
                each = jnp.ones_like(batch["weight"])
                metrics[f"log_var_{name}"] = mean_of(s * each, each)
                metrics[f"learned_weight_{name}"] = mean_of(0.5 * jnp.exp(-s) * each, each)
            else:
                terms[name] = Mean(target.weight * total, weight)
        return terms, metrics

    def evaluate(self, params: Params, batch: Batch, key: Key) -> tuple[Terms, Metrics]:
        """Loss terms as in training, and errors in physical units."""
        return self.inspect(params, batch, key)[1:]

    def inspect(
        self, params: Params, batch: Batch, key: Key
    ) -> tuple[dict[str, Array], Terms, Metrics]:
        """Like `evaluate`, beside the predictions and the loss of each event.

        The arrays are those of `predict`, and `loss` (b,): what an event adds to the loss, with
        quantities whose truth is not known left out.
        """
        outputs = self.outputs(params, batch)
        terms, metrics = self.terms(params, outputs, batch)
        for target in self.targets:
            truth, is_known = target.truth(batch)
            weight = batch["weight"] * is_known
            measure = metric_sums.class_sums if target.is_class else metric_sums.error_sums
            metrics |= measure(target, outputs[target.name], truth, weight)
        arrays = self.predictions(outputs, batch)
        arrays["loss"] = self.event_loss(params, outputs, batch)
        return arrays, terms, metrics

    def event_loss(self, params: Params, outputs: Mapping[str, Array], batch: Batch) -> Array:
        """What each event by itself would have as its loss, (b,)."""

        def one(outputs: Mapping[str, Array], event: Batch) -> Array:
            alone = jax.tree.map(lambda value: value[None], (outputs, event))
            terms, _ = self.terms(params, *alone)
            return jnp.stack([t.total / jnp.maximum(t.weight, 1.0) for t in terms.values()]).sum()

        names = {name for target in self.targets for name in target.branches}
        event = {name: batch[name] for name in names} | {"weight": jnp.ones_like(batch["weight"])}
        return jax.vmap(one)(outputs, event)

    def predict(self, params: Params, batch: Batch, key: Key | None = None) -> dict[str, Array]:
        """Predictions in physical units; see `Target.predictions`."""
        dropout = None if key is None else calorimeter.dropout_key(key, batch)
        return self.predictions(self.outputs(params, batch, dropout), batch)

    def predictions(self, outputs: Mapping[str, Array], batch: Batch) -> dict[str, Array]:
        """Turns outputs of the network into predictions in physical units."""
        found = [t.predictions(outputs[t.name], batch) for t in self.targets]
        return {name: value for part in found for name, value in part.items()}

    def respond(self, params: Params, x: Array, batch: Batch) -> dict[str, Array]:
        """The predicted components of all quantities but classes, by name, (b,) each.

        Args:
            params: Parameters of the network.
            x: Features of the sensors (b s 2), which take the place of those of the batch.
            batch: Has what the predictions need besides.
        """
        outputs = self.outputs_from(params, x)
        found: dict[str, Array] = {}
        for target in self.targets:
            if not target.is_class:
                point = target.physical(target.point(outputs[target.name]))
                names = target.quantity.components
                found |= {name: point[:, i] for i, name in enumerate(names)}
        return found

    def truth(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """True values of the predictions, as far as the arrays have them; NaN for markers."""
        found = {}
        for target in self.targets:
            if target.branch in arrays:
                values = np.asarray(arrays[target.branch], np.float32)
                known = np.abs(values) <= INVALID_ABOVE
                found[f"true_{target.name}"] = np.where(known, values, np.float32(np.nan))
        return found

    def combine(self, members: Sequence[Arrays]) -> dict[str, np.ndarray]:
        """Averages predictions; azimuths near each other, classes by their probabilities."""
        members = [_beside(member, members[0]) for member in members]
        found = mean_and_spread(members)
        if "pred_angle" in found:
            found = _beside(found, {"pred_angle": np.zeros_like(found["pred_angle"])})
        if "pred_n_gamma" in found:
            found["pred_n_gamma"] = found["pred_n_gamma_probability"].argmax(-1).astype(np.int32)
        return found

    def figures(self, arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Any]]:
        """Draws predictions against the truth, a figure per quantity."""
        from xec_jax.plots.regression import regression_figure

        for target in self.targets:
            if target.is_class:
                continue
            name, k = target.name, target.n_components
            point = arrays[f"pred_{name}"].reshape(-1, k).astype(np.float64)
            truth = arrays[target.branch].reshape(-1, k).astype(np.float64)
            used = (np.abs(truth) <= INVALID_ABOVE).all(-1) & np.isfinite(point).all(-1)
            used &= arrays["weight"] > 0
            residual = np.asarray(target.residual(jnp.asarray(point), jnp.asarray(truth)))
            distance = None
            if name in DIRECTIONS:
                pair = (angles_to_vector(v) if name == "angle" else v for v in (point, truth))
                distance = np.rad2deg(opening_angle(*pair))[used]
            unit, factor = ("MeV", 1e3) if name == "energy" else (target.quantity.unit, 1.0)
            figure = regression_figure(
                factor * truth[used],
                factor * residual[used],
                components=target.quantity.components,
                unit=unit,
                opening_deg=distance,
            )
            yield f"regression_{name}", figure


def _beside(arrays: Arrays, other: Arrays) -> dict[str, np.ndarray]:
    """Moves the azimuths of a prediction by whole turns next to those of another one."""
    moved = dict(arrays)
    if "pred_angle" in arrays:
        away = np.asarray(arrays["pred_angle"][:, 1], np.float64) - other["pred_angle"][:, 1]
        turns = away - np.asarray(wrap_degrees(away))
        for name in ("pred_angle", "pred_angle_low", "pred_angle_high"):
            if name in arrays:
                moved[name] = arrays[name].copy()
                moved[name][:, 1] -= turns.astype(arrays[name].dtype)
    return moved
