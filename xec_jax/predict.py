"""`python -m xec_jax.predict`: what trained networks say about events, written as a ROOT file."""

import argparse
import json
import logging
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xec_jax.errors import EXIT_CODES, ConfigError, run_command
from xec_jax.outputs import check_new

if TYPE_CHECKING:
    from xec_jax.data.source import Source
    from xec_jax.inference.network import Layout, Network

EXAMPLES = """examples:
  predict --run runs/regress-default --input '/data/*.root' --output out.root
  predict --run runs/a runs/b runs/c --input F.root --output out.root      deep ensemble
  predict --run runs/a --mc_dropout 32 --input F.root --output out.root    Monte-Carlo dropout
  predict --run runs/a --input MC.root --output out.root \\
      --dead_channels dead.txt --run_number 430000         the sensors that a real run lacks
  predict --onnx model.onnx --input DataGammaAngle_430000-431999.root      an exported network;
      writes inference_results_Run430000-431999.root
  predict --run runs/muon_flow-default --input primaries.parquet --output bundles.parquet
                                                           draws muons for primaries
  predict --onnx model.onnx --inpaint runs/inpaint-default --input DATA.root \\
      --output out.root                                    dead channels filled before

Rows have the order of the input. Several runs or draws add `_std`, their spread; where the files
hold the truth and the predictions an uncertainty, a figure compares the two. With --inpaint,
columns that end in `_as_measured` hold the predictions without what is filled in.

--layout: `tree` has the predictions as networks name them, `val_tree` one number per column
beside what the reconstruction found in real data (emiAng, energyReco, timeReco, uvwRecoFI,
xyzRecoFI, xyzVTX). NaN stands for what files lack.
"""

OVERRIDES = {
    **dict.fromkeys(("npho_branch", "time_branch"), str),
    **dict.fromkeys(("npho_scale", "npho_scale2", "time_scale", "time_shift"), float),
    "sentinel_value": float,
}
"""What may take the place of the facts in an exported file, with their types."""

MAX_MUONS = 100_000
OF_BUNDLES = ("run", "input", "output", "overwrite", "seed", "step", "no_ema", "max_muons")

RUN_RANGE = re.compile(r"_(\d{6,})-(\d{6,})\.root$")
"""How files of real data say of which runs they are."""


def parser() -> argparse.ArgumentParser:
    """Describes the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m xec_jax.predict",
        description="Writes the predictions of trained networks for the events of ROOT files.",
        epilog=EXAMPLES + "\n" + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    network = parser.add_mutually_exclusive_group(required=True)
    network.add_argument("--run", nargs="+", type=Path, metavar="DIR", help="run folders")
    network.add_argument("--onnx", type=Path, metavar="FILE.onnx", help="an exported network")
    parser.add_argument("--input", required=True, nargs="+", metavar="GLOB")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE.root",
        help="default: inference_results_Run<a>-<b>.root for input named *_<a>-<b>.root",
    )
    parser.add_argument(
        "--layout",
        choices=("tree", "val_tree"),
        help="see below; default: val_tree for exported regressions, else tree",
    )
    parser.add_argument("--tree", help="name of the tree (default: that of the run, or `tree`)")
    parser.add_argument("--batch_size", type=int, default=64, metavar="B", help="default: 64")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    runs = parser.add_argument_group("run folders")
    runs.add_argument(
        "--mc_dropout", type=int, default=0, metavar="N", help="average N draws with dropout on"
    )
    runs.add_argument("--seed", type=int, default=0, metavar="S", help="of draws (dropout, muons)")
    runs.add_argument("--step", type=int, help="checkpoint to use (default: the best one)")
    runs.add_argument("--no_ema", action="store_true", help="not the moving average")
    runs.add_argument(
        "--max_muons",
        type=int,
        metavar="N",
        help=f"of muon bundles: no event gets more than this many; default: {MAX_MUONS:,}",
    )
    dead = parser.add_argument_group("dead channels")
    dead.add_argument(
        "--inpaint", type=Path, metavar="DIR|FILE.onnx", help="the inpainter that fills them"
    )
    dead.add_argument(
        "--dead_channels",
        metavar="LIST",
        help="sensors to leave out (default: data.dead_channels of the run; /dev/null for none)",
    )
    dead.add_argument(
        "--run_number",
        type=int,
        metavar="R",
        help="leave out those of run R in all events (default: by the branch `run`)",
    )
    model = parser.add_argument_group("exported networks, in place of what they were trained with")
    for name, kind in OVERRIDES.items():
        model.add_argument(f"--{name}", type=kind, metavar="NAME" if kind is str else "X")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    options = parser().parse_args(argv)
    _check(options)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax explains itself at length
    from xec_jax import trained
    from xec_jax.data.open import open_source
    from xec_jax.data.root.manifest import resolve_paths
    from xec_jax.data.root.writer import TreeFile
    from xec_jax.inference.layouts import Plain, ValTree
    from xec_jax.inference.network import predict
    from xec_jax.inference.pulls import Pulls

    if options.run and trained.reads_bundles(options.run[0]):
        return _bundles(options)
    if options.max_muons is not None:
        raise ConfigError("--max_muons", expected="a run of task muon_flow")
    trained.refuse_caches(options.input)
    files = resolve_paths(options.input)
    output = options.output or _auto_name(files)
    check_new([output], overwrite=options.overwrite, inputs=files)
    network, dead_list = _network(options)
    data = network.data
    data.tree_name = options.tree or data.tree_name
    kind = options.layout or _usual_layout(options, network)
    layout: Layout = {"tree": Plain, "val_tree": ValTree}[kind](network, data.tree_name, files[0])
    notes: dict[str, Any] = {**network.notes, **layout.notes, "dead_channels": None}
    pulls, begun = Pulls(), time.monotonic()
    source: Source = open_source(data, files, wanted=layout.branches)
    try:
        if dead_list is not None:
            source, notes["dead_channels"] = trained.leave_out(
                source, dead_list, options.run_number, data, files
            )
        rows = predict(network, source, layout, options.batch_size)
        columns: dict[str, Any] = {}
        with TreeFile(output) as file:
            for columns in pulls.watch(rows) if layout.has_truth else rows:
                file.extend(columns, layout.tree)
            units = {name: layout.unit(name) for name in columns}
            notes["units"] = {
                **network.task.units,
                **{k: unit for k, unit in units.items() if unit},
            }
            file.note("metadata", json.dumps(notes, indent=1))
    finally:
        source.close()
    n, seconds = file.entries[layout.tree], time.monotonic() - begun
    print(f"wrote {n} events to {output}, {n / seconds:.0f} events/s with compilation")
    pulls.report(output)
    return 0


def _bundles(options: argparse.Namespace) -> int:
    """Draws muon bundles for a file of primaries."""
    from xec_jax.data.root.manifest import resolve_paths
    from xec_jax.inference import bundles
    from xec_jax.train import xla
    from xec_jax.train.saved import load_run

    usual = parser().parse_args(["--run", "x", "--input", "x"])
    for name, value in vars(options).items():
        if name not in OF_BUNDLES and value != getattr(usual, name):
            expected = f"--{', --'.join(OF_BUNDLES)}"
            raise ConfigError(f"--{name} with a run of task muon_flow", expected=expected)
    if len(options.run) > 1 or options.output is None:
        found = f"{len(options.run)} runs, --output {options.output}"
        raise ConfigError(found, expected="one run of task muon_flow, --output FILE.parquet")
    if options.max_muons is not None and options.max_muons < 1:
        raise ConfigError(f"--max_muons {options.max_muons}", expected="a positive number")
    files = resolve_paths(options.input, ".parquet")
    check_new([options.output], overwrite=options.overwrite, inputs=files)
    run = load_run(options.run[0], step=options.step, ema=not options.no_ema)
    xla.configure(run.config.train)
    most = MAX_MUONS if options.max_muons is None else options.max_muons
    bundles.predict(run, files, options.output, seed=options.seed, max_muons=most)
    return 0


def _network(options: argparse.Namespace) -> "tuple[Network, str | None]":
    """Loads who is to be asked; the list of dead channels that goes with it."""
    from xec_jax import trained
    from xec_jax.inference.exported import Exported
    from xec_jax.inference.filling import Filling
    from xec_jax.inference.members import Members

    network: Network
    if options.onnx:
        network = Exported(options.onnx, {name: getattr(options, name) for name in OVERRIDES})
        dead_list = options.dead_channels
    else:
        network = members = Members(
            options.run,
            mc_dropout=options.mc_dropout,
            seed=options.seed,
            step=options.step,
            ema=not options.no_ema,
        )
        dead_list = trained.dead_list_of(members.runs, options.dead_channels, options.run_number)
    if options.inpaint:
        is_run = options.inpaint.is_dir()
        filler: Network = Members([options.inpaint]) if is_run else Exported(options.inpaint)
        network = Filling(filler, network)
    return network, dead_list


def _usual_layout(options: argparse.Namespace, network: "Network") -> str:
    """Returns `val_tree`, what real data have always been written in, for exported regressions."""
    is_regression = any(name.startswith("pred_") for name in network.answers)
    return "val_tree" if options.onnx and is_regression else "tree"


def _auto_name(files: Sequence[Path]) -> Path:
    """Returns the name of the output by the runs in the names of the files.

    Raises:
        ConfigError: A name that does not say them.
    """
    runs: list[int] = []
    for path in files:
        match = RUN_RANGE.search(path.name)
        if match is None:
            raise ConfigError(
                f"the name of {path} does not end in the first and last run, and there is no "
                "--output",
                expected="--output FILE.root, or files like DataGammaAngle_430000-431999.root",
            )
        runs += map(int, match.groups())
    return Path(f"inference_results_Run{min(runs)}-{max(runs)}.root")


def _check(options: argparse.Namespace) -> None:
    if options.batch_size < 1 or options.mc_dropout < 0 or options.mc_dropout == 1:
        found = f"--batch_size {options.batch_size}, --mc_dropout {options.mc_dropout}"
        raise ConfigError(found, expected="a positive batch size; 0, or 2 and more draws")
    of_runs = {"mc_dropout": 0, "seed": 0, "step": None, "no_ema": False}
    if options.run:
        chosen = [name for name in OVERRIDES if getattr(options, name) is not None]
        expected = "--onnx; a run reads what it was trained with"
    else:
        chosen = [name for name, usual in of_runs.items() if getattr(options, name) != usual]
        expected = "--run; an exported network has one set of weights and no dropout"
        if options.run_number is not None and options.dead_channels is None:
            raise ConfigError(
                f"--run_number {options.run_number}, but no list of dead channels",
                expected="--dead_channels LIST",
            )
    if chosen:
        raise ConfigError(f"--{chosen[0]} without what it is about", expected=expected)


if __name__ == "__main__":
    run_command(main)
