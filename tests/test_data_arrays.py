"""Arrays in memory, and the index arithmetic that all sources share."""

import numpy as np
import pytest

from xec_jax.data import order
from xec_jax.data.arrays import ArraySource
from xec_jax.errors import DataError


def make(n):
    return ArraySource({"x": np.arange(n, dtype=np.float64), "event": np.arange(n)})


def real(batch, key="event"):
    return batch[key][batch["weight"] > 0].tolist()


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(("n", "size"), [(1, 4), (7, 3), (12, 4), (5, 5)])
def test_batches_depend_on_the_step_alone(n, size, train):
    source = make(n)
    sequence = [source.batch(k, size=size, seed=3, train=train) for k in range(9)]
    for k in (8, 0, 5, 5, 2):
        fresh = make(n).batch(k, size=size, seed=3, train=train)
        for name, values in sequence[k].items():
            np.testing.assert_array_equal(values, fresh[name])


@pytest.mark.parametrize("n", [1, 2, 7, 20])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(("count", "size"), [(2, 1), (2, 6), (3, 4), (4, 3), (5, 2)])
def test_shards_together_are_the_whole_batch(n, train, count, size):
    """Whoever asks for how many: rows, padding and weights are those of one process."""
    source = make(n)
    whole = {"size": count * size, "train": train}
    steps = source.steps_per_epoch(**whole)
    assert steps == source.steps_per_epoch(size=size, shards=count, train=train)
    for step in range(2 * steps + 1):
        batch = source.batch(step, seed=3, **whole)
        parts = [
            source.batch(step, size=size, shard=(i, count), seed=3, train=train)
            for i in range(count)
        ]
        for name, values in batch.items():
            np.testing.assert_array_equal(values, np.concatenate([part[name] for part in parts]))


@pytest.mark.parametrize(("n", "size"), [(1, 4), (7, 3), (20, 5)])
def test_validation_has_every_event_once_in_order(n, size):
    source = make(n)
    steps = source.steps_per_epoch(size=size, train=False)
    for epoch in range(2):
        batches = [source.batch(epoch * steps + k, size=size, train=False) for k in range(steps)]
        assert [event for batch in batches for event in real(batch)] == list(range(n))


def test_training_epochs_draw_without_replacement():
    source = make(20)
    steps = source.steps_per_epoch(size=3)
    assert steps == 20 // 3
    orders = {}
    for seed in (0, 1):
        for epoch in range(3):
            batches = [source.batch(epoch * steps + k, size=3, seed=seed) for k in range(steps)]
            seen = [event for batch in batches for event in real(batch)]
            assert len(set(seen)) == len(seen) == steps * 3
            orders[seed, epoch] = tuple(seen)
    assert len(set(orders.values())) == 6, "another order for each seed and epoch"


def test_training_drops_another_remainder_in_each_epoch():
    source = make(10)
    dropped = set()
    for epoch in range(20):
        first, second = (real(source.batch(2 * epoch + k, size=4)) for k in range(2))
        dropped |= set(range(10)) - {*first, *second}
    assert dropped == set(range(10))


def test_padding_repeats_a_real_event_with_weight_0():
    batch = make(3).batch(0, size=8)
    assert batch["weight"].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    assert sorted(batch["event"][:3]) == [0, 1, 2]
    assert set(batch["event"][3:]) == {batch["event"][2]}
    assert batch["x"].dtype == np.float32
    assert batch["event"].dtype == np.int64


def test_weights_of_events_are_kept():
    source = ArraySource({"weight": np.array([0.5, 2.0, 3.0])}, shuffle=False)
    assert source.batch(0, size=4)["weight"].tolist() == [0.5, 2.0, 3.0, 0.0]


def test_arrays_of_a_batch_are_fresh():
    source = make(4)
    source.batch(0, size=4)["x"][:] = -1
    assert sorted(source.batch(0, size=4)["x"]) == [0, 1, 2, 3]


def test_shuffle_can_be_switched_off():
    source = ArraySource({"event": np.arange(7)}, shuffle=False)
    seen = [event for k in range(3) for event in real(source.batch(k, size=3))]
    assert seen == [0, 1, 2, 3, 4, 5, 0, 1, 2]


@pytest.mark.parametrize(
    "arrays",
    [{}, {"x": np.zeros(0)}, {"x": np.zeros(2), "y": np.zeros(3)}, {"x": np.float32(1.0)}],
)
def test_unequal_or_missing_arrays_are_refused(arrays):
    with pytest.raises(DataError, match="numbers of events"):
        ArraySource(arrays)


def test_impossible_requests_are_refused():
    with pytest.raises(ValueError, match="shard"):
        make(2).batch(0, size=1, shard=(2, 2))
    with pytest.raises(ValueError, match="size"):
        make(2).batch(0, size=0)
    with pytest.raises(ValueError, match="step"):
        make(2).batch(-1, size=1)


def test_the_shuffle_never_changes():
    """An old run must resume in its old order: these numbers are a promise."""
    assert order.shuffled(8, 0, 0).tolist() == [3, 2, 1, 6, 0, 7, 4, 5]
    assert order.shuffled(8, *order.key(1, 2)).tolist() == [5, 6, 3, 2, 1, 0, 4, 7]
    assert sorted(order.shuffled(1000, -5, 2)) == list(range(1000))
