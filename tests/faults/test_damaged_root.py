"""Fuzz: whatever happens to the bytes of a ROOT file, it is an error, quarantine, or harmless.

Each trial damages the second of three files at a random place and reads everything. Allowed are a
`DataError` that names the file; under `skip`, a report in which every entry is accounted for; or
data as if nothing had happened.

Numbers that change silently are counted. Light and times must not where their blocks have a
checksum: LZ4, ZLIB, LZMA, and ZSTD as `write_tree` writes it. ZSTD as others write it has none, nor
have numbers that are not compressed. ROOT adds checksums to the pages of RNTuples, uproot does
not. Identifiers are so few that they are stored as they are, without a checksum, in every codec.
"""

import contextlib
import signal
import warnings
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import uproot

from xec_jax.data.root.source import RootSource
from xec_jax.data.root.writer import write_tree
from xec_jax.errors import DataError

CODECS = {
    "none": None,
    "lz4": uproot.LZ4(1),
    "zstd": uproot.ZSTD(1),
    "zlib": uproot.ZLIB(1),
    "lzma": uproot.LZMA(1),
}
CASES = [(kind, codec) for kind in ("tree", "ntuple") for codec in CODECS] + [("tree", "ours")]
SAFE = {"lz4", "zlib", "lzma", "ours"}
LONGEST_S = 60  # more is a hang, however busy the machine is
COUNT, SENSORS = 24, 300
BASKETS = (10, 8, 6)
DAMAGED = slice(COUNT, 2 * COUNT)


def make_events():
    """Three files' worth of numbers that compress as real ones do."""
    rng = np.random.default_rng(0)
    shape = (3 * COUNT, SENSORS)
    return {
        "npho": rng.poisson(40, shape).astype(np.float32) + 1,
        "relative_time": (rng.integers(0, 500, shape) * 1e-10).astype(np.float32),
        "run": np.full(len(range(3 * COUNT)), 7, np.int32),
        "event": np.arange(3 * COUNT, dtype=np.int32),
    }


EVENTS = make_events()


def write(path, first, kind, codec):
    cuts = np.cumsum([first, *BASKETS])
    chunks = [{k: v[a:b] for k, v in EVENTS.items()} for a, b in pairwise(cuts)]
    if codec == "ours":
        write_tree(path, chunks)
        return
    with uproot.recreate(path, compression=CODECS[codec]) as file:
        for chunk in chunks:
            if "tree" in file:
                file["tree"].extend(chunk)
            elif kind == "tree":
                layout = {k: np.dtype((v.dtype, v.shape[1:])) for k, v in chunk.items()}
                file.mktree("tree", layout)
                file["tree"].extend(chunk)
            else:
                file["tree"] = chunk


def read_all(folder, policy):
    """Returns the rows that count, the report and the length; reads in the order of the files."""
    options = {"n_sensors": SENSORS, "extra": ("run", "event"), "smallest_read": 1}
    with RootSource(folder, on_bad_file=policy, **options) as source:
        steps = source.steps_per_epoch(size=16, train=False)
        batches = [source.batch(k, size=16, train=False) for k in range(steps)]
        rows = {k: np.concatenate([batch[k] for batch in batches]) for k in batches[0]}
        counts = rows["weight"] > 0
        return {k: v[counts] for k, v in rows.items()}, source.report(), len(source)


def judge(rows, report, size):
    """Returns what became of the data; fails if anything is lost without a word."""
    assert report["seen"] + report["skipped"] == report["entries"] == size
    assert len(rows["npho"]) == report["served"] == report["seen"]
    good = np.ones(3 * COUNT, bool)
    if report["bad_files"]:
        assert [path[-6:] for path in report["bad_files"]] == ["b.root"]
        good[DAMAGED] = False
    for place in report["quarantine"]:
        assert "b.root: entries " in place
        first, last = (int(word) for word in place.rsplit("entries ", 1)[1].split(" to "))
        assert 0 <= first <= last < COUNT
        good[DAMAGED][first : last + 1] = False
    assert good.sum() == len(rows["npho"]), "no entry is missing silently"
    names = {"npho": "npho", "time": "relative_time", "run": "run", "event": "event"}
    # Optional branches that a file lacks, by a damaged name, are given up with a warning
    # (tests/test_data_manifest.py): no reason to lose the light of the file.
    dropped = names.keys() - rows.keys()
    assert dropped <= {"run", "event"}
    same = {k: np.array_equal(rows[k], EVENTS[names[k]][good]) for k in names.keys() - dropped}
    if not (same["npho"] and same["time"]):
        return "other light"
    if dropped or not all(same.values()):
        return "other identifiers"
    return "complete" if good.all() else "quarantine"


def flip(content, rng):
    """Changes a byte, or some in a row."""
    content = bytearray(content)
    at = int(rng.integers(len(content)))
    for place in range(at, min(at + int(rng.choice([1, 1, 4, 32])), len(content))):
        content[place] ^= int(rng.integers(1, 256))
    return bytes(content)


def cut(content, rng):
    return content[: int(rng.integers(len(content)))]


@contextlib.contextmanager
def no_hang():
    def give_up(*_):
        raise TimeoutError("reading hangs")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(LONGEST_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fuzz(folder, kind, codec, trials, seed):
    """Damages a file again and again; returns how often which policy led to what."""
    for number, name in enumerate("abc"):
        write(folder / f"{name}.root", number * COUNT, kind, codec)
    path = folder / "b.root"
    content = path.read_bytes()
    rng = np.random.default_rng(seed)
    outcomes = Counter()
    for trial in range(trials):
        path.write_bytes((cut if trial % 5 == 4 else flip)(content, rng))
        for policy in ("error", "skip"):
            with no_hang(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the library's, on its way to an exception
                try:
                    outcome = judge(*read_all(folder, policy))
                except DataError as error:
                    outcome = "error" if "b.root" in str(error) else str(error)
            outcomes[policy, outcome] += 1
    readable = {"complete", "other light", "other identifiers"}
    assert {outcome for policy, outcome in outcomes if policy == "error"} <= readable | {"error"}
    allowed = readable | {"quarantine"}  # never an error: two of three files are good
    assert {outcome for policy, outcome in outcomes if policy == "skip"} <= allowed
    assert outcomes["error", "error"] >= outcomes["skip", "quarantine"] > 0
    if codec in SAFE:
        assert outcomes["error", "other light"] == outcomes["skip", "other light"] == 0
    return outcomes


@pytest.mark.parametrize(("kind", "codec"), CASES)
def test_nineteen_damages(tmp_path, kind, codec):
    """All together 209 places."""
    fuzz(tmp_path, kind, codec, 19, seed=5)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "codec"), CASES)
def test_two_hundred_damages(tmp_path, kind, codec):
    print(kind, codec, dict(fuzz(tmp_path, kind, codec, 200, seed=6)))
