"""`python -m xec_jax.predict`: what trained networks say about events, written as a ROOT file."""

import argparse
import itertools
import json
import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xec_jax.errors import EXIT_CODES, ConfigError, run_command

if TYPE_CHECKING:
    import numpy as np

    from xec_jax.data.source import Source
    from xec_jax.tasks.base import Task

EXAMPLES = """examples:
  predict --run runs/regress-default --input '/data/*.root' --output out.root
  predict --run runs/a runs/b runs/c --input F.root --output out.root      deep ensemble
  predict --run runs/a --mc_dropout 32 --input F.root --output out.root    Monte-Carlo dropout
  predict --run runs/a --input MC.root --output out.root \\
      --dead_channels dead.txt --run_number 430000         the sensors that a real run lacks

Rows have the order of the input. Several runs or draws add `_std`, their spread; where the files
hold the truth and the predictions an uncertainty, a figure compares the two.
"""


def parser() -> argparse.ArgumentParser:
    """Describes the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m xec_jax.predict",
        description="Writes the predictions of one or several runs for the events of ROOT files.",
        epilog=EXAMPLES + "\n" + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--run", required=True, nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--input", required=True, nargs="+", metavar="GLOB")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE.root")
    parser.add_argument("--tree", help="name of the tree (default: that of the run's config)")
    parser.add_argument("--batch_size", type=int, default=64, metavar="B", help="default: 64")
    parser.add_argument(
        "--mc_dropout", type=int, default=0, metavar="N", help="average N draws with dropout on"
    )
    parser.add_argument(
        "--dead_channels",
        metavar="LIST",
        help="sensors to leave out (default: data.dead_channels of the run; /dev/null for none)",
    )
    parser.add_argument(
        "--run_number",
        type=int,
        metavar="R",
        help="leave out those of run R in all events (default: by the branch `run`)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the dropout draws")
    parser.add_argument("--step", type=int, help="checkpoint to use (default: the best one)")
    parser.add_argument("--no_ema", action="store_true", help="not the moving average")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
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
    from xec_jax.data.root.writer import write_tree
    from xec_jax.train.saved import load_run

    trained.refuse_caches(options.input)
    files = resolve_paths(options.input)
    runs = [load_run(path, step=options.step, ema=not options.no_ema) for path in options.run]
    tasks = trained.make_tasks(options.run, runs)
    _check_members(options.run, tasks, [run.params for run in runs])
    data = trained.data_to_read(runs[0], options.tree)
    dead_list = trained.dead_list_of(runs, options.dead_channels, options.run_number)
    members = Members(tasks, [run.params for run in runs], options.mc_dropout, options.seed)
    notes: dict[str, Any] = {
        "runs": [str(path) for path in options.run],
        "steps": [run.step for run in runs],
        "is_average": [run.is_average for run in runs],
        "mc_dropout": options.mc_dropout,
        "dead_channels": None,
        "record": dict(tasks[0].record),
        "units": dict(tasks[0].units) | _units(_answer(tasks[0])),
        "config": runs[0].config.to_dict(),
    }
    pulls = Pulls()
    begun = time.monotonic()
    wanted, _ = trained.wanted_branches(tasks[0], data.tree_name, files[0])
    source = open_source(data, files, wanted=wanted)
    try:
        if dead_list is not None:
            source, notes["dead_channels"] = trained.leave_out(
                source, dead_list, options.run_number, data, files
            )
        rows = pulls.watch(predict(members, source, options.batch_size))
        metadata = {"metadata": json.dumps(notes, indent=1)}
        n = write_tree(options.output, rows, notes=metadata)
    finally:
        source.close()
    seconds = time.monotonic() - begun
    print(f"wrote {n} events to {options.output}, {n / seconds:.0f} events/s with compilation")
    pulls.report(options.output)
    return 0


class Members:
    """Networks, or draws of one network, that are asked the same question.

    Args:
        tasks: One per network.
        params: Their parameters.
        mc_dropout: Draws with dropout per network; 0 for none, and no dropout.
        seed: Seed of the draws.
    """

    def __init__(
        self, tasks: "Sequence[Task]", params: Sequence[Any], mc_dropout: int = 0, seed: int = 0
    ) -> None:
        import jax

        self.task = tasks[0]
        self.keys: list[Any] = [
            jax.random.fold_in(jax.random.PRNGKey(seed), i) for i in range(mc_dropout)
        ]
        steps: dict[int, Any] = {id(t): jax.jit(t.predict) for t in tasks if t.predict}
        self.networks = [(steps[id(t)], values) for t, values in zip(tasks, params, strict=True)]

    def __call__(self, batch: Mapping[str, Any]) -> "dict[str, np.ndarray]":
        """Returns the combined prediction of a batch; inputs that it lacks are invalid."""
        import jax

        from xec_jax.trained import complete

        batch = complete(batch, self.task)
        keys = self.keys or [None]
        answers = [step(params, batch, key) for step, params in self.networks for key in keys]
        return self.task.combine(jax.device_get(answers))


def predict(
    members: Members, source: "Source", batch_size: int
) -> "Iterator[dict[str, np.ndarray]]":
    """Yields predictions, identifiers and, as far as files have it, the truth, batch by batch.

    Args:
        members: Whom to ask.
        source: Events, in their order.
        batch_size: Events at a time; the last batch is padded for the network and cut here.
    """
    from xec_jax.data.invalid import count_valid
    from xec_jax.data.prefetch import prefetch

    task = members.task
    inputs = frozenset(task.spec if task.inputs is None else task.inputs)
    stop = source.steps_per_epoch(size=batch_size, train=False)
    with prefetch(source, start=0, stop=stop, size=batch_size, train=False, keys=inputs) as items:
        for _, host, device in items:
            real = host["weight"] > 0
            rows: dict[str, np.ndarray] = {}
            rows |= {name: host[name] for name in ("run", "event") if name in host}
            if "npho" in host:
                rows["n_valid"] = count_valid(host["npho"])
            rows |= members(device)
            rows |= task.truth(host) if task.truth else {}
            yield {name: values[real] for name, values in rows.items()}


class Pulls:
    """Collects what a calibration needs while predictions pass by."""

    def __init__(self) -> None:
        self.kept: dict[str, list[np.ndarray]] = {}

    def watch(self, rows: "Iterator[dict[str, np.ndarray]]") -> "Iterator[dict[str, np.ndarray]]":
        """Passes rows on and keeps predictions, uncertainties and truth."""
        for chunk in rows:
            for name in [n.removeprefix("true_") for n in chunk if n.startswith("true_")]:
                spreads = [f"pred_{name}{s}" for s in SPREADS if f"pred_{name}{s}" in chunk]
                for key in (f"true_{name}", f"pred_{name}", *spreads) if spreads else ():
                    self.kept.setdefault(key, []).append(chunk[key])
            yield chunk

    def report(self, output: Path) -> None:
        """Prints how honest the uncertainties are, and draws it beside the output."""
        import numpy as np

        arrays = {key: np.concatenate(parts) for key, parts in self.kept.items()}
        if not arrays:
            return
        from xec_jax.plots.calibration import calibration, calibration_figure
        from xec_jax.plots.style import save

        results = calibration(arrays)
        if not results:
            print("  no spread anywhere: do these networks have dropout, or different weights?")
            return
        for name, result in results.items():
            print(
                f"  {name}: {result.coverage(1.0):.1%} within one sigma (68.3 % expected), ", end=""
            )
            print(f"width of the pulls {result.width:.2f}")
        save(calibration_figure(results), output.with_name(f"{output.stem}_calibration"))


SPREADS = ("_std", "_sigma")


def _units(columns: Collection[str]) -> dict[str, str]:
    """Returns the units of the columns that have one, predictions and truth."""
    from xec_jax.targets import QUANTITIES

    units = {"npho_filled": "photons", "prediction": "photons, s"}
    units = {name: unit for name, unit in units.items() if name in columns}
    for quantity, facts in QUANTITIES.items():
        column = f"pred_{quantity}"
        if facts.unit and column in columns:
            parts = (column, *(f"{column}_{end}" for end in ("std", "sigma", "low", "high")))
            units |= dict.fromkeys((*parts, f"true_{quantity}"), facts.unit)
    return units


def _check(options: argparse.Namespace) -> None:
    if options.output.exists() and not options.overwrite:
        raise ConfigError(
            f"{options.output} exists",
            expected="a new file",
            remedy="choose another --output, or --overwrite",
        )
    if options.batch_size < 1 or options.mc_dropout < 0 or options.mc_dropout == 1:
        found = f"--batch_size {options.batch_size}, --mc_dropout {options.mc_dropout}"
        raise ConfigError(found, expected="a positive batch size; 0, or 2 and more draws")


def _check_members(paths: Sequence[Path], tasks: "Sequence[Task]", params: Sequence[Any]) -> None:
    from xec_jax.trained import check_parts

    for path, task, values in zip(paths, tasks, params, strict=True):
        if task.predict is None:
            raise ConfigError(f"{path}: task {task.name} predicts nothing")
        check_parts(path, task, values)
    for (a, first), (b, other) in itertools.pairwise(zip(paths, tasks, strict=True)):
        for fact in ("branches", "normalization"):
            if first.record.get(fact) != other.record.get(fact):
                raise ConfigError(
                    f"{a} and {b} have different {fact}: they cannot read the same files",
                    expected="runs with equal inputs",
                )
        answers = [_answer(task) for task in (first, other)]
        if first.name != other.name or answers[0] != answers[1]:
            differing = [f"{k} {shape}" for k, shape in answers[0].items() ^ answers[1].items()]
            what = ", ".join(differing) or f"tasks {first.name} and {other.name}"
            found = f"{a} and {b} predict different things: {what}"
            raise ConfigError(found, expected="runs of one task with the same outputs")


def _answer(task: "Task") -> dict[str, tuple[int, ...]]:
    """Names and shapes of what a task predicts, without computing it."""
    import jax

    from xec_jax.tasks.base import example_batch

    batch = example_batch(task.spec, 2)
    params = jax.eval_shape(task.init, jax.random.PRNGKey(0), batch)
    assert task.predict is not None
    found = jax.eval_shape(task.predict, params, batch)
    return {name: value.shape for name, value in found.items()}


if __name__ == "__main__":
    run_command(main)
