"""The tokens of an encoder as an export of their own, the same for all tasks."""

from typing import cast

import numpy as np
from ml_collections import ConfigDict

from xec_jax.export.graphs import calorimeter as shared
from xec_jax.export.graphs.base import Arrays, Graph, Port
from xec_jax.nets.encoder import XecEncoder
from xec_jax.tasks import calorimeter
from xec_jax.types import Array, Params


def encoder_graph(config: ConfigDict, encoder: XecEncoder, *, raw: bool) -> Graph:
    """Builds the graph from sensors to `tokens` (b t d)."""
    transform = calorimeter.transform_of(config)

    def apply(params: Params, inputs: dict[str, Array]) -> dict[str, Array]:
        x = calorimeter.encode(transform, inputs)[0] if raw else inputs["input"]
        return {"tokens": cast(Array, encoder.apply({"params": params["encoder"]}, x))}

    def events(generator: np.random.Generator, n: int) -> Arrays:
        arrays = shared.raw_events(config, generator, n)
        return arrays if raw else {"input": shared.normalized(config, arrays)}

    shape = (len(encoder.faces), encoder.dim)
    names = ", ".join(face.name for face in encoder.faces)
    tokens = Port("tokens", shape, "", f"one per face: {names}")
    inputs = shared.raw_ports(config) if raw else (shared.INPUT,)
    return Graph(inputs, (tokens,), apply, events, shared.facts_of(config))
