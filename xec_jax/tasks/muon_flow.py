"""Muon bundles: the density of a muon given its primary, and how many muons there are.

The loss is the mean over muons of -ln p(muon | primary) in units of stage A, plus a weight times
the mean over events of the multiplicity's loss. Muons of an event count as independent given the
primary. A second flow of the same size, whose context is a constant, learns beside (`model.twin`):
how much better than this twin the flow is, is what it makes of the primary.

Source: density and multiplicity of the PyTorch predecessor; monitors T3 to T6 of
docs/muon_plateau.md.
"""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from xec_jax import muon_sums
from xec_jax.data.open import read_bundle_sets
from xec_jax.errors import DataError
from xec_jax.losses import mean_of
from xec_jax.muon_features import CONDITIONS
from xec_jax.tasks.base import Task
from xec_jax.tasks.bundles import (
    check,
    check_numbers,
    encoding_of,
    fit,
    flow_of,
    multiplicity_of,
)
from xec_jax.types import Array, Batch, Key, Mean, Metrics, Params, Terms

SPEC = {
    "muon": ((4,), np.dtype(np.float32)),
    "primary": ((4,), np.dtype(np.float32)),
    "count": ((), np.dtype(np.float32)),
    "is_muon": ((), np.dtype(np.float32)),
    "is_first": ((), np.dtype(np.float32)),
}
"""See `data.muons.muon_source`."""

TOLERANCE = 1e-4
"""Of a feature that went to noise and back, in units of stage B."""


def prepare(config: ConfigDict) -> ConfigDict:
    """Fits stage B to the training muons, and finds the least multiplicity.

    Constants that are set already stay.

    Raises:
        ConfigError: A combination that cannot work.
        DataError: Files that cannot be used.
    """
    check(config)
    if config.data.train is None:
        return config
    config = config.copy_and_resolve_references().unlock()
    head = config.model.multiplicity
    train, valid = read_bundle_sets(config.data)
    for bundles in (train, valid):
        if bundles is not None:
            check_numbers(config, bundles)
    if not config.model.fitted.muons:
        config.model.fitted = ConfigDict(fit(config, train))
    if head.least is None:
        head.least = min(int(train.counts.min()), 1)
    for bundles in (train, valid):
        if bundles is not None and bundles.counts.min() < head.least:
            raise DataError(
                f"{int((bundles.counts < head.least).sum())} events have fewer than {head.least} "
                "muons, the least that model.multiplicity knows",
                expected="validation events like those of the training",
                remedy="data.drop_empty=true, or model.multiplicity.least=0",
            )
    return config.lock()


def make_task(config: ConfigDict) -> Task:
    """Builds the task.

    Raises:
        ConfigError: A value out of its range.
    """
    check(config)
    experiment = Experiment(config)
    return Task(
        name="muon_flow",
        spec=SPEC,
        init=experiment.init,
        loss=experiment.loss,
        evaluate=experiment.evaluate,
        derive=muon_sums.derive,
        inspect=experiment.inspect,
        preview=experiment.preview,
        figures=experiment.figures,
        record={"features": list(experiment.encoding.names), "conditions": list(CONDITIONS)},
    )


class Experiment:
    """The functions of the task, over what they share.

    Attributes:
        encoding: From files to the numbers that the networks see.
        flow: The conditional flow; its parameters are `params["flow"]`, the twin's
            `params["twin"]`.
        multiplicity: Its parameters are `params["multiplicity"]`.
    """

    def __init__(self, config: ConfigDict) -> None:
        self.encoding, self.flow = encoding_of(config), flow_of(config)
        self.multiplicity = multiplicity_of(config)
        self.model, self.train = config.model, config.train

    def init(self, key: Key, batch: Batch) -> Params:
        """Returns initial parameters."""
        x, c = jnp.zeros((2, len(self.encoding.names))), jnp.zeros((2, len(CONDITIONS)))
        keys = jax.random.split(key, 3)
        params = {
            "flow": self.flow.init(keys[0], x, c)["params"],
            "multiplicity": self.multiplicity.init(keys[1], c)["params"],
        }
        if self.model.twin:
            params["twin"] = self.flow.init(keys[2], x, c)["params"]
        return params

    def context(self, primary: Array) -> Array:
        """Conditions (b c) that the flow may see: zeros for `model.context` = none."""
        conditions = self.encoding.conditions(primary)
        return conditions if self.model.context == "primary" else jnp.zeros_like(conditions)

    def log_prob(self, params: Params, stage_a: Array, context: Array) -> tuple[Array, Array]:
        """Log density (b,) of features (b d) in units of stage A, and their noise (b d).

        Args:
            params: Those of one flow.
            stage_a: Features of stage A.
            context: (b c), from `context`.
        """
        columns = self.encoding.muons
        z = columns.forward(stage_a)
        noise, log_prob = self._in_chunks(params, z, context)
        return log_prob + columns.log_slope(stage_a), noise

    def _in_chunks(self, params: Params, z: Array, context: Array) -> tuple[Array, Array]:
        """The flow over slices of the batch, whose inner values are computed again for gradients.

        The memory is that of `train.chunk_size` muons, the numbers are the same.
        """

        def flow(z: Array, context: Array) -> tuple[Array, Array]:
            method = self.flow.noise_and_log_prob
            found = self.flow.apply({"params": params}, z, context, method=method)
            return cast(tuple[Array, Array], found)

        size = self.train.chunk_size
        if len(z) <= size:
            return flow(z, context)
        rest = -len(z) % size  # the last slice is filled up with zeros, for one shape
        z, context = (jnp.pad(a, ((0, rest), (0, 0))) for a in (z, context))
        slices = tuple(a.reshape(-1, size, a.shape[-1]) for a in (z, context))
        noise, log_prob = lax.map(lambda piece: jax.checkpoint(flow)(*piece), slices)
        n = len(z) - rest
        return noise.reshape(-1, noise.shape[-1])[:n], log_prob.reshape(-1)[:n]

    def weights(self, batch: Batch) -> dict[str, Array]:
        """Weights (b,): of each muon, of each muon so that events count alike, of each event."""
        muon = batch["weight"] * batch["is_muon"]
        return {
            "muon": muon,
            "event": muon / jnp.maximum(batch["count"], 1),
            "first": batch["weight"] * batch["is_first"],
        }

    def loss(self, params: Params, batch: Batch, key: Key) -> tuple[Terms, Metrics]:
        """Returns the loss terms of training muons, and what is worth knowing about them."""
        del key
        weights = self.weights(batch)
        stage_a, conditions = self.encoding.stage_a(batch["muon"]), self._conditions(batch)
        log_prob, _ = self.log_prob(params["flow"], stage_a, self.context(batch["primary"]))
        terms, metrics = self._terms(params, batch, weights, conditions, -log_prob)
        if self.model.twin:
            twin, _ = self.log_prob(params["twin"], stage_a, jnp.zeros_like(conditions))
            terms = {**terms, "twin": mean_of(-twin, weights[self.train.weighting])}
        return terms, metrics

    def _conditions(self, batch: Batch) -> Array:
        return self.encoding.conditions(batch["primary"])

    def _terms(
        self,
        params: Params,
        batch: Batch,
        weights: Mapping[str, Array],
        conditions: Array,
        nll: Array,
    ) -> tuple[Terms, Metrics]:
        """What training and validation have in common."""
        head = self.multiplicity
        output = cast(Array, head.apply({"params": params["multiplicity"]}, conditions))
        count = mean_of(head.loss(output, batch["count"]), weights["first"])
        factor = self.model.multiplicity.weight
        terms = {
            "flow": mean_of(nll, weights[self.train.weighting]),
            "multiplicity": Mean(factor * count.total, count.weight),
        }
        predicted = head.mean_log1p(output)
        metrics: Metrics = {
            "nll": mean_of(nll, weights["muon"]),
            "nll_event": mean_of(nll, weights["event"]),
            **muon_sums.count_sums(predicted, batch["count"], weights["first"]),
        }
        if head.head == "nb":
            metrics["nll_multiplicity"] = count
        return terms, metrics

    def evaluate(self, params: Params, batch: Batch, key: Key) -> tuple[Terms, Metrics]:
        """Loss terms without the twin's, and monitors of what the flow makes of its context."""
        return self.inspect(params, batch, key)[1:]

    def inspect(
        self, params: Params, batch: Batch, key: Key
    ) -> tuple[dict[str, Array], Terms, Metrics]:
        """Like `evaluate`, with arrays per muon in addition.

        Contexts are swapped with those of the muon half a batch away, which is of another event
        wherever a batch holds a few events.

        Returns:
            `log_prob` and `log_prob_swapped` (b,), in units of stage A; `noise` (b d);
            `log_prob_twin` (b,) if there is a twin; `round_trip` (b,), the largest error of a
            feature (stage B) on its way to noise and back; `is_outside` (b,), whether a feature
            lies where the splines do nothing; `is_muon` and `is_first`; then terms and metrics.
        """
        del key
        weights, model = self.weights(batch), self.model
        stage_a, conditions = self.encoding.stage_a(batch["muon"]), self._conditions(batch)
        context = self.context(batch["primary"])
        other = jnp.roll(context, len(context) // 2, axis=0)
        single = [context.at[:, i].set(other[:, i]) for i in range(len(CONDITIONS))]
        # One after the other, so that the flow is compiled once for all of them.
        (log_prob, *swapped), (noise, *_) = lax.map(
            lambda given: self.log_prob(params["flow"], stage_a, given),
            jnp.stack([context, other, *single]),
        )
        terms, metrics = self._terms(params, batch, weights, conditions, -log_prob)
        found = {"log_prob": log_prob, "noise": noise}
        for name, value in zip(("", *CONDITIONS), swapped, strict=True):
            suffix = f"_{name}" if name else ""
            found[f"log_prob_swapped{suffix}"] = value
            metrics[f"nll_swapped{suffix}"] = mean_of(-value, weights["muon"])
        if model.twin:
            twin, _ = self.log_prob(params["twin"], stage_a, jnp.zeros_like(context))
            found["log_prob_twin"] = twin
            metrics["nll_twin"] = mean_of(-twin, weights["muon"])
        z = self.encoding.muons.forward(stage_a)
        variables = {"params": params["flow"]}
        back = self.flow.apply(variables, noise, context, method=self.flow.from_noise)
        found["round_trip"] = jnp.abs(cast(Array, back) - z).max(-1)
        found["is_outside"] = jnp.abs(z).max(-1) > self.flow.bound
        metrics |= {
            "round_trip:square": mean_of(jnp.square(found["round_trip"]), weights["muon"]),
            "round_trip_failed": mean_of(found["round_trip"] > TOLERANCE, weights["muon"]),
            "outside": mean_of(found["is_outside"], weights["muon"]),
            **self._spread(variables, context, batch["weight"]),
            **muon_sums.probe_sums(noise, conditions, weights["muon"]),
        }
        found |= {name: batch[name] for name in ("is_muon", "is_first")}
        return found, terms, metrics

    def _spread(self, variables: Params, context: Array, weight: Array) -> Metrics:
        """How much the embedded context differs between the rows of a batch."""
        embedded = cast(Array, self.flow.apply(variables, context, method=self.flow.embed))
        mean = jnp.average(embedded, axis=0, weights=weight)
        variance = jnp.average(jnp.square(embedded - mean), axis=0, weights=weight)
        pooled = jnp.sqrt(jnp.average(jnp.square(embedded - mean.mean()), axis=0, weights=weight))
        n = weight.sum()
        return {
            "context_spread": Mean(n * jnp.sqrt(variance).mean(), n),
            "context_std_pooled": Mean(n * jnp.sqrt(jnp.mean(jnp.square(pooled))), n),
        }

    def sample(self, params: Params, key: Key, primary: Array) -> tuple[Array, Array]:
        """Draws features of stage A (b d), one set per primary (b 4), with log densities there."""
        context = self.context(primary)
        variables = {"params": params["flow"]}
        drawn = self.flow.apply(variables, key, context, method=self.flow.sample)
        z, log_prob = cast(tuple[Array, Array], drawn)
        stage_a = self.encoding.muons.inverse(z)
        return stage_a, log_prob + self.encoding.muons.log_slope(stage_a)

    def preview(self, params: Params, batch: Batch, key: Key | None = None) -> dict[str, Array]:
        """Features of stage A as measured and as drawn for the same primaries, (b d)."""
        drawn, _ = self.sample(params, jax.random.PRNGKey(0), batch["primary"])
        return {
            "real": self.encoding.stage_a(batch["muon"]),
            "drawn": drawn,
            "is_muon": batch["is_muon"],
        }

    def figures(self, arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Any]]:
        """Draws the features of some muons, as measured and as drawn for the same primaries."""
        from xec_jax.plots.bundles import real_and_drawn

        is_muon = arrays["is_muon"] > 0
        real, drawn = arrays["real"][is_muon], arrays["drawn"][is_muon]
        yield "muons", real_and_drawn(real, drawn, self.encoding.names)
