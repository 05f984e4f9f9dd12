"""The evaluation at the end of a training: the best state on all validation events."""

import logging
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from xec_jax import trained
from xec_jax.data.open import open_source, open_sources
from xec_jax.data.root.manifest import resolve_paths
from xec_jax.errors import Preempted, XecError
from xec_jax.evaluation import base, outcome
from xec_jax.evaluation.base import Options, Setting
from xec_jax.sim.limits import sample_parameters
from xec_jax.train.saved import load_run

log = logging.getLogger(__name__)


def report_run(workdir: Path, config: ConfigDict, stop: Callable[[], bool]) -> None:
    """Writes `evaluation/valid/` of a run that is complete; what fails there ends no training.

    Args:
        workdir: The run folder.
        config: Its config, with the validation events.
        stop: Polled between batches.

    Raises:
        Preempted: It was told to stop; the same command evaluates anew.
    """
    try:
        _report(workdir, config, stop)
    except Preempted:
        raise
    except XecError as error:
        log.warning("the run is complete, its evaluation is not: %s", error)
    except Exception:
        log.warning("the run is complete, its evaluation is not:\n%s", traceback.format_exc())


def _report(workdir: Path, config: ConfigDict, stop: Callable[[], bool]) -> None:
    run = load_run(workdir)
    (task,) = trained.make_tasks([workdir], [run])
    data, sample = config.data, None
    files: list[Path] = []
    if data.source == "root":
        files = resolve_paths(data.valid)
        first = files[0]
        more = base.branches_of(task.name)
        wanted, is_simulated = trained.wanted_branches(task, data.tree_name, first, more)
        sample = sample_parameters(first)
    elif data.source == "bundles":
        files, wanted = resolve_paths(data.valid or data.train, ".parquet"), list(task.spec)
        is_simulated = False
    else:  # caches hold what the training reads, and nothing else
        wanted = list(task.spec)
        is_simulated = any(name.endswith("Truth") for name in wanted)
    setting = Setting(
        name=workdir.resolve().name,
        run=run,
        task=task,
        epoch=base.epoch_of(workdir, run.step),
        is_simulated=is_simulated,
        sample=sample,
        tree_name=data.get("tree_name", ""),
        files=tuple(files),
        options=_options(config),
        stop=stop,
    )
    facts = {
        "input": f"{data.valid or 'part of ' + str(data.train)}, the validation events",
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()) + " UTC",
    }
    if data.valid is None:  # a share of the training files
        train, others = open_sources(data, wanted)
        train.close()
        source = others["valid"]
    else:
        source = open_source(data, data.valid, wanted=wanted)
    try:
        folder = workdir / "evaluation" / "valid"
        print(f"evaluating step {run.step} on {len(source):,} events: {folder}", flush=True)
        outcome.evaluate(setting, source, folder, workdir=workdir, facts=facts)
    finally:
        source.close()


def _options(config: ConfigDict) -> Options:
    if config.data.source == "bundles":
        return Options(batch_size=config.data.batch_size)
    return Options(opponents=config.eval.opponents)
