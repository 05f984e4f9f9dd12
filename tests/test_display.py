"""The command `display`: the right event, in the right units, or one readable error."""

import json
from pathlib import Path

import numpy as np
import pytest
from checking import S, make_events, write
from commands import run
from matplotlib.collections import PolyCollection

from xec_jax import display
from xec_jax.data.root import file as root_file
from xec_jax.data.root.event import EventFile, locate
from xec_jax.data.root.writer import TreeFile, write_tree
from xec_jax.errors import ConfigError, DataError
from xec_jax.plots import sensor_comparison, style

N, PER_BASKET = 12, 4


def chunks(events):
    n = len(events["event"])
    return [{k: v[i : i + PER_BASKET] for k, v in events.items()} for i in range(0, n, PER_BASKET)]


@pytest.fixture(scope="module")
def events():
    """Two runs of six events; both count from 100."""
    events = make_events(N, run=(7, 8))
    events["event"] = np.tile(np.arange(100, 106, dtype=np.int32), 2)
    events["uvwTruth"] += np.arange(N, dtype=np.float32)[:, None]
    events["emiAng"][3] = 1e10
    return events


@pytest.fixture(scope="module")
def path(events, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "sim: run 7.root"
    write_tree(path, chunks(events))
    return path


@pytest.fixture
def drawn(monkeypatch):
    """Figures by the name of their file, kept from the disk."""
    figures = {}
    monkeypatch.setattr(style, "save", lambda f, stem, formats: figures.update({stem: f}) or [])
    return figures


def values(figure):
    """Per-sensor values of the displays in a figure, in reading order."""
    found = [v for sub in figure.subfigs for v in values(sub)]
    here = figure.axes if not figure.subfigs else []
    cells = [c for axes in here for c in axes.collections if isinstance(c, PolyCollection)]
    return [c.get_array() for c in cells if len(c.get_paths()) == S] + found


def texts(figure):
    found = [text.get_text() for text in figure.texts]
    found += [text.get_text() for axes in figure.axes for text in axes.texts]
    return found + [text for sub in figure.subfigs for text in texts(sub)]


def test_the_event_is_drawn_in_its_units(path, events, drawn):
    assert display.main([str(path), "--event", "102", "--run", "8"]) == 0
    assert list(drawn) == [f"sim: run 7_run8_event102_{c}" for c in ("npho", "time")]
    entry = 8
    npho, time = events["npho"][entry], events["relative_time"][entry]
    for figure, raw, factor in zip(drawn.values(), (npho, time), (1, 1e9), strict=True):
        (shown,) = values(figure)
        np.testing.assert_array_equal(shown.mask.nonzero()[0], [5, 4100])
        good = ~shown.mask
        np.testing.assert_allclose(shown[good], raw[good].astype(float) * factor, rtol=1e-6)
        title, note = (next(t for t in texts(figure) if w in t) for w in ("Run 8", "MeV"))
        assert title == "Run 8, event 102"
        energy = events["energyTruth"][entry] * 1e3
        assert note.splitlines() == [
            f"energy  {energy:.2f} MeV",
            f"time  {events['timeTruth'][entry]:.2f} ns",
            "u, v, w  8.0, 8.0, 13.0 cm",
            "θ, φ  90.0, 0.0 deg",
        ]
        (cross,) = {tuple(line.get_xydata()[0]) for line in figure.axes[0].lines}
        assert cross == (-8.0, 8.0)


def test_pictures_on_disk(path, tmp_path, capsys):
    stem = tmp_path / "new" / "a.b"
    arguments = [str(path), "--entry", "3", "--page", "--3d", "--formats", "png"]
    assert display.main([*arguments, "--output", f"{stem}.png"]) == 0
    names = [f"{stem}_page.png", f"{stem}_3d.png"]
    assert capsys.readouterr().out.splitlines() == [f"wrote {name}" for name in names]
    assert all(Path(name).read_bytes().startswith(b"\x89PNG") for name in names)


def test_page_and_unit_of_energy(path, events, drawn):
    display.main([str(path), "--entry", "3", "--page", "--energy_unit", "MeV", "--output", "o"])
    (figure,) = drawn.values()
    assert list(drawn) == ["o_page"]
    assert len(values(figure)) == 2
    words = texts(figure)
    assert f"{events['energyTruth'][3]:.2f}" in words
    assert "θ, φ [deg]" not in words  # invalid in this event
    drawn.clear()
    display.main([str(path), "--entry", "3", "--time_branch", "none"])
    assert list(drawn) == ["sim: run 7_run7_event103_npho"]


def test_one_basket_is_read(path, monkeypatch, drawn):
    read = []
    plain = root_file.TreeColumn._basket

    def watched(self, number, entries):
        read.append((self._branch.name, number))
        return plain(self, number, entries)

    monkeypatch.setattr(root_file.TreeColumn, "_basket", watched)
    display.main([str(path), "--event", "102", "--run", "8", "--page"])
    assert [number for name, number in read if name == "npho"] == [2]
    assert [number for name, number in read if name == "relative_time"] == [2]


def test_every_event_is_found(path, events):
    for entry in range(N):
        run_number, event = int(events["run"][entry]), int(events["event"][entry])
        assert locate([path], "tree", event, run_number) == (path, entry)
        with EventFile(path, "tree") as file:
            np.testing.assert_array_equal(file.read("npho", entry), events["npho"][entry])
            assert file.read("event", entry).shape == ()


def test_events_of_several_files(path, tmp_path, drawn):
    other = write(tmp_path / "other.root", make_events(4, run=(9,), first=500))
    assert locate([path, other], "tree", 502) == (other, 2)
    display.main([str(other), str(path), "--event", "104", "--run", "7"])
    assert next(iter(drawn)) == "sim: run 7_run7_event104_npho"
    with pytest.raises(ConfigError, match="2 files"):
        display.main([str(other), str(path), "--entry", "0"])


def test_ambiguous_and_absent_events(path):
    with pytest.raises(DataError, match="2 events have the number 102") as error:
        display.main([str(path), "--event", "102"])
    assert "run 7, entry 2 of" in str(error.value)
    assert "run 8, entry 8 of" in str(error.value)
    with pytest.raises(DataError, match="12 events, event numbers 100 to 105") as error:
        display.main([str(path), "--event", "106"])
    assert "no event 106" in str(error.value)
    with pytest.raises(DataError, match="12 events, none of run 9"):
        display.main([str(path), "--event", "102", "--run", "9"])
    with pytest.raises(DataError, match="has 12 entries") as error:
        display.main([str(path), "--entry", "12"])
    assert "0 to 11" in str(error.value)
    with pytest.raises(DataError):
        display.main([str(path), "--entry", "-1"])
    with pytest.raises(ConfigError, match="--run 7"):
        display.main([str(path), "--entry", "1", "--run", "7"])


def test_files_without_numbers(events, tmp_path, drawn):
    few = {k: v for k, v in events.items() if k not in ("event", "run")}
    path = write(tmp_path / "bare.root", few)
    with pytest.raises(DataError, match="holds no event numbers") as error:
        display.main([str(path), "--event", "0"])
    assert "--entry" in error.value.remedy
    display.main([str(path), "--entry", "2"])
    assert list(drawn) == ["bare_entry2_npho", "bare_entry2_time"]
    assert "Entry 2" in texts(drawn["bare_entry2_npho"])
    nothing = write(tmp_path / "nothing.root", {"npho": events["npho"][:2]})
    display.main([str(nothing), "--entry", "1", "--time_branch", "none"])


def test_wrong_branches(path):
    with pytest.raises(DataError, match=r"has no branch 'nfo'.*npho") as error:
        display.main([str(path), "--entry", "0", "--npho_branch", "nfo"])
    assert error.value.exit_code == 2
    with pytest.raises(DataError, match="holds 3 values"):
        display.main([str(path), "--entry", "0", "--npho_branch", "uvwTruth"])
    with pytest.raises(DataError, match="no tree 'events'"):
        display.main([str(path), "--entry", "0", "--tree", "events"])


def test_a_measured_event(events, tmp_path, drawn):
    measured = {k: v for k, v in events.items() if not k.endswith("Truth")}
    measured |= {"energyReco": events["energyTruth"], "xyzRecoFI": events["xyzTruth"]}
    path = write(tmp_path / "data.root", measured)
    display.main([str(path), "--entry", "0"])
    figure = next(iter(drawn.values()))
    note = next(t for t in texts(figure) if "MeV" in t).splitlines()
    assert note[0].startswith("measured energy ")
    assert note[1] == "measured u, v, w  0.0, 0.0, 5.0 cm"


def test_the_command_in_its_own_process(tmp_path):
    (tmp_path / "text.root").write_text("no ROOT file")
    code, out, err = run({}, tmp_path / "text.root", "--event", "1", command="display")
    assert (code, out) == (2, "")
    assert "DataError" in err
    assert "is not a ROOT file" in err
    assert "Traceback" not in err


NORMAL = {"npho_scale": 1000.0, "npho_scale2": 4.08, "time_scale": 1.14e-7, "time_shift": -0.46}
LEGACY = {"npho_scale": 0.58, "npho_scale2": 1.0, "time_scale": 6.5e-8, "time_shift": 0.5}


def predictions(events, scale, sentinel, n=3):
    """A file of the autoencoder as it is written, for the first events."""
    npho, time = (events[k][:n].astype(float) for k in ("npho", "relative_time"))
    if scale is LEGACY:
        npho = np.where(npho > 9e9, npho, npho / 1e3)
    bad = npho > 9e9
    with np.errstate(over="ignore"):
        truth_npho = np.where(bad, 0, np.log1p(npho / scale["npho_scale"]) / scale["npho_scale2"])
    truth_time = np.where(bad, sentinel, time / scale["time_scale"] - scale["time_shift"])
    hidden = np.random.default_rng(3).random((n, S)) < 0.6
    rows = {
        "event_id": np.arange(n),
        "run_number": events["run"][:n],
        "event_number": events["event"][:n],
        "truth_npho": truth_npho,
        "truth_time": truth_time,
        "mask": hidden,
        "masked_npho": np.where(hidden, 0, truth_npho),
        "masked_time": np.where(hidden, sentinel, truth_time),
        "pred_npho": truth_npho + 0.01,
        "pred_time": truth_time + 0.02,
    }
    rows = {k: v.astype(np.int32 if k.endswith(("id", "number")) else np.float32)
            for k, v in rows.items()}  # fmt: skip
    return rows, npho, time, hidden, bad


@pytest.mark.parametrize(
    ("scale", "sentinel", "kind"),
    [
        (NORMAL, -1.0, "tree"),
        (LEGACY, -5.0, "tree"),
        (NORMAL | {"sentinel_time": -3.0, "npho_scheme": "log1p"}, -3.0, "tree"),
        (NORMAL, -1.0, "text"),
    ],
)
def test_predictions_in_physical_units(events, tmp_path, drawn, monkeypatch, scale, sentinel, kind):
    compared = []
    monkeypatch.setattr(
        sensor_comparison, "sensor_comparison", lambda _, **given: compared.append(given)
    )
    rows, npho, time, hidden, bad = predictions(events, scale, sentinel)
    path = tmp_path / "mae_predictions_epoch_5.root"
    with TreeFile(path) as file:
        file.extend(rows)
        if kind == "tree":
            file.table("metadata", scale | {"predict_channels": "npho,time"})
        else:
            file.note(
                "metadata", json.dumps({"time_scale": 9.0, "record": {"normalization": scale}})
            )
    display.main([str(path), "--event", "101", "--output", "o"])
    assert list(drawn) == ["o_comparison"]
    (given,) = compared
    assert given["title"] == "Run 7, event 101"
    npho, time, hidden, bad = npho[1], time[1], hidden[1], bad[1]
    np.testing.assert_array_equal(given["hidden"], hidden)
    for group, known in (("truth", ~bad), ("masked", ~bad & ~hidden)):
        light, clock = given[group]["npho"], given[group]["time"]
        np.testing.assert_allclose(light[known], npho[known], rtol=2e-5, atol=1e-3)
        np.testing.assert_allclose(clock[known], time[known], atol=1e-13)
        assert np.isnan(light[~known]).all()
        assert np.isnan(clock[~known]).all()
    light, clock = given["prediction"]["npho"], given["prediction"]["time"]
    np.testing.assert_allclose((clock - time)[~bad], 0.02 * scale["time_scale"], rtol=1e-3)
    expected = (npho + scale["npho_scale"]) * np.expm1(0.01 * scale["npho_scale2"])
    np.testing.assert_allclose((light - npho)[~bad], expected[~bad], rtol=1e-3, atol=1e-3)


def test_predictions_need_their_constants(events, tmp_path, drawn):
    rows, *_ = predictions(events, NORMAL, -1.0)
    path = tmp_path / "p.root"
    write_tree(path, [rows])
    with pytest.raises(DataError, match="no metadata with their constants"):
        display.main([str(path), "--event", "101"])
    rows["pred_time"][:] = np.nan  # not predicted
    rows["npho_valid"] = np.ones((3, S), bool)
    rows["npho_valid"][1, 7] = False
    with TreeFile(path) as file:
        file.extend(rows)
        file.table("metadata", NORMAL)
    display.main([str(path), "--entry", "1", "--3d"])
    comparison, space = drawn.values()
    assert len(values(comparison)) == 5
    truth, _, filled, *_ = values(comparison)
    assert truth.mask[7]
    assert not filled.mask[7]
    assert "Run 7, event 101, hidden sensors filled in" in texts(space)
