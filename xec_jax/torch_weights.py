r"""Weights of the PyTorch predecessor as parameters of these networks.

Rules say where each of its layers goes and of what kind it is; the kind says how the weight is
laid out there, PyTorch -> here:

    dense       (out, in) -> (in, out)
    conv        (out, in, h, w) -> (h, w, in, out)
    depthwise   (c, 1, h, w) -> (h, w, c)
    transposed  (in, out, h, w) -> (h, w, in, out), mirrored in h and w, since here a transposed
                convolution is a plain one on a map with zeros between the pixels
    graph       (1, types, c) -> (types, c)
    norm        (c,) stays
    volume      norm over whole maps, weight and bias (c, h, w) -> (h, w, c)
    table       one tensor without weight and bias, a leading axis of length 1 dropped

Biases become vectors. Dense layers next to a flattened map need no reordering: both sides
flatten channel by channel. Rows of the packed attention projection are query, key, value on both.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from xec_jax.errors import CheckpointError, ConfigError

Layout = Callable[[np.ndarray], np.ndarray]

LAYOUTS: dict[str, Layout] = {
    "dense": lambda w: w.T,
    "conv": lambda w: w.transpose(2, 3, 1, 0),
    "depthwise": lambda w: w.squeeze(1).transpose(1, 2, 0),
    "transposed": lambda w: w[:, :, ::-1, ::-1].transpose(2, 3, 0, 1),
    "graph": lambda w: w.squeeze(0),
    "norm": lambda w: w,
    "volume": lambda w: w.transpose(1, 2, 0),
    "bias": lambda b: b.reshape(-1),
}


class Rule(NamedTuple):
    """Where a layer goes: pattern of its name, path here with the pattern's groups, kind."""

    pattern: str
    path: str
    kind: str


def _under(pattern: str, path: str, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    return tuple(Rule(rf"{pattern}\.{r.pattern}", f"{path}/{r.path}", r.kind) for r in rules)


NEXT_BLOCK = (
    Rule(r"dwconv", "depthwise", "depthwise"),
    Rule(r"spatial_conv", "depthwise", "graph"),
    Rule(r"norm", "norm", "norm"),
    Rule(r"pwconv1", "expand", "dense"),
    Rule(r"pwconv2", "project", "dense"),
    Rule(r"grn\.(?P<leaf>gamma|beta)", "grn/{leaf}", "table"),
)
GRID_BACKBONE = (
    Rule(r"stem\.0", "stem", "conv"),
    Rule(r"stem\.1", "stem_norm", "norm"),
    Rule(r"downsample\.0", "down_norm", "norm"),
    Rule(r"downsample\.1", "down", "conv"),
    *_under(r"stage(?P<stage>\d)\.(?P<i>\d+)", "stage{stage}_block{i}", NEXT_BLOCK),
)
GRAPH_ENCODER = (
    Rule(r"stem\.0", "stem", "dense"),
    Rule(r"stem\.1", "stem_norm", "norm"),
    Rule(r"proj\.0", "norm", "norm"),
    Rule(r"proj\.1", "project", "dense"),
    *_under(r"layers\.(?P<i>\d+)", "block{i}", NEXT_BLOCK),
)
FUSION = _under(
    r"layers\.(?P<i>\d+)",
    "layer{i}",
    (
        Rule(r"self_attn\.in_proj", "attention/qkv", "dense"),
        Rule(r"self_attn\.out_proj", "attention/out", "dense"),
        Rule(r"norm1", "attention_norm", "norm"),
        Rule(r"linear1", "expand", "dense"),
        Rule(r"linear2", "project", "dense"),
        Rule(r"norm2", "norm", "norm"),
    ),
)
ENCODER = (
    Rule(r"pos_embed", "position", "table"),
    *_under(r"backbone", "grid_backbone", GRID_BACKBONE),
    *_under(r"hex_encoder", "graph_encoder", GRAPH_ENCODER),
    *_under(r"fusion_transformer", "fusion", FUSION),
)
GRID_DECODER = (
    Rule(r"linear", "project", "dense"),
    Rule(r"decoder\.0", "up0", "transposed"),
    Rule(r"decoder\.1", "norm0", "volume"),
    Rule(r"decoder\.3", "up1", "transposed"),
    Rule(r"decoder\.4", "norm1", "volume"),
    Rule(r"decoder\.6", "predict", "transposed"),
)
HEX_DECODER = (
    Rule(r"pos_embed", "position", "table"),
    Rule(r"proj_(?:in|global)", "stem", "dense"),  # its name in January 2026 comes second
    *_under(r"blocks\.(?P<i>\d+)", "block{i}", NEXT_BLOCK),
    Rule(r"head\.0", "norm", "norm"),
    Rule(r"head\.1", "predict", "dense"),
)
GRID_CONTEXT = (
    Rule(r"local_encoder\.0", "mix", "conv"),
    Rule(r"local_encoder\.1", "norm", "norm"),
    *_under(r"local_encoder\.3", "block0", NEXT_BLOCK),
    *_under(r"local_encoder\.4", "block1", NEXT_BLOCK),
)
NEIGHBOR_READOUT = (
    Rule(r"attn_weight", "readout/score", "dense"),
    Rule(r"masked_pred_head\.0", "readout/hidden", "dense"),
    Rule(r"masked_pred_head\.2", "readout/predict", "dense"),
)
GRID_HEAD = (
    Rule(r"latent_proj\.0", "token", "dense"),
    *(Rule(r.pattern, f"context/{r.path}", r.kind) for r in GRID_CONTEXT),
    Rule(r"global_decoder\.0", "spread", "transposed"),
    Rule(r"global_decoder\.1", "norm", "norm"),
    Rule(r"global_decoder\.3", "mix", "conv"),
    Rule(r"pred_head\.0", "hidden", "conv"),
    Rule(r"pred_head\.2", "predict", "conv"),
    *NEIGHBOR_READOUT,
)
FINE_GRID_HEAD = (
    Rule(r"latent_proj\.0", "token", "dense"),
    *(Rule(r.pattern, f"context/{r.path}", r.kind) for r in GRID_CONTEXT),
    Rule(r"attn_weight\.0", "score", "dense"),
    Rule(r"global_decoder\.0", "global0", "dense"),
    Rule(r"global_decoder\.2", "global1", "dense"),
    Rule(r"pred_head\.0", "hidden", "dense"),
    Rule(r"pred_head\.2", "predict", "dense"),
)
GRAPH_HEAD = (
    Rule(r"latent_proj\.0", "token", "dense"),
    Rule(r"input_proj", "stem", "dense"),
    *_under(r"gnn_layers\.(?P<i>\d+)", "block{i}", NEXT_BLOCK),
    Rule(r"global_decoder\.0", "global0", "dense"),
    Rule(r"global_decoder\.2", "global1", "dense"),
    Rule(r"pred_head\.0", "norm", "norm"),
    Rule(r"pred_head\.1", "hidden", "dense"),
    Rule(r"pred_head\.3", "predict", "dense"),
    *NEIGHBOR_READOUT,
)
CROSS_HEAD = (
    Rule(r"face_embedding\.weight", "face", "table"),
    Rule(r"neighbor_proj", "sensor", "dense"),
    Rule(r"query_proj_local", "sensor_query", "dense"),
    Rule(r"latent_proj", "token", "dense"),
    Rule(r"latent_face_proj", "token_face", "dense"),
    Rule(r"query_proj_global", "token_query", "dense"),
    Rule(r"k_proj", "key", "dense"),
    Rule(r"v_proj", "value", "dense"),
    Rule(r"global_out_proj", "token_out", "dense"),
    Rule(r"pred_mlp\.0", "norm", "norm"),
    Rule(r"pred_mlp\.1", "hidden", "dense"),
    Rule(r"pred_mlp\.3", "predict", "dense"),
)
TASK_HEAD = (
    Rule(r"0", "stem", "dense"),
    Rule(r"1", "norm", "norm"),
    Rule(r"4", "expand", "dense"),
    Rule(r"6", "predict", "dense"),
)
RULES: dict[str, tuple[Rule, ...]] = {
    "next_block": NEXT_BLOCK,
    "grid_backbone": GRID_BACKBONE,
    "graph_encoder": GRAPH_ENCODER,
    "fusion": FUSION,
    "grid_decoder": GRID_DECODER,
    "hex_decoder": HEX_DECODER,
    "encoder": ENCODER,
    "regressor": (
        *_under(r"backbone", "encoder", ENCODER),
        *_under(r"heads\.(?P<task>\w+)", "head_{task}", TASK_HEAD),
    ),
    "mae": (
        *_under(r"encoder", "encoder", ENCODER),
        *_under(r"dec_(?P<face>\w+)", "decoder_{face}", GRID_DECODER + HEX_DECODER),
    ),
    "inpainter": (
        *_under(r"encoder", "encoder", ENCODER),
        *_under(r"head_(?P<face>inner|us|ds)", "head_{face}", GRID_HEAD),
        *_under(r"head_outer_sensor", "head_outer", FINE_GRID_HEAD),
        *_under(r"head_outer", "head_outer_coarse", GRID_HEAD),
        *_under(r"head_(?P<face>top|bot)", "head_{face}", GRAPH_HEAD),
        *_under(r"cross_attn_head", "head_cross", CROSS_HEAD),
    ),
}
UNUSED = re.compile(
    r"(.*\.)?(\w+_hex_indices|hex_edge_index|adj_matrix)"  # index maps
    r"|channel_log_vars"  # belong to the autoencoder's loss
    r"|\w+_idx|head_\w+\.(edge_index|\w+_indices|\w+_counts|sensor_ids|valid_positions)"  # maps
    r"|cross_attn_head\.(sensor_positions|knn_indices|face_ids|pos_embed|token_face_ids_map)"
    r"|((encoder|backbone)\.)?head\..*"  # of old encoders, never used with other heads
)
"""Tensors left out: no parameters of the networks that are converted here."""


def from_torch(kind: str, tensors: Mapping[str, np.ndarray], config: ConfigDict) -> dict[str, Any]:
    """Converts a state of the predecessor into the parameters that a config's network expects.

    Runs that compare with the predecessor want its geometry too: `model.geometry="documented"` and
    `model.outer_mask="coarse"`.

    Args:
        kind: `mae` and `inpainter` give the parameters of the whole network, and so does
            `regressor` if the config is one of a regression; for other configs it gives those of
            the encoder, as `encoder` (a bare one) does. Heads of quantities that the config does
            not have are left out.
        tensors: Arrays by the predecessor's names, all of them.
        config: Resolved config of a task with an encoder, `configs/mae.py` for instance.

    Returns:
        Nested dict of float32 arrays.

    Raises:
        ConfigError: An unknown kind, a tensor that no rule knows, a parameter that no tensor
            fills, or a pair of different shapes.
    """
    import jax

    from xec_jax.tasks.base import example_batch, make_task

    task = make_task(config)
    template = jax.eval_shape(task.init, jax.random.PRNGKey(0), example_batch(task.spec, 2))
    if kind in ("mae", "inpainter") or (kind, config.task) == ("regressor", "regress"):
        return fill(kind, tensors, template)
    if kind == "regressor":
        return fill(kind, tensors, {"encoder": template["encoder"]})["encoder"]
    return fill(kind, tensors, template["encoder"] if kind == "encoder" else {})


def fill(
    kind: str, tensors: Mapping[str, np.ndarray], template: Mapping[str, Any]
) -> dict[str, Any]:
    """Fills a parameter tree; every tensor has to fit and every parameter to be filled.

    Args:
        kind: A network or a part of one, a key of `RULES`. Of a `regressor`, heads that the
            template does not have are left out.
        tensors: Arrays by the predecessor's names.
        template: The parameter tree to fill, any leaves with a shape; for instance that of
            `jax.eval_shape(net.init, key, x)["params"]`.

    Returns:
        Nested dict like `template`, float32 arrays.

    Raises:
        ConfigError: An unknown kind, a tensor that no rule knows, a parameter that no tensor
            fills, or a pair of different shapes.
    """
    if kind not in RULES:
        raise ConfigError(f"kind of checkpoint is {kind!r}", expected="one of " + ", ".join(RULES))
    wanted = {path: tuple(leaf.shape) for path, leaf in _leaves(template)}
    filled: dict[str, np.ndarray] = {}
    problems = []
    if "decoder_outer_coarse" in template:  # split mode: of the outer face, the coarse map
        tensors = {re.sub(r"^dec_outer\.", "dec_outer_coarse.", n): t for n, t in tensors.items()}
    left_out = set(unused(kind, tensors, template))
    for name, tensor in tensors.items():
        if name in left_out:
            continue
        path, lay_out = _find(name, RULES[kind])
        if path not in wanted:
            problems.append(f"unexpected {name} {np.shape(tensor)}")
            continue
        try:
            filled[path] = np.ascontiguousarray(lay_out(np.asarray(tensor)), np.float32)
            fits = filled[path].shape == wanted[path]
        except ValueError:  # another number of axes
            filled[path], fits = np.zeros(0), False
        if not fits:
            shapes = f"{np.shape(tensor)} does not become {wanted[path]}"
            problems.append(f"wrong shape {name}: {shapes} of {path}")
    problems += [f"missing {path} {wanted[path]}" for path in wanted if path not in filled]
    if problems:
        raise ConfigError(
            f"checkpoint of kind {kind} does not fit the network: {len(problems)} tensors\n    "
            + "\n    ".join(problems),
            remedy="set the model's widths, layers and outer mode to those of the checkpoint",
        )
    return _nested(filled)


def unused(kind: str, names: Iterable[str], template: Mapping[str, Any]) -> list[str]:
    """Returns the tensors that are left out: index maps, and heads that the template lacks.

    Args:
        kind: A key of `RULES`.
        names: The predecessor's names.
        template: The parameter tree that is filled.
    """

    def is_unused(name: str) -> bool:
        path = _find(name, RULES[kind])[0]
        if not path:
            return UNUSED.fullmatch(name) is not None
        head = path.split("/")[0]
        return kind == "regressor" and head.startswith("head_") and head not in template

    return [name for name in names if is_unused(name)]


def check_maps(tensors: Mapping[str, np.ndarray], config: ConfigDict) -> str:
    """Compares the index maps that inpainters carry with those that the config leads to.

    Args:
        tensors: Arrays by the predecessor's names; maps that are not there are not compared.
        config: Resolved config of an inpainting task.

    Returns:
        What differs and is used as ours; empty if nothing does.

    Raises:
        CheckpointError: Pixels of the outer sensors or positions of all sensors are others.
    """
    from xec_jax.geometry import GridFace
    from xec_jax.nets.neighbors import nearest_sensors
    from xec_jax.nets.positions import coordinate_code
    from xec_jax.tasks import inpaint

    net = inpaint.make_network(config)
    sensors, remedy = net.detector.sensors.positions, "set what the training had"
    pixels = tensors.get("head_outer_sensor.gather_indices")
    outer = net.detector.face("outer") if pixels is not None else None
    if pixels is not None and net.regions is not None and isinstance(outer, GridFace):
        table, exists = net.regions.pixels(outer)
        if table.shape != pixels.shape or (table != pixels)[exists].any():
            raise CheckpointError(
                "head_outer_sensor.gather_indices are not the pixels of the outer sensors for "
                f"model.outer_fine_pool={tuple(config.model.outer_fine_pool)} and "
                f"model.geometry={config.model.geometry}",
                expected="the pooling and the map of the outer face that the network was made for",
                remedy=f"{remedy}, for instance --config.model.outer_fine_pool='(1, 1)'",
            )
    found = []
    code = tensors.get("cross_attn_head.pos_embed")
    if code is not None:
        bands = code.shape[1] // 6
        away = np.abs(code - coordinate_code(sensors, bands)).reshape(-1, 6, bands)
        # Along the longest wave, of 200 cm, 0.03 is a centimetre; the shortest show 1 um.
        if away[..., 0].max() > 0.03:
            n_moved = (away[..., 0].max(1) > 0.03).sum()
            raise CheckpointError(
                f"cross_attn_head.pos_embed places {n_moved} sensors more than 1 cm from here",
                expected="the design positions, which are built in",
            )
        n_rows = (away.max((1, 2)) > 0.03).sum()
        found += [f"codes of {n_rows} positions"] if n_rows else []
    near = tensors.get("cross_attn_head.knn_indices")
    if near is not None:
        ours = nearest_sensors(net.detector, near.shape[1])
        n_rows = (np.sort(near, 1) != np.sort(ours, 1)).any(1).sum()
        found += [f"neighbors of {n_rows} sensors"] if n_rows else []
    return " and ".join(found)


def _find(name: str, rules: tuple[Rule, ...]) -> tuple[str, Layout]:
    """Returns the path of a tensor here and its layout; an empty path if no rule matches."""
    for rule in rules:
        is_table = rule.kind == "table"
        leaf = "" if is_table else r"[._](?P<tensor>weight|bias)"
        match = re.fullmatch(rule.pattern + leaf, name)
        if match is None:
            continue
        path = rule.path.format(**match.groupdict())
        if is_table:
            return path, lambda table: table.squeeze(0) if table.ndim == 3 else table
        if match["tensor"] == "bias":
            return f"{path}/bias", LAYOUTS["volume" if rule.kind == "volume" else "bias"]
        weight = "scale" if rule.kind in ("norm", "volume") else "kernel"
        return f"{path}/{weight}", LAYOUTS[rule.kind]
    return "", LAYOUTS["norm"]


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value


def _nested(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree
