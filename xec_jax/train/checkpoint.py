"""Saving and restoring the training state with orbax: the newest steps and the best one.

A step becomes visible only when it is complete (temporary folder, then rename), so a killed run
leaves at worst a temporary folder, which the next start removes. This is the only file that
knows orbax.
"""

import logging
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from jax.sharding import Sharding
from orbax.checkpoint import checkpoint_managers as managers

from xec_jax.errors import CheckpointError, DiskError
from xec_jax.train.optim import parameter_path
from xec_jax.train.step import TrainState

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: `checkpoints` folder of the run; made if missing.
        keep_last: How many of the newest steps to keep.
        keep_best: How many of the steps with the lowest validation metric to keep besides.
        read_only: Open for restoring only.

    Raises:
        DiskError: The folder cannot be made.
    """

    def __init__(
        self, folder: Path, *, keep_last: int = 2, keep_best: int = 1, read_only: bool = False
    ) -> None:
        if read_only and not folder.is_dir():
            raise CheckpointError(f"no checkpoints in {folder.parent}", expected=str(folder))
        self.folder, self._read_only = folder.absolute(), read_only
        best = managers.BestN(
            get_metric_fn=lambda metrics: metrics["value"],
            reverse=True,
            n=keep_best,
            keep_checkpoints_without_metrics=False,
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=managers.AnyPreservationPolicy(
                [managers.LatestN(max(1, keep_last)), best]
            ),
            best_fn=lambda metrics: metrics["value"],
            best_mode="min",
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            create=not read_only,
        )
        try:
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=options,
                item_handlers={
                    "state": ocp.StandardCheckpointHandler(),
                    "meta": ocp.JsonCheckpointHandler(),
                },
            )
        except OSError as error:
            raise DiskError(f"cannot use {folder}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    @property
    def steps(self) -> list[int]:
        """Complete steps, ascending."""
        return sorted(self._manager.all_steps())

    @property
    def best_step(self) -> int | None:
        """The step with the lowest metric among those saved with one."""
        return self._manager.best_step()

    def save(self, state: TrainState, meta: Mapping[str, Any], metric: float | None = None) -> None:
        """Starts saving a state; the write goes on in the background.

        Args:
            state: What to save, under its own step number. A step that exists is left alone.
            meta: JSON facts about the run.
            metric: Validation metric; lower is better.

        Raises:
            DiskError: This write, or the one before it, failed.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(dict(meta))
        )
        metrics = None if metric is None else {"value": float(metric)}
        try:
            self._manager.save(step, args=args, metrics=metrics, force=True)
        except (OSError, ValueError) as error:
            raise self._disk_error(error) from error

    def wait(self) -> None:
        """Waits until all saves are on disk.

        Raises:
            DiskError: A save failed.
        """
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise self._disk_error(error) from error

    def _disk_error(self, error: Exception) -> DiskError:
        free = shutil.disk_usage(self.folder).free / 1e9
        return DiskError(
            f"cannot save a checkpoint in {self.folder}: {error}",
            expected=f"room for a state ({free:.1f} GB free)",
            remedy="free space and start the same command again; earlier steps are intact",
        )

    def meta(self, step: int) -> dict[str, Any]:
        """Returns the JSON facts saved with a step."""
        restored = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
        return restored["meta"]

    def restore(
        self, template: TrainState, sharding: Sharding, step: int | None = None
    ) -> TrainState:
        """Restores a state onto devices.

        Args:
            template: A state, or its shapes, of the structure to restore.
            sharding: Where each array goes.
            step: Which step; the newest readable one if None.

        Raises:
            CheckpointError: No step can be restored, or shapes and dtypes differ from the
                template.
        """
        steps = [step] if step is not None else self.steps[::-1]
        if not steps:
            raise CheckpointError(f"no complete checkpoint in {self.folder}")
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), template
        )
        rejected: dict[int, str] = {}
        for candidate in steps:
            try:
                self._compare(candidate, target)
                args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
                state = self._manager.restore(candidate, args=args)["state"]
            except CheckpointError:
                raise
            except Exception as error:  # orbax raises bare exceptions for damaged files
                reason = str(error).strip().split("\n", 1)[0][:200]
                rejected[candidate] = f"step {candidate}: {type(error).__name__}: {reason}"
                log.warning("checkpoint rejected, %s", rejected[candidate])
            else:
                self._set_aside(rejected)
                return state
        raise CheckpointError(
            f"no checkpoint in {self.folder} can be read: " + "; ".join(rejected.values()),
            remedy="copy the folder again if it was copied, or start in a new --workdir",
        )

    def restore_params(self, step: int, *, ema: bool = True) -> tuple[Any, bool]:
        """Restores the parameters alone, without knowing their structure.

        Args:
            step: Which step.
            ema: Take the moving average where there is one.

        Returns:
            The parameters on the default device, and whether they are the average.

        Raises:
            CheckpointError: The step cannot be read.
        """
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        try:
            metadata = self._manager.item_metadata(step)["state"]
            saved = getattr(metadata, "tree", metadata)
            name = "ema" if ema and saved.get("ema") else "params"
            wanted = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), saved[name]
            )
            restore = ocp.args.PyTreeRestore(
                item={name: wanted},
                restore_args={
                    name: jax.tree.map(lambda _: ocp.ArrayRestoreArgs(sharding=device), wanted)
                },
                partial_restore=True,
            )
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                params = reader.restore(self.folder / str(step) / "state", args=restore)[name]
        except Exception as error:  # orbax raises bare exceptions for damaged files
            reason = str(error).strip().split("\n", 1)[0][:200]
            raise CheckpointError(
                f"step {step} in {self.folder} cannot be read: {type(error).__name__}: {reason}",
                remedy="copy the folder again if it was copied, or choose another step",
            ) from error
        return params, name == "ema"

    def _set_aside(self, steps: Iterable[int]) -> None:
        """Renames damaged steps to `N.corrupt`, so that the run can save these steps again."""
        if self._read_only or not steps:
            return
        for step in steps:
            (self.folder / str(step)).rename(self.folder / f"{step}.corrupt")
        self._manager.reload()

    def _compare(self, step: int, target: TrainState) -> None:
        """Checks shapes and dtypes first: orbax casts a wrong dtype without a word."""
        metadata = self._manager.item_metadata(step)["state"]
        saved, wanted = _describe(getattr(metadata, "tree", metadata)), _describe(target)
        differ = [
            f"{name}: saved {saved.get(name, 'absent')}, wanted {wanted.get(name, 'absent')}"
            for name in sorted(saved | wanted)
            if saved.get(name) != wanted.get(name)
        ]
        if differ:
            more = f" and {len(differ) - 5} more" if len(differ) > 5 else ""
            raise CheckpointError(
                f"step {step} in {self.folder} is another network: {'; '.join(differ[:5])}{more}",
                remedy="use the config of that run, or start in a new --workdir",
            )


def _describe(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of every leaf by its path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {parameter_path(path): (tuple(x.shape), str(x.dtype)) for path, x in leaves}
