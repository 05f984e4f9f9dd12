"""Turns ROOT files into the files of floats that xec_infer reads, and its predictions back.

python root_floats.py events.root events.floats --model model.onnx.json
python root_floats.py predictions.floats predictions.root --events events.root
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from xec_jax.errors import ConfigError, DataError, run_command
from xec_jax.outputs import check_new

if TYPE_CHECKING:
    import numpy as np

    from xec_jax.data.root.file import RootFile

CHUNK = 256  # events


def parser() -> argparse.ArgumentParser:
    """Describes the command line."""
    parser = argparse.ArgumentParser(
        prog="root_floats.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("input", type=Path, metavar="INPUT", help="a ROOT file, or one of floats")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="the other kind")
    parser.add_argument("--model", type=Path, metavar="M.json", help="manifest: what to take")
    parser.add_argument("--events", type=Path, metavar="E.root", help="copy run and event from it")
    parser.add_argument("--tree", default="tree", help="of the events (default: tree)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    options = parser().parse_args(argv)
    inputs = [path for path in (options.input, options.model, options.events) if path]
    check_new([options.output], overwrite=options.overwrite, inputs=inputs)
    if options.output.suffix == ".root":
        n = to_root(options.input, options.output, options.events, options.tree)
    elif options.model is None:
        raise ConfigError(
            f"{options.input} to floats without a model",
            expected="the manifest of the model that will read them",
            remedy="--model model.onnx.json",
        )
    else:
        n = to_floats(options.input, options.output, options.model, options.tree)
    print(f"wrote {n} events to {options.output}")
    return 0


def to_floats(events: Path, output: Path, model: Path, tree: str) -> int:
    """Writes the inputs of a model; returns the number of events."""
    import numpy as np

    from xec_jax.data.root.file import RootFile
    from xec_jax.data.root.writer import disk_errors

    manifest = json.loads(model.read_text(encoding="utf-8"))
    if not manifest["raw"]:
        raise ConfigError(
            f"{model} wants normalized values, ROOT files have photons and seconds",
            expected="a model that normalizes them itself",
            remedy="export the model with its normalization",
        )
    temporary = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        with RootFile(events, tree) as file, disk_errors(output):
            columns = [_column(field, manifest["branches"], file) for field in manifest["inputs"]]
            with temporary.open("wb") as stream:
                header = {"xec_jax_floats": 1, "columns": columns}
                stream.write(json.dumps(header).encode() + b"\n")
                for start in range(0, file.entries, CHUNK):
                    stop = min(start + CHUNK, file.entries)
                    parts = [_read(file, column, start, stop) for column in columns]
                    stream.write(np.concatenate(parts, axis=1).astype("<f4").tobytes())
            temporary.replace(output)
            return file.entries
    finally:
        temporary.unlink(missing_ok=True)


def _column(field: dict[str, Any], branches: dict[str, str], file: "RootFile") -> dict[str, Any]:
    """Describes an input; without a branch where the file may and does lack it."""
    column = {key: field[key] for key in ("name", "shape", "unit")}
    branch = branches.get(field["name"], field["name"])
    if field["name"] in branches or file.has(branch):
        file.column(branch, tuple(field["shape"]))
        column["branch"] = branch
    else:
        value = _missing(column)
        print(f"WARNING: {file.path} has no branch {branch}: taken as {value}", file=sys.stderr)
    return column


def _missing(column: dict[str, Any]) -> float:
    """The value of an input that is not there: masks choose no sensor, numbers are unknown."""
    return 0.0 if "_mask" in column["name"] else float("nan")


def _read(file: "RootFile", column: dict[str, Any], start: int, stop: int) -> "np.ndarray":
    """Returns entries of a column, `[stop - start, values of an event]`."""
    import numpy as np

    rows = np.full((stop - start, *column["shape"]), _missing(column), np.float32)
    if "branch" in column:
        file.read_into(column["branch"], rows, start, stop)
    return rows.reshape(stop - start, -1)


def to_root(floats: Path, output: Path, events: Path | None, tree: str) -> int:
    """Writes the columns of a file of floats as branches; returns the number of events."""
    from xec_jax.data.root.writer import write_tree

    with floats.open("rb") as stream:
        try:
            header = json.loads(stream.readline())
            columns = header["columns"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{floats} is no file of floats", expected="a first line of JSON, see README.md"
            ) from error
        return write_tree(output, _chunks(stream, columns, floats, events, tree))


def _chunks(
    stream: BinaryIO, columns: list[dict[str, Any]], floats: Path, events: Path | None, tree: str
) -> "Iterator[dict[str, np.ndarray]]":
    import numpy as np

    from xec_jax.data.root.file import RootFile

    begin = stream.tell()
    width = sum(int(np.prod(column["shape"])) for column in columns)
    entries, rest = divmod(os.fstat(stream.fileno()).st_size - begin, 4 * width)
    if rest:
        raise DataError(
            f"{floats}: {rest} bytes are left over after {entries} events of {4 * width} bytes",
            expected="whole events",
            remedy="the file was cut: write it again",
        )
    file = RootFile(events, tree) if events else None
    if file and file.entries != entries:
        raise DataError(
            f"{events} has {file.entries} events, {floats} has {entries}",
            expected="the events that were predicted",
        )
    for start in range(0, entries, CHUNK):
        stop = min(start + CHUNK, entries)
        rows = np.fromfile(stream, "<f4", (stop - start) * width).reshape(-1, width)
        chunk: dict[str, np.ndarray] = {}
        if file:
            for name in ("run", "event"):
                chunk[name] = np.empty(stop - start, np.int64)
                file.read_into(name, chunk[name], start, stop)
        offset = 0
        for column in columns:
            size = int(np.prod(column["shape"]))
            values = rows[:, offset : offset + size]
            chunk[column["name"]] = values.reshape(-1, *column["shape"]).astype(np.float32)
            offset += size
        yield chunk


if __name__ == "__main__":
    run_command(main)
