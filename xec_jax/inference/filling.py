"""Dead channels filled before a regression: two networks that are asked as one.

Dead is what has no number: markers in the files and the sensors of a list, which the source has
turned into markers. Sensors without light stay as they were measured, although networks with the
rule `positive` take them for invalid: nothing is missing there.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from xec_jax.data.dead import is_invalid
from xec_jax.errors import ConfigError
from xec_jax.evaluation.val_tree import AS_MEASURED
from xec_jax.geometry import INVALID
from xec_jax.inference.network import Answer, Network

FILLED = "npho_filled"


class Filling(Network):
    """A regression after an inpainter, and the same without it.

    Args:
        filler: Predicts `npho_filled`, and where it can `time_filled` or `prediction`.
        network: Is asked about the events with and without what is filled in.

    Raises:
        ConfigError: The first is no inpainter, or reads other branches.
    """

    def __init__(self, filler: Network, network: Network) -> None:
        if FILLED not in filler.answers or FILLED in network.answers:
            raise ConfigError(
                f"--inpaint with networks of the tasks {filler.task.name} and {network.task.name}",
                expected="an inpainter for a network that is none",
            )
        there, here = (dict(n.task.record["branches"]) for n in (filler, network))
        if there["time"] is None:  # it fills photons whatever the times
            there["time"] = here["time"]
        if there != here:
            raise ConfigError(
                f"the inpainter reads {_words(there)}, the network {_words(here)}",
                expected="the same branches: what one writes the other reads",
            )
        self.filler, self.network = filler, network
        self.task, self.data, self.put = network.task, network.data, dict
        self.answers = {
            **network.answers,
            **{f"{name}{AS_MEASURED}": shape for name, shape in network.answers.items()},
            "n_filled": (),
        }
        self.notes = {**network.notes, "inpainter": dict(filler.notes)}

    def __call__(self, batch: Mapping[str, Any]) -> Answer:
        """Returns predictions, the same `AS_MEASURED`, and how many sensors were filled."""
        inputs = self.filler.task.inputs or self.filler.task.spec
        wanted = (*inputs, "weight", "_position", "_step")
        found = self.filler({name: batch[name] for name in wanted if name in batch})
        dead = is_invalid(batch["npho"])
        filled = {**batch, "npho": np.where(dead, found[FILLED], batch["npho"])}
        if "time" in batch:
            filled["time"] = np.where(dead, _times(found), batch["time"])
        measured = self.network(batch)
        return {
            **self.network(filled),
            **{f"{name}{AS_MEASURED}": values for name, values in measured.items()},
            "n_filled": np.count_nonzero(dead, axis=1).astype(np.int32),
        }


def _times(found: Answer) -> np.ndarray:
    """Returns predicted times (b s), or () the marker where the inpainter predicts none."""
    if "time_filled" in found:
        return found["time_filled"]
    both = found.get("prediction")
    return (
        both[..., 1] if both is not None and both.shape[-1] == 2 else np.array(INVALID, np.float32)
    )


def _words(branches: Mapping[str, Any]) -> str:
    return " and ".join(map(repr, branches.values()))
