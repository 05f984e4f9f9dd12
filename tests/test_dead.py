"""Lists of dead channels: what is read, refused and written; found in data, and taken out of it."""

import numpy as np
import pytest

from xec_jax import defaults
from xec_jax.data.arrays import ArraySource
from xec_jax.data.dead import describe, digest, mask, patterns_of, per_face, read_dead, write_dead
from xec_jax.data.dead_source import DeadSource
from xec_jax.data.open import open_source
from xec_jax.data.root.writer import write_tree
from xec_jax.errors import ConfigError, DataError, DiskError
from xec_jax.geometry import INVALID, make_detector
from xec_jax.nets.augment import Augmentation
from xec_jax.tasks.calorimeter import augmentation_of, record_of

RUNS = (430000, 430001, 430017)


def dead(*ids):
    pattern = np.zeros(4760, bool)
    pattern[list(ids)] = True
    return pattern


def equal(a, b):
    return a.keys() == b.keys() and all((a[run] == b[run]).all() for run in a)


@pytest.fixture
def patterns():
    rng = np.random.default_rng(0)
    return {run: rng.random(4760) < 0.01 * i for i, run in enumerate(RUNS)}  # the first has none


@pytest.fixture
def events():
    """50 events of three runs, without any dead channel, in no order."""
    rng = np.random.default_rng(1)
    return {
        "npho": rng.exponential(100, (50, 4760)).astype(np.float32),
        "time": rng.normal(0, 1e-8, (50, 4760)).astype(np.float32),
        "run": rng.choice(RUNS, 50),
        "event": np.arange(50),
    }


def write(path, text):
    path.write_text(text)
    return path


def test_lists_come_back_as_they_were_written(tmp_path, patterns):
    for written in (patterns, {None: patterns[430001]}, {None: dead()}, {0: dead(0, 4759)}):
        write_dead(tmp_path / "dead.txt", written, ["found in\nrun_*.root"])
        assert equal(read_dead(tmp_path / "dead.txt"), written)
        assert (tmp_path / "dead.txt").read_text().startswith("# found in\n# run_*.root\n")
    assert [path.name for path in tmp_path.iterdir()] == ["dead.txt"]


def test_what_people_write(tmp_path, caplog):
    text = (
        "\ufeff# two runs\n  7\n\n8 # noisy\r\nrun 430000\n4759\n007\nrun 430002\nrun 430000\n5\n"
    )
    found = read_dead(write(tmp_path / "dead.txt", text))
    assert equal(found, {430000: dead(5, 7, 8, 4759), 430002: dead(7, 8)})
    assert "run 430000 begins several times" in caplog.text
    caplog.clear()
    assert equal(read_dead(write(tmp_path / "a", "5\n6\n5\n5\n7\n7\n")), {None: dead(5, 6, 7)})
    assert "2 ids are repeated, such as 5" in caplog.text
    assert equal(read_dead(write(tmp_path / "b", "")), {None: dead()})


@pytest.mark.parametrize(
    "line",
    ["4760", "-1", "1.5", "1e3", "12 13", "12,", "MPPC7", "run", "run 43x", "run 1 2", "9" * 5000],
)
def test_lines_that_are_no_sensors(tmp_path, line):
    path = write(tmp_path / "dead.txt", f"# bad ones\n17\n{line}\n")
    with pytest.raises(DataError, match=r"dead\.txt, line 3.*is no sensor") as error:
        read_dead(path)
    assert "0 to 4759" in error.value.expected
    assert len(str(error.value)) < 400


def test_files_that_are_no_lists(tmp_path):
    (tmp_path / "image").write_bytes(bytes(range(256)))
    for name, why in (("gone.txt", "No such file"), (".", "Is a directory"), ("image", "no text")):
        with pytest.raises(DataError, match=rf"{why}.*working directory"):
            read_dead(tmp_path / name)
    with pytest.raises(DiskError, match="cannot write"):
        write_dead(tmp_path / "no folder" / "dead.txt", {None: dead(1)})
    with pytest.raises(DataError, match="no run to write"):
        write_dead(tmp_path / "dead.txt", {})


def test_an_unknown_run_is_an_error_and_not_an_empty_list(patterns):
    assert mask(patterns, 430001) is patterns[430001]
    with pytest.raises(DataError, match="does not hold run 430010") as error:
        mask(patterns, 430010)
    assert "430000, 430001, 430017" in error.value.expected
    with pytest.raises(DataError, match="does not hold run None"):
        mask(patterns, None)
    always = {None: dead(3)}
    assert mask(always, 430010) is mask(always, None) is always[None]


def test_counts_per_face(patterns):
    sizes = {"inner": 4092, "us": 144, "ds": 144, "outer": 234, "top": 73, "bot": 73}
    assert per_face(np.ones(4760, bool)) == sizes
    assert describe(dead()) == "0 of 4760 sensors dead"
    assert describe(dead(0, 4091, 4742)) == "3 of 4760 sensors dead: inner 2, outer 1"
    for face in make_detector(outer_mode="finegrid").faces:  # the faces that networks see
        ids = face.index if face.kind == "grid" else face.sensors
        counts = per_face(dead(*np.unique(ids)))
        assert counts == dict.fromkeys(sizes, 0) | {face.name: sizes[face.name]}


def test_a_digest_knows_the_content_alone(tmp_path, patterns):
    write_dead(tmp_path / "a", patterns, ["a note"])
    assert digest(read_dead(tmp_path / "a")) == digest(dict(reversed(patterns.items())))
    others = [{None: patterns[430001]}, {1: patterns[430001]}, patterns | {430000: dead(1)}]
    assert len({digest(p) for p in [patterns, *others]}) == 4


def test_the_decision():
    invalid = {1: np.array([0, 5, 6, 10]), 2: np.array([0, 0, 1, 0]), 3: np.zeros(4)}
    found = patterns_of(invalid, {1: 10, 2: 1, 3: 0}, above=0.5)
    assert {run: p.tolist() for run, p in found.items()} == {
        1: [False, False, True, True],
        2: [False, False, True, False],
    }
    assert patterns_of(invalid, {1: 10}, above=0.0)[1].tolist() == [False, True, True, True]
    for above in (-0.1, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="share of invalid events"):
            patterns_of(invalid, {1: 10}, above=above)


@pytest.mark.parametrize("has_runs", [True, False])
def test_dead_sensors_are_taken_out_of_their_runs(events, patterns, has_runs):
    if not has_runs:
        patterns = {None: patterns[430017]}
    plain = ArraySource(events)
    source = DeadSource(plain, patterns)
    assert source.spec == plain.spec
    assert (
        len({source.fingerprint, plain.fingerprint, DeadSource(source, patterns).fingerprint}) == 3
    )
    for train in (True, False):
        steps = source.steps_per_epoch(size=8, train=train)
        assert steps == plain.steps_per_epoch(size=8, train=train)
        for step in (*range(steps), 0):
            batch = source.batch(step, size=8, seed=3, train=train)
            before = plain.batch(step, size=8, seed=3, train=train)
            for i, run in enumerate(before["run"]):  # event by event, as one would on paper
                lost = patterns[int(run) if has_runs else None]
                for name in ("npho", "time"):
                    before[name][i, lost] = 1e10
            assert batch.keys() == before.keys()
            for name, values in before.items():
                np.testing.assert_array_equal(batch[name], values)


def test_events_whose_pattern_nobody_knows(events, patterns):
    without = ArraySource({name: events[name] for name in ("npho", "event")})
    with pytest.raises(DataError, match="do not say theirs"):
        DeadSource(without, patterns)
    batch = DeadSource(without, {None: dead(4)}).batch(0, size=50, train=False)
    assert (batch["npho"][:, 4] == INVALID).all()
    events["run"][-1] = 430018
    source = DeadSource(ArraySource(events), patterns)
    source.batch(0, size=49, train=False)
    with pytest.raises(DataError, match="does not hold run 430018"):
        source.batch(1, size=49, train=False)


def test_a_config_names_the_list(tmp_path, events, patterns, caplog):
    path = tmp_path / "run.root"
    write_tree(path, [{name: events[name] for name in ("npho", "run")}])
    config = defaults.data()
    config.dead_channels = str(tmp_path / "dead.txt")
    write_dead(config.dead_channels, patterns)
    with caplog.at_level("INFO"):
        source = open_source(config, path, wanted=("npho",))
    assert f"run 430001: {describe(patterns[430001])}" in caplog.text
    lost = source.batch(0, size=50, train=False)["npho"] == INVALID
    np.testing.assert_array_equal(lost, np.stack([patterns[int(run)] for run in events["run"]]))
    assert source.report()["seen"] == 50, "what else a source can is passed on"
    assert getattr(DeadSource(ArraySource(events), patterns), "report", None) is None
    source.close()
    write_dead(config.dead_channels, {run: patterns[run] for run in RUNS[:2]})
    with pytest.raises(DataError, match="does not hold run 430017"):
        open_source(config, path, wanted=("npho",))  # and not in the third hour


def test_the_bank_of_a_config(tmp_path, patterns):
    config = defaults.calorimeter()
    assert "dead_patterns" not in record_of(config)
    augment = config.data.augment
    augment.dead_patterns, augment.dead_pattern_share = str(tmp_path / "bank.txt"), 0.25
    with pytest.raises(DataError, match=r"bank\.txt: No such file"):
        augmentation_of(config)
    write_dead(augment.dead_patterns, patterns)
    made = augmentation_of(config)
    assert isinstance(made, Augmentation)
    np.testing.assert_array_equal(made.dead_patterns, np.stack([patterns[run] for run in RUNS]))
    before = record_of(config)["dead_patterns"]
    write_dead(augment.dead_patterns, patterns, ["the same with a comment"])
    assert record_of(config)["dead_patterns"] == before
    write_dead(augment.dead_patterns, patterns | {RUNS[0]: dead(1)})
    assert record_of(config)["dead_patterns"] != before, "resuming with another bank is refused"
    augment.dead_pattern_share = 0.0
    with pytest.raises(ConfigError, match=r"data\.augment\.dead_pattern_share is 0\.0"):
        augmentation_of(config)
