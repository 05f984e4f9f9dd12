"""What a plateau of the NLL can mean: right pairs, no context, scrambled pairs, larger flows.

    python benchmarks/plateau.py --out docs/figures --work /tmp/plateau --sizes S M

Trains on the benchmark MB-1 and judges on held-out events whose density is known. `scrambled` has
the defect of the predecessor's reader in every full batch: primaries and counts are permuted, and
the muons, which are not, are cut with the permuted counts. Makes plateau.json, plateau.md and
plateau.png. A start in the same work folder goes on where the last one ended.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from xec_jax.data.bundle_writer import write_bundles
from xec_jax.data.muons import Bundles, read_bundles
from xec_jax.plots.plateau import plateau_figure
from xec_jax.plots.style import save
from xec_jax.simulate import write_sample
from xec_jax.tasks.muon_flow import Experiment
from xec_jax.train.saved import load_run

CONFIG = Path(__file__).parents[1] / "configs" / "muon_flow.py"
BATCH = 2048  # events of a batch of the defective reader
LR = {"S": 3e-3, "M": 1.5e-3, "L": 1e-3}
COLUMNS = ("pairs", "size", "NLL", "excess", "information", "delta_perm", "residual R2",
           "pooled std", "pooled std, constant input", "spread per unit")  # fmt: skip


def scrambled(bundles: Bundles, seed: int = 0) -> Bundles:
    """The defect, batch by batch; events of the last batch, which is not full, stay as they are."""
    rng, parts = np.random.default_rng(seed), []
    for first in range(0, len(bundles.counts), BATCH):
        batch = bundles.take(np.arange(first, min(first + BATCH, len(bundles.counts))))
        if len(batch.counts) == BATCH:
            order = rng.permutation(BATCH)
            batch = batch._replace(primaries=batch.primaries[order], counts=batch.counts[order])
        parts.append(batch)
    return Bundles(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def command(name: str, *words: object) -> None:
    """Runs a command of the package."""
    line = [sys.executable, "-m", f"xec_jax.{name}", *map(str, words)]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - our words


def measure(work: Path, pairs: str, size: str, epochs: int) -> dict:
    """Trains and evaluates one row of the table."""
    run, folder = work / f"{pairs}-{size}", work / f"{pairs}-{size}-evaluation"
    train = "scrambled" if pairs == "scrambled" else "train"
    keys = {
        "data.train": work / train,
        "data.valid": work / "valid",
        "data.batch_size": 2048,
        "train.epochs": epochs,
        "optim.lr": LR[size],
        "optim.warmup_epochs": 0.3,
        "eval.report": False,
        "eval.figure_events": 0,
        "model.context": "none" if pairs == "no context" else "primary",
    }
    words = [f"--config.{name}={value}" for name, value in keys.items()]
    command("train", "--config", f"{CONFIG}:{size}", "--workdir", run, *words)
    if not (folder / "metrics.json").exists():
        command("evaluate", "--run", run, "--input", work / "test", "--output", folder,
                "--no_figures")  # fmt: skip
    found = json.loads((folder / "metrics.json").read_text())["metrics"]
    saved = load_run(run)
    experiment = Experiment(saved.config)
    constant = experiment.flow.apply(
        {"params": saved.params["flow"]}, jnp.zeros((1, 4)), method=experiment.flow.embed
    )
    return {
        "pairs": pairs,
        "size": size,
        "NLL": found["nll"],
        "excess": found["excess"],
        "excess error": found["excess_error"],
        "information": found["information"],
        "delta_perm": found["delta_perm"],
        "residual R2": found["residual_r2"],
        "pooled std": found["context_std_pooled"],
        "pooled std, constant input": float(np.std(constant)),
        "spread per unit": found["context_spread"],
        "NLL of the truth": found["nll_oracle"],
        "NLL without the primary": found["nll_marginal"],
    }


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sizes", nargs="+", choices=LR, default=["S", "M"])
    parser.add_argument("--strength", type=float, default=3.0)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--events", type=int, default=12 * BATCH)
    options = parser.parse_args()
    parameters = {"strength": options.strength}
    for seed, (name, n) in enumerate(
        (("train", options.events), ("valid", 2048), ("test", 8192)), start=100
    ):
        if not (options.work / name).exists():
            write_sample("muon", options.work / name, n, seed=seed, parameters=parameters)
    if not (options.work / "scrambled").exists():
        wrong = scrambled(read_bundles(sorted((options.work / "train").glob("*.parquet"))))
        (options.work / "scrambled").mkdir()
        chunk = {"primary": wrong.primaries, "count": wrong.counts, "muons": wrong.muons}
        chunk["event"] = np.arange(len(wrong.counts))
        write_bundles(options.work / "scrambled" / "muon_0000.parquet", [chunk])
    cases = [("right", size) for size in options.sizes]
    cases[1:1] = [("no context", options.sizes[0]), ("scrambled", options.sizes[0])]
    rows = []
    for case in cases:
        rows.append(measure(options.work, *case, options.epochs))
        print(rows[-1], flush=True)
    (options.out / "plateau.json").write_text(json.dumps(rows, indent=1) + "\n")
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        cells = [row[c] if isinstance(row[c], str) else f"{row[c]:.4f}" for c in COLUMNS]
        lines.append("| " + " | ".join(cells) + " |")
    (options.out / "plateau.md").write_text("\n".join(lines) + "\n")
    save(plateau_figure(rows), options.out / "plateau", formats=("png",))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
