"""From muons and primaries as files hold them to the numbers of a flow, and back.

Stage A is physics: logarithms and units, the same for all data. Stage B is fitted to the training
data, column by column, so that the numbers fill the range of the splines. The density in units of
stage A differs from that of stage B by `log_slope`, and only the former can be compared between
runs.

Source: stage A of the PyTorch predecessor; I.-K. Yeo and R. Johnson, Biometrika 87 (2000) 954.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import ndtri

from xec_jax.errors import ConfigError, DataError
from xec_jax.types import Array, ArrayLike

FEATURES = {
    "r": ("energy", "radius"),
    "xy": ("energy", "x", "y"),
    "all": ("energy", "radius", "x", "y"),
}
CONDITIONS = ("log_energy", "cos_zenith", "log_mass", "depth")
METHODS = ("none", "standard", "yeo_johnson", "quantile")
PEV_GEV = 1e6
LATERAL_M = 100.0
KNOTS = 1000


def encode_primaries(primaries: ArrayLike) -> Array:
    """Turns primaries (... 4) into conditions: log10 E / PeV, cos zenith, log10 mass, depth / km.

    Args:
        primaries: Energy in GeV, zenith in rad, mass in GeV, depth in m. What is not a number
            becomes 1.
    """
    energy, zenith, mass, depth = jnp.moveaxis(jnp.asarray(primaries), -1, 0)
    columns = [
        jnp.log10(jnp.maximum(energy, 1e-3) / PEV_GEV),
        jnp.cos(zenith),
        jnp.log10(jnp.maximum(mass, 0.9)),
        depth / 1e3,
    ]
    stacked = jnp.stack(columns, -1)
    return jnp.where(jnp.isnan(stacked), 1.0, stacked)


def encode_muons(muons: ArrayLike, features: str, offset_m2: float = 0.125) -> Array:
    """Turns muons (... 4) into features (... d) of stage A.

    Energy: (log10(E / PeV) + 5) / 2, so 10 GeV is 0 and 1 TeV is 1. Distance: (ln(r^2 + offset) -
    5) / 2. x and y: over 100 m.

    Args:
        muons: Energy in GeV, distance to the axis r, x and y in m.
        features: A key of `FEATURES`.
        offset_m2: Keeps r = 0 finite; makes a hard lower edge, so 0 is better where r > 0.
    """
    energy, r, x, y = jnp.moveaxis(jnp.asarray(muons), -1, 0)
    columns = {
        "energy": (jnp.log10(jnp.maximum(energy, 1e-3) / PEV_GEV) + 5) / 2,
        "radius": (jnp.log(r * r + offset_m2) - 5) / 2,
        "x": x / LATERAL_M,
        "y": y / LATERAL_M,
    }
    return jnp.stack([columns[name] for name in names_of(features)], -1)


def decode_muons(encoded: ArrayLike, features: str, offset_m2: float = 0.125) -> dict[str, Array]:
    """Turns features (... d) of stage A back into energy (GeV), r, x and y (m), as far as known.

    Distances below the edge that `offset_m2` makes become 0, never NaN.
    """
    columns = dict(zip(names_of(features), jnp.moveaxis(jnp.asarray(encoded), -1, 0), strict=True))
    found = {"energy": PEV_GEV * 10 ** (2 * columns["energy"] - 5)}
    if "radius" in columns:
        found["radius"] = jnp.sqrt(jnp.maximum(jnp.exp(2 * columns["radius"] + 5) - offset_m2, 0))
    for name in ("x", "y"):
        if name in columns:
            found[name] = LATERAL_M * columns[name]
    return found


def names_of(features: str) -> tuple[str, ...]:
    """Returns the columns of a selection.

    Raises:
        ConfigError: There is no such selection.
    """
    if features not in FEATURES:
        raise ConfigError(f"features is {features!r}", expected="one of " + ", ".join(FEATURES))
    return FEATURES[features]


@dataclass(frozen=True)
class Column:
    """Stage B of one column: z = ((transformed v) - mean) / scale, constants fitted once.

    Attributes:
        method: One of `METHODS`.
        mean: Subtracted after the transformation.
        scale: Divided by, > 0.
        power: lambda of Yeo and Johnson, in [0, 2], where the inverse exists on the whole line.
        knots: Values v of the fitted quantiles, ascending; linear beyond the ends.
        normal: z at the knots.
    """

    method: str = "none"
    mean: float = 0.0
    scale: float = 1.0
    power: float = 1.0
    knots: tuple[float, ...] = ()
    normal: tuple[float, ...] = ()

    def forward(self, v: ArrayLike) -> Array:
        """Maps stage A to stage B, any shape."""
        v = jnp.asarray(v)
        if self.method == "quantile":
            return _interpolate(v, self.knots, self.normal)[0]
        if self.method == "yeo_johnson":
            v = _yeo_johnson(v, self.power)
        return jnp.asarray((v - self.mean) / self.scale)

    def inverse(self, z: ArrayLike) -> Array:
        """Maps stage B to stage A, any shape."""
        z = jnp.asarray(z)
        if self.method == "quantile":
            return _interpolate(z, self.normal, self.knots)[0]
        v = z * self.scale + self.mean
        return _inverse_yeo_johnson(v, self.power) if self.method == "yeo_johnson" else v

    def log_slope(self, v: ArrayLike) -> Array:
        """Natural logarithm of dz/dv at values of stage A, any shape."""
        v = jnp.asarray(v)
        if self.method == "quantile":
            return jnp.log(_interpolate(v, self.knots, self.normal)[1])
        slope = jnp.full_like(v, -math.log(self.scale))
        if self.method == "yeo_johnson":
            slope += (self.power - 1) * jnp.sign(v) * jnp.log1p(jnp.abs(v))
        return slope

    @classmethod
    def fit(cls, values: np.ndarray, method: str) -> "Column":
        """Fits the constants to values (n,) of stage A.

        Raises:
            ConfigError: An unknown method.
            DataError: Values that are not finite, or all the same.
        """
        if method not in METHODS:
            raise ConfigError(f"method is {method!r}", expected="one of " + ", ".join(METHODS))
        if method == "none":
            return cls()
        values = np.asarray(values, np.float64)
        if not np.isfinite(values).all() or len(values) < 2 or not np.ptp(values) > 0:
            raise DataError(
                f"{len(values)} values from {values.min(initial=np.inf):g} to "
                f"{values.max(initial=-np.inf):g} cannot be brought to mean 0 and spread 1",
                expected="finite numbers that are not all equal",
            )
        if method == "quantile":
            # Some values between neighbors, or the slopes of the tails are accidents.
            n_knots = min(max(len(values) // 20, 2), KNOTS)
            shares = (np.arange(n_knots) + 0.5) / n_knots
            knots, first = np.unique(np.quantile(values, shares), return_index=True)
            if len(knots) < 2:
                return cls.fit(values, "standard")
            return cls("quantile", knots=tuple(knots), normal=tuple(ndtri(shares[first])))
        power = _fit_power(values) if method == "yeo_johnson" else 1.0
        bent = np.asarray(_yeo_johnson(values, power, np))
        return cls(method, float(bent.mean()), float(bent.std()), power)


@dataclass(frozen=True)
class Columns:
    """Stage B of several columns (... d)."""

    columns: tuple[Column, ...]

    def forward(self, v: ArrayLike) -> Array:
        """Maps stage A (... d) to stage B."""
        return self._each("forward", v)

    def inverse(self, z: ArrayLike) -> Array:
        """Maps stage B (... d) to stage A."""
        return self._each("inverse", z)

    def log_slope(self, v: ArrayLike) -> Array:
        """Natural logarithm of the determinant |dz/dv| at values (... d) of stage A: (...)."""
        return self._each("log_slope", v).sum(-1)

    def _each(self, name: str, values: ArrayLike) -> Array:
        values = jnp.asarray(values)
        parts = [getattr(c, name)(values[..., i]) for i, c in enumerate(self.columns)]
        return jnp.stack(parts, -1)

    @classmethod
    def fit(cls, values: np.ndarray, methods: tuple[str, ...]) -> "Columns":
        """Fits one method per column to values (n, d) of stage A."""
        found = [Column.fit(v, m) for v, m in zip(np.asarray(values).T, methods, strict=True)]
        return cls(tuple(found))

    def as_list(self) -> list[dict[str, Any]]:
        """Returns the constants as plain values, for the config of a run."""
        return [asdict(column) for column in self.columns]

    @classmethod
    def from_list(cls, plain: list[dict[str, Any]]) -> "Columns":
        """Takes back what `as_list` returned."""
        lists = ("knots", "normal")
        return cls(tuple(Column(**c | {k: tuple(c[k]) for k in lists}) for c in plain))


def _yeo_johnson(v: Any, power: float, xp: Any = jnp) -> Any:
    size = xp.log1p(xp.abs(v))
    up = xp.expm1(power * size) / power if power > 0 else size
    down = xp.expm1((2 - power) * size) / (2 - power) if power < 2 else size
    return xp.where(v >= 0, up, -down)


def _inverse_yeo_johnson(y: Array, power: float) -> Array:
    size = jnp.abs(y)
    up = jnp.log1p(power * size) / power if power > 0 else size
    down = jnp.log1p((2 - power) * size) / (2 - power) if power < 2 else size
    return jnp.where(y >= 0, jnp.expm1(up), -jnp.expm1(down))


def _fit_power(values: np.ndarray) -> float:
    """Most likely lambda in [0, 2] for a normal distribution of the transformed values."""
    bend = (np.sign(values) * np.log1p(np.abs(values))).sum()

    def cost(power: float) -> float:
        variance = np.var(_yeo_johnson(values, power, np))
        return len(values) / 2 * math.log(variance) - (power - 1) * bend

    return float(minimize_scalar(cost, bounds=(0.0, 2.0), method="bounded").x)


def _interpolate(x: Array, xs: tuple[float, ...], ys: tuple[float, ...]) -> tuple[Array, Array]:
    """Piecewise linear map and its slope, continued along the first and the last piece."""
    knots, values = jnp.asarray(xs, x.dtype), jnp.asarray(ys, x.dtype)
    left = jnp.clip(jnp.searchsorted(knots, x, side="right") - 1, 0, len(xs) - 2)
    slopes = jnp.diff(values) / jnp.diff(knots)
    return values[left] + slopes[left] * (x - knots[left]), slopes[left]
