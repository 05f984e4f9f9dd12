"""What makes the loop fast, proven without a clock: one program, no hidden copies, no waiting."""

import dataclasses

import jax
import pytest
import toy

from xec_jax.train import trainer as trainers
from xec_jax.train import xla
from xec_jax.train.hooks import Hook
from xec_jax.train.loop import fit


@pytest.fixture
def no_hidden_copies(monkeypatch):
    """Compiled steps in which no copy to or from the devices may hide."""

    def watch(name):
        make = getattr(trainers, name)

        def make_watched(*arguments, **options):
            step = make(*arguments, **options)

            def guarded(*values):
                with jax.transfer_guard("disallow"):
                    return step(*values)

            return guarded

        monkeypatch.setattr(trainers, name, make_watched)

    watch("make_train_step")
    watch("make_eval_step")


class Traces(Hook):
    """Counts how often Python walks through loss and metrics: once for each compilation."""

    def __init__(self):
        self.counts, self.after_first = {"loss": 0, "evaluate": 0}, {}

    def count(self, name):
        def counted(*arguments):
            self.counts[name] += 1
            return getattr(toy.task(), name)(*arguments)

        return counted

    def on_step(self, step):
        self.after_first.setdefault("loss", self.counts["loss"])

    def on_validation(self, step, params):
        self.after_first.setdefault("evaluate", self.counts["evaluate"])


@pytest.mark.usefixtures("no_hidden_copies")
@pytest.mark.parametrize("scheduler", ["cosine", "plateau"])
@pytest.mark.parametrize("mode", ["jit", "pmap"])
@pytest.mark.parametrize("accum", [1, 2])
def test_each_step_is_compiled_once_and_copies_nothing(tmp_path, mode, accum, scheduler):
    config = toy.config(parallel=mode, grad_accum_steps=accum, mesh={"data": 2})
    config.data.batch_size = 4
    config.optim.lr_scheduler = scheduler
    source, valid = toy.sources()
    for epochs in (3, 6):  # a restored state must not lead to another program
        traces = Traces()
        task = dataclasses.replace(
            toy.task(), loss=traces.count("loss"), evaluate=traces.count("evaluate")
        )
        config.train.epochs = epochs
        fit(task, config, source, valid, workdir=tmp_path, hooks=[traces])
        assert traces.after_first["loss"] > 0
        assert traces.counts == traces.after_first


def test_the_host_reads_nothing_between_records(tmp_path, monkeypatch):
    """Metrics come to the host when they are recorded, and the state is not looked at."""
    reads = []
    get = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: reads.append(step[0]) or get(tree))
    step = [0]

    class Count(Hook):
        def on_step(self, number):
            step[0] = number

    config = toy.config(save_every=100)
    config.log.every = 4
    source, valid = toy.sources()
    fit(toy.task(), config, source, valid, workdir=tmp_path, hooks=[Count()])
    assert set(reads) <= {0, 4, 5, 8, 10, 12, 15, 16, 20}


def test_programs_are_cached_by_kind_of_cpu(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XEC_JAX_CACHE", str(tmp_path))
    old = jax.config.jax_compilation_cache_dir
    try:
        xla.configure(toy.config().train)
        folder = xla.cache_folder()
        assert jax.config.jax_compilation_cache_dir == str(folder)
        assert folder.parent == tmp_path / "compiled"
        monkeypatch.setattr(xla.Path, "read_text", lambda self: "flags : another cpu")
        assert xla.cache_folder() != folder
    finally:
        jax.config.update("jax_compilation_cache_dir", old)
