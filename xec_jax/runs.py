"""Command that lists and compares runs, and keeps their registry.

    python -m xec_jax.runs runs                       a table of all runs below a folder
    python -m xec_jax.runs runs --best 3              the best of them

Heavy packages are imported inside functions, so that `--help` answers at once.
"""

import argparse
import json
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xec_jax.errors import EXIT_CODES, ConfigError, DataError, XecError, run_command

if TYPE_CHECKING:
    from xec_jax.registry.run import Metric, Run

EXAMPLES = """examples:
  python -m xec_jax.runs runs                              all runs below the folder `runs`
  python -m xec_jax.runs runs --best 3 --metric angle_resolution_68pct
  python -m xec_jax.runs runs --where optim.lr=1e-4 --state done --sort started
  python -m xec_jax.runs runs --format html --output runs.html
  python -m xec_jax.runs register --config configs/mae.py --config.optim.lr=1e-4 --note 'half lr'
  python -m xec_jax.runs fail runs/mae-default --reason 'node went down'
  python -m xec_jax.runs import registry.md --output runs/claims.jsonl
  python -m xec_jax.runs sync runs/mae-default runs/mae-tiny --tracker mlflow

`runs FOLDER` is short for `runs list FOLDER`; `runs COMMAND --help` has the options of a command.
"""

COMMANDS = ("list", "register", "finish", "fail", "import", "sync")


def parser() -> argparse.ArgumentParser:
    """Describes the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m xec_jax.runs",
        description="Lists and compares runs, and keeps their registry.",
        epilog=EXAMPLES + "\n" + EXIT_CODES,
        formatter_class=raw,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _describe_list(commands.add_parser("list", help="a table of all runs below folders"))
    register = commands.add_parser(
        "register",
        help="note a run before it is submitted",
        description="Notes a run before it is submitted; --config.group.key=value as in training. "
        "Executes the config file: use only those you trust.",
        allow_abbrev=False,
    )
    register.add_argument("--config", required=True, metavar="FILE.py[:VARIANT]")
    register.add_argument("--workdir", type=Path, help="run folder (default: as in training)")
    register.add_argument("--note", default="", metavar="TEXT", help="what the run is for")
    for name, state in (("finish", "done"), ("fail", "failed")):
        close = commands.add_parser(name, help=f"enter that a run that cannot say so is {state}")
        close.add_argument("run", type=Path, metavar="RUN", help="run folder")
        close.add_argument("--reason", required=True, metavar="TEXT")
    claims = commands.add_parser("import", help="read a hand-kept registry in Markdown as claims")
    claims.add_argument("file", type=Path, metavar="FILE.md")
    claims.add_argument("--output", type=Path, required=True, help="FOLDER/claims.jsonl")
    claims.add_argument("--overwrite", action="store_true", help="replace an existing file")
    sync = commands.add_parser("sync", help="send what trackers lack of the records of runs")
    sync.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders")
    sync.add_argument(
        "--tracker",
        action="append",
        default=[],
        dest="trackers",
        metavar="NAME",
        help="mlflow, tensorboard or wandb; several times (log.trackers of each run)",
    )
    return parser


def _describe_list(parser: argparse.ArgumentParser) -> None:
    from xec_jax.registry.run import STATES

    parser.add_argument(
        "folders", type=Path, nargs="*", default=[Path("runs")], metavar="FOLDER", help="(runs)"
    )
    parser.add_argument(
        "--metric", default="loss", metavar="[SET/]NAME", help="what `best` is about (loss)"
    )
    parser.add_argument("--max", action="store_true", help="best is the largest value")
    parser.add_argument("--best", type=int, metavar="N", help="the best N runs only, best first")
    parser.add_argument("--sort", metavar="KEY", help="column or config key (order of folders)")
    parser.add_argument("--reverse", action="store_true", help="largest first")
    parser.add_argument("--task", help="only runs of this task")
    parser.add_argument("--state", choices=STATES, help="only runs in this state")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="only runs with this value",
    )
    parser.add_argument("--format", choices=("text", "csv", "json", "html"), default="text")
    parser.add_argument("--output", type=Path, metavar="FILE", help="instead of the terminal")


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    words = list(argv)
    if not words or words[0] not in (*COMMANDS, "-h", "--help"):
        words.insert(0, "list")
    arguments, rest = parser().parse_known_args(words)
    if arguments.command == "list" and arguments.best is not None and arguments.best < 1:
        parser().error(f"--best {arguments.best}: at least 1")
    if rest and (arguments.command != "register" or not rest[0].startswith("--config.")):
        parser().error(f"unrecognized arguments: {' '.join(rest)}")
    if arguments.command == "list":
        return _list(arguments)
    if arguments.command == "register":
        return _register(arguments, rest)
    if arguments.command == "import":
        return _import(arguments.file, arguments.output, overwrite=arguments.overwrite)
    if arguments.command == "sync":
        return _sync(arguments.runs, arguments.trackers)
    from xec_jax.train.status import close

    close(arguments.run, "done" if arguments.command == "finish" else "failed", arguments.reason)
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from xec_jax.registry import table
    from xec_jax.registry.measured import check_recorded
    from xec_jax.registry.run import Metric
    from xec_jax.registry.scan import scan

    split, _, name = arguments.metric.rpartition("/")
    metric = Metric(name, split or None, arguments.max)
    for folder in arguments.folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is no folder", expected="a folder with runs below it")
    found = [run for folder in arguments.folders for run in scan(folder, metric)]
    if arguments.metric != "loss":  # which every validation has
        check_recorded(found, metric)
    runs = table.select(
        found,
        metric=metric,
        task=arguments.task,
        state=arguments.state,
        where=arguments.where,
        sort=arguments.sort,
        reverse=arguments.reverse,
        best=arguments.best,
    )
    where = ", ".join(map(str, arguments.folders))
    if not runs:
        what = f"none of {len(found)} runs below {where} is" if found else f"no runs below {where}"
        print(what + (" as asked for" if found else ""), file=sys.stderr)
    color = arguments.output is None and sys.stdout.isatty()
    text = _as_text(runs, metric, arguments.format, where, color)
    if arguments.output is None:
        sys.stdout.write(text)
    else:
        _write(arguments.output, text)
        print(f"{len(runs)} runs: {arguments.output}")
    return 0


def _as_text(runs: "Sequence[Run]", metric: "Metric", kind: str, where: str, color: bool) -> str:
    if kind == "html":
        from xec_jax.registry.page import to_html

        return to_html(runs, metric, f"Runs in {where}")
    if kind == "text":
        from xec_jax.registry.text import to_text

        return to_text(runs, metric, color=color) if runs else ""
    from xec_jax.registry.table import to_csv, to_json

    return to_csv(runs) if kind == "csv" else to_json(runs)


def _register(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from xec_jax import config as configs
    from xec_jax.train.status import register

    config = configs.load(arguments.config, overrides)
    file, _, variant = arguments.config.partition(":")
    workdir = arguments.workdir or Path("runs") / f"{Path(file).stem}-{variant or 'default'}"
    command = ["python", "-m", "xec_jax.train", "--config", arguments.config]
    command += ["--workdir", str(workdir), *overrides]
    values = json.loads(configs.to_json(config))
    planned = {"config": arguments.config, "overrides": overrides, "values": values}
    if register(workdir, command=command, note=arguments.note, planned=planned):
        print(f"registered {workdir}; to start it:\n  {shlex.join(command)}")
    else:
        print(f"{workdir} was started already; the same command continues it")
    return 0


def _import(file: Path, output: Path, *, overwrite: bool) -> int:
    from xec_jax.registry.claims import read_claims
    from xec_jax.registry.scan import CLAIMS

    if output.name != CLAIMS:
        raise ConfigError(
            f"--output {output}", expected=f"FOLDER/{CLAIMS}, which listings look for"
        )
    if output.exists() and not overwrite:
        raise ConfigError(
            f"{output} exists", remedy="add --overwrite to replace it, or choose another folder"
        )
    rows = read_claims(file)
    _write(output, "".join(json.dumps(row) + "\n" for row in rows))
    print(f"{len(rows)} claims: {output}")
    return 0


def _sync(runs: Sequence[Path], trackers: Sequence[str]) -> int:
    """Sends all runs, whatever happens to some of them."""
    from xec_jax.train.trackers import sync

    errors = []
    for run in runs:
        try:
            sync(run, trackers)
        except XecError as error:
            errors.append(error)
    if len(errors) > 1:
        raise DataError("\n".join(map(str, errors)))
    if errors:
        raise errors[0]
    return 0


def _write(path: Path, text: str) -> None:
    from xec_jax.config import write_text
    from xec_jax.errors import DiskError

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"cannot make the folder of {path}: {error}") from error
    write_text(path, text)


if __name__ == "__main__":
    run_command(main)
