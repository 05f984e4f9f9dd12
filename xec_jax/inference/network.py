"""What a network has to be for `predict` to ask it, wherever it comes from."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_collections import ConfigDict

from xec_jax.data.prefetch import Put, prefetch
from xec_jax.tasks.base import Task

if TYPE_CHECKING:
    from xec_jax.data.source import Source

Answer = dict[str, np.ndarray]


class Network:
    """A trained network, or several that are asked together.

    Attributes:
        task: What it reads, its facts, and the truth of what it predicts.
        data: The group `data` to open events with.
        answers: Shape of one event for everything that it predicts.
        notes: Where it comes from, JSON.
        put: What becomes of a batch before it is asked; None puts it on the device.
    """

    task: Task
    data: ConfigDict
    answers: Mapping[str, tuple[int, ...]]
    notes: Mapping[str, Any]
    put: Put | None = None

    def __call__(self, batch: Mapping[str, Any]) -> Answer:
        """Returns what is predicted for a batch; inputs that it lacks are invalid."""
        raise NotImplementedError


class Layout:
    """What is read of events, and what is written about them.

    Attributes:
        tree: Name of the tree.
        branches: What to read.
        has_truth: Whether columns named `true_...` hold the truth.
        notes: What a reader of the file has to know, JSON.
    """

    tree: str
    branches: list[str]
    has_truth: bool
    notes: Mapping[str, Any] = MappingProxyType({})

    def __call__(self, host: Mapping[str, np.ndarray], found: Answer) -> Answer:
        """Returns the rows of a batch."""
        raise NotImplementedError

    def unit(self, column: str) -> str:
        """Returns the unit of a column, empty if it has none."""
        raise NotImplementedError


def predict(
    network: Network, source: "Source", layout: Layout, batch_size: int
) -> Iterator[Answer]:
    """Yields rows batch by batch, in the order of the events.

    Args:
        network: Whom to ask.
        source: The events.
        layout: What rows hold.
        batch_size: Events at a time; the last batch is padded for the network and cut here.
    """
    inputs = frozenset(network.task.inputs or network.task.spec)
    stop = source.steps_per_epoch(size=batch_size, train=False)
    with prefetch(
        source, start=0, stop=stop, size=batch_size, train=False, keys=inputs, put=network.put
    ) as items:
        for _, host, batch in items:
            is_real = host["weight"] > 0
            rows = layout(host, network(batch))
            yield {name: values[is_real] for name, values in rows.items()}
