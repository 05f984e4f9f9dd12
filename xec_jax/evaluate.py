"""`python -m xec_jax.evaluate`: how good a trained network is, in numbers, files and figures."""

import argparse
import logging
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xec_jax.errors import EXIT_CODES, ConfigError, run_command

if TYPE_CHECKING:
    from xec_jax.evaluation.base import Setting
    from xec_jax.train.saved import SavedRun

EXAMPLES = """examples:
  evaluate --run runs/regress-default --input '/data/val*.root'
  evaluate --run runs/regress-default --input '/data/val*.root' --scan pileup
  evaluate --run runs/inpaint-default --input MC.root --hide artificial
  evaluate --run runs/inpaint-default --input MC.root --hide pattern \\
      --dead_channels dead.txt --run_number 430000      where a real run is blind
  evaluate --run runs/inpaint-default --input DATA.root --hide dead
  evaluate --real --input inference_results_Run430000-431999.root     what `predict` wrote

writes metrics.json, metrics.txt, ROOT files, figures (PDF, PNG, npz) and report.html.

--real draws predictions for real data beside what the reconstruction found, into plots_real_data
unless --output says otherwise; with --run also the weights of the faces in its heads.

what an inpainter has to fill (--hide):
  training    random sensors as in the training (default)
  artificial  a number per face, --hide_counts inner:10,us:1,ds:1,outer:1,top:1,bot:1
  pattern     the sensors of --dead_channels; their truth is known in simulated events
  front       the inner sensor in front of the first interaction
  dead        what is dead in the files; there is no truth

scans (--scan): pileup (Hz, simulated anew), dead (share of channels), gain (relative spread),
  noise (photons), offset, jitter (s); energy, u, v, w, theta, phi: bins of the given events.
"""

log = logging.getLogger(__name__)

OF_REAL = ("real", "run", "input", "output", "overwrite", "step", "no_ema")
OF_BUNDLES = (
    *("run", "input", "output", "overwrite", "batch_size", "step", "no_ema", "seed"),
    "no_figures",
)
HIDE = ("training", "artificial", "pattern", "front", "dead")
SCANS = (
    "pileup",
    "dead",
    "gain",
    "noise",
    "offset",
    "jitter",
    "energy",
    "u",
    "v",
    "w",
    "theta",
    "phi",
)


def parser() -> argparse.ArgumentParser:
    """Describes the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m xec_jax.evaluate",
        description="Evaluates a run on the events of ROOT files, or on muon bundles in parquet.",
        epilog=EXAMPLES + "\n" + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--run", type=Path, metavar="DIR", help="required unless --real")
    parser.add_argument("--input", required=True, nargs="+", metavar="GLOB")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="default: RUN/evaluation/NAME, of the input"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files of an evaluation")
    parser.add_argument(
        "--real", action="store_true", help="the input is what `predict` wrote for real data"
    )
    parser.add_argument("--tree", help="name of the tree (default: that of the run's config)")
    parser.add_argument("--batch_size", type=int, default=64, metavar="B", help="default: 64")
    parser.add_argument("--step", type=int, help="checkpoint to use (default: the best one)")
    parser.add_argument("--no_ema", action="store_true", help="not the moving average")
    parser.add_argument("--csv", action="store_true", help="predictions as text, too")
    parser.add_argument("--no_figures", action="store_true", help="numbers alone")
    parser.add_argument(
        "--max_events", type=int, default=1000, metavar="N", help="in an autoencoder's file"
    )
    parser.add_argument(
        "--max_rows", type=int, default=20_000_000, metavar="N", help="in an inpainter's files"
    )
    others = parser.add_argument_group("classical methods and limits")
    others.add_argument(
        "--opponents",
        type=int,
        default=1000,
        metavar="N",
        help="events that they are computed for (inpainting: all, unless 0); default: 1000",
    )
    others.add_argument(
        "--calibrate",
        nargs="+",
        default=[],
        metavar="GLOB",
        help="events that their constants are from (default: those of the training)",
    )
    others.add_argument("--calibrate_events", type=int, default=4000, metavar="N")
    hiding = parser.add_argument_group("hidden and dead sensors")
    hiding.add_argument("--hide", choices=HIDE, default="training", help="see below")
    hiding.add_argument("--hide_counts", type=_counts, metavar="FACE:N,...", help="see below")
    hiding.add_argument("--seed", type=int, default=42, help="of the artificial choice")
    hiding.add_argument(
        "--dead_channels",
        metavar="LIST",
        help="sensors to leave out, or to hide (default: data.dead_channels of the run)",
    )
    hiding.add_argument(
        "--run_number", type=int, metavar="R", help="those of run R (default: by branch `run`)"
    )
    scan = parser.add_argument_group("robustness")
    scan.add_argument("--scan", choices=SCANS, help="see below")
    scan.add_argument("--scan_values", nargs="+", type=float, metavar="X", help="where to look")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    options = parser().parse_args(argv)
    folder = _folder(options)
    _check(options, folder)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax explains itself at length
    from xec_jax import trained
    from xec_jax.data.open import open_source
    from xec_jax.data.root.manifest import resolve_paths
    from xec_jax.evaluation import base, outcome
    from xec_jax.evaluation.scan import scan
    from xec_jax.evaluation.text import to_text
    from xec_jax.train import xla
    from xec_jax.train.saved import load_run

    trained.refuse_caches(options.input)
    if options.real and options.run is None:
        return _real(options, resolve_paths(options.input), folder)
    run = load_run(options.run, step=options.step, ema=not options.no_ema)
    xla.configure(run.config.train)
    (task,) = trained.make_tasks([options.run], [run])
    if run.config.data.source == "bundles":
        return _bundles(options, run, task, folder)
    files = resolve_paths(options.input)
    if options.real:
        return _real(options, files, folder, _setting(options, run, task, "val_tree", False, files))
    trained.check_parts(options.run, task, run.params)
    data = trained.data_to_read(run, options.tree, has_cut=True)
    more = base.branches_of(task.name)
    wanted, is_simulated = trained.wanted_branches(task, data.tree_name, files[0], more)
    setting = _setting(options, run, task, data.tree_name, is_simulated, files)
    cut = {name: limit for name, limit in data.fiducial.items() if limit is not None}
    if cut and not is_simulated:
        log.warning("no fiducial cut: the files have no uvwTruth")
        data.fiducial.update(dict.fromkeys(cut))
    facts: dict[str, Any] = {"input": ", ".join(options.input), "date": _date()}
    if cut and is_simulated:
        facts["fiducial cut"] = ", ".join(f"{name} {limit} cm" for name, limit in cut.items())
    source = open_source(data, files, wanted=wanted)
    try:
        if options.hide != "pattern":
            path = trained.dead_list_of([run], options.dead_channels, options.run_number)
            if path is not None:
                source, dead = trained.leave_out(source, path, options.run_number, data, files)
                facts["dead channels"] = f"{dead['list']}, run {dead['run_number']}"
        if options.scan is not None:
            scan(setting, source, folder, options.scan, options.scan_values)
        else:
            tables = outcome.evaluate(setting, source, folder, workdir=options.run, facts=facts)
            print("\n".join(map(to_text, tables[:2])))  # all of them are in metrics.txt
    finally:
        source.close()
    print(f"done: {folder}")
    return 0


def _bundles(options: argparse.Namespace, run: "SavedRun", task: Any, folder: Path) -> int:
    """Evaluates a flow on muon bundles, which have neither sensors nor a tree."""
    from xec_jax.data.open import open_source
    from xec_jax.data.root.manifest import resolve_paths
    from xec_jax.evaluation import outcome
    from xec_jax.evaluation.base import Options, Setting, epoch_of
    from xec_jax.evaluation.text import to_text

    _refuse_others(options, OF_BUNDLES, "an evaluation of muon bundles")
    files = resolve_paths(options.input, ".parquet")
    setting = Setting(
        name=options.run.resolve().name,
        run=run,
        task=task,
        epoch=epoch_of(options.run, run.step),
        is_simulated=False,
        sample=None,
        tree_name="",
        files=tuple(files),
        options=Options(
            batch_size=max(options.batch_size, run.config.data.batch_size),
            seed=options.seed,
            has_figures=not options.no_figures,
        ),
    )
    source = open_source(run.config.data, [str(path) for path in files])
    facts = {"input": ", ".join(options.input), "date": _date()}
    tables = outcome.evaluate(setting, source, folder, workdir=options.run, facts=facts)
    print("\n".join(map(to_text, tables)))
    print(f"done: {folder}")
    return 0


def _real(
    options: argparse.Namespace,
    files: Sequence[Path],
    folder: Path,
    setting: "Setting | None" = None,
) -> int:
    """Draws predictions that `predict` wrote; the run, if given, for the weights of its heads."""
    from xec_jax.evaluation.real import draw
    from xec_jax.evaluation.text import to_text

    facts = {"date": _date()} | ({"run": str(options.run)} if setting else {})
    print(to_text(draw(files, folder, facts, setting)))
    print(f"done: {folder}")
    return 0


def _setting(
    options: argparse.Namespace,
    run: "SavedRun",
    task: Any,
    tree_name: str,
    is_simulated: bool,
    files: Sequence[Path],
) -> "Setting":
    from xec_jax.evaluation.base import Options, Setting, epoch_of
    from xec_jax.sim.limits import sample_parameters

    chosen = {
        "batch_size": options.batch_size,
        "csv": options.csv,
        "max_events": options.max_events,
        "max_rows": options.max_rows,
        "hide": options.hide,
        "seed": options.seed,
        "dead_list": options.dead_channels or run.config.data.dead_channels,
        "run_number": options.run_number,
        "opponents": options.opponents,
        "calibrate": tuple(options.calibrate),
        "calibrate_events": options.calibrate_events,
        "has_figures": not options.no_figures,
    }
    if options.hide_counts is not None:
        chosen["counts"] = options.hide_counts
    return Setting(
        name=options.run.resolve().name,
        run=run,
        task=task,
        epoch=epoch_of(options.run, run.step),
        is_simulated=is_simulated,
        sample=sample_parameters(files[0]),
        tree_name=tree_name,
        files=tuple(files),
        options=Options(**chosen),
    )


def _date() -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime()) + " UTC"


def _folder(options: argparse.Namespace) -> Path:
    """Returns where to write.

    Raises:
        ConfigError: There is no run to evaluate.
    """
    if options.real:
        return options.output or Path("plots_real_data")
    if options.run is None:
        raise ConfigError("no --run", expected="the folder of the run to evaluate, or --real")
    return options.output or options.run / "evaluation" / _name(options.input[0])


def _name(first: str) -> str:
    """Returns what the folder of an evaluation is called: the input without wildcards."""
    path = Path(first)
    is_file = path.suffix in (".root", ".parquet")
    return re.sub(r"[^\w.-]+", "", path.stem if is_file else path.name) or "events"


def _counts(text: str) -> dict[str, int]:
    """Reads `inner:10,us:1`."""
    found = {}
    for part in text.split(","):
        match = re.fullmatch(r"(\w+):([0-9]{1,4})", part.strip())
        if match is None:
            raise argparse.ArgumentTypeError(f"{part!r} is not of the form face:number")
        found[match[1]] = int(match[2])
    return found


def _refuse_others(options: argparse.Namespace, allowed: Sequence[str], what: str) -> None:
    usual = parser().parse_args(["--input", "x"])
    for key, value in vars(options).items():
        if key not in allowed and value != getattr(usual, key):
            raise ConfigError(f"--{key} with {what}", expected=f"--{', --'.join(allowed)}")


def _check(options: argparse.Namespace, folder: Path) -> None:
    name = f"scan_{options.scan}.json" if options.scan else "metrics.json"
    if options.real:
        name = "report.html"
        _refuse_others(options, OF_REAL, "--real")
    if (folder / name).exists() and not options.overwrite:
        raise ConfigError(
            f"{folder} holds an evaluation ({name})",
            expected="a new folder",
            remedy="choose another --output, or --overwrite",
        )
    for key in ("batch_size", "max_events", "max_rows"):
        if getattr(options, key) < 1:
            raise ConfigError(f"--{key} {getattr(options, key)}", expected="a positive number")
    for key in ("opponents", "calibrate_events"):
        if getattr(options, key) < 0:
            raise ConfigError(f"--{key} {getattr(options, key)}", expected="0 or more")
    if options.scan_values and not options.scan:
        raise ConfigError("--scan_values without --scan", expected="what to change")


if __name__ == "__main__":
    run_command(main)
