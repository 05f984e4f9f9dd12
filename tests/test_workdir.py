"""Run folders: made once, recognized, refused to others, emptied only on demand."""

import json
import os
import re
import subprocess

import pytest
import toy

from xec_jax.errors import CheckpointError, ConfigError, DiskError
from xec_jax.train import workdir
from xec_jax.train.lock import Lock
from xec_jax.train.migrations import FORMAT
from xec_jax.train.workdir import open_workdir

RECORD = {"geometry": "abc", "events": {"train": "123"}, "events_per_step": 8}


def test_new_and_again(tmp_path):
    folder = tmp_path / "a" / "b"
    assert open_workdir(folder, toy.config(), record=RECORD) is False
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["record"] == RECORD
    assert environment["jax"]
    assert environment["format"] == FORMAT
    assert environment["git"] is None or re.fullmatch(
        r"[0-9a-f]{40}(\+changes)?", environment["git"]
    )
    assert open_workdir(folder, toy.config(), record=RECORD) is True


def test_keys_that_may_change(tmp_path):
    open_workdir(tmp_path / "run", toy.config(), record=RECORD)
    config = toy.config(epochs=99, mesh={"data": 2}, save_every=7)
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


def test_folder_that_may_only_be_read(tmp_path, monkeypatch):
    """Said before anything is compiled; root may write everywhere, so `access` answers for it."""
    open_workdir(tmp_path, toy.config(), record=RECORD)
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(DiskError, match="not writable") as error:
        open_workdir(tmp_path, toy.config(), record=RECORD)
    assert error.value.exit_code == 4


def test_new_data_are_accepted_on_demand(tmp_path, caplog):
    open_workdir(tmp_path, toy.config(), record=RECORD)
    other = RECORD | {"events": {"train": "456"}}
    with pytest.raises(CheckpointError, match="hash of the data files") as error:
        open_workdir(tmp_path, toy.config(), record=other)
    assert "--accept_new_data" in error.value.remedy
    assert open_workdir(tmp_path, toy.config(), record=other, accept_new_data=True) is True
    assert "'123'} then, {'train': '456'} now" in caplog.text
    assert open_workdir(tmp_path, toy.config(), record=other) is True, "from now on the run's own"
    with pytest.raises(CheckpointError, match="events_per_step"):
        open_workdir(
            tmp_path, toy.config(), record=RECORD | {"events_per_step": 9}, accept_new_data=True
        )


def test_resume_never_and_must(tmp_path):
    with pytest.raises(ConfigError, match="resume is 'perhaps'"):
        open_workdir(tmp_path / "run", toy.config(), record=RECORD, resume="perhaps")
    with pytest.raises(CheckpointError, match="no checkpoint to continue from"):
        open_workdir(tmp_path / "run", toy.config(), record=RECORD, resume="must")
    assert not (tmp_path / "run").exists()
    open_workdir(tmp_path / "run", toy.config(), record=RECORD, resume="never")
    open_workdir(tmp_path / "run", toy.config(), record=RECORD, resume="never")
    (tmp_path / "run" / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="holds a run") as error:
        open_workdir(tmp_path / "run", toy.config(), record=RECORD, resume="never")
    assert "--overwrite" in error.value.remedy
    assert open_workdir(tmp_path / "run", toy.config(), record=RECORD, resume="must") is True
    fresh = {"resume": "never", "overwrite": True}
    assert open_workdir(tmp_path / "run", toy.config(), record=RECORD, **fresh) is False


def test_registered_run_that_did_not_start_yet(tmp_path):
    (tmp_path / "status.json").write_text('{"state": "registered"}')
    with Lock(tmp_path):
        assert open_workdir(tmp_path, toy.config(), record=RECORD) is False
    assert (tmp_path / "status.json").exists()
    with Lock(tmp_path):
        assert open_workdir(tmp_path, toy.config(), record=RECORD) is True


def test_overwriting_keeps_the_lock_of_this_job(tmp_path):
    with Lock(tmp_path):
        open_workdir(tmp_path, toy.config(), record=RECORD)
        (tmp_path / "status.json").touch()
        (tmp_path / "trackers.json").touch()
        open_workdir(tmp_path, toy.config(), record=RECORD, overwrite=True)
        names = sorted(path.name for path in tmp_path.iterdir())
        assert names == [".lock", "config.json", "environment.json"]


LEFT = (".config.json.99.tmp", ".status.json.12.tmp", ".lock.takeover", ".lock.new")


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_a_kill_left_of_the_first_start_is_no_run(tmp_path, overwrite):
    for name in LEFT:
        (tmp_path / name).write_text("{")
    with Lock(tmp_path):
        assert open_workdir(tmp_path, toy.config(), record=RECORD, overwrite=overwrite) is False
        names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".lock", "config.json", "environment.json"]


def test_hidden_files_of_others_stay(tmp_path):
    (tmp_path / ".notes.99.tmp").touch()
    with pytest.raises(CheckpointError, match="holds no run"):
        open_workdir(tmp_path, toy.config(), record=RECORD)
    assert (tmp_path / ".notes.99.tmp").exists()


def test_environments_of_earlier_starts_are_kept(tmp_path, monkeypatch):
    def environment():
        open_workdir(tmp_path, toy.config(), record=RECORD)
        return json.loads((tmp_path / "environment.json").read_text())

    def commit(name):
        monkeypatch.setattr(workdir, "git_commit", lambda: name)

    commit("a" * 40)
    first = environment()
    assert first["earlier"] == []
    assert environment() == first, "the same environment, since the same time"
    commit("b" * 40)
    second = environment()
    assert second["git"] == "b" * 40
    (earlier,) = second["earlier"]
    assert earlier["time"] == first["time"]
    assert earlier == {k: v for k, v in first.items() if k not in ("record", "earlier")}
    assert environment() == second
    commit("c" * 40)
    assert [e["git"][0] for e in environment()["earlier"]] == ["a", "b"]
    open_workdir(tmp_path, toy.config(), record=RECORD, overwrite=True)
    assert json.loads((tmp_path / "environment.json").read_text())["earlier"] == []


def test_commit_without_git(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr("subprocess.run", missing)
    assert workdir.git_commit() is None


def test_commit_and_local_changes(monkeypatch):
    answers = iter(["a" * 40 + "\n", " M file\n", "a" * 40 + "\n", ""])

    def git(command, **_):
        return subprocess.CompletedProcess(command, 0, next(answers), "")

    monkeypatch.setattr("subprocess.run", git)
    assert workdir.git_commit() == "a" * 40 + "+changes"
    assert workdir.git_commit() == "a" * 40
