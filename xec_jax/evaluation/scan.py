"""How a network's errors change with a condition: pile-up, dead channels, calibration, place.

Some conditions are bins of the given events (`energy`, `u`, ...). Others spoil them: dead channels,
gains, noise, jitter, the same in all steps of the scan but for their size. Pile-up cannot be added
to measured events, so that events are simulated anew, with the same detector and the same photons.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from xec_jax.config import write_text
from xec_jax.data.mismatch import DeadShare, GainSpread, NoisePhotons, TimeJitter, TimeOffsets
from xec_jax.data.open import open_source
from xec_jax.data.root.writer import disk_errors
from xec_jax.data.source import Source
from xec_jax.errors import ConfigError
from xec_jax.evaluation import base
from xec_jax.evaluation.base import Headline, Setting, Table
from xec_jax.evaluation.engine import InspectStep, make_step, stream
from xec_jax.evaluation.text import to_text
from xec_jax.plots.panels import with_error
from xec_jax.simulate import cached_sample
from xec_jax.trained import data_to_read

SPOILED: dict[str, tuple[Callable[[Source, float], Source], str, str, tuple[float, ...]]] = {
    "dead": (DeadShare, "share of dead channels", "", (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)),
    "gain": (GainSpread, "spread of gains", "", (0.0, 0.01, 0.03, 0.1, 0.3)),
    "noise": (NoisePhotons, "noise per sensor", "photons", (0.0, 3.0, 10.0, 30.0, 100.0)),
    "offset": (TimeOffsets, "offset of each sensor", "s", (0.0, 1e-10, 3e-10, 1e-9, 3e-9)),
    "jitter": (TimeJitter, "jitter per sensor", "s", (0.0, 1e-10, 3e-10, 1e-9, 3e-9)),
}
"""What spoils the events, in words, its unit, and how much of it by default."""

PILEUP_HZ = (0.0, 3e5, 1e6, 3e6, 1e7)
PILEUP_SEED = 77
MOST_SIMULATED = 4000
"""Events per rate at most: they are simulated and kept in the cache, 70 kB each."""
BINS = {"energy": "MeV", "u": "cm", "v": "cm", "w": "cm", "theta": "deg", "phi": "deg"}
N_BINS = 10

Step = tuple[float, int, Headline]
"""A value, the number of events, and the errors there."""


def scan(
    setting: Setting, source: Source, folder: Path, name: str, values: Sequence[float] | None
) -> list[Step]:
    """Evaluates a run under changing conditions: `scan_<name>.json`, `.txt` and a figure.

    Args:
        setting: The run.
        source: The events.
        folder: Where to write; made if missing.
        name: What changes: a key of `SPOILED` or `BINS`, or `pileup`.
        values: How much of it; edges of the bins. By default those of this module.

    Raises:
        ConfigError: Events that cannot be changed so, or impossible values.
    """
    options = dataclasses.replace(setting.options, has_figures=False, opponents=0)
    setting = dataclasses.replace(setting, options=options)
    if name in BINS:
        label, unit = name, BINS[name]
        steps = _binned(setting, source, name, values)
    elif name == "pileup":
        label, unit = "pile-up rate", "Hz"
        n = min(len(source), MOST_SIMULATED)
        steps = _pileup(setting, n, PILEUP_HZ if values is None else values)
    else:
        spoil, label, unit, usual = SPOILED[name]
        found, step = usual if values is None else values, make_step(setting.task)
        steps = [_measure(setting, step, spoil(source, value), value) for value in found]
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    _write(setting, folder, name, label, unit, steps)
    return steps


def _measure(setting: Setting, step: InspectStep, source: Source, value: float) -> Step:
    """Evaluates all events of a source."""
    evaluation = base.make(setting)
    metrics = stream(setting, evaluation, source, None, step)
    found = evaluation.headline(metrics)
    first = next(iter(found.items()), ("", (math.nan, math.nan)))
    print(f"  {value:g}: {first[0]} {first[1][0]:.4g}", flush=True)
    return value, len(source), found


def _pileup(setting: Setting, events: int, rates: Sequence[float]) -> list[Step]:
    if setting.sample is None:
        raise ConfigError(
            "pile-up is simulated, but the detector behind these events is not known",
            expected="files of `python -m xec_jax.simulate` with their sample.json",
        )
    parameters = {
        field.name: getattr(setting.sample, field.name)
        for field in dataclasses.fields(setting.sample)
    }
    steps, step = [], make_step(setting.task)
    print(f"{events:,} events are simulated for each of {len(rates)} rates", flush=True)
    for rate in rates:
        changed = parameters | {"pileup_rate_hz": float(rate)}
        sample = cached_sample("lxe", events, seed=PILEUP_SEED, parameters=changed)
        data = data_to_read(setting.run)
        data.tree_name = "tree"
        names = [*setting.task.spec, *base.branches_of(setting.task.name)]
        wanted = [n for n in dict.fromkeys(names) if n not in ("xyzRecoFI",)]
        source = open_source(data, str(sample), wanted=wanted)
        try:
            steps.append(_measure(setting, step, source, float(rate)))
        finally:
            source.close()
    return steps


def _binned(
    setting: Setting, source: Source, name: str, edges: Sequence[float] | None
) -> list[Step]:
    """Evaluates once, and looks at the events of each bin of the truth."""
    if edges is not None and len(edges) < 2:
        raise ConfigError(f"--scan {name} with one edge", expected="two edges of bins or more")
    evaluation = base.make(setting)
    evaluation.check_bins(name)
    stream(setting, evaluation, source, None)
    truth = evaluation.place(name)
    known = truth[np.isfinite(truth)]
    if not known.size:
        raise ConfigError(f"--scan {name}", expected="events whose truth is known")
    usual = np.linspace(known.min(), known.max(), N_BINS + 1)
    borders = usual if edges is None else np.sort(edges)
    steps = []
    for k, (low, high) in enumerate(itertools.pairwise(borders.tolist())):
        is_last = k == len(borders) - 2
        inside = (truth >= low) & ((truth < high) | (is_last & (truth == high)))
        steps.append(((low + high) / 2, int(inside.sum()), evaluation.headline({}, inside)))
    return steps


def _write(
    setting: Setting, folder: Path, name: str, label: str, unit: str, steps: Sequence[Step]
) -> None:
    from xec_jax.plots.limits import scan_figure
    from xec_jax.plots.style import save

    names = list(dict.fromkeys(metric for _, _, found in steps for metric in found))
    if not names:
        raise ConfigError(
            f"--scan {name}: nothing to compare, no truth of what the run predicts is known",
            expected="simulated events, and a run with angle, energy, timing or uvwFI",
        )
    missing = (math.nan, math.nan)
    curves = {}
    for metric in names:
        pairs = np.array([found.get(metric, missing) for _, _, found in steps])
        curves[metric] = pairs[:, 0], pairs[:, 1]
    values = np.array([value for value, _, _ in steps])
    rows: list[list[str | float]] = []
    for k, (value, n, _) in enumerate(steps):
        here = [(float(curves[m][0][k]), float(curves[m][1][k])) for m in names]
        cells = [with_error(*pair) if math.isfinite(pair[1]) else pair[0] for pair in here]
        rows.append([f"{value:g}", f"{n:,}", *cells])
    table = Table(
        name,
        f"{label} of {setting.name}",
        (f"{label} [{unit}]" if unit else label, "events", *names),
        rows,
    )
    content = {
        "run": setting.name,
        "step": setting.run.step,
        "scan": name,
        "unit": unit,
        "values": values.tolist(),
        "events": [n for _, n, _ in steps],
        "metrics": {
            m: {"value": _plain(value), "error": _plain(error)}
            for m, (value, error) in curves.items()
        },
    }
    write_text(folder / f"scan_{name}.json", json.dumps(content, indent=1) + "\n")
    write_text(folder / f"scan_{name}.txt", to_text(table))
    print(to_text(table))
    data = {"values": values} | {
        f"{m}/{part}": array
        for m, pair in curves.items()
        for part, array in zip(("value", "error"), pair, strict=True)
    }
    figure = scan_figure(label, unit, values, curves)
    save(figure, folder / "figures" / f"scan_{name}_{setting.name}", data=data)


def _plain(values: np.ndarray) -> list[float | None]:
    return [float(v) if math.isfinite(v) else None for v in values]
