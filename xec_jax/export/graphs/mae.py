"""Exports of the masked autoencoder: the reconstruction of chosen sensors, or its tokens."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from xec_jax.errors import ConfigError
from xec_jax.export.graphs import calorimeter as shared
from xec_jax.export.graphs.base import Arrays, Graph, Port, with_form
from xec_jax.export.graphs.encoder import encoder_graph
from xec_jax.geometry import N_SENSORS
from xec_jax.tasks import calorimeter, mae
from xec_jax.tasks.hidden import to_physical
from xec_jax.types import Array, Params

PARTS = ("network", "encoder")


def make_graph(
    config: ConfigDict, part: str, *, raw: bool, tasks: Sequence[str], portable: bool
) -> Graph:
    """Builds a graph; see `base.make_graph`.

    `hidden_mask` (b s) says which sensors the network must not see, besides those that are
    invalid. The output is `reconstruction` (b s f), or with `raw` `npho_predicted` and
    `time_predicted` (b s), for all sensors; 0 for those that no face shows.
    """
    if tasks:
        raise ConfigError("--tasks with an autoencoder", expected="a run of the task regress")
    net = with_form(mae.make_network(config), portable)
    if part == "encoder":
        return encoder_graph(config, net.encoder, raw=raw)
    detector, transform = calorimeter.detector_of(config), calorimeter.transform_of(config)
    experiment = mae.Experiment(detector, transform, net, config)
    channels = tuple(config.model.predict_channels)

    def apply(params: Params, inputs: dict[str, Array]) -> dict[str, Array]:
        if raw:
            x, valid = calorimeter.encode(transform, inputs)
        else:
            x = inputs["input"]
            valid = jnp.stack([~shared.is_invalid(config, x, i) for i in range(2)], -1)
        hidden = inputs["hidden_mask"] > 0.5
        faces = experiment.reconstruct(params, x, valid, hidden)
        predicted, known = experiment.per_sensor(faces)
        if not raw:
            return {"reconstruction": predicted}
        physical = to_physical(transform, predicted)
        return {
            f"{name}_predicted": jnp.where(known, value, 0.0)
            for name, value in zip(channels, physical, strict=True)
        }

    def events(generator: np.random.Generator, n: int) -> Arrays:
        arrays = shared.raw_events(config, generator, n)
        if not raw:
            arrays = {"input": shared.normalized(config, arrays)}
        return arrays | {"hidden_mask": shared.masks(generator, n, 0.6)}

    mask = shared.mask_port("hidden_mask", "sensors to hide")
    facts = shared.facts_of(config) | {"channels": list(channels)}
    about = "of all sensors, seen or not"
    if not raw:
        output = Port("reconstruction", (N_SENSORS, len(channels)), "", ", ".join(channels))
        return Graph((shared.INPUT, mask), (output,), apply, events, facts)
    ports = (
        shared.npho_port(config, "npho_predicted", about),
        shared.time_port(config, "time_predicted", about),
    )
    inputs = (*shared.raw_ports(config), mask)
    return Graph(inputs, ports[: len(channels)], apply, events, facts)
