"""Evaluation of muon flows: densities against truth and twin, drawn muons against real ones."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

from xec_jax.errors import DataError
from xec_jax.evaluation import bundle_truth
from xec_jax.evaluation.base import Arrays, Columns, Drawing, Evaluation, Setting, Table
from xec_jax.evaluation.two_samples import bootstrap_ratio, classifier_test, ks_distance
from xec_jax.muon_features import CONDITIONS, encode_primaries
from xec_jax.tasks.muon_flow import Experiment

TREE = "muons"
KEPT = ("muon", "primary", "count", "event")
FOUND = (
    *("log_prob", "log_prob_twin", "noise", "round_trip", "log_prob_swapped"),
    *(f"log_prob_swapped_{name}" for name in CONDITIONS),
)
CHUNK = 65536
N_NOISE = 500_000
N_TESTED = 40_000
"""Muons of the classifier's test."""


class MuonFlowEvaluation(Evaluation):
    """Keeps the log densities of all muons, and draws as many."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.experiment = Experiment(setting.run.config)
        self.encoding = self.experiment.encoding
        self.stem = f"muon_predictions_epoch_{setting.epoch}"
        self.trees = {self.stem: TREE}
        self.columns, self.events = Columns(), Columns()

    def expected_rows(self, events: int) -> Mapping[str, tuple[int, bool]]:
        """One row per muon."""
        return {self.stem: (events, False)}

    def add(self, host: Arrays, found: Arrays) -> Mapping[str, dict[str, np.ndarray]]:
        """Keeps a batch; returns its rows: log densities in units of stage A, and noise."""
        is_first, is_muon = host["is_first"] > 0, host["is_muon"] > 0
        self.events.add({name: host[name][is_first] for name in ("primary", "count")})
        rows = {name: host[name][is_muon] for name in KEPT}
        rows |= {name: found[name][is_muon] for name in FOUND if name in found}
        if bad := int((~np.isfinite(rows["log_prob"])).sum()):
            where = int(np.argmin(np.isfinite(rows["log_prob"])))
            raise DataError(
                f"{bad} muons have no finite density, the first in event {rows['event'][where]}: "
                f"{rows['muon'][where]} of the primary {rows['primary'][where]}",
                expected="energies, radii and primaries as in the training files",
            )
        self.columns.add(rows)
        noise = rows["noise"].T
        table = {name: rows[name] for name in rows if name not in ("noise", "primary", "muon")}
        table |= {f"noise_{n}": z for n, z in zip(self.encoding.names, noise, strict=True)}
        return {self.stem: table}

    @cached_property
    def muons(self) -> dict[str, np.ndarray]:
        """All muons, with features `real` and `drawn` (m d) of stage A for the same primaries."""
        found = self.columns.arrays()
        params = self.setting.run.params
        sample = jax.jit(lambda *arguments: self.experiment.sample(*arguments)[0])
        key, drawn = jax.random.PRNGKey(self.setting.options.seed), []
        for first in range(0, len(found["muon"]), CHUNK):
            primary = found["primary"][first : first + CHUNK]
            full = np.pad(primary, ((0, CHUNK - len(primary)), (0, 0)), mode="edge")
            features = sample(params, jax.random.fold_in(key, first), full)
            drawn.append(np.asarray(features)[: len(primary)])
        real = np.asarray(self.encoding.stage_a(found["muon"]))
        conditions = np.asarray(encode_primaries(found["primary"]))
        if not self.encoding.is_physical:
            conditions = found["primary"]
        return found | {
            "real": real,
            "drawn": np.concatenate(drawn),
            "conditions": conditions,
        }

    @cached_property
    def pit(self) -> np.ndarray:
        """Share of the base distribution below the noise (m d): uniform if the flow is right."""
        variables = {"params": self.setting.run.params["flow"]}
        key = jax.random.PRNGKey(self.setting.options.seed)
        base = self.experiment.flow.apply(
            variables, method=lambda flow: flow.noise((N_NOISE,)).sample(seed=key)
        )
        reference = np.sort(np.asarray(base), axis=0)
        noise = self.muons["noise"]
        ranks = [np.searchsorted(reference[:, i], noise[:, i]) for i in range(noise.shape[1])]
        return np.stack(ranks, 1) / N_NOISE

    @property
    def swapped(self) -> dict[str, tuple[float, float]]:
        """Rise of the NLL, with its error, where a condition (or all, "") is another event's."""
        muons, found = self.muons, {}
        for name in ("", *CONDITIONS):
            value = muons["log_prob_swapped" + (f"_{name}" if name else "")]
            rise = bootstrap_ratio(
                muons["log_prob"] - value, np.ones(len(value)), muons["event"], draws=100
            )
            found[name] = rise.value, rise.error
        return found

    def metrics(self) -> dict[str, float]:
        """Returns what needs all muons: tests of the samples, and the distance from the truth."""
        muons = self.muons
        if not len(muons["muon"]):
            return {}
        some = np.linspace(0, len(muons["muon"]) - 1, min(N_TESTED, len(muons["muon"]))).astype(int)
        given = muons["conditions"][some]
        real, drawn = (np.hstack([muons[name][some], given]) for name in ("real", "drawn"))
        test = classifier_test(real, drawn, muons["event"][some])
        found = {
            "c2st": test.accuracy,
            "c2st_error": test.error,
            "c2st_auc": test.auc,
            "pit_ks": max(ks_distance(values) for values in self.pit.T),
            "round_trip_max": float(muons["round_trip"].max()),
        }
        return found | self._against_truth(muons)

    def _against_truth(self, muons: Arrays) -> dict[str, float]:
        benchmark = bundle_truth.benchmark_of(self.setting.files)
        if benchmark is None:
            return {}
        n = min(len(muons["muon"]), bundle_truth.MAX_MARGINAL)
        rows = {name: values[:n] for name, values in muons.items()}
        oracle = bundle_truth.log_density(benchmark, rows["muon"], rows["primary"], self.encoding)
        if oracle is None:
            return {}
        weighting = self.setting.run.config.train.weighting
        ones = np.ones(n)
        weight = ones if weighting == "muon" else 1 / rows["count"]
        missed = bootstrap_ratio(weight * (oracle - rows["log_prob"]), weight, rows["event"])
        found = {
            "nll_oracle": float(np.average(-oracle, weights=weight)),
            "excess": missed.value,
            "excess_error": missed.error,
        }
        marginal = bundle_truth.log_marginal(benchmark, rows["muon"], self.encoding, weighting)
        if marginal is not None:
            gained = weight * (rows["log_prob"] - marginal)
            eta = bootstrap_ratio(gained, weight * (oracle - marginal), rows["event"])
            found |= {
                "nll_marginal": float(np.average(-marginal, weights=weight)),
                **{"eta": eta.value, "eta_error": eta.error},
                **{"eta_low": eta.low, "eta_high": eta.high},
            }
            if "log_prob_twin" in rows:
                found["twin_excess"] = float(
                    np.average(marginal - rows["log_prob_twin"], weights=weight)
                )
        events = self.events.arrays()
        numbers = bundle_truth.log_density_of_counts(benchmark, events["count"], events["primary"])
        if numbers is not None:
            found["nll_multiplicity_oracle"] = float(-numbers.mean())
        return found

    def tables(self) -> list[Table]:
        """Returns the distance of the noise from its base, in parts of the conditions."""
        muons = self.muons
        if not len(muons["muon"]):
            return []
        rows: list[list[str | float]] = []
        for name, part, used in parts(muons["conditions"]):
            distances = [ks_distance(values) for values in self.pit[used].T]
            rows.append([name, part, int(used.sum()), *distances])
        columns = ("condition", "values", "muons", *(f"KS of {n}" for n in self.encoding.names))
        note = (
            "Kolmogorov-Smirnov distance of the noise's ranks from a uniform distribution; "
            "of n independent muons it would be about 0.87 / sqrt(n)."
        )
        return [Table("pit", "Noise in parts of the conditions", columns, rows, note)]

    def drawings(self) -> Iterator[Drawing]:
        """Yields drawn against real muons as a whole and given the primary, noise and counts."""
        from xec_jax.plots import bundles as plots

        muons, names = self.muons, self.encoding.names
        if not len(muons["muon"]):
            return
        real, drawn, given = muons["real"], muons["drawn"], muons["conditions"]
        yield Drawing(
            "muons", plots.real_and_drawn(real, drawn, names), {}, plots.CAPTIONS["muons"]
        )
        for name in CONDITIONS:
            split = [(part, used) for which, part, used in parts(given) if which == name]
            if len(split) > 1:
                figure = plots.in_parts(real, drawn, split, names, name)
                yield Drawing(f"given_{name}", figure, {}, plots.CAPTIONS["given"])
        figure = plots.profiles(real, drawn, given, names)
        yield Drawing("profiles", figure, {}, plots.CAPTIONS["profiles"])
        figure = plots.noise_ranks(self.pit, list(parts(given)), names)
        yield Drawing("noise", figure, {}, plots.CAPTIONS["noise"])
        rise = [self.swapped[name] for name in ("", *CONDITIONS)]
        yield Drawing("delta_perm", plots.rises(rise), {}, plots.CAPTIONS["delta_perm"])
        events = self.events.arrays()
        n_drawn = self._drawn_counts(events["primary"])
        energy = np.asarray(events["primary"])[:, 0]
        if self.encoding.is_physical:
            energy = np.log10(energy)
        figure = plots.multiplicity(energy, events["count"], n_drawn)
        yield Drawing("multiplicity", figure, {}, plots.CAPTIONS["multiplicity"])

    def _drawn_counts(self, primary: np.ndarray) -> np.ndarray:
        """Numbers of muons (n,) drawn for primaries (n 4)."""
        head, params = self.experiment.multiplicity, self.setting.run.params["multiplicity"]
        conditions = self.encoding.conditions(jnp.asarray(primary))
        key = jax.random.PRNGKey(self.setting.options.seed)
        output = jnp.asarray(head.apply({"params": params}, conditions))
        return np.asarray(head.sample(key, output))


EVALUATION = MuonFlowEvaluation


def parts(conditions: np.ndarray, n: int = 3) -> Iterator[tuple[str, str, np.ndarray]]:
    """Cuts muons into parts of about equal size by each condition.

    Args:
        conditions: (m 4), of stage A.
        n: Parts of each condition; fewer where many values are equal, one where all are.

    Yields:
        Name of the condition, its range as text, bool (m,).
    """
    for i, name in enumerate(CONDITIONS):
        values = conditions[:, i]
        edges = np.unique(np.quantile(values, np.linspace(0, 1, n + 1)))
        if len(edges) == 1:
            edges = np.repeat(edges, 2)
        for k, (low, high) in enumerate(pairwise(edges)):
            is_last = k == len(edges) - 2
            used = (values >= low) & ((values <= high) if is_last else (values < high))
            if used.any():
                yield name, f"{low:.2f} to {high:.2f}", used
