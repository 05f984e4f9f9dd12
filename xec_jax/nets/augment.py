"""Changes to raw events in training: lost channels, noise, jitter, another energy, easy ones first.

They act on what files hold (photons, seconds), before any normalization, so that a changed event
takes the same path as a real one and what is missing is missing in one way only.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from xec_jax.errors import ConfigError
from xec_jax.geometry import INVALID, INVALID_ABOVE
from xec_jax.types import Array, Batch, Key

MODES = ("invalid", "zero")
ENERGY = "energyTruth"
"""Truth that is proportional to the photons of an event."""
DROPPED = "_dropped"
"""Entry of a batch, bool (b s): sensors that the network is to see as zeros (mode `zero`)."""
STREAM = 2
"""Folded into the key of a step, so that masks and dropout draw other numbers."""


@dataclass(frozen=True, eq=False)  # hashed by identity, as it may hold an array
class Augmentation:
    """(batch, key) -> batch with other numbers in `npho`, `time`, `energyTruth` and `weight`.

    Every part is off at 0; with all of them off the batch is passed on as it is. Markers of
    invalid values stay as they are. Each event has a key of its own, folded with its place in
    the global batch, so that results do not depend on how the batch is cut.

    Attributes:
        channel_dropout: Probability of losing a sensor, photons and time together.
        channel_dropout_mode: `invalid` writes the marker of a dead channel; `zero` leaves the
            values and notes the sensors under `DROPPED`, for whoever builds the network's input
            to set both features to exactly 0, which looks like a valid time.
        dead_patterns: bool (n s), dead sensors of n real runs: a bank to draw from.
        dead_pattern_share: Probability that an event loses the sensors of one pattern of the
            bank, in the same mode; all patterns are equally likely.
        npho_noise: Standard deviation of a sensor's gain, relative to 1.
        npho_noise_photons: Standard deviation of noise added to each sensor, photons.
        time_jitter: Standard deviation of noise added to each time, s.
        energy_scale: An event's photons and true energy are multiplied by the same factor,
            uniform in 1 -+ this.
        curriculum_steps: Steps until every event counts.
        curriculum_photons: An event with fewer valid photons than this, times the part of
            `curriculum_steps` that is still to come, has weight 0.

    Raises:
        ConfigError: A value out of its range.
    """

    channel_dropout: float = 0.0
    channel_dropout_mode: str = "invalid"
    dead_patterns: np.ndarray | None = None
    dead_pattern_share: float = 0.0
    npho_noise: float = 0.0
    npho_noise_photons: float = 0.0
    time_jitter: float = 0.0
    energy_scale: float = 0.0
    curriculum_steps: int = 0
    curriculum_photons: float = 0.0

    def __post_init__(self) -> None:
        for key in ("channel_dropout", "energy_scale"):
            if not 0 <= getattr(self, key) < 1:
                found = f"augment.{key} is {getattr(self, key)}"
                raise ConfigError(found, expected="a number in [0, 1), 0 for none")
        scales = ("npho_noise", "npho_noise_photons", "time_jitter")
        for key in (*scales, "curriculum_steps", "curriculum_photons"):
            if not 0 <= getattr(self, key) < INVALID_ABOVE:
                found = f"augment.{key} is {getattr(self, key)}"
                raise ConfigError(found, expected="0 for none, or a positive number")
        if self.time_jitter > 1e-3:
            raise ConfigError(
                f"augment.time_jitter is {self.time_jitter} s",
                expected="of the order of 1e-9 s",
                remedy="times are in seconds; look for a lost minus sign in the exponent",
            )
        if self.channel_dropout_mode not in MODES:
            found = f"augment.channel_dropout_mode is {self.channel_dropout_mode!r}"
            raise ConfigError(found, expected="one of " + ", ".join(MODES))
        if not 0 <= self.dead_pattern_share <= 1:
            found = f"augment.dead_pattern_share is {self.dead_pattern_share}"
            raise ConfigError(found, expected="a share of the events in [0, 1], 0 for none")
        if (self.dead_pattern_share > 0) != (self.dead_patterns is not None):
            raise ConfigError(
                f"augment.dead_pattern_share is {self.dead_pattern_share}, augment.dead_patterns "
                + ("names no bank" if self.dead_patterns is None else "names a bank"),
                expected="a bank and a share above 0, or None and 0 for neither",
            )
        if self.dead_patterns is not None and not self.dead_patterns.any():
            found = "augment.dead_patterns names a bank without any dead sensor"
            raise ConfigError(found, expected="a list of dead channels, of one or many runs")
        if (self.curriculum_steps > 0) != (self.curriculum_photons > 0):
            raise ConfigError(
                f"augment.curriculum_steps is {self.curriculum_steps} and "
                f"augment.curriculum_photons is {self.curriculum_photons}",
                expected="both positive, or both 0 for no curriculum",
            )

    def __call__(self, batch: Batch, key: Key) -> Batch:
        """Changes the events of a training batch.

        Args:
            batch: `npho` (b s) in photons, `_position` and `weight` (b,); `time` (b s) in s,
                `energyTruth` (b ...) and `_step` (b,) where there are any.
            key: Key of this step.
        """
        out = dict(batch)
        npho, time, n_sensors = batch["npho"], batch.get("time"), batch["npho"].shape[-1]
        is_count = npho <= INVALID_ABOVE  # False for NaN, too
        if self.curriculum_steps:
            out["weight"] = batch["weight"] * self.easy(npho, batch["_step"])
        keys = event_keys(jax.random.fold_in(key, STREAM), batch["_position"], 6)
        if self.energy_scale:
            share = jax.vmap(lambda k: jax.random.uniform(k, (), minval=-1.0))(keys[:, 0])
            factor = 1 + self.energy_scale * share
            npho = jnp.where(is_count, npho * factor[:, None], npho)
            if ENERGY in batch:
                energy = batch[ENERGY]
                scaled = energy * factor.reshape(-1, *(1 for _ in energy.shape[1:]))
                out[ENERGY] = jnp.where(jnp.abs(energy) <= INVALID_ABOVE, scaled, energy)
        if self.npho_noise:
            gain = 1 + self.npho_noise * _normal(keys[:, 1], n_sensors)
            npho = jnp.where(is_count, npho * gain, npho)
        if self.npho_noise_photons:
            noise = self.npho_noise_photons * _normal(keys[:, 2], n_sensors)
            npho = jnp.where(is_count, npho + noise, npho)
        if self.time_jitter and time is not None:
            late = self.time_jitter * _normal(keys[:, 3], n_sensors)
            time = jnp.where(jnp.abs(time) <= INVALID_ABOVE, time + late, time)
        if self.channel_dropout or self.dead_patterns is not None:
            dropped = jnp.zeros(npho.shape, bool)
            if self.channel_dropout:
                noise = jax.vmap(lambda k: jax.random.uniform(k, (n_sensors,)))(keys[:, 4])
                dropped = noise < self.channel_dropout
            if self.dead_patterns is not None:
                dropped |= self.pattern(keys[:, 5])
            if self.channel_dropout_mode == "zero":
                out[DROPPED] = dropped
            else:
                npho = jnp.where(dropped, INVALID, npho)
                time = None if time is None else jnp.where(dropped, INVALID, time)
        out["npho"] = npho
        if time is not None:
            out["time"] = time
        return out

    def pattern(self, keys: Key) -> Array:
        """Draws the sensors that events lose together, bool (b s), from one key per event."""
        bank = jnp.asarray(self.dead_patterns)
        chance, which = jax.vmap(lambda k: jax.random.uniform(k, (2,)))(keys).T
        row = jnp.minimum((which * len(bank)).astype(jnp.int32), len(bank) - 1)
        return bank[row] & (chance < self.dead_pattern_share)[:, None]

    def easy(self, npho: Array, step: Array) -> Array:
        """Weights of a curriculum: 1 for events that are bright enough at this step, else 0.

        Args:
            npho: (b s) in photons, may hold markers; counts below 0 do not count.
            step: int (b,), training steps done.

        Returns:
            float32 (b,).
        """
        light = jnp.where((npho > 0) & (npho <= INVALID_ABOVE), npho, 0.0).sum(-1)
        to_come = jnp.clip(1 - step / max(self.curriculum_steps, 1), 0, 1)
        return (light >= self.curriculum_photons * to_come).astype(jnp.float32)


def event_keys(key: Key, position: Array, n: int) -> Key:
    """Returns n keys for every event, (b n ...), folded with its place in the global batch."""
    return jax.vmap(lambda p: jax.random.split(jax.random.fold_in(key, p), n))(position)


def _normal(keys: Key, n: int) -> Array:
    """Standard normal numbers (b n) from one key per event."""
    return jax.vmap(lambda k: jax.random.normal(k, (n,)))(keys)
