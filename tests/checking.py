"""Small files for tests of `check`, ways to spoil them, and a way to run it."""

import json

import numpy as np

from xec_jax import check
from xec_jax.data.root.writer import write_tree

S, N = 4760, 60  # sensors, events


def make_events(n=N, *, seed=0, run=(7, 8), first=0):
    """Events along the axis of the detector: one direction, one position, random light."""
    rng = np.random.default_rng(seed)
    npho = rng.gamma(1.5, 80, (n, S)).astype(np.float32)
    time = rng.uniform(-2e-8, 2e-8, (n, S)).astype(np.float32)
    npho[:, [5, 4100]] = time[:, [5, 4100]] = 1e10
    events = {
        "run": np.repeat(np.array(run, np.int32), -(-n // len(run)))[:n],
        "event": np.arange(first, first + n, dtype=np.int32),
        "npho": npho,
        "relative_time": time,
        "emiVec": np.tile([-1.0, 0, 0], (n, 1)),
        "emiAng": np.tile([90.0, 0], (n, 1)),
        "energyTruth": rng.uniform(0.015, 0.06, n),
        "timeTruth": rng.uniform(-10, 10, n),
        "uvwTruth": np.tile([0.0, 0, 5], (n, 1)),
        "xyzTruth": np.tile([-69.97, 0, 0], (n, 1)),
        "xyzVTX": np.zeros((n, 3)),
    }
    return {k: v.astype(np.float32) if v.dtype.kind == "f" else v for k, v in events.items()}


def write(path, events, **options):
    write_tree(path, [events], compression="none", **options)
    return path


def run_check(capsys, folder, *arguments):
    """Runs the command; returns exit status, text and JSON."""
    report = folder / "report.json"
    status = check.main([*map(str, arguments), "--json", str(report)])

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    result = json.loads(report.read_text(), parse_constant=refuse)
    assert result["exit_status"] == status
    return status, capsys.readouterr().out, result


def problems(result):
    found = [p for file in result["files"] for p in file["problems"]] + result["problems"]
    return {(p["level"], p["kind"]): p["found"] for p in found}


def put(name, rows, value):
    def change(events):
        events[name][rows] = value

    return change


def scale(name, factor):
    def change(events):
        valid = np.abs(events[name]) < 9e9
        events[name][valid] *= np.float32(factor)

    return change


def drop(*names):
    return lambda events: [events.pop(name) for name in names]


def rename(old, new):
    return lambda events: events.update({new: events.pop(old)})
