"""What float16 and int8 cost an exported regression, and what they gain.

    python benchmarks/export_precision.py --model MODEL.onnx --calibration 'valid/*.root' \
        --events test.root --out docs/figures

Makes export_precision.json and export_precision.md: per form of the file its size, the residuals
below which 68 % of the events lie, and events/s with one and two threads, batch 1 and 64; then
events/s of the float32 file under settings of ONNX Runtime. All forms take turns, the best of
several rounds counts.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
import uproot

from xec_jax.predict import main as predict
from xec_jax.quantize import main as quantize

SHARE = 68
SETTINGS = [(1, 1), (64, 1), (64, 2)]
"""Events at a time and threads."""
OPTIONS = {
    "as delivered": {},
    "no fusions": {"graph_optimization_level": ort.GraphOptimizationLevel.ORT_DISABLE_ALL},
    "basic fusions": {"graph_optimization_level": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC},
    "no arena": {"enable_cpu_mem_arena": False},
    "no memory pattern": {"enable_mem_pattern": False},
}
"""Settings of ONNX Runtime to compare, with one thread."""


def residuals(model: Path, events: Path, folder: Path) -> dict[str, float]:
    """Residuals below which 68 % of the events lie."""
    output = folder / f"{model.stem}.root"
    words = ["--onnx", model, "--input", events, "--output", output, "--layout", "val_tree"]
    predict([str(word) for word in words])
    with uproot.open(output) as file:
        t = file["val_tree"].arrays(library="np")
    sizes = {
        "energy (%)": 100 * np.abs(t["pred_energy"] - t["true_energy"]) / t["true_energy"],
        "time (ps)": 1e3 * np.abs(t["pred_timing"] - t["true_timing"]),
        "direction (deg)": t["opening_angle"],
        **{f"{x} (mm)": 10 * np.abs(t[f"pred_{x}"] - t[f"true_{x}"]) for x in "uvw"},
    }
    return {name: float(np.nanpercentile(values, SHARE)) for name, values in sizes.items()}


def session(model: Path, threads: int, **options) -> ort.InferenceSession:
    """Loads a model with settings of ONNX Runtime."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = threads, 3
    for name, value in options.items():
        setattr(settings, name, value)
    return ort.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"])


def take_turns(sessions: dict[str, ort.InferenceSession], batch: int, n: int, rounds: int):
    """Events/s of each, the best of all rounds."""
    best = dict.fromkeys(sessions, 0.0)
    rng = np.random.default_rng(0)
    inputs = {}
    for port in next(iter(sessions.values())).get_inputs():
        low, high = (0, 500) if port.name == "npho" else (-3e-8, 3e-8)
        inputs[port.name] = rng.uniform(low, high, (batch, *port.shape[1:])).astype(np.float32)
    for _ in range(rounds):
        for name, one in sessions.items():
            begun = time.perf_counter()
            for _ in range(max(1, n // batch)):
                one.run(None, inputs)
            seconds = time.perf_counter() - begun
            best[name] = max(best[name], max(1, n // batch) * batch / seconds)
    return best


def table(rows: list[dict]) -> str:
    """Markdown of rows with the same keys."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(str(value) for value in row.values()) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--events", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n_speed", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        forms = {"float32": options.model}
        for form in ("float16", "int8"):
            forms[form] = folder / f"{form}.onnx"
            words = [options.model, "--to", form, "--events", options.calibration]
            quantize([str(word) for word in (*words, "--output", forms[form])])
        rows: list[dict] = [
            {"form": form, "MB": round(path.stat().st_size / 1e6, 1)}
            | {k: f"{v:.4g}" for k, v in residuals(path, options.events, folder).items()}
            for form, path in forms.items()
        ]
        for batch, threads in SETTINGS:
            sessions = {form: session(path, threads) for form, path in forms.items()}
            best = take_turns(sessions, batch, options.n_speed, options.rounds)
            for row in rows:
                row[f"events/s, batch {batch}, {threads} thread(s)"] = f"{best[row['form']]:.1f}"
        sessions = {name: session(options.model, 1, **given) for name, given in OPTIONS.items()}
        speeds = [take_turns(sessions, b, options.n_speed, options.rounds) for b in (1, 64)]
    settings = [
        {"setting": k, "batch 1": f"{speeds[0][k]:.1f}", "batch 64": f"{speeds[1][k]:.1f}"}
        for k in OPTIONS
    ]
    text = table(rows) + "\n" + table(settings)
    (options.out / "export_precision.md").write_text(text)
    answer = {"forms": rows, "settings": settings, "onnxruntime": ort.__version__}
    (options.out / "export_precision.json").write_text(json.dumps(answer, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
