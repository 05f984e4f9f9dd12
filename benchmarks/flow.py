"""Conditional spline flows against zuko's: density with its gradient, and samples, turn by turn.

    python -m venv zuko && zuko/bin/pip install torch==2.13.0 zuko==1.6.0
    python benchmarks/flow.py --opponent zuko/bin/python --out docs/figures

Both flows have the same layers, widths and bins, 3 features, and a context of its own for every
row, which is not embedded here. Two processes stay alive and take turns; each times its own steps.
Makes flow.json and flow.md: medians and quartiles of rows/s, and the median of the ratios of
neighboring turns.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

SIZES = {"S": (3, 16, 64, 32), "L": (8, 64, 512, 128)}  # transforms, bins, hidden, context
FEATURES = 3


def ours(size: str, rows: int):
    """Returns functions that make one step: density with gradient, and samples."""
    import jax
    import jax.numpy as jnp

    from xec_jax.nets.flows import ConditionalFlow, FlowSize

    flow = ConditionalFlow(FEATURES, FlowSize(*SIZES[size]))
    keys = jax.random.split(jax.random.PRNGKey(0), 3)
    x = jax.random.normal(keys[0], (rows, FEATURES))
    e = jax.random.normal(keys[1], (rows, SIZES[size][3]))
    params = flow.init(keys[2], x, jnp.zeros((rows, 4)))

    def loss(params, x, e):
        return -flow.apply(params, e, method=lambda m, e: m.given(e)).log_prob(x).mean()

    def draw(params, key, e):
        return flow.apply(params, e, method=lambda m, e: m.given(e)).sample(seed=key)

    slope, sample = jax.jit(jax.value_and_grad(loss)), jax.jit(draw)
    versions = {"jax": jax.__version__, "flax": __import__("flax").__version__}
    return (
        lambda: jax.block_until_ready(slope(params, x, e)),
        lambda: jax.block_until_ready(sample(params, keys[0], e)),
        versions,
    )


def opponent(size: str, rows: int):
    """The same of zuko."""
    import torch
    import zuko

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    transforms, bins, hidden, context = SIZES[size]
    flow = zuko.flows.NSF(
        FEATURES, context, transforms=transforms, bins=bins, hidden_features=(hidden, hidden)
    )
    x, e = torch.randn(rows, FEATURES), torch.randn(rows, context)

    def slope():
        flow.zero_grad()
        (-flow(e).log_prob(x).mean()).backward()

    def sample():
        with torch.no_grad():
            flow(e).sample()

    return slope, sample, {"torch": torch.__version__, "zuko": zuko.__version__}


def work(side: str, size: str, rows: int) -> None:
    """Answers each line `kind steps` with the seconds that the steps took."""
    slope, sample, versions = (ours if side == "ours" else opponent)(size, rows)
    steps = {"density": slope, "sample": sample}
    for step in (*steps.values(), *steps.values()):
        step()  # compiles
    print(json.dumps(versions), flush=True)
    for line in sys.stdin:
        kind, n = line.split()
        begun = time.perf_counter()
        for _ in range(int(n)):
            steps[kind]()
        print(time.perf_counter() - begun, flush=True)


def compare(options: argparse.Namespace, size: str) -> dict:
    """Lets both take turns."""
    words = [__file__, "--size", size, "--rows", str(options.rows), "--side"]
    huge = "glibc.malloc.hugetlb=1"  # as the training command takes memory, here for both
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "GLIBC_TUNABLES": huge}
    workers = {
        side: subprocess.Popen(  # noqa: S603 - our words
            [python, *words, side],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for side, python in (("ours", sys.executable), ("zuko", options.opponent))
    }
    versions = {}
    for worker in workers.values():
        versions |= json.loads(worker.stdout.readline())
    found = {"size": size, "rows": options.rows, "versions": versions}
    for kind in ("density", "sample"):
        speed = {side: [] for side in workers}
        for _ in range(options.turns):
            for side, worker in workers.items():
                worker.stdin.write(f"{kind} {options.steps}\n")
                worker.stdin.flush()
                seconds = float(worker.stdout.readline())
                speed[side].append(options.rows * options.steps / seconds)
        ratio = np.array(speed["ours"]) / np.array(speed["zuko"])
        found[kind] = {
            **{
                side: np.quantile(values, [0.25, 0.5, 0.75]).tolist()
                for side, values in speed.items()
            },
            "ratio": np.quantile(ratio, [0.25, 0.5, 0.75]).tolist(),
        }
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return found


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--opponent", default=sys.executable, help="python that has zuko")
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=3, help="of a turn")
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--size", choices=SIZES, help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=("ours", "zuko"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        return work(options.side, options.size, options.rows)
    found = [compare(options, size) for size in SIZES]
    machine = {"cores": len(os.sched_getaffinity(0)), "machine": platform.machine()}
    (options.out / "flow.json").write_text(json.dumps({**machine, "runs": found}, indent=1) + "\n")
    lines = [
        "| size | | here, rows/s | zuko, rows/s | ratio (quartiles) |",
        "|---|---|---|---|---|",
    ]
    for run in found:
        for kind in ("density", "sample"):
            row = run[kind]
            low, middle, high = row["ratio"]
            what = "density and gradient" if kind == "density" else "samples"
            lines.append(
                f"| {run['size']} | {what} | {row['ours'][1]:,.0f} | {row['zuko'][1]:,.0f} | "
                f"{middle:.2f} ({low:.2f} to {high:.2f}) |"
            )
    (options.out / "flow.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return None


if __name__ == "__main__":
    main()
