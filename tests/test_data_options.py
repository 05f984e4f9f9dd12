"""What the ROOT source does to events on request: cuts, units, relative light, first doubts."""

import subprocess
import sys

import numpy as np
import pytest
import uproot
import xxhash
from test_data_root import SENSORS, assert_same, make

from xec_jax.data import fiducial
from xec_jax.data.invalid import make_relative, rescale
from xec_jax.data.root.file import RootFile
from xec_jax.errors import ConfigError, DataError

N = 48
LIMITS = {"u": 23.9, "v": 67.9, "w": 38.5}


def chunk(**changes):
    """Events with all kinds of positions, six of them unknown."""
    rng = np.random.default_rng(3)
    uvw = rng.uniform([-40, -100, -5], [40, 100, 50], (N, 3)).astype(np.float32)
    uvw[::16, 0], uvw[5::16, 1] = np.nan, 1e10
    return {
        "npho": rng.uniform(1, 1e4, (N, SENSORS)).astype(np.float32),
        "relative_time": rng.uniform(0, 1e-7, (N, SENSORS)).astype(np.float32),
        "event": np.arange(N, dtype=np.int32),
        "uvwTruth": uvw,
        "energyTruth": rng.uniform(15, 60, N).astype(np.float32),
    } | changes


def write(path, values, baskets=(10, 6)):
    with uproot.recreate(path) as file:
        file.mktree("tree", {k: np.dtype((v.dtype, v.shape[1:])) for k, v in values.items()})
        first = 0
        while first < len(values["event"]):
            for size in baskets:
                file["tree"].extend({k: v[first : first + size] for k, v in values.items()})
                first += size
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "a.root", chunk())


def inside():
    """The cut, written another way."""
    keep = []
    for u, v, w in chunk()["uvwTruth"].tolist():
        keep.append(-23.9 < u < 23.9 and -67.9 < v < 67.9 and 0 <= w <= 38.5)
    return np.flatnonzero(keep)


# The fiducial cut


def test_the_cut_takes_exactly_the_events_inside(path):
    with make(path, fiducial=LIMITS, shuffle_buffer=8) as source:
        assert len(source) == len(inside()) > 8
        steps = source.steps_per_epoch(size=5, train=False)
        batches = [source.batch(k, size=5, train=False) for k in range(steps)]
        rows = {k: np.concatenate([b[k] for b in batches])[: len(inside())] for k in batches[0]}
        np.testing.assert_array_equal(rows["event"], inside())
        for key, name in {"npho": "npho", "time": "relative_time"}.items():
            np.testing.assert_array_equal(rows[key], chunk()[name][inside()])
        report = source.report()
    assert report["cut"] == N - len(inside())
    assert report["seen"] == len(inside())
    assert report["entries"] == N
    assert "uvwTruth" not in source.spec


def test_epochs_of_a_cut_set_are_complete_and_pure(path):
    options = {"fiducial": LIMITS, "shuffle_buffer": 7}
    with make(path, **options) as source:
        steps = source.steps_per_epoch(size=3)
        sequence = [source.batch(k, size=3, seed=1) for k in range(3 * steps)]
    for e in range(3):
        seen = np.concatenate([b["event"] for b in sequence[e * steps : (e + 1) * steps]])
        assert len(set(seen)) == 3 * steps
        assert set(seen) <= set(inside())
    for k in np.random.default_rng(0).permutation(3 * steps)[:6]:
        with make(path, **options) as source:
            assert_same(source.batch(int(k), size=3, seed=1), sequence[k])


def test_what_is_cut_away_completely_is_never_read(tmp_path):
    values = chunk(uvwTruth=np.repeat(np.float32([[0, 0, 9], [30, 0, 9]]), [16, 32], axis=0))
    with make(write(tmp_path / "a.root", values), fiducial={"u": 20}) as source:
        for k in range(8):
            source.batch(k, size=4)
        assert source.stats.events == len(source) == 16


@pytest.mark.parametrize("limits", [{}, {"u": None, "v": None, "w": None}, None])
def test_no_limits_no_cut(path, limits):
    with make(path, fiducial=limits) as source, make(path) as plain:
        assert len(source) == N
        assert source.fingerprint == plain.fingerprint


def test_the_cut_is_part_of_the_fingerprint(path):
    sets = ({}, {"u": 20}, {"u": 20.5}, {"u": 20, "w": 38})
    assert len({make(path, fiducial=limits).fingerprint for limits in sets}) == 4


def test_a_cut_with_nothing_inside(path):
    with pytest.raises(DataError, match=r"none of 48 events(.|\n)*widen the cut"):
        make(path, fiducial={"u": 1e-6})


@pytest.mark.parametrize("limits", [{"x": 3}, {"u": -1}, {"w": 0.0}, {"v": np.nan}])
def test_limits_that_are_none(path, limits):
    with pytest.raises(ConfigError, match="lengths above 0 cm"):
        make(path, fiducial=limits)


def test_a_cut_without_truth(tmp_path):
    values = chunk()
    del values["uvwTruth"]
    with pytest.raises(DataError, match="no branch 'uvwTruth'"):
        make(write(tmp_path / "a.root", values), fiducial=LIMITS)


def test_the_edges_of_the_volume():
    uvw = np.array([[23.9, 0, 1], [-23.8, 0, 0], [0, 0, 38.5], [0, 0, -0.1], [0, 67.9, 1]])
    assert fiducial.inside(uvw, LIMITS).tolist() == [False, True, True, False, False]


# Relative light and units


def test_relative_light_is_made_where_it_is_missing(path):
    options = {"npho_branch": "relative_npho", "derive_relative": True}
    with make(path, **options) as source, make(path) as plain:
        npho = chunk()["npho"]
        found = source.batch(0, size=N, train=False)["npho"]
        np.testing.assert_allclose(found, npho / npho.max(1, keepdims=True), rtol=1e-6)
        assert source.fingerprint != plain.fingerprint


def test_without_leave_the_error_offers_it(path):
    with pytest.raises(DataError, match=r"'relative_npho'(.|\n)*data\.derive_relative=true"):
        make(path, npho_branch="relative_npho")


def test_relative_light_of_odd_events():
    npho = np.float32([[1, 4, 1e10], [-2, 2, 0], [1e10, 1e10, 1e10], [0, -1, 1e10]])
    make_relative(npho)
    expected = [[0.25, 1, 1e10], [-1, 1, 0], [1e10] * 3, [1e10] * 3]
    np.testing.assert_array_equal(npho, np.float32(expected))


def test_energies_in_mev(path):
    with make(path, extra=["energyTruth"], scale={"energyTruth": 1e-3}) as source:
        energy = source.batch(0, size=N, train=False)["energyTruth"]
        np.testing.assert_allclose(energy, chunk()["energyTruth"] / 1000, rtol=1e-6)
        assert source.fingerprint != make(path, extra=["energyTruth"]).fingerprint
    values = np.float32([52.8, 1e10])
    rescale(values, 1e-3)
    np.testing.assert_array_equal(values, np.float32([np.float32(52.8) * np.float32(1e-3), 1e10]))


# Doubts about the first events

LEGACY = {"npho_scheme": "log1p", "npho_scale": 0.58, "npho_scale2": 1.0}


def test_doubts_are_warnings_once(path, caplog):
    with make(path, normalization=LEGACY) as source:
        for k in range(6):
            source.batch(k, size=20)
    assert caplog.text.count("holds photons") == 1


def test_doubts_about_the_scheme_may_be_errors(path):
    with (
        make(path, normalization=LEGACY, strict_scheme=True) as source,
        pytest.raises(DataError, match=r"holds photons(.|\n)*expected"),
    ):
        source.batch(0, size=4)


def test_many_invalid_sensors_are_mentioned(tmp_path, caplog):
    values = chunk()
    values["npho"][:, :3] = 1e10
    with make(write(tmp_path / "a.root", values)) as source:
        source.batch(0, size=4)
    assert caplog.text.count("'npho' is invalid") == 1


def test_invalid_sensors_later_on_are_mentioned_once(tmp_path, caplog):
    values = chunk()
    values["npho"][10:, :3] = 1e10
    with make(write(tmp_path / "a.root", values), shuffle_buffer=16) as source:
        for k in range(6):
            source.batch(k, size=8, train=False)
    assert caplog.text.count("is invalid for 60 % of the sensors in entries 16 to 25") == 1
    assert caplog.text.count("is invalid") == 1


# Dependencies

READ_ALL = """
import sys, awkward, numpy
def refuse(*args, **kwargs): raise AssertionError("awkward arrays are slow")
awkward.Array.__init__ = awkward.from_buffers = awkward.from_numpy = refuse
awkward.contents.NumpyArray.__init__ = refuse
from xec_jax.data.root.source import RootSource
with RootSource(sys.argv[1], n_sensors=int(sys.argv[2]), extra=["event"]) as source:
    assert source.batch(0, size=48, train=False)["event"].tolist() == list(range(48))
assert "jax" not in sys.modules
"""


@pytest.mark.parametrize("kind", ["tree", "ntuple"])
def test_no_awkward_array_is_ever_made(path, tmp_path, kind):
    """The library imports awkward in any case, and asks it for the layout of an RNTuple."""
    if kind == "ntuple":
        path = tmp_path / "n.root"
        with uproot.recreate(path) as file:
            file["tree"] = chunk()
    words = [sys.executable, "-c", READ_ALL, str(path), str(SENSORS)]
    subprocess.run(words, check=True, timeout=100)


def test_checksums_of_pages_are_compared(tmp_path):
    """As ROOT writes them: behind each page, announced in the list of pages."""
    path = tmp_path / "n.root"
    with uproot.recreate(path) as file:
        file["tree"] = chunk()
    content = path.read_bytes()
    out = np.empty((N, SENSORS), np.float32)
    with RootFile(path, "tree") as file:
        column = file.column("npho")
        (page,) = column._ntuple.page_link_list[0][column._column].pages
        size = page.locator.num_bytes
        good = content[page.locator.offset :][:size]
        bad = good[:-1] + bytes([good[-1] ^ 1])
        checksum = xxhash.xxh3_64_intdigest(good).to_bytes(8, "little")
        path.write_bytes(content + good + checksum + bad + checksum)
        page.has_checksum, page.locator.offset = True, len(content)
        file.read_into("npho", out, 0, N)
        np.testing.assert_array_equal(out, chunk()["npho"])
        page.locator.offset = len(content) + size + 8
        with pytest.raises(DataError, match=r"entries 0 to 47 cannot be read .*checksum"):
            file.read_into("npho", out, 0, N)


def test_checksums_of_another_representation_are_compared(tmp_path, monkeypatch):
    """A column that is suppressed in a cluster is stored in another form there."""
    path = tmp_path / "n.root"
    with uproot.recreate(path) as file:
        file["tree"] = chunk()
    with RootFile(path, "tree") as file:
        column = file.column("npho")
        pages = column._ntuple.page_link_list[0]
        other = file.column("energyTruth")._column
        column._forms.append(other)
        pages[column._column].suppressed = True
        pages[other].pages[0].has_checksum = True  # there is none
        with pytest.raises(ValueError, match="checksum"):
            column._verify(0)


def test_a_field_that_was_added_later(tmp_path):
    path = tmp_path / "n.root"
    with uproot.recreate(path) as file:
        file["tree"] = {"npho": np.ones((5, SENSORS), np.float32)}
        file["tree"].extend({"npho": np.ones((4, SENSORS), np.float32)})
    with uproot.update(path) as file:
        file["tree"].add_fields({"z": "float32"})
        light = np.ones((3, SENSORS), np.float32)
        file["tree"].extend({"npho": light, "z": np.float32([1, 2, 3])})
    with make(path, time_branch=None, extra=["z"], shuffle_buffer=4) as source:
        late = source.batch(0, size=12, train=False)["z"]
    assert late.tolist() == [0] * 9 + [1, 2, 3]
