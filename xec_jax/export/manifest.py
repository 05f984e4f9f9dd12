"""What a model file says of itself: inside, for nothing to get lost, and beside it, for C++.

model.onnx          the network; the facts as JSON in its metadata
model.onnx.json     the same facts with size and SHA-256 of the file
model.onnx.sha256   the line that `sha256sum --check` reads
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xec_jax.data.root.writer import disk_errors, sync_folder
from xec_jax.export.graphs.base import Graph, Port
from xec_jax.export.model import FORMAT


def ports_of(ports: tuple[Port, ...]) -> list[dict[str, Any]]:
    """Returns inputs or outputs as JSON."""
    return [port._asdict() | {"shape": list(port.shape), "dtype": "float32"} for port in ports]


def facts_of(graph: Graph, more: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the facts of a graph and of where it is from, as they go into the file."""
    ports = {"inputs": ports_of(graph.inputs), "outputs": ports_of(graph.outputs)}
    return {"format": FORMAT, **more, **ports, "tasks": {}, **graph.facts}


def sidecars(path: Path) -> tuple[Path, Path]:
    """Returns the paths of the manifest and of the checksum of a model."""
    return path.with_name(f"{path.name}.json"), path.with_name(f"{path.name}.sha256")


def publish(data: bytes, facts: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Writes a model and what belongs to it; the model gets its name last.

    Args:
        data: The model.
        facts: As inside of the model.
        path: Its name.

    Returns:
        The manifest.

    Raises:
        DiskError: The folder cannot be written.
    """
    digest = hashlib.sha256(data).hexdigest()
    head = {"format": FORMAT, "model": path.name, "sha256": digest, "bytes": len(data)}
    manifest = head | {key: value for key, value in facts.items() if key not in head}
    text, checksum = sidecars(path)
    contents = {
        checksum: f"{digest}  {path.name}\n".encode(),
        text: (json.dumps(manifest, indent=1) + "\n").encode(),
        path: data,
    }
    parts = {target: target.with_name(f".{target.name}.part") for target in contents}
    with disk_errors(path):
        try:
            for target, part in parts.items():
                part.write_bytes(contents[target])
            for target, part in parts.items():
                part.replace(target)
            sync_folder(path.parent)
        finally:
            for part in parts.values():
                part.unlink(missing_ok=True)
    return manifest
