"""Evaluation of inpainters: hidden sensors beside what classical methods make of them.

Two files: the tree of the training's artifacts, in normalized units, and the tree `predictions` in
photons, with the predictions of all methods.

Source: validation of the PyTorch predecessor's inpainter.
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np

from xec_jax.evaluation.base import Arrays, Columns, Drawing, Evaluation, Headline, Setting, Table
from xec_jax.evaluation.fillers import NETWORK, Fillers
from xec_jax.evaluation.hiding import chooser
from xec_jax.evaluation.mae import DRAWN, add_errors, channel_sums, examples, sensor_headline
from xec_jax.evaluation.sensor_rows import chosen, event_rows, hidden_rows, identifiers
from xec_jax.evaluation.sensor_sums import PhotonSums
from xec_jax.evaluation.sensor_tables import (
    bins_table,
    details_table,
    faces_table,
    methods_table,
)
from xec_jax.geometry import INVALID_ABOVE, design_positions
from xec_jax.metrics import BRIGHT_PHOTONS, percentile68
from xec_jax.tasks.calorimeter import detector_of, transform_of
from xec_jax.tasks.hidden import CHOSEN

TREE, COMPARISON = "tree", "predictions"
SENSORS_DRAWN = 400_000
"""Hidden sensors whose errors are drawn, and of whom percentiles by brightness are."""


class InpaintEvaluation(Evaluation):
    """Keeps truth and all predictions of every hidden sensor, and all sensors of some events."""

    branches: ClassVar = ("uvwTruth", "xyzTruth", "xyzRecoFI")

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        config, options = setting.run.config, setting.options
        self.detector, self.transform = detector_of(config), transform_of(config)
        self.fill = config.model.fill_npho
        self.choose = chooser(options, design_positions())
        self.stem = f"inpainter_predictions_epoch_{setting.epoch}"
        kind = "mc" if setting.is_simulated else "real"
        run = "" if options.run_number is None else f"_run{options.run_number}"
        self.compared = f"predictions_{kind}{run}"
        self.trees = {self.stem: TREE, self.compared: COMPARISON}
        self.fillers = Fillers(setting)
        self.errors, self.columns = channel_sums(self.transform), Columns()
        self.photons: dict[str, PhotonSums] = {}
        self.n_rows, self.is_full = 0, False
        self.examples: list[dict[str, np.ndarray]] = []

    def expected_rows(self, events: int) -> Mapping[str, tuple[int, bool]]:
        """The most rows there can be; how many sensors are live is not known before."""
        options, n = self.setting.options, self.detector.n_sensors
        if options.hide == "artificial":
            each = sum(options.counts.values())
        elif options.hide == "training":
            ratio = self.setting.run.config.model.mask_ratio
            each = int(n * (ratio if isinstance(ratio, float) else max(dict(ratio).values())))
        else:
            each = {"front": 1}.get(options.hide, n)
        most = min(events * each, options.max_rows)
        return {stem: (most, False) for stem in self.trees}

    def additions(self, host: Arrays) -> dict[str, np.ndarray]:
        """Tells the network what to hide, unless it hides as in its training."""
        return {} if self.choose is None else {CHOSEN: self.choose(host)}

    def add(self, host: Arrays, found: Arrays) -> Mapping[str, dict[str, np.ndarray]]:
        """Lets all methods fill the hidden sensors; returns them as rows."""
        options = self.setting.options
        is_dead = options.hide in ("dead", "pattern")
        on = ~found["valid"][..., 0] if options.hide == "dead" else found["hidden"]
        picked = self._limited(chosen(found, on))
        row, sensor = picked["row"], picked["sensor"]
        face = self.detector.sensor_face[sensor]
        photons = host["npho"][row, sensor].astype(np.float32)
        truth = np.where(on[row, sensor] & (photons <= INVALID_ABOVE), photons, np.float32(np.nan))
        if options.hide == "dead":
            truth = np.full_like(truth, np.nan)
        filled = {NETWORK: np.asarray(self.transform.npho_inverse(picked["predicted"][:, 0]))}
        filled |= {name: values[row, sensor] for name, values in self.fillers(host, found).items()}
        add_errors(self.errors, face, picked)
        is_known = np.isfinite(truth)
        for name, values in filled.items():
            ending = "" if name == NETWORK else f"_{name}"
            sums = self.photons.setdefault(name, PhotonSums(ending))
            sums.add(values[is_known], truth[is_known], face[is_known])
        limit = self.fillers.limit(host, row, sensor)
        kept = {name: values.astype(np.float32) for name, values in filled.items()}
        self.columns.add(kept | limit | {"truth": truth, "face": face.astype(np.int8)})
        for k in range(min(len(host["weight"]), DRAWN - len(self.examples))):
            one = slice(k, k + 1)
            event = {name: values[one] for name, values in host.items()}
            table = event_rows(
                event, {n: v[one] for n, v in found.items()}, self.transform, self.fill
            )
            self.examples.append({name: values[0] for name, values in table.items()})
        return {
            self.stem: hidden_rows(host, picked, self.detector.sensor_face),
            self.compared: self._comparison(host, picked, truth, filled, is_dead),
        }

    def _limited(self, picked: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Cuts off what would make the files larger than the user wants."""
        left, n = self.setting.options.max_rows - self.n_rows, len(picked["row"])
        if n > left:
            if not self.is_full:
                print(f"{self.n_rows + left:,} rows: the rest is left out (--max_rows)")
            self.is_full = True
            picked = {name: values[:left] for name, values in picked.items()}
        self.n_rows += min(n, left)
        return picked

    def _comparison(
        self, host: Arrays, picked: Arrays, truth: np.ndarray, filled: Arrays, is_dead: bool
    ) -> dict[str, np.ndarray]:
        """Rows in photons: `truth_npho`, `pred_npho`, `error_npho`, and those of other methods."""
        ids, row, sensor = identifiers(host), picked["row"], picked["sensor"]
        run = self.setting.options.run_number
        table: dict[str, np.ndarray] = {
            "event_idx": ids["index"][row],
            "run_number": ids["run"][row],
            "event_number": ids["event"][row],
            "sensor_id": sensor.astype(np.int32),
            "face": self.detector.sensor_face[sensor].astype(np.int32),
            "mask_type": np.full(len(row), is_dead, np.int32),
            "truth_npho": truth,
        }
        for name, values in filled.items():
            word = "pred" if name == NETWORK else f"baseline_{self.fillers.SHORT[name]}"
            error = "error" if name == NETWORK else f"error_{self.fillers.SHORT[name]}"
            table[f"{word}_npho"] = values.astype(np.float32)
            table[f"{error}_npho"] = (values - truth).astype(np.float32)
        pattern = ids["run"][row] if is_dead and run is None else np.full(len(row), run or -1)
        table["dead_pattern_run"] = pattern.astype(np.int64)
        return table

    def metrics(self) -> dict[str, float]:
        """Returns exact errors of all hidden sensors, by every method."""
        arrays = self.columns.arrays()
        found: dict[str, float] = {}
        for of_channel in self.errors.values():
            found |= of_channel.metrics()
        for of_method in self.photons.values():
            found |= of_method.metrics()
        for name in self.fillers.methods(arrays):
            ending = "" if name == NETWORK else f"_{name}"
            bright = arrays["truth"] >= BRIGHT_PHOTONS  # and known
            share = arrays[name][bright] / arrays["truth"][bright] - 1
            found[f"rel_res_68pct{ending}"] = percentile68(share[np.isfinite(share)])
        return found

    def headline(self, metrics: Mapping[str, float], used: np.ndarray | None = None) -> Headline:
        """Returns the errors of hidden sensors."""
        return sensor_headline(metrics)

    def tables(self) -> list[Table]:
        """Returns the errors of all methods: together, by face, and by brightness."""
        arrays = self.columns.arrays()
        if not np.isfinite(arrays["truth"]).any():
            return []
        methods, labels = self.fillers.methods(arrays), self.fillers.LABELS
        columns = {labels[name]: arrays[name] for name in methods}
        truth, face = arrays["truth"], arrays["face"]
        limit = arrays.get("limit")
        note = "no limit: the detector is not known" if limit is None else self.fillers.LIMIT_NOTE
        return [
            methods_table(columns, truth),
            faces_table(columns, truth, face, limit, note),
            details_table(columns, truth, face),
            bins_table(columns, truth),
        ]

    def drawings(self) -> Iterator[Drawing]:
        """Yields comparisons of the methods, and some events."""
        from xec_jax.plots.inpainting import CAPTIONS, inpainting_pages

        arrays = self.columns.arrays()
        known = np.flatnonzero(np.isfinite(arrays["truth"]))
        if len(known) > SENSORS_DRAWN:  # evenly over the events; the numbers are those of all
            known = known[np.linspace(0, len(known) - 1, SENSORS_DRAWN).astype(int)]
        methods = {n: arrays[n][known] for n in self.fillers.methods(arrays)}
        if len(known):
            for page in inpainting_pages(arrays["truth"][known], methods, arrays["face"][known]):
                yield Drawing(*page, CAPTIONS.get(page[0], ""))
        yield from examples(self.detector, self.transform, self.examples)


EVALUATION = InpaintEvaluation
