"""Command that writes sample files with known truth, and a cache of such samples.

    python -m xec_jax.simulate --kind lxe --out samples --events 4096 --files 4
    python -m xec_jax.simulate --kind lxe --out cex --events 4096 --source cex --variant cex
    python -m xec_jax.simulate --kind muon --out muons --events 20000 --benchmark mb1 --strength 3

Heavy packages are imported inside functions, so that `--help` answers at once.
"""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from xec_jax.errors import EXIT_CODES, ConfigError, run_command

if TYPE_CHECKING:
    import numpy as np

KINDS = {
    "lxe": "photons in the liquid-xenon calorimeter",
    "muon": "muon bundles",
    "rain": "precipitation fields",
    "lartpc": "supernova electrons in a LArTPC",
}
AVAILABLE = ("lxe", "muon")
SUFFIX = {"lxe": ".root", "muon": ".parquet"}
ENERGY_MEV = {"flat": (15.0, 60.0), "signal": (52.83, 52.83)}
CEX_MEV = (54.9, 82.9)

OPTIONS = {
    "source": "origin",
    "variant": "variant",
    "solid_angle": "solid_angle",
    "pileup_rate": "pileup_rate_hz",
    "cosmics": "cosmic_share",
    "benchmark": "benchmark",
    "strength": "strength",
    "kappa": "kappa",
    "turns": "turns",
}
"""Options of the command that are parameters of what is simulated."""

Generate = Callable[[int, int], "Iterator[dict[str, np.ndarray]]"]


def write_sample(
    kind: str,
    out: str | Path,
    events: int,
    *,
    files: int = 1,
    seed: int = 0,
    energy: str | None = None,
    overwrite: bool = False,
    dead_channels: str | Path | None = None,
    parameters: Mapping[str, object] | None = None,
) -> list[Path]:
    """Writes a sample as `<kind>_0000.root` (or .parquet), ... and its settings as `sample.json`.

    Args:
        kind: One of `AVAILABLE`.
        out: Folder, made if missing.
        events: Number of events; event i depends on seed and i alone.
        files: Number of files that share the events evenly, in order.
        seed: Seed of the sample.
        energy: Of photons: `flat` (15 to 60 MeV, the default) or `signal` (52.83 MeV); none for
            those of neutral pions, which have 54.9 and 82.9 MeV with the partner back to back.
        overwrite: Whether to remove the files of an earlier sample of this kind first.
        dead_channels: Of the calorimeter: list (`xec_jax.data.dead`) in place of random ones.
        parameters: Values of `LxeParameters`, or of `sim.muon.make_benchmark`, by name.

    Returns:
        The files, in order of their events.

    Raises:
        ConfigError: A kind that does not exist (yet), impossible numbers, or a folder that has
            a sample already.
        DiskError: The folder cannot be written, or the disk is full.
    """
    _check(kind, events, files, seed)
    generate, settings = _make_generator(kind, seed, energy, dead_channels, parameters or {})
    bounds = [events * number // files for number in range(files + 1)]
    samples = [generate(start, stop) for start, stop in pairwise(bounds)]
    from xec_jax.data.root.writer import disk_errors

    folder = Path(out)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        existing = sorted(folder.glob(f"{kind}_*{SUFFIX[kind]}"))
        if existing and not overwrite:
            raise ConfigError(
                f"{folder} has {len(existing)} {kind} files, such as {existing[0].name}",
                expected="a folder without them",
                remedy="choose another folder, or add --overwrite to replace them",
            )
        for path in existing:
            path.unlink()
        record = {"kind": kind, "events": events, "files": files, "seed": seed, **settings}
        (folder / "sample.json").write_text(json.dumps(record, indent=2) + "\n")
    paths = [folder / f"{kind}_{number:04d}{SUFFIX[kind]}" for number in range(files)]
    with _progress(events) as advance:
        for path, sample in zip(paths, samples, strict=True):
            _write(kind, path, advance(sample), record)
    return paths


def _write(kind: str, path: Path, chunks: "Iterator[dict[str, np.ndarray]]", record: dict) -> None:
    if kind == "muon":
        from xec_jax.data.bundle_writer import write_bundles

        write_bundles(path, chunks, record)
        return
    from xec_jax.data.root.writer import write_tree

    # Made again, the file is recognized as the same data.
    write_tree(path, chunks, identity=f"{path.name} {json.dumps(record, sort_keys=True)}")


def cached_sample(
    kind: str,
    events: int,
    *,
    seed: int,
    files: int = 1,
    cache_dir: str | Path | None = None,
    energy: str | None = None,
    parameters: Mapping[str, object] | None = None,
) -> Path:
    """Returns the folder of a sample that is generated once and then reused.

    Args:
        kind: As in `write_sample`.
        events: As in `write_sample`.
        seed: As in `write_sample`.
        files: As in `write_sample`.
        cache_dir: Folder of all cached samples; by default the environment variable
            `XEC_JAX_CACHE`, or `~/.cache/xec_jax`.
        energy: As in `write_sample`.
        parameters: As in `write_sample`; those that equal the defaults change nothing.

    Raises:
        ConfigError: As in `write_sample`.
        DiskError: The cache cannot be written, or the disk is full.
    """
    _check(kind, events, files, seed)
    _, settings = _make_generator(kind, seed, energy, None, parameters)
    from xec_jax.data.root.writer import disk_errors, sync_folder

    default = os.environ.get("XEC_JAX_CACHE") or "~/.cache/xec_jax"
    cache = Path(cache_dir or default).expanduser()
    content = json.dumps({"files": files, **settings}, sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    folder = cache / f"{kind}-{events}-seed{seed}-{digest}"
    if folder.is_dir():
        return folder
    print(f"simulating {events} {kind} events into {folder}", flush=True)
    with disk_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=cache))
    try:
        write_sample(
            kind, temporary, events, files=files, seed=seed, energy=energy, parameters=parameters
        )
        with disk_errors(folder):
            temporary.chmod(0o777 & ~_umask())  # mkdtemp locks everybody else out
            try:
                temporary.rename(folder)
            except OSError:
                # Another process was faster: its sample is the same, event by event.
                if not folder.is_dir():
                    raise
            sync_folder(cache)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _check(kind: str, events: int, files: int, seed: int) -> None:
    available = ", ".join(AVAILABLE)
    if kind not in KINDS:
        raise ConfigError(f"kind is {kind!r}", expected=f"one of {available}")
    if kind not in AVAILABLE:
        raise ConfigError(
            f"kind {kind!r} ({KINDS[kind]}) is not available in this version",
            expected=f"one of {available}",
        )
    if not 0 < events < 2**31 or not 0 < files <= events or not 0 <= seed < 2**31:
        raise ConfigError(
            f"events = {events}, files = {files}, seed = {seed}",
            expected="1 or more events, at least one per file, and a seed from 0 to 2^31 - 1",
        )


def _make_generator(
    kind: str,
    seed: int,
    energy: str | None = None,
    dead_channels: str | Path | None = None,
    parameters: Mapping[str, object] | None = None,
) -> tuple[Generate, dict]:
    """Returns what yields the events of a range, and the settings they depend on."""
    if kind == "muon":
        if energy is not None or dead_channels is not None:
            raise ConfigError("energy or dead channels of muons", expected="kind lxe for these")
        return _make_muon_generator(seed, parameters or {})
    from xec_jax.sim.lxe import simulate_range
    from xec_jax.sim.lxe_parameters import SIMULATION_VERSION, LxeParameters

    chosen = dict(parameters or {})
    is_cex = chosen.get("origin") == "cex"
    allowed = [None] if is_cex else [None, *ENERGY_MEV]
    if energy not in allowed:
        raise ConfigError(
            f"energy is {energy!r}" + (" for photons of neutral pions" if is_cex else ""),
            expected="none, they have 54.9 or 82.9 MeV" if is_cex else ", ".join(ENERGY_MEV),
        )
    chosen.setdefault("energy_mev", CEX_MEV if is_cex else ENERGY_MEV[energy or "flat"])
    dead = None
    if dead_channels is not None:
        from xec_jax.data.dead import read_dead

        dead = read_dead(dead_channels)
        chosen.setdefault("dead_fraction", 0.0)
    if unknown := chosen.keys() - {field.name for field in fields(LxeParameters)}:
        raise ConfigError(
            f"the simulated detector has no {', '.join(sorted(unknown))}",
            expected="a parameter of docs/simulation.md",
        )
    params = LxeParameters(**chosen)  # type: ignore[arg-type]
    settings = {"version": SIMULATION_VERSION, "parameters": asdict(params)}
    if dead is not None:
        digest = hashlib.sha256()
        for run, mask in sorted(dead.items(), key=str):
            digest.update(f"{run}".encode() + mask.tobytes())
        settings["dead_channels"] = digest.hexdigest()
    return lambda start, stop: simulate_range(seed, start, stop, params, dead=dead), settings


def _make_muon_generator(seed: int, parameters: Mapping[str, object]) -> tuple[Generate, dict]:
    from xec_jax.sim import muon

    known = ("benchmark", "strength", "kappa", "turns")
    if unknown := parameters.keys() - set(known):
        raise ConfigError(
            f"muon bundles have no {', '.join(sorted(unknown))}", expected=", ".join(known)
        )
    benchmark = muon.make_benchmark(**parameters)  # type: ignore[arg-type]
    settings = {"version": muon.VERSION, "parameters": muon.facts_of(benchmark)}
    return lambda start, stop: muon.simulate_range(benchmark, seed, start, stop), settings


def _parameter(text: str) -> tuple[str, object]:
    """Reads `name=value` with a number (or a list of numbers, true, false) as the value."""
    name, _, value = text.partition("=")
    try:
        parsed = json.loads(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form name=number") from error
    return name, tuple(parsed) if isinstance(parsed, list) else parsed


@contextlib.contextmanager
def _progress(events: int) -> Iterator[Callable]:
    """Yields a function that passes chunks on and, on a terminal, moves a progress bar."""
    if not sys.stderr.isatty():
        yield lambda chunks: chunks
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("events", total=events)

        def advance(chunks: "Iterator[dict[str, np.ndarray]]") -> Iterator:
            for chunk in chunks:
                yield chunk
                bar.advance(task, len(chunk["event"]))

        yield advance


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def main(argv: Sequence[str]) -> int:
    """Runs the command.

    Args:
        argv: Arguments after the command's name.

    Returns:
        The exit code.
    """
    kinds = "\n".join(
        f"  {kind:7} {text}{'' if kind in AVAILABLE else ' (not available in this version)'}"
        for kind, text in KINDS.items()
    )
    parser = argparse.ArgumentParser(
        prog="python -m xec_jax.simulate",
        description="Writes sample files with known truth.",
        epilog=f"kinds:\n{kinds}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kind", required=True, help="what to simulate, see below")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the files")
    parser.add_argument("--events", required=True, type=int, metavar="N")
    parser.add_argument("--files", default=1, type=int, metavar="K", help="default: 1")
    parser.add_argument("--seed", default=0, type=int, metavar="S", help="default: 0")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an earlier sample of this kind"
    )
    lxe = parser.add_argument_group("photons in the calorimeter (lxe)")
    lxe.add_argument(
        "--source",
        choices=["target", "cex"],
        help="stopped muons (default), or neutral pions at 54.9 and 82.9 MeV (partner tagged)",
    )
    lxe.add_argument(
        "--energy", choices=list(ENERGY_MEV), help="15 to 60 MeV (default) or 52.83 MeV"
    )
    lxe.add_argument(
        "--variant",
        choices=["mc", "data", "cex"],
        help="branches: with truth (default), as of real data, or those and `dead`",
    )
    lxe.add_argument("--solid_angle", action="store_true", help="also write solid angles / 4 pi")
    lxe.add_argument(
        "--dead_channels", metavar="FILE", help="list of dead channels; default: random ones"
    )
    lxe.add_argument(
        "--pileup_rate", type=float, metavar="HZ", help="further photons per second; default: 0"
    )
    lxe.add_argument(
        "--cosmics", type=float, metavar="SHARE", help="events crossed by a muon; default: 0"
    )
    muon = parser.add_argument_group("muon bundles (muon), see docs/muon_flow.md")
    muon.add_argument("--benchmark", help="mb1 (default), mb1v or lg0: known densities")
    muon.add_argument(
        "--strength", type=float, metavar="G", help="how much the primary matters; default: 1"
    )
    muon.add_argument("--kappa", type=float, help="mb1v: concentration of the azimuth; default: 8")
    muon.add_argument("--turns", type=int, help="mb1v: turns of its direction; default: 1")
    lxe.add_argument(
        "--set",
        type=_parameter,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other number of docs/simulation.md, such as reflectivity=0.2; repeatable",
    )
    options = vars(parser.parse_args(argv))
    parameters = {
        name: value
        for option, name in OPTIONS.items()
        if (value := options.pop(option)) not in (None, False)
    }
    options["parameters"] = parameters | dict(options.pop("set"))
    start = time.perf_counter()
    paths = write_sample(**options)
    seconds = time.perf_counter() - start
    megabytes = sum(path.stat().st_size for path in paths) / 1e6
    last = "" if len(paths) == 1 else f" to {paths[-1].name}"
    print(f"wrote {options['events']} {options['kind']} events, {megabytes:.1f} MB")
    tree = ", tree 'tree'" if options["kind"] == "lxe" else ""
    print(f"  {paths[0]}{last}{tree}, seed {options['seed']}")
    print(f"  {seconds:.1f} s, {options['events'] / seconds:.0f} events/s with compilation")
    return 0


if __name__ == "__main__":
    run_command(main)
