"""Streams events through a network into an evaluation, and its rows into files."""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from xec_jax.data.prefetch import prefetch
from xec_jax.data.root.writer import TreeFile
from xec_jax.data.source import Source
from xec_jax.errors import DataError, Preempted
from xec_jax.evaluation.base import Columns, Evaluation, Setting
from xec_jax.geometry import INVALID
from xec_jax.tasks.base import Task
from xec_jax.train.signals import AGAIN
from xec_jax.train.step import Tally, bound_queue
from xec_jax.transforms import SensorTransform

log = logging.getLogger(__name__)

BASKET_BYTES = 8_000_000
"""Rows that are written together."""

InspectStep = Callable[[Any, Any, Any], tuple[dict[str, jax.Array], Tally]]
"""(parameters, batch, key) -> arrays per event, and sums for metrics."""


def make_step(task: Task) -> InspectStep:
    """Compiles `Task.inspect`, or `Task.evaluate` where there are no arrays per event."""

    @jax.jit
    def step(params: Any, batch: Any, key: Any) -> tuple[dict[str, jax.Array], Tally]:
        if task.inspect is None:
            terms, metrics = task.evaluate(params, batch, key)
            return {}, Tally.pack(metrics, terms)
        arrays, terms, metrics = task.inspect(params, batch, key)
        return arrays, Tally.pack(metrics, terms)

    return step


def stream(
    setting: Setting,
    evaluation: Evaluation,
    source: Source,
    folder: Path | None,
    step: InspectStep | None = None,
) -> dict[str, float]:
    """Shows every event of a source once to the network and to the evaluation.

    Files get their names when all events are in them.

    Args:
        setting: The run.
        evaluation: What becomes of the events.
        source: The events, in their order.
        folder: Where files go; None for no files.
        step: Of `make_step`, where it is there already.

    Returns:
        The metrics: those of `Task.evaluate`, with the same random choices as in the validations
        of the training, and in their place those that the evaluation computes.

    Raises:
        DataError: A file has another number of rows than was announced.
        Preempted: The evaluation was told to stop; no file is left behind.
        DiskError: A file cannot be written.
    """
    task = setting.task
    step = make_step(task) if step is None else step
    expected = evaluation.expected_rows(len(source)) if folder is not None else {}
    for stem, (n, is_exact) in expected.items():
        print(f"{stem}.root will have {'' if is_exact else 'at most '}{n:,} rows", flush=True)
    with contextlib.ExitStack() as stack:
        files = {}
        for stem in expected:
            assert folder is not None
            files[stem] = stack.enter_context(TreeFile(folder / f"{stem}.root"))
            files[stem].table("metadata", metadata(setting))
        baskets = {stem: Basket(file, evaluation.trees[stem]) for stem, file in files.items()}
        tallies: list[Tally] = []
        n_seen = 0
        for host, found, tally in inspected(setting, evaluation, source, step):
            if setting.stop():
                raise Preempted("the evaluation was told to stop", remedy=AGAIN)
            n_seen += len(host["weight"])
            tallies.append(tally)
            bound_queue(tallies)
            rows = evaluation.add(host, found)
            for stem, basket in baskets.items():
                if stem in rows:
                    basket.add(rows[stem])
        for basket in baskets.values():
            basket.flush()
        if lost := len(source) - n_seen:
            log.warning("%d of %d events cannot be read and have no rows", lost, len(source))
        for stem, file in files.items():
            n, (most, is_exact) = file.entries[evaluation.trees[stem]], expected[stem]
            if n > most or (is_exact and n < min(most, n_seen)):
                raise DataError(f"{stem}.root has {n} rows", expected=f"{most}, as announced")
            print(f"wrote {n:,} rows to {file.path}")
    metrics = task.derive(Tally.means(tallies)) if tallies else {}
    return {**metrics, **evaluation.metrics()}


class Basket:
    """Collects rows until there are enough of them for files that are fast to read.

    Args:
        file: Where they go.
        tree: Its tree.
    """

    def __init__(self, file: TreeFile, tree: str) -> None:
        self._file, self._tree, self._columns, self._bytes = file, tree, Columns(), 0

    def add(self, rows: Mapping[str, np.ndarray]) -> None:
        """Adds rows, and writes all of them once they are `BASKET_BYTES`."""
        self._columns.add(rows)
        self._bytes += sum(values.nbytes for values in rows.values())
        if self._bytes >= BASKET_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes what is there."""
        if rows := self._columns.arrays():
            self._file.extend(rows, self._tree)
        self._columns, self._bytes = Columns(), 0


def inspected(
    setting: Setting, evaluation: Evaluation, source: Source, step: InspectStep
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray], Tally]]:
    """Yields batches without padding, what `Task.inspect` found in them, and sums for metrics."""
    task, params = setting.task, setting.run.params
    key = jax.random.PRNGKey(setting.run.config.eval.seed)  # as in validations of the training
    size = setting.options.batch_size
    batches = source.steps_per_epoch(size=size, train=False)
    keys = frozenset(task.spec)
    timeout = setting.run.config.data.get("timeout_s", math.inf)
    options: dict[str, Any] = {"size": size, "train": False, "keys": keys, "timeout_s": timeout}
    with prefetch(source, start=0, stop=batches, **options) as items:
        for _, host, device in items:
            batch = _with_markers(device, task.spec) | evaluation.additions(host)
            arrays, tally = step(params, batch, key)
            real = host["weight"] > 0
            found = {name: np.asarray(values)[real] for name, values in arrays.items()}
            yield {name: values[real] for name, values in host.items()}, found, tally


def _with_markers(batch: Mapping[str, Any], spec: Any) -> dict[str, Any]:
    """Adds what the files lack: arrays full of the marker of a value that is not known."""
    full = dict(batch)
    for name, (shape, dtype) in spec.items():
        if name not in full:
            full[name] = np.full((len(batch["weight"]), *shape), INVALID, dtype)
    return full


def metadata(setting: Setting) -> dict[str, float | str]:
    """Describes the numbers of a file, for the tree `metadata` beside them.

    Constants of the normalization, branches, channels that are predicted, and which state of which
    run it was.
    """
    record, config = setting.run.record, setting.run.config
    found: dict[str, float | str] = {
        "run": setting.name,
        "task": setting.task.name,
        "step": setting.run.step,
        "epoch": setting.epoch,
        "is_average": float(setting.run.is_average),
        "geometry": str(record.get("geometry", "")),
    }
    if "normalization" in config.data:
        transform = SensorTransform(**config.data.normalization.to_dict())
        found |= transform.as_dict()
        found |= {
            "npho_branch": config.data.npho_branch,
            "time_branch": str(config.data.time_branch),
        }
    if channels := record.get("channels"):
        found["predict_channels"] = ",".join(channels)
    return found
