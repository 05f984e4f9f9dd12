"""Inpainting: hide a few sensors of an event, predict them from all others.

What is left after training fills dead channels. The loss is, per face f and channel c,

    per_face:  sum_e(1/n_e sum_s M w l) / sum_e(1/n_e sum_s M w),  summed over faces and channels
    flat:      sum(M w l) / sum(M w) over all faces together,      summed over channels

with M the n_e hidden sensors of event e on the face, and w times the weight of the event, where it
has one (curriculum). For photons w is 1 and the first form is the mean over an event's hidden
sensors, averaged over the events that have any. Times count only on sensors with more than
`npho_threshold` photons, with w = sqrt(photons).

Source: training objective of the PyTorch predecessor. It divides the weights of a face by their
plain mean over the batch, where here, in the first form, each event counts the same in that mean
too (a few percent of a term): both sums add up over micro-batches and devices, which a product of
two means does not. Where all weights are 1, and in the second form, the two are equal.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from xec_jax.baselines.neighbors import disk_average, touching_average
from xec_jax.config import nearest
from xec_jax.errors import ConfigError
from xec_jax.geometry import (
    FACES,
    N_SENSORS,
    OUTER_IDS,
    Detector,
    make_detector,
    outer_coarse_map,
    sensor_rectangles,
)
from xec_jax.losses import make_loss, mean_loss, mean_of
from xec_jax.nets.inpaint_grid import SensorRegions
from xec_jax.nets.inpainter import HEAD_TYPES, Inpainter
from xec_jax.nets.masking import event_noise, hide_flat, hide_per_face, hide_sensors
from xec_jax.tasks import hidden as shared
from xec_jax.tasks.base import Task
from xec_jax.tasks.calorimeter import (
    augmentation_of,
    detector_of,
    dropout_key,
    encode,
    encoder_of,
    record_of,
    sensor_spec,
    transform_of,
)
from xec_jax.transforms import SensorTransform
from xec_jax.types import Array, Batch, Key, Mean, Metrics, Params, Terms

REDUCTIONS = ("per_face", "flat")


def mask_ratios(config: ConfigDict) -> dict[int, float] | float:
    """Reads `model.mask_ratio`: one share for all sensors, or face code -> share.

    Raises:
        ConfigError: An unknown face, or a share out of its range.
    """
    ratio = config.model.mask_ratio
    if isinstance(ratio, Mapping | ConfigDict):
        shares = dict(ratio.items())
        unknown = [name for name in shares if name not in FACES]
        if unknown:
            found = f"model.mask_ratio names the face {unknown[0]!r}"
            raise ConfigError(found, expected=nearest(unknown[0], FACES))
    else:
        shares = {"": ratio}
    is_number = all(isinstance(r, int | float) for r in shares.values())
    if not is_number or not all(0 <= r < 1 for r in shares.values()) or not any(shares.values()):
        raise ConfigError(
            f"model.mask_ratio is {shares.get('', shares)}",
            expected="a share inside (0, 1), or shares in [0, 1) for some of " + ", ".join(FACES),
        )
    if "" in shares:
        return float(shares[""])
    return {FACES.index(name): float(share) for name, share in shares.items()}


def check(config: ConfigDict) -> None:
    """Checks the values that only this task understands.

    Raises:
        ConfigError: A value out of its range, or a combination that cannot work.
    """
    shared.check(config)
    mask_ratios(config)
    model, train = config.model, config.train
    for key, value, allowed in (
        ("model.head_type", model.head_type, HEAD_TYPES),
        ("train.loss_reduction", train.loss_reduction, REDUCTIONS),
    ):
        if value not in allowed:
            raise ConfigError(f"{key} is {value!r}", expected=nearest(str(value), allowed))
    if model.maskable not in model.predict_channels:
        raise ConfigError(
            f"model.maskable is {model.maskable!r}, which model.predict_channels does not hold",
            expected="model.maskable=npho where only photons are predicted",
        )
    if model.mask_npho_flat and model.time_mask_ratio_scale != 1:
        raise ConfigError(
            "model.mask_npho_flat and model.time_mask_ratio_scale both choose bright sensors",
            expected="one of them: model.time_mask_ratio_scale=1 or model.mask_npho_flat=false",
        )
    if model.freeze_encoder and not train.init_from:
        raise ConfigError(
            "model.freeze_encoder is on, but train.init_from is not set: the encoder would stay "
            "as random as it starts",
            expected="the folder of a run whose encoder to use",
            remedy="--config.train.init_from=RUN, or --config.model.freeze_encoder=false",
        )
    for key, unit in (("head_dim", 8), ("cross_attn_latent", 4), ("cross_attn_pos", 6)):
        if model[key] < 1 or model[key] % unit:
            raise ConfigError(f"model.{key} is {model[key]}", expected=f"a multiple of {unit}")
    for key in ("hex_head_dim", "cross_attn_hidden"):
        if model[key] < 1:
            raise ConfigError(f"model.{key} is {model[key]}", expected="a positive number")
    if not 1 <= model.cross_attn_k < N_SENSORS:
        found = f"model.cross_attn_k is {model.cross_attn_k}"
        raise ConfigError(found, expected=f"1 to {N_SENSORS - 1}, a number of other sensors")


def make_network(config: ConfigDict) -> Inpainter:
    """Builds the network that the `model` group describes."""
    model = config.model
    regions = SensorRegions(OUTER_IDS, sensor_rectangles(outer_coarse_map(model.geometry)))
    cross = {
        "n_neighbors": model.cross_attn_k,
        "n_bands": model.cross_attn_pos // 6,
        "width": model.cross_attn_hidden,
        "token_width": model.cross_attn_latent,
    }
    return Inpainter(
        encoder_of(config),
        detector_of(config),
        regions,
        model.head_type,
        tuple(model.predict_channels),
        frozen=model.freeze_encoder,
        grid_width=model.head_dim,
        graph_width=model.hex_head_dim,
        cross=tuple(cross.items()),
    )


def make_task(config: ConfigDict) -> Task:
    """Builds the inpainting task.

    Raises:
        ConfigError: A value out of its range, or a combination that cannot work.
    """
    check(config)
    detector, transform = detector_of(config), transform_of(config)
    experiment = Experiment(detector, transform, make_network(config), config)
    return Task(
        name="inpaint",
        spec=sensor_spec(config, detector),
        init=experiment.init,
        loss=experiment.loss,
        evaluate=experiment.evaluate,
        derive=shared.derive,
        predict=experiment.predict,
        inspect=experiment.inspect,
        preview=experiment.preview,
        figures=experiment.figures,
        units=shared.UNITS,
        record=record_of(config) | {"channels": list(config.model.predict_channels)},
        frozen=("^encoder/",) if config.model.freeze_encoder else (),
    )


class Experiment:
    """The functions of the task, over what they share."""

    def __init__(
        self, detector: Detector, transform: SensorTransform, net: Inpainter, config: ConfigDict
    ) -> None:
        self.detector, self.transform, self.net = detector, transform, net
        self.model, self.train = config.model, config.train
        self.ratios, self.augment = mask_ratios(config), augmentation_of(config)
        self.space = make_detector()  # where sensors are, whatever map the network is shown
        self.pointwise = make_loss(config.train.loss_fn, beta=config.train.loss_beta)

    def init(self, key: Key, batch: Batch) -> Params:
        """Returns initial parameters."""
        x, _, hidden = self.hide(batch, key)
        return self.net.init(key, x, hidden)["params"]

    def hide(self, batch: Batch, key: Key) -> tuple[Array, Array, Array]:
        """Encodes events and chooses what to hide.

        Returns:
            x (b s 2) as measured, valid bool (b s 2), hidden bool (b s), a subset of the
            sensors whose `maskable` channel is valid.
        """
        x, valid = encode(self.transform, batch)
        maskable, n = self.maskable(valid), self.detector.n_sensors
        if shared.CHOSEN in batch:
            return x, valid, batch[shared.CHOSEN] & maskable
        flat, favor = self.model.mask_npho_flat, self.model.time_mask_ratio_scale
        # A key per event: however the batch is cut, an event gets the same mask.
        noise = event_noise(key, batch["_position"], 2 * n if flat else n)
        bright = batch["npho"] > self.train.npho_threshold

        def choose(maskable: Array, noise: Array, ratio: float) -> Array:
            if flat:
                return hide_flat(maskable, noise[:, :n], ratio, batch["npho"], noise[:, n:])
            return hide_sensors(maskable, noise, ratio, bright, favor)

        if isinstance(self.ratios, float):
            return x, valid, choose(maskable, noise, self.ratios)
        on = self.detector.sensor_face
        return x, valid, hide_per_face(maskable, noise, self.ratios, on, choose)

    def maskable(self, valid: Array) -> Array:
        """Sensors that may be hidden, bool (b s)."""
        return shared.is_maskable(valid, self.model.maskable)

    def is_timed(self, batch: Batch, valid: Array) -> Array:
        """Sensors whose time counts, bool (b s)."""
        return shared.is_timed(batch, valid, self.train.npho_threshold)

    def fill(
        self, params: Params, x: Array, valid: Array, hidden: Array, dropout: Key | None = None
    ) -> Array:
        """Runs the network on events with hidden sensors: (b s f), normalized."""
        shown = shared.conceal(self.transform, self.model.fill_npho, x, hidden)
        unseen = hidden | ~self.maskable(valid)
        rngs = None if dropout is None else {"dropout": dropout}
        y = self.net.apply({"params": params}, shown, unseen, dropout is None, rngs=rngs)
        return jnp.asarray(y)

    def loss(self, params: Params, batch: Batch, key: Key) -> tuple[Terms, Metrics]:
        """Returns the loss terms of training events, and what is worth knowing about them."""
        batch = self.augment(batch, key)
        x, valid, hidden = self.hide(batch, key)
        predicted = self.fill(params, x, valid, hidden, dropout_key(key, batch))
        terms = self.terms(predicted, batch, x, valid, hidden)
        return terms, self.counts(batch, valid, hidden)

    def terms(self, predicted: Array, batch: Batch, x: Array, valid: Array, hidden: Array) -> Terms:
        """Loss terms `{face}_{channel}` or `{channel}`, each a sum with its own weight."""
        train = self.train
        photons = jnp.where(valid[..., 0], batch["npho"], 0.0)
        is_used = {"npho": hidden, "time": hidden & self.is_timed(batch, valid)}
        weights = {channel: used * batch["weight"][:, None] for channel, used in is_used.items()}
        scale = {"npho": train.npho_weight, "time": train.time_weight}
        if train.use_npho_time_weight:
            weights["time"] *= jnp.sqrt(jnp.maximum(photons, train.npho_threshold))
        if train.npho_loss_weight.enabled:
            weights["npho"] *= (jnp.maximum(photons, 1) + 1) ** train.npho_loss_weight.alpha
        terms = {}
        for i, channel in enumerate(self.model.predict_channels):
            for name, on in shared.face_columns(self.detector):
                if (name == "") != (train.loss_reduction == "flat"):
                    continue
                weight = weights[channel] * on
                if train.loss_reduction == "per_face":
                    # Without the weight of the event, which would cancel here.
                    n_hidden = (is_used[channel] * on).sum(-1, keepdims=True)
                    weight = weight / jnp.maximum(n_hidden, 1)
                term = mean_loss(self.pointwise, predicted[..., i], x[..., i], weight)
                terms[f"{name}{channel}"] = Mean(scale[channel] * term.total, term.weight)
        return terms

    def counts(self, batch: Batch, valid: Array, hidden: Array) -> Metrics:
        """How much was hidden, and how much of it has a time to learn."""
        event, timed = batch["weight"], self.is_timed(batch, valid)
        counts = shared.mask_counts(batch, self.maskable(valid), timed, hidden)
        return counts | {"n_masked": Mean(counts["actual_mask_ratio"].total, event.sum())}

    def evaluate(self, params: Params, batch: Batch, key: Key) -> tuple[Terms, Metrics]:
        """Loss terms, errors on hidden sensors, and those of the neighbor average there."""
        return self.inspect(params, batch, key)[1:]

    def inspect(
        self, params: Params, batch: Batch, key: Key
    ) -> tuple[dict[str, Array], Terms, Metrics]:
        """Like `evaluate`, beside what was hidden and predicted; see `hidden.inspected`.

        With `hidden.CHOSEN` in the batch, those sensors are hidden, and dead ones look like them.
        Of the neighbor averages there are `neighbors` and `disk` (b s) in photons.
        """
        x, valid, hidden = self.hide(batch, key)
        if shared.CHOSEN in batch:
            x = shared.conceal(self.transform, self.model.fill_npho, x, ~valid[..., 0])
        predicted = self.fill(params, x, valid, hidden)
        terms = self.terms(predicted, batch, x, valid, hidden)
        metrics = self.counts(batch, valid, hidden)
        counted = hidden & (batch["weight"][:, None] > 0)
        timed, channels = self.is_timed(batch, valid), self.model.predict_channels
        metrics |= shared.error_sums(
            self.detector, self.transform, channels, predicted, batch, x, counted, timed
        )
        arrays = shared.inspected(x, predicted, hidden, valid, timed)
        photons, live = batch["npho"], valid[..., 0] & ~hidden
        for method, average in (("neighbors", touching_average), ("disk", disk_average)):
            arrays[method], found = average(self.space, photons, live)
            metrics |= shared.photon_errors(
                self.detector, arrays[method], photons, counted, f"_{method}"
            )
            metrics[f"lonely_{method}"] = mean_of(~found * 1.0, counted)
        return arrays, terms, metrics

    def predict(self, params: Params, batch: Batch, key: Key | None = None) -> dict[str, Array]:
        """Fills dead channels and touches nothing else.

        Returns:
            npho_filled: (b s), photons; measured ones wherever there are any.
            prediction: (b s f), photons and seconds, for all sensors; trained are those of
                sensors that the network does not see.
            hidden: bool (b s), sensors that were hidden on purpose: none.
            valid: bool (b s 2), whether photons and time were measured.
        """
        x, valid = encode(self.transform, batch)
        return self.filled(params, batch, x, valid, jnp.zeros(x.shape[:2], bool), key)

    def preview(self, params: Params, batch: Batch, key: Key | None = None) -> dict[str, Array]:
        """Like `predict`, but hides sensors as in validation, whose truth is known."""
        x, valid, hidden = self.hide(batch, jax.random.PRNGKey(0))
        return self.filled(params, batch, x, valid, hidden, key)

    def filled(
        self, params: Params, batch: Batch, x: Array, valid: Array, hidden: Array, key: Key | None
    ) -> dict[str, Array]:
        """Runs the network and returns to photons and seconds."""
        dropout = None if key is None else dropout_key(key, batch)
        # The network has learned to fill what looks like a hidden sensor. In training it may tell
        # the two apart (`fill_npho`), as the predecessor's did.
        shown = shared.conceal(self.transform, self.model.fill_npho, x, ~valid[..., 0])
        predicted = self.fill(params, shown, valid, hidden, dropout)
        channels = shared.to_physical(self.transform, predicted)
        return {
            "npho_filled": jnp.where(valid[..., 0] & ~hidden, batch["npho"], channels[0]),
            "prediction": jnp.stack(channels, -1),
            "hidden": hidden,
            "valid": valid,
        }

    def figures(self, arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Any]]:
        """Draws truth, masked input, prediction and residual of each event."""
        return shared.figures(self.detector, arrays, "inpainting", "Inpainting of hidden sensors")
