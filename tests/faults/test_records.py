"""F11: a full disk delays the record of a run and neither ends the run nor spoils a line."""

import errno
import io
import shutil
from pathlib import Path

import pytest

from xec_jax.errors import DiskError
from xec_jax.train.records import JsonlFile, read_jsonl


class FullDisk(io.FileIO):
    """Takes some bytes of what is written, then no more."""

    room = 0

    def write(self, data):
        if not FullDisk.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        n = super().write(bytes(data)[: FullDisk.room])
        FullDisk.room -= n
        return n


@pytest.fixture
def full_disk(monkeypatch):
    """A disk that fills up and gets room again: set `room`, in bytes."""
    real = Path.open

    def open_(path, mode="r", *words, **options):
        return FullDisk(path, mode) if mode == "ab" else real(path, mode, *words, **options)

    monkeypatch.setattr(Path, "open", open_)
    return FullDisk


def test_lines_wait_until_there_is_room(tmp_path, caplog, full_disk):
    file = JsonlFile(tmp_path / "metrics.jsonl")
    full_disk.room = 10_000
    file.append({"step": 1})
    full_disk.room = 7  # the next line is torn
    for step in (2, 3, 4):
        file.append({"step": step, "loss": float("nan")})
        assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n', "no half of a line"
        full_disk.room = 0
    assert len(caplog.records) == 1, "one warning is enough"
    full_disk.room = 10_000
    file.append({"step": 5})
    file.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text.count("\n") == 5
    assert '{"step": 3, "loss": null}\n' in text


def test_lines_that_never_find_room_are_reported_at_the_end(tmp_path, full_disk):
    file = JsonlFile(tmp_path / "metrics.jsonl")
    full_disk.room = 0
    file.append({"step": 1})
    file.append({"step": 2})
    with pytest.raises(DiskError, match="No space left") as error:
        file.close()
    assert "last 2 lines" in error.value.expected


@pytest.mark.parametrize("small_disk", ["64k"], indirect=True)
def test_on_a_file_system_that_is_full(small_disk):
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free - 4096))
    file = JsonlFile(small_disk / "metrics.jsonl")
    for step in range(300):
        file.append({"step": step, "split": "train", "loss": 0.5})
    seen = [record["step"] for record in read_jsonl(small_disk / "metrics.jsonl")]
    assert seen == list(range(len(seen)))
    assert 0 < len(seen) < 300
    with pytest.raises(DiskError):
        file.close()
    (small_disk / "filler").unlink()
    file.close()
    assert [record["step"] for record in read_jsonl(small_disk / "metrics.jsonl")] == [*range(300)]
