"""Finding data files, and what a user reads when one of them is bad."""

import os
import shutil

import awkward
import numpy as np
import pytest
import uproot
from test_data_root import SENSORS, events, make, write, write_five

from xec_jax.data.root.file import RootFile
from xec_jax.data.root.manifest import build_manifest, resolve_paths
from xec_jax.data.root.source import RootSource
from xec_jax.errors import DataError

BRANCHES = {"npho": (SENSORS,), "relative_time": (SENSORS,)}

# Finding files


@pytest.fixture
def tree(tmp_path, monkeypatch):
    names = ["run_10.root", "run_9.root", "notes.txt", "deep/run_2.root", "deep/er/run_1.root"]
    for path in map(tmp_path.joinpath, names):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.setenv("XEC_DATA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("run_9.root", ["run_9.root"]),
        (".", ["run_9.root", "run_10.root"]),
        ("run_*.root", ["run_9.root", "run_10.root"]),
        ("run_*", ["run_9.root", "run_10.root"]),
        ("*", ["deep/run_2.root", "run_9.root", "run_10.root"]),
        ("**/*.root", ["deep/er/run_1.root", "deep/run_2.root", "run_9.root", "run_10.root"]),
        ("~/deep", ["deep/run_2.root"]),
        ("$XEC_DATA/deep/run_?.root", ["deep/run_2.root"]),
        ("${XEC_DATA}", ["run_9.root", "run_10.root"]),
        (["run_10.root", "deep", "./run_10.root"], ["deep/run_2.root", "run_10.root"]),
        ("notes.txt", ["notes.txt"]),
    ],
)
def test_patterns(tree, pattern, expected):
    found = resolve_paths(pattern)
    assert [path.resolve().relative_to(tree).as_posix() for path in found] == expected


def test_a_path_object_and_a_link_to_the_same_file(tree):
    (tree / "again.root").symlink_to(tree / "run_9.root")
    found = resolve_paths([tree / "run_9.root", "again.root"])
    assert len(found) == 1


@pytest.mark.parametrize(
    ("pattern", "fragments"),
    [
        ("", ["empty"]),
        ([], ["no data files"]),
        (["run_9.root", " "], ["empty"]),
        ("missing.root", ["'missing.root'", "working directory {cwd}"]),
        ("missing_*.root", ["'missing_*.root'", "working directory {cwd}"]),
        ("~/missing", ["'~/missing'", "{cwd}/missing"]),
        ("$XEC_NO/x.root", ["$XEC_NO", "environment variable"]),
        ("deep/er/../../empty", ["no .root file in the folder"]),
        ("root://host//file.root", ["URL", "mount"]),
    ],
)
def test_patterns_without_a_file(tree, pattern, fragments):
    (tree / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        resolve_paths(pattern)
    for fragment in [*fragments, "remedy"]:
        assert fragment.format(cwd=os.getcwd()) in str(caught.value)


@pytest.mark.parametrize(
    "name", ["a:b.root", "with blank/x y.root", "größe_π.root", "odd[1]*.root", "tree::x.root"]
)
def test_odd_names_of_files(tmp_path, name):
    path = write(tmp_path / name, [3])
    with make(str(path)) as source:
        assert source.batch(0, size=3, train=False)["event"].tolist() == [0, 1, 2]


# What the manifest knows


def test_the_manifest_describes_the_files(tmp_path):
    write_five(tmp_path)
    optional = {"run": None, "no": ()}
    manifest = build_manifest(resolve_paths(tmp_path), "tree", BRANCHES, optional)
    assert manifest.entries == 60
    assert [file.entries for file in manifest.files] == [12, 1, 20, 10, 17]
    assert [file.path.name for file in manifest.files][:3] == [
        "run_8.root", "run_9.root", "run_10.root"
    ]  # fmt: skip
    assert manifest.files[0].clusters == (0, 5, 8, 12)
    assert manifest.files[0].size == (tmp_path / "run_8.root").stat().st_size
    assert manifest.columns["run"] == ((), np.dtype(np.int32))
    assert "no" not in manifest.columns
    assert [manifest.locate(entry) for entry in (0, 11, 12, 13, 59)] == [
        (0, 0), (0, 11), (1, 0), (2, 0), (4, 16)
    ]  # fmt: skip


def test_the_hash_follows_the_events_and_nothing_else(tmp_path):
    write_five(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    one = build_manifest(resolve_paths(tmp_path / "a"), "tree", BRANCHES)
    copy = build_manifest(resolve_paths(tmp_path / "b"), "tree", BRANCHES)
    assert one.hash() == copy.hash()
    assert len(one.hash()) == 64
    write(tmp_path / "b/run_9.root", [1])
    other = build_manifest(resolve_paths(tmp_path / "b"), "tree", BRANCHES)
    assert other.hash() != one.hash()


def test_files_without_events_are_skipped(tmp_path, caplog):
    write(tmp_path / "a.root", [0])
    write(tmp_path / "b.root", [4])
    with make(tmp_path) as source:
        assert len(source) == 4
    assert "a.root" in caplog.text
    assert "skipped" in caplog.text


def test_other_trees_and_folders_in_a_file(tmp_path):
    write(tmp_path / "a.root", [4], tree="sim/events")
    with make(tmp_path / "a.root", tree="sim/events") as source:
        assert len(source) == 4


# Bad files


def damage(path, position, data=b"\xff" * 64):
    content = bytearray(path.read_bytes())
    content[position : position + len(data)] = data
    path.write_bytes(content)


def tree_of(path, chunk):
    with uproot.recreate(path) as file:
        file.mktree("tree", {k: np.dtype((v.dtype, v.shape[1:])) for k, v in chunk.items()})
        file["tree"].extend(chunk)


def empty_file(path):
    path.write_bytes(b"")


def no_root_file(path):
    path.write_text("run event npho\n" * 100)


def short_text(path):
    path.write_text("hi")


def truncated(path):
    write(path, [5])
    path.write_bytes(path.read_bytes()[:-100])


def broken_header(path):
    write(path, [5])
    damage(path, 100, b"\xff" * 200)


def other_tree(path):
    write(path, [5], tree="trees")


def no_tree(path):
    with uproot.recreate(path) as file:
        file["note"] = "nothing here"


def tree_is_text(path):
    with uproot.recreate(path) as file:
        file["tree"] = "not a tree"


def no_branch(path):
    chunk = events(0, 5)
    chunk["relative_npho"] = chunk.pop("npho")
    tree_of(path, chunk)


def wrong_length(path):
    tree_of(path, events(0, 5) | {"npho": np.ones((5, 4), np.float32)})


def scalar(path):
    tree_of(path, events(0, 5) | {"npho": np.ones(5, np.float32)})


def jagged(path):
    rows = awkward.Array([[1.0] * n for n in (5, 4, 5)])
    with uproot.recreate(path) as file:
        file.mktree("tree", {"npho": "var * float32", "relative_time": np.dtype(("f4", (5,)))})
        file["tree"].extend({"npho": rows, "relative_time": np.ones((3, 5), np.float32)})


def jagged_ntuple(path):
    rows = awkward.Array([[1.0] * n for n in (5, 4, 5)])
    with uproot.recreate(path) as file:
        file["tree"] = {"npho": rows, "relative_time": np.ones((3, 5), np.float32)}


def texts(path):
    with uproot.recreate(path) as file:
        file["tree"] = {"npho": awkward.Array(["a", "b"]), "relative_time": np.ones((2, 5))}


def no_events(path):
    write(path, [0])


def wrong_extra(path):
    tree_of(path, events(0, 5) | {"event": np.ones((5, 2), np.int32)})


BAD_FILES = {
    empty_file: ["is empty (0 bytes)", "copy"],
    no_root_file: ["is not a ROOT file", "b'run '", "copy"],
    short_text: ["is not a ROOT file", "copy"],
    truncated: ["is truncated", "bytes", "copy"],
    broken_header: ["be.root", "copy"],
    other_tree: ["no tree 'tree'", "its trees: trees", "did you mean 'trees'?"],
    no_tree: ["no tree 'tree'", "its trees: none", "killed?"],
    tree_is_text: ["no tree 'tree'", "its trees: none"],
    no_branch: ["tree 'tree'", "no branch 'npho'", "it has: ", "did you mean 'relative_npho'?"],
    wrong_length: ["branch 'npho' holds 4 values", "expected: 5 values"],
    scalar: ["branch 'npho' holds one value", "expected: 5 values"],
    jagged: ["branch 'npho' has a variable length", "fixed-size"],
    jagged_ntuple: ["branch 'npho' has a variable length", "fixed-size"],
    texts: ["branch 'npho'", "holds no numbers"],
    no_events: ["no entries", "at least one event"],
    wrong_extra: ["branch 'event' holds 2 values", "expected: one value"],
}


@pytest.mark.parametrize("spoil", BAD_FILES, ids=lambda f: f.__name__)
def test_bad_files_are_found_before_anything_starts(tmp_path, spoil):
    bad = tmp_path / "maybe.root"
    spoil(bad)
    with pytest.raises(DataError) as caught:
        make(bad, extra={"event": ()})
    for fragment in [*BAD_FILES[spoil], str(bad), "remedy"]:
        assert fragment in str(caught.value)


@pytest.mark.parametrize(
    "spoil", [spoil for spoil in BAD_FILES if spoil is not no_events], ids=lambda f: f.__name__
)
def test_one_bad_file_among_good_ones(tmp_path, spoil):
    write(tmp_path / "good.root", [5])
    spoil(tmp_path / "maybe.root")
    with pytest.raises(DataError, match=r"maybe\.root"):
        make(tmp_path, extra={"event": ()})


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"gone\.root cannot be opened"):
        build_manifest([tmp_path / "gone.root"], "tree", BRANCHES)


def test_the_default_is_the_whole_detector(tmp_path):
    write(tmp_path / "a.root", [2], sensors=4742)
    with pytest.raises(DataError, match=r"holds 4742 values(.|\n)*expected: 4760 values"):
        RootSource(tmp_path / "a.root")


@pytest.mark.parametrize("first_has_it", [True, False])
def test_an_extra_branch_that_some_files_lack(tmp_path, first_has_it):
    with_it, without = events(0, 5), events(0, 5)
    del without["uvwTruth"]
    tree_of(tmp_path / "a.root", with_it if first_has_it else without)
    tree_of(tmp_path / "b.root", without if first_has_it else with_it)
    with pytest.raises(DataError, match=r"b\.root(.|\n)*'uvwTruth'"):
        make(tmp_path, extra=["uvwTruth"])


# Bad bytes in the middle of a file, which opening does not show


def damaged(path, kind):
    """Damages the third of four baskets of `npho`, each of 10 events; returns the file."""
    write(path, [10] * 4, sensors=200, kind=kind, codec=uproot.ZLIB(1))
    with uproot.open({str(path): None}) as file:
        tree = file["tree"]
        if kind == "tree":
            seek = tree["npho"].member("fBasketSeek")[2] + 100
        else:
            column = tree.to_akform(filter_name=["npho"])[0].content("npho").content.form_key
            number = int(column.split("-")[1])
            seek = tree.page_link_list[2][number].pages[0].locator.offset + 10
    damage(path, int(seek))
    return path


@pytest.mark.parametrize("kind", ["tree", "ntuple"])
def test_a_read_error_names_the_entries(tmp_path, kind):
    path = damaged(tmp_path / "a.root", kind)
    with make(path, n_sensors=200, shuffle_buffer=10) as source:
        for k in range(4):
            source.batch(k, size=5, train=False)
        for _ in range(2):  # asking again does not hide it
            with pytest.raises(DataError) as caught:
                source.batch(4, size=5, train=False)
            for fragment in (str(path), "branch 'npho'", "entries 20 to 29", "remedy"):
                assert fragment in str(caught.value)
        good = source.batch(7, size=5, train=False)
        assert good["event"].tolist() == list(range(35, 40))


def test_a_file_that_vanishes(tmp_path):
    path = write(tmp_path / "a.root", [4])
    with make(path) as source:
        path.unlink()
        with pytest.raises(DataError, match=r"a\.root"):
            source.batch(0, size=2)


@pytest.mark.parametrize("value", [1e10, 0.0, -3.0, np.nan])
def test_a_first_chunk_without_valid_sensors(tmp_path, value):
    chunk = events(0, 6) | {"npho": np.full((6, SENSORS), value, np.float32)}
    tree_of(tmp_path / "a.root", chunk)
    with make(tmp_path / "a.root") as source, pytest.raises(DataError) as caught:
        source.batch(0, size=2)
    for fragment in ("a.root", "branch 'npho'", "no valid sensor", "entries 0 to 5", "remedy"):
        assert fragment in str(caught.value)


def test_absent_branches_are_mentioned(tmp_path, caplog):
    write(tmp_path / "a.root", [4])
    with make(tmp_path, extra=["event", "uvwReco"]) as source:
        assert "uvwReco" not in source.spec
    assert "uvwReco" in caplog.text


@pytest.mark.parametrize("first_has_it", [True, False])
@pytest.mark.parametrize("kind", ["absent", "other"])
def test_no_file_is_left_out_for_an_extra_branch(tmp_path, caplog, first_has_it, kind):
    names = ["a.root", "b.root", "c.root"]
    without = events(0, 5) | {"uvwTruth": np.ones((5, 2), np.float32)}
    if kind == "absent":
        del without["uvwTruth"]
    for number, name in enumerate(names):
        tree_of(tmp_path / name, events(0, 5) if (number == 0) == first_has_it else without)
    extra = {"uvwTruth": (3,), "event": ()}
    with make(tmp_path, extra=extra, on_bad_file="skip") as source:
        assert set(source.spec) == {"npho", "time", "event", "weight"}
        assert len(source) == 15
        assert source.report()["bad_files"] == {}
    assert "events come without 'uvwTruth'" in caplog.text
    caplog.clear()
    with make(tmp_path, extra=extra, real=["uvwTruth"], on_bad_file="skip") as source:
        assert "uvwTruth" in source.spec, "files without what a network needs are left out"
        assert len(source) == (5 if first_has_it else 10)


def test_messages_name_some_branches_and_not_thousands(tmp_path):
    tree_of(tmp_path / "a.root", {f"branch_{i}": np.ones(2) for i in range(30)})
    with pytest.raises(DataError, match="it has: branch_0, ") as caught:
        make(tmp_path)
    assert "branch_19, ...)" in caught.value.found
    assert "branch_20" not in caught.value.found


def test_a_part_of_a_branch_by_its_own_name(tmp_path, monkeypatch):
    tree_of(tmp_path / "a.root", events(0, 5))
    with RootFile(tmp_path / "a.root", "tree") as file:
        whole = file._tree
        names = {"evt/npho": "npho", "evt/t": "run", "old/t": "event"}
        monkeypatch.setattr(file, "_names", dict.fromkeys(names))
        monkeypatch.setattr(file, "_tree", {k: whole[v] for k, v in names.items()})
        assert file.has("npho")
        assert file.column("npho").shape == file.column("evt/npho").shape == (SENSORS,)
        assert not file.has("pho")
        with pytest.raises(DataError, match=r"2 branches 't'(.|\n)*evt/t, old/t"):
            file.column("t")
