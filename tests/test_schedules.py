"""Schedules against closed forms, against torch, and cut anywhere and continued."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st

from xec_jax.errors import ConfigError
from xec_jax.train.schedules import SCHEDULERS, make_schedule

LR, LOW, PER_EPOCH, EPOCHS, WARMUP = 2.5e-4, 1e-6, 7, 30, 3
STEPS = EPOCHS * PER_EPOCH
per_epoch_and_per_step = pytest.mark.parametrize("per_step", [False, True])


def make(name, **keys):
    optim = toy.config().optim
    optim.update({"lr": LR, "lr_min": LOW, "lr_scheduler": name, "warmup_epochs": WARMUP} | keys)
    return make_schedule(optim, steps_per_epoch=PER_EPOCH, epochs=EPOCHS)


def rates(schedule):
    return np.asarray(jax.jit(schedule.rate)(jnp.arange(STEPS)))


def epochs(per_step):
    steps = range(STEPS)
    return [step / PER_EPOCH if per_step else step // PER_EPOCH for step in steps]


def swing(share):
    return LOW + 0.5 * (LR - LOW) * (1 + math.cos(math.pi * share))


def warm(e, after):
    return LR * (0.01 + 0.99 * e / WARMUP) if e < WARMUP else after(e - WARMUP)


@per_epoch_and_per_step
def test_cosine(per_step):
    expected = [warm(e, lambda t: swing(t / (EPOCHS - WARMUP))) for e in epochs(per_step)]
    found = rates(make("cosine", lr_per_step=per_step))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_constant_has_no_warmup():
    for name in (None, "none"):
        assert set(rates(make(name)).tolist()) == {float(np.float32(LR))}


@per_epoch_and_per_step
@pytest.mark.parametrize(("period", "mult"), [(4, 1), (2, 2), (3, 3), (1, 1), (50, 2)])
def test_restarts(per_step, period, mult):
    def after(t):
        begin, length = 0, period
        while t >= begin + length - 1e-9:
            begin, length = begin + length, length * mult
        return swing((t - begin) / length)

    options = {"lr_restart_period": period, "lr_restart_mult": mult, "lr_per_step": per_step}
    expected = [warm(e, after) for e in epochs(per_step)]
    found = rates(make("cosine_restarts", **options))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@per_epoch_and_per_step
@pytest.mark.parametrize("pct_start", [0.1, 0.3, 0.77])
def test_one_cycle(per_step, pct_start):
    peak, end = 1e-3, (STEPS if per_step else EPOCHS) - 1
    top = pct_start * (end + 1) - 1
    expected = []
    for step in range(STEPS):
        time = step if per_step else step // PER_EPOCH
        rise = peak / 25 + (peak - peak / 25) * (1 - math.cos(math.pi * time / top)) / 2
        down = (1 + math.cos(math.pi * (time - top) / (end - top))) / 2
        fall = peak / 25e4 + (peak - peak / 25e4) * down
        expected.append(rise if time < top else fall)
    found = rates(make("onecycle", max_lr=peak, pct_start=pct_start, lr_per_step=per_step))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-12)
    assert found[0] == pytest.approx(peak / 25)
    assert found[-1] == pytest.approx(peak / 25e4)
    assert rates(make("onecycle")).max() == pytest.approx(LR, rel=0.02), "without max_lr"


def test_one_cycle_of_a_single_epoch():
    optim = toy.config().optim
    optim.update({"lr": LR, "lr_scheduler": "onecycle", "warmup_epochs": 0})
    for epochs in (1, 2, 3):
        schedule = make_schedule(optim, steps_per_epoch=2, epochs=epochs)
        assert float(schedule.rate(0)) == pytest.approx(LR), "no time to rise"
        assert np.isfinite(schedule.rate(jnp.arange(2 * epochs))).all()


def test_restarts_and_one_cycle_agree_with_torch():
    torch = pytest.importorskip("torch")

    def follow(make_scheduler, count):
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=LR, momentum=0.9)
        scheduler, found = make_scheduler(optimizer), []
        for _ in range(count):
            found.append(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
        return found

    schedulers = torch.optim.lr_scheduler
    for period, mult in ((4, 1), (3, 2)):
        expected = follow(
            lambda o, p=period, m=mult: schedulers.CosineAnnealingWarmRestarts(o, p, m, LOW), EPOCHS
        )
        options = {"lr_restart_period": period, "lr_restart_mult": mult, "warmup_epochs": 0}
        found = rates(make("cosine_restarts", **options))[::PER_EPOCH]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    for per_step, total in ((False, EPOCHS), (True, STEPS)):
        expected = follow(
            lambda o, t=total: schedulers.OneCycleLR(o, 1e-3, total_steps=t, pct_start=0.3), total
        )
        found = rates(make("onecycle", max_lr=1e-3, lr_per_step=per_step))
        found = found if per_step else found[::PER_EPOCH]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-12)


def plateau_run(schedule, losses, start, stop, state):
    """Rates of steps `start` to `stop` with a validation after each epoch, and the last state."""
    rate, after = jax.jit(schedule.rate), jax.jit(schedule.after_validation)
    found = []
    for step in range(start, stop):
        found.append(float(rate(step, state)))
        if (step + 1) % PER_EPOCH == 0:
            state = after(state, losses[step // PER_EPOCH])
    return found, state


losses_of_runs = st.lists(
    st.one_of(st.integers(1, 12).map(lambda n: n / 8), st.just(math.nan)), min_size=2, max_size=12
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(losses_of_runs, st.integers(0, 3), st.sampled_from([0.1, 0.5]))
def test_plateau_agrees_with_torch(losses, patience, factor):
    torch = pytest.importorskip("torch")
    options = {"lr_patience": patience, "lr_factor": factor, "lr_min": 1e-5, "warmup_epochs": 0}
    schedule = make("plateau", **options)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=LR)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=factor, patience=patience, min_lr=1e-5
    )
    state = schedule.init()
    for loss in losses:
        scheduler.step(loss)
        state = schedule.after_validation(state, loss)
        expected = optimizer.param_groups[0]["lr"]
        assert float(schedule.rate(0, state)) == pytest.approx(expected, rel=1e-5)


def test_plateau_by_hand():
    schedule = make("plateau", lr_patience=1, lr_min=LR / 3)
    after = jax.jit(schedule.after_validation)
    late = (WARMUP + 1) * PER_EPOCH
    state = schedule.init()
    found = []
    for loss in (1.0, 1.0, math.nan, 0.9, 0.89999, 0.95, 0.8, -0.5, -0.50001, -0.5, -0.6):
        state = after(state, loss)
        found.append(float(schedule.rate(late, state)) / LR)
    half, floor = 0.5, 1 / 3
    expected = [1, 1, half, half, half, floor, floor, floor, floor, floor, floor]
    assert found == pytest.approx(expected)
    assert float(state.scale) == pytest.approx(1 / 8), "a tie with a negative loss is no progress"
    assert float(state.best) == pytest.approx(-0.6)
    fresh = schedule.init()
    assert float(schedule.rate(0, fresh)) == pytest.approx(0.01 * LR), (
        "the floor does not lift the warm-up"
    )
    for leaf, dtype in zip(jax.tree.leaves(fresh), "ffi", strict=True):
        assert leaf.dtype.char == dtype
        assert not leaf.weak_type, "another type after a validation would compile the step again"
    with pytest.raises(ValueError, match="needs their state"):
        schedule.rate(late)


PLATEAU = make("plateau", lr_patience=1, lr_per_step=True)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(losses_of_runs, st.data())
def test_a_plateau_that_is_cut_anywhere_goes_on_as_if_not(losses, data):
    stop = len(losses) * PER_EPOCH
    whole, end = plateau_run(PLATEAU, losses, 0, stop, PLATEAU.init())
    cut = data.draw(st.integers(0, stop))
    before, state = plateau_run(PLATEAU, losses, 0, cut, PLATEAU.init())
    saved = jax.tree.map(np.asarray, state)  # what a checkpoint holds
    after, resumed = plateau_run(PLATEAU, losses, cut, stop, jax.device_put(saved))
    assert before + after == whole
    jax.tree.map(np.testing.assert_array_equal, resumed, end)


@per_epoch_and_per_step
@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "plateau"])
def test_other_rates_are_functions_of_the_step_alone(name, per_step):
    """No state, so a run that is cut anywhere goes on with the rates of one that is not."""
    schedule = make(name, lr_per_step=per_step)
    assert schedule.init() is None
    assert schedule.after_validation(None, 1.0) is None
    rate = jax.jit(schedule.rate)
    whole = [float(rate(step)) for step in range(STEPS)]
    again = jax.jit(make(name, lr_per_step=per_step).rate)
    cut = STEPS // 3 + 1
    assert [float(again(step)) for step in range(cut, STEPS)] == whole[cut:]
    assert min(whole) >= 0
    changes = [step for step in range(1, STEPS) if whole[step] != whole[step - 1]]
    assert per_step or all(step % PER_EPOCH == 0 for step in changes)


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("cosin", {}, "lr_scheduler is 'cosin'(.|\n)*none, cosine, onecycle"),
        ("one_cycle", {}, "one of none, cosine, onecycle"),
        ("cosine", {"warmup_epochs": EPOCHS}, "warmup_epochs < train.epochs"),
        ("cosine", {"warmup_epochs": -1.0}, "warmup_epochs < train.epochs"),
        (None, {"lr": -1.0}, "optim.lr is -1.0"),
        (None, {"lr": math.inf}, "optim.lr is inf"),
        ("cosine", {"lr_min": 1.0}, "optim.lr_min is 1.0"),
        (None, {"lr_min": -1.0}, "optim.lr_min is -1.0"),
        ("onecycle", {"max_lr": 0.0}, "optim.max_lr is 0.0"),
        ("onecycle", {"pct_start": 1.0}, "optim.pct_start is 1.0"),
        ("onecycle", {"pct_start": 0.0}, "optim.pct_start is 0.0"),
        ("plateau", {"lr_patience": -1}, "optim.lr_patience is -1"),
        ("plateau", {"lr_factor": 1.0}, "optim.lr_factor is 1.0"),
        ("plateau", {"lr_factor": math.nan}, "optim.lr_factor is nan"),
        ("cosine_restarts", {"lr_restart_period": 0}, "optim.lr_restart_period is 0"),
        ("cosine_restarts", {"lr_restart_mult": 0}, "optim.lr_restart_mult is 0"),
    ],
)
def test_bad_values_are_named(name, keys, message):
    with pytest.raises(ConfigError, match=message):
        make(name, **keys)


def test_a_rate_of_zero_is_allowed():
    assert rates(make(None, lr=0.0)).max() == 0
