"""Dead channels taken out of the events of a source."""

import logging

import numpy as np
from ml_collections import ConfigDict

from xec_jax.data.dead import DeadChannels, describe, digest, mask, read_dead
from xec_jax.data.root.manifest import Pattern
from xec_jax.data.source import ChangedSource, Source
from xec_jax.data.truth import read_truth
from xec_jax.errors import DataError
from xec_jax.geometry import INVALID

logger = logging.getLogger(__name__)


class DeadSource(ChangedSource):
    """A source whose events lack the dead sensors of their run.

    Photon counts and times of dead sensors become 1e10, whatever the files hold; everything else
    is passed on.

    Args:
        source: Where the events come from; has the key `run` if the list has runs.
        patterns: Dead sensors per run.

    Raises:
        DataError: The list has runs, and the source does not say which run an event is from.
    """

    def __init__(self, source: Source, patterns: DeadChannels) -> None:
        if None not in patterns and "run" not in source.spec:
            raise DataError(
                "the list of dead channels has runs, but the events do not say theirs",
                expected="a branch `run` in the files, and in data.extra_branches",
                remedy="read `run`, or use the pattern of one run for all events",
            )
        super().__init__(source, digest(patterns))
        self._patterns = patterns

    def change(self, batch: dict[str, np.ndarray], train: bool) -> None:
        """Marks the dead sensors.

        Raises:
            DataError: An event of a run that the list does not know.
        """
        runs = None if None in self._patterns else batch["run"]
        for run, rows in _rows_by_run(runs, len(batch["weight"])):
            cells = np.ix_(rows, np.flatnonzero(mask(self._patterns, run)))
            for name in ("npho", "time"):
                if name in batch:
                    batch[name][cells] = INVALID


def without_dead(source: Source, config: ConfigDict, path: Pattern) -> Source:
    """Takes the sensors of the list `data.dead_channels` out of all events, if there is one.

    Args:
        source: The events.
        config: The `data` group.
        path: The files behind `source`, whose runs are looked up in the list now.

    Raises:
        DataError: A list that cannot be read, or a run that it does not know.
    """
    if config.dead_channels is None:
        return source
    patterns = read_dead(config.dead_channels)
    wrapped = DeadSource(source, patterns)
    for run, dead in used_of(patterns, config, path, config.dead_channels).items():
        name = "all runs" if run is None else f"run {run}"
        logger.info("%s, %s: %s", config.dead_channels, name, describe(dead))
    return wrapped


def used_of(patterns: DeadChannels, config: ConfigDict, path: Pattern, name: str) -> DeadChannels:
    """Returns the patterns that the events of some files need, found without reading the events.

    Args:
        patterns: Dead sensors per run.
        config: The `data` group.
        path: The files.
        name: Where the patterns come from, for messages.

    Raises:
        DataError: A file without the branch `run`, or a run that the list does not know.
    """
    if None in patterns:
        return patterns
    runs = np.unique(read_truth(config, {"run": ()}, path)["run"])
    known = runs[np.isfinite(runs)].astype(int)  # NaN: entries that are skipped
    return {run: mask(patterns, run, name) for run in known.tolist()}


def _rows_by_run(runs: np.ndarray | None, size: int) -> list[tuple[int | None, np.ndarray]]:
    """Returns pairs of a run and the rows of a batch that are from it; all rows for no runs."""
    if runs is None:
        return [(None, np.arange(size))]
    return [(int(run), np.flatnonzero(runs == run)) for run in np.unique(runs)]
