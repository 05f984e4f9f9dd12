"""Speed of the simulated calorimeter: events per second and CPU time per event.

    python benchmarks/simulation.py --out simulation.json
    python benchmarks/simulation.py --against OTHER/TREE --out simulation.json

With `--against` another version of the package is measured in turns with this one, each in a
process of its own, so that both see the same load of the machine. The report says which kind of
device it was. Ends after about two minutes.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
SPEEDS = ("cpu_ms_per_event", "events_per_s")


def measure(events: int) -> dict[str, float | str]:
    """Simulates events with the default parameters; compilation is not counted."""
    import jax

    from xec_jax.sim.lxe import simulate_range

    size = 128 if jax.default_backend() == "cpu" else 1024
    for _ in simulate_range(0, 0, size):
        pass
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in simulate_range(0, 0, events):
        pass
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    device = jax.devices()[0]
    return {
        "cpu_ms_per_event": cpu / events * 1e3,
        "events_per_s": events / wall,
        "backend": device.platform,
        "device": device.device_kind,
    }


def main() -> None:
    """Runs the measurements in turns and writes the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON file, printed if not given")
    parser.add_argument("--against", type=Path, help="folder that holds another xec_jax")
    parser.add_argument("--events", type=int, default=2048)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        print(json.dumps(measure(options.events)))
        return
    trees = {"this": HERE} | ({"other": options.against} if options.against else {})
    found: dict[str, list[dict]] = {name: [] for name in trees}
    for _ in range(options.turns):
        for name, tree in trees.items():
            command = [sys.executable, __file__, "--once", "--events", str(options.events)]
            done = subprocess.run(  # noqa: S603 - this file itself
                command, env=os.environ | {"PYTHONPATH": str(tree)}, capture_output=True, check=True
            )
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    report: dict[str, object] = {
        name: runs[0] | {key: statistics.median(run[key] for run in runs) for key in SPEEDS}
        for name, runs in found.items()
    }
    report["machine"] = f"{platform.machine()}, {os.cpu_count()} cores"
    report["load"] = os.getloadavg()[0]
    report["events"], report["turns"] = options.events, options.turns
    text = json.dumps(report, indent=2)
    if options.out:
        options.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
