"""`python -m xec_jax.display`: pictures of one event, from a data file or one of predictions.

Heavy packages are imported inside functions, so that `--help` answers at once.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xec_jax.errors import EXIT_CODES, ConfigError, DataError, run_command

if TYPE_CHECKING:
    import numpy as np

    from xec_jax.data.root.event import EventFile
    from xec_jax.geometry import Detector
    from xec_jax.transforms import SensorTransform

EXAMPLES = """examples:
  display sim_0000.root --event 17                    photons and times, unrolled
  display 'data/*.root' --run 430012 --event 17       looks for the event in all files
  display sim_0000.root --entry 0 --page --3d         by position; one page; a view in space
  display mae_predictions_epoch_50.root --event 17    truth, masked input, prediction, residual

Writes STEM_npho and STEM_time, or STEM_page, or for files of predictions STEM_comparison; with
--3d also STEM_3d. Gray sensors have no valid value. A cross marks the first interaction.
"""

PREDICTION = ("truth_npho", "masked_npho", "pred_npho", "mask")
"""Branches that make a file one of predictions."""

ENDINGS = (".png", ".pdf", ".svg")


def parser() -> argparse.ArgumentParser:
    """Describes the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m xec_jax.display",
        description="Draws one event of ROOT files on the unrolled detector and in space.",
        epilog=EXAMPLES + "\n" + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="ROOT files, folders or globs")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--event", type=int, metavar="K", help="event number")
    which.add_argument("--entry", type=int, metavar="K", help="position in the file, from 0")
    add("--run", type=int, metavar="R", help="run number, where event numbers repeat")
    add("--3d", dest="in_space", action="store_true", help="also draw the sensors in space")
    add("--page", action="store_true", help="one page with photons and times")
    add("--output", metavar="STEM", help="start of the names of the pictures (default: of FILE)")
    add("--tree", default="tree", help="name of the tree (default: tree)")
    add("--npho_branch", default="npho", metavar="B", help="photons (default: npho)")
    add(
        "--time_branch",
        default="relative_time",
        metavar="B",
        help="times in s, or `none` (default: relative_time)",
    )
    add("--energy_unit", default="GeV", choices=["GeV", "MeV"], help="of the files (default: GeV)")
    add(
        "--formats",
        nargs="+",
        default=["png", "pdf"],
        metavar="F",
        help="of the pictures (default: png pdf)",
    )
    return parser


@dataclass(frozen=True)
class Event:
    """What a file says about one event.

    Attributes:
        name: Headline.
        stem: Start of the names of its pictures.
        facts: Energy, place, ... with units, for the eye.
        uvw_cm: First interaction (3,), true or reconstructed.
        photon: Vertex and true first interaction (x, y, z) in cm.
    """

    name: str
    stem: str
    facts: Mapping[str, str] = field(default_factory=dict)
    uvw_cm: "np.ndarray | None" = None
    photon: "tuple[np.ndarray, np.ndarray] | None" = None

    @property
    def mark_uv(self) -> tuple[float, float] | None:
        """The place on the inner face to be marked."""
        return None if self.uvw_cm is None else (float(self.uvw_cm[0]), float(self.uvw_cm[1]))


def main(argv: Sequence[str]) -> int:
    """Runs the command.

    Args:
        argv: Arguments after the command's name.

    Returns:
        The exit code.
    """
    options = parser().parse_args(argv)
    from xec_jax.data.root.event import EventFile, locate
    from xec_jax.data.root.manifest import resolve_paths
    from xec_jax.geometry import make_detector
    from xec_jax.plots.style import save

    paths = resolve_paths(options.files)
    if options.event is not None:
        path, entry = locate(paths, options.tree, options.event, options.run)
    else:
        path, entry = _by_position(paths, options)
    with EventFile(path, options.tree) as file:
        if not 0 <= entry < file.entries:
            n = file.entries
            found = f"--entry {entry}, but tree {options.tree!r} of {path} has {n} entries"
            raise DataError(found, expected=f"0 to {n - 1}" if n else "a file with events")
        event = describe(file, entry, options.energy_unit)
        draw = _comparison if all(file.has(name) for name in PREDICTION) else _displays
        figures = draw(file, entry, event, make_detector(), options)
    stem = options.output or event.stem
    if Path(stem).suffix in ENDINGS:
        stem = str(Path(stem).with_suffix(""))
    for name, figure in figures.items():
        for written in save(figure, f"{stem}_{name}", options.formats):
            print(f"wrote {written}")
    return 0


def describe(file: "EventFile", entry: int, energy_unit: str = "GeV") -> Event:
    """Collects numbers and truth of an event, or what was measured where there is no truth.

    Args:
        file: The file, open.
        entry: Its position there.
        energy_unit: GeV or MeV.
    """
    from xec_jax.data.root.event import EVENT_NAMES, RUN_NAMES
    from xec_jax.plots.event_page import event_facts

    def value(*names: str, shape: tuple[int, ...] = ()) -> "np.ndarray | None":
        name = next((name for name in names if file.has(name)), None)
        return None if name is None else _valid(file.read(name, entry, shape))

    numbers = {"run": value(*RUN_NAMES), "event": value(*EVENT_NAMES)}
    words = [f"{name} {int(n)}" for name, n in numbers.items() if n is not None]
    suffix = "_".join(word.replace(" ", "") for word in words)
    if numbers["event"] is None:
        words.append(f"entry {entry}")
        suffix = f"entry{entry}"
    is_simulated = any(name.endswith("Truth") for name in file.names())
    end, place = ("Truth", "Truth") if is_simulated else ("Reco", "RecoFI")
    uvw, xyz = value(f"uvw{place}", shape=(3,)), value(f"xyz{place}", shape=(3,))
    if uvw is None and xyz is not None:
        import numpy as np

        from xec_jax.kinematics import xyz_to_uvw

        uvw = np.asarray(xyz_to_uvw(xyz))
    energy = value(f"energy{end}")
    facts = event_facts(
        energy_gev=None if energy is None else float(energy) / (1e3 if energy_unit == "MeV" else 1),
        time_ns=value(f"time{end}"),  # type: ignore[arg-type]
        uvw_cm=uvw,
        angle_deg=value("emiAng", shape=(2,)),
    )
    if not is_simulated:
        facts = {f"measured {name}": text for name, text in facts.items()}
    vertex = value("xyzVTX", shape=(3,))
    return Event(
        name=", ".join(words).capitalize(),
        stem=f"{file.path.stem}_{suffix}",
        facts=facts,
        uvw_cm=uvw,
        photon=None if vertex is None or xyz is None else (vertex, xyz),
    )


def _valid(values: "np.ndarray") -> "np.ndarray | None":
    """Returns numbers that mean something, None for NaN and the marker 1e10."""
    import numpy as np

    from xec_jax.geometry import INVALID_ABOVE

    return values if (np.abs(values) < INVALID_ABOVE).all() else None


def _by_position(paths: Sequence[Path], options: argparse.Namespace) -> tuple[Path, int]:
    if len(paths) > 1:
        raise ConfigError(
            f"--entry {options.entry} of {len(paths)} files", expected="the name of one file"
        )
    if options.run is not None:
        raise ConfigError(
            f"--entry {options.entry} with --run {options.run}",
            expected="one way to name the event",
            remedy="--run goes with --event",
        )
    return paths[0], options.entry


def _displays(
    file: "EventFile", entry: int, event: Event, detector: "Detector", options: argparse.Namespace
) -> dict[str, Any]:
    """Draws the event of a data file."""
    from xec_jax.plots.detector import draw_detector
    from xec_jax.plots.detector3d import detector_3d
    from xec_jax.plots.event_page import event_page
    from xec_jax.plots.style import Quantity, make_figure

    shape = (detector.n_sensors,)
    npho = file.read(options.npho_branch, entry, shape)
    time = None
    if options.time_branch.lower() not in ("", "none"):
        time = file.read(options.time_branch, entry, shape)
    is_relative = options.npho_branch.startswith("relative")
    label = "fraction of the brightest" if is_relative else "photons"
    lines = [_line(*fact) for fact in event.facts.items()]
    figures: dict[str, Any] = {}
    if options.page:
        figures["page"] = event_page(
            detector,
            npho,
            time,
            event.facts,
            mark_uv=event.mark_uv,
            title=event.name,
            npho_label=label,
        )
    else:
        known: list[tuple[Quantity, Any, str]] = [
            ("npho", npho, label),
            ("time", time, "time [ns]"),
        ]
        for quantity, values, what in known:
            if values is not None:
                figures[quantity] = make_figure(9.2, 8.0)
                draw_detector(
                    figures[quantity],
                    detector,
                    values,
                    quantity=quantity,
                    title=event.name,
                    label=what,
                    note="\n".join(lines),
                    mark_uv=event.mark_uv,
                )
    if options.in_space:
        figures["3d"] = detector_3d(
            detector,
            npho,
            title=event.name,
            note="     ".join(lines),
            label=label,
            photon=event.photon,
        )
    return figures


def _line(name: str, value: str) -> str:
    """Writes a fact as a line: energy [MeV] and 52.80 as energy 52.80 MeV."""
    name, _, unit = name.rstrip("]").partition(" [")
    return f"{name}  {value} {unit}".rstrip()


def _comparison(
    file: "EventFile", entry: int, event: Event, detector: "Detector", options: argparse.Namespace
) -> dict[str, Any]:
    """Draws what a network made of the event, from its normalized predictions."""
    import numpy as np

    from xec_jax.plots.detector3d import detector_3d
    from xec_jax.plots.sensor_comparison import sensor_comparison

    transform = stored_transform(file)
    shape = (detector.n_sensors,)
    hidden = file.read("mask", entry, shape) > 0
    groups: dict[str, dict[str, np.ndarray]] = {"truth": {}, "masked": {}, "pred": {}}
    for channel, inverse, sentinel in (
        ("npho", transform.npho_inverse, transform.sentinel_npho),
        ("time", transform.time_inverse, transform.sentinel_time),
    ):
        if not all(file.has(f"{group}_{channel}") for group in groups):
            continue
        raw = {group: file.read(f"{group}_{channel}", entry, shape) for group in groups}
        if not np.isfinite(raw["pred"]).any() and channel == "time":
            continue  # a network that predicts photons only
        # Files from elsewhere mark what is no measurement by the sentinel alone.
        valid = raw["truth"] != np.float32(sentinel)
        if file.has(f"{channel}_valid"):
            valid = file.read(f"{channel}_valid", entry, shape) > 0
        known = {"truth": valid, "masked": valid & ~hidden, "pred": np.isfinite(raw["pred"])}
        for group, values in raw.items():
            shown = np.isfinite(values) & known[group]
            physical = np.asarray(inverse(np.where(shown, values, 0)))
            groups[group][channel] = np.where(shown, physical, np.nan)
    figures: dict[str, Any] = {
        "comparison": sensor_comparison(
            detector,
            truth=groups["truth"],
            masked=groups["masked"],
            prediction=groups["pred"],
            hidden=hidden,
            title=event.name,
            mark_uv=event.mark_uv,
        )
    }
    if options.in_space:
        filled = np.where(hidden, groups["pred"]["npho"], groups["truth"]["npho"])
        title = f"{event.name}, hidden sensors filled in"
        figures["3d"] = detector_3d(detector, filled, title=title, photon=event.photon)
    return figures


def stored_transform(file: "EventFile") -> "SensorTransform":
    """Returns the normalization that a file of predictions was written with.

    Raises:
        DataError: The file does not say it.
    """
    import dataclasses

    from xec_jax.data.root.event import holding
    from xec_jax.transforms import PRESETS, SensorTransform

    needed = ("npho_scale", "npho_scale2", "time_scale", "time_shift")
    found = holding(file.metadata(), needed)
    if found is None:
        raise DataError(
            f"{file.path} holds normalized predictions, but no metadata with their constants",
            expected="a tree or a JSON text `metadata` with " + ", ".join(needed),
            remedy="write the predictions again with xec_jax.evaluate",
        )
    # Files from elsewhere lack the sentinels, which belong to the constants.
    known = [p for p in PRESETS.values() if all(getattr(p, n) == found[n] for n in needed)]
    names = [field.name for field in dataclasses.fields(SensorTransform) if field.name in found]
    return dataclasses.replace(
        (*known, SensorTransform())[0], **{name: found[name] for name in names}
    )


if __name__ == "__main__":
    run_command(main)
