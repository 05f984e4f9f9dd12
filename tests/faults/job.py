"""Trains the toy task in a process of its own, through everything that the train command uses.

    python tests/faults/job.py RUN_FOLDER [--set '{"train.epochs": 9}'] [--pace 0.05] ...

Importable as well: `start` and `run` start such a process from a test.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))


def start(caches, workdir, *arguments, streams=None, **environment):
    """Starts the job; keyword arguments are added to its environment."""
    words = [sys.executable, __file__, str(workdir), *map(str, arguments)]
    env = {**os.environ, **caches, "PYTHONPATH": str(TESTS.parent), **environment}
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, env=env, **pipe | (streams or {}))


def run(caches, workdir, *arguments, **environment):
    """Runs the job to its end and returns exit code, output and errors."""
    process = start(caches, workdir, *arguments, **environment)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def wait_for(process, condition, seconds=120):
    """Waits until a condition holds or the process has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if condition():
            return
        time.sleep(0.01)


def last_step(workdir):
    """The last step on record."""
    from xec_jax.train.records import read_jsonl

    return max((r["step"] for r in read_jsonl(Path(workdir) / "metrics.jsonl")), default=0)


class Paced:
    """A source with troubles: slow, hanging or failing at a step."""

    def __init__(self, source, *, pace=0.0, hang_at=None, fail_at=None):
        self.source, self.pace = source, pace
        self.hang_at, self.fail_at = hang_at, fail_at
        self.spec, self.fingerprint = source.spec, source.fingerprint

    def __len__(self):
        return len(self.source)

    def steps_per_epoch(self, **options):
        return self.source.steps_per_epoch(**options)

    def batch(self, step, **options):
        time.sleep(self.pace)
        while step == self.hang_at:
            time.sleep(1)
        if step == self.fail_at:
            raise OSError(f"the disk of step {step} is gone")
        return self.source.batch(step, **options)

    def close(self):
        self.source.close()


def main(argv):
    import dataclasses
    import logging

    import toy

    from xec_jax.train import distributed, xla
    from xec_jax.train.job import run_job
    from xec_jax.train.signals import StopFlag

    parser = argparse.ArgumentParser()
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--set", type=json.loads, default={})
    parser.add_argument("--events", type=int, default=toy.N)
    parser.add_argument("--poison", type=int, nargs="*", default=())
    parser.add_argument("--pace", type=float, default=0.0)
    parser.add_argument("--valid_pace", type=float, default=0.0)
    parser.add_argument("--compile_s", type=float, default=0.0)
    parser.add_argument("--hang_at", type=int)
    parser.add_argument("--fail_at", type=int)
    parser.add_argument("--only_process", type=int, help="whose reader has these troubles")
    parser.add_argument("--give_up_s", type=float)
    parser.add_argument("--accept_new_data", action="store_true")
    parser.add_argument("--resume", default="auto")
    given = parser.parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with StopFlag() as stop, distributed.joined(lambda: bool(stop)):
        distributed.GIVE_UP_S = given.give_up_s or distributed.GIVE_UP_S
        config = toy.config()
        config.update_from_flattened_dict(given.set)
        xla.configure(config.train)
        train, valid = toy.sources(given.events, tuple(given.poison))
        has_troubles = given.only_process in (None, distributed.index())
        troubles = {"hang_at": given.hang_at, "fail_at": given.fail_at} if has_troubles else {}
        train = Paced(train, pace=given.pace, **troubles)
        valid = {name: Paced(source, pace=given.valid_pace) for name, source in valid.items()}
        task = toy.task()

        def slow_to_compile(*arguments):
            print("tracing", flush=True)
            time.sleep(given.compile_s)
            return toy.task().loss(*arguments)

        if given.compile_s:
            task = dataclasses.replace(task, loss=slow_to_compile)
        run_job(
            *(task, config, train, valid, given.workdir),
            stop=stop,
            command=["job", *argv],
            accept_new_data=given.accept_new_data,
            resume=given.resume,
        )
    return 0


if __name__ == "__main__":
    from xec_jax.errors import run_command

    run_command(main)
