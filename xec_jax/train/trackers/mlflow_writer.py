"""MLflow: a database file beside the runs, or a server."""

import contextlib
import logging
import os
import re
import socket
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from xec_jax.train.records import Record
from xec_jax.train.trackers.facts import Facts, artifacts, send_each
from xec_jax.train.trackers.names import named

log = logging.getLogger(__name__)

STATUS = {
    "running": "RUNNING",
    "done": "FINISHED",
    "failed": "FAILED",
    **dict.fromkeys(("preempted", "interrupted", "lost"), "KILLED"),
}
FILE = "sqlite:///"
MOUNTS = Path("/proc/mounts")
LOCAL = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "overlay"}
"""File systems that no other machine sees. What is not known counts as shared."""


def open_run(facts: Facts, run_id: str | None) -> "MlflowWriter":
    """Continues a run, or starts one in the experiment `facts.experiment`."""
    connect = _import_mlflow()
    folder = facts.workdir.resolve().parent
    uri = facts.mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI")
    uri = uri or f"sqlite:///{folder}/mlflow.db"
    store = None
    if uri.startswith(FILE):
        path = Path(uri.removeprefix(FILE).partition("?")[0]).absolute()
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _create(path)
        # Beside the database, not in the folder that the process happens to run in.
        store = f"{path.parent}/mlartifacts"
    client = connect(tracking_uri=uri)
    experiment = _experiment(client, facts.experiment, store)
    run = _find(client, run_id)
    is_new = run is None
    if run is None:
        run = client.create_run(experiment, run_name=facts.run_name)
    writer = MlflowWriter(client, run.info.run_id, facts, is_new=is_new)
    writer.describe(run.data.params)
    return writer


class MlflowWriter:
    """An open MLflow run; see `copier.Writer`."""

    def __init__(self, client: Any, run_id: str, facts: Facts, *, is_new: bool) -> None:
        self.client, self.run_id, self.facts, self.is_new = client, run_id, facts, is_new
        self.state = "running" if is_new else None

    def describe(self, old: dict[str, str]) -> None:
        """Sends parameters and tags. MLflow never changes a parameter: a new value is a tag."""
        from mlflow.entities import Param, RunTag

        params = self.facts.params
        tags = dict(self.facts.tags)
        if "git" in tags:
            tags["mlflow.source.git.commit"] = tags["git"].removesuffix("+changes")
        tags |= {f"changed.{k}": v for k, v in params.items() if old.get(k, v) != v}
        for part in _parts([Param(k, v) for k, v in params.items() if k not in old], 100):
            self.client.log_batch(self.run_id, params=part)
        for part in _parts([RunTag(k, v) for k, v in tags.items()], 100):
            self.client.log_batch(self.run_id, tags=part)

    def write(self, records: Sequence[Record]) -> None:
        """Sends metrics with their step and the time at which they were made."""
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, int(1000 * record.get("time", time.time())), record["step"])
            for record in records
            for name, value in named(record).items()
        ]
        for part in _parts(metrics, 1000):
            self.client.log_batch(self.run_id, metrics=part)

    def tell(self, state: str) -> None:
        """Sets the status of the run if it is another one."""
        if state == self.state:
            return
        if state == "running":
            self.client.update_run(self.run_id, status=STATUS[state])
        else:
            self.client.set_terminated(self.run_id, STATUS[state])
        self.state = state

    def close(self) -> None:
        """Uploads the files."""
        send = partial(self.client.log_artifact, self.run_id)
        redacted = partial(self.client.log_dict, self.run_id, self.facts.config, "config.json")
        files: dict[str, Callable[[], object]] = {"config.json": redacted}
        for path in artifacts(self.facts.workdir):
            name = path.relative_to(self.facts.workdir)
            folder = name.parent.as_posix() if name.parent.parts else None
            files[str(name)] = partial(send, str(path), folder)
        send_each(files)


def _import_mlflow() -> Callable[..., Any]:
    """Imports MLflow and sets it up, for all of this process: errors come soon, to the caller only.

    Returns:
        Class of its clients.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the caller tries again
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return MlflowClient


def _experiment(client: Any, name: str, store: str | None) -> str:
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return client.create_experiment(name, artifact_location=store and f"{store}/{name}")
    if experiment.lifecycle_stage != "active":
        log.warning("the experiment %s was deleted in MLflow: restored, as a run needs it", name)
        client.restore_experiment(experiment.experiment_id)
    return experiment.experiment_id


def _find(client: Any, run_id: str | None) -> Any:
    """Returns the run, None if it was deleted there or is in another database."""
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return None
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


def _create(path: Path) -> None:
    """Makes an empty database, all at once.

    MLflow makes its tables in a hundred steps. Of jobs that start together, as a sweep does, each
    would spoil those of the others, and a job that is killed would leave a part.
    """
    with tempfile.TemporaryDirectory() as scratch:
        _import_mlflow()(tracking_uri=f"{FILE}{scratch}/new.db").search_experiments()
        copy = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
        with (
            contextlib.closing(sqlite3.connect(f"{scratch}/new.db")) as new,
            contextlib.closing(sqlite3.connect(copy)) as database,
        ):
            new.backup(database)
            if not _is_shared(path.parent):
                # Jobs may write while others read; a setting that stays with the file.
                database.execute("PRAGMA journal_mode=WAL")
        with contextlib.suppress(FileExistsError):
            os.link(copy, path)  # the first one wins
        copy.unlink()


def _is_shared(folder: Path) -> bool:
    """Tells whether other machines may use a folder too, over which WAL loses what was written."""
    if "SLURM_JOB_ID" in os.environ:
        return True
    folder, kinds = folder.resolve(), {"": "unknown"}
    with contextlib.suppress(OSError):
        for line in MOUNTS.read_text().splitlines():
            _, point, kind, *_ = line.split(" ")
            point = re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), point)
            if folder.is_relative_to(point):
                kinds[point] = kind
    return kinds[max(kinds, key=len)] not in LOCAL


def _parts(items: list[Any], size: int) -> Iterator[list[Any]]:
    """MLflow takes so many at once."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
