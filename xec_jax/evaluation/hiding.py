"""Which sensors an inpainter has to fill in a validation.

`training` hides as in the training. `artificial` hides some random live sensors of each face, in
simulated or real events. `pattern` hides the sensors that were dead in a real run, where the
simulation has a truth for them. `front` hides the one sensor right in front of the first
interaction: the brightest, and hardest, of all. `dead` fills what is dead in the files, without a
truth.

Source: validation modes of the PyTorch predecessor.
"""

from collections.abc import Callable, Mapping

import numpy as np

from xec_jax.data.dead import mask, read_dead
from xec_jax.errors import ConfigError, DataError
from xec_jax.evaluation.base import Arrays, Options
from xec_jax.geometry import FACES, INVALID_ABOVE, SensorTable
from xec_jax.kinematics import xyz_to_uvw

MODES = ("training", "artificial", "pattern", "front", "dead")
FRONT_CM, FRONT_DEPTH_CM = 0.5, 1.0

Choose = Callable[[Arrays], np.ndarray]
"""Arrays of a batch -> bool (b, s), the sensors to hide; those that are dead do not count."""


def chooser(options: Options, table: SensorTable) -> Choose | None:
    """Returns what chooses the sensors of a batch; None for `training`.

    Raises:
        ConfigError: An unknown mode, or one that lacks what it needs.
        DataError: A list of dead channels that cannot be read.
    """
    if options.hide not in MODES:
        raise ConfigError(f"--hide {options.hide}", expected="one of " + ", ".join(MODES))
    if options.hide == "artificial":
        check_counts(options.counts, table)
        return lambda host: artificial(host, options.counts, table.face, options.seed)
    if options.hide == "pattern":
        if options.dead_list is None:
            raise ConfigError(
                "--hide pattern without a list", expected="--dead_channels LIST [--run_number R]"
            )
        patterns, number = read_dead(options.dead_list), options.run_number
        return lambda host: pattern(host, patterns, number, str(options.dead_list))
    if options.hide == "front":
        uv = np.asarray(xyz_to_uvw(table.positions))[:, :2]
        is_inner = table.face == FACES.index("inner")
        return lambda host: front(host, np.where(is_inner[:, None], uv, np.inf))
    if options.hide == "dead":
        return lambda host: np.zeros(host["npho"].shape, bool)
    return None


def check_counts(counts: Mapping[str, int], table: SensorTable) -> None:
    """Refuses faces that do not exist and numbers that they do not have.

    Raises:
        ConfigError: Such a face or number.
    """
    for name, n in counts.items():
        has = int((table.face == FACES.index(name)).sum()) if name in FACES else 0
        if not 0 <= n <= has or not has:
            raise ConfigError(
                f"--hide_counts {name}:{n}",
                expected="numbers of sensors for some of " + ", ".join(FACES),
            )


def artificial(host: Arrays, counts: Mapping[str, int], face: np.ndarray, seed: int) -> np.ndarray:
    """Chooses random live sensors of each face; fewer where a face has not so many.

    Args:
        host: `npho` (b, s) and `_position` (b,), which random numbers are keyed with: the choice
            does not depend on the batches.
        counts: Sensors by face.
        face: Face codes (s,).
        seed: Of the choice.
    """
    live = _is_live(host["npho"])
    hidden = np.zeros_like(live)
    for row, position in enumerate(host["_position"]):
        rng = np.random.default_rng([seed, int(position)])
        for name, n in counts.items():
            on = np.flatnonzero(face == FACES.index(name))
            # Of all sensors, dead ones too: which of the live ones come first is then the same
            # whatever else is dead.
            order = rng.permutation(on)
            hidden[row, order[live[row, order]][:n]] = True
    return hidden


def pattern(
    host: Arrays, patterns: Mapping[int | None, np.ndarray], number: int | None, name: str
) -> np.ndarray:
    """Hides the sensors of a list: of the run `number`, or of each event's own run."""
    shape = host["npho"].shape
    if number is not None or None in patterns:
        return np.broadcast_to(mask(patterns, number, name), shape).copy()
    if "run" not in host:
        raise DataError(
            f"{name} has runs, but the events do not say theirs",
            expected="a branch `run`, or --run_number R",
        )
    return np.stack([mask(patterns, int(run), name) for run in host["run"]])


def front(host: Arrays, uv: np.ndarray) -> np.ndarray:
    """Hides the inner sensor right in front of the first interaction, where there is one.

    |u_s - u| and |v_s - v| below 0.5 cm, and a depth w between 0 and 1 cm.

    Args:
        host: Has `uvwTruth` (b, 3) in cm.
        uv: Place of each sensor (s, 2), infinite for those of other faces.

    Raises:
        DataError: The events have no truth.
    """
    if "uvwTruth" not in host:
        raise DataError(
            "--hide front needs the first interaction, and the files have no uvwTruth",
            expected="simulated events",
        )
    uvw = host["uvwTruth"].astype(np.float64)
    near = (np.abs(uv[None] - uvw[:, None, :2]) < FRONT_CM).all(-1)
    is_shallow = (uvw[:, 2] > 0) & (uvw[:, 2] < FRONT_DEPTH_CM)
    return near & is_shallow[:, None] & _is_live(host["npho"])


def _is_live(npho: np.ndarray) -> np.ndarray:
    return (npho > 0) & (npho <= INVALID_ABOVE)
