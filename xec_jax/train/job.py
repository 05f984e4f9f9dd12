"""A training as a cluster sees it: one job on one run folder, from its lock to its exit code."""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from xec_jax.config import to_json, write_text
from xec_jax.data.source import Source
from xec_jax.errors import DeviceMemoryError, Preempted
from xec_jax.tasks.base import Task
from xec_jax.train import distributed
from xec_jax.train.distributed import tell
from xec_jax.train.hooks import Figures, Hook, TrainingCurves
from xec_jax.train.lock import Lock
from xec_jax.train.loggers import ConsoleLogger, JsonlLogger
from xec_jax.train.loop import FitResult, fit
from xec_jax.train.memory import as_found, halved
from xec_jax.train.migrations import read_config
from xec_jax.train.records import Record
from xec_jax.train.saved import load_run
from xec_jax.train.signals import StopFlag
from xec_jax.train.status import recorded
from xec_jax.train.step import TrainState
from xec_jax.train.trackers import make_trackers
from xec_jax.train.trainer import Trainer, check_spec
from xec_jax.train.workdir import open_workdir

log = logging.getLogger(__name__)


def run_job(
    task: Task,
    config: ConfigDict,
    train: Source,
    valid: Mapping[str, Source],
    workdir: Path,
    *,
    stop: StopFlag,
    command: Sequence[str] = (),
    dry_run: bool = False,
    overwrite: bool = False,
    accept_new_data: bool = False,
    resume: str = "auto",
) -> FitResult | None:
    """Trains, or continues, the run of a folder.

    Whatever can be wrong with config and data is found before the folder is touched. Of several
    processes, the first one owns the folder: lock, records and figures are its business.

    Args:
        task: The experiment.
        config: Resolved config.
        train: Training events.
        valid: Validation sets by name.
        workdir: Run folder.
        stop: Flag that signals set.
        command: Command line, for the record.
        dry_run: Make one step, print its loss, write nothing.
        overwrite: Delete the run that the folder holds.
        accept_new_data: Continue although the events are others.
        resume: `auto`, `never` (refuse a folder with a run) or `must` (refuse one without).

    Returns:
        Final state and metrics; None after a dry run.

    Raises:
        XecError: Of every kind; see `fit`, `open_workdir` and `Lock`.
    """
    make_trackers(config, workdir)  # checks their names
    if config.train.auto_batch and not overwrite and (workdir / "config.json").exists():
        config = as_found(config, read_config(workdir))
    for source in valid.values():
        check_spec(task, source)
    trainer = Trainer(task, config, train)  # traces the network: values that do not fit show now
    folder = workdir / "checkpoints"
    # A save that was cut off leaves `N.something` behind, which is no checkpoint.
    begun = not overwrite and distributed.first_does(
        lambda: any(path.name.isdigit() for path in folder.glob("*"))
    )
    is_handed_over = config.train.init_from is not None and not begun
    # Weights that do not fit are found before a folder is made.
    start = [_first_state(trainer, config)] if is_handed_over else []
    if dry_run:
        loss = trainer.try_step(train, *start)
        tell(f"dry run: config and data are fine, loss of the first step {loss:.4g}")
        return None
    if trainer.global_batch > len(train):
        log.warning(
            "a step takes %d events, there are %d: batches are mostly padding; lower "
            "data.batch_size or train.grad_accum_steps",
            *(trainer.global_batch, len(train)),
        )
    events = {name: s.fingerprint[:16] for name, s in {"train": train, **valid}.items()}
    record = {**task.record, "events": events, "events_per_step": trainer.global_batch}
    stop.defer()  # from here on there is something to lose
    lock = Lock(workdir)
    with contextlib.ExitStack() as stack:

        def open_folder() -> bool:
            stack.enter_context(lock)
            is_resumed = open_workdir(
                *(workdir, config),
                record=record,
                overwrite=overwrite,
                accept_new_data=accept_new_data,
                resume=resume,
            )
            stack.enter_context(recorded(workdir, command))
            return is_resumed

        resumed = distributed.first_does(open_folder)
        try:
            result = _fit_in_memory(trainer, config, train, valid, lock, stop, start)
        except Preempted:
            distributed.barrier("end")  # so that none gives up on the first, which may be drawing
            raise
        distributed.barrier("end")
    if resumed and not result.steps_run:
        steps = int(result.state.step)
        tell(f"already complete after {steps} steps; raise train.epochs to go on")
    return result


def _fit_in_memory(
    trainer: Trainer,
    config: ConfigDict,
    train: Source,
    valid: Mapping[str, Source],
    lock: Lock,
    stop: StopFlag,
    start: list[TrainState],
) -> FitResult:
    """Fits; with `train.auto_batch`, halves the batch until a step fits into memory.

    `start` holds the first state, or nothing for a fresh one; it is taken out, so that no name
    keeps a state in memory that the devices need.
    """
    is_handed_over, workdir = bool(start), lock.path.parent
    while True:
        smaller = halved(config) if config.train.auto_batch else None
        hooks = _hooks(trainer.task, config, train, valid, lock) if distributed.is_first() else []
        try:
            return fit(
                *(trainer.task, config, train, valid),
                workdir=workdir,
                state=start.pop() if start else None,
                hooks=hooks,
                stop=stop,
                trainer=trainer,
            )
        except DeviceMemoryError as error:
            if smaller is None:
                raise
            log.warning("%s\n  trying again with half the batch and twice the micro-batches", error)
        del hooks
        config = smaller
        trainer = Trainer(trainer.task, config, train)
        if is_handed_over:
            start.append(_first_state(trainer, config))
        if distributed.is_first():
            write_text(workdir / "config.json", to_json(config) + "\n")


class Holding(Hook):
    """Ends a run whose folder was lost to another job, before it writes anything there."""

    def __init__(self, lock: Lock) -> None:
        self.lock = lock

    def on_record(self, record: Record) -> None:
        """Called before the others write."""
        self.lock.check()

    def before_save(self, step: int) -> None:
        """Called before a checkpoint is written."""
        self.lock.check()


class BadData(Hook):
    """Adds to the records of whole epochs what could not be read, where there is any.

    `data/bad_files` counts files that were left out, `data/bad_events` the entries of the others
    that have weight 0.

    Args:
        sources: Training and validation events by the name of their records.
    """

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self.sources = sources

    def on_record(self, record: Record) -> None:
        """Called before the others write."""
        split = record["split"]
        report = getattr(self.sources.get(split), "report", None)  # arrays have none
        if report is None or (split == "train" and "epoch_s" not in record):
            return
        found = report()
        counts = {"bad_events": found["skipped"], "bad_files": len(found["bad_files"])}
        record |= {f"data/{name}": n for name, n in counts.items() if n}


def _first_state(trainer: Trainer, config: ConfigDict) -> TrainState:
    """Takes over the weights of `train.init_from`."""
    state, text = trainer.state_from(load_run(Path(config.train.init_from)))
    tell(f"{config.train.init_from}: {text}")
    return state


def _hooks(
    task: Task, config: ConfigDict, train: Source, valid: Mapping[str, Source], lock: Lock
) -> list[Hook]:
    workdir = lock.path.parent
    hooks: list[Hook] = [
        Holding(lock),
        BadData({"train": train, **valid}),
        ConsoleLogger(tuple(config.log.show)),
        JsonlLogger(workdir / "metrics.jsonl"),
        TrainingCurves(workdir),
    ]
    if valid and config.eval.figure_events:
        first = next(iter(valid.values()))
        hooks.append(Figures(task, first, events=config.eval.figure_events, workdir=workdir))
    return hooks + make_trackers(config, workdir)
