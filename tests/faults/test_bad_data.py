"""F25: what bad data do to a training, row by row of docs/bad_inputs.md.

Each row is the command as a user starts it, in this process and up to the network: config, truth,
sources and every batch of an epoch are real, and only the steps on the devices are left out. It
says which file, tree, branch or line is to blame, what to do, and with which code the command ends.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import awkward
import numpy as np
import pytest
import uproot
from commands import ROOT

from xec_jax import defaults
from xec_jax.data.open import open_source
from xec_jax.errors import run_command
from xec_jax.train import job
from xec_jax.train.__main__ import main

PAGE = ROOT / "docs" / "bad_inputs.md"
EVENTS = 8
MANY = 200  # events of which one or two are up to a percent


def events(n=EVENTS, first=0):
    """Events with all branches that the regression reads."""
    rng = np.random.default_rng(first)
    late = rng.uniform(0, 1e-7, (n, 4760))
    arrays = {
        "npho": np.exp(rng.normal(4, 1.5, (n, 4760))),
        "relative_time": late - late.min(1, keepdims=True),
        "emiAng": rng.uniform((60, -60), (120, 60), (n, 2)),
        "energyTruth": rng.uniform(0.015, 0.06, n),
        "timeTruth": rng.uniform(-10, 10, n),
        "time_min_used": rng.uniform(1e-9, 2e-9, n),
        "uvwTruth": rng.uniform((-20, -60, 0), (20, 60, 10), (n, 3)),
    }
    numbers = {
        "run": np.full(n, 430000, np.int32),
        "event": np.arange(first, first + n, dtype="i4"),
    }
    return {k: v.astype(np.float32) for k, v in arrays.items()} | numbers


def write(path, n=EVENTS, *, first=0, baskets=1, **changed):
    """Writes n events; `changed` has other branches, None for none, functions of the old ones."""
    arrays = events(n, first)
    arrays |= {k: v(arrays[k]) if callable(v) else v for k, v in changed.items()}
    arrays = {k: v for k, v in arrays.items() if v is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = {
        k: "var * float32" if isinstance(v, awkward.Array) else np.dtype((v.dtype, v.shape[1:]))
        for k, v in arrays.items()
    }
    # An open file, since uproot takes a colon in a path for the name of a tree.
    with path.open("w+b") as stream, uproot.recreate(stream, compression=uproot.ZLIB(1)) as file:
        file.mktree("tree", kinds)
        for part in np.array_split(np.arange(n), baskets):
            file["tree"].extend(
                {k: v[part[0] : part[-1] + 1] if n else v for k, v in arrays.items()}
            )
    return path


def cut(path):
    path.write_bytes(path.read_bytes()[:5000])


def spoil(path):
    """Overwrites a part of the second basket of `npho`, which only reading it shows."""
    with uproot.open({str(path): None}) as file:
        seek = int(file["tree"]["npho"].member("fBasketSeek")[1])
    content = bytearray(path.read_bytes())
    content[seek + 100 : seek + 164] = b"\xff" * 64
    path.write_bytes(content)


def put(index, value):
    """Returns a function that sets some entries of an array."""

    def change(old):
        new = old.copy()
        new[index] = value
        return new

    return change


# --- the rows -----------------------------------------------------------------------------------


class Row(NamedTuple):
    """One bad input.

    Attributes:
        make: (folder) -> None; writes what is bad below `folder/data`.
        code: Exit code of the command.
        says: What it must say.
        options: Overrides; `{0}` stands for the folder. The command trains on `data` and validates
            on a good file elsewhere unless they say something else.
        seen: Training events of an epoch with a weight, where something is trained.
    """

    make: Callable[[Path], object]
    code: int
    says: tuple[str, ...]
    options: tuple[str, ...]
    seen: int


def row(code, *says, options=(), seen=EVENTS, n=EVENTS, beside=False, then=None, **changed):
    """A row about a file that differs from a good one, with another one beside it if asked to."""

    def make(folder):
        path = write(folder / "data" / "bad.root", n, **changed)
        if then:
            then(path)
        if beside:
            write(folder / "data" / "good.root", first=50)

    options = (options,) if isinstance(options, str) else options
    return Row(make, code, says, options, seen + EVENTS * (beside and not code))


def linked(path):
    (path.parents[1] / "valid.root").symlink_to(path)


def renamed(path):
    path.parent.rename(path.parents[1] / "größe π")
    path = path.parents[1] / "größe π" / path.name
    path.rename(path.with_name("run 1:tree [a].root"))


def dead_list(code, text, *says):
    """A row about a list of dead channels."""
    options = "data.dead_channels={0}/dead.txt"
    then = lambda path: (path.parents[1] / "dead.txt").write_text(text)  # noqa: E731
    return row(code, *says, options=options, then=then)


SKIP = "data.on_bad_file=skip"
FRACTIONS = ("data.npho_branch=relative_npho", "train.tasks.energy.enabled=false")
LEGACY = ("data.normalization.npho_scale=0.58", "data.normalization.npho_scale2=1.0")
NOT_LEARNED = "train.tasks.{}.enabled=false"

ROWS = {
    # files
    "a path that matches nothing": row(
        2,
        "nothing matches '$XEC_NOWHERE/*.root'",
        "seen from the working directory",
        "an environment variable in it is not set",
        options="data.train=$XEC_NOWHERE/*.root",
    ),
    "a validation file that does not exist": row(
        2, "nothing matches 'gone.root'", "working directory", options="data.valid=gone.root"
    ),
    "the address of a server": row(
        2, "is a URL", "mount", options="data.train=root://host//a.root"
    ),
    "blanks, colons, brackets and other letters in a path": row(
        0, then=renamed, options="data.train={0}/größe π/run 1:tree [a].root"
    ),
    "the same file in training and validation": row(
        0,
        "training and validation share events: 1 file(s), such as",
        "bad.root",
        then=linked,
        beside=True,
        options="data.valid={0}/valid.root",
    ),
    "a bad file among good ones": row(2, "bad.root is truncated: 5000 of", beside=True, then=cut),
    "a bad file with `data.on_bad_file=skip`": row(
        *(0, "bad.root is truncated: 5000 of", "left out"),
        **{"options": SKIP, "beside": True, "then": cut, "seen": 0},
    ),
    "bad files only, with `data.on_bad_file=skip`": row(
        2, "bad.root is truncated: 5000 of", options=SKIP, then=cut
    ),
    "a file that cannot be read half-way": row(
        2, "bad.root", "branch 'npho'", "entries 0 to 7", baskets=2, beside=True, then=spoil
    ),
    "a file that cannot be read half-way with `data.on_bad_file=skip`": row(
        *(0, "bad.root: entries 4 to 7 are in quarantine", "16 entries: 12 seen, 4 skipped in 1"),
        **{"options": SKIP, "baskets": 2, "beside": True, "then": spoil, "seen": 4},
    ),
    "a policy that does not exist": row(
        2, "data.on_bad_file is 'ignore'", options="data.on_bad_file=ignore"
    ),
    # trees
    "a file without a tree, of a killed job": row(
        2,
        "bad.root has no tree 'tree' (its trees: none)",
        "killed?",
        then=lambda path: uproot.recreate(path).close(),
    ),
    "no entries in the only file": row(2, "tree 'tree' has no entries in", "bad.root", n=0),
    "no entries in one of several files": row(
        0, "bad.root: tree 'tree' has no entries; the file is skipped", n=0, beside=True, seen=0
    ),
    # branches
    "no truth for a quantity that is learned": row(
        *(2, "bad.root", "no branch 'emiAng'", NOT_LEARNED.format("angle")), emiAng=None
    ),
    "no truth for a quantity that is not learned": row(
        0, options=NOT_LEARNED.format("angle"), emiAng=None
    ),
    "truth of another shape": row(
        *(2, "bad.root: tree 'tree', branch 'uvwTruth' holds 2 values", "expected: 3 values"),
        NOT_LEARNED.format("uvwFI"),
        uvwTruth=lambda old: old[:, :2],
    ),
    "a branch of variable length": row(
        *(2, "bad.root: tree 'tree', branch 'npho' has a variable length", "fixed-size"),
        npho=lambda old: awkward.Array([old[0][: 4760 - i] for i in range(len(old))]),
    ),
    "a branch of 4742 sensors": row(
        *(2, "bad.root: tree 'tree', branch 'npho' holds 4742 values", "expected: 4760 values"),
        npho=lambda old: old[:, :4742],
    ),
    "a branch that only some files have": row(
        2, "bad.root: tree 'tree' has no branch 'relative_time'", beside=True, relative_time=None
    ),
    "doubles and whole numbers": row(
        0,
        npho=lambda old: old.astype(np.int32),
        relative_time=lambda old: old.astype(np.float64),
        energyTruth=lambda old: old[:, None].astype(np.float64),
    ),
    "no `relative_npho`, but `npho`": row(
        *(2, "bad.root: tree 'tree' has no branch 'relative_npho'", "did you mean 'npho'"),
        "data.derive_relative=true",
        options=FRACTIONS,
    ),
    "no `relative_npho`, with `data.derive_relative`": row(
        0, options=(*FRACTIONS, *LEGACY, "data.derive_relative=true")
    ),
    # numbers of the sensors
    "NaN, infinity, 1e10 among sensors": row(
        *(0, "bad.root: branch 'npho' has 4 NaN or infinite values in entries 0 to 7"),
        "bad.root: branch 'relative_time' has 2 NaN or infinite values",
        npho=put((slice(0, 2), slice(0, 3)), (np.nan, np.inf, 1e10)),
        relative_time=put((0, slice(5, 8)), (np.nan, -np.inf, 1e10)),
    ),
    "an event without any valid sensor": row(0, npho=put(0, 1e10), relative_time=put(0, 1e10)),
    "more than half of the sensors invalid": row(
        *(
            0,
            "bad.root",
            "branch 'npho' is invalid (NaN or above 9e9)",
            "in 8 of 8 events",
            "calibration",
        ),
        npho=put((slice(None), slice(2600)), 1e10),
    ),
    "more than 1e7 photons in a sensor": row(
        *(
            0,
            "bad.root",
            "branch 'npho' goes beyond 1e+07 photons",
            "in 1 of 8 events, such as 3e+07",
        ),
        npho=put((0, 0), 3e7),
    ),
    "times beyond 1e-5 s": row(
        *(
            0,
            "bad.root",
            "branch 'relative_time' goes beyond 1e-05 s in 8 of 8",
            "such as",
            "must be in s",
        ),
        relative_time=lambda old: np.float32(1e9) * old,
    ),
    "photons with the constants for fractions": row(
        *(0, "bad.root", "branch 'npho' holds photons in place of fractions", "npho_scale 1000"),
        options=LEGACY,
    ),
    "fractions with the constants for photons": row(
        *(0, "bad.root", "branch 'npho' holds fractions", "in 8 of 8 events", "npho_scale 0.58"),
        npho=lambda old: old / old.max(),
    ),
    "such constants with `data.strict_scheme`": row(
        *(2, "bad.root", "branch 'npho' holds fractions", "npho_scale 0.58"),
        npho=lambda old: old / old.max(),
        options="data.strict_scheme=true",
    ),
    # truth
    "NaN or 1e10 in the truth of up to 1 % of the events": row(
        *(0, "/data: 1.0% of 200 events have no usable energyTruth, the first is entry 7 of"),
        "2 do not count for train.tasks.energy",
        energyTruth=put([7, 9], (np.nan, 1e10)),
        n=MANY,
        seen=MANY,
    ),
    "NaN or 1e10 in the truth of more events": row(
        *(2, "/data: 1.5% of 200 events have no usable uvwTruth, the first is entry 5 of"),
        NOT_LEARNED.format("uvwFI") + ", or data.allow_bad_truth=true",
        uvwTruth=put((slice(5, 8), 2), np.nan),
        n=MANY,
    ),
    "the same in the second of two files, behind a fiducial cut": row(
        *(2, "/data: 38.5% of 13 events have no usable energyTruth", "the first is entry 3 of"),
        "data/good.root",
        uvwTruth=put((slice(None), 0), 1.0),
        options="data.fiducial.u=15.0",
        then=lambda path: write(
            path.with_name("good.root"),
            uvwTruth=lambda old: np.repeat(np.float32([[16, 0, 1], [1, 0, 1]]), (3, 5), axis=0),
            energyTruth=put(slice(3, None), np.nan),
        ),
    ),
    "NaN or 1e10 in the truth of more events with `data.allow_bad_truth`": row(
        *(0, "/data: 1.5% of 200 events", "3 do not count for train.tasks.uvwFI"),
        options="data.allow_bad_truth=true",
        uvwTruth=put((slice(5, 8), 2), np.nan),
        n=MANY,
        seen=MANY,
    ),
    "a truth without a single number": row(
        *(2, "/data: 100.0% of 8 events have no usable timeTruth", NOT_LEARNED.format("timing")),
        options="data.allow_bad_truth=true",
        timeTruth=lambda old: old + np.float32(1e10),
    ),
    "energies in MeV": row(
        *(
            2,
            "/data: energyTruth is",
            "in 8 of 8 events",
            "GeV, not in MeV",
            "data.energy_unit=MeV",
        ),
        energyTruth=lambda old: np.float32(1e3) * old,
    ),
    "energies in MeV in one of several files": row(
        *(0, "/data: energyTruth is", "in entry 0 of", "bad.root, and like this in 4 of 12 events"),
        n=4,
        beside=True,
        energyTruth=lambda old: np.float32(1e3) * old,
        seen=4,
        options="data.batch_size=12",
    ),
    "energies in MeV with `data.energy_unit=MeV`": row(
        0,
        energyTruth=lambda old: np.float32(1e3) * old,
        options=("data.energy_unit=MeV", "data.valid={0}/data"),
    ),
    "energies in GeV with `data.energy_unit=MeV`": row(
        *(2, "/data: energyTruth is 0.0", "MeV, not in GeV", "data.energy_unit=GeV"),
        options="data.energy_unit=MeV",
    ),
    "another unit than GeV and MeV": row(
        2, "data.energy_unit is 'keV'", "GeV or MeV", options="data.energy_unit=keV"
    ),
    "angles in radians": row(
        *(2, "/data: emiAng is 1.", "in 8 of 8 events", "degrees, not radians"),
        emiAng=lambda old: np.deg2rad(np.minimum(old, 110)),
    ),
    # sizes and cuts
    "one event": row(0, "1 training events", n=1, seen=1),
    "a batch larger than the data": row(0, options="data.batch_size=64"),
    "numbers of runs and events that come twice": row(
        0, then=lambda path: write(path.with_name("again.root")), seen=2 * EVENTS
    ),
    "a cut that no event passes": row(
        2, "none of 8 events", "data.fiducial", options="data.fiducial.u=1e-6"
    ),
    "a cut on a branch that files lack": row(
        *(2, "bad.root: tree 'tree' has no branch 'uvwTruth'"),
        options=("data.fiducial.u=20.0", NOT_LEARNED.format("uvwFI")),
        uvwTruth=None,
    ),
    # dead channels
    "a list of dead channels that does not exist": row(
        *(2, "list of dead channels gone.txt", "working directory"),
        options="data.dead_channels=gone.txt",
    ),
    "a dead channel that no detector has": dead_list(
        2, "# two\n17\n4760\n", "dead.txt, line 3: '4760'", "0 to 4759"
    ),
    "a list of dead channels with words": dead_list(2, "17\nabc\n", "dead.txt, line 2: 'abc'"),
    "a run that a list of dead channels does not know": dead_list(
        2, "run 1\n17\n", "dead.txt does not hold run 430000"
    ),
    "a dead channel that is listed twice": dead_list(
        0, "17\n17\n", "dead.txt: 1 ids are repeated, such as 17"
    ),
    "an empty list of dead channels": dead_list(0, ""),
}


# --- the page -----------------------------------------------------------------------------------


def page():
    """Yields input, exit code and test of all rows in the tables of the page."""
    for line in PAGE.read_text().splitlines():
        if line.startswith("| ") and not line.startswith("| input"):
            what, _, code, test = (cell.strip() for cell in line.strip("|").split("|"))
            yield what, int(code), test.strip("`")


def test_the_page_says_what_happens():
    rows = list(page())
    assert len({what for what, _, _ in rows}) == len(rows)
    own = {what: code for what, code, test in rows if not test}
    assert own == {what: row.code for what, row in ROWS.items()}
    for test in {test for _, _, test in rows if test}:
        file, mark, name = test.partition("::")
        assert mark, f"{test} names no test"
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), test


# --- the command --------------------------------------------------------------------------------


def read_an_epoch(task, config, train, valid, workdir, **_):
    """Stands in for the job: what its network would get must be complete and finite."""
    for name, source in {"train": train, **valid}.items():
        size, is_train, seen = config.data.batch_size, name == "train", 0
        for step in range(source.steps_per_epoch(size=size, train=is_train)):
            batch = source.batch(step, size=size, seed=1, train=is_train)
            assert task.spec.keys() <= batch.keys()
            assert all(np.isfinite(batch[key]).all() for key in task.spec)
            assert np.median(batch.get("energyTruth", 0)) < 0.1, "GeV"
            assert batch["npho"][0].max() == 1 or config.data.npho_branch == "npho"
            seen += int((batch["weight"] > 0).sum())
        print(f"{name}: {seen} events seen")


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    return write(tmp_path_factory.mktemp("good") / "valid.root", 4, first=90)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_row(row, valid, tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job, "run_job", read_an_epoch)
    row.make(tmp_path)
    before = set(tmp_path.iterdir())
    options = [f"data.train={tmp_path / 'data'}", f"data.valid={valid}"]
    options += [option.format(tmp_path) for option in row.options]
    arguments = [f"--config.{option}" for option in options]
    with pytest.raises(SystemExit) as exit_:
        run_command(main, ["--config", f"{ROOT}/configs/regress.py:tiny", *arguments])
    out, err = capsys.readouterr()
    said = out + err + caplog.text
    for words in row.says:
        assert words in said
    assert "Traceback" not in said
    assert exit_.value.code == row.code
    if row.code:
        assert "remedy: " in err if "DataError" in err else "expected: " in err
    else:
        assert f"train: {row.seen} events seen" in out
    assert set(tmp_path.iterdir()) == before, "nothing half-written"


def test_doubles_and_whole_numbers_keep_their_values(tmp_path):
    old = events(3)
    changed = {
        "npho": old["npho"].astype(np.int32),
        "relative_time": old["relative_time"].astype(np.float64),
        "energyTruth": old["energyTruth"][:, None].astype(np.float64),
    }
    path = write(tmp_path / "bad.root", 3, **changed)
    keys = ("npho", "time", "energyTruth")
    with contextlib.closing(open_source(defaults.data(), path, wanted=keys)) as source:
        batch = source.batch(0, size=3, train=False)
    for key, expected in zip(keys, changed.values(), strict=True):
        assert batch[key].dtype == np.float32
        np.testing.assert_array_equal(batch[key], expected.reshape(batch[key].shape).astype("f4"))
