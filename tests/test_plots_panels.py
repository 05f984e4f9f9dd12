"""Panels, limits and scans: what stands beside a curve, and what is left out."""

import numpy as np
import pytest

from xec_jax.errors import ShapeError
from xec_jax.plots.limits import limits_figure, scan_figure
from xec_jax.plots.panels import heat_counts, known_places, residual_counts, with_error
from xec_jax.plots.scatter import profile_figure


def test_residuals_outside_are_counted():
    values = np.r_[np.linspace(-1, 1, 200), 100.0, -50.0]
    found = residual_counts(values)
    assert found.count.sum() == 200
    n, n_outside, bias, _, width = found.summary[:5]
    assert (n, n_outside) == (202, 2)
    assert bias == pytest.approx(values.mean())
    assert width == np.percentile(np.abs(values), 68)
    assert residual_counts(np.abs(values), is_positive=True).edges[0] == 0
    assert residual_counts(np.zeros(5)).count.sum() == 5


def test_heat_holds_all_events_or_says_how_many_not():
    truth = np.linspace(0, 10, 500)
    point = truth + np.where(np.arange(500) % 50 == 0, 100.0, 0.1)
    found = heat_counts(truth, point)
    assert found.n_outside == 10
    assert found.count.sum() == 490
    expected, _, _ = np.histogram2d(truth, point, (found.truth_edges, found.point_edges))
    np.testing.assert_array_equal(found.count, expected)


def test_places_are_in_the_units_of_the_figures():
    where = {"energy": np.array([0.05, 0.06]), "uvw": np.array([[1.0, 2, np.nan], [4, 5, np.nan]])}
    found = known_places(where, np.array([True, False]))
    assert {name: values.tolist() for name, values in found.items()} == {
        "energy": [50.0],
        "u": [1.0],
        "v": [2.0],
    }


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (1.23456, 0.0123, "1.235 ± 0.012"),
        (123.4, 25.0, "123 ± 25"),
        (1.2345, np.nan, "1.23"),
        (40.0, 0.0, "40"),
    ],
)
def test_numbers_have_two_digits_of_their_error(value, error, text):
    assert with_error(value, error) == text


def test_profile_figure_has_mean_and_spread():
    rng = np.random.default_rng(0)
    x = rng.uniform(-10, 10, 2000)
    y = x + rng.normal(0, 0.1, 2000)
    data = profile_figure(x, y, "time", "ns")[1]
    place = np.digitize(x, data["mean_edges"][1:-1])
    for k in range(20):
        assert data["mean_value"][k] == pytest.approx(y[place == k].mean())
        assert data["std_value"][k] == pytest.approx(y[place == k].std())


# ---------------------------------------------------------------- limits and scans


def test_limits_show_every_method_and_its_ratio_to_the_bound():
    table = {
        "energy [%]": {
            "network": (2.1, 0.05),
            "Cramer-Rao bound": (1.0, 0.0),
            "light sum": (3.0, 0.1),
        },
        "time [ps]": {"network": (85.0, np.nan), "fit": (np.nan, np.nan)},
        "w [cm]": {"network": (0.9, 0.02), "Cramer-Rao bound": (0.03, 0)},
    }
    figure = limits_figure(table)
    figure.draw_without_rendering()
    energy, time, depth = figure.axes
    labels = [label.get_text() for label in energy.get_yticklabels()]
    assert labels == ["network", "light sum", "Cramer-Rao bound"]
    drawn = [bar.lines[0].get_xydata()[0].tolist() for bar in energy.containers]
    assert drawn == [[2.1, 0], [3.0, 1], [1.0, 2]]
    words = [text.get_text() for text in energy.texts]
    assert words == ["2.100 ± 0.050  (2.1 x)", "3.00 ± 0.10  (3 x)", "1"]
    assert [text.get_text() for text in time.texts] == ["85", "not known"]
    assert time.get_xlabel() == "resolution [ps]"
    assert (energy.get_xscale(), depth.get_xscale()) == ("linear", "log")
    # The same method, the same color.
    colors = {axes.containers[0].lines[0].get_color() for axes in figure.axes}
    assert len(colors) == 1
    limits_figure({}).draw_without_rendering()


def test_scans_are_drawn_in_order_and_from_zero():
    values = np.array([2.0, 0.0, 1.0])
    curves = {
        "energy [%]": (np.array([3.0, 1.0, 2.0]), np.array([0.1, np.nan, 0.1])),
        "bias [%]": (np.array([-1.0, 0.0, np.nan]), np.zeros(3)),
    }
    figure = scan_figure("pile-up rate", "MHz", values, curves)
    figure.draw_without_rendering()
    energy, bias = figure.axes
    np.testing.assert_array_equal(energy.containers[0].lines[0].get_data(), [[0, 1, 2], [1, 2, 3]])
    assert energy.get_ylim()[0] == 0
    assert bias.get_ylim()[0] < -1
    assert (energy.get_xlabel(), energy.get_ylabel()) == ("pile-up rate [MHz]", "energy [%]")
    with pytest.raises(ShapeError, match="energy"):
        scan_figure("x", "", values[:2], curves)
