"""Exports of the inpainter: dead sensors filled, or the tokens of its encoder."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from xec_jax.errors import ConfigError
from xec_jax.export.graphs import calorimeter as shared
from xec_jax.export.graphs.base import Arrays, Graph, Port, with_form
from xec_jax.export.graphs.encoder import encoder_graph
from xec_jax.geometry import INVALID, N_SENSORS
from xec_jax.tasks import calorimeter, inpaint
from xec_jax.tasks.hidden import conceal, to_physical
from xec_jax.types import Array, Params

PARTS = ("network", "encoder")


def make_graph(
    config: ConfigDict, part: str, *, raw: bool, tasks: Sequence[str], portable: bool
) -> Graph:
    """Builds a graph; see `base.make_graph`.

    `dead_mask` (b s) marks dead sensors; invalid photon counts are dead, too. `npho_filled` and,
    where times are predicted, `time_filled` (b s) hold what was given wherever a sensor is alive,
    in photons and seconds with `raw`, normalized without.
    """
    if tasks:
        raise ConfigError("--tasks with an inpainter", expected="a run of the task regress")
    net = with_form(inpaint.make_network(config), portable)
    if part == "encoder":
        return encoder_graph(config, net.encoder, raw=raw)
    detector, transform = calorimeter.detector_of(config), calorimeter.transform_of(config)
    experiment = inpaint.Experiment(detector, transform, net, config)
    channels = tuple(config.model.predict_channels)
    names = [port.name for port in shared.raw_ports(config)]

    def apply(params: Params, inputs: dict[str, Array]) -> dict[str, Array]:
        given = [inputs[name] for name in names]
        dead = inputs["dead_mask"] > 0.5
        if raw:
            batch = {n: jnp.where(dead, INVALID, v) for n, v in zip(names, given, strict=True)}
            x, valid = calorimeter.encode(transform, batch)
        else:
            features = (*given, jnp.full_like(given[0], transform.sentinel_time))[:2]
            x = jnp.stack(features, -1)
            valid = jnp.stack([~shared.is_invalid(config, x, i) & ~dead for i in range(2)], -1)
        dead = ~valid[..., 0]
        shown = conceal(transform, experiment.model.fill_npho, x, dead)
        predicted = experiment.fill(params, shown, valid, jnp.zeros_like(dead))
        values = to_physical(transform, predicted) if raw else jnp.moveaxis(predicted, -1, 0)
        return {
            f"{name}_filled": jnp.where(dead, values[i], given[i])
            for i, name in enumerate(channels)
        }

    def events(generator: np.random.Generator, n: int) -> Arrays:
        arrays = shared.raw_events(config, generator, n)
        if not raw:
            features = shared.normalized(config, arrays)
            arrays = {name: features[..., i] for i, name in enumerate(names)}
        return arrays | {"dead_mask": shared.masks(generator, n, 0.05)}

    facts = shared.facts_of(config) | {"channels": list(channels)}
    mask = shared.mask_port("dead_mask", "dead sensors")
    about = "measured where the sensor is alive, predicted where it is not"
    if raw:
        inputs = shared.raw_ports(config)
        outputs: tuple[Port, ...] = (
            shared.npho_port(config, "npho_filled", about),
            shared.time_port(config, "time_filled", about),
        )
    else:
        ports = [Port(n, (N_SENSORS,), "", "normalized, sentinels where invalid") for n in names]
        inputs = tuple(ports)
        outputs = tuple(Port(f"{n}_filled", (N_SENSORS,), "", about) for n in ("npho", "time"))
    return Graph((*inputs, mask), outputs[: len(channels)], apply, events, facts)
