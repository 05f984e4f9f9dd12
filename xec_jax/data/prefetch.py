"""Moves batches to the device while the device computes: the only door from numpy to JAX.

One background thread asks the source for batch after batch and starts its copy, so that
reading, copying and computing overlap. A queue of bounded length keeps it from running away.
"""

import logging
import math
import queue
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from xec_jax.data.source import Source
from xec_jax.errors import DataError

logger = logging.getLogger(__name__)

Put = Callable[[dict[str, np.ndarray]], Any]
ALWAYS = ("weight", "_position", "_step")
POLL_S = 0.2  # how often a waiting consumer looks at the stop flag
CLOSE_S = 5.0  # how long closing waits for a reader that may hang


class Item(NamedTuple):
    """One step's data.

    Attributes:
        step: Step number.
        host: All arrays of the batch in numpy.
        device: What `put` made of those that the device needs.
    """

    step: int
    host: dict[str, np.ndarray]
    device: Any


@dataclass
class Clock:
    """Where the time of the data goes, in seconds since the start.

    Attributes:
        waited: The consumer waited for a batch.
        reading: The source made batches, in the background.
        copying: Batches were handed to the device, in the background.
    """

    waited: float = 0.0
    reading: float = 0.0
    copying: float = 0.0


Produce = Callable[[Clock], Iterator[Item]]


class Prefetcher(Iterator[Item]):
    """Batches of consecutive steps, in order, prepared by one background thread.

    Made by `prefetch`. Close it, or use it in a `with` statement, to end the thread early.

    Attributes:
        clock: Where the time went.
    """

    def __init__(
        self, produce: Produce, depth: int, *, timeout_s: float, stop: Callable[[], bool]
    ) -> None:
        self.clock = Clock()
        self._timeout_s, self._asked_to_stop = timeout_s, stop
        self._queue: queue.Queue[Item | BaseException | None] = queue.Queue(max(1, depth))
        self._stop = threading.Event()
        # The thread knows the queue but not this object, so that dropping the iterator without
        # closing it ends the thread as well.
        self._thread = threading.Thread(
            target=_run,
            args=(produce, self.clock, self._queue, self._stop),
            name="xec-prefetch",
            daemon=True,
        )
        self._halt = weakref.finalize(self, _halt, self._queue, self._stop)
        self._thread.start()

    def __next__(self) -> Item:
        """Returns the next step's data.

        Raises:
            StopIteration: After the last step, after `close`, or when asked to stop while
                waiting.
            DataError: No batch came in time: the reader hangs.
            Exception: Whatever the source or `put` raised for this step, with its traceback.
        """
        if self._stop.is_set():
            raise StopIteration
        begun = time.monotonic()
        item = self._wait(begun + self._timeout_s)
        self.clock.waited += time.monotonic() - begun
        if isinstance(item, Item):
            return item
        self.close()
        if item is None:
            raise StopIteration
        raise item

    def _wait(self, deadline: float) -> Item | BaseException | None:
        """Waits for the queue with one eye on the clock and one on the stop flag."""
        while True:
            try:
                return self._queue.get(timeout=POLL_S)
            except queue.Empty:
                if self._asked_to_stop():
                    return None
                if time.monotonic() > deadline:
                    return DataError(
                        f"no batch came for {self._timeout_s:g} s: the reader hangs",
                        expected="a batch within data.timeout_s",
                        remedy="look at the file system and start the same command again, or "
                        "raise data.timeout_s",
                    )

    def close(self) -> None:
        """Ends the thread; waits for a batch that is being read, but not for ever."""
        self._halt()
        self._thread.join(CLOSE_S)

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def prefetch(
    source: Source,
    *,
    start: int,
    stop: int,
    size: int,
    shard: tuple[int, int] = (0, 1),
    seed: int = 0,
    train: bool = True,
    depth: int = 2,
    put: Put | None = None,
    keys: Collection[str] | None = None,
    timeout_s: float = math.inf,
    interrupt: Callable[[], bool] = lambda: False,
) -> Prefetcher:
    """Reads the steps `start` to `stop` ahead of their consumer.

    Adds two keys to each batch: `_position` int32 [b], which random draws are keyed with: the
    place of each event in the batch of all shards together, or in the whole set when not
    training; and `_step` int32 [b] for schedules inside losses.

    Args:
        source: Where the batches come from; used by the background thread alone until the
            iterator ends or is closed.
        start: First step.
        stop: One past the last step.
        size: Events in the batch of this shard.
        shard: This shard and the number of shards.
        seed: Seed of the order of the events.
        train: As for `Source.batch`.
        depth: Batches that wait for the consumer; one more may be in the making.
        put: Copies a batch to the device, with the right sharding; `jax.device_put` if not
            given.
        keys: Names of the arrays that the device needs, besides `weight`, `_position` and
            `_step`; all if not given. 64-bit integers, that is identifiers of events, always
            stay on the host, since JAX would cut them to 32 bits.
        timeout_s: How long the consumer waits for a batch before it gives up.
        interrupt: Polled while waiting; True ends the iteration.

    Returns:
        Iterator over `(step, host batch, device batch)`. An error in the thread is raised in
        the place of the batch that it prevented.
    """
    if put is None:
        import jax  # here alone, so that commands which need no device start fast

        put = jax.device_put
    copy = put

    def produce(clock: Clock) -> Iterator[Item]:
        place = np.arange(shard[0] * size, (shard[0] + 1) * size, dtype=np.int32)
        for step in range(start, stop):
            position = place if train else place + np.int32(step * size * shard[1])
            begun = time.monotonic()
            host = dict(source.batch(step, size=size, shard=shard, seed=seed, train=train))
            host["_position"] = position.copy()
            host["_step"] = np.full(size, step, np.int32)
            read = time.monotonic()
            item = Item(step, host, copy(_for_device(host, keys)))
            clock.reading += read - begun
            clock.copying += time.monotonic() - read
            yield item

    return Prefetcher(produce, depth, timeout_s=timeout_s, stop=interrupt)


def _for_device(
    host: Mapping[str, np.ndarray], keys: Collection[str] | None
) -> dict[str, np.ndarray]:
    return {
        name: array
        for name, array in host.items()
        if (keys is None or name in keys or name in ALWAYS)
        and not (array.dtype.kind in "iu" and array.dtype.itemsize == 8)
    }


def _run(produce: Produce, clock: Clock, out: queue.Queue, stop: threading.Event) -> None:
    """Body of the thread: all items, then the error or None."""
    try:
        for item in produce(clock):
            out.put(item)
            if stop.is_set():
                return
        out.put(None)
    except BaseException as error:
        out.put(error)


def _halt(out: queue.Queue, stop: threading.Event) -> None:
    """Tells the thread to end and makes room in the queue for what it still wants to put."""
    stop.set()
    while True:
        try:
            out.get_nowait()
        except queue.Empty:
            return
