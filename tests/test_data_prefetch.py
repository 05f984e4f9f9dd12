"""What the training loop relies on: order, overlap, errors at once, no thread left behind."""

import gc
import threading
import time
import traceback

import jax
import numpy as np
import pytest

from xec_jax.data.arrays import ArraySource
from xec_jax.data.prefetch import prefetch


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    gc.collect()
    deadline = time.monotonic() + 5
    while (left := set(threading.enumerate()) - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left


def make(n=20):
    x = np.arange(n, dtype=np.float32)
    return ArraySource({"x": x, "hits": np.arange(n, dtype=np.int32), "event": np.arange(n)})


class Watched:
    """A source that counts its batches and breaks at a step."""

    def __init__(self, broken_at=None, pause_s=0.0):
        self.inner, self.broken_at, self.pause_s = make(), broken_at, pause_s
        self.spec, self.steps, self.threads = self.inner.spec, [], set()

    def __len__(self):
        return len(self.inner)

    def steps_per_epoch(self, **options):
        return self.inner.steps_per_epoch(**options)

    def batch(self, step, **options):
        time.sleep(self.pause_s)
        self.steps.append(step)
        self.threads.add(threading.current_thread().name)
        if step == self.broken_at:
            raise OSError("the disk is on fire")
        return self.inner.batch(step, **options)


def keep(batch):
    return batch


def test_batches_come_in_order_and_unchanged():
    source = make()
    options = {"size": 4, "shard": (1, 2), "seed": 9, "train": True}
    with prefetch(source, start=3, stop=12, depth=2, **options) as stream:
        items = list(stream)
    assert [item.step for item in items] == list(range(3, 12))
    for step, host, device in items:
        expected = source.batch(step, **options)
        for name, values in expected.items():
            np.testing.assert_array_equal(host[name], values)
        assert set(device) == {"x", "hits", "weight", "_position", "_step"}
        assert all(isinstance(array, jax.Array) for array in device.values())
        np.testing.assert_array_equal(device["x"], expected["x"])
        assert host["_position"].tolist() == [4, 5, 6, 7], "the place in the global batch"
        assert host["_step"].tolist() == [step] * 4
        assert device["_position"].dtype == device["_step"].dtype == np.int32
    assert list(stream) == []


def test_identifiers_stay_on_the_host():
    with prefetch(make(), start=0, stop=1, size=3, keys={"hits", "event"}) as stream:
        _, host, device = next(stream)
    assert host["event"].dtype == np.int64
    assert set(device) == {"hits", "weight", "_position", "_step"}


def test_put_decides_where_a_batch_goes():
    mesh = jax.make_mesh((len(jax.devices()),), ("b",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("b"))
    size = 2 * len(jax.devices())
    with prefetch(
        make(), start=0, stop=2, size=size, put=lambda batch: jax.device_put(batch, sharding)
    ) as stream:
        for _, host, device in stream:
            assert device["x"].sharding == sharding
            np.testing.assert_array_equal(device["x"], host["x"])


def test_one_thread_reads_ahead_but_not_too_far():
    source = Watched()
    with prefetch(source, start=0, stop=100, size=2, depth=2, put=keep) as stream:
        next(stream)
        deadline = time.monotonic() + 5
        while len(source.steps) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert source.steps == [0, 1, 2, 3], "one consumed, two queued, one in the making"
    assert source.threads == {"xec-prefetch"}


def test_waiting_for_a_slow_source_is_measured():
    with prefetch(Watched(pause_s=0.02), start=0, stop=3, size=2, put=keep) as stream:
        list(stream)
    assert stream.clock.waited > 0.03
    assert stream.clock.reading > 0.05


@pytest.mark.parametrize("broken_at", [0, 3])
def test_an_error_takes_the_place_of_its_batch(broken_at):
    stream = prefetch(Watched(broken_at), start=0, stop=9, size=2, put=keep)
    for step in range(broken_at):
        assert next(stream).step == step
    with pytest.raises(OSError, match="on fire") as caught:
        next(stream)
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert "batch" in names, "the traceback reaches into the source"
    with pytest.raises(StopIteration):
        next(stream)


def test_an_error_of_put_is_raised():
    def refuse(batch):
        raise RuntimeError("RESOURCE_EXHAUSTED")

    with (
        prefetch(make(), start=0, stop=9, size=2, put=refuse) as stream,
        pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"),
    ):
        next(stream)


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("taken", [0, 1, 4])
def test_closing_early_ends_the_thread(depth, taken):
    stream = prefetch(make(), start=0, stop=10**9, size=2, depth=depth, put=keep)
    for _ in range(taken):
        next(stream)
    stream.close()
    stream.close()
    assert "xec-prefetch" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(StopIteration):
        next(stream)


def test_an_error_of_the_consumer_ends_the_thread():
    def consume():
        with prefetch(make(), start=0, stop=10**9, size=2, put=keep) as stream:
            for step, _, _ in stream:
                1 / (step - 2)

    with pytest.raises(ZeroDivisionError):
        consume()


def test_a_forgotten_iterator_ends_its_thread():
    next(prefetch(make(), start=0, stop=10**9, size=2, put=keep))  # the fixture looks for it


def test_nothing_to_do():
    assert list(prefetch(make(), start=4, stop=4, size=2, put=keep)) == []
