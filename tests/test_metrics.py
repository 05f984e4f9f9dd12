"""Exact metrics against plain Python and against the sums of the training."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xec_jax import metric_sums, metrics, targets
from xec_jax.geometry import FACES
from xec_jax.metric_channels import ChannelSums
from xec_jax.metric_definitions import ALIASES, QUANTITIES
from xec_jax.train.step import Tally

SPREAD = {"angle": (1.0, 2.0), "energy": (1e-3,), "timing": (0.1,), "uvwFI": (0.5, 0.6, 1.2)}
CENTER = {"angle": (90.0, 170.0), "energy": (0.05,), "timing": (3.0,), "uvwFI": (0.0, 9.0, 4.0)}
WIDTH = {"angle": (15.0, 40.0), "energy": (0.01,), "timing": (2.0,), "uvwFI": (15.0, 40.0, 3.0)}


def events(name, n, seed=0):
    """Prediction, truth and residual (n, k), the latter skewed; azimuths on both sides of 180."""
    rng = np.random.default_rng(seed)
    k = len(QUANTITIES[name][1])
    truth = rng.normal(CENTER[name], WIDTH[name], (n, k))
    residual = (rng.gamma(4.0, 0.5, (n, k)) - 1.9) * SPREAD[name]
    point = truth + residual
    if name == "angle":
        truth[:, 1], point[:, 1] = ((x + 180) % 360 - 180 for x in (truth[:, 1], point[:, 1]))
    return point, truth, residual


def percentile(values, share=0.68):
    """Linear between order statistics, by hand."""
    ordered = sorted(abs(v) for v in values)
    place = share * (len(ordered) - 1)
    i = min(int(place), len(ordered) - 2)
    return ordered[i] + (place - i) * (ordered[i + 1] - ordered[i])


def by_hand(part, residual, truth):
    n = len(residual)
    mean = math.fsum(residual) / n
    m2, m3 = (math.fsum((r - mean) ** k for r in residual) / n for k in (2, 3))
    middle = math.fsum(truth) / n
    square = math.fsum(r * r for r in residual)
    return {
        f"{part}_bias": mean,
        f"{part}_rms": math.sqrt(m2),
        f"{part}_skew": m3 / m2**1.5,
        f"{part}_skill": 1 - square / math.fsum((t - middle) ** 2 for t in truth),
        f"{part}_res_68pct": percentile(residual),
    }


# --- single numbers -----------------------------------------------------------------------------


def test_percentiles_interpolate_between_order_statistics():
    assert metrics.percentile68([-4.0, 1.0, 3.0, -2.0]) == pytest.approx(3.04)
    assert metrics.percentile68([[7.0]]) == 7.0
    assert math.isnan(metrics.percentile68([]))
    values = np.random.default_rng(1).normal(size=1001)
    assert metrics.percentile68(values) == pytest.approx(percentile(values), rel=1e-14)


@pytest.mark.parametrize("kind", ["normal", "exponential", "standard_cauchy"])
def test_the_error_of_a_percentile_is_its_spread(kind):
    """Over many samples of one distribution, whatever it is."""
    samples = getattr(np.random.default_rng(2), kind)(size=(800, 400))
    spread = np.std([metrics.percentile68(sample) for sample in samples])
    claimed = np.mean([metrics.percentile68_error(sample) for sample in samples])
    assert claimed == pytest.approx(spread, rel=0.1)
    assert math.isnan(metrics.percentile68_error([1.0]))
    assert metrics.percentile68_error([1.0, 1.0, -1.0]) == 0


def test_moments_of_few_and_equal_numbers():
    assert metrics.moments(np.full(7, 0.1)) == {"bias": pytest.approx(0.1), "rms": 0, "skew": 0}
    assert metrics.moments([3.0]) == {"bias": 3.0, "rms": 0.0, "skew": 0.0}
    two_values = metrics.moments([1.0, 0.0, 0.0, 0.0])  # Bernoulli: (1 - 2p) / sqrt(p (1 - p))
    assert two_values["skew"] == pytest.approx(0.5 / math.sqrt(3 / 16))
    assert all(math.isnan(value) for value in metrics.moments([]).values())
    assert math.isnan(metrics.skill([1.0, 2.0], [0.1, 0.1]))
    assert math.isnan(metrics.skill([], []))


@pytest.mark.parametrize("psi", [1e-9, 1e-6, 1e-3, 0.02, 1.0, 90.0, 179.0, 180 - 1e-6])
@pytest.mark.parametrize("theta", [0.0, 1e-3, 37.0, 90.0, 155.0])
def test_opening_angles_of_any_size(theta, psi):
    """Along a meridian the angle is the difference of the polar angles, also over the pole."""
    there = theta + psi
    point = [there, 40.0] if there <= 180 else [360 - there, -140.0]
    found = metrics.opening_angle_deg([point], [[theta, 40.0]])[0]
    # The degrees themselves have no more digits.
    assert found == pytest.approx(psi, rel=1e-9, abs=4 * np.spacing(180.0))
    if 1e-6 <= psi < 180:
        assert found == pytest.approx(psi, rel=1e-3)


def test_opening_angles_of_vectors():
    tiny = np.deg2rad(1e-6)
    a = [[1, 0, 0], [0, 0, 2], [0, 3, 0], [0, 0, 0], [1, 0, 0]]
    b = [[5, 5 * tiny, 0], [0, 0, -0.1], [1e-3, 0, 0], [1, 0, 0], [0, 0, 0]]
    np.testing.assert_allclose(metrics.opening_angle_deg(a, b), [1e-6, 180, 90, 90, 90], rtol=1e-6)
    found = metrics.direction_metrics(np.array(a, float)[:1], np.array(b, float)[:1])
    assert found["angleVec_resolution_68pct"] == pytest.approx(1e-6, rel=1e-6)
    assert found["angleVec_cos"] == pytest.approx(tiny**2 / 2, rel=1e-6)


# --- quantities ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPREAD)
def test_equality_with_plain_python(name):
    point, truth, residual = events(name, 301)
    found = metrics.quantity_metrics(name, point, truth)
    whole = truth % [360, 360] if name == "angle" else truth  # one piece around 170 degrees
    expected = {}
    for i, part in enumerate(QUANTITIES[name][1]):
        expected |= by_hand(part, residual[:, i].tolist(), whole[:, i].tolist())
    if name == "energy":
        expected["energy_rel_res_68pct"] = percentile((residual / truth)[:, 0])
    if name == "uvwFI":
        distance = [math.dist(p, t) for p, t in zip(point, truth, strict=True)]
        expected["uvw_dist_mean"] = math.fsum(distance) / 301
        expected["uvw_dist_68pct"] = percentile(distance)
    if name == "angle":
        psi = []
        for (t1, p1), (t2, p2) in np.deg2rad(np.stack([point, truth], 1)).tolist():
            dot = math.sin(t1) * math.sin(t2) * math.cos(p1 - p2) + math.cos(t1) * math.cos(t2)
            psi.append(math.degrees(math.acos(dot)))
        expected["angle_resolution_68pct"] = percentile(psi)
        expected["angle_cos"] = math.fsum(1 - math.cos(math.radians(x)) for x in psi) / 301
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-9), key
    small = {"energy": ("mev", 1e3), "timing": ("ps", 1e3)}.get(name)
    for kind in ("bias", "rms", "res_68pct") if small else ():
        want = small[1] * expected[f"{name}_{kind}"]
        assert found[f"{name}_{kind}_{small[0]}"] == pytest.approx(want, rel=1e-9)
    assert (found[f"n_{name}"], found[f"n_{name}_left_out"]) == (301, 0)
    for old, ours in ALIASES.items():
        assert found.get(old) == found.get(ours), old
    direct = {
        "angle": metrics.angle_metrics,
        "energy": metrics.energy_metrics,
        "timing": metrics.timing_metrics,
        "uvwFI": metrics.position_metrics,
    }[name](*(x if x.shape[1] > 1 else x[:, 0] for x in (point, truth)))
    assert direct == found


def test_azimuths_have_no_whole_turns():
    truth = np.array([[90, 179.9], [90, -179.9], [90, 180], [90, -180], [90, 0.0], [90, 0.0]])
    point = np.array([[90, -179.9], [90, 179.9], [90, -180], [90, 180], [90, 180], [90, -180]])
    residual = metrics.residuals("angle", point, truth)
    np.testing.assert_allclose(residual[:, 1], [0.2, -0.2, 0, 0, 180, 180], atol=1e-12)
    found = metrics.angle_metrics(point[:4], truth[:4])
    assert found["phi_bias"] == pytest.approx(0, abs=1e-12)
    assert found["phi_rms"] == pytest.approx(0.2 / math.sqrt(2))
    assert found["angle_resolution_68pct"] == pytest.approx(0.2)
    shifted = metrics.angle_metrics(point[:4] + np.array([0, 720]), truth[:4] - [0, 360])
    assert shifted["phi_skill"] == pytest.approx(found["phi_skill"])
    assert found["phi_skill"] == pytest.approx(1 - 0.02 / 0.005)  # variance about 180 degrees


@pytest.mark.parametrize("name", SPREAD)
def test_rows_that_do_not_count_change_nothing(name):
    point, truth, _ = events(name, 50)
    clean = metrics.quantity_metrics(name, point, truth, sigma=np.ones_like(point))
    bad_point, bad_truth = point[:4].copy(), truth[:4].copy()
    bad_truth[0, -1], bad_truth[1, 0] = np.nan, 1e10
    bad_point[2, 0], bad_point[3, -1] = np.nan, np.inf
    order = np.random.default_rng(3).permutation(54)
    found = metrics.quantity_metrics(
        name,
        np.concatenate([point, bad_point])[order],
        np.concatenate([truth, bad_truth])[order],
        sigma=np.ones((54, point.shape[1])),
    )
    assert found.pop(f"n_{name}_left_out") == 4
    assert clean.pop(f"n_{name}_left_out") == 0
    assert found == pytest.approx(clean, rel=1e-12)
    nothing = metrics.quantity_metrics(name, bad_point, bad_truth)
    assert nothing.pop(f"n_{name}") == 0
    assert nothing.pop(f"n_{name}_left_out") == 4
    assert all(math.isnan(value) for value in nothing.values())
    assert set(metrics.quantity_metrics(name, [], [])) == {
        *nothing,
        f"n_{name}",
        f"n_{name}_left_out",
    }


def test_claimed_errors_and_intervals():
    rng = np.random.default_rng(4)
    truth = rng.uniform(0.02, 0.06, 1000)
    point = truth + rng.normal(0, 1e-3, 1000)
    found = metrics.energy_metrics(point, truth, np.full(1000, 2e-3))
    pull = np.sqrt(np.mean(((point - truth) / 2e-3) ** 2))
    assert found["energy_pull_rms"] == found["energy_calibration_ratio"] == pytest.approx(pull)
    assert found["energy_sigma_mean"] == found["energy_pred_std_mean"] == pytest.approx(2e-3)
    no_time = np.where(np.arange(1000) < 10, np.nan, 0.0)
    assert metrics.timing_metrics(point, truth, no_time)["n_timing_left_out"] == 10
    # Predictions within half a turn, their intervals beyond it.
    angles, around = np.array([[90.0, 179.5]] * 4), np.array([[1.0, 1.0]] * 4)
    true = np.array([[90.0, -179.8], [90.0, -179.2], [92.0, 179.0], [90.0, 178.0]])
    found = metrics.angle_metrics(angles, true, low=angles - around, high=angles + around)
    assert found["angle_coverage"] == pytest.approx(5 / 8)


def test_times_are_judged_by_what_could_be_learned():
    rng = np.random.default_rng(5)
    zero, late = rng.normal(0, 6, 500), rng.normal(3, 1, 500)
    error = rng.normal(0, 0.1, 500)
    found = metrics.timing_metrics(zero + late + error, zero + late, zero)
    assert found["timing_skill"] == pytest.approx(1 - np.mean(error**2) / late.var())
    without = metrics.timing_metrics(zero + late + error, zero + late)
    assert without.pop("timing_skill") > found.pop("timing_skill")
    assert without == pytest.approx(found)


def test_all_quantities_of_a_prediction():
    arrays, residuals = {}, []
    for name in SPREAD:
        point, truth, residual = events(name, 40)
        arrays |= {f"pred_{name}": point.squeeze(), f"true_{name}": truth.squeeze()}
        residuals.append(residual)
    arrays["pred_angle_sigma"] = np.full((40, 2), 1.5)
    arrays |= {
        "pred_n_gamma": np.arange(40) % 5,
        "true_n_gamma": np.float32([*[1.0] * 30, *[-1] * 10]),
    }
    arrays["pred_angleVec"] = np.ones((40, 3))  # without a truth
    found = metrics.regression_metrics(arrays, zero_ns=np.zeros(40))
    assert found["l1"] == pytest.approx(sum(np.abs(r).mean() for r in residuals))
    assert found["mse"] == pytest.approx(sum(np.square(r).mean() for r in residuals))
    smooth = [np.where(np.abs(r) < 1, r**2 / 2, np.abs(r) - 0.5).mean() for r in residuals]
    assert found["smooth_l1"] == pytest.approx(sum(smooth))
    assert found["cos"] == found["angle_cos"]
    assert found["angle_sigma_mean"] == 1.5
    assert (found["n_gamma_accuracy"], found["n_n_gamma_left_out"]) == (0.2, 10)
    assert not [name for name in found if name.startswith(("vec", "angleVec"))]
    for name in SPREAD:
        own = metrics.quantity_metrics(name, arrays[f"pred_{name}"], arrays[f"true_{name}"])
        assert own.items() <= found.items()
    assert metrics.regression_metrics({"pred_energy": np.ones(3)}) == {}


@pytest.mark.parametrize(
    ("name", "loss_fn"),
    [("angle", "gaussian_nll"), ("energy", "l1"), ("uvwFI", "quantile")],
)
def test_the_sums_of_the_training_agree(name, loss_fn):
    """With padding that holds nonsense; percentiles from counts to 1 %, all else to float32.

    Under jit, which sorts the names of the sums as pmap does in a validation.
    """
    n, k = 20_000, len(QUANTITIES[name][1])
    point, truth, _ = events(name, n)
    t = targets.Target(name, "", loss_fn, mean=CENTER[name], std=WIDTH[name])
    claims = {}
    output = [point]
    if loss_fn == "gaussian_nll":
        claims["sigma"] = np.exp(np.random.default_rng(6).normal(0, 0.3, (n, k))) * SPREAD[name]
        output.append(2 * np.log(claims["sigma"]))
    if loss_fn == "quantile":
        claims |= {"low": point - SPREAD[name], "high": point + SPREAD[name]}
        output = [claims["low"], point, claims["high"]]
    rows = [np.concatenate(output, -1), truth]
    padded = [np.concatenate([x, np.full_like(x[:96], 1e3)]) for x in rows]
    weight = (np.arange(n + 96) < n).astype(np.float32)
    sums = jax.jit(partial(metric_sums.error_sums, t))(*map(jnp.float32, padded), weight)
    found = metric_sums.derive(Tally.means([Tally.pack(sums)]))
    exact = metrics.quantity_metrics(name, point, truth, **claims)
    size = np.abs(metrics.residuals(name, point, truth))
    exact |= {"l1": size.mean(), "mse": (size**2).mean(), "cos": exact.get("angle_cos")}
    exact["smooth_l1"] = np.where(size < 1, size**2 / 2, size - 0.5).mean()
    assert len(found) >= 9
    for key, value in found.items():
        rel = 0.01 if "68pct" in key else 2e-3
        assert value == pytest.approx(exact[key], rel=rel, abs=1e-6), key


# --- sensors ------------------------------------------------------------------------------------


def sensors(n=4000, seed=7):
    rng = np.random.default_rng(seed)
    truth = np.exp(rng.uniform(0, np.log(3e4), n))
    predicted = truth * rng.normal(1.02, 0.1, n) + rng.normal(0, 5, n)
    return predicted, truth, rng.integers(0, len(FACES), n)


def sensors_by_hand(pairs):
    bright = [(p, t) for p, t in pairs if t >= 100]
    n = len(bright)
    return {
        "mae_photons": math.fsum(abs(p - t) for p, t in pairs) / len(pairs),
        "bright_mae_photons": math.fsum(abs(p - t) for p, t in bright) / n,
        "bright_rms_photons": math.sqrt(math.fsum((p - t) ** 2 for p, t in bright) / n),
        "bright_bias_photons": math.fsum(p - t for p, t in bright) / n,
        "rel_mae": math.fsum(abs(p - t) / t for p, t in bright) / n,
        "rel_rms": math.sqrt(math.fsum(((p - t) / t) ** 2 for p, t in bright) / n),
        "rel_res_68pct": percentile([(p - t) / t for p, t in bright]),
        "n_bright": n,
        "n_masked_total": len(pairs),
        "failed": 0.0,
    }


def test_sensors_against_plain_python():
    predicted, truth, face = sensors()
    pairs = list(zip(predicted.tolist(), truth.tolist(), strict=True))
    found = metrics.sensor_metrics(predicted.reshape(40, 100), truth.reshape(40, 100))
    error = found.pop("rel_res_68pct_error")
    assert 0 < error < 0.1 * found["rel_res_68pct"]
    assert found == pytest.approx(sensors_by_hand(pairs), rel=1e-9)
    faces = metrics.by_face(predicted, truth, face)
    assert tuple(faces) == FACES
    for code, name in enumerate(FACES):
        own = [pair for pair, f in zip(pairs, face, strict=True) if f == code]
        expected = sensors_by_hand(own)
        assert {k: faces[name][k] for k in expected} == pytest.approx(expected, rel=1e-9)
    events_by_sensor = metrics.by_face(
        predicted.reshape(40, 100), truth.reshape(40, 100), face[:100]
    )
    assert sum(f["n_masked_total"] for f in events_by_sensor.values()) == 4000
    assert list(metrics.by_face(predicted[:3], truth[:3], [2, 2, 4])) == ["ds", "top"]


def test_methods_that_fail_are_judged_where_they_answer():
    predicted, truth, _ = sensors(500)
    predicted, truth = np.append(predicted, [5.0, 5.0]), np.append(truth, [np.nan, 1e10])
    clean = metrics.sensor_metrics(predicted[100:500], truth[100:500])
    predicted[:99], predicted[99] = np.nan, -np.inf
    found = metrics.sensor_metrics(predicted, truth)
    assert found.pop("failed") == pytest.approx(0.2)
    assert found.pop("n_masked_total") == 500
    assert found == {key: clean[key] for key in found}
    none = metrics.sensor_metrics(np.full(7, np.nan), np.full(7, 500.0))
    assert (none["failed"], none["n_bright"], none["n_masked_total"]) == (1, 0, 7)
    assert math.isnan(none["rel_mae"])
    assert math.isnan(metrics.sensor_metrics([], [])["failed"])


def test_bins_of_brightness():
    predicted, truth, _ = sensors(2000)
    truth[:9], truth[9] = 5e6, 1e10  # too few for a bin of their own; unknown
    predicted[20:400] = np.nan
    table = metrics.by_truth_bins(predicted, truth)
    edges = [100 * (5e6 / 100) ** (k / 30) for k in range(31)]
    rows = []
    for low, high in itertools.pairwise(edges):
        inside = [k for k in range(2000) if low <= truth[k] < high and truth[k] < 9e9]
        if len(inside) >= 10:
            rows.append((low, high, inside))
    np.testing.assert_allclose(table["low"], [row[0] for row in rows])
    np.testing.assert_allclose(table["high"], [row[1] for row in rows])
    assert (table["n_masked_total"] == [len(row[2]) for row in rows]).all()
    assert table["n_masked_total"].sum() == ((truth >= 100) & (truth < 4e6)).sum()
    for i, (_, _, inside) in enumerate(rows):
        answered = [(predicted[k], truth[k]) for k in inside if np.isfinite(predicted[k])]
        assert table["failed"][i] == pytest.approx(1 - len(answered) / len(inside))
        for key in ("rel_mae", "bright_rms_photons", "rel_res_68pct"):
            assert table[key][i] == pytest.approx(sensors_by_hand(answered)[key], rel=1e-9)
    # Another method, the same rows.
    other = metrics.by_truth_bins(np.full(2000, np.nan), truth)
    np.testing.assert_array_equal(other["low"], table["low"])
    assert all(v.size == 0 for v in metrics.by_truth_bins([5.0, 7.0], [100.0, 3.0]).values())
    empty = metrics.by_truth_bins([], [])
    assert empty.keys() == table.keys()


def test_errors_of_channels():
    rng = np.random.default_rng(8)
    truth, face = rng.normal(100, 1e-3, 900), rng.integers(0, 5, 900)  # squares: float64 only
    predicted = truth + rng.normal(2e-4, 1e-4, 900)
    sums = ChannelSums("time", unit_ns=65.0)
    sums.add(
        np.append(predicted[:500], np.nan), np.append(truth[:500], 1.0), np.append(face[:500], 0)
    )
    sums.add(predicted[500:], truth[500:], face[500:])
    found = sums.metrics()
    for prefix, on in [("", face >= 0), *((f"{n}_", face == c) for c, n in enumerate(FACES[:5]))]:
        d, t = (predicted - truth)[on], truth[on]
        assert found[f"mae_{prefix}time"] == pytest.approx(np.abs(d).mean())
        assert found[f"rmse_{prefix}time"] == pytest.approx(np.sqrt((d**2).mean()))
        assert found[f"r2_{prefix}time"] == pytest.approx(1 - (d**2).mean() / t.var(), abs=1e-4)
    assert found["mae_time_ns"] == pytest.approx(65 * found["mae_time"])
    assert math.isnan(found["mae_bot_time"])
    assert math.isnan(found["r2_bot_time"])
