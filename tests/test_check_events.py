"""The command `check` on events: repeated ones, dead and odd sensors, small chunks."""

import shutil
from functools import partial

import numpy as np
import pytest
from checking import N, S, drop, make_events, problems, run_check, write

from xec_jax.data.dead import read_dead
from xec_jax.data.survey import counts as survey_counts
from xec_jax.data.survey import files as survey_files
from xec_jax.data.survey import sensors as survey_sensors


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return write(tmp_path_factory.mktemp("clean") / "clean.root", make_events())


@pytest.fixture
def run(capsys, tmp_path):
    return partial(run_check, capsys, tmp_path)


def test_files_that_do_not_go_together(clean, tmp_path, run):
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.copy(clean, folder / "a.root")
    shutil.copy(clean, folder / "b.root")
    status, text, result = run(folder)
    assert status == 2
    assert "b.root is a copy of" in problems(result)["error", "same_file"]
    assert ("error", "same_events") not in problems(result)  # said once is enough
    assert "see same_file above" in text

    write(folder / "b.root", make_events())  # the same events, written again
    _, _, result = run(folder)
    assert "60 events come twice" in problems(result)["error", "same_events"]
    assert "entry 0 of" in problems(result)["error", "same_events"]

    write(folder / "b.root", make_events(seed=1))  # numbers begin again in every file
    status, _, result = run(folder)
    assert status == 0
    assert "60 pairs" in problems(result)["warning", "same_numbers"]

    events = make_events(seed=1, run=(9,))
    drop("energyTruth", "xyzVTX")(events)
    write(folder / "b.root", events)
    _, _, result = run(folder)
    assert "branches energyTruth, xyzVTX" in problems(result)["warning", "other_branches"]
    with pytest.raises(KeyError):
        problems(result)["warning", "same_numbers"]


def test_the_same_events_under_another_number_are_found(tmp_path, run):
    for number in (1, 2):
        events = make_events(30, run=(number,))
        events["npho"][:3] = 1e10  # what has no light looks alike and is not the same
        write(tmp_path / f"{number}.root", events)
    _, _, result = run(tmp_path)
    found = problems(result)["error", "same_events"]
    assert "27 events come twice" in found
    assert "run 1, event 3, entry 3 of" in found
    assert "run 2, event 3, entry 3 of" in found


def test_fingerprints_tell_neighboring_values_apart(tmp_path, run):
    """Photons whose bits add up to the same are not the same."""
    events = make_events(2)
    drop("run", "event")(events)
    events["npho"][:] = 64
    events["npho"][0, :2] = 65, 66
    events["npho"][1, :2] = 66, 65
    _, _, result = run(write(tmp_path / "file.root", events))
    assert ("error", "same_events") not in problems(result)


def test_repetitions_are_found_without_numbers(tmp_path, run):
    events = make_events()
    drop("run", "event")(events)
    events["npho"][:3] = 1e10  # no light: these are not each other's repetition
    events["npho"][50] = events["npho"][20]
    _, _, result = run(write(tmp_path / "file.root", events))
    assert "1 events come twice" in problems(result)["error", "same_events"]
    assert "entry 20 of" in problems(result)["error", "same_events"]


def test_dead_sensors_run_by_run(tmp_path, run):
    events = make_events()
    events["npho"][:30, 100:103] = np.nan  # run 7
    events["npho"][30:46, 4700] = 1e10  # 16 of 30 events of run 8
    events["dead"] = np.zeros((N, S), np.int8)
    events["dead"][30:, 4600] = 1
    path = write(tmp_path / "file.root", events)
    _, text, result = run(path, "--dead_list", tmp_path / "dead.txt")
    assert [entry["sensors"] for entry in result["dead_sensors"]] == [
        [5, 100, 101, 102, 4100],
        [5, 4100, 4600, 4700],
    ]
    patterns = read_dead(tmp_path / "dead.txt")
    for entry in result["dead_sensors"]:
        assert np.flatnonzero(patterns[entry["run"]]).tolist() == entry["sensors"]
    assert "in every run" in text
    _, _, result = run(path, "--invalid_above", 0.6)
    assert result["dead_sensors"][1]["sensors"] == [5, 4100, 4600]


def test_events_without_numbers_say_nothing_about_sensors(tmp_path, run):
    events = make_events(100)
    events["npho"][:30] = 1e10  # 60 % of run 7
    events["npho"][50:] = np.nan  # all of run 8
    _, _, result = run(write(tmp_path / "file.root", events))
    (entry,) = result["dead_sensors"]
    assert (entry["run"], entry["events"], entry["sensors"]) == (7, 20, [5, 4100])


def test_runs_with_few_events_are_named(tmp_path, run):
    events = make_events(41)
    events["run"] = np.repeat(np.int32([5, 6, 9]), (20, 20, 1))
    path = write(tmp_path / "file.root", events)
    _, _, result = run(path, "--dead_list", tmp_path / "dead.txt")
    assert "run 9 with less than 20 events" in problems(result)["warning", "few_events"]
    assert "# less than 20 events, may be chance: run 9\n" in (tmp_path / "dead.txt").read_text()


def test_no_number_at_all(tmp_path, run):
    events = make_events(2)
    events["npho"][:] = 1e10
    path = write(tmp_path / "file.root", events)
    _, text, _ = run(path, "--dead_list", tmp_path / "dead.txt")
    assert "no event with a usable number: neither" in text
    events["npho"][:] = 0
    _, text, result = run(write(path, events))
    assert result["files"][0]["scheme"] == {}
    assert "fractions" not in text


def test_hot_and_blind_sensors(tmp_path, run):
    events = make_events()
    events["npho"][:, 2000] = 5000
    events["npho"][:, [50, 4200]] = np.random.default_rng(2).normal(0, 3, (N, 2))
    _, text, result = run(write(tmp_path / "file.root", events))
    assert result["hot_sensors"] == [2000]
    assert result["blind_sensors"] == [50, 4200]
    assert "warning blind_sensors: 2 sensors with numbers" in text
    assert "the neighbors see: 50, 4200" in text


def test_small_chunks_change_nothing(tmp_path, run, monkeypatch):
    n = 30  # more than those in which all sensors are compared
    monkeypatch.setattr(survey_sensors, "ASKED_EVENTS", n // 2)
    monkeypatch.setattr(survey_sensors, "ASKED_STEP", 2)
    monkeypatch.setattr(survey_counts, "SAMPLE", 5000)
    events = make_events(2 * n)
    events["npho"][: n // 2 + 12, 2000] = 5000  # hot in part of the events
    path = write(tmp_path / "file.root", events)
    _, text, whole = run(path)
    assert whole["hot_sensors"] == [2000]
    monkeypatch.setattr(survey_files, "CHUNK_BYTES", 7 * 39000)
    _, text_of_parts, parts = run(path)
    assert parts == whole
    assert text_of_parts == text
