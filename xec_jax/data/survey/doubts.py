"""Whether numbers can be what the names of their branches say: units, schemes, truth.

Judgements about arrays, without files, logs or errors: the reader asks about its first events,
and `xec_jax.check` about all of them. Each of the `questions` is asked event by event, and
answered by the share of events that look wrong, so that answers about parts of a file add up.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from xec_jax.data.survey.questions import (
    BRIGHT_NPHO,
    LARGEST_ENERGY_GEV,
    LARGEST_NPHO,
    LARGEST_TIME_S,
    Arrays,
    Evidence,
    Findings,
    gather,
)

SPOILS = {
    *("scheme", "npho_unit", "time_unit", "energy_unit", "angle_unit", "true_time_unit"),
    *("no_light", "truth_invalid", "vector_norm", "direction", "position"),
}
"""Kinds of doubts about data that no network should be trained with; others are warnings."""


class Doubt(NamedTuple):
    """Something that is hardly as it should be.

    Attributes:
        kind: One word for the kind of problem; all are in `RULES`.
        found: What was found in which branch, with numbers and units.
        remedy: What the user can do about it.
    """

    kind: str
    found: str
    remedy: str


class Rule(NamedTuple):
    """What the share of wrong events means.

    Attributes:
        what: Completes the sentence `branch 'npho' ...`.
        remedy: What the user can do about it.
        kinds: Kind of the doubt by the share that is exceeded, ascending.
    """

    what: str
    remedy: str
    kinds: Mapping[float, str]


SAMPLE_EVENTS = 1024
FEW, MANY, MOST = 0.01, 0.1, 0.5  # shares of events

RULES = {
    "npho_size_broken": Rule(
        f"goes beyond {LARGEST_NPHO:g} photons in single sensors",
        "set broken values to 1e10, which marks invalid sensors, or name the sensors in a list of "
        "dead channels",
        {0: "npho_outliers"},
    ),
    "npho_size": Rule(
        f"goes beyond {LARGEST_NPHO:g} photons per sensor",
        "values must be in photons; set broken ones to 1e10, which marks invalid sensors",
        {0: "npho_outliers", MANY: "npho_unit"},
    ),
    "dead": Rule(
        "has no valid sensor above 0",
        "such events count in no loss; check the calibration if there are many",
        {0: "all_invalid", 0.999: "no_light"},
    ),
    "npho_invalid": Rule(
        "is invalid (NaN or above 9e9) for more than half of the sensors",
        "check the calibration that wrote the file",
        {MOST: "invalid_share"},
    ),
    "npho_negative": Rule(
        "is negative for more than half of the valid sensors, which then count as invalid",
        "check pedestals and the sign of the signals",
        {MOST: "negative"},
    ),
    "fractions": Rule(
        "holds fractions of the brightest sensor in place of photons",
        "choose the branch with photons (npho), or data.npho_branch = 'relative_npho' with the "
        "legacy constants (npho_scale 0.58, npho_scale2 1, time_scale 6.5e-8, time_shift 0.5)",
        {FEW: "scheme_outliers", MOST: "scheme"},
    ),
    "photons": Rule(
        "holds photons in place of fractions of the brightest sensor",
        "choose the branch relative_npho, or data.npho_branch = 'npho' with the constants for "
        "photons (npho_scale 1000, npho_scale2 4.08, time_scale 1.14e-7, time_shift -0.46)",
        {FEW: "scheme_outliers", MOST: "scheme"},
    ),
    "time_size_broken": Rule(
        f"goes beyond {LARGEST_TIME_S:g} s in single sensors",
        "set broken values to 1e10, which marks invalid sensors, or name the sensors in a list of "
        "dead channels",
        {0: "time_outliers"},
    ),
    "time_size": Rule(
        f"goes beyond {LARGEST_TIME_S:g} s",
        "times of sensors must be in s; set broken ones to 1e10, which marks invalid sensors",
        {0: "time_outliers", MANY: "time_unit"},
    ),
    "time_invalid": Rule(
        f"is invalid for most of the sensors that see more than {BRIGHT_NPHO:g} photons",
        "check the timing calibration that wrote the file",
        {MOST: "invalid_share"},
    ),
    "relative": Rule(
        "does not follow from its absolute value and reference",
        "make the file again, or feed the absolute branch",
        {FEW: "relative"},
    ),
    "relative_gaps": Rule(
        "holds numbers for sensors that are invalid in 'npho'",
        "make the file again: of one and the same measurement",
        {FEW: "relative_gaps"},
    ),
    "energy_unit": Rule(
        "is no energy of a photon",
        "name the unit that all files hold: data.energy_unit = 'GeV' or 'MeV' (in xec_jax.check: "
        "--energy_unit)",
        {0: "energy_range", MOST: "energy_unit"},
    ),
    "energy_range": Rule(
        f"is outside 0 to {1000 * LARGEST_ENERGY_GEV:g} MeV",
        "check how the energies were made",
        {0: "energy_range"},
    ),
    "truth_invalid": Rule(
        "is NaN, infinite or 1e10",
        "such events do not count for this quantity; make the file again, or train with "
        "data.allow_bad_truth=true, which takes more than 1 % of them",
        {0: "truth_gaps", FEW: "truth_invalid"},
    ),
    "true_time": Rule(
        "has a size that cannot be ns",
        "true times must be in ns (those of the sensors are in s)",
        {FEW: "true_time_outliers", MOST: "true_time_unit"},
    ),
    "radians": Rule(
        "looks like radians",
        "emission angles (theta, phi) must be in degrees",
        {0: "angle_outliers", MOST: "angle_unit"},
    ),
    "norm": Rule(
        "has another length than 1", "emission vectors must be unit vectors", {FEW: "vector_norm"}
    ),
    "direction": Rule(
        "differs from 'emiVec' by more than 0.1 degrees",
        "emiVec points from vertex to first interaction, emiAng is theta = acos(z) and "
        "phi = atan2(y, -x)",
        {FEW: "direction"},
    ),
    "position": Rule(
        "differs from 'xyzTruth' by more than 0.1 cm",
        "u = z, v = arc at 64.97 cm, w = depth behind it, all in cm",
        {FEW: "position"},
    ),
}


def doubts(
    arrays: Arrays,
    *,
    npho_branch: str = "npho",
    time_branch: str | None = "relative_time",
    normalization: Mapping[str, Any] | None = None,
    energy_unit: str = "GeV",
) -> list[Doubt]:
    """Judges a sample of events; of more than `SAMPLE_EVENTS`, it looks at evenly spaced ones.

    Args:
        arrays: Values `[b, ...]` by the name of their branch in the file, as they are there or
            with 1e10 in place of NaN. Only `SHAPES` and the branches of sensors are looked at;
            any may be absent, and one of another shape counts as absent.
        npho_branch: Branch of photons per sensor that is to be fed.
        time_branch: Branch of times per sensor that is to be fed.
        normalization: Constants that the photons will meet, with `npho_scheme` and `npho_scale`;
            None judges the values by the name of their branch.
        energy_unit: Unit of energies in the files, GeV or MeV.

    Returns:
        All doubts, those about the inputs first.
    """
    n = max((len(values) for values in arrays.values()), default=0)
    step = -(-n // SAMPLE_EVENTS) or 1
    found = gather(
        {name: values[::step] for name, values in arrays.items()},
        npho_branch=npho_branch,
        time_branch=time_branch,
        normalization=normalization,
        energy_unit=energy_unit,
    )
    return judge(found)


def add(total: Findings, more: Findings) -> None:
    """Adds what was found in further events to `total`."""
    for key, new in more.items():
        old = total.get(key, Evidence(0, 0, ""))
        total[key] = Evidence(
            old.wrong + new.wrong, old.events + new.events, old.example or new.example
        )


def judge(found: Findings) -> list[Doubt]:
    """Turns what was found into doubts."""
    return list(_judge(found))


def _judge(found: Findings) -> Iterator[Doubt]:
    for (name, branch), (wrong, events, example) in found.items():
        rule = RULES[name]
        kinds = [kind for above, kind in rule.kinds.items() if events and wrong / events > above]
        if kinds:
            where = f"in {wrong} of {events} events" + (f", such as {example}" if example else "")
            yield Doubt(kinds[-1], f"branch {branch!r} {rule.what} {where}", rule.remedy)
