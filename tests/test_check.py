"""The command `check`: a clean file passes, every fault is named, nothing makes it fall over."""

import importlib.util
from functools import partial
from pathlib import Path

import awkward
import numpy as np
import pytest
import uproot
from checking import N, S, drop, make_events, problems, put, rename, run_check, scale, write

from xec_jax import check
from xec_jax.data.dead import read_dead
from xec_jax.data.root.writer import write_tree
from xec_jax.data.survey import files as survey_files
from xec_jax.data.survey.counts import Counts
from xec_jax.errors import ConfigError, DataError, DiskError


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return write(tmp_path_factory.mktemp("clean") / "clean.root", make_events())


@pytest.fixture
def run(capsys, tmp_path):
    return partial(run_check, capsys, tmp_path)


def test_a_clean_file_raises_no_complaint(clean, run):
    status, text, result = run(clean)
    assert status == 0
    assert problems(result) == {}
    assert "OK: 60 events in 1 file" in text.splitlines()[-1]
    assert "npho holds photons; fits npho_scale 1000" in text
    assert "\x1b" not in text


def test_keys_of_the_report(clean, run):
    _, _, result = run(clean)
    assert list(result) == [
        *("format", "verdict", "exit_status", "counts", "settings", "entries", "events_read"),
        *("branches", "dead_sensors", "hot_sensors", "blind_sensors", "problems", "files"),
    ]
    (file,) = result["files"]
    assert list(file) == [
        *("path", "size_bytes", "uuid", "container", "compression", "entries", "events_read"),
        *("first", "last", "runs", "scheme", "branches", "unreadable_branches"),
        *("events_without_light", "problems"),
    ]
    assert (file["entries"], file["container"], file["compression"]) == (N, "TTree", "none")
    assert isinstance(file["branches"]["event"]["max"], int)
    assert (file["first"], file["last"]) == ({"run": 7, "event": 0}, {"run": 8, "event": 59})
    assert file["runs"] == [7, 8]
    assert file["scheme"] == {"npho": "photons"}
    events = make_events()
    npho = file["branches"]["npho"]
    valid = events["npho"][events["npho"] < 9e9]
    assert npho["type"] == "float32[4760]"
    assert (npho["values"], npho["marker"], npho["nan"]) == (N * S, 2 * N, 0)
    assert (npho["min"], npho["max"]) == (valid.min(), valid.max())
    assert npho["median"] == pytest.approx(np.median(valid), rel=0.01)
    assert result["dead_sensors"] == [
        {
            "run": run,
            "events": 30,
            "sensors": [5, 4100],
            "per_face": {"inner": 1, "us": 0, "ds": 0, "outer": 1, "top": 0, "bot": 0},
        }
        for run in (7, 8)
    ]


FAULTS = {  # change, level, kind, words of its line
    "energy in MeV": (scale("energyTruth", 1e3), "error", "energy_unit", "no energy of a photon"),
    "angles in radians": (scale("emiAng", np.pi / 180), "error", "angle_unit", "radians"),
    "times in ns": (scale("relative_time", 1e9), "error", "time_unit", "beyond 1e-05 s"),
    "fractions": (scale("npho", 1e-4), "error", "scheme", "fractions of the brightest"),
    "a broken sensor": (put("npho", (9, 40), 5e8), "warning", "npho_outliers", "5e+08 photons"),
    "dark events": (put("npho", slice(7, 9), 0), "warning", "all_invalid", "entry 7, run 7, even"),
    "NaN sensors": (
        put("npho", (slice(None), slice(99)), np.nan),
        "warning",
        "nan",
        "has 2.1% NaN",
    ),
    "NaN truth": (put("energyTruth", slice(5), np.nan), "error", "truth_invalid", "5 of 60"),
    "1e10 truth": (put("xyzTruth", slice(5), 1e10), "error", "truth_invalid", "xyzTruth"),
    "long emiVec": (scale("emiVec", 2), "error", "vector_norm", "length than 1"),
    "wrong uvw": (put("uvwTruth", (slice(None), 0), 9), "error", "position", "cm against"),
    "wrong angle": (put("emiAng", (slice(None), 1), 30), "error", "direction", "0.1 degrees"),
    "high energy": (put("energyTruth", 3, 0.9), "warning", "energy_range", "0 to 150 MeV"),
    "no times": (put("relative_time", slice(None), 1e10), "warning", "invalid_share", "100 photo"),
    "no run": (drop("run"), "warning", "no_numbers", "no branch run"),
    "no truth": (drop("timeTruth"), "note", "no_truth", "no branch timeTruth"),
    "another name": (rename("npho", "npho2"), "error", "branch", "no branch 'npho' (it has:"),
    "no time branch": (rename("relative_time", "time"), "error", "branch", "'relative_time'"),
    "few sensors": (
        lambda events: events.update(npho=events["npho"][:, :4742]),
        *("error", "branch", "holds 4742 values"),
    ),
    "a sensor that is always broken": (
        put("npho", (slice(None), 77), 5e8),
        *("warning", "npho_outliers", "in single sensors in 60 of 60 events"),
    ),
    "some energies in MeV": (
        lambda events: put("energyTruth", slice(20), 1e3 * events["energyTruth"][:20])(events),
        *("warning", "energy_range", "in 20 of 60 events"),
    ),
    "repeated events": (
        lambda events: [values.__setitem__(slice(20), values[20:40]) for values in events.values()],
        *("error", "same_events", "20 events come twice"),
    ),
    "repeated numbers": (
        put("event", slice(20, 30), 3),
        *("warning", "same_numbers", "10 pairs of run and event"),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(tmp_path, run, fault):
    change, level, kind, words = FAULTS[fault]
    events = make_events()
    change(events)
    status, text, result = run(write(tmp_path / "file.root", events))
    found = problems(result)
    assert words in found[level, kind]
    assert any(line.startswith(f"{level} {kind}: ") and words in line for line in text.split("\n"))
    assert status == (2 if level == "error" else 0)
    assert set(result["counts"]) == {"errors", "warnings", "notes"}
    # The fault is not mistaken for others, but for what it brings along.
    others = {"hot_sensors"} if fault == "a sensor that is always broken" else set()
    assert {kind for _, kind in found} <= {kind, *others}, found


def write_text(path):
    path.write_text("photons")


def write_part(path):
    write(path, make_events(4))
    path.write_bytes(path.read_bytes()[:9000])


def write_jagged(path):
    with uproot.recreate(path) as file:
        rows = awkward.Array([[1.0] * n for n in (5, 4, 5)])
        file["tree"] = {"npho": rows, "relative_time": rows}


def write_ntuple_of_words(path):
    with uproot.recreate(path) as file:
        words = awkward.Array(["a", "b"])
        file.mkrntuple("tree", {"npho": words, "relative_time": words})


def write_another_tree(path):
    write(path, make_events(4), tree="events")


def write_nothing(path):
    with uproot.recreate(path) as file:
        file.mktree("tree", {"npho": ("f4", (S,)), "relative_time": ("f4", (S,))})


def write_damaged(path):
    chunks = [make_events(20, seed=i, first=20 * i, run=(1,)) for i in range(3)]
    for chunk in chunks:  # what does not compress is stored as it is, and cannot be verified
        chunk["npho"], chunk["relative_time"] = chunk["npho"].round(), chunk["npho"] * 0
    write_tree(path, chunks, compression="zlib")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = bytes(3000)
    path.write_bytes(data)


BAD = {
    "not there yet": (lambda path: path.touch(), "file", "is empty (0 bytes)"),
    "text": (write_text, "file", "is not a ROOT file"),
    "cut off": (write_part, "file", "is truncated: 9000 of"),
    "another tree": (write_another_tree, "file", "no tree 'tree' (its trees: events)"),
    "jagged": (write_jagged, "branch", "has a variable length"),
    "words": (write_ntuple_of_words, "branch", "holds no numbers"),
    "no entries": (write_nothing, "empty", "has no entries"),
    "damaged": (write_damaged, "read", "of 60 events are lost"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_gets_a_line_and_the_others_are_read(clean, tmp_path, run, kind, monkeypatch):
    monkeypatch.setattr(survey_files, "CHUNK_BYTES", 20 * 40000)
    make, name, words = BAD[kind]
    make(tmp_path / "bad.root")
    status, text, result = run(tmp_path / "bad.root", clean)
    bad, good = sorted(result["files"], key=lambda file: file["path"] == str(clean))
    found = {problem["kind"]: problem["found"] for problem in bad["problems"]}
    assert words in found[name]
    assert good["events_read"] == N
    assert status == (0 if kind == "no entries" else 2)
    if kind != "no entries":
        assert text.splitlines()[-1].startswith("NOT READY: ")
        assert "repair or leave out" in text
        assert str(tmp_path / "bad.root") in text.splitlines()[-1]
    if kind == "damaged":
        assert 0 < bad["events_read"] < 60


@pytest.mark.parametrize(
    ("branch", "level", "read"),
    [("npho", "error", 50), ("energyTruth", "error", 50), ("nphe", "warning", 60)],
)
@pytest.mark.parametrize("chunk", [20 * 60000, 7 * 60000])
def test_exactly_the_damaged_baskets_are_lost(
    tmp_path, run, branch, level, read, chunk, monkeypatch
):
    monkeypatch.setattr(survey_files, "CHUNK_BYTES", chunk)
    path = tmp_path / "file.root"
    events = make_events()
    rng = np.random.default_rng(3)
    events["nphe"] = rng.uniform(0, 9, (N, S)).astype(np.float32).round(2)
    write_tree(path, [{k: v[i : i + 10] for k, v in events.items()} for i in range(0, N, 10)])
    with uproot.open({str(path): None}) as file:
        basket = file["tree"][branch].basket_chunk_cursor(2)[1].index
    data = bytearray(path.read_bytes())
    data[basket : basket + 6] = bytes(range(100, 106))
    path.write_bytes(data)
    status, _, result = run(path)
    kind = "read" if level == "error" else "read_others"
    found = problems(result)[level, kind]
    assert f"branch '{branch}': entries 20 to 29 cannot be read (" in found
    assert "10 of 60" in found
    assert (status, result["events_read"]) == (2 if level == "error" else 0, read)
    assert result["branches"][branch]["values"] == 50 * (1 if "Truth" in branch else S)
    assert result["branches"]["event"]["values"] == read


def test_reasons_of_unreadable_files_are_all_told(tmp_path, run):
    for name, (make, _, _) in list(BAD.items())[:3]:
        make(tmp_path / f"{name}.root")
    data = bytearray(write(tmp_path / "head.root", make_events(2)).read_bytes())
    data[20:40] = bytes(range(120, 140))
    (tmp_path / "head.root").write_bytes(data)
    _, text, result = run(tmp_path)
    assert result["counts"]["errors"] == 4
    lines = [line for line in text.splitlines() if line.startswith("error")]
    for words in ("is empty", "is not a ROOT file", "is truncated", "header is damaged"):
        assert sum(words in line for line in lines) == 1


def test_components_have_rows_of_their_own(clean, tmp_path, run):
    _, text, result = run(clean, write(tmp_path / "more.root", make_events(seed=4, run=(9,))))
    parts = result["branches"]["emiAng"]["components"]
    assert [(p["values"], p["min"], p["max"]) for p in parts] == [(2 * N, 90, 90), (2 * N, 0, 0)]
    words = [line.split() for line in text.splitlines()]
    assert sum(row[:1] == ["theta"] and row[-4:-1] == ["90"] * 3 for row in words) == 1
    assert [row[0] for row in words if row and row[0] in "uvw"] == ["u", "v", "w"]


def test_names_are_proposed_by_shape_and_sense(tmp_path, run):
    events = make_events()
    rename("npho", "nphoton")(events)
    rename("energyTruth", "energyReco")(events)
    events |= {"npho_max_used": events["timeTruth"], "ch_npho_max": events["event"]}
    _, text, result = run(write(tmp_path / "file.root", events))
    assert "did you mean 'nphoton'?" in text
    assert "no branch energyTruth" in problems(result)["note", "no_truth"]
    assert "energyReco" not in problems(result)["note", "no_truth"]


def test_no_events_at_all(tmp_path, run):
    write_nothing(tmp_path / "nothing.root")
    status, _, result = run(tmp_path / "nothing.root")
    assert status == 2
    assert ("error", "no_events") in problems(result)


def test_what_a_command_line_can_get_wrong(clean, tmp_path):
    with pytest.raises(DataError, match="nothing matches"):
        check.main([str(tmp_path / "no*.root")])
    with pytest.raises(DataError, match=r"(?s)nothing matches.*no1.*nothing matches.*no2"):
        check.main([str(tmp_path / "no1*.root"), str(tmp_path / "no2*.root")])
    for words in (["--max_events", "0"], ["--invalid_above", "1"], ["--figure", "a.gif"]):
        with pytest.raises(ConfigError, match=words[0]):
            check.main([str(clean), *words])


@pytest.mark.parametrize("option", ["--json", "--dead_list", "--figure"])
def test_outputs_are_tried_before_the_files_are_read(clean, tmp_path, option, monkeypatch):
    monkeypatch.setattr(survey_files.Survey, "look", None)  # nothing is read
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(DiskError, match=f"{option} .*cannot be written") as error:
        check.main([str(clean), option, str(tmp_path / "file" / "out.png")])
    assert "folder" in error.value.remedy
    with pytest.raises(ConfigError, match=f"{option} .*is a folder"):
        check.main([str(clean), option, str(tmp_path / "folder.png")])


def test_folders_of_outputs_are_made(clean, tmp_path, run):
    run(clean, "--dead_list", tmp_path / "new" / "dead.txt")
    assert read_dead(tmp_path / "new" / "dead.txt")


def test_all_files_with_an_error_are_named(tmp_path, run):
    for i in range(6):
        path = write(tmp_path / f"f{i}.root", make_events(2, seed=i, run=(i,)))
        if i in (2, 4):
            path.write_bytes(path.read_bytes()[:9000])
    _, text, _ = run(tmp_path)
    lines = [line for line in text.splitlines() if line.startswith("error file: ")]
    assert ["f2.root is truncated" in lines[0], "f4.root is truncated" in lines[1]] == [True, True]
    assert text.count("copy or produce the file again") == 1
    rows = [line.split()[0][-7:] for line in text.splitlines()[2:8]]
    assert rows == [f"f{i}.root" for i in (2, 4, 0, 1, 3, 5)], "bad ones first"


def test_energies_are_labelled_as_they_are(tmp_path, run):
    events = make_events()
    scale("energyTruth", 1e3)(events)
    path = write(tmp_path / "file.root", events)
    status, text, _ = run(path, "--energy_unit", "MeV")
    assert status == 0
    assert any(line.split()[-1] == "MeV" for line in text.splitlines() if "energyTruth" in line)
    status, text, result = run(write(path, make_events()), "--energy_unit", "MeV")
    assert status == 2
    assert " MeV" in problems(result)["error", "energy_unit"]
    assert "data.energy_unit = 'GeV' or 'MeV'" in text


def test_a_name_in_vain_and_a_name_twice(clean, tmp_path, run):
    status, text, result = run(clean, tmp_path / "other*.root", clean.parent)
    assert status == 2
    assert "other*.root" in problems(result)["error", "file"]
    assert "1 file named more than once" in problems(result)["note", "named_twice"]
    assert result["events_read"] == N
    assert "see file above" in text


def test_some_events_of_a_file(clean, run):
    _, text, result = run(clean, "--max_events", 10)
    assert (result["events_read"], result["entries"]) == (10, N)
    assert "10 of 60" in text


def test_the_figure_shows_the_shares(clean, tmp_path, run, monkeypatch):
    from xec_jax.geometry import make_detector
    from xec_jax.plots.sensors import invalid_share

    run(clean, "--figure", tmp_path / "folder" / "invalid.png")
    assert (tmp_path / "folder" / "invalid.png").stat().st_size > 10_000
    share = np.linspace(0, 1, S)
    figure = invalid_share(share, make_detector(), title="Invalid", note=["one", "two"])
    (cells,) = figure.axes[0].collections
    np.testing.assert_allclose(cells.get_array(), 100 * share)  # percent
    assert cells.get_clim() == (0, 100)


def test_an_rntuple(tmp_path, run):
    events = make_events(40)
    with uproot.recreate(tmp_path / "file.root") as file:
        file.mkrntuple("tree", events)
    status, _, result = run(tmp_path / "file.root")
    assert (status, result["files"][0]["container"]) == (0, "RNTuple")
    assert problems(result) == {}


def test_statistics_add_up():
    rng = np.random.default_rng(3)
    values = rng.normal(0, 1, 300_000).astype(np.float32)
    values[:9] = [np.nan, np.inf, -np.inf, 1e10, -1e10, 0, 0, 8e9, 9.1e9]
    whole, a, b = Counts(), Counts(), Counts()
    whole.update(values)
    a.update(values[:1000])
    for part in np.array_split(values[1000:], 7):
        b.update(part)
    a.add(b)
    for counts in (whole, a):
        found = counts.as_dict()
        median = found.pop("median")
        assert median == pytest.approx(np.median(values[9:]), abs=0.01)
        assert found == {
            **{"values": 300_000, "nan": 1, "inf": 2, "marker": 3, "zero": 2},
            **{"negative": int((values[9:] < 0).sum()), "min": values[9:].min(), "max": 8e9},
        }
    empty = Counts()
    empty.update(np.full(3, np.nan))
    assert empty.as_dict()["median"] is empty.as_dict()["min"] is None


@pytest.mark.slow
def test_files_that_others_made(capsys):
    """Every tree of every file of scikit-hep-testdata, with each kind of branch as the input."""
    package = importlib.util.find_spec("skhep_testdata")
    folder = Path(package.origin).parent / "data" if package else Path()
    files = sorted(folder.glob("*.root")) if package else []
    if not files:
        pytest.skip("needs scikit-hep-testdata 0.2.0, the version that comes with its files")
    for path in files:
        trees = [
            name
            for name, kind in uproot.open({str(path): None}).classnames(cycle=False).items()
            if kind in ("TTree", "TNtuple", "ROOT::RNTuple")
        ]
        for tree in ["no such tree", *trees]:
            names = uproot.open({str(path): None})[tree].keys() if tree in trees else []
            for name in ["npho", *names[:: len(names) // 3 or 1]]:
                words = [str(path), "--tree", tree, "--npho_branch", name, "--time_branch", name]
                assert check.main(words) == 2
                lines = capsys.readouterr().out.splitlines()
                assert lines[-1].startswith("NOT READY: ")
                assert any(line.startswith(("error file:", "error branch:")) for line in lines)
