"""Judgements about units, schemes and truth: each fault is named, healthy events raise none."""

import jax.numpy as jnp
import numpy as np
import pytest

from xec_jax import kinematics
from xec_jax.data.survey.doubts import RULES, SPOILS, add, doubts, judge
from xec_jax.data.survey.questions import gather

N, SENSORS = 40, 30


def healthy(n=N, sensors=SENSORS, seed=0):
    """Events whose truth comes from the package's own kinematics, in float32 as in files."""
    rng = np.random.default_rng(seed)
    uvw = rng.uniform([-24, -68, 0], [24, 68, 20], (n, 3))
    xyz = np.asarray(kinematics.uvw_to_xyz(jnp.asarray(uvw)))
    vertex = rng.normal(0, [1, 1, 5], (n, 3))
    flight = xyz - vertex
    vector = flight / np.linalg.norm(flight, axis=1, keepdims=True)
    npho = rng.exponential(300, (n, sensors)).astype(np.float32) - 5
    time = rng.uniform(-2e-8, 2e-8, (n, sensors)).astype(np.float32)
    npho[:, 3] = time[:, 3] = 1e10
    time[npho < 100] = 1e10
    good = npho < 9e9
    largest = np.where(good, npho, 0).max(axis=1)
    earliest = time.min(axis=1)
    events = {
        "npho": npho,
        "time": time,
        "relative_npho": np.where(good, npho / largest[:, None], 1e10),
        "relative_time": np.where(time < 9e9, time - earliest[:, None], 1e10),
        "npho_max_used": largest,
        "time_min_used": earliest,
        "emiVec": vector,
        "emiAng": np.asarray(kinematics.vector_to_angles(jnp.asarray(vector))),
        "energyTruth": rng.uniform(0.015, 0.06, n),
        "timeTruth": rng.uniform(-10, 10, n),
        "uvwTruth": uvw,
        "xyzTruth": xyz,
        "xyzVTX": vertex,
    }
    return {name: values.astype(np.float32) for name, values in events.items()}


def kinds(arrays, **options):
    return [doubt.kind for doubt in doubts(arrays, **options)]


@pytest.mark.parametrize("npho", ["npho", "relative_npho"])
@pytest.mark.parametrize("time", ["time", "relative_time", None])
@pytest.mark.parametrize("n", [1, 2, N])
def test_healthy_events_raise_no_doubt(npho, time, n):
    events = {name: values[:n] for name, values in healthy().items()}
    assert doubts(events, npho_branch=npho, time_branch=time) == []


def test_healthy_events_in_other_dresses():
    """Double precision, scalars written as one-element arrays, real data without truth."""
    events = healthy()
    assert not doubts({name: values.astype(np.float64) for name, values in events.items()})
    assert not doubts({n: v[:, None] if v.ndim == 1 else v for n, v in events.items()})
    assert not doubts({name: events[name] for name in ("npho", "relative_time")})
    assert not doubts({})
    assert not doubts({name: values[:0] for name, values in events.items()})


def edit(name, change):
    return lambda events: events.update({name: change(events[name].copy())})


def put(rows, value):
    def change(values):
        values[rows] = value
        return values

    return change


def switch(a, b):
    return lambda events: events.update({a: events[b], b: events[a]})


FAULTS = {
    "fractions as photons": (switch("npho", "relative_npho"), "scheme", "fractions"),
    "photons in thousands": (edit("npho", lambda x: x * 1e6), "npho_unit", "photons"),
    "one broken sensor": (edit("npho", put((7, 5), 3e8)), "npho_outliers", "3e+08 photons"),
    "times in ns": (edit("relative_time", lambda t: t * 1e9), "time_unit", "1e-05 s"),
    "one broken time": (edit("relative_time", put((7, 5), -0.5)), "time_outliers", "-0.5 s"),
    "inverted signals": (edit("npho", lambda x: np.where(x < 9e9, -x, x)), "negative", "40 of 40"),
    "low pedestal": (edit("npho", lambda x: x - 350), "negative", "negative"),
    "events without light": (edit("npho", put(slice(2), 0)), "all_invalid", "2 of 40"),
    "no light at all": (edit("npho", put(slice(None), 1e10)), "no_light", "40 of 40"),
    "NaN everywhere": (edit("npho", put(slice(None), np.nan)), "no_light", "40 of 40"),
    "most sensors invalid": (
        edit("npho", put((slice(None), slice(20)), 1e10)),
        "invalid_share",
        "more than half",
    ),
    "no times": (edit("relative_time", put(slice(None), 1e10)), "invalid_share", "100 photons"),
    "another reference": (edit("npho_max_used", lambda x: 2 * x), "relative", "relative_npho"),
    "gaps in one only": (
        edit("npho", put((slice(20), 7), np.nan)),
        *("relative_gaps", "invalid in 'npho' in 20 of 40"),
    ),
    "another start": (edit("time_min_used", lambda x: x + 1e-9), "relative", "relative_time"),
    "MeV": (edit("energyTruth", lambda x: 1000 * x), "energy_unit", " GeV"),
    "an impossible energy": (edit("energyTruth", put(3, 0.5)), "energy_range", "0.5 GeV"),
    "true times in s": (edit("timeTruth", lambda x: x * 1e-9), "true_time_unit", "ns"),
    "true times in ps": (edit("timeTruth", lambda x: x * 1e6), "true_time_unit", "ns"),
    "radians": (edit("emiAng", np.deg2rad), "angle_unit", "radians"),
    "long vectors": (edit("emiVec", lambda x: 3 * x), "vector_norm", "length than 1"),
    "another phi": (edit("emiAng", lambda x: x * [1, -1]), "direction", "emiAng"),
    "another vertex": (edit("xyzVTX", lambda x: x + 5), "direction", "xyzTruth"),
    "v and u exchanged": (edit("uvwTruth", lambda x: x[:, [1, 0, 2]]), "position", "cm against"),
    "truth lost": (edit("xyzTruth", put(slice(20), np.nan)), "truth_invalid", "20 of 40"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault):
    change, kind, words = FAULTS[fault]
    events = healthy()
    change(events)
    found = [doubt for doubt in doubts(events) if doubt.kind == kind]
    assert found, kinds(events)
    assert any(words in doubt.found for doubt in found), found
    assert all(doubt.remedy for doubt in found)


def some(name, change):
    """Changes 45 % of the events only, as one of several files with another unit does."""
    return edit(name, lambda x: np.concatenate([change(x[:18]), x[18:]]))


SOME = {
    "some MeV": (some("energyTruth", lambda x: 1000 * x), "energy_range", "in 18 of 40"),
    "one of 52.8 GeV": (edit("energyTruth", put(3, 52.8)), "energy_range", "such as 52.8 GeV"),
    "some radians": (some("emiAng", np.deg2rad), "angle_outliers", "radians in 18 of 40"),
    "some fractions": (some("npho", lambda x: x / 1e4), "scheme_outliers", "in 18 of 40"),
    "some true times in s": (
        some("timeTruth", lambda x: x * 1e-9),
        *("true_time_outliers", "in 18 of 40"),
    ),
}


@pytest.mark.parametrize("fault", SOME)
def test_a_fault_of_some_events_is_a_warning(fault):
    change, kind, words = SOME[fault]
    events = {name: events for name, events in healthy().items() if "relative" not in name}
    if fault == "some fractions":
        events["npho"][:, 3] = 0  # instead of a marker that would be scaled with the rest
    change(events)
    (doubt,) = doubts(events)
    assert doubt.kind == kind
    assert kind not in SPOILS
    assert words in doubt.found


@pytest.mark.parametrize(("name", "value"), [("npho", 5e8), ("time", -0.5)])
def test_a_sensor_that_is_always_broken_is_no_unit(name, value):
    events = healthy(sensors=400)
    events = {key: events[key] for key in ("npho", "time")}
    events[name][:, 5] = value
    (doubt,) = doubts(events, time_branch="time")
    assert doubt.kind == f"{name}_outliers"
    assert "in 40 of 40" in doubt.found
    events[name][:, 5:15] = value  # too many to be broken
    assert kinds(events, time_branch="time") == [f"{name}_unit"]


def test_directions_are_judged_event_by_event():
    events = healthy()
    events["emiAng"][1:, 1] *= -1
    events["emiAng"][0] = 0  # looks like radians
    assert set(kinds(events)) == {"angle_outliers", "direction"}


def test_one_fault_does_not_raise_others():
    """What a fault does not touch stays without doubt."""
    alone = {"another phi", "MeV", "radians", "truth lost", "true times in s", "another vertex"}
    for fault in alone | {"long vectors", "an impossible energy", "one broken time"}:
        change, kind, _ = FAULTS[fault]
        events = healthy()
        change(events)
        assert set(kinds(events)) - {"relative"} == {kind}, fault


def test_constants_decide_about_the_scheme():
    events = healthy()
    legacy, new = {"npho_scale": 0.58}, {"npho_scale": 1000.0}
    assert kinds(events, normalization=new) == []
    assert kinds(events, normalization=legacy) == ["scheme"]
    assert kinds(events, npho_branch="relative_npho", normalization=legacy) == []
    assert kinds(events, npho_branch="relative_npho", normalization=new) == ["scheme"]
    # A square root of photons divided by 1 is as good as one of fractions.
    root = {"npho_scale": 1.0, "npho_scheme": "sqrt"}
    assert kinds(events, normalization=root) == []
    assert kinds(events, npho_branch="relative_npho", normalization=root) == []


def test_energies_in_mev_are_asked_for():
    events = healthy()
    assert kinds(events, energy_unit="MeV") == ["energy_unit"]
    events["energyTruth"] *= 1000
    assert kinds(events, energy_unit="MeV") == []


def test_noise_of_dim_sensors_is_no_fault():
    """Pedestals scatter around zero, and dim sensors have no time."""
    rng = np.random.default_rng(1)
    npho = rng.normal(2, 5, (50, 400)).astype(np.float32)
    npho[:, :3] = rng.uniform(500, 5000, (50, 3))
    time = np.full_like(npho, 1e10)
    time[:, :3] = 1e-8
    assert doubts({"npho": npho, "relative_time": time}) == []


def test_parts_add_up():
    """Any division of the events gives the same findings, but for the example that is shown."""
    events = healthy(200)
    edit("npho", put((150, 2), 5e8))(events)
    edit("energyTruth", put(slice(190, 200), np.nan))(events)
    options = {"npho_branch": "npho", "time_branch": "relative_time"}
    whole = gather(events, **options)
    total = {}
    for start in (0, 7, 100, 160):
        stop = {0: 7, 7: 100, 100: 160, 160: 200}[start]
        add(total, gather({k: v[start:stop] for k, v in events.items()}, **options))
    assert total == whole
    assert judge(total) == doubts(events)
    assert {doubt.kind for doubt in judge(total)} == {"npho_outliers", "truth_invalid"}


def test_few_events_of_many_are_no_wrong_unit():
    events = healthy(300)
    edit("energyTruth", put(slice(2), np.nan))(events)
    edit("emiVec", put(1, 2.0))(events)
    assert kinds(events) == ["truth_gaps"]


def test_branches_of_another_shape_are_not_looked_at():
    events = healthy()
    for name in ("emiAng", "emiVec", "uvwTruth", "xyzTruth", "energyTruth", "npho_max_used"):
        events[name] = np.full((N, 7), 1e5, np.float32)
    events["npho"] = events["npho"][:, 0]
    assert kinds(events) == []


def test_kinds_are_known():
    every = {kind for rule in RULES.values() for kind in rule.kinds.values()}
    assert every >= SPOILS
    assert {kind for _, kind, _ in (*FAULTS.values(), *SOME.values())} | {"truth_gaps"} == every
    for rule in RULES.values():
        assert list(rule.kinds) == sorted(rule.kinds)
