"""What a run measured: best and last value of a metric, progress, curves."""

import json
from collections.abc import Sequence

from xec_jax.config import nearest
from xec_jax.errors import ConfigError
from xec_jax.registry.run import Metric, Run, clean, number
from xec_jax.train.records import Record

_TRAIN = b'"split": "train"'


def add_metrics(run: Run, metric: Metric) -> None:
    """Enters best, last value, progress and speed.

    Training records, nearly all of a long file, are passed over unless the metric is theirs.

    Raises:
        OSError: The file cannot be read.
        ArithmeticError: Its numbers make no sense.
    """
    path = run.folder / "metrics.jsonl"
    if not path.exists():
        return
    lines = path.read_bytes().splitlines()
    chosen = lines if metric.split == "train" else [line for line in lines if _TRAIN not in line]
    records = [record for record in map(parse, chosen) if record.get("split")]
    split = metric.split or next((record["split"] for record in records), None)
    values = [
        (value, record.get("step"))
        for record in records
        if record["split"] == split and (value := number(record.get(metric.name))) is not None
    ]
    if values:
        pick = max if metric.largest else min
        run.best, run.best_step = pick(values, key=lambda pair: pair[0])
        run.last = values[-1][0]
    for line in reversed(lines):
        record = parse(line)
        step, epoch = number(record.get("step")), number(record.get("epoch"))
        if run.step is None and step is not None:
            run.step, run.epoch = int(step), epoch
            run.steps = _total_steps(run)
        if record.get("split") == "train":
            run.events_per_s = number(record.get("events_per_s"))
            break


def check_recorded(runs: Sequence[Run], metric: Metric) -> None:
    """Refuses a metric that is in none of the records, which may have it as null.

    Before the first validation nothing can be said about metrics of one.

    Raises:
        ConfigError: With the nearest names.
    """
    if any(run.best is not None for run in runs):
        return
    places = [
        (clean(r.get("split")), clean(k)) for run in runs for r in read_curves(run) for k in r
    ]
    if metric.split != "train":
        places = [place for place in places if place[0] != "train"]
    known = {f"{split}/{key}" for split, key in places} | {key for _, key in places}
    name = f"{metric.split}/{metric.name}" if metric.split else metric.name
    if known and name not in known:
        raise ConfigError(f"no run has recorded {name!r}", expected=nearest(name, known))


def _total_steps(run: Run) -> int | None:
    epochs, limit = (number(run.config.get(f"train.{key}")) for key in ("epochs", "max_steps"))
    if not (run.step and run.epoch and epochs):
        return None
    total = round(epochs * round(run.step / run.epoch))
    return min(total, int(limit)) if limit else total


def read_curves(run: Run, points: int = 300) -> list[Record]:
    """Reads the records of a run, as many of training as a picture can show."""
    path = run.folder / "metrics.jsonl"
    try:
        lines = [] if run.kind == "claim" else path.read_bytes().splitlines()
    except OSError:
        return []  # reading the run has said why
    train = [line for line in lines if _TRAIN in line]
    other = [line for line in lines if _TRAIN not in line]
    return [r for r in map(parse, [*train[:: len(train) // points + 1], *other]) if r]


def parse(line: bytes) -> Record:
    """Returns a record; nothing for a line that a kill cut off."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}
