"""Numbers of the predecessor's networks, and the weights that produced them.

Weights are not stored: each array is a pseudo-random function of its name.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).parent / "golden"
EXTRA = Path(__file__).parents[2] / "shared" / "parity" / "xec"


def load(name: str) -> dict[str, np.ndarray]:
    """Arrays of a file; skips the test if only the large collection outside the tree has it."""
    with np.load(_find(name)) as arrays:
        return dict(arrays)


def weights(model: str, fill: str) -> dict[str, np.ndarray]:
    """State of a model, e.g. `ref_mae_pool33`, under fill `A` or `B`, without buffers."""
    if (GOLDEN / f"{model}.json").exists():
        state = json.loads((GOLDEN / f"{model}.json").read_text())
    else:
        lists = json.loads(_find(f"{model.split('_')[0]}_params.json").read_text())
        state = lists[model]["state"]
    return {
        name: filled(name, tuple(shape), kind, fill)
        for name, shape, kind, *_ in state
        if kind != "buffer"
    }


def filled(name: str, shape: tuple[int, ...], kind: str, fill: str) -> np.ndarray:
    a = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    a = a.astype(np.float32)
    if fill == "A":
        return a * np.float32(0.02) + np.float32(kind == "norm_weight")
    if kind == "norm_weight":
        return 1 + np.float32(0.1) * a
    if name.endswith(("grn.gamma", "grn.beta")):
        return np.float32(0.5) * a
    if a.ndim < 2:
        return np.float32(0.1) * a
    return a * np.float32(0.3 if shape[0] == 1 else np.prod(shape[1:]) ** -0.5)


def block(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Weights stored in a block's file, without their prefix."""
    return {k[len(prefix) + 1 :]: v for k, v in arrays.items() if k.startswith(prefix + ".")}


def nhwc(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, 1, -1)


def _find(name: str) -> Path:
    for folder in (GOLDEN, EXTRA):
        if (folder / name).exists():
            return folder / name
    pytest.skip(f"{name} is not in the tree and the full parity set is not at hand")
