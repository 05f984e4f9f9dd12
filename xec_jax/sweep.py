"""`python -m xec_jax.sweep`: searches hyper-parameters, with as many workers as one likes."""

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xec_jax.errors import EXIT_CODES, ConfigError, DiskError, run_command

if TYPE_CHECKING:
    from xec_jax.train.signals import StopFlag

EXAMPLES = """examples:
  python -m xec_jax.sweep --config configs/mae.py --output sweeps/mae --trials 30
  python -m xec_jax.sweep --config configs/mae.py --output sweeps/mae-grid --grid \\
      --search.optim.lr="('log', 1e-4, 1e-2, 3)"
  python -m xec_jax.sweep --config configs/regress.py --output sweeps/energy \\
      --metric energy_rel_res_68pct --config.data.train='/data/train*.root' ...

The config file declares what is varied, SEARCH = {"default": {"optim.lr": ("log", 1e-5, 1e-2),
...}}. --config.group.key=value holds a key fixed in all trials, --search.group.key=(...) replaces
or adds an entry of the space. The same command, started again or several times at once, joins the
study in --output and continues what was stopped.
"""


def parser() -> argparse.ArgumentParser:
    """Describes the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m xec_jax.sweep",
        description="Searches hyper-parameters: many trainings, each in a process of its own.",
        epilog=EXAMPLES + "\n" + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", required=True, metavar="FILE.py[:VARIANT]")
    add("--output", required=True, type=Path, metavar="DIR", help="folder of the study")
    add("--space", default="default", metavar="NAME", help="which entry of SEARCH")
    add("--trials", type=int, metavar="N", help="in all, of all workers (20, or the whole grid)")
    add("--metric", default="loss", metavar="NAME", help="of the first validation set (loss)")
    add("--max", action="store_true", help="larger values of the metric are better")
    add("--grid", action="store_true", help="all combinations instead of proposals")
    add("--seed", type=int, default=0, metavar="S", help="of the proposals (0)")
    add("--timeout", type=float, default=math.inf, metavar="HOURS", help="then start no more")
    add("--no_prune", action="store_true", help="train trials to the end that do badly")
    add("--dry_run", action="store_true", help="check config and space, write nothing")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    arguments, rest = parser().parse_known_args(argv)
    from xec_jax.train.signals import StopFlag

    with StopFlag() as stop:
        return search(arguments, rest, stop)


def search(arguments: argparse.Namespace, rest: Sequence[str], stop: "StopFlag") -> int:
    """Works on the study until it is complete, and shows what it has found."""
    from xec_jax.search.plan import Plan
    from xec_jax.search.space import read_space

    changes = [argument for argument in rest if argument.startswith("--search.")]
    fixed = tuple(argument for argument in rest if argument not in changes)
    space = read_space(arguments.config, arguments.space, fixed, changes)
    plan = Plan(arguments.config, fixed, space, arguments.metric, arguments.max, arguments.grid)
    limit = plan.limit(arguments.trials)
    for dimension in space:
        print(f"  {dimension.key}: {dimension.kind} {', '.join(map(str, dimension.values))}")
    print(f"{limit} trials in {arguments.output}")
    if arguments.dry_run:
        from xec_jax import config as configs
        from xec_jax.search.space import overrides
        from xec_jax.train.check import check_config

        example = {dimension.key: dimension.values[0] for dimension in space}
        check_config(configs.load(arguments.config, [*fixed, *overrides(example)]))
        words = plan.command(example, arguments.output / "trials" / "0000")
        print("dry run: config and space are fine; a trial would be, for instance,")
        print("  " + shlex.join(["python", *words[1:]]))
        return 0

    stop.defer()  # from here on there are locks to give back
    from xec_jax.search.results import draw_results, print_results
    from xec_jax.search.study import Study
    from xec_jax.search.worker import Worker

    try:
        study = Study(arguments.output, plan, seed=arguments.seed, prune=not arguments.no_prune)
        Worker(study, stop).run(limit, arguments.timeout)
    except OSError as error:
        raise DiskError(f"{arguments.output}: {error}") from error
    is_found = print_results(study)
    try:
        draw_results(study)
    except Exception as error:  # whatever it is, the search is done and its results are on disk
        print(f"WARNING: the figures could not be drawn: {error}", file=sys.stderr)
    if not is_found:
        raise ConfigError(
            f"no trial of {arguments.output} is complete",
            remedy="see the notes in trials.csv and the output of the trials beside it",
        )
    return 0


if __name__ == "__main__":
    run_command(main)
