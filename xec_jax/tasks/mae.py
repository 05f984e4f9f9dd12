"""Masked-autoencoder pretraining: hide most sensors of an event, reconstruct them from the rest.

Per face f and channel c the loss is sum(M w l) / sum(M w) over the whole batch, M the hidden
cells of the face; the loss is the sum over faces and channels, so 73 PMTs count as much as 4092
SiPMs. Times count only where the sensor saw more than `npho_threshold` photons, weighted by
sqrt(npho). With `train.auto_channel_weight` each channel's sum over faces L becomes
exp(-s) L / 2 + s / 2 with a learned s.

Source: training objective of the PyTorch predecessor, with the same masking in training and
validation, and with the masks of all outer sensors honored (`geometry.make_detector`).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from xec_jax.errors import ConfigError
from xec_jax.geometry import FACES, Detector
from xec_jax.losses import make_loss, mean_loss, mean_of
from xec_jax.nets.faces import (
    CHANNELS,
    face_input,
    face_mask,
    face_mean,
    owned_sensors,
    sensors_from_faces,
)
from xec_jax.nets.mae import MaskedAutoencoder
from xec_jax.nets.masking import event_noise, hide_sensors
from xec_jax.tasks import calorimeter
from xec_jax.tasks.base import Task
from xec_jax.tasks.calorimeter import (
    augmentation_of,
    detector_of,
    dropout_key,
    encode,
    encoder_of,
    transform_of,
    view_of,
)
from xec_jax.transforms import SensorTransform
from xec_jax.types import Array, Batch, Key, Mean, Metrics, Params, Terms

LOG_VARIANCES = "channel_log_vars"
"""Parameters float32 (f,): the learned log variances of the channels."""
UNITS = {"mae_photons": "photons", "mae_time_ns": "ns"}


def check(config: ConfigDict) -> None:
    """Checks the values that only this task understands.

    Raises:
        ConfigError: A value out of its range.
    """
    calorimeter.check(config)
    calorimeter.check_channels(config)
    ratio = config.model.mask_ratio
    if not 0 < ratio < 1:
        raise ConfigError(f"model.mask_ratio is {ratio}", expected="a share inside (0, 1)")
    if config.model.maskable not in CHANNELS:
        found = f"model.maskable is {config.model.maskable!r}"
        raise ConfigError(found, expected=" or ".join(CHANNELS))
    if config.model.maskable == "time" and config.data.time_branch is None:
        raise ConfigError(
            "model.maskable is 'time', but data.time_branch is None: nothing could be hidden",
            expected="model.maskable=npho for files without times",
        )
    for key in ("decoder_dim", "hex_decoder_dim", "time_mask_ratio_scale"):
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
    experiment = _Experiment(detector, transform, make_network(config), config)
    return Task(
        name="mae",
        spec=calorimeter.sensor_spec(config, detector),
        init=experiment.init,
        loss=experiment.loss,
        evaluate=experiment.evaluate,
        derive=derive,
        predict=experiment.predict,
        figures=experiment.figures,
        units=UNITS,
        record=calorimeter.record_of(config),
    )


class _Experiment:
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
        maskable = valid[..., CHANNELS.index(self.model.maskable)]
        # A key per event, folded with its place in the global batch: however the batch is cut
        # over devices and micro-batches, an event gets the same mask.
        noise = event_noise(key, batch["_position"], self.detector.n_sensors)
        bright = None
        if self.model.time_mask_ratio_scale != 1:
            bright = batch["npho"] > self.train.npho_threshold
        hidden = hide_sensors(
            maskable,
            noise,
            self.model.mask_ratio,
            favored=bright,
            favor=self.model.time_mask_ratio_scale,
        )
        return x, valid, hidden

    def reconstruct(
        self, params: Params, x: Array, valid: Array, hidden: Array, dropout: Key | None = None
    ) -> dict[str, Array]:
        """Runs the network on events with hidden sensors."""
        t, npho = self.transform, self.model.fill_npho
        fill = jnp.array([t.sentinel_npho if npho is None else npho, t.sentinel_time], x.dtype)
        shown = jnp.where(hidden[..., None], fill, x)
        unseen = hidden | ~valid[..., CHANNELS.index(self.model.maskable)]
        rngs = None if dropout is None else {"dropout": dropout}
        faces = self.net.apply({"params": params}, shown, unseen, dropout is None, rngs=rngs)
        return cast(dict[str, Array], faces)

    def loss(self, params: Params, batch: Batch, key: Key) -> tuple[Terms, Metrics]:
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
        is_timed = valid[..., 1] & (photons > threshold)
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
        event = batch["weight"][:, None]
        is_maskable = valid[..., CHANNELS.index(self.model.maskable)]
        is_timed = valid[..., 1] & (batch["npho"] > self.train.npho_threshold)
        counts = {
            "actual_mask_ratio": Mean((hidden * event).sum(), (is_maskable * event).sum()),
            "time_valid_ratio": mean_of(is_timed * 1.0, hidden * event),
        }
        if self.train.auto_channel_weight:
            for channel, s in zip(self.model.predict_channels, params[LOG_VARIANCES], strict=True):
                counts[f"channel_logvar_{channel}"] = Mean(s * event.sum(), event.sum())
        return counts

    def evaluate(self, params: Params, batch: Batch, key: Key) -> tuple[Terms, Metrics]:
        """Loss terms, and errors per sensor: each sensor counts once, also on the fine grid."""
        x, valid, hidden = self.hide(batch, key)
        faces = self.reconstruct(params, x, valid, hidden)
        terms = self.balance(self.terms(faces, batch, x, valid, hidden), params)
        metrics = self.counts(batch, valid, hidden, params)
        predicted, known = self.per_sensor(faces)
        counted = hidden & known & (batch["weight"][:, None] > 0)
        photons = jnp.where(valid[..., 0], batch["npho"], 0.0)
        is_timed = valid[..., 1] & (photons > self.train.npho_threshold)
        for i, channel in enumerate(self.model.predict_channels):
            w = (counted & is_timed if channel == "time" else counted).astype(jnp.float32)
            error = jnp.where(w > 0, predicted[..., i] - x[..., i], 0.0)
            for name, on in self._face_columns():
                part = f"{name}{channel}"
                metrics[f"mae_{part}"] = mean_of(jnp.abs(error) * on, w * on)
                metrics[f"mse_{part}"] = mean_of(error**2 * on, w * on)
                metrics[f"mean_{part}"] = mean_of(x[..., i] * on, w * on)
                metrics[f"square_{part}"] = mean_of(x[..., i] ** 2 * on, w * on)
        error = self.transform.npho_inverse(predicted[..., 0]) - photons
        metrics["mae_photons"] = mean_of(jnp.abs(error), counted)
        if "time" in self.model.predict_channels:
            scale = self.transform.time_scale * 1e9
            total, weight = metrics["mae_time"]
            metrics["mae_time_ns"] = Mean(total * scale, weight)
        return terms, metrics

    def _face_columns(self) -> Iterator[tuple[str, np.ndarray]]:
        """Metric prefix and the sensors it is about: all of them, then face by face."""
        yield "", np.ones(self.detector.n_sensors, np.float32)
        for code, name in enumerate(FACES):
            yield f"{name}_", (self.detector.sensor_face == code).astype(np.float32)

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
        inverse: list[Callable] = [self.transform.npho_inverse, self.transform.time_inverse]
        physical = [inverse[i](predicted[..., i]) for i in range(predicted.shape[-1])]
        physical += [jnp.full_like(physical[0], jnp.nan)] * (2 - len(physical))
        prediction = jnp.stack(physical, -1)
        prediction = jnp.where(known[:, None], prediction, jnp.nan)
        return {"prediction": prediction, "hidden": hidden, "valid": valid}

    def figures(self, arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Any]]:
        """Draws truth, masked input, prediction and residual of each event."""
        from xec_jax.plots.reconstruction import reconstruction_figure

        for k in range(len(arrays["hidden"])):
            npho = arrays["npho"][k]
            truth = np.stack([npho, arrays["time"][k] if "time" in arrays else npho * np.nan], -1)
            hidden = arrays["hidden"][k]
            figure = reconstruction_figure(
                self.detector,
                truth=truth,
                masked=np.where(hidden[:, None], np.nan, truth),
                prediction=arrays["prediction"][k],
                hidden=hidden,
                valid=arrays["valid"][k],
                run=int(arrays["run"][k]) if "run" in arrays else None,
                event=int(arrays["event"][k]) if "event" in arrays else None,
            )
            yield f"reconstruction_{k}", figure


def derive(metrics: Mapping[str, float]) -> dict[str, float]:
    """Computes what sums over events cannot carry: roots, explained variance, sums of terms.

    `r2_*` is 1 - MSE / variance of the hidden sensors: 0 for predicting their mean, 1 for
    perfect.
    """
    derived = dict(metrics)
    for name in metrics:
        kind, _, part = name.partition("_")
        if kind == "mse":
            mean, square = derived.pop(f"mean_{part}"), derived.pop(f"square_{part}")
            derived[f"rmse_{part}"] = derived.pop(name) ** 0.5
            derived[f"r2_{part}"] = 1 - metrics[name] / max(square - mean**2, 1e-12)
    terms = {n: v for n, v in metrics.items() if n.startswith("loss_") and np.isfinite(v)}
    faces = dict.fromkeys(name.split("_", 1)[1].rsplit("_", 1)[0] for name in terms)
    for part in (*faces, *CHANNELS):
        inside = [
            value
            for name, value in terms.items()
            if name.endswith(f"_{part}") or name.startswith(f"loss_{part}_")
        ]
        if inside:
            derived[f"loss_{part}"] = float(sum(inside))
    return derived
