"""`python -m xec_jax.export`: a trained network as an ONNX file, proven to be the same."""

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xec_jax.errors import EXIT_CODES, CheckpointError, ConfigError, run_command
from xec_jax.outputs import check_new

if TYPE_CHECKING:
    from xec_jax.export.builder import Job
    from xec_jax.train.saved import SavedRun

EXAMPLES = """examples:
  export --run runs/regress-default --output model.onnx --raw       photons and seconds in
  export --run runs/regress-default --output energy.onnx --tasks energy
  export --run runs/mae-default --output tokens.onnx --part encoder
  export --setup                        the environment of the exporter, made beforehand
  export --setup --wheelhouse DIR       the same without a network

Beside MODEL.onnx, MODEL.onnx.json says what goes in and comes out, and MODEL.onnx.sha256 holds
its checksum. A file that does not answer as JAX does, is not written.
"""
BACKENDS = ("jax2tf", "jax2onnx")


def parser() -> argparse.ArgumentParser:
    """Describes the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m xec_jax.export",
        description="Turns a trained run into an ONNX file and proves that it answers as JAX does.",
        epilog=EXAMPLES + "\n" + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--run", type=Path, metavar="DIR")
    parser.add_argument("--output", type=Path, metavar="FILE.onnx")
    parser.add_argument("--raw", action="store_true", help="take photons and s, give GeV, deg, ...")
    parser.add_argument("--part", help="network (default), or encoder for its tokens")
    parser.add_argument("--tasks", default="", metavar="A,B", help="quantities of a regression")
    parser.add_argument("--step", type=int, help="checkpoint to use (default: the best one)")
    parser.add_argument("--no_ema", "--no-ema", action="store_true", help="not the moving average")
    parser.add_argument("--backend", choices=BACKENDS, default="jax2tf", help="default: jax2tf")
    parser.add_argument("--opset", type=int, metavar="N", help="default: 17 (jax2tf), 18")
    parser.add_argument("--saved_model", type=Path, metavar="DIR", help="a SavedModel, too")
    parser.add_argument("--setup", action="store_true", help="only make the environment")
    parser.add_argument("--wheelhouse", type=Path, metavar="DIR", help="packages for --setup")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    options = parser().parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    os.environ["JAX_PLATFORMS"] = "cpu"  # answers to compare with are those of float32 on a CPU
    from xec_jax.export import environment

    if options.setup:
        if options.run or options.output:
            raise ConfigError("--setup with a run or an output", expected="--setup alone")
        if options.wheelhouse and not options.wheelhouse.is_dir():
            raise ConfigError(f"--wheelhouse {options.wheelhouse} is no folder that exists")
        python = environment.set_up(options.backend, options.wheelhouse)
        print(f"{options.backend} runs in {python.parent.parent}")
        return 0
    _check(options)
    manifest = export(options)
    _report(options.output, manifest)
    return 0


def export(options: argparse.Namespace) -> dict[str, Any]:
    """Computes what JAX answers, has the file made, and returns its manifest."""
    from xec_jax.export import proof
    from xec_jax.export.builder import Job
    from xec_jax.export.graphs.base import make_graph, part_of
    from xec_jax.train.saved import load_run

    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax explains itself at length
    run = load_run(options.run, step=options.step, ema=not options.no_ema)
    tasks = tuple(name for name in options.tasks.split(",") if name)
    graph, exact = (
        make_graph(
            run.config, options.part, raw=options.raw, tasks=tasks, portable=False, precision=name
        )
        for name in ("float32", "float64")
    )
    _check_parameters(options.run, run)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "proof.npz"
        proof.save_proof(proof.make_proof(graph, exact, run.params), path)
        job = Job(
            run=str(options.run.resolve()),
            step=run.step,
            ema=not options.no_ema,
            part=part_of(run.config, options.part),
            raw=options.raw,
            tasks=tasks,
            backend=options.backend,
            opset=options.opset,
            facts=_facts(options, run),
            proof=str(path),
            output=str(options.output.resolve()),
            saved_model=str(options.saved_model.resolve()) if options.saved_model else None,
        )
        return _build(job, Path(folder))


def _build(job: "Job", folder: Path) -> dict[str, Any]:
    """Builds here where this environment can, else in that of the backend."""
    from xec_jax.export import builder, environment

    if _can_run_here(job.backend):
        return builder.build(job)
    python = environment.set_up(job.backend)
    print(f"translating with {job.backend} in {python.parent.parent}", flush=True)
    path = folder / "job.json"
    builder.save_job(job, path)
    result = environment.call(python, ["xec_jax.export.builder", str(path)])
    if result.returncode:
        print(result.stderr[-4000:], file=sys.stderr)
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise CheckpointError(
            f"{job.backend} cannot translate this network: {last}",
            expected="a file; nothing was written",
            remedy="try the other --backend",
        )
    return builder.read_answer(path)


def _can_run_here(backend: str) -> bool:
    import importlib.util

    if importlib.util.find_spec("onnx") is None or importlib.util.find_spec("onnxruntime") is None:
        return False
    from xec_jax.export import jax2onnx_backend, jax2tf_backend

    return {"jax2tf": jax2tf_backend, "jax2onnx": jax2onnx_backend}[backend].can_run_here()


def _facts(options: argparse.Namespace, run: "SavedRun") -> dict[str, Any]:
    """What the manifest says besides inputs and outputs."""
    from xec_jax.export.graphs.base import part_of
    from xec_jax.train.migrations import read_environment

    there = read_environment(options.run)
    names = ("xec_jax", "jax", "flax", "optax", "numpy")
    training = {
        "run": options.run.resolve().name,
        "step": run.step,
        "is_average": run.is_average,
        "metric": run.metric,
        "precision": run.config.train.precision,
        "git": there.get("git"),
        "versions": {name: there[name] for name in names if name in there},
    }
    part = part_of(run.config, options.part)
    return {"task": run.config.task, "part": part, "raw": options.raw, "training": training}


def _check(options: argparse.Namespace) -> None:
    from xec_jax.export.builder import OPSETS
    from xec_jax.export.manifest import sidecars

    if options.wheelhouse:
        raise ConfigError("--wheelhouse without --setup", expected="--setup --wheelhouse DIR")
    if options.run is None or options.output is None:
        raise ConfigError("no run, or no output", expected="--run DIR --output FILE.onnx")
    if options.output.suffix != ".onnx":
        raise ConfigError(f"--output is {options.output}", expected="a name that ends in .onnx")
    check_new((options.output, *sidecars(options.output)), overwrite=options.overwrite)
    default, oldest, newest = OPSETS[options.backend]
    options.opset = options.opset or default
    if not oldest <= options.opset <= newest:
        raise ConfigError(
            f"--opset {options.opset} with --backend {options.backend}",
            expected=f"{oldest} to {newest}, which this backend can write",
        )
    if options.saved_model and options.backend != "jax2tf":
        raise ConfigError(
            "--saved_model with --backend jax2onnx", expected="jax2tf, which goes by TensorFlow"
        )
    if options.saved_model:
        check_new([options.saved_model], overwrite=False)


def _check_parameters(path: Path, run: "SavedRun") -> None:
    from xec_jax.tasks.base import make_task
    from xec_jax.trained import check_parts

    config = run.config.copy_and_resolve_references()
    check_parts(path, make_task(config), run.params)


def _report(path: Path, manifest: dict[str, Any]) -> None:
    def line(ports: list[dict[str, Any]]) -> str:
        shapes = ((p["name"], ", ".join(["b", *map(str, p["shape"])]), p["unit"]) for p in ports)
        return ", ".join(f"{name} ({shape}){unit and ' ' + unit}" for name, shape, unit in shapes)

    exporter, verified = manifest["exporter"], manifest["verified"]
    versions = ", ".join(f"{name} {text}" for name, text in exporter["versions"].items())
    print(f"wrote {path}, {manifest['bytes'] / 1e6:.1f} MB, with .json and .sha256 beside it")
    print(f"  in:       {line(manifest['inputs'])}")
    print(f"  out:      {line(manifest['outputs'])}")
    print(f"  by:       {exporter['backend']}, opset {exporter['opset']} ({versions})")
    print(
        f"  verified: {verified['events']} events, largest difference "
        f"{verified['largest_difference']:.1e} ({verified['output']}), limit "
        f"{verified['limit']:.1e}; JAX in float32: {verified['rounding']:.1e}"
    )
    if "seconds" in manifest:
        seconds = manifest["seconds"]
        print(f"  took:     {seconds['translation']:.0f} s, and {seconds['proof']:.0f} s to verify")


if __name__ == "__main__":
    run_command(main)
