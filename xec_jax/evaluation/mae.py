"""Evaluation of autoencoders: reconstructed sensors as a file, errors by face and channel."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from xec_jax.evaluation.base import Arrays, Columns, Drawing, Evaluation, Headline, Setting
from xec_jax.evaluation.sensor_rows import chosen, event_rows
from xec_jax.evaluation.sensor_sums import PhotonSums
from xec_jax.geometry import INVALID_ABOVE, Detector
from xec_jax.metric_channels import ChannelSums
from xec_jax.tasks.calorimeter import detector_of, transform_of
from xec_jax.transforms import SensorTransform

TREE = "tree"
DRAWN = 2
"""Events of which all sensors are drawn."""
SENSORS_DRAWN = 300_000
"""Hidden sensors whose distributions are drawn."""


class MaeEvaluation(Evaluation):
    """Adds up errors of hidden sensors and keeps some of them for figures."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        config = setting.run.config
        self.detector, self.transform = detector_of(config), transform_of(config)
        self.fill = config.model.fill_npho
        self.stem = f"mae_predictions_epoch_{setting.epoch}"
        self.trees = {self.stem: TREE}
        self.errors, self.photons = channel_sums(self.transform), PhotonSums()
        self.columns, self.n_drawn, self.n_written = Columns(), 0, 0
        self.examples: list[dict[str, np.ndarray]] = []

    def expected_rows(self, events: int) -> Mapping[str, tuple[int, bool]]:
        """One row per event, up to the limit that keeps the file handy (0.2 MB per event)."""
        most = self.setting.options.max_events
        if events > most:
            print(f"{self.stem}.root: the first {most:,} of {events:,} events (--max_events)")
        return {self.stem: (min(events, most), True)}

    def add(self, host: Arrays, found: Arrays) -> Mapping[str, dict[str, np.ndarray]]:
        """Adds the errors of a batch; returns its events until there are enough."""
        picked = chosen(found, found["hidden"])
        face = self.detector.sensor_face[picked["sensor"]]
        photons = host["npho"][picked["row"], picked["sensor"]]
        truth, predicted = picked["truth"], picked["predicted"]
        add_errors(self.errors, face, picked)
        filled = np.asarray(self.transform.npho_inverse(predicted[:, 0]))
        known = photons <= INVALID_ABOVE
        self.photons.add(filled[known], photons[known], face[known])
        if self.setting.options.has_figures and self.n_drawn < SENSORS_DRAWN:
            kept = {"truth": truth, "predicted": predicted, "timed": picked["timed"]}
            self.columns.add(kept | {"face": face.astype(np.int8)})
            self.n_drawn += len(face)
        n = min(len(host["weight"]), self.setting.options.max_events - self.n_written)
        self.n_written += n
        some = {name: values[:n] for name, values in host.items()}
        table = event_rows(some, {k: v[:n] for k, v in found.items()}, self.transform, self.fill)
        for k in range(min(n, DRAWN - len(self.examples))):
            self.examples.append({name: values[k] for name, values in table.items()})
        return {self.stem: table}

    def metrics(self) -> dict[str, float]:
        """Returns exact errors of all hidden sensors."""
        found = self.photons.metrics()
        for sums in self.errors.values():
            found |= sums.metrics()
        return found

    def headline(self, metrics: Mapping[str, float], used: np.ndarray | None = None) -> Headline:
        """Returns the errors of hidden sensors."""
        return sensor_headline(metrics)

    def drawings(self) -> Iterator[Drawing]:
        """Yields distributions by face and channel, and some events."""
        from xec_jax.plots.reconstruction_quality import CAPTIONS, reconstruction_pages

        if self.n_drawn:
            data = self.columns.arrays()
            channels = {}
            for i, channel in enumerate(("npho", "time")):
                counts = data["timed"] | (channel == "npho")
                truth, predicted = (data[name][counts, i] for name in ("truth", "predicted"))
                if np.isfinite(truth + predicted).any():
                    channels[channel] = truth, predicted, data["face"][counts]
            for page in reconstruction_pages(channels):
                yield Drawing(*page, CAPTIONS.get(page[0], ""))
        yield from examples(self.detector, self.transform, self.examples)


EVALUATION = MaeEvaluation


def sensor_headline(metrics: Mapping[str, float]) -> Headline:
    """Returns the errors of hidden sensors that matter most."""
    names = {"mae_photons": "photons", "rel_mae": "", "r2_npho": "", "mae_time_ns": "ns"}
    return {
        f"{name} [{unit}]" if unit else name: (metrics[name], float("nan"))
        for name, unit in names.items()
        if name in metrics
    }


def channel_sums(transform: SensorTransform) -> dict[str, ChannelSums]:
    """Returns empty sums of normalized errors by channel."""
    return {
        "npho": ChannelSums("npho"),
        "time": ChannelSums("time", 1e9 * transform.time_scale),
    }


def add_errors(sums: Mapping[str, ChannelSums], face: np.ndarray, picked: Arrays) -> None:
    """Adds the normalized errors of hidden sensors; times of dim sensors do not count."""
    for i, (channel, of_channel) in enumerate(sums.items()):
        used = picked["timed"] | (channel == "npho")
        predicted, truth = picked["predicted"][used, i], picked["truth"][used, i]
        of_channel.add(predicted, truth, face[used])


def examples(
    detector: Detector, transform: SensorTransform, events: Sequence[Arrays]
) -> Iterator[Drawing]:
    """Yields all sensors of some events: truth, input, prediction, residual, mask.

    Args:
        detector: Where sensors are.
        transform: The way back to photons and seconds.
        events: Rows of `event_rows`.
    """
    from xec_jax.plots.sensor_comparison import sensor_comparison

    inverse = {"npho": transform.npho_inverse, "time": transform.time_inverse}
    for k, event in enumerate(events):
        hidden = event["mask"] > 0
        sides: dict[str, dict[str, np.ndarray]] = {"truth": {}, "masked": {}, "prediction": {}}
        for channel, undo in inverse.items():
            for side, word in (("truth", "truth"), ("masked", "masked"), ("prediction", "pred")):
                values = np.asarray(undo(event[f"{word}_{channel}"]))
                is_shown = event[f"{channel}_valid"] | (side == "prediction")
                sides[side][channel] = np.where(is_shown, values, np.nan)
        if not np.isfinite(event["pred_time"]).any():
            del sides["prediction"]["time"]
        title = f"Run {event['run_number']}, event {event['event_number']}"
        figure = sensor_comparison(
            detector,
            truth=sides["truth"],
            masked=sides["masked"],
            prediction=sides["prediction"],
            hidden=hidden,
            title=title,
        )
        yield Drawing(f"sensors_{k}", figure, event)
