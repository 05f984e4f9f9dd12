"""The quantities that a network can be asked for, and three forms of each of their numbers.

*Raw* numbers leave a head, of order one. The *output* is what the loss compares with the truth:
mean + std x raw, with both taken from the training events, so that a head starts at the mean
and neither its weights nor the learning rate know about units. *Physical* values are what users
see: exponentiated where the logarithm is learned, times with the zero of the event added.

Source: heads, truth branches and units of the PyTorch predecessor.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xec_jax.errors import DataError
from xec_jax.geometry import INVALID_ABOVE
from xec_jax.kinematics import wrap_degrees
from xec_jax.losses import Loss, make_loss, mean_loss
from xec_jax.types import Array, ArrayLike, Mean, wide

log = logging.getLogger(__name__)

N_CLASSES = 5
MAX_UNKNOWN = 0.01
LARGEST_RADIANS = 3.2
CHECK = "python -m xec_jax.check looks at file after file"
LEAST = 1e-6
"""What smaller truth counts as where its logarithm is learned."""


@dataclass(frozen=True)
class Quantity:
    """Something about an event that is known in simulation.

    Attributes:
        branch: Its branch in the files; None where files have none by default.
        components: Names of its numbers, used in metrics.
        unit: Their unit.
        largest: Errors above it are not told apart in percentiles.
    """

    branch: str | None
    components: tuple[str, ...]
    unit: str
    largest: float


QUANTITIES = {
    "angle": Quantity("emiAng", ("theta", "phi"), "deg", 180.0),
    "energy": Quantity("energyTruth", ("energy",), "GeV", 1.0),
    "timing": Quantity("timeTruth", ("timing",), "ns", 100.0),
    "uvwFI": Quantity("uvwTruth", ("uvw_u", "uvw_v", "uvw_w"), "cm", 200.0),
    "angleVec": Quantity("emiVec", ("vec_x", "vec_y", "vec_z"), "", 2.0),
    "n_gamma": Quantity(None, ("n_gamma",), "", 1.0),
}
SCALABLE = ("smooth_l1", "huber", "l1", "mse", "l2", "gaussian_nll", "quantile")
"""Losses that have a unit."""

DIRECTIONS = ("angle", "angleVec")
"""Quantities for which there is an angle between prediction and truth."""


@dataclass(frozen=True)
class Target:
    """A quantity that a head is trained for.

    Attributes:
        name: A key of `QUANTITIES`.
        branch: Where files have the truth.
        loss_fn: Name of a loss.
        loss_beta: Its parameter, None for its own default.
        weight: Factor of the loss in the sum over all quantities.
        log_transform: Learn the logarithm.
        quantiles: What `quantile` predicts, ascending, 0.5 among them.
        reference: Branch with a time in s that was subtracted from the inputs of the event; the
            head then learns the time since.
        mean: Per component; empty for 0.
        std: Per component; empty for 1.
        in_std: Compare in units of `std`, so that losses of all quantities are of order one.
    """

    name: str
    branch: str
    loss_fn: str
    loss_beta: float | None = None
    weight: float = 1.0
    log_transform: bool = False
    quantiles: tuple[float, ...] = (0.16, 0.5, 0.84)
    reference: str | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    in_std: bool = False

    @cached_property
    def pointwise(self) -> Loss:
        """The loss; raises ConfigError if there is none of this name."""
        return make_loss(self.loss_fn, self.loss_beta, self.quantiles)

    @property
    def quantity(self) -> Quantity:
        """What is predicted."""
        return QUANTITIES[self.name]

    @property
    def is_class(self) -> bool:
        """Whether the quantity is the number of a class."""
        return self.name == "n_gamma"

    @property
    def meaning(self) -> dict[str, Any]:
        """What turns the numbers of the head into predictions: its weights fit nothing else."""
        form = {"gaussian_nll": "normal", "quantile": list(self.quantiles)}
        return {
            "form": form.get(self.loss_fn, "class" if self.is_class else "point"),
            "log_transform": self.log_transform,
            "reference": self.reference,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @property
    def n_components(self) -> int:
        """Numbers per event in the truth."""
        return len(self.quantity.components)

    @property
    def branches(self) -> dict[str, tuple[int, ...]]:
        """The branches that the truth is made of, with the shape of one event."""
        shape: tuple[int, ...] = () if self.n_components == 1 else (self.n_components,)
        return {self.branch: shape} | ({self.reference: ()} if self.reference else {})

    @property
    def n_raw(self) -> int:
        """Numbers per event that the head has to deliver."""
        copies = {"gaussian_nll": 2, "quantile": len(self.quantiles)}.get(self.loss_fn, 1)
        return N_CLASSES if self.is_class else copies * self.n_components

    def truth(self, batch: Mapping[str, ArrayLike]) -> tuple[Array, Array]:
        """What the output should be.

        Args:
            batch: Has the arrays of `branches`, which may hold markers and NaN.

        Returns:
            Truth (b n), finite everywhere, and bool (b,), False where it is not known.
        """
        value = wide(batch[self.branch]).reshape(-1, self.n_components)
        is_known = (jnp.abs(value) <= INVALID_ABOVE).all(-1)
        if self.is_class:
            is_known &= ((value >= 0) & (value < N_CLASSES)).all(-1)
        if self.reference:
            zero, is_timed = self._zero_ns(batch)
            value, is_known = value - zero, is_known & is_timed
        value = jnp.where(is_known[:, None], value, 1.0)
        return jnp.log(jnp.maximum(value, LEAST)) if self.log_transform else value, is_known

    def _zero_ns(self, batch: Mapping[str, ArrayLike]) -> tuple[Array, Array]:
        """The time that was subtracted (b 1) in ns, and bool (b,), whether there was one."""
        zero = wide(batch[self.reference or ""])
        is_timed = jnp.abs(zero) <= INVALID_ABOVE
        return jnp.where(is_timed, 1e9 * zero, 0.0)[:, None], is_timed

    def known(
        self,
        arrays: Mapping[str, np.ndarray],
        *,
        where: str,
        place: Callable[[int], str],
        energy_unit: str,
        allow_bad: bool,
    ) -> np.ndarray:
        """Returns the known truth (n, k) float64, after a look at its numbers and units.

        Args:
            arrays: All events of the `branches`, energies in GeV if `energy_unit` is right.
            where: The files, for messages.
            place: Says in which file a row of the arrays is from, asked when something is wrong.
            energy_unit: What the files are said to hold, GeV or MeV.
            allow_bad: Accept that more than 1 % of the events have no truth.

        Raises:
            DataError: Too little truth, or in another unit.
        """
        values, is_known = (np.asarray(a) for a in self.truth(arrays))
        truth, n = values[is_known].astype(np.float64), len(values)
        names, task = " and ".join(self.branches), f"train.tasks.{self.name}"
        if n_bad := n - len(truth):
            bad = (
                f"{where}: {n_bad / n:.1%} of {n} events have no usable {names}, "
                f"the first is {place(int(np.argmin(is_known)))}"
            )
            if n_bad == n or (n_bad > MAX_UNKNOWN * n and not allow_bad):
                raise DataError(
                    bad,
                    expected=f"at most {MAX_UNKNOWN:.0%} of NaN and 1e10",
                    remedy=f"{task}.enabled=false, or data.allow_bad_truth=true; {CHECK}",
                )
            log.warning("%s; %d do not count for %s", bad, n_bad, task)
        stored = np.abs(arrays[self.branch].reshape(n, -1)[:, 0])
        self._check_unit(np.where(is_known, stored, np.nan), where, place, energy_unit)
        return truth

    def _check_unit(
        self, values: np.ndarray, where: str, place: Callable[[int], str], energy_unit: str
    ) -> None:
        """Looks for other units in the first number of all events (n,), which may be NaN.

        Raises:
            DataError: Most events have another unit; some of them are worth a warning.
        """
        if self.name == "energy":
            unit, other = energy_unit, "GeV" if energy_unit == "MeV" else "MeV"
            factor = 1.0 if unit == "GeV" else 1e3  # back to what the files hold
            wrong = (values > 1) | ((values < 1e-3) & (unit == "MeV"))
            expected = f"energies in {unit}, not in {other}: photons have 15 to 100 MeV"
            remedy = f"data.energy_unit={other}, if that is the unit of the files"
        elif self.name == "angle":
            factor, wrong = 1.0, values <= LARGEST_RADIANS
            expected = "polar angles in degrees, not radians"
            remedy = f"write degrees into the files, or train.tasks.{self.name}.enabled=false"
        else:
            return
        if not wrong.any():
            return
        n_wrong, n, first = wrong.sum(), np.isfinite(values).sum(), int(np.argmax(wrong))
        found = (
            f"{where}: {self.branch} is {factor * values[first]:.4g} in {place(first)}, and like "
            f"this in {n_wrong} of {n} events"
        )
        if 2 * n_wrong > n:
            raise DataError(found, expected=expected, remedy=f"{remedy}; {CHECK}")
        log.warning("%s; expected are %s; %s", found, expected, CHECK)

    def statistics(self, truth: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per component, to six digits.

        Azimuths are averaged as directions. A quantity that is the same in all events gets a
        standard deviation of the size of its mean.

        Args:
            truth: (n, k) float64, what `truth` returns for known events.
        """
        mean = truth.mean(0)
        away = truth - mean
        if self.name == "angle":
            phi = np.deg2rad(truth[:, 1])
            mean[1] = np.rad2deg(np.arctan2(np.sin(phi).mean(), np.cos(phi).mean()))
            away[:, 1] = wrap_degrees(truth[:, 1] - mean[1])
        std = np.sqrt(np.square(away).mean(0))
        size = np.where(mean == 0, 1.0, np.abs(mean))
        std = np.where(std > 1e-6 * size, std, size)
        return _six_digits(mean), _six_digits(std)

    def output(self, raw: Array) -> Array:
        """Turns what a head delivers, (b `n_raw`), into the output of the same shape.

        Of a normal distribution the logarithm of the variance is shifted by 2 ln std. Quantiles
        are the one in the middle and positive distances from neighbor to neighbor: they cannot
        cross.
        """
        if self.is_class:
            return raw
        mean, std = self._affine()
        parts = jnp.split(raw, self.n_raw // self.n_components, -1)
        if self.loss_fn == "gaussian_nll":
            return jnp.concatenate([mean + std * parts[0], parts[1] + 2 * jnp.log(std)], -1)
        if self.loss_fn == "quantile":
            parts = _ascending(parts, self.quantiles.index(0.5))
        return jnp.concatenate([mean + std * part for part in parts], -1)

    def _affine(self) -> tuple[Array, Array]:
        """Mean and std (n,)."""
        mean = jnp.asarray(self.mean or (0.0,) * self.n_components)
        return mean, jnp.asarray(self.std or (1.0,) * self.n_components)

    def point(self, output: Array) -> Array:
        """The best guess (b n) in an output: mean of a distribution, median of quantiles."""
        n = self.n_components
        first = n * self.quantiles.index(0.5) if self.loss_fn == "quantile" else 0
        return output[:, first : first + n]

    def residual(self, point: Array, truth: Array) -> Array:
        """Returns point - truth (b n), azimuths without whole turns."""
        difference = point - truth
        if self.name != "angle":
            return difference
        return jnp.stack([difference[:, 0], wrap_degrees(difference[:, 1])], -1)

    def loss(self, output: Array, truth: Array, weight: Array) -> Mean:
        """The loss of a batch without the factor `weight`; mean over components and events.

        Args:
            output: (b `n_raw`).
            truth: (b n), see `truth`.
            weight: (b,), 0 where the truth is not known.
        """
        if self.name == "angle":
            # The truth is moved by whole turns next to the prediction, for any loss at once.
            difference = self.point(output) - truth
            truth = truth + difference - self.residual(difference, jnp.zeros_like(truth))
        if self.in_std and self.loss_fn in SCALABLE:
            mean, std = self._affine()
            truth = (truth - mean) / std
            parts = jnp.split(output, self.n_raw // self.n_components, -1)
            scaled = [(part - mean) / std for part in parts]
            if self.loss_fn == "gaussian_nll":
                scaled[1] = parts[1] - 2 * jnp.log(std)
            output = jnp.concatenate(scaled, -1)
        return mean_loss(self.pointwise, output, truth, weight[:, None])

    def physical(self, value: Array) -> Array:
        """Undoes the logarithm; what is left is in the quantity's unit."""
        return jnp.exp(value) if self.log_transform else value

    def predictions(self, output: Array, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Turns an output into what users get.

        Args:
            output: (b `n_raw`).
            batch: Has the `reference`, if there is one.

        Returns:
            `pred_{name}` in the unit of the quantity, (b,) if it is one number, else (b n);
            `pred_{name}_sigma`, or `_low` and `_high`, where the loss teaches them;
            `pred_{name}_probability` (b c) beside the most probable class. NaN for times of
            events that have no reference.
        """
        name = f"pred_{self.name}"
        if self.is_class:
            chance = jax.nn.softmax(output)
            return {name: output.argmax(-1).astype(jnp.int32), f"{name}_probability": chance}
        point = self.point(output)
        turns = point - self.residual(point, jnp.zeros_like(point))
        zero: Array | float = 0.0
        if self.reference:
            zero, is_timed = self._zero_ns(batch)
            zero = jnp.where(is_timed[:, None], zero, jnp.nan)
        found = {name: self.physical(point - turns) + zero}
        if self.loss_fn == "gaussian_nll":
            found[f"{name}_sigma"] = self.sigma(output) + 0 * zero  # no time, no error of it
        if self.loss_fn == "quantile":
            for suffix, level in zip(("low", "high"), self.interval(output), strict=True):
                found[f"{name}_{suffix}"] = self.physical(level - turns) + zero
        return {key: v[:, 0] if self.n_components == 1 else v for key, v in found.items()}

    def sigma(self, output: Array) -> Array:
        """The standard deviation (b n) in the output of a likelihood, in the quantity's unit."""
        sigma = jnp.exp(0.5 * output[:, self.n_components :])
        # Of a logarithm, sigma is a relative error.
        return sigma * self.physical(self.point(output)) if self.log_transform else sigma

    def interval(self, output: Array) -> tuple[Array, Array]:
        """The outermost quantiles (b n) in an output."""
        return output[:, : self.n_components], output[:, -self.n_components :]


def _ascending(parts: list[Array], middle: int) -> list[Array]:
    """Keeps one array and turns its neighbors into ever larger, and ever smaller, ones."""
    levels = [parts[middle]]
    for part in parts[middle + 1 :]:
        levels.append(levels[-1] + jax.nn.softplus(part))
    for part in reversed(parts[:middle]):
        levels.insert(0, levels[0] - jax.nn.softplus(part))
    return levels


def _six_digits(values: np.ndarray) -> tuple[float, ...]:
    """Rounds so that sums in another order, on another machine, give the same."""
    return tuple(float(f"{value:.5e}") for value in values)
