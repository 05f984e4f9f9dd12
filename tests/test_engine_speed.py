"""What makes the loop fast, proven without a clock: one program, no hidden copies, no waiting."""

import re

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


def compiled(caplog):
    """Names of the programs that XLA compiled since the last look, as JAX logs them."""
    pattern = re.compile(r"Finished XLA compilation of (?:jit|pmap)?\(?(\w+)\)? in")
    texts = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return [match[1] for text in texts if (match := pattern.search(text))]


@pytest.mark.usefixtures("no_hidden_copies")
@pytest.mark.parametrize("scheduler", ["cosine", "plateau"])
@pytest.mark.parametrize(
    ("mode", "mesh", "accum"),
    [("jit", (2, 1), 1), ("jit", (2, 2), 2), ("pmap", (2, 1), 1), ("pmap", (2, 1), 2)],
)
def test_each_step_is_compiled_once_and_copies_nothing(
    tmp_path, caplog, mode, mesh, accum, scheduler
):
    config = toy.config(parallel=mode, grad_accum_steps=accum)
    config.train.mesh.data, config.train.mesh.model = mesh
    config.data.batch_size = 2
    config.optim.lr_scheduler = scheduler
    source, valid = toy.sources()
    with jax.log_compiles():
        for epochs in (3, 6):  # a restored state must not lead to another program
            config.train.epochs = epochs
            fit(toy.task(), config, source, valid, workdir=tmp_path)
            names = compiled(caplog)
            if mode == "pmap":  # which hides the names
                assert names.count("_fun") == 2, names
            else:
                assert names.count("train_step") == names.count("eval_step") == 1, names
            assert names.count("after_validation") == (scheduler == "plateau"), names


def test_the_host_reads_nothing_between_records(tmp_path, monkeypatch):
    """Metrics come to the host when they are recorded, and the state is not looked at."""
    from jax._src.array import ArrayImpl

    reads, step = [], [0]
    value = ArrayImpl._value  # what int, float, numpy and device_get all end in

    def watched(self):
        reads.append(step[0])
        return value.fget(self)

    monkeypatch.setattr(ArrayImpl, "_value", property(watched))

    class Count(Hook):
        def on_step(self, number):
            step[0] = number

    config = toy.config(save_every=100)
    config.log.every = 4
    source, valid = toy.sources()
    fit(toy.task(), config, source, valid, workdir=tmp_path, hooks=[Count()])
    assert set(reads) <= {0, 4, 5, 8, 10, 12, 15, 16, 20}
    assert {4, 8} <= set(reads)


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
