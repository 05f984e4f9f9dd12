"""Copies a run's record to a tracker: what the file has and the tracker has not."""

import json
import logging
import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from xec_jax.config import write_text
from xec_jax.errors import DiskError
from xec_jax.train.records import Record
from xec_jax.train.trackers.facts import Facts, read_facts

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

    def tell(self, state: str) -> None:
        """Says what the run is: running, done, failed, preempted, interrupted or lost."""

    def close(self) -> None:
        """Sends the files of the run."""


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

    Args:
        name: Name of the tracker.
        open_writer: Opens its run.
        workdir: Run folder.
        places: How far the tracker is.
        check: Called before each sending; its error ends the copying.
    """

    def __init__(
        self,
        name: str,
        open_writer: OpenWriter,
        workdir: Path,
        places: Places,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.name, self.open_writer, self.workdir, self.places = name, open_writer, workdir, places
        self.check = check
        self._writer: Writer | None = None
        self._offset = 0

    def copy(self) -> None:
        """Sends all records that are new."""
        self._send(self._open(), "running")

    def finish(self, state: str) -> None:
        """Sends how the run ended, what is left, and its files."""
        writer = self._open()
        self._send(writer, state)
        self.check()
        writer.close()
        self._writer = None

    def _send(self, writer: Writer, state: str) -> None:
        place = self.places.get(self.name, None)
        records, end = self._read()
        records = [record for record in records if _is_after(record, place)]
        try:
            self.check()
            writer.tell(state)  # first, so that it is right whatever fails after it
            for start in range(0, len(records), CHUNK):
                self.check()
                chunk = records[start : start + CHUNK]
                writer.write(chunk)
                place = _place(writer, chunk, place)
                self.places.put(self.name, place)
        except Exception:
            self._writer = None  # the next try starts from a new connection
            raise
        self._offset = end

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
