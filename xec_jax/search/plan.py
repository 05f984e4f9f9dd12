"""What a study is about: experiment, space and metric, on which all its workers must agree."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xec_jax import config as configs
from xec_jax.errors import ConfigError
from xec_jax.search import trial
from xec_jax.search.space import Space, combinations, overrides

TRIALS = 20


@dataclass(frozen=True)
class Plan:
    """A search that could be made.

    Attributes:
        config: `FILE.py` or `FILE.py:VARIANT`.
        fixed: `--config.key=value` overrides of all trials.
        space: What is varied.
        metric: Value of the first validation set that counts.
        maximize: True if larger values are better.
        is_grid: All combinations instead of proposals.

    Raises:
        ConfigError: The config sets no validation events, or a grid lacks points.
    """

    config: str
    fixed: tuple[str, ...]
    space: Space
    metric: str = "loss"
    maximize: bool = False
    is_grid: bool = False

    def __post_init__(self) -> None:
        data = configs.load(self.config, self.fixed).data
        if data.train is not None and data.valid is None:
            raise ConfigError("data.valid is not set", expected="events to compare the trials on")
        self.points()

    def points(self) -> list[dict[str, Any]]:
        """Returns the points of a grid; nothing for a search that is none."""
        return combinations(self.space) if self.is_grid else []

    def limit(self, trials: int | None) -> int:
        """Returns how many trials the study has in all if the user asks for so many.

        Raises:
            ConfigError: Fewer than one.
        """
        if trials is not None and trials < 1:
            raise ConfigError(f"--trials is {trials}", expected="1 or more")
        if self.is_grid:
            return min(trials or sys.maxsize, len(self.points()))
        return trials or TRIALS

    def command(self, values: Mapping[str, Any], workdir: Path) -> list[str]:
        """Returns the command that trains a trial."""
        return trial.train_command(self.config, [*self.fixed, *overrides(values)], workdir)

    def facts(self) -> dict[str, Any]:
        """Returns the plan as plain values, with the config as its file is now."""
        return {
            "config": json.loads(configs.to_json(configs.load(self.config, self.fixed))),
            "space": {d.key: [d.kind, *d.values, d.points] for d in self.space},
            "metric": self.metric,
            "maximize": self.maximize,
            "grid": self.is_grid,
        }

    def better(self, values: list[float]) -> float:
        """Returns the best of several values."""
        return max(values) if self.maximize else min(values)
