"""`python -m xec_jax.quantize`: a smaller form of an exported network, and what it costs."""

import argparse
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xec_jax.errors import EXIT_CODES, CheckpointError, ConfigError, DataError, run_command
from xec_jax.outputs import check_new

if TYPE_CHECKING:
    import onnx

    from xec_jax.inference.exported import Exported

log = logging.getLogger(__name__)

NOTABLE = 0.01
"""Changes in units of spread plus value that a user should be told of."""
BATCH = 16
"""Events at a time."""
EXAMPLES = """examples:
  quantize model.onnx --to int8 --events 'valid/*.root' --output model-int8.onnx
  quantize model.onnx --to float16 --events 'valid/*.root' --output model-float16.onnx

float16 halves the file and is for GPUs; int8 has a quarter of the size and is for processors with
integer instructions (AVX512-VNNI, AMX, Arm dot products). Half of the events say which ranges int8
has to hold; the others show how far the answers move. docs/export_precision.md has figures.
"""


def parser() -> argparse.ArgumentParser:
    """Describes the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m xec_jax.quantize",
        description="Writes a smaller form of an exported network, and says what it costs.",
        epilog=EXAMPLES + "\n" + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", type=Path, metavar="MODEL.onnx", help="the network in float32")
    parser.add_argument("--to", required=True, choices=("float16", "int8"))
    parser.add_argument("--events", required=True, nargs="+", metavar="GLOB", help="ROOT files")
    parser.add_argument("--n_events", type=int, default=512, metavar="N", help="default: 512")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE.onnx")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    options = parser().parse_args(argv)
    _check(options)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    import onnx

    from xec_jax.export import manifest, precision, verify
    from xec_jax.export.model import METADATA_KEY
    from xec_jax.inference.exported import Exported

    network = Exported(options.model)
    if (form := network.model.facts.get("precision", "float32")) != "float32":
        raise CheckpointError(
            f"{options.model} is in {form} already", expected="the file that export wrote"
        )
    batches = _batches(network, options.events, options.n_events)
    half = (len(batches) + 1) // 2
    model = onnx.load(options.model)
    if options.to == "int8":
        small = precision.to_int8(model, batches[:half])
    else:
        small = precision.to_float16(model)
    verify.check_model(small)
    compared = batches[half:]
    table, speed = _compare(model, small, network.model.facts["outputs"], compared)
    facts = network.model.facts | {"precision": options.to}
    facts["verified"] = {
        "against": network.model.sha256,
        "events": sum(len(next(iter(batch.values()))) for batch in compared),
        "differences": table,
    }
    del small.metadata_props[:]
    entry = small.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, json.dumps(facts)
    made = manifest.publish(small.SerializeToString(), facts, options.output)
    _report(options, made, speed)
    return 0


def _check(options: argparse.Namespace) -> None:
    from xec_jax.export import manifest

    if options.output.suffix != ".onnx":
        raise ConfigError(f"--output is {options.output}", expected="a name that ends in .onnx")
    outputs = (options.output, *manifest.sidecars(options.output))
    check_new(outputs, overwrite=options.overwrite, inputs=[options.model])
    if options.n_events < 2 * BATCH:
        raise ConfigError(f"--n_events {options.n_events}", expected=f"{2 * BATCH} or more")


def _batches(
    network: "Exported", patterns: Sequence[str], n_events: int
) -> list[dict[str, np.ndarray]]:
    """Reads the inputs of the first events, batch by batch, none of them padded."""
    from xec_jax.data.open import open_source
    from xec_jax.data.root.manifest import resolve_paths

    files = resolve_paths(patterns)
    source = open_source(network.data, files, wanted=network.task.inputs or ())
    try:
        n = min(len(source), n_events) // BATCH
        if n < 2:
            raise DataError(
                f"{files[0]}{' and others' if files[1:] else ''}: {len(source)} events",
                expected=f"at least {2 * BATCH}: half for the ranges, half to compare",
            )
        return [network.given(source.batch(step, size=BATCH, train=False)) for step in range(n)]
    finally:
        source.close()


def _compare(
    model: "onnx.ModelProto",
    small: "onnx.ModelProto",
    outputs: Sequence[Mapping[str, Any]],
    batches: Sequence[Mapping[str, np.ndarray]],
) -> tuple[dict[str, dict[str, float]], dict[int, tuple[float, float]]]:
    """Asks both for the same events.

    Returns:
        How far answers move, and events/s of both by number of threads, the best of all batches.
    """
    from xec_jax.export import precision, verify

    names = [port["name"] for port in outputs]
    answers: list[list[list[np.ndarray]]] = [[], []]
    speed = {}
    for threads in (1, 2):
        sessions = [verify.session_of(m.SerializeToString(), threads) for m in (model, small)]
        best = [0.0, 0.0]
        for batch in batches:  # in turn, for both to meet the same disturbances
            for k, session in enumerate(sessions):
                begun = time.perf_counter()
                found = session.run(names, batch)
                best[k] = max(best[k], BATCH / (time.perf_counter() - begun))
                if threads == 1:
                    answers[k].append(found)
        speed[threads] = (best[0], best[1])
    exact, found = (
        {
            name: np.concatenate(parts)
            for name, parts in zip(names, zip(*a, strict=True), strict=True)
        }
        for a in answers
    )
    return precision.differences(outputs, found, exact), speed


def _report(
    options: argparse.Namespace,
    manifest: Mapping[str, Any],
    speed: Mapping[int, tuple[float, float]],
) -> None:
    size = options.model.stat().st_size / 1e6
    print(f"wrote {options.output}, {manifest['bytes'] / 1e6:.1f} MB in place of {size:.1f} MB")
    verified = manifest["verified"]
    if any(row["68"] > NOTABLE for row in verified["differences"].values()):
        log.warning("answers move by more than %g for a third of the events", NOTABLE)
    print(f"  answers move on {verified['events']} events, in units of spread plus value:")
    for name, row in verified["differences"].items():
        print(
            f"    {name:24s} median {row['median']:.1e}, 68 % below {row['68']:.1e}, "
            f"largest {row['largest']:.1e}"
        )
    for threads, (old, new) in speed.items():
        print(
            f"  {threads} thread{'s' if threads > 1 else ''}: {new:.1f} events/s in place of "
            f"{old:.1f}, {new / old:.2f} times, in batches of {BATCH}"
        )


if __name__ == "__main__":
    run_command(main)
