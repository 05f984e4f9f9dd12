"""Copies of a run's record in MLflow, TensorBoard and Weights & Biases.

`metrics.jsonl` is the record. A tracker is a reader of that file: a thread beside the training,
or `sync` afterwards, sends what the tracker has not got yet. It may fail without harm.
"""

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ml_collections import ConfigDict

from xec_jax.config import from_json, nearest
from xec_jax.errors import CheckpointError, ConfigError, DataError
from xec_jax.train import status
from xec_jax.train.hooks import Hook
from xec_jax.train.lock import is_held
from xec_jax.train.trackers import mlflow_writer, tensorboard_writer, wandb_writer
from xec_jax.train.trackers.copier import Copier, OpenWriter, Places
from xec_jax.train.trackers.facts import reason
from xec_jax.train.trackers.hook import Tracker, Trackers

WRITERS: dict[str, OpenWriter] = {
    "mlflow": mlflow_writer.open_run,
    "tensorboard": tensorboard_writer.open_run,
    "wandb": wandb_writer.open_run,
}


def make_trackers(config: ConfigDict, workdir: Path) -> list[Hook]:
    """Returns the hook of the trackers in `log.trackers`; nothing is touched before `on_start`.

    It goes last in the list of hooks: what the others write is copied at the end.

    Raises:
        ConfigError: An unknown name.
    """
    copiers = _copiers(config.log.trackers, workdir)
    return [Trackers([Tracker(copier) for copier in copiers])] if copiers else []


def sync(workdir: Path, names: Sequence[str] = ()) -> None:
    """Copies what trackers lack of a run, in the foreground; one that fails stops no other.

    Args:
        workdir: Folder of a run that is not training at present.
        names: Trackers; those of the run's `log.trackers` if not given.

    Raises:
        ConfigError: No run, no tracker or an unknown one.
        CheckpointError: The run is training, or has begun to; or somebody else copies it.
        DataError: Some trackers cannot be reached.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise ConfigError(f"{workdir} holds no run (no config.json)")

    def check() -> None:
        if is_held(workdir):
            raise CheckpointError(
                f"{workdir}: a process is at work on this run",
                remedy="wait for its end, or stop it",
            )

    names = tuple(names) or tuple(from_json(path.read_text(), str(path)).log.get("trackers", ()))
    if not names:
        expected = "some of " + ", ".join(sorted(WRITERS))
        raise ConfigError(
            f"{path}: log.trackers names no tracker", expected=expected, remedy="--tracker NAME"
        )
    copiers = _copiers(names, workdir, check)
    failed = []
    with _alone(path):
        check()
        state = _last_state(workdir)
        for copier in copiers:
            try:
                copier.finish(state)
            except CheckpointError:
                raise  # the others would do no better
            except Exception as error:
                failed.append(f"{copier.name} took no copy of {workdir}: {reason(error)}")
    if failed:
        raise DataError(
            "\n".join(failed),
            remedy="metrics.jsonl has everything; try again when the tracker can be reached",
        )


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keeps others from copying a run meanwhile: two would send the same steps.

    The lock is one on its config. It hinders no training, and goes with this process.
    """
    # NFS locks only what is open for writing.
    with path.open("r+b" if os.access(path, os.W_OK) else "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(
                f"{path.parent}: somebody is copying this run to its trackers already",
                remedy="wait for the end of that",
            ) from error
        except OSError:
            pass  # a file system without locks
        yield


def _last_state(workdir: Path) -> str:
    """Returns how a run ended that nobody is at work on; `lost` if it could not say so."""
    recorded = status.read(workdir)
    if recorded is None or recorded["state"] in ("registered", "running"):
        return "lost"
    return recorded["state"]


def _copiers(
    names: Sequence[str], workdir: Path, check: Callable[[], None] = lambda: None
) -> list[Copier]:
    for name in names:
        if name not in WRITERS:
            raise ConfigError(
                f"unknown tracker {name!r}",
                expected=nearest(name, WRITERS),
                remedy="correct log.trackers, or --tracker",
            )
    places = Places(workdir)
    return [Copier(name, WRITERS[name], workdir, places, check) for name in dict.fromkeys(names)]
