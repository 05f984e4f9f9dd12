"""Promises of the pictures of single events, and of bars by face."""

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from mpl_toolkits.mplot3d import proj3d

from test_plots import rendered  # isort: skip

from xec_jax.errors import ShapeError
from xec_jax.geometry import FACES, N_SENSORS, make_detector
from xec_jax.plots.detector3d import detector_3d, sensor_tiles
from xec_jax.plots.event_page import event_facts, event_page
from xec_jax.plots.saliency import face_weights_figure, saliency_figure
from xec_jax.plots.sensor_comparison import ROWS, sensor_comparison
from xec_jax.plots.style import colormap

DETECTOR = make_detector()
POSITIONS, NORMALS, FACE = DETECTOR.sensors


@pytest.fixture(scope="module")
def tiles():
    return sensor_tiles(DETECTOR)


def ids_of(face):
    return np.flatnonzero(FACES.index(face) == FACE)


def areas(tiles):
    a, b = tiles[:, 2] - tiles[:, 0], tiles[:, 3] - tiles[:, 1]
    return np.linalg.norm(np.cross(a, b), axis=1) / 2


def test_tiles_lie_across_the_normals(tiles):
    offset = tiles - POSITIONS[:, None]
    np.testing.assert_allclose(np.einsum("sci,si->sc", offset, NORMALS), 0, atol=1e-9)
    for face in ("inner", "us", "ds", "top", "bot"):
        np.testing.assert_allclose(offset[ids_of(face)].mean(1), 0, atol=0.2)


def test_tiles_close_the_faces_without_overlap(tiles):
    inner = tiles[:4092].reshape(93, 44, 4, 3)
    # Neighbors along the beam share an edge.
    np.testing.assert_allclose(
        inner[:, :-1, :, 2].max(-1), inner[:, 1:, :, 2].min(-1), rtol=0, atol=1e-9
    )
    one = 1.50977 * 2 * 64.97 * np.sin(np.deg2rad(1.34968) / 2)
    np.testing.assert_allclose(areas(tiles[:4092]), one, rtol=1e-3)
    arc = 106.27 * np.deg2rad(24 * 5.23)
    assert areas(tiles[ids_of("outer")]).sum() == pytest.approx(9 * 10.356 * arc, rel=0.02)
    for face in ("top", "bot"):
        np.testing.assert_allclose(areas(tiles[ids_of(face)]), 6.12 * 6.91, rtol=1e-6)
    columns = areas(tiles[ids_of("us")]).reshape(24, 6).mean(0)
    np.testing.assert_allclose(
        columns,
        7.081 * 2 * (69.53 + 6.684 * np.arange(6)) * np.sin(np.deg2rad(5.23) / 2),
        rtol=0.01,
    )


def pixel_of(axes, place, pixels):
    z, x, y = place[[2, 0, 1]]
    flat = proj3d.proj_transform(z, x, y, axes.get_proj())[:2]
    column, row = axes.transData.transform(flat).astype(int)
    return pixels[row, column]


def test_sensors_have_their_colors_in_space():
    values = np.full(N_SENSORS, 10.0)
    inner, outer, dead_inner, dead_outer, dark = 2000, 4150, 1000, 4250, 1500
    values[[inner, outer]] = 1000.0
    values[[dead_inner, dead_outer]] = [1e10, np.nan]
    values[dark] = 0.0
    figure = detector_3d(DETECTOR, values, title="t", note="n")
    pixels = rendered(figure)
    views = figure.axes[:2]
    low, high, gray = (np.array(c[:3]) * 255 for c in (colormap("npho")(0.0), colormap("npho")(1.0),
                                                        colormap("npho").get_bad()))  # fmt: skip
    for sensor, view, color in (
        (inner, 0, high), (dead_inner, 0, gray), (dark, 0, gray), (3000, 0, low),
        (outer, 1, high), (dead_outer, 1, gray), (4200, 1, low),
        (inner, 1, low), (dead_inner, 1, low),  # behind the outer face
        (outer, 0, low), (dead_outer, 0, low),  # behind the inner face
    ):  # fmt: skip
        found = pixel_of(views[view], POSITIONS[sensor], pixels)
        np.testing.assert_allclose(found, color, atol=12, err_msg=f"{sensor} {view}")
    for axes in views:  # cm are equally long in all directions
        size = np.ptp([axes.get_xlim(), axes.get_ylim(), axes.get_zlim()], axis=1)
        np.testing.assert_allclose(axes._box_aspect / axes._box_aspect[0], size / size[0])
        assert axes.collections[0].get_rasterized()
        names = {text.get_text() for text in axes.texts}
        assert {"US", "DS", "Top", "Bottom", "beam (z)"} <= names


def test_events_without_contrast_in_space():
    nothing = np.full(N_SENSORS, np.nan)
    rendered(detector_3d(DETECTOR, nothing, quantity="time", photon=([0, 0, 0], [-70, 0, 0])))
    with pytest.raises(ShapeError, match=r"\(3,\)"):
        detector_3d(DETECTOR, np.ones(3))


def test_facts_have_units_and_no_invalid_numbers():
    facts = event_facts(
        rank=1,
        run=430012,
        event=np.int64(17),
        loss=0.123456,
        energy_gev=np.float32(0.0528),
        time_ns=-1.254,
        uvw_cm=np.array([20.76, -7.16, 1.17]),
        angle_deg=(72.56, -7.01),
        predicted_angle_deg=[73.0, np.nan],
    )
    assert facts == {
        "rank": "1",
        "run": "430012",
        "event": "17",
        "loss": "0.1235",
        "energy [MeV]": "52.80",
        "time [ns]": "-1.25",
        "u, v, w [cm]": "20.8, -7.2, 1.2",
        "θ, φ [deg]": "72.6, -7.0",
    }
    assert event_facts(energy_gev=1e10, time_ns=np.inf, uvw_cm=(1, 2, 1e10)) == {}
    assert event_facts(loss=np.inf, uvw_cm=(-1e-9, 0, 1)) == {
        "loss": "inf",
        "u, v, w [cm]": "0.0, 0.0, 1.0",
    }


def displays(figure):
    """The unrolled detectors in a figure, in reading order."""
    if figure.subfigs:
        return [cells for sub in figure.subfigs for cells in displays(sub)]
    found = [c for axes in figure.axes for c in axes.collections if isinstance(c, PolyCollection)]
    return [cells for cells in found if len(cells.get_paths()) == N_SENSORS]


def boxes_apart(figure, texts):
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    width = figure.get_window_extent().width
    assert all(box.x1 <= width for box in boxes)
    return not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


LONG = {f"name {k} [unit]": f"-123.4, -567.8, {k}" for k in range(9)}


@pytest.mark.parametrize("has_time", [True, False])
def test_page_of_an_event(has_time):
    rng = np.random.default_rng(0)
    npho, time = rng.uniform(1, 1e4, N_SENSORS), rng.uniform(-1e-8, 1e-8, N_SENSORS)
    npho[5] = time[6] = 1e10
    facts = {"loss": 1.23456, **LONG, "word": "text"}
    figure = event_page(
        DETECTOR, npho, time if has_time else None, facts, mark_uv=(3.0, -4.0), title="Worst"
    )
    rendered(figure)
    cells = displays(figure)
    assert len(cells) == 1 + has_time
    np.testing.assert_array_equal(cells[0].get_array().mask.nonzero()[0], [5])
    np.testing.assert_allclose(cells[0].get_array().compressed(), np.delete(npho, 5))
    if has_time:
        np.testing.assert_allclose(cells[1].get_array().compressed(), np.delete(time, 6) * 1e9)
    for cell in cells:
        (mark,) = {tuple(line.get_xydata()[0]) for line in cell.axes.lines}
        assert mark == (-3.0, -4.0)
    header = figure.subfigs[0].texts
    words = [text.get_text() for text in header]
    assert words[0] == "Worst"
    assert dict(zip(words[1::2], words[2::2], strict=True)) == {**facts, "loss": "1.235"}
    assert boxes_apart(figure, header)
    lowest = min(text.get_window_extent().y0 for text in header)
    assert lowest >= figure.subfigs[1].bbox.y1


def test_page_without_facts():
    rendered(event_page(DETECTOR, np.full(N_SENSORS, np.nan), np.zeros(N_SENSORS), {}))
    with pytest.raises(ShapeError):
        event_page(DETECTOR, np.ones(7), None, {})


@pytest.fixture(scope="module")
def event():
    rng = np.random.default_rng(1)
    truth = {"npho": rng.uniform(1, 1e4, N_SENSORS), "time": rng.uniform(0, 3e-8, N_SENSORS)}
    hidden = rng.random(N_SENSORS) < 0.6
    hidden[:40] = True
    truth["npho"][10], truth["time"][[10, 20]] = np.nan, 1e10  # 20 has light, but no time
    prediction = {"npho": truth["npho"] + 3, "time": truth["time"] + 2e-9}
    prediction["npho"][10], prediction["time"][[10, 20]] = 50.0, 5e-9
    return {"truth": truth, "masked": truth, "prediction": prediction, "hidden": hidden}


def test_comparison_has_five_rows(event):
    figure = sensor_comparison(DETECTOR, **event, title="Run 1, event 2")
    cells = displays(figure)
    assert len(cells) == 2 * len(ROWS)
    hidden = event["hidden"]
    for column, (channel, shift, factor) in enumerate((("npho", 3.0, 1), ("time", 2.0, 1e9))):
        truth, masked, filled, residual, mask = (c.get_array() for c in cells[column::2])
        known = np.abs(np.nan_to_num(event["truth"][channel], nan=1e10)) < 9e9
        np.testing.assert_array_equal(~truth.mask, known)
        np.testing.assert_array_equal(~masked.mask, known & ~hidden)
        np.testing.assert_array_equal(~residual.mask, known & hidden)
        np.testing.assert_allclose(residual.compressed(), shift, atol=1e-6)
        np.testing.assert_array_equal(~mask.mask, known)
        np.testing.assert_array_equal(mask.compressed(), hidden[known])
        assert not filled.mask[10]  # dead: the prediction is all there is
        assert filled.mask[20] == (channel == "time")
        expected = np.where(hidden, event["prediction"][channel], event["truth"][channel])
        np.testing.assert_allclose(filled[known], expected[known] * factor)
        norms = [(c.norm.vmin, c.norm.vmax) for c in cells[column:6:2]]
        assert norms[0] == norms[1] == norms[2]
        notes = [t.get_text() for c in cells[column::2] for t in c.axes.texts]
        unit = ("photons", "ns")[column]
        assert f"on hidden sensors\nmean {shift:g} {unit}\nRMS {shift:g} {unit}" in notes
        count = f"hidden: {(hidden & known).sum()} of\n{known.sum()} valid"
        assert any(note.startswith(count) for note in notes)


def test_comparison_of_odd_events(event):
    one = {"prediction": {"npho": event["prediction"]["npho"]}}
    assert len(displays(sensor_comparison(DETECTOR, **event | one))) == 5
    figure = sensor_comparison(DETECTOR, **event | one | {"hidden": np.zeros(N_SENSORS, bool)})
    texts = [t.get_text() for c in displays(figure) for t in c.axes.texts]
    assert texts.count("none hidden") == 1
    broken = {"npho": np.full(N_SENSORS, np.nan)}
    texts = [
        t.get_text()
        for c in displays(sensor_comparison(DETECTOR, **event | {"prediction": broken}))
        for t in c.axes.texts
    ]
    assert any("RMS nan photons" in text for text in texts)
    with pytest.raises(ShapeError, match="channels none"):
        sensor_comparison(DETECTOR, **event | {"prediction": {}})
    with pytest.raises(ShapeError, match="hidden has shape"):
        sensor_comparison(DETECTOR, **event | {"hidden": np.zeros(3, bool)})


def bars(axes):
    return [[bar.get_height() for bar in container] for container in axes.containers]


def test_saliency_bars_are_the_scores():
    rng = np.random.default_rng(2)
    scores = {name: rng.random((6, 2)) for name in ("theta", "phi", "energy", "timing")}
    scores["phi"][3, 1] = np.nan
    figure = saliency_figure(scores, {"theta": "deg"})
    rendered(figure)
    assert len(figure.axes) == 4
    for axes, (name, values) in zip(figure.axes, scores.items(), strict=True):
        assert axes.get_title(loc="left") == name
        np.testing.assert_allclose(bars(axes), np.nan_to_num(values).T)
        ticks = [tick.get_text() for tick in axes.get_xticklabels()]
        assert ticks == ["Inner", "US", "DS", "Outer", "Top", "Bottom"]
    assert figure.axes[0].get_ylabel() == "|gradient| [deg per unit input]"
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["photons", "time"]


def test_saliency_with_sums_and_other_faces():
    scores = {"u": np.arange(14.0).reshape(7, 2)}
    figure = saliency_figure(
        scores, {}, sums={"u": scores["u"] * 9}, faces=[f"f{k}" for k in range(7)]
    )
    mean, total = figure.axes
    np.testing.assert_allclose(np.array(bars(total)), np.array(bars(mean)) * 9)
    assert total.get_title(loc="left") == "u, sum over the sensors"
    rendered(saliency_figure({}, {}))
    with pytest.raises(ShapeError, match=r"u.*\(7, 2\)"):
        saliency_figure(scores, {})


def test_face_weights():
    shares = {"angle": np.array([0.5, 0.1, 0.1, 0.1, 0.1, 0.1]), "energy": np.full(6, 1 / 6)}
    figure = face_weights_figure(shares)
    rendered(figure)
    np.testing.assert_allclose(bars(figure.axes[0]), [100 * s for s in shares.values()])
    with pytest.raises(ShapeError, match="angle"):
        face_weights_figure(shares, FACES[:5])
