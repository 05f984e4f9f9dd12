"""How fast are events read, compared with the library alone, a cache and the memory?

    python benchmarks/reading.py FILES --codecs zstd lz4 --cache FOLDER --out reading

Every reader gives both numbers of every sensor of all events, twice; the second time is measured.
The first one touches memory that the machine has not given to anybody yet, which costs as much as
reading, once. A quarter of the events at most is mixed at a time, so that the second time reads the
files again, too: `read` is the share that it took from them. The readers take turns, each in a
process of its own:

* `uproot.iterate`: the library alone, arrays of 1000 events, thrown away;
* `files`, `shuffled`: `RootSource` in batches, in the order of the files and in random order;
* `cache`: `TfdsSource` in random order, for `--cache` (see `xec_jax.data.build`);
* `memory`: `ArraySource` in random order; filling the memory is not measured.

Wall time depends on what else the machine does; the ratio of CPU times hardly does. Writes OUT.json
and OUT.txt. `--codecs` writes the events anew, with nothing but both numbers and the number of the
event, for a comparison of compressions.
"""

import argparse
import contextlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from xec_jax.data.arrays import ArraySource
from xec_jax.data.root.manifest import resolve_paths
from xec_jax.data.root.source import RootSource
from xec_jax.data.root.writer import write_tree
from xec_jax.data.source import Source

BRANCHES = ["npho", "relative_time"]
CHUNK = 100  # events in a basket of the files written here
STEP = 1000  # events in an array of the library
SMALLEST = 16  # batches; fewer fit into the windows that are held in memory


def main() -> None:
    """Measures everything, or one reader in a process of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", help="ROOT files")
    parser.add_argument("--codecs", nargs="*", default=[], help="none, lz4, zlib, zstd")
    parser.add_argument("--events", type=int, default=5000, help="in the files of --codecs")
    parser.add_argument("--cache", help="the same events as a cache")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128, help="events")
    parser.add_argument(
        "--buffer",
        type=int,
        default=16384,
        help="events mixed completely; at most a quarter of all (default: %(default)s)",
    )
    parser.add_argument("--max_ram_gb", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("reading"))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options)))
        return
    if options.codecs and options.events < SMALLEST * options.batch:
        parser.error(f"--events {options.events}: at least {SMALLEST} batches, for steady figures")
    events = count(options.files)
    if events < SMALLEST * options.batch:
        parser.error(
            f"the files hold {events} events: give at least {SMALLEST} batches of {options.batch}, "
            "or a smaller --batch; fewer would be held in memory, and not read twice"
        )
    if options.cache and events != (cached := disk("cache", [], options)[1]):
        print(f"warning: the cache holds {cached} events, the files {events}: not the same data")
    rows: list[dict[str, Any]] = []
    sets = {"as given": options.files}
    with tempfile.TemporaryDirectory() as folder:
        for codec in options.codecs:
            path = str(Path(folder) / f"{codec}.root")
            write_tree(path, events_of(options), compression=codec)
            sets[codec] = [path]
        for name, files in sets.items():
            readers = ["uproot.iterate", "files", "shuffled"]
            if name == "as given":
                readers += ["cache"] * bool(options.cache) + ["memory"]
            rows += compare(name, files, readers, options)
    text = table(rows, options)
    print(text, end="")
    options.out.with_suffix(".txt").write_text(text)
    options.out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")


def count(files: list[str]) -> int:
    """Returns the number of events in files."""
    with RootSource(files, extra=["event"], shuffle=False) as source:
        return len(source)


def disk(reader: str, files: list[str], options: argparse.Namespace) -> tuple[int, int]:
    """Returns bytes and events of what a reader reads on the disk."""
    if reader != "cache":
        return sum(path.stat().st_size for path in resolve_paths(files)), count(files)
    from xec_jax.data.tfds.folder import open_caches

    caches = open_caches(options.cache)
    size = sum(path.stat().st_size for cache in caches for path in cache.files)
    return size, sum(sum(cache.lengths) for cache in caches)


def events_of(options: argparse.Namespace) -> Iterator[dict[str, np.ndarray]]:
    """Yields events of the files, and again from the first one if there are too few."""
    with RootSource(options.files, extra=["event"]) as source:
        for step in range(options.events // CHUNK):
            batch = source.batch(step, size=CHUNK, train=False)
            yield {"npho": batch["npho"], "relative_time": batch["time"], "event": batch["event"]}


def compare(
    name: str, files: list[str], readers: list[str], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Lets readers take turns; returns a row of medians and spreads for each."""
    sizes = {reader: disk(reader, files, options) for reader in readers if reader != "memory"}
    stored = {reader: size / events / 1e3 for reader, (size, events) in sizes.items()}
    found: dict[str, list[dict[str, float]]] = {reader: [] for reader in readers}
    # A part of the events is mixed, as with the large files of a training.
    buffer = min(options.buffer, count(files) // 4)
    options = argparse.Namespace(**{**vars(options), "buffer": buffer})
    same = ("threads", "batch", "buffer", "max_ram_gb", *(["cache"] * bool(options.cache)))
    settings = [f"--{key}={getattr(options, key)}" for key in same]
    for turn in range(options.rounds + 1):
        for reader in readers:
            words = [sys.executable, __file__, *files, *settings, "--measure", reader]
            output = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603
            if turn:  # the first one fills the page cache
                found[reader].append(json.loads(output))
    rows = []
    for reader, runs in found.items():
        rate, spread = middle([run["events"] / run["wall_s"] for run in runs])
        cpu, cpu_spread = middle([1e6 * run["cpu_s"] / run["events"] for run in runs])
        rows.append(
            {
                "files": name,
                "reader": reader,
                "events": runs[0]["events"],
                "buffer": buffer,
                "disk_kb_per_event": stored.get(reader),
                "read_share": statistics.median(run["read"] / run["events"] for run in runs),
                "events_per_s": rate,
                "events_per_s_spread": spread,
                "cpu_us_per_event": cpu,
                "cpu_us_per_event_spread": cpu_spread,
                "mb_per_s": rate * runs[0]["bytes_per_event"] / 1e6,
                "rss_peak_mb": max(run["rss_mb"] for run in runs),
                "runs": runs,
            }
        )
    return rows


def middle(values: list[float]) -> tuple[float, float]:
    """Returns the median, and half of the range around it."""
    return statistics.median(values), (max(values) - min(values)) / 2


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Reads everything twice with one reader, and times the second time."""
    if options.measure == "uproot.iterate":
        return timed(lambda _: iterate(options))
    with contextlib.closing(open_source(options)) as source:
        steps = source.steps_per_epoch(size=options.batch)

        def read(epoch: int) -> tuple[int, int, int]:
            stats = source.stats if isinstance(source, RootSource) else None
            before = stats.events if stats else 0
            for step in range(epoch * steps, (epoch + 1) * steps):
                batch = source.batch(step, size=options.batch)
            events, size = steps * options.batch, sum(batch[k][0].nbytes for k in ("npho", "time"))
            if stats:
                return events, size, stats.events - before
            return events, size, events if options.measure == "cache" else 0

        return timed(read)


def timed(read: Callable[[int], tuple[int, int, int]]) -> dict[str, float]:
    """Calls `read` for the epochs 0 and 1, and measures the latter."""
    read(0)
    wall, cpu = time.perf_counter(), time.process_time()
    events, size, taken = read(1)
    return {
        "events": events,
        "read": taken,
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "bytes_per_event": size,
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def open_source(options: argparse.Namespace) -> Source:
    """Opens files or a cache as a training does, or loads the files into memory."""
    if options.measure == "cache":
        from xec_jax.data.tfds.source import TfdsSource

        return TfdsSource(options.cache, threads=options.threads)
    source = RootSource(
        options.files,
        shuffle=options.measure == "shuffled",
        shuffle_buffer=options.buffer,
        max_ram_gb=options.max_ram_gb,
        threads=options.threads,
    )
    if options.measure != "memory":
        return source
    with source:
        whole = source.batch(0, size=len(source), train=False)
    return ArraySource({"npho": whole["npho"], "time": whole["time"]})


def iterate(options: argparse.Namespace) -> tuple[int, int, int]:
    """Reads the same two branches with the library; returns events, bytes of one, and events."""
    import uproot

    events = size = 0
    files = {str(path): "tree" for path in resolve_paths(options.files)}
    with ThreadPoolExecutor(options.threads) as pool:
        for arrays in uproot.iterate(
            files, BRANCHES, step_size=STEP, library="np", decompression_executor=pool
        ):
            events += len(arrays["npho"])
            size = sum(arrays[name][0].nbytes for name in BRANCHES)
    return events, size, events


def table(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """Returns the figures as text."""
    lines = [
        f"{options.threads} threads, batches of {options.batch} events, medians of "
        f"{options.rounds} runs +- half of their range",
        "kB/event: on the disk, all branches; MB/s: float32 arrays of both numbers, decoded; "
        "read: events taken from the files per event given, give or take a window; RSS: at most",
        f"{'files':9} {'kB/event':>8}  {'reader':15} {'events/s':>15} {'MB/s':>6} "
        f"{'read %':>6} {'CPU us/event':>14} {'CPU, library = 1':>16} {'RSS MB':>7}",
    ]
    for row in rows:
        library = next(r for r in rows if r["files"] == row["files"])
        kilobytes = row["disk_kb_per_event"]
        lines.append(
            f"{row['files']:9} {'-' if kilobytes is None else f'{kilobytes:.1f}':>8}  "
            f"{row['reader']:15} "
            f"{row['events_per_s']:7.0f} +- {row['events_per_s_spread']:4.0f} "
            f"{row['mb_per_s']:6.0f} {100 * row['read_share']:6.0f} "
            f"{row['cpu_us_per_event']:7.1f} +- {row['cpu_us_per_event_spread']:3.1f} "
            f"{row['cpu_us_per_event'] / library['cpu_us_per_event']:16.2f} "
            f"{row['rss_peak_mb']:7.0f}"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
