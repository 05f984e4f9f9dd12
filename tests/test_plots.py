"""Promises of the figures: where a sensor is drawn, in which color, what reaches the disk."""

import dataclasses
import io
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import LogNorm

from xec_jax.errors import ConfigError, DiskError, GeometryError, ShapeError
from xec_jax.geometry import (
    FACES,
    INNER_RADIUS_CM,
    N_SENSORS,
    OUTER_CENTER_MAP,
    OUTER_IDS,
    GridFace,
    make_detector,
)
from xec_jax.plots.curves import training_curves
from xec_jax.plots.detector import color_norm, draw_detector, drawable
from xec_jax.plots.layout import ARC_CM, INNER_CM, OUTER_CM, SIDE_CM, sensor_cells
from xec_jax.plots.reconstruction import reconstruction_figure
from xec_jax.plots.style import STYLE, colormap, house_style, make_figure, save

DETECTOR = make_detector()
CELLS = sensor_cells(DETECTOR)
CENTERS = np.array([cell.mean(axis=0) for cell in CELLS])


def area(corners):
    x, y = corners.T
    return 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))


def of_face(name):
    return np.flatnonzero(DETECTOR.sensor_face == FACES.index(name))


def event(rng):
    """Light of a point 3 cm behind the inner face: photons, seconds."""
    point = np.array([-INNER_RADIUS_CM - 3, 0, 0])
    offset = DETECTOR.sensors.positions - point
    distance = np.linalg.norm(offset, axis=1)
    cosine = np.clip(-(offset * DETECTOR.sensors.normals).sum(1) / distance, 0.02, 1)
    npho = rng.poisson(3e4 * cosine / distance**2 + 1).astype(float)
    return np.stack([npho, 1e-9 + distance * 1.64 / 29.98 * 1e-9], -1)


def rendered(figure):
    """RGB pixels as drawn, origin at the lower left."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="rgba", dpi=figure.dpi)
    width, height = (round(v * figure.dpi) for v in figure.get_size_inches())
    pixels = np.frombuffer(buffer.getvalue(), np.uint8).reshape(height, width, 4)
    return pixels[::-1, :, :3]


def pixel_at(cells, pixels, sensor):
    x, y = cells.axes.transData.transform(CENTERS[sensor]).astype(int)
    return pixels[y, x]


def test_every_sensor_is_drawn_once():
    cells = draw_detector(make_figure(9, 8), DETECTOR, np.arange(1.0, N_SENSORS + 1))
    assert len(cells.get_paths()) == N_SENSORS == 4760
    np.testing.assert_array_equal(cells.get_array(), np.arange(1.0, N_SENSORS + 1))
    assert len(np.unique(CENTERS.round(3), axis=0)) == N_SENSORS


def test_no_two_cells_overlap():
    """Rectangles of a face tile it: their areas, with PMT gaps undone, add up to the face's."""
    for name, width in (
        ("inner", INNER_CM),
        ("us", SIDE_CM),
        ("ds", SIDE_CM),
        ("outer", OUTER_CM),
    ):
        fill = 1.0 if name == "inner" else 0.93**2
        total = sum(area(CELLS[i]) for i in of_face(name)) / fill
        assert total == pytest.approx(width * ARC_CM)
        corners = np.concatenate([CELLS[i] for i in of_face(name)])
        assert np.ptp(corners, axis=0) == pytest.approx((width, ARC_CM), rel=0.02)
    for name in ("top", "bot"):
        offset = CENTERS[of_face(name)][:, None] - CENTERS[of_face(name)]
        distance = np.linalg.norm(offset, axis=-1) + 1e9 * np.eye(73)
        assert distance.min() == pytest.approx(6.12)


@pytest.mark.parametrize("name", FACES)
def test_cells_follow_the_positions(name):
    """Left is +z (u) and up is azimuth towards 90 degrees (v), on every face."""
    ids = of_face(name)
    x, y, z = DETECTOR.sensors.positions[ids].T
    shown_x, shown_y = CENTERS[ids].T
    assert np.corrcoef(shown_x, -z)[0, 1] > 0.999
    if name in ("inner", "us", "ds", "outer"):
        arc = INNER_RADIUS_CM * np.arctan2(y, -x)
        np.testing.assert_allclose(shown_y, arc, atol=0.02)
    else:
        radius, turn = np.hypot(x, y), 1 if name == "top" else -1
        assert np.corrcoef(shown_y, turn * radius)[0, 1] > 0.999
    if name in ("inner", "outer", "top", "bot"):
        middle = shown_x.mean() if name == "outer" else 0
        np.testing.assert_allclose(shown_x - middle, -z, atol=0.05)


def test_faces_stand_where_they_touch():
    middle = {name: CENTERS[of_face(name)].mean(axis=0) for name in FACES}
    assert middle["ds"][0] < middle["inner"][0] < middle["us"][0] < middle["outer"][0]
    assert middle["top"][1] > ARC_CM / 2 > -ARC_CM / 2 > middle["bot"][1]
    # The rows next to the inner face are the short ones at small radius.
    assert CENTERS[4596:4607, 1].max() < CENTERS[4607:4669, 1].min()
    assert CENTERS[4669:4680, 1].min() > CENTERS[4680:4742, 1].max()
    assert CENTERS[4308, 0] < CENTERS[4313, 0]  # US column 0 next to the inner face
    assert CENTERS[4452, 0] > CENTERS[4457, 0]  # and DS column 0 as well


@pytest.mark.parametrize(
    "sensor", [0, 43, 2046, 4091, 4092, 4186, 4307, 4308, 4452, 4596, 4741, 4759]
)
def test_a_sensor_has_its_color_at_its_place(sensor):
    figure = make_figure(9, 8)
    values = np.full(N_SENSORS, 10.0)
    values[sensor] = 1000.0
    cells = draw_detector(figure, DETECTOR, values, norm=LogNorm(10, 1000))
    pixels = rendered(figure)
    bright, dark = (np.array(colormap("npho")(value)[:3]) * 255 for value in (1.0, 0.0))
    np.testing.assert_allclose(pixel_at(cells, pixels, sensor), bright, atol=2)
    other = sensor - 5 if sensor > 5 else sensor + 5
    np.testing.assert_allclose(pixel_at(cells, pixels, other), dark, atol=2)


@pytest.mark.parametrize("quantity", ["npho", "time", "residual"])
@pytest.mark.parametrize("invalid", [np.nan, np.inf, 1e10])
def test_invalid_is_gray(quantity, invalid):
    figure = make_figure(9, 8)
    values = np.linspace(1, 2, N_SENSORS)
    values[[100, 4200, 4600]] = invalid
    cells = draw_detector(figure, DETECTOR, values, quantity=quantity)
    pixels = rendered(figure)
    for sensor in (100, 4200, 4600):
        assert np.ptp(pixel_at(cells, pixels, sensor)) == 0
    assert np.ptp(pixel_at(cells, pixels, 4400)) > 0


def test_dark_sensors_are_gray_on_the_logarithmic_scale():
    values = np.array([0.0, -3.0, 5.0])
    np.testing.assert_array_equal(drawable(values, "npho").mask, [True, True, False])
    np.testing.assert_array_equal(drawable(values, "time").mask, False)


def test_color_ranges():
    rng = np.random.default_rng(0)
    npho = np.r_[10 ** rng.uniform(0, 6, 1000), 0.0, 1e10]
    norm = color_norm(npho, "npho")
    assert norm.vmax == npho[:1000].max()
    assert norm.vmin == pytest.approx(norm.vmax / 1e4)
    norm = color_norm(np.arange(101) * 1e-9, "time")
    assert (norm.vmin, norm.vmax) == pytest.approx((1, 99))
    norm = color_norm(np.linspace(-1, 3, 401), "residual")
    assert norm.vmin == -norm.vmax
    assert norm.vmax == pytest.approx(2.96, abs=0.01)


@pytest.mark.parametrize("quantity", ["npho", "time", "residual"])
@pytest.mark.parametrize("value", [np.nan, 0.0, 7.0])
def test_events_without_contrast_are_drawn(quantity, value):
    figure = make_figure(4, 3.5)
    draw_detector(figure, DETECTOR, np.full(N_SENSORS, value), quantity=quantity, title="t")
    rendered(figure)


def test_mask_and_norm_without_limits():
    figure = make_figure(4, 3.5)
    draw_detector(figure, DETECTOR, np.arange(N_SENSORS) % 2 == 0, quantity="mask", note="n")
    draw_detector(figure, DETECTOR, np.arange(N_SENSORS), norm=LogNorm(), mark_uv=(3.0, -4.0))
    rendered(figure)


@pytest.mark.parametrize(
    "options",
    [
        {"geometry": "documented"},
        {"outer_mode": "split"},
        {"outer_pool": None},
    ],
)
def test_display_does_not_depend_on_what_the_network_is_shown(options):
    for cell, expected in zip(sensor_cells(make_detector(**options)), CELLS, strict=True):
        np.testing.assert_array_equal(cell, expected)


def test_fine_center_is_smaller_and_in_the_middle():
    center = np.isin(OUTER_IDS, OUTER_CENTER_MAP)
    areas = np.array([area(CELLS[i]) for i in OUTER_IDS])
    np.testing.assert_allclose(areas[~center] / areas[center].mean(), 15 / 6)
    np.testing.assert_allclose(CENTERS[OUTER_IDS[center]].mean(0)[1], 0, atol=1e-9)


def test_wrong_lengths_and_detectors_are_refused():
    with pytest.raises(ShapeError, match=r"\(4759,\)"):
        draw_detector(make_figure(4, 3), DETECTOR, np.ones(N_SENSORS - 1))
    with pytest.raises(ConfigError, match="charge"):
        draw_detector(make_figure(4, 3), DETECTOR, np.ones(N_SENSORS), quantity="charge")
    without_top = tuple(face for face in DETECTOR.faces if face.name != "top")
    with pytest.raises(GeometryError, match="no face 'top'"):
        sensor_cells(dataclasses.replace(DETECTOR, faces=without_top))
    twice = [
        dataclasses.replace(face, index=face.index - 144) if face.name == "ds" else face
        for face in DETECTOR.faces
    ]
    assert isinstance(twice[2], GridFace)
    with pytest.raises(GeometryError, match="288 sensors"):
        sensor_cells(dataclasses.replace(DETECTOR, faces=tuple(twice)))


@pytest.fixture(scope="module")
def reconstruction():
    rng = np.random.default_rng(1)
    truth = event(rng)
    hidden = rng.random(N_SENSORS) < 0.6
    valid = np.ones((N_SENSORS, 2), bool)
    valid[50], truth[60] = False, 1e10
    hidden[[50, 60, 70]] = True
    return {
        "truth": truth,
        "masked": np.where(hidden[:, None], 1e10, truth),
        "prediction": truth * [1, 0] + [3, 0] + np.array([0, 1]) * (truth + 2e-9),
        "hidden": hidden,
        "valid": valid,
    }


def panels(figure):
    """Values of the eight displays in reading order: photons, then times."""
    body = figure.subfigs[1]
    return [sub.axes[0].collections[0].get_array() for sub in body.subfigs]


def test_reconstruction_panels(reconstruction):
    figure = reconstruction_figure(DETECTOR, **reconstruction, run=412345, event=17)
    rendered(figure)
    hidden = reconstruction["hidden"]
    judged = hidden.copy()
    judged[[50, 60]] = False
    for row, shift in ((0, 3.0), (4, 2.0)):
        truth, masked, prediction, residual = panels(figure)[row : row + 4]
        assert truth.mask[[50, 60]].all()
        assert masked.mask[hidden].all()
        np.testing.assert_array_equal(~residual.mask, judged)
        np.testing.assert_allclose(residual[judged], shift, atol=1e-6)
        assert not prediction.mask[50]  # dead, yet predicted
        seen = ~hidden & ~truth.mask
        np.testing.assert_allclose(prediction[seen], truth[seen])
    texts = [t.get_text() for sub in figure.subfigs[1].subfigs for t in sub.axes[0].texts]
    assert any("RMS on hidden\n3 photons" in t for t in texts)
    assert any("RMS on hidden\n2 ns" in t for t in texts)
    (headline,) = figure.subfigs[0].texts
    assert "run 412345, event 17" in headline.get_text()


def test_reconstruction_of_odd_events(reconstruction):
    nothing = reconstruction | {"hidden": np.zeros(N_SENSORS, bool)}
    rendered(reconstruction_figure(DETECTOR, **nothing))
    dead = reconstruction | {"valid": np.zeros((N_SENSORS, 2), bool)}
    rendered(reconstruction_figure(DETECTOR, **dead, title=""))
    broken = reconstruction | {"prediction": np.full((N_SENSORS, 2), np.nan)}
    figure = reconstruction_figure(DETECTOR, **broken)
    texts = [t.get_text() for sub in figure.subfigs[1].subfigs for t in sub.axes[0].texts]
    assert sum("RMS on hidden\nnan" in t for t in texts) == 2
    with pytest.raises(ShapeError, match="hidden has shape"):
        reconstruction_figure(DETECTOR, **reconstruction | {"hidden": np.zeros(3, bool)})


def curve(n=100, factor=50.0):
    for step in range(1, n + 1):
        loss = factor ** (1 - step / n)
        yield {"step": step, "split": "train", "loss": loss, "lr": 1e-4, "events_per_s": 20.0}
        if step % 10 == 0:
            yield {"step": step, "split": "valid", "loss": 1.1 * loss}


def test_training_curves():
    figure = training_curves(curve(), title="mae")
    rendered(figure)
    loss, rate, speed = figure.axes
    assert loss.get_yscale() == "log"
    assert training_curves(curve(factor=2.0)).axes[0].get_yscale() == "linear"
    assert [ax.get_title(loc="left") for ax in (rate, speed)] == ["learning rate", "events / s"]
    labels = loss.get_legend_handles_labels()[1]
    assert labels == ["train (median)", "valid", "best 1.1 at step 100"]


def test_training_curves_of_troubled_runs():
    records = [
        {"event": "start"},
        {"step": 2, "split": "train", "loss": 9.0},
        {"step": 1, "split": "train", "loss": None},
        {"step": 3, "split": "valid/cosmic", "loss": float("inf")},
        {"step": 2, "split": "train", "loss": 4.0, "lr": None, "events_per_s": 0.0},
    ]
    figure = training_curves(records)
    rendered(figure)
    (train, crosses) = figure.axes[0].lines
    np.testing.assert_array_equal(train.get_xydata(), [[2, 4]])
    np.testing.assert_array_equal(crosses.get_xdata(), [1, 3])
    assert crosses.get_label() == "not finite (2)"
    empty = training_curves([])
    rendered(empty)
    assert empty.axes[0].texts[0].get_text() == "no loss recorded"


def simple_figure():
    figure = make_figure(3, 2)
    figure.add_subplot().plot([1, 2])
    return figure


def test_save_writes_all_formats_and_the_data(tmp_path):
    stem = tmp_path / "new" / "run.v1"
    paths = save(simple_figure(), stem, data={"loss": [1.0, 2.0]})
    assert [path.name for path in paths] == ["run.v1.png", "run.v1.pdf", "run.v1.npz"]
    assert sorted(path.name for path in stem.parent.iterdir()) == sorted(p.name for p in paths)
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert paths[1].read_bytes().startswith(b"%PDF")
    with np.load(paths[2]) as data:
        np.testing.assert_array_equal(data["loss"], [1, 2])
    again = save(simple_figure(), tmp_path / "again")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths[:2]]


def test_save_leaves_the_old_file_when_it_fails(tmp_path):
    (tmp_path / "f.png").write_bytes(b"old")
    figure = simple_figure()

    def savefig(handle, **_):
        handle.write(b"half")
        raise OSError(28, "No space left on device")

    figure.savefig = savefig
    with pytest.raises(DiskError, match=r"f\.png.*No space left"):
        save(figure, tmp_path / "f")
    assert (tmp_path / "f.png").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["f.png"]


def test_save_refuses_what_cannot_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="cannot write"):
        save(simple_figure(), tmp_path / "file" / "f")
    with pytest.raises(ConfigError, match="'bmp'"):
        save(simple_figure(), tmp_path / "f", formats=("png", "bmp"))
    assert not (tmp_path / "f.png").exists()


def test_style_ends_with_its_context():
    import matplotlib

    before = dict(matplotlib.rcParams)
    with house_style():
        assert matplotlib.rcParams["axes.titlesize"] == STYLE["axes.titlesize"]
    draw_detector(make_figure(4, 3), DETECTOR, np.ones(N_SENSORS))
    assert dict(matplotlib.rcParams) == before


def test_modules_are_light_and_figures_need_no_pyplot():
    code = """
import sys
import xec_jax.plots.curves, xec_jax.plots.reconstruction, xec_jax.plots.style
assert "matplotlib" not in sys.modules and "jax" not in sys.modules
from xec_jax.plots.curves import training_curves
training_curves([{"step": 1, "split": "train", "loss": 1.0}]).savefig("/dev/null", format="png")
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
