"""Sources that spoil events: exact shares, known spreads, and batches that may be cut anyhow."""

import numpy as np
import pytest

from xec_jax.data.arrays import ArraySource
from xec_jax.data.mismatch import DeadShare, GainSpread, NoisePhotons, TimeJitter, TimeOffsets
from xec_jax.errors import ConfigError, DataError
from xec_jax.geometry import INVALID, INVALID_ABOVE, N_SENSORS

KINDS = {
    DeadShare: ("npho", 0.05),
    GainSpread: ("npho", 0.02),
    NoisePhotons: ("npho", 30.0),
    TimeOffsets: ("time", 2e-10),
    TimeJitter: ("time", 3e-10),
}


@pytest.fixture(scope="module")
def events():
    """26 events of two runs, some sensors invalid."""
    rng = np.random.default_rng(0)
    npho = rng.exponential(1000, (26, N_SENSORS)).astype(np.float32)
    time = rng.normal(0, 1e-8, npho.shape).astype(np.float32)
    npho[:, ::50], time[:, ::50], time[:, 7::9] = INVALID, INVALID, INVALID
    npho[3, 5] = np.nan
    return {"npho": npho, "time": time, "run": np.repeat([7, 8], 13), "energyTruth": time[:, 1]}


def everything(source, size=26, shards=1, **options):
    """All events in the order of the source, from steps in reverse."""
    steps = source.steps_per_epoch(size=size, shards=shards, train=False)
    parts = [
        source.batch(step, size=size, shard=(i, shards), train=False, **options)
        for step in reversed(range(steps))
        for i in reversed(range(shards))
    ][::-1]
    kept = [part["weight"] > 0 for part in parts]
    joined = zip(parts, kept, strict=True)
    joined = [{k: v[keep] for k, v in part.items()} for part, keep in joined]
    return {k: np.concatenate([part[k] for part in joined]) for k in joined[0]}


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_else_changes_and_zero_changes_nothing(events, kind):
    key, size = KINDS[kind]
    plain = ArraySource(events)
    source = kind(plain, size)
    assert source.spec == plain.spec
    assert len(source) == 26
    before, found, same = (everything(s) for s in (plain, source, kind(plain, 0.0)))
    for name, values in before.items():
        np.testing.assert_array_equal(same[name], values)
        assert found[name].dtype == values.dtype
        if name not in ((key, "time") if kind is DeadShare else (key,)):
            np.testing.assert_array_equal(found[name], values)
    is_usable = before[key] < INVALID_ABOVE
    np.testing.assert_array_equal(found[key][~is_usable], before[key][~is_usable])
    assert (found[key] != before[key])[is_usable].any()
    prints = [kind(plain, *args).fingerprint for args in ((size,), (0.0,), (size, 1), (size,))]
    assert len({*prints, plain.fingerprint}) == 4
    assert prints[0] == prints[3]


@pytest.mark.parametrize("kind", KINDS)
def test_batches_may_be_cut_anyhow(events, kind):
    source = kind(ArraySource(events), KINDS[kind][1], seed=3)
    whole = everything(source)
    for size, shards in ((26, 1), (8, 1), (3, 2), (5, 3), (1, 1)):
        fresh = kind(ArraySource(events), KINDS[kind][1], seed=3)
        for name, values in everything(fresh, size, shards).items():
            np.testing.assert_array_equal(values, whole[name])
    trained = source.batch(5, size=6, seed=1)  # the second epoch
    parts = [source.batch(5, size=3, shard=(i, 2), seed=1) for i in (0, 1)]
    for name, values in trained.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), values)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_repeats_a_real_event(events, kind):
    source = kind(ArraySource(events), KINDS[kind][1])
    last = source.batch(3, size=8, train=False)
    np.testing.assert_array_equal(last["weight"], [1, 1, 0, 0, 0, 0, 0, 0])
    for row in range(2, 8):
        np.testing.assert_array_equal(last[KINDS[kind][0]][row], last[KINDS[kind][0]][1])


@pytest.mark.parametrize("share", [0.0, 0.0101, 0.5, 1.0])
def test_share_of_dead_sensors_is_exact_and_the_same_for_a_run(events, share):
    events = {name: events[name] for name in ("run", "time")} | {"npho": np.abs(events["npho"])}
    events["npho"] = np.where(events["npho"] < INVALID_ABOVE, events["npho"], 1).astype(np.float32)
    source = DeadShare(ArraySource(events), share, seed=1)
    found = everything(source)
    is_dead = found["npho"] == INVALID
    np.testing.assert_array_equal(is_dead.sum(1), round(share * N_SENSORS))
    assert (found["time"][is_dead] == INVALID).all()
    for rows, run in ((slice(0, 13), 7), (slice(13, 26), 8)):
        assert (is_dead[rows] == is_dead[rows][0]).all()
        np.testing.assert_array_equal(np.flatnonzero(is_dead[rows][0]), np.sort(source.dead(run)))
    assert (is_dead[0] != is_dead[13]).any() == (0 < share < 1)
    more = everything(DeadShare(ArraySource(events), min(1, 1.5 * share), seed=1))["npho"]
    assert (more[is_dead] == INVALID).all()
    del events["run"]
    alone = everything(DeadShare(ArraySource(events), share))["npho"] == INVALID
    assert (alone == alone[0]).all()


def test_gains_and_offsets_belong_to_the_sensor(events):
    plain = everything(ArraySource(events))
    for key, kind, size in (("npho", GainSpread, 0.1), ("time", TimeOffsets, 1e-9)):
        found = everything(kind(ArraySource(events), size))
        is_usable = (plain[key] < INVALID_ABOVE) & (plain[key] != 0)
        if kind is GainSpread:
            change = np.where(is_usable, found[key] / plain[key].astype(float) - 1, np.nan)
        else:
            change = np.where(is_usable, found[key].astype(float) - plain[key], np.nan)
        change = change[:, ~np.isnan(change).all(0)]
        assert (np.nanmax(change, 0) - np.nanmin(change, 0)).max() < 1e-4 * size
        by_sensor = np.nanmean(change, 0)
        assert by_sensor.std() == pytest.approx(0.987 * size, rel=0.05)  # cut at three sigma
        assert np.abs(by_sensor).max() < 3.01 * size
        twice = everything(kind(ArraySource(events), size / 2))[key].astype(float)
        middle = (plain[key].astype(float) + found[key]) / 2
        np.testing.assert_allclose(twice[is_usable], middle[is_usable], rtol=1e-4, atol=1e-15)
        other = everything(kind(ArraySource(events), size, seed=1))[key]
        assert (other != found[key]).any()


def test_noise_and_jitter_are_new_for_each_event(events):
    plain = everything(ArraySource(events))
    drawn = []
    for key, kind, size in (("npho", NoisePhotons, 50.0), ("time", TimeJitter, 1e-9)):
        found = everything(kind(ArraySource(events), size))
        is_usable = plain[key] < INVALID_ABOVE
        change = np.where(is_usable, found[key].astype(float) - plain[key], 0) / size
        assert change[is_usable].std() == pytest.approx(1, abs=0.02)
        assert change[is_usable].mean() == pytest.approx(0, abs=0.02)
        both = is_usable[0] & is_usable[1]
        assert abs(np.corrcoef(change[0][both], change[1][both])[0, 1]) < 0.08
        source = kind(ArraySource(events, shuffle=False), size)
        epochs = [source.batch(step, size=26, seed=1)[key][0] for step in (0, 1)]
        assert (epochs[0] != epochs[1]).any()
        drawn.append(np.where(is_usable & (plain["time"] < INVALID_ABOVE), change, 0).ravel())
    assert abs(np.corrcoef(*drawn)[0, 1]) < 0.02, "streams are independent"


def test_sizes_and_sources_that_are_refused(events):
    source = ArraySource(events)
    for kind, wrong in (
        *((kind, -0.1) for kind in KINDS),
        *((kind, np.nan) for kind in KINDS),
        (DeadShare, 1.01),
        (GainSpread, 0.31),
        (TimeJitter, 1.0),
        (NoisePhotons, np.inf),
    ):
        with pytest.raises(ConfigError, match=kind.__name__):
            kind(source, wrong)
    with pytest.raises(ConfigError, match="seed -1"):
        GainSpread(source, 0.1, seed=-1)
    without = ArraySource({"npho": events["npho"]})
    with pytest.raises(DataError, match="'time'"):
        TimeJitter(without, 1e-10)
    assert (DeadShare(without, 0.5).batch(0, size=2, train=False)["npho"] == INVALID).sum() > 4000
