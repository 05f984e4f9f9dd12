"""`python -m xec_jax.train`: trains the experiment of a config file, or continues a run."""

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xec_jax.errors import EXIT_CODES, run_command
from xec_jax.train.huge_pages import restart_with_huge_pages

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from xec_jax.train.signals import StopFlag

EXAMPLES = """examples:
  python -m xec_jax.train --config configs/mae.py                      simulated demo
  python -m xec_jax.train --config configs/mae.py --config.data.train='/data/*.root'
  python -m xec_jax.train --config configs/mae.py:tiny                 a minute, to try things
  python -m xec_jax.train --config configs/mae.py --config.optim.lr=1e-4 --workdir runs/lr1e-4

Every key of the config file can be set as --config.group.key=value. The same command in the
same folder continues where the run stopped. Config files are programs: run only those you
trust.
"""


def parser() -> argparse.ArgumentParser:
    """Describes the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m xec_jax.train",
        description="Trains the experiment of a config file, or continues a run.",
        epilog=EXAMPLES + "\n" + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="FILE.py[:VARIANT]")
    parser.add_argument(
        "--workdir", type=Path, help="run folder (default: runs/NAME-VARIANT of the config)"
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="check config and data, try one step, write nothing"
    )
    parser.add_argument(
        "--check_config",
        action="store_true",
        help="check the config, show what differs from the file; touches neither data nor devices",
    )
    parser.add_argument(
        "--resume",
        choices=("auto", "must", "never"),
        default="auto",
        help="what to do with a folder that holds a run, or none (default: continue, or begin)",
    )
    parser.add_argument(
        "--accept_new_data",
        action="store_true",
        help="continue a run although its data files have changed",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="delete the run that the folder holds, start anew",
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    arguments, overrides = parser().parse_known_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    logging.getLogger("xec_jax").setLevel(logging.INFO)
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # orbax explains itself at length
    from xec_jax import config as configs
    from xec_jax.train.signals import StopFlag

    with StopFlag() as stop:
        config = configs.load(arguments.config, overrides)
        if arguments.check_config:
            return check(config, arguments.config)
        file, _, variant = arguments.config.partition(":")
        workdir = arguments.workdir or Path("runs") / f"{Path(file).stem}-{variant or 'default'}"
        from xec_jax.train import distributed, xla
        from xec_jax.train.status import refusals_noted

        with contextlib.ExitStack() as stack:
            if not arguments.dry_run:
                stack.enter_context(refusals_noted(workdir))
            stack.enter_context(distributed.joined(lambda: bool(stop)))
            xla.configure(config.train)
            distributed.tell(f"config {os.path.abspath(file)}, run folder {workdir}")
            if config.data.train is None:
                config = with_demo_data(config, overrides)
            return train(config, workdir, arguments, stop)


def check(config: "ConfigDict", path: str) -> int:
    """Builds the experiment of a config without data and devices, for a login node."""
    from xec_jax import config as configs
    from xec_jax.train.check import check_config

    check_config(config)
    print(f"{path}: the config is fine")
    for key, (old, new) in configs.diff(configs.load(path), config).items():
        print(f"  {key}: {old!r} -> {new!r}")
    return 0


def with_demo_data(config: "ConfigDict", overrides: Sequence[str]) -> "ConfigDict":
    """Fills in simulated events and the settings of `data.demo.set`, and says so.

    Keys that the command line names keep the user's value.
    """
    from ml_collections import ConfigDict

    from xec_jax.config import flatten
    from xec_jax.simulate import SUFFIX, cached_sample
    from xec_jax.train.check import check_files
    from xec_jax.train.distributed import first_does, tell

    check_files(config.data)
    demo, seed = config.data.demo, config.seed

    def simulate() -> list[str]:
        print(
            "data.train is not set: training on simulated events as a demonstration.\n"
            f"  Your own files: --config.data.train='/data/*{SUFFIX[demo.kind]}' "
            "--config.data.valid=..."
        )
        parameters = demo.get("parameters", ConfigDict()).to_dict()
        return [
            str(cached_sample(demo.kind, n, seed=seed + i, parameters=parameters))
            for i, n in enumerate((demo.events, demo.valid_events))
        ]

    config = config.copy_and_resolve_references().unlock()
    config.data.train, config.data.valid = first_does(simulate)
    chosen = {argument.removeprefix("--config.").split("=")[0] for argument in overrides}
    settings = {k: v for k, v in flatten(demo.set).items() if k not in chosen}
    config.update_from_flattened_dict(settings)
    tell("  demo settings: " + ", ".join(f"{key}={value}" for key, value in settings.items()))
    return config.lock()


def train(
    config: "ConfigDict", workdir: Path, arguments: argparse.Namespace, stop: "StopFlag"
) -> int:
    """Opens the data and hands everything to the job."""
    from xec_jax.data.open import open_sources
    from xec_jax.tasks.base import make_task, prepare
    from xec_jax.train.check import shared_files
    from xec_jax.train.distributed import tell
    from xec_jax.train.job import run_job

    config = prepare(config)
    task = make_task(config)
    with contextlib.ExitStack() as stack:
        source, valid = open_sources(config.data, task.spec)
        for opened in (source, *valid.values()):
            stack.callback(opened.close)
            opened.batch(0, size=1, train=False)  # finds unreadable files now
        tell(f"{len(source):,} training events, {sum(map(len, valid.values())):,} for validation")
        if not valid:
            tell("data.valid is not set: no validation, no best checkpoint, no figures")
        if shared := shared_files(config.data):
            tell(
                f"WARNING: training and validation share events: {len(shared)} file(s), such as "
                f"{shared[0]}; the validation says nothing about new events"
            )
        result = run_job(
            *(task, config, source, valid, workdir),
            stop=stop,
            command=["python", "-m", "xec_jax.train", *sys.argv[1:]],
            dry_run=arguments.dry_run,
            overwrite=arguments.overwrite,
            accept_new_data=arguments.accept_new_data,
            resume=arguments.resume,
        )
    if result is not None:
        if config.eval.report and valid:
            evaluate(config, workdir, stop, is_new=result.steps_run > 0)
        tell(f"done: {workdir}")
    return 0


def evaluate(config: "ConfigDict", workdir: Path, stop: "StopFlag", *, is_new: bool) -> None:
    """Evaluates the best state on the validation events, unless it was done before."""
    from xec_jax.evaluation.after_training import report_run
    from xec_jax.train import distributed

    if distributed.count() > 1:
        # The others would wait for the first one longer than the cluster has patience.
        distributed.tell(f"to evaluate: python -m xec_jax.evaluate --run {workdir} --input ...")
    elif is_new or not (workdir / "evaluation" / "valid" / "report.html").exists():
        report_run(workdir, config, lambda: bool(stop))


if __name__ == "__main__":
    if not {"-h", "--help", "--check_config"} & set(sys.argv[1:]):
        restart_with_huge_pages()
    run_command(main)
