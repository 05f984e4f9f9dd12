"""Copies of a run's record in MLflow, TensorBoard and Weights & Biases.

`metrics.jsonl` is the record. A tracker is a reader of that file: a thread beside the training,
or `sync` afterwards, sends what the tracker has not got yet. It may fail without harm.
"""

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from xec_jax.config import from_json, nearest
from xec_jax.errors import CheckpointError, ConfigError, DataError, XecError
from xec_jax.train import status
from xec_jax.train.hooks import Hook
from xec_jax.train.lock import is_held
from xec_jax.train.trackers import mlflow_writer, tensorboard_writer, wandb_writer
from xec_jax.train.trackers.copier import Copier, OpenWriter, Places, Tracker, reason

WRITERS: dict[str, OpenWriter] = {
    "mlflow": mlflow_writer.open_run,
    "tensorboard": tensorboard_writer.open_run,
    "wandb": wandb_writer.open_run,
}


def make_trackers(config: ConfigDict, workdir: Path) -> list[Hook]:
    """Returns a hook for each name in `log.trackers`; nothing is touched before `on_start`.

    They go last in the list of hooks: what the others write is copied at the end.

    Raises:
        ConfigError: An unknown name.
    """
    return [Tracker(copier) for copier in _copiers(config.log.trackers, workdir)]


def sync(workdir: Path, names: Sequence[str] = ()) -> None:
    """Copies what trackers lack of a run, in the foreground.

    Args:
        workdir: Folder of a run that is not training at present.
        names: Trackers; those of the run's `log.trackers` if not given.

    Raises:
        ConfigError: No run, no tracker or an unknown one.
        CheckpointError: The run is training.
        DataError: A tracker cannot be reached.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise ConfigError(f"{workdir} holds no run (no config.json)")
    if is_held(workdir):
        raise CheckpointError(
            f"{workdir}: a process is at work on this run", remedy="wait for its end, or stop it"
        )
    names = tuple(names) or tuple(from_json(path.read_text(), str(path)).log.get("trackers", ()))
    if not names:
        expected = "some of " + ", ".join(sorted(WRITERS))
        raise ConfigError(f"{path}: log.trackers names no tracker", expected=expected)
    recorded = status.read(workdir)
    state = recorded["state"] if recorded else None
    for copier in _copiers(names, workdir):
        try:
            copier.finish(state)
        except XecError:
            raise
        except Exception as error:
            raise DataError(
                f"{copier.name} took no copy of {workdir}: {reason(error)}",
                remedy="the run itself is complete; try again when the tracker can be reached",
            ) from error


def _copiers(names: Sequence[str], workdir: Path) -> list[Copier]:
    for name in names:
        if name not in WRITERS:
            raise ConfigError(f"log.trackers names {name!r}", expected=nearest(name, WRITERS))
    places = Places(workdir)
    return [Copier(name, WRITERS[name], workdir, places) for name in dict.fromkeys(names)]
