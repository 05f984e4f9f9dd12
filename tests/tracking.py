"""A run without a network, for tests of trackers: records of steps, and a tracker in memory."""

import functools
import json

import toy

from xec_jax.config import to_json
from xec_jax.train.hooks import RunInfo
from xec_jax.train.loggers import JsonlLogger
from xec_jax.train.records import read_jsonl
from xec_jax.train.trackers import WRITERS
from xec_jax.train.trackers.copier import Copier, Places
from xec_jax.train.trackers.hook import Tracker, Trackers
from xec_jax.train.workdir import environment

TIME = 1_800_000_000
COMMIT = "fd299fb" + "0" * 33
QUICK = {"delays": (0.0, 0.0), "interval": 0.0}
PATIENT = {"complete_s": 60.0, "stopped_s": 60.0}


@functools.cache
def _environment():
    """That of a real run, but for the commit, which a copy without git does not know."""
    record = {"events": {"train": "3f2a"}}
    return json.dumps(environment(record) | {"git": f"{COMMIT}+changes"})


def make_run(workdir, config=None):
    """The files that a run has before its first step."""
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(to_json(config or toy.config()))
    (workdir / "environment.json").write_text(_environment())
    return workdir


def info(start, total):
    return RunInfo(start, total, steps_per_epoch=5, global_batch=8, n_parameters=20)


def records(workdir, start, end, logger=None):
    """Writes the records of steps start + 1 to end, a validation every 5, as the loop does."""
    if logger is None:
        logger = JsonlLogger(workdir / "metrics.jsonl")
        logger.on_start(info(start, end))
    for step in range(start + 1, end + 1):
        for split in ("train", "valid") if step % 5 == 0 else ("train",):
            record = {"step": step, "split": split, "loss": 1.0 / step, "null": float("nan")}
            logger.file.append(record | {"epoch": step / 5, "time": TIME + step})
            yield record


def play(workdir, hook, start, end, *, total=99, error=None):
    """What the loop does with its hooks."""
    logger = JsonlLogger(workdir / "metrics.jsonl")
    for each in (logger, hook):
        each.on_start(info(start, total))
    try:
        for record in records(workdir, start, end, logger):
            hook.on_record(record)
        if error:
            raise error
    finally:
        logger.on_end(end)
        hook.on_end(end)


def expected(end):
    both = [(step, split) for step in range(1, end + 1) for split in ("train", "valid")]
    return [(step, split) for step, split in both if split == "train" or step % 5 == 0]


def read_places(workdir):
    return [(record["step"], record["split"]) for record in read_jsonl(workdir / "metrics.jsonl")]


def follow(*copiers, **options):
    """The hook of some copiers, which do not wait between their tries."""
    return Trackers([Tracker(copier, **{**QUICK, **options}) for copier in copiers], **PATIENT)


def hook(name, workdir, **options):
    """A real tracker."""
    return follow(Copier(name, WRITERS[name], workdir, Places(workdir)), **options)


class Server:
    """A tracker in memory; `failures` of its answers are errors."""

    def __init__(self, failures=0):
        self.failures, self.tries = failures, 0
        self.steps, self.opened, self.told, self.closed = [], [], [], 0
        self.has_run = False

    def open(self, facts, run_id):
        self.opened.append(run_id)
        is_new, self.has_run = not self.has_run, True
        return _Run(self, is_new)

    def answer(self):
        self.tries += 1
        if self.failures > 0:
            self.failures -= 1
            raise ConnectionError("no answer from https://me:sesame@host")

    def copier(self, workdir, check=lambda: None):
        return Copier("fake", self.open, workdir, Places(workdir), check)

    def hook(self, workdir, **options):
        return follow(self.copier(workdir), **options)


class _Run:
    run_id = "run-1"

    def __init__(self, server, is_new):
        self.server, self.is_new = server, is_new

    def write(self, records):
        self.server.answer()
        self.server.steps += [(record["step"], record["split"]) for record in records]

    def tell(self, state):
        if [state] != self.server.told[-1:]:
            self.server.told.append(state)

    def close(self):
        self.server.closed += 1
