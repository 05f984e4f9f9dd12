"""Makes one file from one run: translation, facts, proof, and only then its name.

Runs in the environment of a backend: `python -m xec_jax.export.builder JOB.json`.
"""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xec_jax import errors
from xec_jax.errors import XecError

if TYPE_CHECKING:
    import onnx

AXIS = "batch_size"
"""Name of the dynamic axis of all inputs and outputs."""
PACKAGES = ("jax", "flax", "tensorflow-cpu", "tensorflow", "tf2onnx", "jax2onnx", "onnx")
OPSETS = {"jax2tf": (17, 13, 18), "jax2onnx": (18, 18, 24)}
"""Per backend the operator set by default, and the oldest and newest that work."""


@dataclass(frozen=True)
class Job:
    """What to make.

    Attributes:
        run: Folder of the run.
        step: Its checkpoint.
        ema: Whether to take the moving average.
        part: Part of the network.
        raw: Whether photons and seconds go in.
        tasks: Quantities, all if empty.
        backend: Who translates.
        opset: ONNX operator set.
        facts: What the caller knows, for the manifest.
        proof: File with events and the caller's answers.
        output: The file to make.
        saved_model: Folder for a SavedModel, too.
    """

    run: str
    step: int
    ema: bool
    part: str
    raw: bool
    tasks: tuple[str, ...]
    backend: str
    opset: int
    facts: Mapping[str, Any]
    proof: str
    output: str
    saved_model: str | None = None


def build(job: Job) -> dict[str, Any]:
    """Makes the file of a job.

    Returns:
        The manifest, and under `seconds` how long translation and proof took.

    Raises:
        CheckpointError: The file does not do what the network does; nothing is left of it.
        DiskError: The folder cannot be written.
    """
    from xec_jax.export import fusions, jax2onnx_backend, jax2tf_backend, manifest, verify
    from xec_jax.export.graphs.base import make_graph
    from xec_jax.export.model import METADATA_KEY
    from xec_jax.export.proof import load_proof
    from xec_jax.train.saved import load_run

    run = load_run(Path(job.run), step=job.step, ema=job.ema)
    graph = make_graph(run.config, job.part, raw=job.raw, tasks=job.tasks)
    begun = time.monotonic()
    backend = {"jax2tf": jax2tf_backend, "jax2onnx": jax2onnx_backend}[job.backend]
    model = backend.to_onnx(graph, run.params, job.opset)
    translated = time.monotonic()
    _name_axes(model)
    fusions.divide_before_erf(model)
    outputs = manifest.ports_of(graph.outputs)
    model.producer_name, model.producer_version = "xec_jax", version_of("xec_jax")
    verify.check_model(model)
    proof = load_proof(Path(job.proof))
    verified = verify.compare(model.SerializeToString(), outputs, proof)
    if job.saved_model:
        jax2tf_backend.to_saved_model(graph, run.params, Path(job.saved_model), proof)
    exporter = {"backend": job.backend, "opset": job.opset, "versions": versions()}
    facts = manifest.facts_of(graph, job.facts) | {"exporter": exporter, "verified": verified}
    del model.metadata_props[:]
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, json.dumps(facts)
    made = manifest.publish(model.SerializeToString(), facts, Path(job.output))
    seconds = {"translation": translated - begun, "proof": time.monotonic() - translated}
    return made | {"seconds": seconds}


def versions() -> dict[str, str]:
    """Returns the versions of the packages that make files, as far as they are here."""
    found = {name: version_of(name) for name in PACKAGES}
    return {name: text for name, text in found.items() if text}


def version_of(package: str) -> str:
    """Returns the version of an installed package, empty if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _name_axes(model: "onnx.ModelProto") -> None:
    """Gives the first axis of inputs and outputs one name."""
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = AXIS
    del model.graph.value_info[:]  # they name the axis, too, and nobody needs them


def main(argv: list[str]) -> int:
    """Builds what a file describes; writes the manifest, or the error, beside it."""
    path = Path(argv[0])
    job = Job(**json.loads(path.read_text()))
    try:
        answer = {"manifest": build(job)}
    except XecError as error:
        parts = {"found": error.found, "expected": error.expected, "remedy": error.remedy}
        answer = {"error": {"kind": type(error).__name__, **parts}}
    path.with_suffix(".answer").write_text(json.dumps(answer))
    return 0


def save_job(job: Job, path: Path) -> None:
    """Writes a job for `main`."""
    path.write_text(json.dumps(asdict(job)))


def read_answer(path: Path) -> dict[str, Any]:
    """Returns the manifest that `main` left for a job, or raises the error it met."""
    answer = json.loads(path.with_suffix(".answer").read_text())
    if "error" in answer:
        kind = getattr(errors, answer["error"].pop("kind"))
        found = answer["error"].pop("found")
        raise kind(found, **answer["error"])
    manifest: dict[str, Any] = answer["manifest"]
    return manifest


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
