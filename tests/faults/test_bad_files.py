"""F8: bad files among good ones are named, and never change what the good ones give."""

import numpy as np
import pytest
import uproot

from xec_jax.data.root import RootSource
from xec_jax.errors import DataError


def write(path, seed, tree="tree", branches=("npho", "relative_time")):
    rng = np.random.default_rng(seed)
    light = rng.uniform(1, 1000, (6, 4760)).astype(np.float32)
    with uproot.recreate(path) as file:
        file.mktree(tree, {name: ("f4", (4760,)) for name in branches})
        file[tree].extend(dict.fromkeys(branches, light))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for number in range(4):
        write(folder / f"good{number}.root", number)
    return folder


def corrupt(path):
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(2000)
    path.write_bytes(data)


BAD = {
    "corrupt": lambda path: (write(path, 9), corrupt(path)),
    "empty": lambda path: path.touch(),
    "no ROOT file": lambda path: path.write_text("photons"),
    "cut off": lambda path: (write(path, 9), path.write_bytes(path.read_bytes()[:5000])),
    "another tree": lambda path: write(path, 9, tree="events"),
    "another branch": lambda path: write(path, 9, branches=("npho", "t")),
}


def events(source):
    with source:
        n = -(-len(source) // 8)
        return [source.batch(step, size=8, train=False) for step in range(n)]


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_named(good, tmp_path, kind):
    bad = tmp_path / "bad.root"
    BAD[kind](bad)
    files = [*sorted(good.glob("*.root")), bad]
    with pytest.raises(DataError) as error:
        events(RootSource([str(path) for path in files], tree="tree"))
    assert "bad.root" in str(error.value)
    assert "good" not in str(error.value)


def test_without_the_bad_ones_nothing_has_changed(good):
    before = events(RootSource(str(good), tree="tree"))
    after = events(RootSource([str(p) for p in sorted(good.glob("*.root"))], tree="tree"))
    for a, b in zip(before, after, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
