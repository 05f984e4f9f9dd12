"""Weights that flatten the distribution of true values in the training events.

Source: histogram reweighting of the PyTorch predecessor, with a bound, and mean 1 kept for the
product of several histograms.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from ml_collections import ConfigDict

from xec_jax.data.source import ChangedSource, Source
from xec_jax.data.truth import read_truth
from xec_jax.errors import ConfigError, DataError
from xec_jax.geometry import INVALID_ABOVE

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Histogram:
    """Weight of an event as a function of some of its numbers.

    Attributes:
        edges: Per number, the ascending edges of its bins.
        weights: One per bin: (N / M) / count for N events in M filled bins, 0 in empty ones.
    """

    edges: tuple[np.ndarray, ...]
    weights: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, bins: Sequence[int]) -> "Histogram":
        """Counts events in bins of equal width between the smallest and the largest value.

        Args:
            values: (n, k); events with a marker or NaN do not count.
            bins: k numbers of bins.
        """
        values = values[_is_known(values)]
        counts, edges = np.histogramdd(values, tuple(bins))
        mean = len(values) / np.count_nonzero(counts)
        weights = np.divide(mean, counts, out=np.zeros_like(counts), where=counts > 0)
        return cls(tuple(edges), weights)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Returns weights (n,) of events (n, k): 1 where the truth is not known."""
        known = _is_known(values)
        index = tuple(
            np.clip(np.searchsorted(edges, x, side="right") - 1, 0, len(edges) - 2)
            for edges, x in zip(self.edges, np.where(known[:, None], values, 0.0).T, strict=True)
        )
        return np.where(known, self.weights[index], 1.0)


def _is_known(values: np.ndarray) -> np.ndarray:
    return (np.abs(values) <= INVALID_ABOVE).all(-1)  # False for NaN, too


@dataclass(frozen=True)
class Weighting:
    """Product of the weights of several branches, bounded, with mean 1 over the training events.

    Attributes:
        histograms: By branch.
        scale: Factor of the product.
        largest: Bound of the scaled product.
        zeros: Branch of times in ns -> branch with their zero in s, which is subtracted.
    """

    histograms: Mapping[str, Histogram]
    scale: float
    largest: float
    zeros: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        truth: Mapping[str, np.ndarray],
        bins: Mapping[str, Sequence[int]],
        largest: float,
        zeros: Mapping[str, str] | None = None,
    ) -> "Weighting":
        """Makes the histograms of the training events.

        Args:
            truth: All training events, by branch.
            bins: Numbers of bins per branch.
            largest: Bound of a weight, above 1.
            zeros: See the class.
        """
        zeros = zeros or {}
        histograms = {
            name: Histogram.of(_columns(truth, name, zeros), n) for name, n in bins.items()
        }
        product = cls(histograms, 1.0, np.inf, zeros)(truth)
        scale = 1.0
        for _ in range(100):  # rises to the factor that makes the mean 1 in spite of the bound
            scale /= np.minimum(scale * product, largest).mean()
        return cls(histograms, scale, largest, zeros)

    def __call__(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the weights (n,) of events."""
        weights = [h(_columns(batch, k, self.zeros)) for k, h in self.histograms.items()]
        product = np.prod(weights, axis=0)
        return np.minimum(self.scale * product, self.largest)


def _columns(arrays: Mapping[str, np.ndarray], branch: str, zeros: Mapping[str, str]) -> np.ndarray:
    """Numbers of a branch (n, k), times less their zero; NaN where that is not known."""
    values = np.asarray(arrays[branch], np.float32).reshape(len(arrays[branch]), -1)
    if branch not in zeros:
        return values
    zero = np.asarray(arrays[zeros[branch]], np.float32).reshape(-1, 1)
    is_known = _is_known(values) & _is_known(zero)
    return np.where(is_known[:, None], values - np.float32(1e9) * zero, np.nan)


class ReweightedSource(ChangedSource):
    """A source whose events weigh as much as a `Weighting` says, in training batches.

    Args:
        source: Where the events come from; has the branches of the weighting.
        weighting: Factor of each event's weight.
        settings: What the weighting was made with, part of the fingerprint.
    """

    def __init__(self, source: Source, weighting: Weighting, settings: str = "") -> None:
        super().__init__(source, settings)
        self._weighting = weighting

    def change(self, batch: dict[str, np.ndarray], train: bool) -> None:
        """Multiplies the weights of a training batch."""
        if train:
            batch["weight"] = (batch["weight"] * self._weighting(batch)).astype(np.float32)


def bins_of(config: ConfigDict) -> dict[str, tuple[int, ...]]:
    """Returns the numbers of bins by branch that `data.reweight` asks for, empty for none.

    Raises:
        ConfigError: Numbers that make no histogram.
    """
    found: dict[str, tuple[int, ...]] = {}
    for name, one in config.get("reweight", {}).items():
        if name == "max_weight" or not one.enabled:
            continue
        found[one.branch] = (one.nbins,) if isinstance(one.nbins, int) else tuple(one.nbins)
        if not all(isinstance(n, int) and n > 0 for n in found[one.branch]):
            raise ConfigError(
                f"data.reweight.{name}.nbins is {one.nbins}", expected="positive whole numbers"
            )
    if found and not config.reweight.max_weight > 1:
        raise ConfigError(
            f"data.reweight.max_weight is {config.reweight.max_weight}",
            expected="a number above 1, the mean of all weights",
        )
    return found


def zeros_of(config: ConfigDict) -> dict[str, str]:
    """Returns the branches of `data.reweight` that are taken relative to another branch."""
    asked = [one for name, one in config.get("reweight", {}).items() if name != "max_weight"]
    return {one.branch: one.reference for one in asked if one.enabled and one.get("reference")}


def reweighted(source: Source, config: ConfigDict) -> Source:
    """Wraps the training source in the weights that `data.reweight` asks for.

    Two numbers of bins for a position (u, v, w) leave w as many as u.

    Args:
        source: Training events; has the branches of `bins_of`.
        config: The `data` group.

    Raises:
        ConfigError: More or fewer numbers of bins than the branch has numbers.
        DataError: A branch that is missing or holds no usable number.
    """
    bins = bins_of(config)
    if not bins:
        return source
    zeros = zeros_of(config)
    manifest = getattr(source, "manifest", None)  # ROOT files have one
    truth = read_truth(config, dict.fromkeys([*bins, *zeros.values()]), manifest=manifest)
    for branch, n in bins.items():
        values = _columns(truth, branch, zeros)
        if (len(n), values.shape[1]) == (2, 3):
            bins[branch] = n = (*n, n[0])
        if len(n) != values.shape[1]:
            raise ConfigError(
                f"data.reweight has {len(n)} number(s) of bins for {branch!r}: {n}",
                expected=f"one for each of its {values.shape[1]} number(s) per event",
            )
        if not _is_known(values).any():
            raise DataError(
                f"branch {branch!r} holds no usable number in {len(values)} events",
                expected="finite numbers below 9e9",
                remedy="choose another branch or switch data.reweight off",
            )
    weighting = Weighting.of(truth, bins, config.reweight.max_weight, zeros)
    weights = weighting(truth)
    logger.info(
        "reweighting by %s: weights from %.3g to %.3g, mean %.3g",
        *(", ".join(bins), weights.min(), weights.max(), weights.mean()),
    )
    settings = json.dumps({"bins": bins, "max_weight": config.reweight.max_weight, "zeros": zeros})
    return ReweightedSource(source, weighting, settings)
