"""Figures about hidden sensors: what they show is what a loop over the sensors gives."""

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.colors import to_hex

from xec_jax import metrics
from xec_jax.errors import ShapeError
from xec_jax.geometry import FACES
from xec_jax.plots.inpainting import CAPTIONS, LABELS, inpainting_pages
from xec_jax.plots.inpainting_scatter import best_other
from xec_jax.plots.reconstruction_quality import reconstruction_pages
from xec_jax.plots.sensor_errors import N_BINS, statistics, truth_bins
from xec_jax.plots.style import COLORS

STEMS = ["inpainting_methods", "inpainting_faces", "inpainting_residuals", "inpainting_scatter"]


def sensors(n=4000, seed=0):
    """Truth over four decades, three methods with errors of 5, 20 and 10 %, and faces."""
    rng = np.random.default_rng(seed)
    truth = 10 ** rng.uniform(0.5, 4.5, n)
    face = rng.integers(0, len(FACES), n)
    predictions = {
        name: truth * (1 + width * rng.normal(size=n))
        for name, width in (("network", 0.05), ("disk", 0.2), ("local_fit", 0.1))
    }
    predictions["local_fit"][face != 0] = np.nan
    truth[:5] = np.nan
    truth[5:9] = 1e10
    return truth, predictions, face


@pytest.fixture(scope="module")
def sample():
    return sensors()


@pytest.fixture(scope="module")
def pages(sample):
    return {stem: (figure, data) for stem, figure, data in inpainting_pages(*sample)}


def looped(truth, prediction, inside):
    """The comparison of one method on some sensors, number by number."""
    pairs = [
        (p, t)
        for p, t, i in zip(prediction, truth, inside, strict=True)
        if i and np.isfinite(p) and 100 <= t < 9e9
    ]
    n = len(pairs)
    found = {"count": n}
    if not n:
        return found
    terms = {
        "mae": [abs(p - t) for p, t in pairs],
        "bias": [p - t for p, t in pairs],
        "rms": [(p - t) ** 2 for p, t in pairs],
        "rel_mae": [abs(p - t) / t for p, t in pairs],
        "rel_rms": [((p - t) / t) ** 2 for p, t in pairs],
    }
    light = sum(t for _, t in pairs) / n
    for name, values in terms.items():
        mean = sum(values) / n
        error = (sum((v - mean) ** 2 for v in values) / n / n) ** 0.5
        if name.endswith("rms"):
            mean, error = mean**0.5, error / (2 * mean**0.5)
        found |= {name: mean, f"{name}_error": error}
    for key in ("", "_error"):
        found[f"rel_bias{key}"] = found[f"bias{key}"] / light
    return found


def assert_equal_to_loops(data, truth, predictions, groups):
    assert list(data["methods"]) == list(predictions)
    for m, prediction in enumerate(predictions.values()):
        for k, inside in enumerate(groups):
            expected = looped(truth, prediction, inside)
            for name, value in expected.items():
                np.testing.assert_allclose(data[name][m, k], value, rtol=1e-9, err_msg=name)
            if not expected["count"]:
                assert np.isnan(data["mae"][m, k])


def test_errors_by_truth_are_those_of_a_loop(sample, pages):
    truth, predictions, _ = sample
    _, data = pages["inpainting_methods"]
    edges = data["edges"]
    largest = truth[np.abs(truth) < 9e9].max()
    np.testing.assert_allclose(edges, np.geomspace(100, largest, 31))
    groups = [(low <= truth) & (truth < high) for low, high in pairwise(edges)]
    groups[-1] |= truth == largest
    np.testing.assert_array_equal(data["total"], [g.sum() for g in groups])
    assert_equal_to_loops(data, truth, predictions, groups)


def test_errors_by_face_are_those_of_a_loop(sample, pages):
    truth, predictions, face = sample
    _, data = pages["inpainting_faces"]
    assert_equal_to_loops(data, truth, predictions, [face == code for code in range(len(FACES))])


def test_numbers_are_those_of_the_tables(sample):
    """Figures and tables are computed by different code."""
    truth, predictions, face = sample
    known = np.abs(truth) < 9e9
    truth, face = truth[known], face[known]
    bright = truth >= 100
    for prediction in predictions.values():
        p = prediction[known]
        found = statistics(truth[bright], p[bright], face[bright], len(FACES))
        for name, row in metrics.by_face(p, truth, face).items():
            code = FACES.index(name)
            pairs = {
                "mae": "bright_mae_photons",
                "bias": "bright_bias_photons",
                "rms": "bright_rms_photons",
                "rel_mae": "rel_mae",
                "rel_rms": "rel_rms",
                "count": "n_bright",
            }
            for ours, theirs in pairs.items():
                np.testing.assert_allclose(found[ours][code], row[theirs], rtol=1e-9)
    edges, _ = truth_bins(truth)
    columns = metrics.by_truth_bins(predictions["disk"][known], truth)
    assert set(np.round(columns["low"], 6)) <= set(np.round(edges, 6))


def test_groups_outside_do_not_count():
    truth = np.full(4, 200.0)
    found = statistics(truth, truth + 10, np.array([0, -1, 2, 1]), 2)
    np.testing.assert_array_equal(found["count"], [1, 1])
    np.testing.assert_array_equal(found["mae"], [10, 10])


def test_the_last_bin_holds_the_brightest_sensor():
    edges, place = truth_bins(np.array([99.9, 100.0, 5e3, 1e4]))
    assert list(place) == [-1, 0, 25, N_BINS - 1]
    assert edges[0] == 100
    np.testing.assert_allclose(edges[-1], 1e4)
    edges, place = truth_bins(np.array([100.0]))
    assert list(place) == [0], "also if it is the only one"


def test_residuals_are_counted(sample, pages):
    truth, predictions, _ = sample
    _, data = pages["inpainting_residuals"]
    for name, prediction in predictions.items():
        ok = (truth >= 100) & (truth < 9e9) & np.isfinite(prediction)
        r = (prediction[ok] - truth[ok]) / truth[ok]
        counts = [((r >= low) & (r < high)).sum() for low, high in pairwise(data["edges"])]
        np.testing.assert_array_equal(data[f"counts_{name}"], counts)
        below = np.interp(68, data["percent"], data[f"below_{name}"])
        np.testing.assert_allclose(below, 100 * metrics.percentile68(r), rtol=1e-9)


def test_the_scatter_shows_the_network_and_the_best_complete_method(sample, pages):
    truth, predictions, _ = sample
    figure, data = pages["inpainting_scatter"]
    titles = [axes.get_title(loc="left") for axes in figure.axes[:2]]
    assert titles[0].startswith("network")
    assert titles[1].startswith(LABELS["disk"]), "local_fit is better, but of one face"
    for name in ("network", "disk"):
        ok = (truth >= 10) & (truth < 9e9)
        assert data[f"total_{name}"] == ok.sum()
        x, y = (np.digitize(v[ok], data["edges"]) - 1 for v in (truth, predictions[name]))
        for i, k in ((10, 10), (40, 40), (60, 61), (60, 59)):
            assert data[f"counts_{name}"][i, k] == ((x == i) & (y == k)).sum()
        place = np.digitize(truth[ok], data["coarse"]) - 1
        inside = predictions[name][ok][place == 12]
        np.testing.assert_allclose(
            data[f"quantiles_{name}"][:, 12], np.percentile(inside, [16, 50, 84])
        )


def test_best_other():
    truth = np.array([100.0, 200.0, 300.0])
    near, far = truth + 10, truth + 20
    few = np.array([100.0, np.nan, np.nan])
    assert best_other(truth, {"network": truth, "a": far, "b": near, "c": few}, "network") == "b"
    assert best_other(truth, {"network": truth, "c": few}, "network") == "c"
    assert best_other(truth, {"network": truth, "d": truth * np.nan}, "network") is None
    assert best_other(truth, {}, "network") is None


def test_methods_that_do_not_speak_of_all_say_so(sample, pages):
    truth, predictions, _ = sample
    ok = (truth >= 100) & (truth < 9e9)
    share = 100 * np.isfinite(predictions["local_fit"][ok]).mean()
    figure, _ = pages["inpainting_methods"]
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["network", LABELS["disk"], f"local fit, {share:.3g} % of sensors"]
    bars, _ = pages["inpainting_faces"]
    words = [[text.get_text() for text in axes.texts] for axes in bars.axes]
    assert all(panel[2] == "no prediction" for panel in words[1:])
    assert words[0][2] != "no prediction"


def test_pages_are_drawn(pages):
    """With their layout, which warns where something has no room."""
    for figure, _ in pages.values():
        figure.draw_without_rendering()


def test_a_method_has_one_color(pages):
    curves = pages["inpainting_methods"][0].axes[0].containers
    bars = pages["inpainting_faces"][0].axes[0].patches
    for k in range(3):
        assert to_hex(curves[k][0].get_color()) == to_hex(COLORS[k])
        assert to_hex(bars[k].get_facecolor()) == to_hex(COLORS[k])


def test_curves_end_where_sensors_are_few(sample, pages):
    figure, data = pages["inpainting_methods"]
    drawn = figure.axes[0].containers[2][0].get_ydata()
    np.testing.assert_array_equal(np.isfinite(drawn), data["count"][2] >= 10)
    assert (data["count"][2] < 10).any(), "or this test shows nothing"


def test_a_method_that_fails_does_not_flatten_the_others(sample):
    truth, predictions, face = sample
    wild = predictions | {"wild": 1e6 * truth}
    for stem, figure, _ in inpainting_pages(truth, wild, face):
        if stem == "inpainting_methods":
            assert figure.axes[0].get_ylim()[1] < 1e3
        if stem == "inpainting_faces":
            mae = metrics.by_face(predictions["disk"], truth, face)["us"]["bright_mae_photons"]
            assert figure.axes[1].get_xlim()[1] < 20 * mae
            assert "1e+08 %" in figure.axes[1].texts[-1].get_text(), "its number is there"


def draw(figure):
    figure.set_layout_engine("none")  # which takes most of the time
    figure.draw_without_rendering()


EMPTY = np.empty(0)
ONE = np.array([150.0])


@pytest.mark.parametrize(
    ("truth", "predictions"),
    [
        (EMPTY, {"network": EMPTY, "disk": EMPTY}),
        (EMPTY, {}),
        (ONE, {"network": ONE, "disk": ONE * np.nan}),
        (np.full(20, 50.0), {"network": np.full(20, 40.0), "other_way": np.zeros(20)}),
        (np.full(20, np.nan), {"disk": np.full(20, 1e3)}),
        (np.full(20, 150.0), {"network": np.full(20, 150.0), "disk": np.full(20, 150.0)}),
    ],
    ids=["empty", "no method", "one sensor", "faint", "no truth", "perfect"],
)
def test_little_to_draw_is_drawn(truth, predictions):
    """Warnings are errors here, so that axes without anything on them have to be whole."""
    found = list(inpainting_pages(truth, predictions, np.zeros(len(truth), int)))
    assert [stem for stem, _, _ in found] == STEMS == list(CAPTIONS)
    for _, figure, _ in found:
        draw(figure)


def test_arrays_that_do_not_fit_are_refused():
    truth = np.full(3, 200.0)
    with pytest.raises(ShapeError, match="disk"):
        list(inpainting_pages(truth, {"disk": truth[:2]}, np.zeros(3, int)))
    with pytest.raises(ShapeError, match="face"):
        list(inpainting_pages(truth, {"disk": truth}, np.zeros(2, int)))
    with pytest.raises(ShapeError, match="prediction of npho"):
        list(reconstruction_pages({"npho": (truth, truth[:1], np.zeros(3, int))}))


def test_reconstruction_by_face_and_channel():
    rng = np.random.default_rng(1)
    n = 3000
    face = rng.integers(0, 5, n)  # none at the bottom
    truth = rng.gamma(2, 0.1, n)
    channels = {}
    for name, width in (("npho", 0.01), ("time", 0.05)):
        prediction = truth + width * (1 + face) * rng.normal(size=n)
        prediction[7] = np.nan
        channels[name] = (truth, prediction, face)
    found = {stem: (figure, data) for stem, figure, data in reconstruction_pages(channels)}
    assert list(found) == ["reconstruction_npho", "reconstruction_time", "reconstruction_widths"]
    widths = found["reconstruction_widths"][1]
    for name, (t, p, f) in channels.items():
        _, data = found[f"reconstruction_{name}"]
        for code in range(len(FACES)):
            here = (f == code) & np.isfinite(p)
            r = (p - t)[here]
            assert data["total"][code] == widths[f"{name}_count"][code] == here.sum()
            x, y = (np.digitize(v[here], data["edges"]) - 1 for v in (t, p))
            inside = (x >= 0) & (x < 80) & (y >= 0) & (y < 80)
            assert data["counts"][code].sum() == inside.sum()
            assert data["counts"][code, 20, 20] == ((x == 20) & (y == 20)).sum()
            if code == 5:
                assert np.isnan(widths[f"{name}_width"][code])
                continue
            expected = {
                "width": np.percentile(np.abs(r), 68),
                "rms": np.mean(r**2) ** 0.5,
                "bias": r.mean(),
            }
            for key, value in expected.items():
                np.testing.assert_allclose(widths[f"{name}_{key}"][code], value)
            place = np.digitize(t[here], widths[f"{name}_profile_edges"]) - 1
            for k, value in enumerate(widths[f"{name}_profile"][code]):
                few = r[place == k]
                expected = np.percentile(np.abs(few), 68) if len(few) >= 10 else np.nan
                np.testing.assert_allclose(value, expected)


@pytest.mark.parametrize("channels", [{}, {"npho": (EMPTY, EMPTY, EMPTY.astype(int))}])
def test_a_reconstruction_of_nothing_is_drawn(channels):
    for _, figure, _ in reconstruction_pages(channels):
        draw(figure)
