"""The detector description: counts, maps, neighbors, positions, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest

from xec_jax import geometry
from xec_jax.errors import ConfigError, GeometryError
from xec_jax.geometry import GraphFace, GridFace, make_detector

SHARED = Path(__file__).parents[2] / "shared" / "data"


def test_counts():
    detector = make_detector()
    assert detector.n_sensors == 4760
    assert (~detector.is_pmt).sum() == 4092
    counts = np.bincount(detector.sensor_face)
    assert dict(zip(geometry.FACES, counts.tolist(), strict=True)) == {
        "inner": 4092,
        "us": 144,
        "ds": 144,
        "outer": 234,
        "top": 73,
        "bot": 73,
    }


@pytest.mark.parametrize("mode", ["finegrid", "split"])
def test_physical_faces_show_every_sensor(mode):
    faces = make_detector("physical", mode).faces
    shown = np.concatenate(
        [f.sensors if isinstance(f, GraphFace) else f.index.ravel() for f in faces]
    )
    assert set(shown.tolist()) == set(range(4760))


def test_documented_map_loses_twelve_sensors():
    outer = make_detector("documented").face("outer")
    lost = set(geometry.OUTER_IDS.tolist()) - set(outer.index.ravel().tolist())
    assert lost == {*range(4174, 4178), *range(4198, 4202), *range(4222, 4226)}
    assert set(np.unique(outer.owner)) == set(np.unique(outer.index)) | {-1}


def test_shares_of_a_sensor_add_up_to_one():
    outer = make_detector(outer_pool=None).face("outer")
    total = np.zeros(4760)
    np.add.at(total, outer.index, outer.share)
    np.testing.assert_allclose(total[geometry.OUTER_IDS], 1, rtol=1e-6)
    assert total.sum() == pytest.approx(234)


@pytest.mark.parametrize(("kind", "n"), [("physical", 439), ("documented", 431)])
def test_edges(kind, n):
    src, dst, types = geometry.hex_edges(kind)
    assert len(src) == n
    pairs = set(zip(src.tolist(), dst.tolist(), strict=True))
    assert len(pairs) == n, "no edge twice"
    assert pairs == {(b, a) for a, b in pairs}, "symmetric"
    assert (types[src == dst] == 0).all()
    opposite = {0: 0, 1: 2, 2: 1, 3: 6, 4: 5, 5: 4, 6: 3}
    type_of = {(a, b): t for a, b, t in zip(*map(list, (src, dst, types)), strict=True)}
    if kind == "physical":
        assert all(type_of[b, a] == opposite[t] for (a, b), t in type_of.items())


def test_physical_edges_are_the_neighbors_in_space():
    """An independent second definition: PMTs closer than 9 cm."""
    detector = make_detector()
    for name in ("top", "bot"):
        face = detector.face(name)
        xyz = detector.sensors.positions[face.sensors]
        near = np.linalg.norm(xyz[:, None] - xyz, axis=-1) < 9
        src, dst, types = face.edges
        joined = np.zeros((73, 73), bool)
        joined[src, dst] = True
        np.testing.assert_array_equal(joined, near)
        step = xyz[dst] - xyz[src]
        outward = np.hypot(*xyz[dst, :2].T) - np.hypot(*xyz[src, :2].T)
        assert (step[np.isin(types, (1, 3, 5)), 2] < 0).all()
        assert (step[np.isin(types, (2, 4, 6)), 2] > 0).all()
        assert (outward[np.isin(types, (3, 4))] < 0).all()
        assert (outward[np.isin(types, (5, 6))] > 0).all()


@pytest.mark.parametrize(("kind", "limit"), [("physical", 12.94), ("documented", 84)])
def test_grid_neighbors_in_space(kind, limit):
    """On a right map every step to the next cell is a short step in space."""
    xyz = make_detector().sensors.positions
    coarse = xyz[geometry.outer_coarse_map(kind)]
    steps = [np.linalg.norm(np.diff(coarse, axis=axis), axis=-1) for axis in (0, 1)]
    longest = max(step.max() for step in steps)
    assert longest < limit
    assert (longest > 80) == (kind == "documented")
    for name, pitch in (("inner", 1.54), ("us", 9.5), ("ds", 9.5)):
        cells = xyz[make_detector().face(name).index]
        for axis in (0, 1):
            assert np.linalg.norm(np.diff(cells, axis=axis), axis=-1).max() < pitch


def test_overlay_sits_where_its_sensors_are():
    """The coarse cells below the centre patch are exactly those of the twelve shared sensors."""
    coarse = geometry.outer_coarse_map("physical")
    assert set(coarse[3:6, 10:14].ravel()) == set(geometry.CENTRAL_COARSE_IDS)


def test_rectangles_agree_with_the_painted_grid():
    outer = make_detector(outer_pool=None).face("outer")
    rectangles = geometry.sensor_rectangles(geometry.outer_coarse_map())
    for sensor, (r0, r1, c0, c1) in zip(geometry.OUTER_IDS, rectangles, strict=True):
        painted = np.zeros(outer.index.shape, bool)
        painted[r0:r1, c0:c1] = True
        np.testing.assert_array_equal(painted, outer.owner == sensor)


def test_normals_point_into_the_xenon():
    """A short step along the normal leads to a place between the faces."""
    table = make_detector().sensors
    np.testing.assert_allclose(np.linalg.norm(table.normals, axis=1), 1)
    inside = table.positions + 2 * table.normals
    radius, azimuth = np.hypot(*inside[:, :2].T), np.degrees(np.arctan2(*inside[:, 1::-1].T)) % 360
    assert ((radius > 64.97) & (radius < 106.27)).all()
    assert ((azimuth > 117.24) & (azimuth < 242.76)).all()


def test_positions_file_round_trip(tmp_path):
    table = geometry.design_positions()
    short = tmp_path / "positions.txt"
    short.write_text(
        "id x y z\n" + "".join(f"{i} {x} {y} {z}\n" for i, (x, y, z) in enumerate(table.positions))
    )
    loaded = geometry.load_positions(short)
    np.testing.assert_allclose(loaded.positions, table.positions)
    codes = [geometry.SURVEY_FACE_CODES.index(geometry.FACES[f]) for f in table.face]
    rows = np.c_[np.arange(4760), table.normals, table.positions, codes]
    long = tmp_path / "directions.txt"
    np.savetxt(long, rows[::-1], fmt=["%d", *["%.9f"] * 6, "%d"])
    loaded = geometry.load_positions(long)
    np.testing.assert_allclose(loaded.positions, table.positions, atol=1e-6)
    np.testing.assert_array_equal(loaded.face, table.face)
    assert make_detector(sensors=loaded).fingerprint() == make_detector().fingerprint()


@pytest.mark.parametrize(
    "text",
    ["", "0 1 2 3\n", "0 a b c\n" * 4760, "0 1 2 3\n" * 4760, "0 1 2\n1 2 3 4\n"],
    ids=["empty", "one line", "words", "one id", "ragged"],
)
def test_bad_positions_file(tmp_path, text):
    path = tmp_path / "bad.txt"
    path.write_text(text)
    with pytest.raises(GeometryError, match="expected"):
        geometry.load_positions(path)
    with pytest.raises(GeometryError, match="missing"):
        geometry.load_positions(tmp_path / "missing.txt")


def test_unknown_variants_are_refused():
    with pytest.raises(ConfigError, match="physical, documented"):
        make_detector("real")
    with pytest.raises(ConfigError, match="divisors"):
        make_detector(outer_pool=(2, 3))
    with pytest.raises(GeometryError, match="inner, us"):
        make_detector().face("side")


def test_fingerprints_tell_variants_apart():
    variants = [
        make_detector(),
        make_detector("documented"),
        make_detector(outer_mode="split"),
        make_detector(outer_pool=None),
        make_detector(outer_mask="coarse"),
    ]
    assert len({detector.fingerprint() for detector in variants}) == len(variants)
    assert make_detector().fingerprint() == variants[0].fingerprint()
    moved = geometry.design_positions()
    moved.positions[7] += 0.1
    assert make_detector(sensors=moved).fingerprint() != variants[0].fingerprint()


def test_pooled_shapes():
    shapes = {f.name: f.shape for f in make_detector().faces if isinstance(f, GridFace)}
    assert shapes == {"inner": (93, 44), "us": (24, 6), "ds": (24, 6), "outer": (15, 24)}


@pytest.mark.skipif(not SHARED.exists(), reason="the reference tables are not part of the project")
def test_design_agrees_with_the_reference_tables():
    table = geometry.design_positions()
    reference = geometry.load_positions(SHARED / "sensor_positions.txt")
    assert np.abs(table.positions - reference.positions).max() < 0.002
    survey = geometry.load_positions(SHARED / "sensor_directions.txt")
    np.testing.assert_array_equal(survey.face, table.face)
    assert (survey.normals * table.normals).sum(1).min() > 0.999
    assert np.linalg.norm(survey.positions - table.positions, axis=1).mean() == pytest.approx(
        0.557, abs=0.01
    )
