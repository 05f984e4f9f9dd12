"""What is exactly known of simulated muon bundles, in the units in which a flow is judged."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from xec_jax.data.muons import read_facts
from xec_jax.muon_features import LATERAL_M
from xec_jax.sim.muon import (
    Benchmark,
    LinearGaussian,
    MuonBundles,
    Primaries,
    log_density_of_number,
    make_benchmark,
)
from xec_jax.tasks.bundles import Encoding

MAX_MARGINAL = 200_000
"""Muons of which the marginal density is computed: a quadrature of 3800 points each."""


def benchmark_of(files: Sequence[Path]) -> Benchmark | None:
    """Returns the benchmark that all files are samples of, if they are."""
    found = [read_facts(path).get("parameters") for path in files]
    if not found or found[0] is None or any(other != found[0] for other in found):
        return None
    return make_benchmark(**found[0])


def log_density(
    benchmark: Benchmark, muons: np.ndarray, primaries: np.ndarray, encoding: Encoding
) -> np.ndarray | None:
    """True log density (m,) of features in units of stage A, given the primary.

    Args:
        benchmark: Where the muons are from.
        muons: (m 4) as in files.
        primaries: (m 4), one per muon.
        encoding: Says which features there are, and their units.

    Returns:
        None where features have no density (r, x and y together) or the units do not fit.
    """
    if isinstance(benchmark, LinearGaussian):
        if encoding.is_physical or encoding.features != "xy":
            return None
        return benchmark.log_density(muons[:, [0, 2, 3]], primaries)
    known = Primaries.from_columns(primaries)
    change = _change(benchmark, muons, encoding)
    if change is None:
        return None
    found = benchmark.log_density(muons, known) + change
    if encoding.features == "xy":
        found = found + benchmark.log_density_of_azimuth(muons, known)
    return found


def log_marginal(
    benchmark: Benchmark, muons: np.ndarray, encoding: Encoding, weighting: str
) -> np.ndarray | None:
    """Log density (m,) with the primary integrated out; arguments and None as above.

    None for an azimuth that depends on the primary, too, whose marginal is not implemented.
    """
    if isinstance(benchmark, LinearGaussian):
        if encoding.is_physical or encoding.features != "xy":
            return None
        return benchmark.log_marginal(muons[:, [0, 2, 3]])
    change = _change(benchmark, muons, encoding)
    if change is None or (benchmark.kappa and encoding.features == "xy"):
        return None
    found = benchmark.log_marginal(muons, weighting) + change
    return found - math.log(2 * np.pi) if encoding.features == "xy" else found


def _change(benchmark: MuonBundles, muons: np.ndarray, encoding: Encoding) -> np.ndarray | None:
    """What to add to a log density of (ln E, ln r[, azimuth]) for one of stage A."""
    if not encoding.is_physical or encoding.features == "all":
        return None
    r = muons[:, 1].astype(np.float64)
    of_energy = math.log(2 * math.log(10))
    if encoding.features == "xy":
        return of_energy - 2 * np.log(r) + 2 * math.log(LATERAL_M)
    return of_energy + np.log1p(encoding.offset_m2 / np.square(r))


def log_density_of_counts(
    benchmark: Benchmark, counts: np.ndarray, primaries: np.ndarray
) -> np.ndarray | None:
    """Log probability (n,) of the numbers of muons of events; None where it is not known."""
    if isinstance(benchmark, LinearGaussian):
        return None
    return log_density_of_number(counts, Primaries.from_columns(primaries))
