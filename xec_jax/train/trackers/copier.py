"""Copies a run's record to a tracker: in the background while it trains, or afterwards."""

import json
import logging
import sys
import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from xec_jax.config import write_text
from xec_jax.errors import DiskError, Preempted, XecError
from xec_jax.train.hooks import Hook, RunInfo
from xec_jax.train.records import Record
from xec_jax.train.trackers.facts import Facts, read_facts, without_login

log = logging.getLogger(__name__)

CHUNK = 100
"""Records that are sent at once."""


class Writer(Protocol):
    """A run that is open in a tracker.

    Attributes:
        run_id: Name by which the tracker finds the run again.
        is_new: The tracker has nothing of this run yet.
    """

    run_id: str
    is_new: bool

    def write(self, records: Sequence[Record]) -> None:
        """Sends records; returns when the tracker has them."""

    def close(self, state: str | None) -> None:
        """Sends the files of the run; `state` is done, failed, preempted, or None: running."""


OpenWriter = Callable[[Facts, str | None], Writer]
"""Opens the run of this id, or a new one if there is none."""


class Places:
    """How far each tracker is, in `trackers.json`. Used by several threads."""

    def __init__(self, workdir: Path) -> None:
        self.path = workdir / "trackers.json"
        self._lock = threading.Lock()
        self._is_reported = False

    @cached_property
    def _content(self) -> dict[str, Any]:
        # Read late: --overwrite removes the file of the run before.
        try:
            content = json.loads(self.path.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            log.warning("%s cannot be read (%s): trackers get new runs", self.path, error)
            return {}
        return content if isinstance(content, dict) else {}

    def get(self, name: str, default: Any) -> Any:
        """Returns what was put last, also by an earlier process."""
        with self._lock:
            return self._content.get(name, default)

    def put(self, name: str, value: Any) -> None:
        """Notes it; a file that cannot be written is reported once."""
        with self._lock:
            if self._content.get(name) == value:
                return
            self._content[name] = value
            try:
                write_text(self.path, json.dumps(self._content, indent=2) + "\n")
            except DiskError as error:
                if not self._is_reported:
                    log.warning("%s; after a resume, trackers may get steps twice", error.found)
                self._is_reported = True


class Copier:
    """Sends to one tracker what `metrics.jsonl` has and the tracker has not.

    Steps count, not lines: when a run resumes, its last steps are made again, but the tracker
    already has them.
    """

    def __init__(self, name: str, open_writer: OpenWriter, workdir: Path, places: Places) -> None:
        self.name, self.open_writer, self.workdir, self.places = name, open_writer, workdir, places
        self._writer: Writer | None = None
        self._offset = 0

    def copy(self) -> None:
        """Sends all records that are new."""
        writer = self._open()
        place = self.places.get(self.name, None)
        records, end = self._read()
        records = [record for record in records if _is_after(record, place)]
        try:
            for start in range(0, len(records), CHUNK):
                chunk = records[start : start + CHUNK]
                writer.write(chunk)
                place = _place(writer, chunk, place)
                self.places.put(self.name, place)
        except Exception:
            self._writer = None  # the next try starts from a new connection
            raise
        self._offset = end

    def finish(self, state: str | None) -> None:
        """Sends what is left, the files of the run, and how it ended."""
        self.copy()
        writer, self._writer = self._open(), None
        writer.close(state)

    def _open(self) -> Writer:
        if self._writer is None:
            place = self.places.get(self.name, {})
            facts = read_facts(self.workdir, self.places.get("n_parameters", None))
            self._writer = self.open_writer(facts, place.get("run"))
            if self._writer.is_new or not place:
                self._offset = 0
                self.places.put(self.name, {"run": self._writer.run_id, "step": -1, "splits": []})
        return self._writer

    def _read(self) -> tuple[list[Record], int]:
        """Returns the complete lines that were added since the last call, and where they end."""
        path = self.workdir / "metrics.jsonl"
        if not path.exists():
            return [], 0
        with path.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        records = []
        for line in whole.splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                continue
        return records, self._offset + len(whole)


def _is_after(record: Record, place: dict[str, Any]) -> bool:
    if record["step"] == place["step"]:
        return record["split"] not in place["splits"]
    return record["step"] > place["step"]


def _place(writer: Writer, sent: Sequence[Record], before: dict[str, Any]) -> dict[str, Any]:
    """The last step and which of its records were sent, so that the others still can be."""
    step = sent[-1]["step"]
    splits = before["splits"] if before["step"] == step else []
    splits = [*splits, *(record["split"] for record in sent if record["step"] == step)]
    return {"run": writer.run_id, "step": step, "splits": splits}


def replay_command(workdir: Path) -> str:
    """Returns the command that copies the rest of a run."""
    return f"python -m xec_jax.runs sync {workdir}"


def reason(error: BaseException) -> str:
    """Returns an error in one line, without passwords."""
    text = " ".join(str(error).split())
    return without_login(f"{type(error).__name__}: {text}")[:300]


class Tracker(Hook):
    """Keeps a copier at work in a thread of its own; the loop only wakes it.

    Whatever fails is tried three times; then this tracker is given up with one warning, and the
    training goes on.

    Args:
        copier: What sends the records.
        delays: Seconds before the second and the third try.
        interval: Seconds between two sendings, which collect what came meanwhile.
        patience: Seconds that the end of the run waits for the last sending.
    """

    def __init__(
        self,
        copier: Copier,
        *,
        delays: Sequence[float] = (0.5, 30.0),
        interval: float = 2.0,
        patience: float = 20.0,
    ) -> None:
        self.copier, self.delays = copier, delays
        self.interval, self.patience = interval, patience
        self._wake, self._leave = threading.Event(), threading.Event()
        self._state = "preempted"
        self._is_given_up = False
        self._thread: threading.Thread | None = None

    def on_start(self, run: RunInfo) -> None:
        """Starts the thread."""
        self._total = run.total_steps
        self.copier.places.put("n_parameters", run.n_parameters)
        name = f"xec-{self.copier.name}"
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def on_record(self, record: Record) -> None:
        """Wakes the thread, which reads the record from the file."""
        self._wake.set()

    def on_end(self, step: int) -> None:
        """Waits for the last sending, but not for ever."""
        if self._thread is None:
            return
        # The loop ends its hooks while an error is on its way: that tells how the run ended.
        error = sys.exception()
        if isinstance(error, Preempted | KeyboardInterrupt) or (not error and step < self._total):
            self._state = "preempted"
        else:
            self._state = "failed" if error else "done"
        self._leave.set()
        self._wake.set()
        self._thread.join(self.patience)
        if self._thread.is_alive():
            self._give_up(f"not done {self.patience:g} s after the end of the run")

    def _work(self) -> None:
        """Body of the thread."""
        work: Callable[[], None] = self.copier.copy
        while self._try(work) and not self._leave.is_set():
            self._leave.wait(self.interval)
            self._wake.wait()
            self._wake.clear()
        if not self._is_given_up:
            self._try(lambda: self.copier.finish(self._state))

    def _try(self, work: Callable[[], None]) -> bool:
        for delay in (*self.delays, None):
            try:
                work()
                return True
            except Exception as error:
                why = reason(error)
                if delay is None or isinstance(error, ImportError | XecError):
                    break
            self._leave.wait(delay)
        self._give_up(why)
        return False

    def _give_up(self, why: str) -> None:
        if self._is_given_up:
            return
        self._is_given_up = True
        log.warning(
            "%s gets no more copies (%s). The training is not affected and metrics.jsonl has "
            "everything; to copy the rest later: %s",
            *(self.copier.name, why, replay_command(self.copier.workdir)),
        )
