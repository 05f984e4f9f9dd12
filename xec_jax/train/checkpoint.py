"""Saving and restoring the training state with orbax: the newest steps and the best one.

A step becomes visible only when it is complete (temporary folder, manifest, then rename), so a
killed run leaves at worst a temporary folder, which the next start removes. This is the only file
that knows orbax. Of several processes all save and restore; the first one makes folders, renames,
deletes and decides. A save that fails in one process fails in all of them: orbax meets nobody on
its own, it would wait for a process whose disk is full.
"""

import contextlib
import errno
import logging
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

import jax
import orbax.checkpoint as ocp
from jax.sharding import Sharding

from xec_jax.errors import CheckpointError, DiskError
from xec_jax.train.distributed import agree, first_does, index, is_first
from xec_jax.train.optim import parameter_path
from xec_jax.train.rendezvous import Rendezvous
from xec_jax.train.step import TrainState
from xec_jax.train.step_folders import TEMPORARY, StepFolders

log = logging.getLogger(__name__)
T = TypeVar("T")

SAVE_ERRORS = (OSError, ValueError, DiskError)
"""What a save raises, here or in its thread, when the disk does not take it."""
READ_AGAIN_S = (1.0, 5.0, 20.0)
"""Pauses before a read that failed is tried again, in s; after the last one it is given up."""

NOT_DAMAGE = (DiskError, MemoryError, jax.errors.JaxRuntimeError)
"""What reading a step raises without the step being to blame: another start may succeed."""

GOOD, DAMAGED, UNREADABLE = range(3)


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: `checkpoints` folder of the run; made if missing.
        keep_last: How many of the newest steps to keep.
        keep_best: How many of the steps with the lowest validation metric to keep besides. Steps
            with a file `PINNED` in their folder stay in any case.
        read_only: Open for restoring only.

    Raises:
        DiskError: The folder cannot be made.
    """

    def __init__(
        self, folder: Path, *, keep_last: int = 2, keep_best: int = 1, read_only: bool = False
    ) -> None:
        if read_only and not folder.is_dir():
            raise CheckpointError(f"no checkpoints in {folder.parent}", expected=str(folder))
        self.folder, self._keep_last, self._keep_best = folder.absolute(), keep_last, keep_best
        self._files = StepFolders(self.folder)
        self._writer: ocp.AsyncCheckpointer | None = None
        self._saving = 0
        self._rendezvous = Rendezvous()
        self._has_failed = False
        self._remover: threading.Thread | None = None
        if not read_only:
            first_does(self._prepare_folder)
            options = ocp.options.AsyncOptions(
                # Called in the thread of the save, before the folder gets its name.
                post_finalization_callback=self._seal,
                barrier_sync_fn=lambda **meeting: self._rendezvous.wait(**meeting),
                create_directories_asynchronously=False,
            )
            handler = ocp.CompositeCheckpointHandler(
                composite_options=ocp.CompositeOptions(
                    multiprocessing_options=_alone(), async_options=options
                ),
                state=ocp.StandardCheckpointHandler(multiprocessing_options=_alone()),
                meta=ocp.JsonCheckpointHandler(),
            )
            self._writer = ocp.AsyncCheckpointer(
                handler, async_options=options, multiprocessing_options=_alone()
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._writer is None:
            return
        try:
            if kind is None:
                self.wait()
            self._writer.close()
        except SAVE_ERRORS:
            if kind is None:  # otherwise there is an error on its way already
                raise
        finally:
            if self._remover is not None:
                self._remover.join()

    @property
    def steps(self) -> list[int]:
        """Complete steps, ascending."""
        return self._files.steps

    @property
    def best_step(self) -> int | None:
        """The step with the lowest metric among those that have one.

        Raises:
            DiskError: The disk fails to read them.
        """
        return next(iter(_read_patiently(self._files.best)), None)

    def meta(self, step: int) -> dict[str, Any]:
        """Returns the JSON facts saved with a step; `metric` is the one known now."""
        return self._files.facts(step)

    def save(self, state: TrainState, meta: Mapping[str, Any], metric: float | None = None) -> None:
        """Starts saving a state; the write goes on in the background.

        Waits for the save before. If that one failed, this is logged and not raised: it is this
        one that counts now.

        Args:
            state: What to save, under its own step number. Of a step that exists, only the metric
                is entered.
            meta: JSON facts about the run.
            metric: Validation metric, finite; lower is better.

        Raises:
            DiskError: There is no room, or this write failed at once, here or in another process.
        """
        assert self._writer is not None, "opened for reading"
        try:
            self.wait()
        except DiskError as error:
            log.warning("a checkpoint is missed: %s", error)
        step = int(state.step)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        if not first_does(lambda: self._begin(step, metric, size)):
            return
        self._saving, self._rendezvous = step, Rendezvous()
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave({**meta, "metric": metric})
        )
        for has_turn in (is_first(), not is_first()):  # the first one makes the folders
            failure = None
            if has_turn:
                try:
                    self._writer.save(self.folder / str(step), args=args)
                except SAVE_ERRORS as caught:
                    failure = caught
            self._settle(failure)

    def wait(self) -> None:
        """Waits until all saves are on disk, then removes the steps that need not be kept.

        Raises:
            DiskError: The save that was under way failed, here or in another process; nothing of
                it is left.
        """
        if self._writer is None:
            return
        error = None
        try:
            self._writer.wait_until_finished()
        except SAVE_ERRORS as caught:
            error = caught
        self._settle(error)
        self._rendezvous.clear()
        first_does(self._remove_old)

    def _settle(self, error: Exception | None) -> None:
        """Makes all processes take the same way; each comes here, with its error or without one.

        Raises:
            DiskError: One of them has an error.
        """
        if error is not None:
            self._rendezvous.cancel()
        if not agree(int(error is not None)):
            return
        assert self._writer is not None
        with contextlib.suppress(*SAVE_ERRORS):  # a thread that was left alone ends now
            self._writer.wait_until_finished()
        agree(0)  # everybody's thread has ended
        self._has_failed = True
        self._rendezvous.clear()
        first_does(self._files.clear_leftovers)
        raise self._disk_error(error) from error

    def restore(
        self, template: TrainState, sharding: Sharding | TrainState, step: int | None = None
    ) -> TrainState:
        """Restores a state onto devices.

        Takes the newest step that is whole; damaged ones are named in the log and, once an older
        one is found to be good, renamed to `N.corrupt`. A step that merely cannot be read now is
        none of them: that ends the run, and the step stays.

        Args:
            template: A state, or its shapes, of the structure to restore.
            sharding: Where the arrays go: one for all, or a tree of them like the template.
            step: Which step; the newest good one if None.

        Raises:
            CheckpointError: No step can be restored, or shapes and dtypes differ from the
                template.
            DiskError: The disk fails to read a step, also when asked again.
            MemoryError, JaxRuntimeError: There is too little memory.
        """
        self.wait()
        steps = [step] if step is not None else first_does(lambda: self.steps[::-1])
        if not steps:
            raise CheckpointError(f"no complete checkpoint in {self.folder}")
        if isinstance(sharding, Sharding):
            shardings = jax.tree.map(lambda _: sharding, template)
        else:
            shardings = sharding
        target = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), template, shardings
        )
        rejected: dict[int, str] = {}
        for candidate in steps:
            reason = first_does(partial(self._check, candidate, target))
            if reason is None:
                outcome, error = GOOD, None
                try:
                    state = _read_patiently(partial(self._read, candidate, target))
                except NOT_DAMAGE as caught:
                    outcome, error = UNREADABLE, caught
                except Exception as caught:  # orbax raises bare exceptions for damaged files
                    outcome, error = DAMAGED, caught
                worst = agree(outcome)
                if worst == GOOD:
                    if self._writer is not None:
                        first_does(lambda: self._set_aside(list(rejected)))
                    return state
                elsewhere = "another process cannot read it"
                if worst == UNREADABLE:
                    raise error or DiskError(f"step {candidate} in {self.folder}: {elsewhere}")
                reason = _short(error) if error else elsewhere
            rejected[candidate] = f"step {candidate}: {reason}"
            log.warning("checkpoint rejected, %s", rejected[candidate])
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
            CheckpointError: The step is not what was saved.
            DiskError: The disk fails to read it, also when asked again.
            MemoryError, JaxRuntimeError: There is too little memory.
        """
        reason, cause = _read_patiently(partial(self._files.fault, step)), None
        if reason is None:
            try:
                return _read_patiently(partial(self._read_params, step, ema))
            except NOT_DAMAGE:
                raise
            except Exception as error:  # orbax raises bare exceptions for damaged files
                reason, cause = _short(error), error
        raise CheckpointError(
            f"step {step} in {self.folder} cannot be read: {reason}",
            remedy="copy the folder again if it was copied, or choose another step",
        ) from cause

    def _prepare_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._files.clear_leftovers()
        except OSError as error:
            raise DiskError(f"cannot use {self.folder}: {error}") from error

    def _begin(self, step: int, metric: float | None, size: int) -> bool:
        """Tells whether a step is to be written; enters the metric of one that is there."""
        try:
            if step not in self.steps:
                if self._has_failed:  # orbax may have left threads behind that went on writing
                    self._files.clear_leftovers()
                self._files.make_room(size, self._keep_best)
                return True
        except OSError as error:
            raise self._disk_error(error) from error
        if metric is not None:
            self._files.set_metric(step, metric)
        return False

    def _seal(self) -> None:
        """Adds the manifest to the step that has just been written."""
        for path in self.folder.glob(f"{self._saving}{TEMPORARY}*"):
            self._files.seal(path)

    def _remove_old(self) -> None:
        """Takes old steps out of sight; to delete them takes long on a network disk."""
        if self._remover is not None:
            self._remover.join()
        try:
            steps = self._files.removable(self._keep_last, self._keep_best)
            doomed = list(map(self._files.discard, steps))
        except OSError as error:
            log.warning("cannot remove an old checkpoint: %s", error)
            return
        if doomed:
            self._remover = threading.Thread(target=_delete, args=(doomed,), name="remover")
            self._remover.start()

    def _set_aside(self, steps: Iterable[int]) -> None:
        for step in steps:
            self._files.set_aside(step)

    def _disk_error(self, error: Exception | None) -> DiskError:
        reason = "another process could not" if error is None else _short(error)
        try:
            free = f"{shutil.disk_usage(self.folder).free / 1e9:.1f} GB free"
        except OSError as unknown:
            free = str(unknown)
        return DiskError(
            f"cannot save a checkpoint in {self.folder}: {reason}",
            expected=f"room for a state ({free})",
            remedy="free space and start the same command again; earlier steps are intact",
        )

    def _state_path(self, step: int) -> Path:
        return self._files.path(step) / "state"

    def _metadata(self, step: int) -> Any:
        """The saved tree, with shapes and dtypes in place of arrays."""
        metadata = ocp.PyTreeCheckpointHandler().metadata(self._state_path(step))
        return getattr(metadata, "tree", metadata)

    def _read(self, step: int, target: TrainState) -> TrainState:
        """Reads the arrays, matched by path: fields that hold none may differ between versions."""
        wanted = _by_path(target)
        item = _replace(self._metadata(step), wanted)
        with _reader(ocp.StandardCheckpointHandler()) as reader:
            args = ocp.args.StandardRestore(item)
            saved = reader.restore(self._state_path(step), args=args)
        return _replace(target, _by_path(saved))

    def _read_params(self, step: int, ema: bool) -> tuple[Any, bool]:
        """Reads the parameters, or their average where there is one."""
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        saved = self._metadata(step)
        name = "ema" if ema and saved.get("ema") else "params"
        wanted = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), saved[name]
        )
        how = jax.tree.map(lambda _: ocp.ArrayRestoreArgs(sharding=device), wanted)
        restore = ocp.args.PyTreeRestore(
            item={name: wanted}, restore_args={name: how}, partial_restore=True
        )
        with _reader(ocp.PyTreeCheckpointHandler()) as reader:
            return reader.restore(self._state_path(step), args=restore)[name], name == "ema"

    def _check(self, step: int, target: TrainState) -> str | None:
        """Says what is wrong with the files of a step.

        Shapes and dtypes are compared here: orbax casts a wrong dtype without a word.

        Raises:
            CheckpointError: The step is fine, but of another network.
            DiskError: It cannot be read now.
        """
        if fault := _read_patiently(partial(self._files.fault, step)):
            return fault
        try:
            saved = _describe(_read_patiently(partial(self._metadata, step)))
        except NOT_DAMAGE:
            raise
        except Exception as error:  # orbax raises bare exceptions for damaged files
            return _short(error)
        wanted = _describe(target)
        differ = [
            f"{name}: saved {saved.get(name, 'absent')}, wanted {wanted.get(name, 'absent')}"
            for name in sorted(saved | wanted)
            if saved.get(name) != wanted.get(name)
        ]
        if differ:
            more = f" and {len(differ) - 5} more" if len(differ) > 5 else ""
            raise CheckpointError(
                f"step {step} in {self.folder} is another network: {'; '.join(differ[:5])}{more}",
                expected="the network that the config describes",
                remedy="use the config of that run, or start in a new --workdir, with "
                f"--config.train.init_from={self.folder.parent} to take over what fits",
            )
        return None


def _delete(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _alone() -> ocp.options.MultiprocessingOptions:
    """Orbax waits for no other process: there is no end to it if that one fails."""
    return ocp.options.MultiprocessingOptions(active_processes={index()})


def _reader(handler: Any) -> ocp.Checkpointer:
    return ocp.Checkpointer(handler, multiprocessing_options=_alone())


def _read_patiently(action: Callable[[], T]) -> T:
    """Reads; tries again where the disk fails, which says nothing about the files on it.

    Raises:
        DiskError: It goes on failing.
        Exception: Whatever else the action raises, at once.
    """
    pauses = iter(READ_AGAIN_S)
    while True:
        try:
            return action()
        except Exception as error:
            if not _is_of_disk(error):
                raise
            reason, pause = _short(error), next(pauses, None)
            if pause is None:
                raise DiskError(
                    f"a checkpoint cannot be read: {reason}",
                    expected="a disk that answers; its files may be fine and stay as they are",
                    remedy="start the same command again when the disk is back",
                ) from error
        log.warning("%s: trying again in %g s", reason, pause)
        time.sleep(pause)


def _is_of_disk(error: Exception) -> bool:
    """True if a read failed for other reasons than a file that is not there."""
    if isinstance(error, OSError):
        return not isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
    # TensorStore, below orbax, tells the number in its text only.
    numbers = {int(number) for number in re.findall(r"os_error_code='(\d+)'", str(error))}
    return bool(numbers - {errno.ENOENT, errno.ENOTDIR, errno.EISDIR})


def _short(error: Exception) -> str:
    """Both ends of the first line: orbax explains itself in a hundred, the reason comes last."""
    line = str(error).strip().split("\n", 1)[0]
    line = line if len(line) < 250 else f"{line[:100]} ... {line[-140:]}"
    return f"{type(error).__name__}: {line}"


def _by_path(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {parameter_path(path): leaf for path, leaf in leaves}


def _replace(tree: Any, leaves: Mapping[str, Any]) -> Any:
    """The same tree with other leaves, given by path."""
    return jax.tree_util.tree_map_with_path(lambda path, _: leaves[parameter_path(path)], tree)


def _describe(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of every leaf by its path."""
    return {path: (tuple(x.shape), str(x.dtype)) for path, x in _by_path(tree).items()}
