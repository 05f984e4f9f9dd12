"""Muon bundles with exactly known densities: the ground on which a flow proves what it learned.

`MuonBundles` is the benchmark MB-1: primaries as of cosmic rays, muons underground whose energy
and distance to the axis depend on the primary through two shifts alone, so that the entropy of a
muon given its primary is one number. `LinearGaussian` is LG-0, where everything is a closed form.
Plain numpy in float64; the events of a block depend on the seed and the number of the block alone.

Source: T. K. Gaisser, Cosmic Rays and Particle Physics (energy loss of muons underground; number
    of muons after J. W. Elbert); the constants are of textbook size and fitted to nothing.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import betaln, digamma, i0e, i1e, logsumexp

from xec_jax.errors import ConfigError

Array = np.ndarray

EPSILON_GEV = 713.0  # critical energy of muons in ice
LOSS_PER_KM = 0.333
SPECTRUM = 1.757  # alpha: spectral index of the muons' energies
LATERAL = 3.0  # beta: fall of the lateral law, r^-(2 + beta) in the plane
WIDTH_GEV_M = 7000.0
NUCLEON_GEV = 0.938272
MASSES = np.array([1, 4, 14, 27, 56])
ABUNDANCE = np.array([10, 5, 3, 2, 1]) / 21
DEPTHS_KM = np.linspace(1.0, 2.8, 19)
LOG_ENERGY = (5.0, 8.0)
COSINE = (0.3, 1.0)
PIVOT = (math.log(450.0), math.log(5.0))
MAX_MEAN, SIZE = 30.0, 4.0
BLOCK = 4096  # events that are drawn together


@dataclass(frozen=True)
class Primaries:
    """Primaries (n,) in the variables of the benchmark.

    Attributes:
        log_energy: log10 of the energy in GeV.
        mass: Mass number.
        cosine: Cosine of the zenith angle.
        depth_km: Vertical depth in km of ice.
    """

    log_energy: Array
    mass: Array
    cosine: Array
    depth_km: Array

    def columns(self) -> Array:
        """Returns what files hold: energy in GeV, zenith in rad, mass in GeV, depth in m (n, 4)."""
        return np.stack(
            [
                10**self.log_energy,
                np.arccos(self.cosine),
                self.mass * NUCLEON_GEV,
                1e3 * self.depth_km,
            ],
            -1,
        )

    @classmethod
    def from_columns(cls, columns: Array) -> "Primaries":
        """Takes back what `columns` returned."""
        energy, zenith, mass, depth = np.asarray(columns, np.float64).T
        return cls(np.log10(energy), np.round(mass / NUCLEON_GEV), np.cos(zenith), depth / 1e3)


@dataclass(frozen=True)
class MuonBundles:
    """The benchmark MB-1, and MB-1v with an azimuth that depends on the primary.

    Attributes:
        strength: g. How much the primary matters: 1 is realistic, 3 a clear test, 0 nothing.
        kappa: Concentration of the azimuth (von Mises), whose direction turns with the
            primary's energy; 0 for an even azimuth.
        turns: How often it turns over the range of energies.
    """

    strength: float = 1.0
    kappa: float = 0.0
    turns: int = 1

    def __post_init__(self) -> None:
        if not (self.strength >= 0 and self.kappa >= 0 and self.turns >= 1):
            raise ConfigError(
                f"strength = {self.strength}, kappa = {self.kappa}, turns = {self.turns}",
                expected="strength and kappa of 0 or more, at least one turn",
            )

    def sample(self, n: int, seed: int, first: int = 0) -> tuple[Primaries, Array, Array]:
        """Draws events.

        Args:
            n: Number of events.
            seed: Seed of the sample.
            first: Number of the first event.

        Returns:
            The primaries; the number of muons of each (n,); all muons, event after event:
            energy in GeV, distance to the axis r, x = r sin(phi), y = r cos(phi) in m, (m, 4).
        """
        blocks = range(first // BLOCK, -(-(first + n) // BLOCK))
        drawn = [self._block(seed, block) for block in blocks]
        fields = [np.concatenate([d[i] for d in drawn]) for i in range(5)]
        owner = np.repeat(np.arange(len(fields[4])), fields[4])
        begin = first - blocks.start * BLOCK
        events = slice(begin, begin + n)
        inside = (owner >= begin) & (owner < begin + n)
        muons = np.concatenate([d[5] for d in drawn])[inside]
        return Primaries(*(f[events] for f in fields[:4])), fields[4][events], muons

    def _block(self, seed: int, block: int) -> tuple[Array, ...]:
        rng = _rng(seed, block)
        primaries = Primaries(
            rng.uniform(*LOG_ENERGY, BLOCK),
            rng.choice(MASSES, BLOCK, p=ABUNDANCE).astype(np.float64),
            rng.uniform(*COSINE, BLOCK),
            rng.choice(DEPTHS_KM, BLOCK),
        )
        mean = mean_number(primaries)
        counts = 1 + rng.poisson(mean * rng.gamma(SIZE, 1 / SIZE, BLOCK))
        owner = np.repeat(np.arange(BLOCK), counts)
        s1, s2 = (shift[owner] for shift in self.shifts(primaries))
        t = rng.exponential(1 / SPECTRUM, len(owner))
        log_energy = s1 + np.log(np.expm1(t))
        ratio = rng.gamma(2.0, 1.0, len(owner)) / rng.gamma(LATERAL, 1.0, len(owner))
        r = np.exp(s2 - t) * ratio
        phi = self._direction(primaries)[owner] + rng.vonmises(0.0, self.kappa, len(owner))
        muons = np.stack([np.exp(log_energy), r, r * np.sin(phi), r * np.cos(phi)], -1)
        p = primaries
        return p.log_energy, p.mass, p.cosine, p.depth_km, counts, muons

    def shifts(self, primaries: Primaries) -> tuple[Array, Array]:
        """Computes what the primary adds to ln(E / GeV) and ln(r / m) of its muons."""
        p = primaries
        s1 = np.log(EPSILON_GEV * -np.expm1(-LOSS_PER_KM * p.depth_km / p.cosine))
        s2 = np.log(WIDTH_GEV_M * p.mass**0.1 / p.cosine) - np.log(lowest_energy(p))
        g = self.strength
        return PIVOT[0] + g * (s1 - PIVOT[0]), PIVOT[1] + g * (s2 - PIVOT[1])

    def _direction(self, primaries: Primaries) -> Array:
        low, high = LOG_ENERGY
        return 2 * np.pi * self.turns * (primaries.log_energy - low) / (high - low)

    def log_density(self, muons: Array, primaries: Primaries) -> Array:
        """Natural logarithm of the density of ln(E / GeV) and ln(r / m) given the primary.

        Args:
            muons: (m, 4) as from `sample`.
            primaries: One per muon; shapes that broadcast against (m,).
        """
        return _log_density(np.log(muons[:, 0]), np.log(muons[:, 1]), *self.shifts(primaries))

    def log_density_of_azimuth(self, muons: Array, primaries: Primaries) -> Array:
        """Natural logarithm of the density of the azimuth (rad) given the primary, (m,)."""
        phi = np.arctan2(muons[:, 2], muons[:, 3]) - self._direction(primaries)
        return self.kappa * (np.cos(phi) - 1) - math.log(2 * np.pi * i0e(self.kappa))

    def log_marginal(self, muons: Array, weighting: str = "muon") -> Array:
        """Natural logarithm of the density of (ln E, ln r) with the primary integrated out, (m,).

        A quadrature over depths, masses, 40 zenith angles and 60 energies, the latter in the
        weights alone, since they do not shift anything.

        Args:
            muons: (m, 4) as from `sample`.
            weighting: `muon`, as a mean over muons sees it, or `event`, each event counting once.
        """
        if weighting not in ("muon", "event"):
            raise ConfigError(f"weighting is {weighting!r}", expected="muon or event")
        log_weight, s1, s2 = self._quadrature[weighting]
        log_e, log_r = np.log(muons[:, 0, None]), np.log(muons[:, 1, None])
        chunks = np.array_split(np.arange(len(muons)), -(-len(muons) // 512))
        return np.concatenate(
            [logsumexp(log_weight + _log_density(log_e[i], log_r[i], s1, s2), 1) for i in chunks]
        )

    @cached_property
    def _quadrature(self) -> dict[str, tuple[Array, Array, Array]]:
        node, weight = np.polynomial.legendre.leggauss(40)
        low, high = COSINE
        cosine = low + (high - low) * (node + 1) / 2
        energy_node, energy_weight = np.polynomial.legendre.leggauss(60)
        energies = LOG_ENERGY[0] + (LOG_ENERGY[1] - LOG_ENERGY[0]) * (energy_node + 1) / 2
        grid = np.meshgrid(cosine, DEPTHS_KM, MASSES.astype(float), energies, indexing="ij")
        primaries = Primaries(grid[3], grid[2], grid[0], grid[1])
        event = (
            weight[:, None, None] / 2 * ABUNDANCE / len(DEPTHS_KM) * np.ones((1, len(DEPTHS_KM), 1))
        )
        number = (energy_weight / 2 * (1 + mean_number(primaries))).sum(-1)
        s1, s2 = (shift[..., 0].ravel() for shift in self.shifts(primaries))
        found = {}
        for name, w in (("event", event), ("muon", event * number)):
            found[name] = np.log(w / w.sum()).ravel(), s1, s2
        return found

    @property
    def entropy(self) -> float:
        """Entropy of (ln E, ln r) given the primary, in nats: no density does better than that."""
        a, b = SPECTRUM, LATERAL
        of_energy = -math.log(a) + 1 + 1 / a - digamma(1) + digamma(a)
        of_radius = betaln(2, b) - 2 * (digamma(2) - digamma(b))
        of_radius += (2 + b) * (digamma(2 + b) - digamma(b))
        return float(of_energy + of_radius)

    @property
    def entropy_of_azimuth(self) -> float:
        """Entropy of the azimuth given the primary, in nats; ln 2 pi for kappa = 0."""
        k = self.kappa
        return float(math.log(2 * np.pi * i0e(k)) + k - k * i1e(k) / i0e(k))


def lowest_energy(primaries: Primaries) -> Array:
    """Energy in GeV that a muon needs at the surface to arrive with any."""
    return EPSILON_GEV * np.expm1(LOSS_PER_KM * primaries.depth_km / primaries.cosine)


def mean_number(primaries: Primaries) -> Array:
    """Mean number of muons beyond the first, by Elbert's formula, at most 30."""
    p, lowest = primaries, lowest_energy(primaries)
    y = np.maximum(10**p.log_energy / (p.mass * lowest), 1.0)
    number = p.mass * 14.5 / (lowest * p.cosine) * y**0.757 * (1 - 1 / y) ** 5.25
    return np.minimum(number, MAX_MEAN)


def log_density_of_number(counts: Array, primaries: Primaries) -> Array:
    """Natural logarithm of the probability of a number of muons given the primary."""
    from scipy.stats import nbinom

    return nbinom.logpmf(counts - 1, SIZE, SIZE / (SIZE + mean_number(primaries)))


def _log_density(log_e: Array, log_r: Array, s1: Array, s2: Array) -> Array:
    v = log_e - s1
    t = np.logaddexp(0, v)
    q = log_r - s2 + t
    of_energy = math.log(SPECTRUM) + v - (SPECTRUM + 1) * t
    return of_energy + 2 * q - (2 + LATERAL) * np.logaddexp(0, q) - betaln(2, LATERAL)


class LinearGaussian:
    """The benchmark LG-0: x = W c + noise with Gaussian c (4) and noise (3)."""

    weights = np.array([[0.9, 0, 0.3, 0], [0, 0.8, 0, 0.5], [0.4, 0.4, 0, 0.6]])
    spread = np.array([0.5, 0.6, 0.4])
    correlation = np.array([[1, 0.3, 0], [0.3, 1, 0.2], [0, 0.2, 1]])

    @property
    def covariance(self) -> Array:
        """Of the noise (3, 3)."""
        return self.correlation * np.outer(self.spread, self.spread)

    @property
    def entropy(self) -> float:
        """Entropy of x given c, in nats."""
        return _gaussian_entropy(self.covariance)

    @property
    def marginal_entropy(self) -> float:
        """Entropy of x, in nats."""
        return _gaussian_entropy(self.covariance + self.weights @ self.weights.T)

    def sample(self, n: int, seed: int, first: int = 0) -> tuple[Array, Array]:
        """Draws c (n, 4) and x (n, 3) of the events from number `first` on."""
        blocks = range(first // BLOCK, -(-(first + n) // BLOCK))
        drawn = [_rng(seed, block).standard_normal((BLOCK, 7)) for block in blocks]
        begin = first - blocks.start * BLOCK
        c, noise = np.split(np.concatenate(drawn)[begin : begin + n], [4], axis=1)
        return c, c @ self.weights.T + noise @ np.linalg.cholesky(self.covariance).T

    def log_density(self, x: Array, c: Array) -> Array:
        """Natural logarithm of the density of x (m, 3) given c (m, 4)."""
        return _gaussian_log_density(x - c @ self.weights.T, self.covariance)

    def log_marginal(self, x: Array) -> Array:
        """Natural logarithm of the density of x (m, 3), c integrated out."""
        return _gaussian_log_density(x, self.covariance + self.weights @ self.weights.T)


def _gaussian_entropy(covariance: Array) -> float:
    return float(0.5 * np.linalg.slogdet(2 * np.pi * np.e * covariance)[1])


def _gaussian_log_density(x: Array, covariance: Array) -> Array:
    square = (x * np.linalg.solve(covariance, x.T).T).sum(-1)
    return -0.5 * (square + np.linalg.slogdet(2 * np.pi * covariance)[1])


def _rng(seed: int, block: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, block])))


Benchmark = MuonBundles | LinearGaussian
BENCHMARKS = ("mb1", "mb1v", "lg0")
VERSION = 1  # changes when the same seed gives other events


def make_benchmark(
    benchmark: str = "mb1", strength: float = 1.0, kappa: float | None = None, turns: int = 1
) -> Benchmark:
    """Makes a benchmark from the numbers that describe it.

    Args:
        benchmark: `mb1`; `mb1v`, with an azimuth that depends on the primary; `lg0`.
        strength: Of the first two; see `MuonBundles`.
        kappa: Of `mb1v` alone, 8 if not given.
        turns: Of `mb1v` alone.

    Raises:
        ConfigError: No such benchmark, or numbers that it does not have.
    """
    if benchmark not in BENCHMARKS:
        raise ConfigError(f"benchmark is {benchmark!r}", expected="one of " + ", ".join(BENCHMARKS))
    if benchmark != "mb1v" and (kappa is not None or turns != 1):
        raise ConfigError(f"kappa or turns with {benchmark}", expected="benchmark mb1v")
    if benchmark == "lg0":
        if strength != 1.0:
            raise ConfigError("strength with lg0", expected="benchmark mb1 or mb1v")
        return LinearGaussian()
    return MuonBundles(
        strength, 8.0 if benchmark == "mb1v" and kappa is None else kappa or 0, turns
    )


def facts_of(benchmark: Benchmark) -> dict[str, str | float]:
    """Returns what `make_benchmark` makes it again from, for the files of a sample."""
    if isinstance(benchmark, LinearGaussian):
        return {"benchmark": "lg0"}
    facts: dict[str, str | float] = {"benchmark": "mb1", "strength": benchmark.strength}
    if benchmark.kappa:
        facts |= {"benchmark": "mb1v", "kappa": benchmark.kappa, "turns": benchmark.turns}
    return facts


def simulate_range(
    benchmark: Benchmark, seed: int, start: int, stop: int
) -> Iterator[dict[str, Array]]:
    """Yields the events of a range in chunks, as files hold them (`data.bundle_writer`).

    LG-0 has no units: c stands in the place of the primary, x in that of one muon's E, x and y.
    """
    for first in range(start, stop, BLOCK):
        n = min(BLOCK, stop - first)
        if isinstance(benchmark, LinearGaussian):
            primaries, muons = benchmark.sample(n, seed, first)
            counts = np.ones(n, np.int64)
        else:
            drawn, counts, muons = benchmark.sample(n, seed, first)
            primaries = drawn.columns()
        event = np.arange(first, first + n)
        yield {"event": event, "primary": primaries, "count": counts, "muons": muons}
