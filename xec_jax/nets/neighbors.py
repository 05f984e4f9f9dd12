"""Who is next to whom: tables of neighboring sensors, cells and nodes, made once in numpy."""

import functools
import itertools
from collections.abc import Callable, Iterator

import jax.numpy as jnp
import numpy as np

from xec_jax.geometry import Detector, GraphFace
from xec_jax.types import Array

Neighbors = Callable[[Array, float], Iterator[Array]]
"""(values, fill) -> one array like `values` per neighbor, `fill` where there is none."""


@functools.lru_cache(maxsize=4)
def nearest_sensors(detector: Detector, count: int) -> np.ndarray:
    """Returns the nearest other sensors in space, int32 (s, count), near ones first.

    Every seventh sensor has a tie at rank 16. Distances that agree to 1 um count as equal, and
    the smaller id wins, so that the table does not depend on the machine.
    """
    position, ids = detector.sensors.positions, np.arange(detector.n_sensors)
    table = np.empty((len(ids), count), np.int32)
    for rows in np.array_split(ids, 16):
        distance = np.linalg.norm(position[rows, None] - position, axis=-1)
        rank = np.rint(distance * 1e4).astype(np.int64) * len(ids) + ids
        rank[np.arange(len(rows)), rows] = np.iinfo(np.int64).max
        table[rows] = np.sort(np.partition(rank, count, 1)[:, :count], 1) % len(ids)
    return table


def nodes_within(graph: GraphFace, steps: int = 2) -> np.ndarray:
    """Returns the nodes at most `steps` edges away, without the node itself.

    Returns:
        int32 (n, k), ascending; rows with fewer than k neighbors end in n, which is no node.
    """
    n = graph.n_nodes
    is_linked = np.zeros((n, n), bool)
    is_linked[graph.edges[1], graph.edges[0]] = True
    is_near = np.linalg.matrix_power(is_linked.astype(int) + np.eye(n, dtype=int), steps) > 0
    np.fill_diagonal(is_near, False)
    table = np.full((n, is_near.sum(1).max()), n, np.int32)
    for node, row in enumerate(is_near):
        table[node, : row.sum()] = np.flatnonzero(row)
    return table


def box_neighbors(x: Array, fill: float, reach: int = 2) -> Iterator[Array]:
    """Yields the cells of (b h w c) at every offset of up to `reach` rows and columns but 0."""
    h, w = x.shape[1:3]
    around = (reach, reach)
    padded = jnp.pad(x, ((0, 0), around, around, (0, 0)), constant_values=fill)
    for i, j in itertools.product(range(2 * reach + 1), repeat=2):
        if (i, j) != (reach, reach):
            yield padded[:, i : i + h, j : j + w]


def node_neighbors(graph: GraphFace, steps: int = 2) -> Neighbors:
    """Returns what yields the neighbors of (b n c) along the edges of a graph, one at a time."""
    table = nodes_within(graph, steps)

    def look(x: Array, fill: float) -> Iterator[Array]:
        padded = jnp.pad(x, ((0, 0), (0, 1), (0, 0)), constant_values=fill)
        for column in table.T:
            yield jnp.take(padded, column, axis=1, mode="clip")

    return look
