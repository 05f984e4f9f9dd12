"""Checkpoints as files: which steps are there, whether they are whole, which may go.

A step is a folder named by its number. Its manifest lists the size and the sha256 of every file,
because restoring notices neither a flipped bit nor a file of another run. Knows no devices.
"""

import hashlib
import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any

from xec_jax.config import write_text
from xec_jax.errors import CheckpointError, DiskError

log = logging.getLogger(__name__)

MANIFEST = "xec_manifest.json"
METRIC = "xec_metric.json"
"""Holds the metric of a step that was validated after it was saved: what is sealed stays so."""
PINNED = "PINNED"
"""A user's file in the folder of a step, which is then never removed."""
TEMPORARY = ".orbax-checkpoint-tmp"
"""Follows the number in the names of folders that are being written or removed."""
FORMAT = 1

_NOT_LISTED = {MANIFEST, METRIC, PINNED, "_CHECKPOINT_METADATA", "commit_success.txt"}
"""Files that are made or changed after the manifest. Restoring needs none of them."""


class StepFolders:
    """The steps in a folder of checkpoints.

    Attributes:
        folder: Where they are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, step: int) -> Path:
        """Returns the folder of a step."""
        return self.folder / str(step)

    @property
    def steps(self) -> list[int]:
        """Steps, ascending. Whatever else lies in the folder is none of our business."""
        names = [path.name for path in self.folder.iterdir() if path.is_dir()]
        return sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))

    def facts(self, step: int) -> dict[str, Any]:
        """Returns the JSON facts saved with a step, with the metric as known now.

        Raises:
            CheckpointError: They cannot be read.
        """
        try:
            return self._facts(step)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{self.path(step)} cannot be read: {error}") from error

    def metric(self, step: int) -> float | None:
        """Returns the validation metric of a step, None without (or if that is damaged).

        Raises:
            OSError: It cannot be read now: the step may be the best one.
        """
        try:
            metric = self._facts(step)["metric"]
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None
        return metric if isinstance(metric, float | int) and math.isfinite(metric) else None

    def best(self, n: int = 1) -> list[int]:
        """Returns the steps of the lowest metrics, best first, the newer one of equals first."""
        metrics = {step: metric for step in self.steps if (metric := self.metric(step)) is not None}
        return sorted(metrics, key=lambda step: (metrics[step], -step))[:n]

    def seal(self, path: Path) -> None:
        """Writes the manifest of a step whose files are complete.

        Raises:
            DiskError: It cannot be written.
        """
        files = {}
        for file in sorted(path.rglob("*")):
            name = file.relative_to(path).as_posix()
            if file.is_file() and name not in _NOT_LISTED:
                files[name] = {"sha256": _sha256(file), "size": file.stat().st_size}
        manifest = {"format": FORMAT, "files": files}
        write_text(path / MANIFEST, json.dumps(manifest, indent=1) + "\n")

    def set_metric(self, step: int, metric: float) -> None:
        """Enters the metric of a step that was validated after it was saved."""
        write_text(self.path(step) / METRIC, json.dumps({"metric": metric}) + "\n")

    def fault(self, step: int) -> str | None:
        """Reads all files of a step and says what is wrong first, None if nothing is.

        A step without manifest passes with a warning. Files that it does not list are left alone.

        Raises:
            OSError: They cannot be read, which says nothing about them.
        """
        path = self.path(step)
        if path.is_symlink():
            return "the folder is a symbolic link"
        inside = sorted(path.rglob("*"))
        if not inside:
            return "the folder is empty"
        for file in inside:
            if file.is_symlink():
                return f"{file.relative_to(path)} is a symbolic link"
        try:
            manifest = self._manifest(step)
            if manifest is None:
                log.warning("%s has no %s: its files cannot be verified", path, MANIFEST)
                return None
            for name, entry in manifest["files"].items():
                if fault := _fault(path / name, entry["size"], entry["sha256"]):
                    return f"{name} {fault}"
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            return f"{MANIFEST} is damaged: {error}"
        except FileNotFoundError as error:
            return str(error)
        return None

    def removable(self, keep_last: int, keep_best: int) -> list[int]:
        """Returns the steps that are neither among the newest nor the best nor pinned, ascending.

        Args:
            keep_last: How many of the newest stay, at least 1.
            keep_best: How many of the best stay.
        """
        kept = {*self.steps[-max(1, keep_last) :], *self.best(keep_best)}
        steps = [step for step in self.steps if step not in kept]
        return [step for step in steps if not (self.path(step) / PINNED).exists()]

    def discard(self, step: int) -> Path:
        """Takes a step out of sight and returns what is to be deleted; a kill leaves no half."""
        doomed = self.path(step).with_name(f"{step}{TEMPORARY}-removed")
        return self.path(step).rename(doomed)

    def clear_leftovers(self) -> None:
        """Deletes what killed saves and removals left behind."""
        for path in self.folder.glob(f"*{TEMPORARY}*"):
            shutil.rmtree(path, ignore_errors=True)

    def set_aside(self, step: int) -> None:
        """Renames a damaged step to `N.corrupt`, so that the run can save this step again."""
        names = [f"{step}.corrupt", *(f"{step}.corrupt.{k}" for k in range(2, 1000))]
        free = (name for name in names if not (self.folder / name).exists())
        self.path(step).rename(self.folder / next(free))

    def make_room(self, size: int, keep_best: int) -> None:
        """Makes sure that a step can be written.

        Removes leftovers and old steps if it must, oldest first, and only if that is enough.

        Args:
            size: Expected bytes of the step, if there is none before it to go by.
            keep_best: How many of the best steps must stay, besides the newest.

        Raises:
            DiskError: Still too little room.
        """
        steps = self.steps
        needed = int(1.2 * (self._size(steps[-1]) if steps else size))
        if self._free() < needed:
            self.clear_leftovers()
        old = self.removable(1, keep_best)
        while old and self._free() < needed <= self._free() + sum(map(self._size, old)):
            log.warning("%s: step %d removed, the disk is full", self.folder, old[0])
            shutil.rmtree(self.discard(old.pop(0)), ignore_errors=True)
        if (free := self._free()) < needed:
            raise DiskError(
                f"no room for a checkpoint in {self.folder}: {free / 1e6:.1f} MB free",
                expected=f"{needed / 1e6:.1f} MB",
                remedy="free space and start the same command again; earlier steps are intact",
            )

    def _free(self) -> int:
        return shutil.disk_usage(self.folder).free

    def _size(self, step: int) -> int:
        return sum(file.stat().st_size for file in self.path(step).rglob("*") if file.is_file())

    def _facts(self, step: int) -> dict[str, Any]:
        path = self.path(step)
        facts = {"metric": None, **json.loads((path / "meta" / "metadata").read_text())}
        if (late := path / METRIC).exists():
            facts["metric"] = json.loads(late.read_text())["metric"]
        return facts

    def _manifest(self, step: int) -> dict[str, Any] | None:
        path = self.path(step) / MANIFEST
        return json.loads(path.read_text()) if path.exists() else None


def _fault(file: Path, size: int, sha256: str) -> str | None:
    if not file.is_file():
        return "is missing"
    if (found := file.stat().st_size) != size:
        return f"has {found} bytes instead of {size}"
    return "has other contents than when it was saved (sha256)" if _sha256(file) != sha256 else None


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
