"""Networks on the graph faces, whose photomultipliers form a hexagonal array.

A node hears its neighbors through one weight vector per direction, which is the graph form of a
depthwise convolution; there is no attention and no division by the number of neighbors.
"""

import flax.linen as nn
import jax.numpy as jnp
import jraph
import numpy as np
from jax.typing import DTypeLike

from xec_jax.geometry import N_EDGE_TYPES, GraphFace
from xec_jax.nets.convnext import NextBlock
from xec_jax.nets.layers import Dense, LayerNorm, gelu
from xec_jax.types import Array, wide


class HexDepthwise(nn.Module):
    """y[dst] = bias + sum over edges of x[src] weight[type], per channel.

    Attributes:
        portable: Gather a table of neighbors in place of scattering messages, which ONNX
            Runtime adds up with a data race.
    """

    portable: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, graph: GraphFace) -> Array:
        """Mixes (b n c) along the edges of `graph`."""
        width = x.shape[-1]
        weight = self.param("kernel", nn.initializers.normal(0.02), (N_EDGE_TYPES, width))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        aggregate = gather_neighbors if self.portable else pass_messages
        y = aggregate(x.astype(self.dtype), weight.astype(self.dtype), graph)
        return y + bias.astype(self.dtype)


def pass_messages(x: Array, weight: Array, graph: GraphFace) -> Array:
    """Sums the weighted values of the sources at each destination, (b n c) -> (b n c)."""
    source, target, kind = graph.edges[:, np.argsort(graph.edges[1], kind="stable")]
    nodes = jnp.swapaxes(x, 0, 1)
    messages = jnp.take(nodes, source, axis=0, mode="clip")
    messages *= jnp.take(weight, kind, axis=0, mode="clip")[:, None]
    total = jraph.segment_sum(messages, target, graph.n_nodes, indices_are_sorted=True)
    return jnp.swapaxes(total, 0, 1)


def gather_neighbors(x: Array, weight: Array, graph: GraphFace) -> Array:
    """Equal to `pass_messages`: gathers each node's neighbors, a zero row for missing ones."""
    source, target, kind = graph.edges
    degree = np.bincount(target, minlength=graph.n_nodes).max()
    sources = np.full((degree, graph.n_nodes), graph.n_nodes)
    kinds = np.zeros((degree, graph.n_nodes), int)
    n_seen = np.zeros(graph.n_nodes, int)
    for s, t, k in zip(source, target, kind, strict=True):
        sources[n_seen[t], t], kinds[n_seen[t], t] = s, k
        n_seen[t] += 1
    padded = jnp.pad(x, ((0, 0), (0, 1), (0, 0)))
    total = jnp.zeros_like(x)
    for slot in range(degree):
        weights = jnp.take(weight, kinds[slot], axis=0, mode="clip")
        total += jnp.take(padded, sources[slot], axis=1, mode="clip") * weights
    return total


class HexNeXtBlock(NextBlock):
    """ConvNeXt V2 block on (b n c) whose depthwise convolution runs along the graph's edges."""

    @nn.compact
    def __call__(
        self,
        x: Array,
        graph: GraphFace,
        hidden: Array | None = None,
        deterministic: bool = True,
    ) -> Array:
        """Maps (b n c) to the same shape; other arguments as in `mix_channels`."""
        depthwise = HexDepthwise(self.portable, self.dtype, name="depthwise")
        return self.mix_channels(x, depthwise(x, graph), hidden, deterministic)


class HexEncoder(nn.Module):
    """Turns a graph face into one token; the same parameters serve all graph faces.

    Attributes:
        features: Width of the token.
        width: Channels of a node.
        n_blocks: Number of HexNeXt blocks.
        zero_hidden: Zero hidden nodes at the input, too, and not in the blocks alone.
    """

    features: int = 1024
    width: int = 96
    n_blocks: int = 4
    zero_hidden: bool = True
    drop_path: float = 0.0
    portable: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        graph: GraphFace,
        hidden: Array | None = None,
        deterministic: bool = True,
    ) -> Array:
        """Encodes (b n f) to (b features); `hidden`, bool (b n): nodes not to be seen."""
        x = x.astype(self.dtype)
        if hidden is not None and self.zero_hidden:
            x = x * (~hidden[..., None]).astype(x.dtype)
        x = Dense(self.width, self.dtype, name="stem")(x)
        x = gelu(LayerNorm(1e-5, dtype=self.dtype, name="stem_norm")(x))
        for i in range(self.n_blocks):
            block = HexNeXtBlock(
                self.width, self.drop_path, self.portable, self.dtype, name=f"block{i}"
            )
            x = block(x, graph, hidden, deterministic)
        # Hidden nodes count too: after the first block they carry what their neighbors know.
        x = wide(x).mean(1)
        x = LayerNorm(1e-5, dtype=self.dtype, name="norm")(x)
        return Dense(self.features, self.dtype, name="project")(x)
