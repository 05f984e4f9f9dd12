"""Exports of the muon flow: the density of a muon, or a muon from noise and its multiplicity."""

from collections.abc import Sequence
from typing import cast

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from xec_jax.errors import ConfigError
from xec_jax.export.graphs.base import Arrays, Graph, Port
from xec_jax.muon_features import CONDITIONS
from xec_jax.tasks.bundles import encoding_of, flow_of, multiplicity_of
from xec_jax.types import Array, Params

PARTS = ("log_prob", "sample")
UNITS = {"energy": "GeV", "radius": "m", "x": "m", "y": "m"}
PRIMARY = Port("primary", (4,), "GeV, rad, GeV, m", "energy, zenith, mass, depth")
MUON = Port("muon", (4,), "GeV, m, m, m", "energy, r, x, y")


def make_graph(
    config: ConfigDict, part: str, *, raw: bool, tasks: Sequence[str], portable: bool
) -> Graph:
    """Builds a graph; see `base.make_graph`.

    Part `log_prob`: the log density (b,) of features (b d) given conditions (b 4), both as the
    networks see them; with `raw`, of a muon (b 4) given a primary (b 4), still in units of stage
    A. Part `sample`: noise (b d) of the base distribution and conditions in, `features` (b d) and
    `multiplicity` (b 1 or 2) out; with `raw`, from a primary to energy, radius, x, y as far as
    there are features of these.
    """
    if tasks:
        raise ConfigError("--tasks with a muon flow", expected="a run of the task regress")
    encoding, head = encoding_of(config), multiplicity_of(config)
    flow = flow_of(config).clone(portable=portable)
    names, is_blind = encoding.names, config.model.context == "none"
    conditions_port = Port("conditions", (4,), "", ", ".join(CONDITIONS) + ", of order 1")
    given = PRIMARY if raw else conditions_port

    def conditions_of(inputs: dict[str, Array]) -> Array:
        return encoding.conditions(inputs["primary"]) if raw else inputs["conditions"]

    def seen(conditions: Array) -> Array:
        return jnp.zeros_like(conditions) if is_blind else conditions

    def log_prob(params: Params, inputs: dict[str, Array]) -> dict[str, Array]:
        conditions, z = conditions_of(inputs), inputs.get("features")
        stage_a = None
        if z is None:
            stage_a = encoding.stage_a(inputs["muon"])
            z = encoding.muons.forward(stage_a)
        found = flow.apply({"params": params["flow"]}, z, seen(conditions))
        value = cast(Array, found)
        if stage_a is not None:
            value = value + encoding.muons.log_slope(stage_a)
        return {"log_prob": value}

    def sample(params: Params, inputs: dict[str, Array]) -> dict[str, Array]:
        conditions = conditions_of(inputs)
        variables = {"params": params["flow"]}
        found = flow.apply(variables, inputs["noise"], seen(conditions), method=flow.from_noise)
        features = cast(Array, found)
        output = head.apply({"params": params["multiplicity"]}, conditions)
        answer = {"multiplicity": cast(Array, output), "features": features}
        return answer | (encoding.decode(encoding.muons.inverse(features)) if raw else {})

    def events(generator: np.random.Generator, n: int) -> Arrays:
        energy, r = 10 ** generator.uniform(0.5, 5, n), 10 ** generator.uniform(-1.5, 3, n)
        angle = generator.uniform(0, 2 * np.pi, n)
        muon = np.stack([energy, r, r * np.sin(angle), r * np.cos(angle)], -1)
        columns = [
            10 ** generator.uniform(4.5, 8.5, n),
            np.arccos(generator.uniform(0.2, 1, n)),
            0.938 * generator.integers(1, 57, n),
            generator.uniform(900, 3000, n),
        ]
        normal = generator.normal(size=(n, 4 + 2 * len(names)))
        normal[0] = 0  # a spline's knot may lie there
        normal[1], normal[2] = 6, -6  # beyond the splines
        arrays = {
            "muon": muon,
            "primary": np.stack(columns, -1),
            "conditions": np.clip(normal[:, :4], -3, 3),
            "features": normal[:, 4 : 4 + len(names)],
            "noise": normal[:, 4 + len(names) :],
        }
        return {port.name: arrays[port.name].astype(np.float32) for port in inputs}

    facts = {
        "features": list(names),
        "conditions": list(CONDITIONS),
        "base": config.model.flow.base.to_dict(),
        "multiplicity": {"head": head.head, "least": head.least},
        "fitted": config.model.fitted.to_dict(),
    }
    if part == "log_prob":
        about = "natural logarithm of the density of the features" + (" of stage A" if raw else "")
        first = MUON if raw else Port("features", (len(names),), "", ", ".join(names))
        inputs = (first, given)
        return Graph(inputs, (Port("log_prob", (), "nats", about),), log_prob, events, facts)
    noise = Port("noise", (len(names),), "", f"of the base distribution {flow.base.name!r}")
    inputs = (noise, given)
    about = "ln of mean and size of N - least" if head.head == "nb" else "ln(N + 1)"
    outputs = [Port("multiplicity", (2 if head.head == "nb" else 1,), "", about)]
    if not raw:
        outputs.append(Port("features", (len(names),), "", ", ".join(names)))
    else:
        outputs += [Port(name, (), UNITS[name], "of a muon") for name in names]
    return Graph(inputs, tuple(outputs), sample, events, facts)
