"""What an experiment has to say to the training loop, and how it is found by its name."""

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
from ml_collections import ConfigDict

import xec_jax.tasks
from xec_jax.config import TASK_NAME, nearest
from xec_jax.errors import ConfigError
from xec_jax.types import Array, Batch, InspectFn, Key, LossFn, Params, PredictFn

Spec = Mapping[str, tuple[tuple[int, ...], np.dtype]]
SHARED = ("base", "bundles", "calorimeter", "hidden", "quantities")
"""Files of this folder that are no experiments."""

Arrays = Mapping[str, np.ndarray]
Figures = Callable[[Mapping[str, np.ndarray]], Iterable[tuple[str, Any]]]


def mean_and_spread(members: Sequence[Arrays]) -> dict[str, np.ndarray]:
    """Combines the predictions of several networks, or of several draws of one.

    Args:
        members: Per network or draw, arrays with a leading event axis. A `pred_x_sigma` is the
            uncertainty that the network itself claims for `pred_x`.

    Returns:
        Per name the mean, but for `_sigma` the root of the mean square; of two or more members
        also `{name}_std`, the standard deviation between them (n - 1). Arrays that are no floats
        are those of the first member.
    """
    combined = dict(members[0])
    for name, first in members[0].items():
        if len(members) == 1 or first.dtype.kind != "f":
            continue
        values = np.stack([member[name] for member in members])
        if name.endswith("_sigma"):
            combined[name] = np.sqrt(np.mean(values**2, 0))
        else:
            combined[name], combined[f"{name}_std"] = values.mean(0), values.std(0, ddof=1)
    return combined


@dataclass(frozen=True)
class Task:
    """An experiment as the loop sees it: pure functions and their descriptions.

    Attributes:
        name: The name of the file in `xec_jax/tasks`.
        spec: Shape and dtype of one event for every array that the functions below read. The
            loop adds `weight` float32 (1 real, 0 padding), `_position` int32 (place in the
            global batch) and `_step` int32 to each batch.
        init: (key, batch) -> parameters.
        loss: (params, batch, key) -> loss terms and metrics, both as sums with weights.
        evaluate: Like `loss`, without dropout; deterministic in its arguments.
        derive: Metrics after their division -> metrics to report (roots, ratios of metrics).
        predict: (params, batch, key or None) -> arrays with a leading event axis. With a key,
            dropout is active: one draw of a Monte-Carlo estimate of the uncertainty.
        inspect: Like `evaluate`, with arrays per event in addition, which `xec_jax.evaluation`
            of this name understands; truth that a batch lacks holds markers there.
        respond: (params, features (b s 2) of the sensors, batch) -> numbers (b,) by name, in
            physical units, whose derivatives say what a network looks at.
        preview: Like `predict`, for figures, where they need something else than users do.
        figures: what `preview` returns for some events -> (file stem, matplotlib figure) pairs.
        units: Metric name -> unit, for tables and axis labels.
        record: Facts stored with every checkpoint and compared at resume and hand-over (geometry
            fingerprint, normalization).
        inputs: Names in `spec` that `predict` reads; all of them if not given.
        truth: (arrays of a batch) -> the true values of what `predict` returns, `true_x` for
            `pred_x`, as far as the batch has them.
        combine: (predictions of several networks or draws) -> one prediction with its spread.
        frozen: Regular expressions; parameters whose path one of them finds are not trained.
    """

    name: str
    spec: Spec
    init: Callable[[Key, Batch], Params]
    loss: LossFn
    evaluate: LossFn
    derive: Callable[[Mapping[str, float]], dict[str, float]] = dict
    predict: PredictFn | None = None
    inspect: InspectFn | None = None
    respond: Callable[[Params, Array, Batch], dict[str, Array]] | None = None
    preview: PredictFn | None = None
    figures: Figures | None = None
    units: Mapping[str, str] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] | None = None
    truth: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]] | None = None
    combine: Callable[[Sequence[Arrays]], dict[str, np.ndarray]] = mean_and_spread
    frozen: tuple[str, ...] = ()


def make_task(config: ConfigDict) -> Task:
    """Builds the task that a config names.

    Raises:
        ConfigError: No such task, or the task refuses the config.
    """
    return _experiment(config.task).make_task(config)


def prepare(config: ConfigDict) -> ConfigDict:
    """Completes a config with numbers that come from the training data.

    An experiment may define `prepare(config) -> config`. What it fills in is saved with the run
    and is part of its identity, so it must depend on nothing but the config and the events.

    Raises:
        ConfigError: No such task, or the task refuses the config.
        DataError: Files that cannot be read.
    """
    complete = getattr(_experiment(config.task), "prepare", None)
    return config if complete is None else complete(config)


def _experiment(name: str) -> ModuleType:
    known = [m.name for m in pkgutil.iter_modules(xec_jax.tasks.__path__) if m.name not in SHARED]
    if name not in known or not TASK_NAME.match(name):
        raise ConfigError(f"task is {name!r}", expected=nearest(name, known))
    try:
        return importlib.import_module(f"xec_jax.tasks.{name}")
    except ModuleNotFoundError as error:
        if error.name != "distrax":
            raise
        raise ConfigError(
            f"task {name} needs the package distrax, which is not installed",
            remedy="pip install -e '.[flow]' in the repository",
        ) from error


def example_batch(spec: Spec, size: int) -> dict[str, np.ndarray]:
    """Returns a batch of ones in the shapes of a spec, to initialize or trace with."""
    batch = {name: np.ones((size, *shape), dtype) for name, (shape, dtype) in spec.items()}
    batch["weight"] = np.ones(size, np.float32)
    batch["_position"] = np.arange(size, dtype=np.int32)
    batch["_step"] = np.zeros(size, np.int32)
    return batch
