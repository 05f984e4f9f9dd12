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
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax explains itself at length
    from xec_jax import config as configs

    config = configs.load(arguments.config, overrides)
    file, _, variant = arguments.config.partition(":")
    workdir = arguments.workdir or Path("runs") / f"{Path(file).stem}-{variant or 'default'}"
    print(f"config {os.path.abspath(file)}, run folder {workdir}")
    if config.data.train is None:
        config = with_demo_data(config, overrides)
    return train(config, workdir, dry_run=arguments.dry_run, overwrite=arguments.overwrite)


def with_demo_data(config: "ConfigDict", overrides: Sequence[str]) -> "ConfigDict":
    """Fills in simulated events and the settings of `data.demo.set`, and says so.

    Keys that the command line names keep the user's value.
    """
    from xec_jax.config import flatten
    from xec_jax.errors import ConfigError
    from xec_jax.simulate import cached_sample

    if config.data.valid is not None:
        raise ConfigError(
            f"data.valid is {config.data.valid!r}, but data.train is not set",
            expected="both, or neither for the simulated demonstration",
        )
    print(
        "data.train is not set: training on simulated events as a demonstration.\n"
        "  Your own files: --config.data.train='/data/*.root' --config.data.valid=..."
    )
    demo = config.data.demo
    config = config.copy_and_resolve_references().unlock()
    config.data.train = str(cached_sample(demo.kind, demo.events, seed=config.seed))
    config.data.valid = str(cached_sample(demo.kind, demo.valid_events, seed=config.seed + 1))
    chosen = {argument.removeprefix("--config.").split("=")[0] for argument in overrides}
    settings = {k: v for k, v in flatten(demo.set).items() if k not in chosen}
    config.update_from_flattened_dict(settings)
    print("  demo settings: " + ", ".join(f"{key}={value}" for key, value in settings.items()))
    return config.lock()


def common_files(data: "ConfigDict") -> list[Path]:
    """Returns the files that training and validation both read."""
    from xec_jax.data.manifest import resolve_paths

    if data.valid is None:
        return []
    files = [{path.resolve() for path in resolve_paths(p)} for p in (data.train, data.valid)]
    return sorted(files[0] & files[1])


def train(
    config: "ConfigDict", workdir: Path, *, dry_run: bool = False, overwrite: bool = False
) -> int:
    """Opens data and run folder, puts the hooks together and trains.

    Whatever can be wrong with config and data is found before the run folder is touched.
    """
    from xec_jax.data.open import open_sources
    from xec_jax.tasks.base import make_task, prepare

    config = prepare(config)
    task = make_task(config)
    with contextlib.ExitStack() as stack:
        source, valid = open_sources(config.data, task.spec)
        for opened in (source, *valid.values()):
            stack.callback(opened.close)
            opened.batch(0, size=1, train=False)  # finds unreadable files now
        print(f"{len(source):,} training events, {sum(map(len, valid.values())):,} for validation")
        if not valid:
            print("data.valid is not set: no validation, no best checkpoint, no figures")
        if shared := common_files(config.data):
            print(f"WARNING: training and validation share events: {shared[0]}")

        from xec_jax.train.hooks import Figures, Hook, TrainingCurves
        from xec_jax.train.loggers import ConsoleLogger, JsonlLogger
        from xec_jax.train.loop import fit
        from xec_jax.train.saved import load_run
        from xec_jax.train.signals import StopFlag
        from xec_jax.train.trainer import Trainer, check_spec
        from xec_jax.train.workdir import open_workdir

        for opened in valid.values():
            check_spec(task, opened)
        trainer = Trainer(task, config, source)
        start = None
        # A save that was cut off leaves `N.something` behind, which is no checkpoint.
        folder = workdir / "checkpoints"
        begun = not overwrite and any(path.name.isdigit() for path in folder.glob("*"))
        if config.train.init_from is not None and not begun:
            start, text = trainer.state_from(load_run(Path(config.train.init_from)))
            print(f"{config.train.init_from}: {text}")
        if dry_run:
            loss = trainer.try_step(source, start)
            print(f"dry run: config and data are fine, loss of the first step {loss:.4g}")
            return 0
        trainer.state_shapes()  # traces the network: values that do not fit show now
        if trainer.global_batch > len(source):
            print(
                f"WARNING: a step takes {trainer.global_batch} events, there are {len(source)}: "
                "batches are mostly padding; lower data.batch_size or train.grad_accum_steps"
            )
        data = {
            name: opened.fingerprint[:16] for name, opened in {"train": source, **valid}.items()
        }
        record = {**task.record, "events": data, "events_per_step": trainer.global_batch}
        resumed = open_workdir(workdir, config, record=record, overwrite=overwrite)
        hooks: list[Hook] = [
            ConsoleLogger(tuple(config.log.show)),
            JsonlLogger(workdir / "metrics.jsonl"),
            TrainingCurves(workdir),
        ]
        if valid and config.eval.figure_events:
            first = next(iter(valid.values()))
            hooks.append(Figures(task, first, events=config.eval.figure_events, workdir=workdir))
        with StopFlag() as stop:
            result = fit(
                *(task, config, source, valid),
                workdir=workdir,
                state=start,
                hooks=hooks,
                stop=stop,
            )
    if resumed and not result.steps_run:
        steps = int(result.state.step)
        print(f"already complete after {steps} steps; raise train.epochs to go on")
    print(f"done: {workdir}")
    return 0


if __name__ == "__main__":
    if not {"-h", "--help"} & set(sys.argv[1:]):
        restart_with_huge_pages()
    run_command(main)
