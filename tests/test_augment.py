"""Augmentation: what it changes, how often, and what it must leave alone."""

import dataclasses

import jax
import numpy as np
import pytest

from xec_jax.errors import ConfigError
from xec_jax.geometry import INVALID
from xec_jax.nets.augment import DROPPED, Augmentation, event_keys

KEY = jax.random.PRNGKey(7)
ALL = Augmentation(
    channel_dropout=0.2,
    npho_noise=0.1,
    npho_noise_photons=5.0,
    time_jitter=1e-9,
    energy_scale=0.3,
    curriculum_steps=10,
    curriculum_photons=1e6,
)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    n, shape = 8, (8, 4760)
    npho = np.exp(rng.normal(4, 1, shape)).astype(np.float32)
    time = rng.normal(2e-8, 1e-8, shape).astype(np.float32)
    npho[:, 10:20], time[:, 10:40] = INVALID, INVALID
    npho[:, 50], time[:, 51] = np.nan, np.nan
    npho[:, 60] = np.inf
    return {
        "npho": npho,
        "time": time,
        "energyTruth": rng.uniform(0.02, 0.05, (n, 1)).astype(np.float32),
        "uvwTruth": rng.normal(size=(n, 3)).astype(np.float32),
        "weight": np.r_[np.ones(n - 1), 0].astype(np.float32),
        "_position": np.arange(n, dtype=np.int32),
        "_step": np.full(n, 5, np.int32),
    }


def changed(settings, batch, key=KEY):
    return {k: np.asarray(v) for k, v in Augmentation(**settings)(batch, key).items()}


def test_off_is_the_identity(batch):
    out = changed({}, batch)
    assert set(out) == set(batch)
    for name, values in batch.items():
        np.testing.assert_array_equal(out[name].view(np.int32), values.view(np.int32))


def test_lost_sensors(batch):
    out = changed({"channel_dropout": 0.1}, batch)
    lost = (out["npho"] == INVALID) & (batch["npho"] != INVALID)
    n, p = lost[:, 70:].size, 0.1
    assert abs(lost[:, 70:].sum() - n * p) < 5 * (n * p * (1 - p)) ** 0.5
    assert (out["time"][lost] == INVALID).all()
    np.testing.assert_array_equal(out["npho"][~lost], batch["npho"][~lost])
    kept = out["time"] != INVALID
    np.testing.assert_array_equal(out["time"][kept], batch["time"][kept])
    assert len(np.unique(lost.sum(-1))) > 1, "every event has its own"
    zeroed = changed({"channel_dropout": 0.1, "channel_dropout_mode": "zero"}, batch)
    np.testing.assert_array_equal(zeroed[DROPPED][:, 70:], lost[:, 70:])
    np.testing.assert_array_equal(zeroed["npho"], batch["npho"])


BANK = np.zeros((3, 4760), bool)
BANK[0, 100:200], BANK[1, 150:300], BANK[2, 5:25] = True, True, True


def test_a_share_of_the_events_loses_the_sensors_of_one_pattern():
    n, share = 6000, 0.3
    many = {"npho": np.ones((n, 30), np.float32), "time": np.zeros((n, 30), np.float32)}
    many |= {"weight": np.ones(n, np.float32), "_position": np.arange(n)}
    many["npho"][:, 29] = INVALID
    bank = np.eye(3, 30, k=4, dtype=bool) | np.eye(3, 30, k=5, dtype=bool)
    settings = {"dead_patterns": bank, "dead_pattern_share": share}
    out = changed(settings, many)
    lost = out["npho"][:, :29] == INVALID
    rows, counts = np.unique(lost, axis=0, return_counts=True)
    assert {row.tobytes() for row in rows} == {
        row.tobytes() for row in [np.zeros(29, bool), *bank[:, :29]]
    }
    for row, count in zip(rows, counts, strict=True):
        p = share / 3 if row.any() else 1 - share
        assert abs(count - n * p) < 5 * (n * p * (1 - p)) ** 0.5
    np.testing.assert_array_equal(out["time"][:, :29] == INVALID, lost)
    assert (out["npho"][:, 29] == INVALID).all()
    zeroed = changed(settings | {"channel_dropout_mode": "zero"}, many)
    np.testing.assert_array_equal(zeroed[DROPPED][:, :29], lost)
    np.testing.assert_array_equal(zeroed["npho"], many["npho"])
    settings["dead_pattern_share"] = 1.0
    assert (changed(settings, many)["npho"][:, :29] == INVALID).any(1).all()


def test_patterns_come_on_top_of_the_other_parts(batch):
    """The numbers that the others draw are the same with and without a bank."""
    with_bank = dataclasses.replace(ALL, dead_patterns=BANK, dead_pattern_share=0.5)
    plain, out = (part(batch, KEY) for part in (ALL, with_bank))
    differ = np.asarray((out["npho"] != plain["npho"]) & ~np.isnan(batch["npho"]))
    assert 0 < differ.any(1).sum() < len(differ)
    for row in np.flatnonzero(differ.any(1)):
        lost = np.asarray(out["npho"][row] == INVALID)
        assert any((differ[row] <= pattern).all() and lost[pattern].all() for pattern in BANK)
    for name in ("npho", "time", "energyTruth", "weight"):
        kept = np.asarray(out[name] != INVALID)
        np.testing.assert_array_equal(out[name][kept], plain[name][kept])


def test_noise_has_the_widths_asked_for(batch):
    good = np.s_[:, 70:]
    gain = changed({"npho_noise": 0.1}, batch)["npho"][good] / batch["npho"][good]
    added = changed({"npho_noise_photons": 5.0}, batch)["npho"][good] - batch["npho"][good]
    late = changed({"time_jitter": 2e-9}, batch)["time"][good] - batch["time"][good]
    for values, mean, width in ((gain, 1, 0.1), (added, 0, 5.0), (late, 0, 2e-9)):
        error = width / values.size**0.5
        assert abs(values.mean(dtype=float) - mean) < 5 * error
        assert abs(values.std(dtype=float) - width) < 5 * error


def test_energy_and_photons_scale_alike(batch):
    out = changed({"energy_scale": 0.3}, batch)
    factor = out["energyTruth"] / batch["energyTruth"]
    assert factor.shape == (8, 1)
    assert (abs(factor - 1) <= 0.3).all()
    assert len(np.unique(factor)) == 8
    np.testing.assert_allclose(out["npho"][:, 70:], batch["npho"][:, 70:] * factor, rtol=1e-6)
    for name in ("time", "uvwTruth", "weight"):
        np.testing.assert_array_equal(out[name], batch[name])
    many = {"npho": np.ones((4000, 1), np.float32), "weight": np.ones(4000, np.float32)}
    many["_position"] = np.arange(4000)
    drawn = changed({"energy_scale": 0.3}, many)["npho"]
    assert abs(drawn.mean(dtype=float) - 1) < 5 * 0.3 / (3 * 4000) ** 0.5
    assert drawn.min() < 0.71
    assert drawn.max() > 1.29


def test_markers_stay_markers(batch):
    out = ALL(batch, KEY)
    for name in ("npho", "time"):
        marked = ~(np.abs(batch[name]) < 9e9)
        bad = np.asarray(out[name])[marked]
        assert (~(np.abs(bad) < 9e9)).all()


def test_markers_of_the_energy_stay_markers():
    """Also where a factor would bring one back below what counts as a marker."""
    n = 64
    many = {"npho": np.ones((n, 1), np.float32), "weight": np.ones(n, np.float32)}
    many |= {"_position": np.arange(n), "energyTruth": np.full((n, 1), 0.05, np.float32)}
    marked = {**many, "energyTruth": many["energyTruth"].copy()}
    marked["energyTruth"][::2], marked["energyTruth"][1::4] = INVALID, np.nan
    plain, out = (changed({"energy_scale": 0.5}, events) for events in (many, marked))
    assert (plain["npho"][::2] < 0.9).any(), "a factor that would turn 1e10 into a value"
    np.testing.assert_array_equal(out["energyTruth"][::2], INVALID)
    assert np.isnan(out["energyTruth"][1::4]).all()
    np.testing.assert_array_equal(out["energyTruth"][3::4], plain["energyTruth"][3::4])


def test_results_do_not_depend_on_the_cut_of_the_batch(batch):
    apply = jax.jit(dataclasses.replace(ALL, dead_patterns=BANK, dead_pattern_share=0.5))
    whole = apply(batch, KEY)
    parts = [apply({k: v[i::2] for k, v in batch.items()}, KEY) for i in range(2)]
    for name, values in whole.items():
        for i, part in enumerate(parts):
            np.testing.assert_array_equal(part[name], values[i::2])


def test_a_further_part_does_not_change_the_numbers_of_the_others():
    """Runs that go on with a newer version see the same events."""
    position = np.arange(5)
    six, five = (event_keys(KEY, position, n) for n in (6, 5))
    np.testing.assert_array_equal(six[:, :5], five)


def test_equal_keys_give_equal_events_and_others_do_not(batch):
    one, again, other = ALL(batch, KEY), ALL(batch, KEY), ALL(batch, jax.random.PRNGKey(8))
    for name in ("npho", "time", "energyTruth"):
        np.testing.assert_array_equal(one[name], again[name])
        assert (np.asarray(one[name]) != np.asarray(other[name])).mean() > 0.7


def test_parts_draw_independent_numbers(batch):
    good = np.s_[:, 70:]
    gain = changed({"npho_noise": 0.1}, batch)["npho"][good] / batch["npho"][good]
    late = changed({"time_jitter": 1e-9}, batch)["time"][good] - batch["time"][good]
    assert abs(np.corrcoef(gain.ravel(), late.ravel())[0, 1]) < 5 / gain.size**0.5


def test_files_without_times(batch):
    out = ALL({k: v for k, v in batch.items() if k != "time"}, KEY)
    assert "time" not in out


def test_the_curriculum_starts_with_bright_events():
    npho = np.zeros((4, 4760), np.float32)
    npho[:, 0] = [1e4, 5e4, 9e4, 2e5]
    npho[:, 1], npho[:, 2] = INVALID, -1e6
    batch = {"npho": npho, "weight": np.float32([1, 1, 1, 1]), "_position": np.arange(4)}
    weights = []
    for step in (0, 5, 9, 10, 1000):
        batch["_step"] = np.full(4, step, np.int32)
        out = changed({"curriculum_steps": 10, "curriculum_photons": 1e5}, batch)
        np.testing.assert_array_equal(out["npho"], npho)
        weights.append(out["weight"].tolist())
    easy = [[0, 0, 0, 1], [0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert weights == easy
    batch["weight"], batch["_step"] = np.float32([1, 1, 1, 0]), np.zeros(4, np.int32)
    padded = changed({"curriculum_steps": 10, "curriculum_photons": 1e5}, batch)
    assert padded["weight"].tolist() == [0, 0, 0, 0], "padding stays padding"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channel_dropout": 1.0}, r"channel_dropout is 1.0"),
        ({"channel_dropout": -0.1}, "off|none"),
        ({"energy_scale": 1.0}, "energy_scale"),
        ({"npho_noise": -1.0}, "npho_noise"),
        ({"npho_noise_photons": float("nan")}, "npho_noise_photons"),
        ({"time_jitter": 1.0}, "seconds"),
        ({"channel_dropout_mode": "both"}, "invalid, zero"),
        ({"dead_patterns": BANK, "dead_pattern_share": 1.1}, "dead_pattern_share is 1.1"),
        ({"dead_patterns": BANK}, "dead_pattern_share is 0.0, .* names a bank"),
        ({"dead_pattern_share": 0.1}, "names no bank"),
        ({"dead_patterns": ~BANK & BANK, "dead_pattern_share": 0.1}, "without any dead sensor"),
        ({"curriculum_steps": 10}, "both positive"),
        ({"curriculum_photons": 10.0}, "both positive"),
    ],
)
def test_bad_values(settings, message):
    with pytest.raises(ConfigError, match=message):
        Augmentation(**settings)
