"""What a checkpoint of the PyTorch predecessor says about its network.

Names and shapes tell the kind of network and all its widths; the settings that newer checkpoints
carry tell the rest: pooling, normalization, branches.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from xec_jax.errors import CheckpointError
from xec_jax.geometry import Geometry, hex_edges
from xec_jax.targets import N_CLASSES, QUANTITIES
from xec_jax.yaml_configs import flatten
from xec_jax.yaml_tables import Overrides

Tensors = Mapping[str, np.ndarray]

ROOTS = {"regressor": "backbone.", "mae": "encoder.", "inpainter": "encoder.", "encoder": ""}
"""Kinds of networks, and what stands before the names of their encoders."""
WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")
CHANNELS = ("npho", "time")


def bare_names(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Strips what DDP, torch.compile and averaging put before names, and their counters."""
    return {WRAPPERS.sub("", k): v for k, v in tensors.items() if k != "n_averaged"}


def kind_of(names: Mapping[str, Any]) -> str:
    """Tells regressor, mae, inpainter and bare encoder apart by the names of their tensors.

    Raises:
        CheckpointError: None of them.
    """
    for kind, pattern in (
        ("regressor", r"heads\."),
        ("mae", r"dec_\w+\."),
        ("inpainter", r"(head_\w+|cross_attn_head)\."),
        ("encoder", r"pos_embed$"),
    ):
        if any(re.match(pattern, name) for name in names):
            return kind
    shown = ", ".join(list(names)[:4]) or "none"
    raise CheckpointError(
        f"the tensors are those of no network of the predecessor: {shown} ...",
        expected="a regressor (heads.*), MAE (dec_*), inpainter (head_*) or encoder",
        remedy="give the checkpoint that its training wrote",
    )


def is_later(kind: str, tensors: Tensors) -> bool:
    """Whether the code is newer than January 2026: encoders had an unused head until then."""
    return f"{ROOTS[kind]}head.0.weight" not in tensors


def shape_overrides(kind: str, tensors: Tensors) -> Overrides:
    """Reads off names and shapes what the model is: keys of our configs and values.

    Raises:
        CheckpointError: A tensor is missing, or has a shape that no network has.
    """
    try:
        found = _encoder(ROOTS[kind], tensors)
        parts = {"regressor": _regressor, "mae": _mae, "inpainter": _inpainter}
        return found | (parts[kind](tensors) if kind in parts else {})
    except (KeyError, IndexError, StopIteration) as error:
        raise CheckpointError(
            f"the {kind} lacks the tensor {error}", expected="a complete network"
        ) from error


def _encoder(root: str, tensors: Tensors) -> Overrides:
    n_tokens, dim = tensors[f"{root}pos_embed"].shape[1:]
    if n_tokens not in (6, 7):
        raise CheckpointError(
            f"{root}pos_embed has {n_tokens} tokens", expected="6 (finegrid) or 7 (split)"
        )
    layers = rf"{re.escape(root)}fusion_transformer\.layers\.\d+\.linear1\.weight"
    inner = tensors[f"{root}fusion_transformer.layers.0.linear1.weight"].shape[0]
    found: Overrides = {
        "model.outer_mode": "finegrid" if n_tokens == 6 else "split",
        "model.encoder_dim": dim,
        "model.num_fusion_layers": sum(bool(re.fullmatch(layers, name)) for name in tensors),
        "model.dim_feedforward": None if inner == 4 * dim else inner,
    }
    edges = tensors.get(f"{root}hex_edge_index")
    if edges is not None:
        found["model.geometry"] = _geometry(edges)
    return found


def _geometry(edges: np.ndarray) -> Geometry:
    """Tells which of our hexagonal graphs has these edges (3, e), in any order."""
    variants: tuple[Geometry, ...] = ("documented", "physical")
    for variant in variants:
        if np.array_equal(np.unique(edges, axis=1), np.unique(hex_edges(variant), axis=1)):
            return variant
    raise CheckpointError(
        f"hex_edge_index {edges.shape} has other edges than the hexagonal faces here",
        expected="the 431 edges of the predecessor, or the 439 of the detector",
    )


def is_single_task(kind: str, tensors: Tensors) -> bool:
    """Whether a bare encoder is the angle regressor of January 2026, whose head was trained."""
    has_head = kind == "encoder" and {"head.1.weight", "head.1.bias"} <= tensors.keys()
    return has_head and not _is_fresh("head.1", tensors)


def _is_fresh(norm: str, tensors: Tensors) -> bool:
    """Whether the norm of a head is as at the start of a training: nobody used the head."""
    scale, bias = (tensors[f"{norm}.{part}"] for part in ("weight", "bias"))
    return bool(np.allclose(scale, 1, atol=1e-6) and np.allclose(bias, 0, atol=1e-6))


def _regressor(tensors: Tensors) -> Overrides:
    """Switches on the heads that were trained; the others still have their first norm."""
    # The learned balance of the losses stays behind: it matters in training alone.
    found: Overrides = {"model.heads": "active", "train.loss_balance": "manual"}
    for task, quantity in QUANTITIES.items():
        if f"heads.{task}.6.weight" not in tensors:
            found[f"train.tasks.{task}.enabled"] = False
            continue
        found[f"train.tasks.{task}.enabled"] = not _is_fresh(f"heads.{task}.1", tensors)
        out, hidden = tensors[f"heads.{task}.6.weight"].shape
        found["model.hidden_dim"] = hidden
        n = N_CLASSES if task == "n_gamma" else len(quantity.components)
        if out == 2 * n:
            found[f"train.tasks.{task}.loss_fn"] = "gaussian_nll"
    return found


def _mae(tensors: Tensors) -> Overrides:
    width = tensors["dec_inner.decoder.0.weight"].shape[1]
    hex_width = tensors["dec_top.pos_embed"].shape[-1]
    return _channels(tensors["dec_inner.decoder.6.weight"].shape[1]) | {
        "train.auto_channel_weight": False,  # the learned balance matters in training alone
        "model.decoder_dim": width,
        "model.hex_decoder_dim": None if hex_width == width else hex_width,
    }


def _inpainter(tensors: Tensors) -> Overrides:
    found: Overrides = {"model.freeze_encoder": False}  # it matters in training alone
    if "cross_attn_head.neighbor_proj.weight" in tensors:
        found |= {
            "model.head_type": "cross_attention",
            "model.cross_attn_hidden": tensors["cross_attn_head.neighbor_proj.weight"].shape[0],
            "model.cross_attn_latent": tensors["cross_attn_head.latent_proj.weight"].shape[0],
            "model.cross_attn_k": tensors["cross_attn_head.knn_indices"].shape[1],
            "model.cross_attn_pos": tensors["cross_attn_head.pos_embed"].shape[1],
        }
        last = "cross_attn_head.pred_mlp.3.weight"
    else:
        types = {"masked_pred_head": "masked_attention", "global_decoder": "global_only"}
        heads = [kind for part, kind in types.items() if f"head_inner.{part}.0.weight" in tensors]
        found |= {
            "model.head_type": heads[0] if heads else "per_face",
            "model.head_dim": tensors["head_inner.latent_proj.0.weight"].shape[0],
            "model.hex_head_dim": tensors["head_top.latent_proj.0.weight"].shape[0],
        }
        last = next(n for n in tensors if re.match(r"head_top\.(masked_)?pred_head\.[23]\.w", n))
        if "head_outer_sensor.gather_indices" in tensors:
            cells = tensors["head_outer_sensor.gather_indices"].shape[1]
            found |= {"model.outer_fine_pool": pool} if (pool := POOLS.get(cells)) else {}
    return found | _channels(tensors[last].shape[0])


def _channels(n: int) -> Overrides:
    return {"model.predict_channels": CHANNELS[:n]}


POOLS = {15: (1, 1), 2: (3, 3)}
"""Pooling of the fine grid that was used most, by the largest number of its cells that show one
sensor. Other poolings lead to 2 cells, too."""
MEANT = ("outer_fine_pool", "time_branch")
"""Settings whose None says something: no pooling, no times."""


def settings_of(config: Mapping[str, Any]) -> Overrides:
    """Reads the settings inside a checkpoint as dotted keys of the predecessor's YAML files."""
    found: Overrides = {}
    for key, value in flatten(config).items():
        group, _, name = key.rpartition(".")
        if value is None and name not in MEANT:
            continue
        if name.startswith("branch") or group == "branches":
            pair = value if isinstance(value, list | tuple) else [value]
            wanted = CHANNELS if len(pair) == 2 else [name.removesuffix("_branch")]
            both = zip(wanted, pair, strict=True)
            found |= {f"data.{w}_branch": v for w, v in both if v is not None or w == "time"}
        elif name in ("active_tasks", "nll_tasks"):
            tasks = list(value or ())
            if name == "active_tasks":
                found |= {f"tasks.{task}.enabled": task in tasks for task in QUANTITIES}
            else:
                found |= {f"tasks.{task}.loss_fn": "gaussian_nll" for task in tasks}
        elif name.endswith("_branch"):
            found[f"data.{name}"] = value
        elif group:
            found[key] = value
        elif name != "epoch":
            found[f"model.{name}"] = value
    return found
