"""Events that classical methods are calibrated with: never those that they are judged on."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from xec_jax.data.open import open_source
from xec_jax.data.root.manifest import resolve_paths
from xec_jax.errors import XecError
from xec_jax.evaluation.base import Setting
from xec_jax.trained import data_to_read, wanted_branches

log = logging.getLogger(__name__)

BATCH = 128


def calibration_batches(
    setting: Setting, branches: Sequence[str] = ()
) -> Iterator[dict[str, np.ndarray]]:
    """Yields `Options.calibrate_events` events, batch by batch, without padding.

    They are those of `Options.calibrate`, or of the training. If there are none, or they are among
    those to be evaluated, nothing comes, and a warning says why: classical methods with constants
    are then left out.

    Args:
        setting: Who asks.
        branches: What is read besides the inputs of the task, where the files have it.
    """
    options, config = setting.options, setting.run.config
    path = options.calibrate or config.data.train
    if options.calibrate_events == 0 or path is None:
        return
    data = data_to_read(setting.run, setting.tree_name, has_cut=True)
    try:
        if not options.calibrate and config.data.source != "root":
            raise FileNotFoundError("the training read a cache")
        files = resolve_paths(path)
        if shared := {f.resolve() for f in files} & {f.resolve() for f in setting.files}:
            raise FileNotFoundError(f"{min(shared).name} is to be evaluated itself")
        wanted, _ = wanted_branches(setting.task, setting.tree_name, Path(files[0]), branches)
        source = open_source(data, files, wanted=wanted)
    except (XecError, OSError) as error:
        log.warning(
            "no events to calibrate classical methods with (%s): those that need it are left "
            "out; name files with --calibrate",
            str(error).splitlines()[0],
        )
        return
    try:
        left = min(options.calibrate_events, len(source))
        for step in range(-(-left // BATCH)):
            batch = source.batch(step, size=BATCH, train=False)
            rows = (batch["weight"] > 0) & (np.arange(BATCH) < left - step * BATCH)
            yield {name: values[rows] for name, values in batch.items()}
    finally:
        source.close()
