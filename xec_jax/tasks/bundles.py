"""What training, evaluation and prediction of muon bundles share: the numbers that a flow sees.

A batch has one muon per row, together with its own primary (`data.muons.muon_source`).
"""

from dataclasses import asdict, dataclass

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from xec_jax.data.muons import Bundles
from xec_jax.errors import ConfigError, DataError
from xec_jax.muon_features import (
    CONDITIONS,
    METHODS,
    Column,
    Columns,
    decode_muons,
    encode_muons,
    encode_primaries,
    names_of,
)
from xec_jax.nets.flow_bases import Settings, check_base
from xec_jax.nets.flows import ConditionalFlow, FlowSize
from xec_jax.nets.multiplicity import HEADS, Multiplicity
from xec_jax.types import Array, ArrayLike

STAGES_A = ("physics", "none")
CONTEXTS = ("primary", "none")
PLAIN_COLUMNS = {"energy": 0, "radius": 1, "x": 2, "y": 3}


@dataclass(frozen=True)
class Encoding:
    """From what files hold to what the networks see, and back.

    Attributes:
        features: A key of `muon_features.FEATURES`.
        offset_m2: See `muon_features.encode_muons`.
        is_physical: False takes numbers as they are (`model.stage_a` = none).
        muons: Stage B of the features.
        primaries: Stage B of the conditions.
    """

    features: str
    offset_m2: float
    is_physical: bool
    muons: Columns
    primaries: Columns

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the features."""
        return names_of(self.features)

    def conditions(self, primary: ArrayLike) -> Array:
        """Turns primaries (... 4) into conditions (... 4) of order 1."""
        primary = jnp.asarray(primary)
        return self.primaries.forward(encode_primaries(primary) if self.is_physical else primary)

    def stage_a(self, muon: ArrayLike) -> Array:
        """Turns muons (... 4) into features (... d) of stage A."""
        if self.is_physical:
            return encode_muons(muon, self.features, self.offset_m2)
        return jnp.asarray(muon)[..., [PLAIN_COLUMNS[name] for name in self.names]]

    def decode(self, stage_a: ArrayLike) -> dict[str, Array]:
        """Turns features (... d) of stage A into energy (GeV), radius, x and y (m), by name."""
        if self.is_physical:
            return decode_muons(stage_a, self.features, self.offset_m2)
        return dict(zip(self.names, jnp.moveaxis(jnp.asarray(stage_a), -1, 0), strict=True))


def encoding_of(config: ConfigDict) -> Encoding:
    """Returns the encoding of a config; where nothing is fitted, stage B changes nothing."""
    model = config.model
    names = {"muons": names_of(model.features), "primaries": CONDITIONS}
    columns = {
        kind: Columns(tuple(_column(model.fitted[kind].get(name)) for name in names[kind]))
        for kind in names
    }
    return Encoding(model.features, model.offset_m2, model.stage_a == "physics", **columns)


def _column(fitted: ConfigDict | None) -> Column:
    if fitted is None:
        return Column()
    return Columns.from_list([fitted.to_dict()]).columns[0]


def fit(config: ConfigDict, bundles: Bundles) -> dict[str, dict[str, dict]]:
    """Fits stage B to training events.

    Returns:
        For `model.fitted`: the constants of `muons` and `primaries` by the name of the column.

    Raises:
        DataError: No muons, or columns that are constant.
    """
    encoding, model = encoding_of(config), config.model
    if not len(bundles.muons):
        raise DataError("the training events have no muons", expected="at least two muons")
    stage_b = model.stage_b
    of_muons = np.asarray(encoding.stage_a(bundles.muons), np.float64)
    primaries = bundles.primaries
    of_primaries = np.asarray(
        encode_primaries(primaries) if model.stage_a == "physics" else primaries, np.float64
    )
    found: dict[str, dict[str, dict]] = {}
    for kind, values, names in (
        ("muons", of_muons, encoding.names),
        ("primaries", of_primaries, CONDITIONS),
    ):
        found[kind] = {}
        for name, column in zip(names, values.T, strict=True):
            is_chosen = stage_b.columns == "all" or "energy" in name
            method = stage_b[kind] if is_chosen else "standard"
            if kind == "primaries" and np.ptp(column) == 0:
                fitted = Column("standard", float(column[0]), 1.0)  # says nothing, harms nothing
            else:
                try:
                    fitted = Column.fit(column, method)
                except DataError as error:
                    raise DataError(
                        f"{kind}, {name}: {error.found}", expected=error.expected
                    ) from error
            found[kind][name] = asdict(fitted)
    return found


def check_numbers(config: ConfigDict, bundles: Bundles) -> None:
    """Refuses events whose numbers stage A cannot take.

    Raises:
        DataError: Energies, radii or primaries that are impossible.
    """
    features, offset_m2 = config.model.features, config.model.offset_m2
    if config.model.stage_a != "physics":
        return
    energy, radius = bundles.muons[:, 0], bundles.muons[:, 1]
    if bad := int((energy <= 0).sum()):
        raise DataError(
            f"{bad} of {len(energy)} muons have an energy of 0 or less",
            expected="energies in GeV",
            remedy="model.stage_a=none for numbers without units, such as the benchmark lg0",
        )
    if offset_m2 == 0 and "radius" in names_of(features) and (bad := int((radius <= 0).sum())):
        raise DataError(
            f"{bad} of {len(radius)} muons are 0 m or less from the axis",
            expected="radii above 0 with model.offset_m2 = 0",
            remedy="--config.model.offset_m2=0.125, which keeps their logarithm finite",
        )
    energy, zenith, mass, depth = bundles.primaries.T
    bad = int(((energy <= 0) | (np.abs(zenith) > np.pi) | (mass <= 0) | (depth < 0)).sum())
    if bad:
        raise DataError(
            f"{bad} of {len(energy)} primaries have impossible numbers",
            expected="energy in GeV > 0, zenith in rad, mass in GeV > 0, depth in m",
            remedy="model.stage_a=none for numbers without units",
        )


def flow_of(config: ConfigDict) -> ConditionalFlow:
    """Builds the flow that the `model` group describes."""
    model = config.model
    flow = model.flow
    return ConditionalFlow(
        features=len(names_of(model.features)),
        size=FlowSize(flow.transforms, flow.bins, flow.hidden, flow.context),
        kind=flow.kind,
        base=Settings(flow.base.name, flow.base.df, flow.base.components),
        bound=flow.bound,
    )


def multiplicity_of(config: ConfigDict) -> Multiplicity:
    """Builds the network that says how many muons there are."""
    head = config.model.multiplicity
    return Multiplicity(head.head, 1 if head.least is None else head.least)


def check(config: ConfigDict) -> None:
    """Checks the values that only this family understands.

    Raises:
        ConfigError: A value out of its range.
    """
    model = config.model
    names_of(model.features)
    check_base(model.flow.base.name, model.flow.base.df)
    for key, value, known in (
        ("model.stage_a", model.stage_a, STAGES_A),
        ("model.context", model.context, CONTEXTS),
        ("model.stage_b.muons", model.stage_b.muons, METHODS),
        ("model.stage_b.primaries", model.stage_b.primaries, METHODS),
        ("model.stage_b.columns", model.stage_b.columns, ("all", "energy")),
        ("model.multiplicity.head", model.multiplicity.head, HEADS),
        ("train.weighting", config.train.weighting, ("muon", "event")),
    ):
        if value not in known:
            raise ConfigError(f"{key} is {value!r}", expected="one of " + ", ".join(known))
    if model.stage_a == "none" and model.features == "all":
        found = "model.features is 'all' with model.stage_a=none"
        raise ConfigError(found, expected="r or xy, since r of such numbers has no meaning")
    for key in ("transforms", "bins", "hidden", "context", "bound"):
        if not model.flow[key] > 0:
            found = f"model.flow.{key} is {model.flow[key]}"
            raise ConfigError(found, expected="a positive number")
    if not config.train.chunk_size > 0:
        found = f"train.chunk_size is {config.train.chunk_size}"
        raise ConfigError(found, expected="a number of muons")
    if not model.offset_m2 >= 0:
        raise ConfigError(f"model.offset_m2 is {model.offset_m2}", expected="0 or more")
