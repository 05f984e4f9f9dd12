"""Checkpoints that are fine, on a machine that is not: no step is blamed for it."""

import errno
from pathlib import Path

import jax
import pytest
from test_checkpoint_faults import restore, save

from xec_jax.errors import DiskError
from xec_jax.train import checkpoint, step_folders
from xec_jax.train.checkpoint import Checkpoints


def sick(monkeypatch, owner, name, error, *, times):
    """Makes a function that reads step 2 fail so many times."""
    real, left = getattr(owner, name), [error] * times
    monkeypatch.setattr(checkpoint, "READ_AGAIN_S", (0.0, 0.0))

    def fails(*words):
        if left and any(str(word) == "2" or "/2/" in str(word) for word in words):
            raise left.pop()
        return real(*words)

    monkeypatch.setattr(owner, name, fails)


EIO = OSError(errno.EIO, "Input/output error")
STALE = OSError(errno.ESTALE, "Stale file handle")
BELOW = ValueError("UNKNOWN: Error reading local file \"a\": failed [os_error_code='5']")


@pytest.mark.parametrize(
    ("owner", "name", "error"),
    [
        (step_folders, "_sha256", EIO),
        (step_folders, "_sha256", STALE),
        (Checkpoints, "_metadata", EIO),
        (Checkpoints, "_read", STALE),
        (Checkpoints, "_read", BELOW),
    ],
)
def test_disk_that_does_not_answer_is_asked_again_and_no_step_is_blamed(
    tmp_path, monkeypatch, caplog, owner, name, error
):
    save(tmp_path / "c", (1, 2))
    with monkeypatch.context() as patch:
        sick(patch, owner, name, error, times=2)
        assert int(restore(tmp_path / "c").step) == 2
        assert caplog.text.count("trying again") == 2
    with monkeypatch.context() as patch:
        sick(patch, owner, name, error, times=99)
        with pytest.raises(DiskError, match="cannot be read") as caught:
            restore(tmp_path / "c")
        assert caught.value.exit_code == 4
        if name != "_read":
            with (
                Checkpoints(tmp_path / "c", read_only=True) as checkpoints,
                pytest.raises(DiskError, match="cannot be read"),
            ):
                checkpoints.restore_params(2)
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["1", "2"]


@pytest.mark.parametrize(
    "error",
    [MemoryError("2 GB"), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")],
    ids=["host", "device"],
)
def test_too_little_memory_is_no_damage(tmp_path, monkeypatch, error):
    save(tmp_path / "c", (1, 2))
    sick(monkeypatch, Checkpoints, "_read", error, times=1)
    with pytest.raises(type(error), match=str(error)):
        restore(tmp_path / "c")
    assert int(restore(tmp_path / "c").step) == 2, "with more memory"


def test_tensorstore_tells_the_number_of_an_error(tmp_path):
    """The only sign by which a sick disk differs from a damaged file."""
    tensorstore = pytest.importorskip("tensorstore")
    (tmp_path / ".zarray").symlink_to(tmp_path / ".zarray")
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(tmp_path)}}
    with pytest.raises(ValueError, match="symbolic links") as caught:
        tensorstore.open(spec).result()
    assert checkpoint._is_of_disk(caught.value)


def test_best_step_is_not_given_away_while_its_metric_cannot_be_read(tmp_path, monkeypatch, caplog):
    save(tmp_path / "c", (1, 2, 3), metrics=(3.0, 1.0, 2.0))
    with Checkpoints(tmp_path / "c", keep_last=1, keep_best=1) as checkpoints:
        with monkeypatch.context() as patch:
            sick(patch, Path, "read_text", OSError(errno.EIO, "Input/output error"), times=99)
            checkpoints.wait()
        assert checkpoints.steps == [1, 2, 3]
        assert "cannot remove an old checkpoint" in caplog.text
        checkpoints.wait()
        assert checkpoints.steps == [2, 3]
