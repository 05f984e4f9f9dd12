"""Figures of muon bundles: they show what is wrong, and take files of a single depth."""

from importlib.util import find_spec

import numpy as np
import pytest

if find_spec("distrax") is None:
    pytest.skip("needs the extra `flow`", allow_module_level=True)

from xec_jax.evaluation.muon_flow import parts
from xec_jax.plots import bundles as plots
from xec_jax.plots.plateau import plateau_figure

NAMES = ("energy", "radius")


@pytest.fixture(scope="module")
def muons():
    """Features as measured and as drawn, and conditions whose last one, the depth, is constant."""
    rng = np.random.default_rng(0)
    given = rng.uniform(0, 1, (600, 4))
    given[:, 3] = 1.5
    real, drawn = (rng.normal(size=(600, 2)) + given[:, :2] for _ in range(2))
    return real, drawn, given


def drawn_lines(axes):
    return [artist.get_data().values for artist in axes.patches]


def test_parts_hold_every_muon_once(muons):
    given = muons[2]
    found = list(parts(given))
    for name, expected in (("log_energy", 3), ("depth", 1)):
        own = [used for which, _, used in found if which == name]
        assert len(own) == expected
        np.testing.assert_array_equal(np.sum(own, 0), 1)
    two = np.where(np.arange(600) < 400, 0.9, 52.0)
    own = [used for which, _, used in parts(np.stack([two] * 4, 1)) if which == "log_mass"]
    np.testing.assert_array_equal(np.sum(own, 0), 1)


def test_figures_take_a_single_depth(muons):
    real, drawn, given = muons
    cut = [(text, used) for name, text, used in parts(given) if name == "cos_zenith"]
    plots.in_parts(real, drawn, cut, NAMES, "cos_zenith").canvas.draw()
    figure = plots.profiles(real, drawn, given, NAMES)
    measured = figure.axes[0].lines[0].get_ydata()
    assert np.corrcoef(measured, np.arange(len(measured)))[0, 1] > 0.5, "rises with the condition"
    assert len(figure.axes[3].lines[0].get_ydata()) == 1
    figure.canvas.draw()


def test_ranks_of_a_wrong_flow_stay_inside(muons):
    rng = np.random.default_rng(1)
    given = list(parts(muons[2]))
    right, wrong = rng.uniform(size=(600, 2)), rng.beta(9, 1, size=(600, 2))
    for pit in (right, wrong):
        axes = plots.noise_ranks(pit, given, NAMES).axes[0]
        low, high = axes.get_ylim()
        assert all((low <= line).all() and (line <= high).all() for line in drawn_lines(axes))
    assert high > 5


def test_plateau_shows_each_training_between_its_bounds():
    keys = ("NLL", "NLL of the truth", "NLL without the primary", "delta_perm", "pooled std",
            "pooled std, constant input")  # fmt: skip
    values = {"right": (1.75, 1.74, 2.29, 1.5, 0.4, 0.3), "scrambled": (2.3, 1.74, 2.29, 0, 0.3, 0)}
    rows = [{"pairs": k, "size": "S", **dict(zip(keys, v, strict=True))} for k, v in values.items()]
    figure = plateau_figure(rows)
    figure.canvas.draw()
    left, middle, _ = figure.axes
    np.testing.assert_array_equal(left.lines[0].get_xdata(), [1.75, 2.3])
    assert [bar.get_width() for bar in middle.patches] == [1.5, 0]
    assert [label.get_text() for label in left.get_yticklabels()] == ["right, S", "scrambled, S"]
