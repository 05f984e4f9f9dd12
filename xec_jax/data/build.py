"""Command that converts ROOT files once into a cache that trains at full speed.

    python -m xec_jax.data.build --input '/data/train/*.root' --out /scratch/train

Heavy packages are imported inside functions, so that `--help` answers at once.
"""

import argparse
import contextlib
import fcntl
import json
import logging
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xec_jax.errors import EXIT_CODES, ConfigError, DataError, DiskError, Preempted, run_command

if TYPE_CHECKING:
    from xec_jax.data.tfds.builder import Recipe, XecEvents

logger = logging.getLogger(__name__)

EVENTS_PER_SHARD = 16384  # 0.3 GB
EXAMPLES = """examples:
  build --input '/data/train/*.root' --out /scratch/train --processes 16
  build --input /data/valid --out /scratch/valid --encoding float32
then train with
  --config.data.source=tfds --config.data.train=/scratch/train --config.data.valid=/scratch/valid

An interrupted command goes on where it was when it is started again; files of records that were
finished are not made again. The folder appears under its name once it is complete.
"""


def build(
    recipe: "Recipe",
    out: str | Path,
    *,
    shards: int | None = None,
    processes: int = 1,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Makes a cache, goes on with an unfinished one, or finds that it is there already.

    Args:
        recipe: What to convert.
        out: The folder; until it is complete, the work is in `.<name>.part` beside it.
        shards: Files of records, of 256 events or more; one per 16384 events by default.
        processes: Processes that convert; each needs 0.4 GB.
        overwrite: Whether to remove a cache or unfinished work of other content.

    Returns:
        What `XecEvents.finish` counted; `events` alone for a cache that was there.

    Raises:
        ConfigError: The folder holds something else, or a cache that lacks events, or another
            command works on it.
        DataError: Events that cannot be read or packed, or files that changed meanwhile.
        DiskError: Not enough space, or a folder that cannot be written.
    """
    from xec_jax.data.root.writer import disk_errors, sync_folder
    from xec_jax.data.tfds.builder import BATCH, XecEvents, bytes_per_event
    from xec_jax.data.tfds.folder import Cache

    out = Path(out).absolute()
    work = out.with_name(f".{out.name}.part")
    with recipe.open() as source:
        digest = recipe.digest(source)
        if out.exists():
            with contextlib.suppress(DataError):
                cache = Cache.open(out)
                skipped = cache.metadata.get("skipped", 0)
                if cache.metadata["recipe"] == digest and not (skipped and overwrite):
                    if skipped:  # the files may have been repaired in place
                        raise _incomplete(out, skipped)
                    _tidy(out)
                    return {"events": sum(cache.lengths)}
            _may_replace(out, overwrite)
        steps = source.steps_per_epoch(size=BATCH, train=False)
        total = min(shards or -(-len(source) // EVENTS_PER_SHARD), steps)
        if shards and total < shards:
            why = f"events are handed out {BATCH} at a time"
            print(f"{total} files of records instead of {shards}: {why}")
        plan = json.dumps({"recipe": digest, "shards": total})
        with disk_errors(work):
            work.mkdir(parents=True, exist_ok=True)
        with _locked(work):
            with disk_errors(work):
                _prepare(work, plan, overwrite)
            builder = XecEvents(recipe, source, data_dir=work / "tfds")
            size = bytes_per_event(builder.columns)
            todo = _todo(work, total)
            share = len(todo) / total * (1.0 if recipe.compression == "none" else 0.5)
            _check_space(work, int(share * len(source) * size))
            bounds = [steps * number // total for number in range(total + 1)]
            jobs = [(number, bounds[number], bounds[number + 1]) for number in todo]
            with _progress(work, len(source), size):
                _convert(recipe, builder, work, total, jobs, processes)
            with recipe.open() as again:
                if recipe.digest(again) != digest:
                    raise _changed(recipe)
            counts = builder.finish(work, total)
            with disk_errors(out):
                if out.exists():
                    shutil.rmtree(out)
                work.rename(out)  # before the notes are removed: a kill loses no work
                _tidy(out)
                sync_folder(out.parent)
    return counts


def _tidy(out: Path) -> None:
    """Removes what was needed to continue an interrupted command."""
    shutil.rmtree(out / "tfds", ignore_errors=True)
    for path in [*out.glob("plan.json"), *out.glob("lock"), *out.glob("*.array_record-*.npz")]:
        path.unlink(missing_ok=True)


def _incomplete(out: Path, skipped: int) -> ConfigError:
    return ConfigError(
        f"{out} is finished, but lacks {skipped} events that could not be read",
        expected="a cache of all events",
        remedy="train with it as it is; or, after the files were repaired, add --overwrite",
    )


def _may_replace(out: Path, overwrite: bool) -> None:
    """Refuses to remove what is no cache, and caches without being asked to."""
    is_cache = (out / "metadata.json").exists()
    if out.is_dir() and (not any(out.iterdir()) or (is_cache and overwrite)):
        return
    raise ConfigError(
        f"{out} exists and is no cache of these files with these options",
        expected="a new folder, or the cache itself",
        remedy="choose another folder" + (", or add --overwrite" if is_cache else ""),
    )


@contextlib.contextmanager
def _locked(work: Path) -> Iterator[None]:
    """Keeps other commands away from a folder."""
    from xec_jax.data.root.writer import disk_errors

    with disk_errors(work):
        file = (work / "lock").open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"another command is working in {work}", remedy="wait for it, or stop it"
            ) from error
        except OSError as error:  # some network disks have no locks
            logger.warning("%s cannot be locked (%s): start no second command", work, error)
        yield


def _prepare(work: Path, plan: str, overwrite: bool) -> None:
    """Takes up unfinished work of the same plan, or begins."""
    path = work / "plan.json"
    if path.exists() and path.read_text() != plan:
        if not overwrite:
            raise ConfigError(
                f"{work} is unfinished work on other files, or with other options",
                expected="the same files and options as when it began",
                remedy="give the same, or add --overwrite to begin again",
            )
        path.unlink()
    if not path.exists():
        for old in work.iterdir():
            if old.name != "lock":
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        temporary = work / "plan.part"
        temporary.write_text(plan)
        temporary.rename(path)
    for old in work.glob("*.part"):  # of processes that were killed
        old.unlink()


def _todo(work: Path, total: int) -> list[int]:
    """Returns the numbers of the files of records that are not finished."""
    from xec_jax.data.tfds.builder import notes_of
    from xec_jax.data.tfds.folder import shard_name

    todo = [n for n in range(total) if not notes_of(work / shard_name(n, total)).exists()]
    if len(todo) < total:
        print(f"{total - len(todo)} of {total} files of records are finished already")
    return todo


def _check_space(work: Path, needed: int) -> None:
    free = shutil.disk_usage(work).free
    if free < needed:
        raise DiskError(
            f"{work} has {free / 1e9:.2f} GB free",
            expected=f"about {needed / 1e9:.2f} GB",
            remedy="make room, choose another disk, or add --compression zstd",
        )


Job = tuple[int, int, int]  # number of the shard, first batch, one past the last


def _convert(
    recipe: "Recipe",
    builder: "XecEvents",
    work: Path,
    total: int,
    jobs: Sequence[Job],
    processes: int,
) -> None:
    """Writes all files of records, in several processes if asked."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from xec_jax.data.tfds.folder import shard_name

    if processes <= 1 or len(jobs) <= 1:
        for number, begin, end in jobs:
            builder.write_shard(work / shard_name(number, total), begin, end)
        return
    # Neighbours go to one process, which reads ahead from one to the next.
    n = min(processes, len(jobs))
    parts = [jobs[len(jobs) * i // n : len(jobs) * (i + 1) // n] for i in range(n)]
    digest = recipe.digest(builder._source)
    with ProcessPoolExecutor(n, mp_context=get_context("spawn")) as pool:
        running = [
            pool.submit(_work, recipe, digest, str(work), total, part, os.getpid())
            for part in parts
        ]
        try:
            for future in running:
                future.result()
        except BaseException:
            for process in list(pool._processes.values()):
                process.terminate()
            raise


def _work(
    recipe: "Recipe", digest: str, work: str, total: int, jobs: Sequence[Job], parent: int
) -> None:
    """Writes some files of records in a process of its own."""
    from xec_jax.data.tfds.builder import XecEvents
    from xec_jax.data.tfds.folder import shard_name

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent tells
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    with recipe.open() as source:
        if recipe.digest(source) != digest:
            raise _changed(recipe)
        builder = XecEvents(recipe, source, data_dir=Path(work) / "tfds")
        for number, begin, end in jobs:
            builder.write_shard(Path(work) / shard_name(number, total), begin, end)


def _follow(parent: int) -> None:
    """Ends this process soon after its parent, however that ended."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _changed(recipe: "Recipe") -> DataError:
    return DataError(
        f"the files {', '.join(recipe.input)} have changed since the command began",
        expected="files that stay as they are",
        remedy="start again when they are complete",
    )


@contextlib.contextmanager
def _progress(work: Path, events: int, size: int) -> Iterator[None]:
    """Shows on a terminal how many of the bytes to come are there."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import Progress

    end = threading.Event()
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("events", total=events)

        def look() -> None:
            while not end.wait(0.5):
                files = list(work.glob("*.array_record*"))
                with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
                    done = sum(path.stat().st_size for path in files) // size
                    bar.update(task, completed=min(done, events))

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()


def parser() -> argparse.ArgumentParser:
    """Describes the command line."""
    result = argparse.ArgumentParser(
        prog="python -m xec_jax.data.build",
        description="Converts ROOT files into a cache (TFDS, array_record) for fast training.",
        epilog=f"{EXAMPLES}\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = result.add_argument
    add("--input", required=True, nargs="+", metavar="GLOB", help="ROOT files, folders, globs")
    add("--out", required=True, metavar="DIR", help="folder of the cache")
    add("--tree", default="tree", help="name of the tree (default: tree)")
    add("--npho_branch", default="npho", metavar="NAME", help="default: npho")
    add("--time_branch", default="relative_time", metavar="NAME", help="default: relative_time")
    add("--no_time", action="store_true", help="files without times")
    add(
        "--branches",
        nargs="*",
        metavar="NAME",
        help="further branches (default: all with up to 64 numbers per event)",
    )
    add("--encoding", default="uint16", choices=["uint16", "float32"], help="default: uint16")
    add(
        "--time_range",
        nargs=2,
        type=float,
        default=(-100.0, 225.0),
        metavar=("LOW", "HIGH"),
        help="ns, of uint16 times (default: -100 225, in steps of 5 ps)",
    )
    add("--clip", action="store_true", help="give values out of range the end of the range")
    add(
        "--compression",
        default="none",
        choices=["none", "zstd"],
        help="zstd: 60 %% of the bytes at half the speed (default: none)",
    )
    add("--on_bad_file", default="error", choices=["error", "skip"], help="default: error")
    add("--derive_relative", action="store_true", help="make relative_npho from npho")
    add("--shards", type=int, metavar="N", help=f"files (default: one per {EVENTS_PER_SHARD})")
    add("--processes", type=int, default=1, metavar="N", help="default: 1")
    add("--overwrite", action="store_true", help="replace a cache or unfinished work")
    return result


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    options = parser().parse_args(argv)
    for name in ("shards", "processes"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise ConfigError(f"--{name} is {value}", expected="1 or more")
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        from xec_jax.data.tfds.builder import Recipe
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the package {error.name} is not installed",
            expected="what `pip install -e '.[tfds]'` in the repository brings",
            remedy="install it in the environment that runs this command",
        ) from error
    begun = time.monotonic()
    recipe = Recipe(
        input=tuple(options.input),
        tree=options.tree,
        npho_branch=options.npho_branch,
        time_branch=None if options.no_time else options.time_branch,
        branches=_branches(options),
        encoding=options.encoding,
        time_range=tuple(options.time_range),
        clip=options.clip,
        compression=options.compression,
        on_bad_file=options.on_bad_file,
        derive_relative=options.derive_relative,
    )
    counts = build(
        recipe,
        options.out,
        shards=options.shards,
        processes=options.processes,
        overwrite=options.overwrite,
    )
    if "bytes" not in counts:
        print(f"{options.out} is complete: {counts['events']} events of the same files")
        return 0
    seconds, events, size = time.monotonic() - begun, counts["events"], counts["bytes"]
    for path, reason in counts["bad_files"].items():
        logger.warning("%s was left out: %s", path, reason)
    if counts["skipped"]:
        logger.warning("%d events could not be read and are left out", counts["skipped"])
    for key, n in counts["outside"].items():
        if n:
            logger.warning("%d values of %s were out of range; they got its end", n, key)
    print(f"wrote {events} events to {options.out}, {size / 1e6:.1f} MB")
    print(f"  {size / events:.0f} bytes/event, {seconds:.1f} s, {events / seconds:.0f} events/s")
    return 0


def _stop(*_: object) -> None:
    raise Preempted("stopped by a signal", remedy="start the same command again to continue")


def _branches(options: argparse.Namespace) -> tuple[str, ...]:
    """Returns the further branches: those asked for, or all small ones of the first good file."""
    if options.branches is not None:
        return tuple(options.branches)
    from xec_jax.data.root.file import RootFile
    from xec_jax.data.root.manifest import resolve_paths

    others = ("npho", "time", "weight", options.npho_branch, options.time_branch)
    for path in resolve_paths(options.input):
        found = []
        try:
            with RootFile(path, options.tree) as file:
                for name in file.names():
                    with contextlib.suppress(DataError):  # not as many values in every event
                        column = file.column(name)
                        if name not in others and math.prod(column.shape) <= 64:
                            found.append(name)
            return tuple(sorted(found))
        except DataError:
            if options.on_bad_file == "error":
                raise
    return ()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    run_command(main)
