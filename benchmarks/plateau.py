"""What a plateau of the NLL can mean: right pairs, no context, scrambled pairs, larger flows.

    python benchmarks/plateau.py --out plateau --work plateau --sizes S M

Trains on the benchmark MB-1 and judges on held-out events whose density is known. `scrambled` has
the defect of the predecessor's reader in every full batch: primaries and counts are permuted, and
the muons, which are not, are cut with the permuted counts. Makes plateau.json, plateau.md and
plateau.png. A start in the same work folder goes on where the last one ended.
"""

import argparse
import json
import subprocess
import sys
from itertools import combinations_with_replacement
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from xec_jax.data.bundle_writer import write_bundles
from xec_jax.data.muons import Bundles, read_bundles
from xec_jax.muon_features import encode_primaries
from xec_jax.plots.plateau import plateau_figure
from xec_jax.plots.style import save
from xec_jax.simulate import write_sample
from xec_jax.tasks.muon_flow import Experiment
from xec_jax.train.saved import load_run

CONFIG = Path(__file__).parents[1] / "configs" / "muon_flow.py"
BATCH = 2048  # events of a batch of the defective reader
LR = {"S": 3e-3, "M": 1.5e-3, "L": 1e-3}
COLUMNS = ("pairs", "size", "own primary", "R2 of ln r", "NLL", "excess", "information",
           "delta_perm", "residual R2", "pooled std", "pooled std, constant input",
           "spread per unit")  # fmt: skip


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


def write_scrambled(source: Path, to: Path) -> None:
    """Passes the events of a folder through the defect."""
    wrong = scrambled(read_folder(source))
    to.mkdir()
    chunk = {"primary": wrong.primaries, "count": wrong.counts, "muons": wrong.muons}
    chunk["event"] = np.arange(len(wrong.counts))
    # No facts about the benchmark: its density is not that of these pairs.
    write_bundles(to / "muon_0000.parquet", [chunk])


def read_folder(folder: Path) -> Bundles:
    """Reads all files of a folder."""
    return read_bundles(sorted(folder.glob("*.parquet")))


def pairing(right: Bundles, delivered: Bundles) -> dict[str, float]:
    """Tests T1 and T2 of a reader: whose primary muons have, and what primaries say about ln r."""
    true, c = (np.repeat(b.primaries, b.counts, axis=0) for b in (right, delivered))
    own = (true == c).all(1).mean()
    c = np.asarray(encode_primaries(c), np.float64)
    c = (c - c.mean(0)) / c.std(0)
    products = [c[:, i] * c[:, j] for i, j in combinations_with_replacement(range(4), 2)]
    design, target = np.stack([np.ones(len(c)), *c.T, *products], 1), np.log(right.muons[:, 1])
    rest = target - design @ np.linalg.lstsq(design, target, rcond=None)[0]
    return {"own primary": float(own), "R2 of ln r": float(1 - rest.var() / target.var())}


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
    found = judge(run, work / "test", folder)
    saved = load_run(run)
    experiment = Experiment(saved.config)
    constant = experiment.flow.apply(
        {"params": saved.params["flow"]}, jnp.zeros((1, 4)), method=experiment.flow.embed
    )
    row = {
        "pairs": pairs,
        "size": size,
        **pairing(read_folder(work / "train"), read_folder(work / train)),
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
    if pairs == "scrambled":
        seen = judge(run, work / "test scrambled", work / f"{pairs}-{size}-evaluation-by-reader")
        keys = ("nll", "information", "delta_perm", "residual_r2")
        row["test events through the same reader"] = {key: seen[key] for key in keys}
    return row


def judge(run: Path, events: Path, folder: Path) -> dict:
    """Evaluates a run, unless that is done; returns its metrics."""
    if not (folder / "metrics.json").exists():
        command("evaluate", "--run", run, "--input", events, "--output", folder, "--no_figures")
    return dict(json.loads((folder / "metrics.json").read_text())["metrics"])


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
    for folder in (options.out, options.work):
        folder.mkdir(parents=True, exist_ok=True)
    parameters = {"strength": options.strength}
    for seed, (name, n) in enumerate(
        (("train", options.events), ("valid", 2048), ("test", 8192)), start=100
    ):
        if not (options.work / name).exists():
            write_sample("muon", options.work / name, n, seed=seed, parameters=parameters)
    for name, to in (("train", "scrambled"), ("test", "test scrambled")):
        if not (options.work / to).exists():
            write_scrambled(options.work / name, options.work / to)
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
