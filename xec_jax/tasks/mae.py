"""Masked-autoencoder pretraining: hide most sensors of an event, reconstruct them from the rest.

Per face f and channel c the loss is sum(M w l) / sum(M w) over the whole batch, M the hidden
cells of the face; the loss is the sum over faces and channels, so 73 PMTs count as much as 4092
SiPMs. Times count only where the sensor saw more than `npho_threshold` photons, weighted by
sqrt(npho). With `train.auto_channel_weight` each channel's sum over faces L becomes
exp(-s) L / 2 + s / 2 with a learned s.

Source: training objective of the PyTorch predecessor, with the same masking in training and
validation, and with the masks of all outer sensors honored (`geometry.make_detector`).
"""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from xec_jax.errors import ConfigError
from xec_jax.geometry import Detector
from xec_jax.losses import make_loss, mean_loss
from xec_jax.nets.faces import face_input, face_mask, face_mean, owned_sensors, sensors_from_faces
from xec_jax.nets.mae import MaskedAutoencoder
from xec_jax.nets.masking import event_noise, hide_sensors
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
    view_of,
)
from xec_jax.transforms import SensorTransform
from xec_jax.types import Array, Batch, Key, Mean, Metrics, Params, Terms

LOG_VARIANCES = "channel_log_vars"
"""Parameters float32 (f,): the learned log variances of the channels."""


def check(config: ConfigDict) -> None:
    """Checks the values that only this task understands.

    Raises:
        ConfigError: A value out of its range.
    """
    shared.check(config)
    if not 0 < (ratio := config.model.mask_ratio) < 1:
        raise ConfigError(f"model.mask_ratio is {ratio}", expected="a share inside (0, 1)")
    for key in ("decoder_dim", "hex_decoder_dim"):
        if (value := config.model[key]) is not None and not value > 0:
            raise ConfigError(f"model.{key} is {value}", expected="a positive number")


def make_network(config: ConfigDict) -> MaskedAutoencoder:
    """Builds the network that the `model` group describes."""
    model = config.model
    channels = tuple(model.predict_channels)
    return MaskedAutoencoder(
        encoder_of(config), model.decoder_dim, channels, hex_decoder_dim=model.hex_decoder_dim
    )


def make_task(config: ConfigDict) -> Task:
    """Builds the pretraining task.

    Raises:
        ConfigError: A value out of its range.
    """
    check(config)
    detector, transform = detector_of(config), transform_of(config)
    experiment = Experiment(detector, transform, make_network(config), config)
    return Task(
        name="mae",
        spec=sensor_spec(config, detector),
        init=experiment.init,
        loss=experiment.loss,
        evaluate=experiment.evaluate,
        derive=shared.derive,
        predict=experiment.predict,
        inspect=experiment.inspect,
        figures=experiment.figures,
        units=shared.UNITS,
        record=record_of(config) | {"channels": list(config.model.predict_channels)},
    )


class Experiment:
    """The functions of the task, over what they share."""

    def __init__(
        self,
        detector: Detector,
        transform: SensorTransform,
        net: MaskedAutoencoder,
        config: ConfigDict,
    ) -> None:
        self.detector, self.transform, self.net = detector, transform, net
        self.model, self.train = config.model, config.train
        self.augment, self.view = augmentation_of(config), view_of(config)
        self.pointwise = make_loss(config.train.loss_fn, beta=config.train.loss_beta)

    def init(self, key: Key, batch: Batch) -> Params:
        """Returns initial parameters."""
        x, _, hidden = self.hide(batch, key)
        params = self.net.init(key, x, hidden)["params"]
        if self.train.auto_channel_weight:
            params = {**params, LOG_VARIANCES: jnp.zeros(len(self.model.predict_channels))}
        return params

    def hide(self, batch: Batch, key: Key) -> tuple[Array, Array, Array]:
        """Encodes events and chooses what to hide.

        Returns:
            x (b s 2) as measured, valid bool (b s 2), hidden bool (b s), a subset of the
            sensors whose `maskable` channel is valid.
        """
        x, valid = encode(self.transform, batch)
        # A key per event, folded with its place in the global batch: however the batch is cut
        # over devices and micro-batches, an event gets the same mask.
        noise = event_noise(key, batch["_position"], self.detector.n_sensors)
        bright = batch["npho"] > self.train.npho_threshold
        maskable, favor = self.maskable(valid), self.model.time_mask_ratio_scale
        return x, valid, hide_sensors(maskable, noise, self.model.mask_ratio, bright, favor)

    def maskable(self, valid: Array) -> Array:
        """Sensors that may be hidden, bool (b s)."""
        return shared.is_maskable(valid, self.model.maskable)

    def is_timed(self, batch: Batch, valid: Array) -> Array:
        """Sensors whose time counts, bool (b s)."""
        return shared.is_timed(batch, valid, self.train.npho_threshold)

    def reconstruct(
        self, params: Params, x: Array, valid: Array, hidden: Array, dropout: Key | None = None
    ) -> dict[str, Array]:
        """Runs the network on events with hidden sensors."""
        shown = shared.conceal(self.transform, self.model.fill_npho, x, hidden)
        unseen = hidden | ~self.maskable(valid)
        rngs = None if dropout is None else {"dropout": dropout}
        faces = self.net.apply({"params": params}, shown, unseen, dropout is None, rngs=rngs)
        return cast(dict[str, Array], faces)

    def loss(self, params: Params, batch: Batch, key: Key) -> tuple[Terms, Metrics]:
        """Returns the loss terms of training events, and what is worth knowing about them."""
        batch = self.augment(batch, key)
        x, valid, hidden = self.hide(batch, key)
        faces = self.reconstruct(params, x, valid, hidden, dropout_key(key, batch))
        terms = self.balance(self.terms(faces, batch, x, valid, hidden), params)
        return terms, self.counts(batch, valid, hidden, params)

    def terms(
        self, faces: Mapping[str, Array], batch: Batch, x: Array, valid: Array, hidden: Array
    ) -> Terms:
        """Loss terms `{face}_{channel}`, each a sum with its own weight."""
        threshold = self.train.npho_threshold
        photons = jnp.where(valid[..., 0], batch["npho"], 0.0)
        is_timed = self.is_timed(batch, valid)
        channel_weight = {"npho": self.train.npho_weight, "time": self.train.time_weight}
        terms = {}
        for face in self.detector.faces:
            if face.name not in faces:
                continue
            target = face_input(face, x, **self.view)
            pixel_shape = target.shape[1:-1]
            event = batch["weight"].reshape(-1, *(1 for _ in pixel_shape))
            weight = {"npho": face_mask(face, hidden) * event}
            weight["time"] = weight["npho"] * face_mask(face, is_timed)
            mean = face_mean(face, photons)
            if self.train.use_npho_time_weight:
                weight["time"] *= jnp.sqrt(jnp.maximum(mean, threshold))
            if self.train.npho_loss_weight.enabled:
                weight["npho"] *= (jnp.maximum(mean, 1) + 1) ** self.train.npho_loss_weight.alpha
            for i, channel in enumerate(self.model.predict_channels):
                prediction = faces[face.name][..., i]
                term = mean_loss(self.pointwise, prediction, target[..., i], weight[channel])
                scaled = Mean(channel_weight[channel] * term.total, term.weight)
                terms[f"{face.name}_{channel}"] = scaled
        return terms

    def balance(self, terms: Terms, params: Params) -> Terms:
        """Weighs the channels by their learned variances, once for all faces of a channel.

        exp(s) tends to the loss of the channel summed over the faces. The predecessor adds s / 2
        for every face, so its exp(s) tends to their mean; the balance is the same.
        """
        if not self.train.auto_channel_weight:
            return terms
        balanced = {}
        for i, channel in enumerate(self.model.predict_channels):
            log_variance = params[LOG_VARIANCES][i]
            weight = jnp.float32(0)
            for name, term in terms.items():
                if name.endswith(f"_{channel}"):
                    balanced[name] = Mean(0.5 * jnp.exp(-log_variance) * term.total, term.weight)
                    weight += term.weight
            # With the weight of all cells, so that a batch that has none teaches nothing.
            balanced[f"balance_{channel}"] = Mean(0.5 * log_variance * weight, weight)
        return balanced

    def counts(self, batch: Batch, valid: Array, hidden: Array, params: Params) -> Metrics:
        """How much was hidden, how much of it has a time to learn, and the learned balance."""
        timed = self.is_timed(batch, valid)
        counts = shared.mask_counts(batch, self.maskable(valid), timed, hidden)
        event = batch["weight"]
        if self.train.auto_channel_weight:
            for channel, s in zip(self.model.predict_channels, params[LOG_VARIANCES], strict=True):
                counts[f"channel_logvar_{channel}"] = Mean(s * event.sum(), event.sum())
        return counts

    def evaluate(self, params: Params, batch: Batch, key: Key) -> tuple[Terms, Metrics]:
        """Loss terms, and errors per sensor: each sensor counts once, also on the fine grid."""
        return self.inspect(params, batch, key)[1:]

    def inspect(
        self, params: Params, batch: Batch, key: Key
    ) -> tuple[dict[str, Array], Terms, Metrics]:
        """Like `evaluate`, beside what was hidden and predicted; see `hidden.inspected`."""
        x, valid, hidden = self.hide(batch, key)
        faces = self.reconstruct(params, x, valid, hidden)
        terms = self.balance(self.terms(faces, batch, x, valid, hidden), params)
        metrics = self.counts(batch, valid, hidden, params)
        predicted, known = self.per_sensor(faces)
        counted = hidden & known & (batch["weight"][:, None] > 0)
        timed, channels = self.is_timed(batch, valid), self.model.predict_channels
        metrics |= shared.error_sums(
            self.detector, self.transform, channels, predicted, batch, x, counted, timed
        )
        predicted = jnp.where(known[:, None], predicted, jnp.nan)
        return shared.inspected(x, predicted, hidden, valid, timed), terms, metrics

    def per_sensor(self, faces: Mapping[str, Array]) -> tuple[Array, np.ndarray]:
        """Predictions (b s f), normalized, and which sensors any face determines (s,)."""
        shown = [face for face in self.detector.faces if face.name in faces]
        n = self.detector.n_sensors
        channels, photons = self.model.predict_channels, self.view["photons"]
        values = sensors_from_faces(shown, faces, n, channels, fill=0.0, photons=photons)
        known = np.isin(np.arange(n), np.concatenate([owned_sensors(face) for face in shown]))
        return values, known

    def predict(self, params: Params, batch: Batch, key: Key | None = None) -> dict[str, Array]:
        """Hides with a fixed seed and reconstructs, in photons and seconds."""
        x, valid, hidden = self.hide(batch, jax.random.PRNGKey(0))
        dropout = None if key is None else dropout_key(key, batch)
        predicted, known = self.per_sensor(self.reconstruct(params, x, valid, hidden, dropout))
        physical = shared.to_physical(self.transform, predicted)
        unknown = jnp.full_like(physical[0], jnp.nan)
        prediction = jnp.stack([*physical, unknown][:2], -1)
        prediction = jnp.where(known[:, None], prediction, jnp.nan)
        return {"prediction": prediction, "hidden": hidden, "valid": valid}

    def figures(self, arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Any]]:
        """Draws truth, masked input, prediction and residual of each event."""
        title = "Reconstruction of hidden sensors"
        return shared.figures(self.detector, arrays, "reconstruction", title)
