"""What the evaluation of an experiment has to deliver, and how it is found by its name."""

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from xec_jax.errors import ConfigError
from xec_jax.sim.lxe_parameters import LxeParameters
from xec_jax.tasks.base import Task
from xec_jax.train.records import read_jsonl
from xec_jax.train.saved import SavedRun

Arrays = Mapping[str, np.ndarray]
Headline = dict[str, tuple[float, float]]
"""Metric, with its unit in brackets, -> its value and the error of that, NaN if not known."""


@dataclass(frozen=True)
class Options:
    """What a user may choose.

    Attributes:
        batch_size: Events at a time.
        csv: Also write predictions as text.
        max_events: Events whose sensors an autoencoder's file holds.
        max_rows: Hidden sensors that an inpainter's files hold.
        hide: Which sensors an inpainter has to fill, see `evaluation.hiding`.
        counts: Sensors to hide per face, for `hide="artificial"`.
        seed: Of that choice.
        dead_list: List of dead channels, for `hide="pattern"`.
        run_number: The run of it that stands for all.
        opponents: Events that classical methods and bounds are computed for; 0 for none.
        calibrate: Files that classical methods are calibrated with; those of the training if
            empty.
        calibrate_events: How many of their events.
        has_figures: Whether figures are drawn.
    """

    batch_size: int = 64
    csv: bool = False
    max_events: int = 1000
    max_rows: int = 20_000_000
    hide: str = "training"
    counts: Mapping[str, int] = field(
        default_factory=lambda: {"inner": 10, "us": 1, "ds": 1, "outer": 1, "top": 1, "bot": 1}
    )
    seed: int = 42
    dead_list: str | None = None
    run_number: int | None = None
    opponents: int = 1000
    calibrate: tuple[str, ...] = ()
    calibrate_events: int = 4000
    has_figures: bool = True


@dataclass(frozen=True)
class Setting:
    """A trained run and the events that it is evaluated with.

    Attributes:
        name: Of the run.
        run: Weights and config.
        task: Its experiment.
        epoch: How far the weights were trained.
        is_simulated: Whether the events have a truth.
        sample: The simulated detector they are from; None where it is not known.
        tree_name: Tree in the files.
        files: The files, none for caches.
        options: What the user chose.
        stop: Polled between batches; True ends the evaluation.
    """

    name: str
    run: SavedRun
    task: Task
    epoch: int
    is_simulated: bool
    sample: LxeParameters | None
    tree_name: str
    files: tuple[Path, ...]
    options: Options
    stop: Callable[[], bool] = lambda: False


class Drawing(NamedTuple):
    """A figure of the evaluation.

    Attributes:
        stem: Name of its files.
        figure: The matplotlib figure.
        data: What was drawn, to draw it anew.
        caption: What it shows.
    """

    stem: str
    figure: Any
    data: Arrays
    caption: str = ""


class Table(NamedTuple):
    """A table of the evaluation.

    Attributes:
        stem: Its name in metrics.json.
        title: Headline.
        columns: Names of the columns.
        rows: Cells, texts or numbers.
        note: What a reader has to know.
    """

    stem: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float]]
    note: str = ""


class Evaluation:
    """What becomes of the events of a run: rows of files, metrics, tables, figures.

    This base does without rows and draws the figures of the task. An experiment that wants more
    has a file of its name in this folder, with its class as `EVALUATION`.

    Args:
        setting: The run and the events.

    Attributes:
        branches: What is read besides the arrays of the task, where files have it.
        trees: Tree in each file that `add` returns rows for.
    """

    branches: ClassVar[tuple[str, ...]] = ()
    trees: Mapping[str, str] = MappingProxyType({})

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.first: dict[str, np.ndarray] = {}

    def expected_rows(self, events: int) -> Mapping[str, tuple[int, bool]]:
        """Says, before anything is computed, how many rows files will have.

        Returns:
            Per file a number, and whether it is exact or the most there can be.
        """
        return {}

    def additions(self, host: Arrays) -> dict[str, np.ndarray]:
        """Returns what the network has to know of a batch besides its arrays, as numpy."""
        return {}

    def add(self, host: Arrays, found: Arrays) -> Mapping[str, dict[str, np.ndarray]]:
        """Takes a batch without padding.

        Args:
            host: Arrays of the events.
            found: What `Task.inspect` returned for them.

        Returns:
            Rows by file.
        """
        wanted = self.setting.run.config.eval.figure_events
        if not self.first and self.setting.options.has_figures:
            self.first = {name: values[:wanted].copy() for name, values in host.items()}
        return {}

    def metrics(self) -> dict[str, float]:
        """Returns metrics of all events, in place of those that the training computes."""
        return {}

    def headline(self, metrics: Mapping[str, float], used: np.ndarray | None = None) -> Headline:
        """Returns the few numbers that matter most, for scans.

        Args:
            metrics: Of all events.
            used: bool (n,), the events to look at; all of them if not given. Only for those that
                pass `check_bins`.
        """
        return {"loss": (metrics["loss"], float("nan"))}

    def check_bins(self, name: str) -> None:
        """Refuses scans in bins of the truth, before anything is computed.

        Raises:
            ConfigError: Single events are not kept.
        """
        raise ConfigError(
            f"--scan {name}: task {self.setting.task.name} keeps no single events",
            expected="--scan dead, gain, noise, offset, jitter or pileup",
        )

    def place(self, name: str) -> np.ndarray:
        """Returns the truth (n,) of all events that a scan cuts into bins, by its name."""
        raise NotImplementedError

    def tables(self) -> list[Table]:
        """Returns comparisons, once all events were added."""
        return []

    def texts(self) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """Yields columns to be written as text, with the stems of their files."""
        yield from ()

    def drawings(self) -> Iterator[Drawing]:
        """Yields figures, once all events were added."""
        task, params = self.setting.task, self.setting.run.params
        predict = task.preview or task.predict
        if not self.first or predict is None or task.figures is None:
            return
        batch = {k: v for k, v in self.first.items() if k in task.spec or k[0] == "_"}
        found = jax.jit(predict)(params, batch | {"weight": self.first["weight"]})
        arrays = {**self.first, **{k: np.asarray(v) for k, v in found.items()}}
        for stem, figure in task.figures(arrays):
            yield Drawing(stem, figure, {})


class Columns:
    """Grows columns batch by batch; memory holds float32 where it came as float32."""

    def __init__(self) -> None:
        self._parts: dict[str, list[np.ndarray]] = {}

    def add(self, rows: Arrays) -> None:
        """Adds rows; the first ones say which columns there are."""
        for name, values in rows.items():
            self._parts.setdefault(name, []).append(np.array(values))

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns all rows of every column."""
        for name, parts in self._parts.items():
            self._parts[name] = [np.concatenate(parts)]
        return {name: parts[0] for name, parts in self._parts.items()}


def make(setting: Setting) -> Evaluation:
    """Returns the evaluation of an experiment: the one of its name, or the one for all."""
    made: Evaluation = _class_of(setting.task.name)(setting)
    return made


def branches_of(task: str) -> tuple[str, ...]:
    """Returns what the evaluation of an experiment reads besides the arrays of the task."""
    return _class_of(task).branches


def _class_of(task: str) -> type[Evaluation]:
    name = f"xec_jax.evaluation.{task}"
    if importlib.util.find_spec(name) is None:
        return Evaluation
    found: type[Evaluation] = importlib.import_module(name).EVALUATION
    return found


def epoch_of(workdir: Path, step: int) -> int:
    """Returns how many epochs the weights of a step have seen, from the record of the run.

    Runs without a record, such as converted ones, count as 0.
    """
    epochs = [r.get("epoch", 0) for r in read_jsonl(workdir / "metrics.jsonl") if r["step"] == step]
    return round(max(epochs, default=0))
