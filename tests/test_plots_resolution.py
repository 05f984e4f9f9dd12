"""Promises of the figures of a regression: what a number means, and that it is what is drawn."""

import numpy as np
import pytest
from scipy.optimize import nnls

from xec_jax import kinematics
from xec_jax.errors import ShapeError
from xec_jax.plots import profiles
from xec_jax.plots.profiles import effective_sigma, equal_bins, profile, resolution
from xec_jax.plots.regression_pages import regression_pages
from xec_jax.plots.resolution_angle import (
    angle_page,
    cosine_figure,
    vector_angles,
)
from xec_jax.plots.resolution_energy import energy_page, fit_energy_resolution
from xec_jax.plots.style import save

STEMS = [
    "resolution_angle",
    "resolution_angle_dependence",
    "profile_theta",
    "profile_phi",
    "cos_res",
    "resolution_energy",
    "resolution_energy_signal",
    "resolution_timing",
    "resolution_uvwFI",
    "scatter",
]


def sample(n, seed=0):
    """Truth of n events, and predictions with known errors."""
    rng = np.random.default_rng(seed)
    truth = {
        "angle": rng.uniform([60, -170], [120, 170], (n, 2)),
        "energy": rng.uniform(0.015, 0.06, n),
        "timing": rng.uniform(-10, 10, n),
        "uvwFI": rng.uniform([-30, -60, 0], [30, 60, 38], (n, 3)),
    }
    width = {"angle": 3.0, "energy": 0.001, "timing": 0.1, "uvwFI": 1.0}
    point = {k: v + width[k] * rng.normal(size=v.shape) for k, v in truth.items()}
    return truth, point, {"energy": truth["energy"], "uvw": truth["uvwFI"]}


def pages(truth, point, where, draw=False):
    """All pages; drawing them shows what is wrong with a figure, and takes most of the time."""
    found = {}
    for stem, figure, data in regression_pages(truth, point, where):
        if draw:
            figure.draw_without_rendering()
        found[stem] = figure, data
    return found


@pytest.fixture(scope="module")
def drawn():
    return pages(*sample(1000), draw=True)


def points_of(axes):
    """Centers and values of the profiles in a panel: of bins with many events, then few."""
    return [np.array(bar.lines[0].get_data()) for bar in axes.containers]


# ---------------------------------------------------------------- statistics


def shortest_by_trying(values):
    """Half of the shortest closed interval that holds 68 % of the values."""
    pairs = [(b - a, a, b) for a in values for b in values if b >= a]
    enough = [d for d, a, b in pairs if ((values >= a) & (values <= b)).mean() >= 0.68 - 1e-12]
    return min(enough) / 2


@pytest.mark.parametrize("n", [3, 7, 25, 50, 101])
def test_statistics_equal_their_definition(n):
    values = np.random.default_rng(n).standard_t(3, n) + 0.3
    assert resolution(values)[0] == np.percentile(np.abs(values), 68)
    assert profiles.median(values)[0] == np.median(values)
    assert profiles.mean(values) == pytest.approx(
        (values.mean(), np.sqrt(((values - values.mean()) ** 2).sum() / (n - 1) / n))
    )
    assert profiles.spread(values)[0] == pytest.approx(
        np.sqrt(np.mean(values**2) - values.mean() ** 2)
    )
    assert effective_sigma(values)[0] == pytest.approx(shortest_by_trying(values))


def test_effective_sigma_does_not_see_tails_nor_shifts():
    values = np.r_[np.linspace(-1, 1, 700), np.full(300, 1e6)] + 5
    # 680 of 1000 events, of which 700 lie in an interval of length 2.
    assert effective_sigma(values)[0] == pytest.approx(679 / 699)
    assert effective_sigma(values) == effective_sigma(values[::-1])


@pytest.mark.parametrize(
    ("statistic", "expected"),
    [
        (resolution, 2 * 0.9945),
        (effective_sigma, 2 * 0.9945),
        (profiles.spread, 2.0),
        (profiles.mean, 0.0),
        (profiles.median, 0.0),
    ],
)
def test_errors_are_the_scatter_of_the_values(statistic, expected):
    """Of 200 samples of a Gaussian of width 2, with 400 events each."""
    samples = 2 * np.random.default_rng(3).normal(size=(200, 400))
    values, errors = np.array([statistic(s) for s in samples]).T
    # The shortest interval of a sample is a little shorter than that of the distribution.
    assert values.mean() == pytest.approx(
        expected, abs=0.08 if statistic is effective_sigma else 0.03
    )
    # The bootstrap of a shortest interval is known to be generous.
    assert errors.mean() == pytest.approx(values.std(), rel=0.2)


def test_few_events_have_a_value_but_no_error():
    one, two = np.array([-3.0]), np.array([-3.0, 1.0])
    assert resolution(one)[0] == 3
    assert profiles.mean(one)[0] == -3
    for values in (one, two):
        assert np.isnan([resolution(values)[1], *effective_sigma(values)]).all()
    assert np.isnan([profiles.mean(one)[1], *profiles.spread(one)]).all()


def test_bins_hold_every_event_once():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=500), rng.normal(size=500)
    line = profile(x, y, resolution)
    assert len(line.edges) == 21
    assert (line.edges[0], line.edges[-1]) == (x.min(), x.max())
    np.testing.assert_allclose(np.diff(line.edges), np.ptp(x) / 20)
    np.testing.assert_array_equal(line.count, np.histogram(x, line.edges)[0])
    assert line.count.sum() == 500  # the largest one too
    for k, (low, high) in enumerate(zip(line.edges, line.edges[1:], strict=False)):
        inside = (x >= low) & ((x < high) | (k == 19) & (x == high))
        if inside.any():
            assert line.value[k] == np.percentile(np.abs(y[inside]), 68)
        else:
            assert np.isnan([line.value[k], line.error[k]]).all()
    assert np.isnan(line.value).any()


def test_bins_of_odd_values():
    line = profile(
        [0.0, 1, 2, 2, np.nan, 1, 5], [1.0, 2, 3, 5, 1, np.nan, 9], profiles.mean, [0, 1, 2]
    )
    np.testing.assert_array_equal(line.count, [1, 3])  # 2 belongs to the last bin, 5 to none
    np.testing.assert_allclose(line.value, [1, 10 / 3])
    same = profile(np.full(4, 52.8), np.arange(4.0), profiles.mean)
    assert len(same.edges) == 2
    np.testing.assert_array_equal(same.count, [4])
    assert len(equal_bins(np.full(9, np.nan))) == 1
    none = profile(np.empty(0), np.empty(0), profiles.mean)
    assert none.value.shape == none.count.shape == (0,)
    with pytest.raises(ShapeError, match=r"\(3,\)"):
        profile(np.ones(3), np.ones(4), profiles.mean)


# ---------------------------------------------------------------- angles


def unit_vectors(angles_deg):
    theta, phi = np.deg2rad(angles_deg).T
    return np.stack([-np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], -1)


def test_angles_agree_with_the_kinematics():
    truth, _, _ = sample(50)
    vectors = unit_vectors(truth["angle"])
    np.testing.assert_allclose(vectors, kinematics.angles_to_vector(truth["angle"]), atol=1e-6)
    np.testing.assert_allclose(vector_angles(3 * vectors), truth["angle"], rtol=1e-12)


def test_azimuths_are_wrapped_everywhere():
    truth = np.array([[90.0, 179.5], [90, -179.5], [90, 10]])
    point = np.array([[91.0, -179.5], [90, 178.5], [88, 12]])
    # Many of them, so that a bin has a value that can be told from a whole turn.
    many = pages({"angle": np.tile(truth, (5, 1))}, {"angle": np.tile(point, (5, 1))}, {})
    data = many["resolution_angle"][1]
    np.testing.assert_allclose(data["phi_68pct_value"][[0, -1]], [2, 1])
    data = many["profile_phi"][1]
    np.testing.assert_allclose(data["mean_value"][[0, -1]], [-181.5, 180.5])
    assert many["scatter"][1]["phi_n_outside"] == 0


def test_vectors_of_any_length_are_directions():
    truth, point, where = sample(40)
    vector = {
        name: {"angleVec": 2 * unit_vectors(a["angle"])} for name, a in (("t", truth), ("p", point))
    }
    found = pages(vector["t"], vector["p"], where)
    assert list(found) == [*STEMS[:5], "scatter"]
    direct = pages({"angle": truth["angle"]}, {"angle": point["angle"]}, where)
    for stem, (_, data) in found.items():
        for key, values in direct[stem][1].items():
            np.testing.assert_allclose(data[key], values, rtol=1e-6, atol=1e-9)
    both = regression_pages(
        *({"angle": a["angle"]} | vector[k] for k, a in (("t", truth), ("p", point))), {}
    )
    stems = [stem for stem, _, _ in both]
    assert len(set(stems)) == len(stems)
    assert {"resolution_angle", "resolution_angle_angleVec", "cos_res_angleVec"} <= set(stems)


def test_cosine_of_known_angles():
    psi = np.array([0.0, 60, 60, 90, 180])
    data = cosine_figure(psi)[1]
    assert data["mean"] == pytest.approx((0.5 + 0.5 + 1 + 2) / 5)
    assert data["n_events"] == 5
    lost = 1 - np.cos(np.deg2rad(psi))
    np.testing.assert_array_equal(data["count"], np.histogram(lost, data["edges"])[0])


# ---------------------------------------------------------------- energy


@pytest.mark.parametrize("terms", [(0.003, 0.012, 0.0002), (0.003, 0, 0), (0, 0.01, 0.0003)])
def test_the_fit_finds_the_terms(terms):
    energy = np.linspace(0.015, 0.06, 20)
    a, b, c = terms
    relative = np.sqrt(a**2 / energy + b**2 + c**2 / energy**2)
    fit = fit_energy_resolution(energy, relative, 0.02 * relative)
    np.testing.assert_allclose(fit.terms, terms, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(fit.at(energy), relative, rtol=1e-9)
    assert fit.chi2 < 1e-9


def test_the_fit_is_the_best_without_negative_terms():
    """Against the active-set method of scipy, which is not needed outside of tests."""
    rng = np.random.default_rng(2)
    energy = np.linspace(0.015, 0.06, 12)
    n_zero = 0
    for _ in range(50):
        relative = (
            0.02 * np.exp(0.15 * rng.normal(size=12)) * (energy / 0.03) ** rng.uniform(-1, 0.5)
        )
        error = rng.uniform(0.02, 0.1, 12) * relative
        weight = 1 / (2 * relative * error)
        powers = np.stack([1 / energy, np.ones(12), energy**-2], -1)
        squares, distance = nnls(weight[:, None] * powers, weight * relative**2)
        fit = fit_energy_resolution(energy, relative, error)
        np.testing.assert_allclose(fit.terms**2, squares, rtol=1e-4, atol=1e-12)
        assert fit.chi2 == pytest.approx(distance**2)
        np.testing.assert_array_equal(np.isnan(fit.errors), fit.terms == 0)
        n_zero += (fit.terms == 0).sum()
    assert n_zero > 20


def test_errors_of_the_fit_cover_the_truth():
    rng = np.random.default_rng(4)
    energy = np.linspace(0.015, 0.06, 20)
    truth = np.sqrt(0.004**2 / energy + 0.01**2)
    pulls = []
    for _ in range(200):
        error = 0.02 * truth
        fit = fit_energy_resolution(energy, truth + error * rng.normal(size=20), error)
        assert fit.n_free == 20 - (fit.terms > 0).sum()
        # Single terms stand in for each other; what they add up to is what is measured.
        pulls.append((fit.at(energy)[10] - truth[10]) / error[10])
    assert np.std(pulls) < 0.6
    assert abs(np.mean(pulls)) < 0.1


def test_there_is_no_fit_without_a_lever():
    energy = np.linspace(0.02, 0.06, 5)
    relative = 0.02 + 0 * energy
    assert fit_energy_resolution(energy, relative, relative / 10) is not None
    assert fit_energy_resolution(energy[:3], relative[:3], relative[:3] / 10) is None
    gap = np.where(np.arange(5) > 2, np.nan, relative)
    assert fit_energy_resolution(energy, gap, relative / 10) is None
    line = 0.0528 + 1e-4 * np.arange(5)
    assert fit_energy_resolution(line, relative, relative / 10) is None


def test_energy_page_of_a_known_resolution():
    rng = np.random.default_rng(5)
    truth = rng.uniform(0.015, 0.06, 8000)
    sigma = np.sqrt(0.003**2 / truth + 0.01**2)
    point = truth * (1 + sigma * rng.normal(size=8000))
    data = energy_page(truth, point, {})[1]
    a, b, c = data["fit"][:3]
    at = np.array([0.02, 0.04, 0.055])
    fitted = np.sqrt(a**2 / at + b**2 + c**2 / at**2)
    # 68 % of a Gaussian lie within 0.9945 of its width.
    np.testing.assert_allclose(fitted, 0.9945 * np.sqrt(0.003**2 / at + 0.01**2), rtol=0.03)
    relative = (point - truth) / truth
    assert data["residual_summary"][4] == pytest.approx(100 * np.percentile(np.abs(relative), 68))
    assert data["calibration_count"].sum() + data["calibration_n_outside"] == 8000


def test_energy_of_a_line_has_no_fit():
    truth, point, where = sample(300)
    truth["energy"] = np.full(300, 0.0528)
    point["energy"] = truth["energy"] * np.linspace(0.95, 1.05, 300)
    found = pages({"energy": truth["energy"]}, point, where | {"energy": truth["energy"]})
    for stem in ("resolution_energy", "resolution_energy_signal"):
        data = found[stem][1]
        assert "fit" not in data
        assert data["relative_68pct_by_energy_count"].sum() == 300
    assert found["resolution_energy"][1]["relative_68pct_by_energy_value"] == pytest.approx(
        3.4, rel=0.01
    )


# ---------------------------------------------------------------- pages


def test_pages_of_a_complete_regression(drawn):
    assert list(drawn) == STEMS
    truth, point, where = sample(1000)
    signal = (truth["energy"] >= 0.05) & (truth["energy"] <= 0.055)
    assert drawn["resolution_energy_signal"][1]["residual_summary"][0] == signal.sum()
    data = drawn["resolution_uvwFI"][1]
    distance = np.linalg.norm(point["uvwFI"] - truth["uvwFI"], axis=1)
    assert data["distance_residual_summary"][4] == pytest.approx(np.percentile(distance, 68))
    line = profile(truth["uvwFI"][:, 1], (point["uvwFI"] - truth["uvwFI"])[:, 1], effective_sigma)
    np.testing.assert_allclose(data["v_sigma_by_v_value"], line.value)
    np.testing.assert_allclose(data["v_sigma_by_v_error"], line.error)
    data = drawn["resolution_timing"][1]
    late = 1e3 * (point["timing"] - truth["timing"])
    line = profile(1e3 * where["energy"], late, profiles.mean)
    np.testing.assert_allclose(data["bias_by_energy_value"], line.value)
    signs = drawn["scatter"][1]
    assert {key.removesuffix("_count") for key in signs if key.endswith("_count")} == {
        *("theta", "phi", "energy", "timing", "u", "v", "w")
    }


def test_the_data_is_what_is_drawn(drawn):
    keys = ["theta_68pct", "psi_68pct_by_theta", "psi_mean_by_theta"]
    keys += ["phi_68pct", "psi_68pct_by_phi", "psi_mean_by_phi"]
    figure, data = drawn["resolution_angle"]
    panels = [axes for axes in figure.axes if axes.get_xlabel()]
    assert len(panels) == 6
    for axes, key in zip(panels, keys, strict=True):
        center = (data[f"{key}_edges"][1:] + data[f"{key}_edges"][:-1]) / 2
        value, count = data[f"{key}_value"], data[f"{key}_count"]
        low, high = axes.get_ylim()
        for (x, y), few in zip(points_of(axes), (False, True), strict=True):
            shown = ((count < 10) == few) & (value >= low) & (value <= high)
            np.testing.assert_array_equal(x, center[shown])
            np.testing.assert_array_equal(y, value[shown])
    figure, data = drawn["resolution_energy"]
    _, residuals, heat = [axes for axes in figure.axes if axes.get_xlabel()][:3]
    np.testing.assert_array_equal(residuals.patches[0].get_data().values, data["residual_count"])
    mesh = heat.collections[0].get_array()
    np.testing.assert_array_equal(mesh.filled(0).T.reshape(mesh.T.shape), data["calibration_count"])
    (fit,) = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 200]
    a, b, c = data["fit"][:3]
    e = fit.get_xdata() / 1e3
    np.testing.assert_allclose(fit.get_ydata(), 100 * np.sqrt(a**2 / e + b**2 + c**2 / e**2))


def test_points_off_the_scale_are_marked():
    """A bin of one event does not flatten the others; it is not forgotten either."""
    theta = np.r_[np.full(50, 80.0), np.full(50, 99.0), 120.0]
    residual = np.stack([np.r_[np.ones(100), 90.0], np.ones(101)], -1)
    truth = np.stack([theta, np.zeros(101)], -1)
    figure, _ = angle_page(truth, residual, residual[:, 0])
    axes = figure.axes[0]
    assert axes.get_ylim()[1] < 2
    (mark,) = [line for line in axes.lines if line.get_marker() == 6 and len(line.get_xdata())]
    assert mark.get_xdata() == pytest.approx(119)
    assert mark.get_ydata() == axes.get_ylim()[1]


def test_events_with_a_nan_are_left_out_of_their_quantity_alone():
    truth, point, where = sample(60)
    kept = np.arange(60) >= 5
    holes = [{k: arrays[k].copy() for k in ("angle", "timing")} for arrays in (truth, point)]
    holes[0]["angle"][:3, 1] = np.nan
    holes[1]["angle"][3:5] = np.nan
    found = pages(*holes, where)
    assert found["resolution_timing"][1]["residual_summary"][0] == 60
    cut = [
        {k: v[kept] for k, v in arrays.items()}
        for arrays in ({"angle": truth["angle"]}, point, where)
    ]
    for stem, (_, data) in pages(*cut).items():
        for key, values in data.items():
            np.testing.assert_array_equal(found[stem][1][key], values, err_msg=f"{stem} {key}")


def test_no_events_no_pages():
    empty = [{k: v[:0] for k, v in arrays.items()} for arrays in sample(3)]
    assert not pages(*empty)
    truth, point, where = sample(3)
    assert not pages(truth, {k: np.full_like(v, np.nan) for k, v in point.items()}, where)
    assert not pages(truth, {}, where)
    assert not pages({"energy": np.zeros(3)}, {"energy": np.ones(3)}, {})


@pytest.mark.parametrize("n", [1, 3])
def test_pages_of_hardly_any_events(n):
    truth, point, where = sample(n)
    if n == 3:
        truth.pop("uvwFI")
    found = pages(truth, point, where, draw=n == 1)
    assert set(STEMS[:6]) | {"scatter"} <= set(found)
    assert found["resolution_angle"][1]["theta_68pct_count"].sum() == n


def test_pages_without_places_and_of_one_place():
    truth, point, _ = sample(30)
    point = {name: point[name] for name in ("timing", "uvwFI")}
    truth["uvwFI"][:] = [1.0, 2.0, 3.0]
    point["timing"] = truth["timing"].copy()  # perfect
    found = pages(truth, point, {"uvw": np.full((30, 3), np.nan)}, draw=True)
    words = [t.get_text() for axes in found["resolution_timing"][0].axes for t in axes.texts]
    assert {f"true {name} is not known" for name in ("energy", "u", "v", "w")} <= set(words)
    assert found["resolution_uvwFI"][1]["u_sigma_by_u_count"].tolist() == [30]
    assert np.nanmax(found["resolution_timing"][1]["68pct_by_time_value"]) == 0


def test_arrays_that_do_not_fit_are_refused():
    truth, point, where = sample(5)
    with pytest.raises(ShapeError, match=r"angle \(5, 3\)"):
        list(regression_pages({"angle": np.ones((5, 3))}, point, where))
    with pytest.raises(ShapeError, match=r"energy: truth \(4, 1\)"):
        list(regression_pages({"energy": truth["energy"][:4]}, point, {}))
    with pytest.raises(ShapeError, match="4 rows"):
        list(regression_pages(truth, point, {"energy": np.ones(4)}))


def test_equal_events_give_equal_files(tmp_path):
    truth, point, where = sample(200)
    written = []
    for folder in ("a", "b"):
        made = regression_pages({"energy": truth["energy"]}, point, where)
        stem, figure, data = next(made)
        written.append(save(figure, tmp_path / folder / stem, ("png",), data))
    assert [path.name for path in written[0]] == ["resolution_energy.png", "resolution_energy.npz"]
    for one, two in zip(*written, strict=True):
        assert one.read_bytes() == two.read_bytes()
    with np.load(written[0][1]) as stored:
        assert set(stored) == set(data)
        np.testing.assert_array_equal(stored["residual_count"], data["residual_count"])
