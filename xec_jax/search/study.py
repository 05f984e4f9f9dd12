"""The study: which trials there are, who works on them, and which values come next.

It lives in a journal, a file that many workers append to under a lock that also holds on network
disks. Optuna proposes values and prunes; this module adds what a cluster needs: a total over all
workers, and trials of lost workers that others continue in the same folder.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xec_jax import config as configs
from xec_jax.errors import CheckpointError, ConfigError, DiskError
from xec_jax.search.plan import Plan
from xec_jax.train import lock

if TYPE_CHECKING:
    from optuna.trial import Trial

COMPLETE, PRUNED, FAILED = "complete", "pruned", "fail"


@dataclass(frozen=True)
class Row:
    """One trial as the journal has it.

    Attributes:
        number: 0, 1, 2, ... in the order of their start.
        state: `complete`, `pruned`, `fail` or `running`.
        value: Best value of the metric so far; None without any.
        values: {key: value} of the space; alternatives of a choice as text.
        curve: The metric at the first, second, ... validation.
        note: Why it ended, where it is not complete.
        seconds: Duration, once ended.
    """

    number: int
    state: str
    value: float | None
    values: dict[str, Any]
    curve: list[float]
    note: str
    seconds: float | None


class Study:
    """A study on disk that this process has joined.

    Args:
        folder: Of the study; made if missing.
        plan: What all workers must agree on.
        seed: Of the proposals.
        prune: Stop trials that do worse than the median of the others.

    Raises:
        ConfigError: Optuna is missing, or the study was started with another plan.
        DiskError: The folder cannot be written.
    """

    def __init__(self, folder: Path, plan: Plan, *, seed: int = 0, prune: bool = True) -> None:
        try:
            import optuna
            from optuna.storages import journal
        except ImportError as error:
            raise ConfigError(
                "optuna is not installed", remedy="pip install -e '.[tune]'"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder, self.plan, self.seed, self.optuna = folder, plan, seed, optuna
        self.reported: set[int] = set()  # validations of this worker's trial
        path = folder / "study.journal"
        try:
            (folder / "trials").mkdir(parents=True, exist_ok=True)
            # Not the symbolic-link lock: with a relative path it waits forever for a lost owner.
            self.gate = journal.JournalFileOpenLock(str(folder / "study.gate"))
            appending = journal.JournalFileOpenLock(str(path))
            backend = journal.JournalFileBackend(str(path), lock_obj=appending)
            with _held(appending):
                _drop_partial_line(path)
        except OSError as error:
            raise DiskError(f"cannot write the study {folder}: {error}") from error
        with self.alone():
            self.study = optuna.create_study(
                study_name="sweep",
                storage=optuna.storages.JournalStorage(backend),
                direction="maximize" if plan.maximize else "minimize",
                pruner=optuna.pruners.MedianPruner() if prune else optuna.pruners.NopPruner(),
                load_if_exists=True,
            )
            self.check()

    def check(self) -> None:
        """Writes the plan into a new study, compares it with that of an old one.

        Raises:
            ConfigError: They differ, perhaps because somebody has changed the config file.
        """
        facts = self.plan.facts()
        known = self.study.user_attrs.get("facts")
        if known is None:
            self.study.set_user_attr("facts", facts)
            return
        old, new = configs.flatten(known), configs.flatten(facts)
        changed = [
            f"{key}: {old.get(key)!r} there, {new.get(key)!r} here"
            for key in sorted(old | new)
            if old.get(key) != new.get(key)
        ]
        if changed:
            raise ConfigError(
                f"the study in {self.folder} was started with other settings:\n    "
                + "\n    ".join(changed),
                expected="the same config, space and metric for all trials of a study",
                remedy="go back to those settings, or choose another --output",
            )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other workers from looking at the study as a whole; for a second, not more."""
        with _held(self.gate):
            yield

    @contextmanager
    def next_trial(self, limit: int) -> Iterator["Trial | None"]:
        """Holds the next trial for this worker: one that its worker lost, or a new one.

        Args:
            limit: Trials of the study in all.

        Yields:
            The trial with its values, None if there is nothing left to start.
        """
        with ExitStack() as stack:
            with self.alone():
                trial = self._lost_trial() or self._new_trial(limit)
                if trial is not None:
                    stack.enter_context(lock.Lock(self._seat(trial.number)))
                    self._suggest(trial)
            yield trial

    def _lost_trial(self) -> "Trial | None":
        """Returns a trial that nobody works on any more."""
        from optuna.trial import Trial, TrialState

        for frozen in self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            # A training may outlive its worker; it must not be disturbed.
            places = self._seat(frozen.number), self.workdir(frozen.number)
            if not any(map(lock.is_held, places)):
                self.reported = set(frozen.intermediate_values)
                # This constructor is how Optuna itself takes a trial up again.
                return Trial(self.study, frozen._trial_id)
        return None

    def _new_trial(self, limit: int) -> "Trial | None":
        """Returns a new trial, None if the study has all of them."""
        trials = self.study.get_trials(deepcopy=False)
        n_waiting = sum(trial.state.name == "WAITING" for trial in trials)
        n_begun = len(trials) - n_waiting
        if n_begun >= limit:
            return None
        if self.plan.is_grid and not n_waiting:  # one waits where a worker died right after this
            self.study.enqueue_trial(self.plan.points()[n_begun])
        # Workers with the same seed must not draw the same numbers, nor one that restarts. The liar
        # takes trials that still run for bad ones, so that workers keep away from each other.
        self.study.sampler = self.optuna.samplers.TPESampler(
            seed=self.seed + 7919 * n_begun, constant_liar=True
        )
        self.reported = set()
        return self.study.ask()

    def _suggest(self, trial: "Trial") -> None:
        """Gives a trial its values; one that has them keeps them."""
        for dimension in self.plan.space:
            key, values = dimension.key, dimension.values
            if dimension.kind == "choice":
                trial.suggest_categorical(key, values)
            elif dimension.kind == "int":
                trial.suggest_int(key, *values)
            else:
                trial.suggest_float(key, *values, log=dimension.kind == "log")

    def report(self, trial: "Trial", validation: int, value: float) -> bool:
        """Enters the value of the n-th validation, and returns whether to give the trial up.

        The number of the validation is what trials have in common; their steps may differ in size.
        """
        if validation in self.reported or not math.isfinite(value):
            return False
        self.reported.add(validation)
        trial.report(value, validation)
        return trial.should_prune()

    def finish(self, trial: "Trial", state: str, value: float | None, note: str = "") -> None:
        """Enters how a trial ended; `value` counts for complete ones only."""
        if note:
            trial.set_user_attr("note", note)
        kind = self.optuna.trial.TrialState[state.upper()]
        self.study.tell(trial, value if state == COMPLETE else None, state=kind)

    def workdir(self, number: int) -> Path:
        """Returns the run folder of a trial."""
        return self.folder / "trials" / f"{number:04d}"

    def log(self, number: int) -> Path:
        """Returns the file with the output of a trial."""
        return self.folder / "trials" / f"{number:04d}.log"

    def _seat(self, number: int) -> Path:
        """Returns the folder whose lock says that a worker is at a trial."""
        return self.folder / "workers" / f"{number:04d}"

    def rows(self) -> list[Row]:
        """Returns all trials that have begun."""
        rows = []
        for trial in self.study.get_trials(deepcopy=False):
            state = trial.state.name.lower()
            if state == "waiting":
                continue
            curve = [trial.intermediate_values[k] for k in sorted(trial.intermediate_values)]
            value = self.plan.better(curve) if curve else None
            note = trial.user_attrs.get("note", "")
            duration: timedelta | None = trial.duration
            seconds = duration.total_seconds() if duration else None
            rows.append(Row(trial.number, state, value, trial.params, curve, note, seconds))
        return rows


@contextmanager
def _held(gate: Any) -> Iterator[None]:
    """Holds one of Optuna's locks; one whose owner is lost is broken after 30 s."""
    try:
        gate.acquire()
    except OSError as error:
        raise DiskError(f"cannot lock the study: {error}") from error
    try:
        yield
    finally:
        try:
            gate.release()
        except RuntimeError as error:
            raise CheckpointError(
                "the lock of the study was broken while this worker held it",
                remedy="the machine or the disk was asleep; start the same command again",
            ) from error


def _drop_partial_line(journal: Path) -> None:
    """Removes what a worker that was killed while writing left; nobody could read on after it."""
    with journal.open("rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
