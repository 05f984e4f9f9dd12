"""Run folders: made once, recognized, refused to others, emptied only on demand."""

import json

import pytest
import toy

from xec_jax.errors import CheckpointError, DiskError
from xec_jax.train.workdir import open_workdir

RECORD = {"geometry": "abc", "events": {"train": "123"}, "events_per_step": 8}


def test_new_and_again(tmp_path):
    folder = tmp_path / "a" / "b"
    assert open_workdir(folder, toy.config(), record=RECORD) is False
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["record"] == RECORD
    assert environment["jax"]
    assert open_workdir(folder, toy.config(), record=RECORD) is True


def test_keys_that_may_change(tmp_path):
    open_workdir(tmp_path / "run", toy.config(), record=RECORD)
    config = toy.config(epochs=99, devices=2, save_every=7)
    config.data.batch_size, config.log.every = 4, 1
    assert open_workdir(tmp_path / "run", config, record=RECORD) is True
    assert json.loads((tmp_path / "run" / "config.json").read_text())["train"]["epochs"] == 99


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (RECORD | {"geometry": "xyz"}, "geometry: 'abc' there, 'xyz' now"),
        (RECORD | {"events": {"train": "456"}}, "hash of the data files.*123.* there, .*456.* now"),
        (RECORD | {"events_per_step": 16}, "events_per_step: 8 there, 16 now"),
    ],
)
def test_other_facts_are_refused(tmp_path, record, message):
    open_workdir(tmp_path / "run", toy.config(), record=RECORD)
    before = (tmp_path / "run" / "environment.json").read_text()
    with pytest.raises(CheckpointError, match=message):
        open_workdir(tmp_path / "run", toy.config(), record=record)
    assert (tmp_path / "run" / "environment.json").read_text() == before


def test_other_config_is_refused_or_overwritten(tmp_path):
    folder = tmp_path / "run"
    open_workdir(folder, toy.config(), record=RECORD)
    (folder / "checkpoints" / "5").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("{}")
    (folder / "notes.txt").write_text("mine")
    other = toy.config()
    other.optim.lr = 1.0
    with pytest.raises(CheckpointError, match=r"optim\.lr: 0\.05 there, 1\.0 now"):
        open_workdir(folder, other, record=RECORD)
    assert (folder / "checkpoints" / "5").exists()
    with pytest.raises(CheckpointError, match="holds no run"):
        open_workdir(folder, other, record=RECORD, overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine", "never deleted"
    (folder / "notes.txt").unlink()
    assert open_workdir(folder, other, record=RECORD, overwrite=True) is False
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "environment.json"]


def test_closed_folder(tmp_path, monkeypatch):
    def closed(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.exists", closed)
    with pytest.raises(DiskError, match="Permission denied"):
        open_workdir(tmp_path / "run", toy.config(), record=RECORD)
