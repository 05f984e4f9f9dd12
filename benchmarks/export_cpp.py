"""An exported regression in C++, in Python's ONNX Runtime and in JAX: same answers, how fast?

    python benchmarks/export_cpp.py --run RUN --model MODEL.onnx --events F.root \
        --program examples/cpp/build/xec_infer --out docs/figures

The model was exported from the run with --raw. Makes export_cpp.json and export_cpp.md: the largest
difference of C++ from JAX in float64, in units of spread plus value, and events/s and memory by
batch and threads. All take turns, the best of several rounds counts.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import onnxruntime

from xec_jax.export import proof
from xec_jax.export.graphs.base import Arrays, make_graph
from xec_jax.export.model import OnnxModel
from xec_jax.train.saved import load_run

SETTINGS = [(1, 1), (1, 2), (64, 1), (64, 2)]
"""Events at a time and threads."""
CHUNK = 20


def read_floats(path: Path) -> Arrays:
    """Reads a file of floats, see examples/cpp/README.md."""
    with path.open("rb") as stream:
        columns = json.loads(stream.readline())["columns"]
        sizes = [int(np.prod(column["shape"])) for column in columns]
        rows = np.fromfile(stream, "<f4").reshape(-1, sum(sizes))
    parts = np.split(rows, np.cumsum(sizes)[:-1], axis=1)
    return {
        column["name"]: part.reshape(-1, *column["shape"])
        for column, part in zip(columns, parts, strict=True)
    }


def run_program(words: list[str]) -> tuple[float, float]:
    """Runs xec_infer; returns events/s of the network alone and peak memory in MB."""
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our words
    peak = 0.0
    while process.poll() is None:  # what wait4 reports would include this process before exec
        status = Path(f"/proc/{process.pid}/status").read_text()
        if "xec_infer" in status and (found := re.search(r"VmHWM:\s+(\d+) kB", status)):
            peak = max(peak, float(found[1]) / 1024)
        time.sleep(0.02)
    text = process.communicate()[0]
    speed = re.search(r"network alone ([\d.]+) events/s", text)
    if process.returncode or speed is None:
        sys.exit(f"{words[0]} failed: {text}")
    return float(speed[1]), peak


def per_second(call, inputs: Arrays, batch: int) -> float:
    """Events/s of a function of inputs, after one call that does not count."""
    n = len(next(iter(inputs.values()))) // batch * batch
    pieces = [{k: v[s : s + batch] for k, v in inputs.items()} for s in range(0, n, batch)]
    call(pieces[0])
    begun = time.perf_counter()
    for piece in pieces:
        call(piece)
    return n / (time.perf_counter() - begun)


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("run", "model", "events", "program", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--n_speed", type=int, default=128, help="events for events/s")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    run, model = load_run(options.run), OnnxModel(options.model, threads=1)
    graph, exact = (
        make_graph(run.config, raw=True, portable=False, precision=p)
        for p in ("float32", "float64")
    )
    with tempfile.TemporaryDirectory() as folder:
        events, answers = Path(folder) / "events.floats", Path(folder) / "answers.floats"
        script = Path(__file__).parents[1] / "examples" / "cpp" / "root_floats.py"
        manifest = options.model.with_name(f"{options.model.name}.json")
        words = [sys.executable, str(script), str(options.events), str(events)]
        subprocess.run([*words, "--model", str(manifest)], check=True)  # noqa: S603 - our words
        inputs = read_floats(events)
        program = [str(options.program), str(options.model), str(events)]
        run_program([*program, "--output", str(answers)])
        found = read_floats(answers)
        expected = proof.answers_in_float64(exact, run.params, inputs, CHUNK)
        worst = proof.difference(model.facts["outputs"], found, expected)
        few = {name: values[: options.n_speed] for name, values in inputs.items()}
        head = json.dumps(json.loads(events.open("rb").readline())).encode() + b"\n"
        rows = [few[c["name"]].reshape(len(few["npho"]), -1) for c in json.loads(head)["columns"]]
        events.write_bytes(head + np.concatenate(rows, 1).astype("<f4").tobytes())
        table = speeds(options, graph, run.params, few, program)
    answer = {
        "difference": worst._asdict(),
        "events": len(inputs["npho"]),
        "speed": table,
        "versions": {"jax": jax.__version__, "onnxruntime": onnxruntime.__version__},
    }
    (options.out / "export_cpp.json").write_text(json.dumps(answer, indent=1) + "\n")
    lines = [
        "| batch | threads | C++ | Python ONNX Runtime | JAX | memory of C++ |",
        "|" + "---|" * 6,
    ]
    lines += [
        f"| {row['batch']} | {row['threads']} | {row['cpp']:.1f} | {row['python']:.1f} | "
        f"{row['jax']:.1f} | {row['memory_mb']:.0f} MB |"
        for row in table
    ]
    text = "\n".join(lines) + f"\n\nC++ and JAX in float64, {answer['events']} events: "
    (options.out / "export_cpp.md").write_text(text + proof.describe(worst) + "\n")
    print((options.out / "export_cpp.md").read_text())


def speeds(options, graph, params, inputs: Arrays, program: list[str]) -> list[dict[str, float]]:
    """Lets all three take turns; JAX takes the threads it wants."""
    names = [port.name for port in graph.outputs]
    apply = jax.jit(lambda inputs: {name: graph.apply(params, inputs)[name] for name in names})
    rows = []
    for batch, threads in SETTINGS:
        network = OnnxModel(options.model, threads=threads)
        best = {"cpp": 0.0, "python": 0.0, "jax": 0.0, "memory_mb": 0.0}
        for _ in range(options.rounds):
            words = [*program, "--batch", str(batch), "--threads", str(threads)]
            speed, memory = run_program(words)
            now = {
                "cpp": speed,
                "python": per_second(network, inputs, batch),
                "jax": per_second(lambda i: jax.block_until_ready(apply(i)), inputs, batch),
                "memory_mb": memory,
            }
            best = {name: max(value, now[name]) for name, value in best.items()}
        rows.append({"batch": batch, "threads": threads, **best})
        print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    main()
