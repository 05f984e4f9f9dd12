"""From 4760 sensors to one token per face: convolutions, graph convolutions, a transformer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_reference.blocks import ChannelNorm, ConvNeXtBlock, HexNeXtBlock
from torch_reference.geometry import make_geometry

COARSE_CELL, CENTRE_CELL = (5, 3), (3, 2)  # fine cells of a sensor, rows and columns
CENTRE_ROWS, CENTRE_COLUMNS = slice(15, 30), slice(30, 42)  # of the fine grid


class FaceBackbone(nn.Module):
    """Any rectangular face (b, 2, h, w) to a token; mask (b, 1, h, w), 1 where hidden."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, width, 4, padding=1), ChannelNorm(width))
        self.stage1 = nn.ModuleList(ConvNeXtBlock(width) for _ in range(2))
        down = nn.Conv2d(width, 2 * width, 2, stride=2)
        self.downsample = nn.Sequential(ChannelNorm(width), down)
        self.stage2 = nn.ModuleList(ConvNeXtBlock(2 * width) for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns (b, 32 width)."""
        x = self.stem(x if mask is None else x * (1 - mask))
        x = self._stage(self.stage1, x, mask)
        x = self._stage(self.stage2, self.downsample(x), mask)
        return F.interpolate(x, (4, 4), mode="bilinear", align_corners=False).flatten(1)

    @staticmethod
    def _stage(blocks: nn.ModuleList, x: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None:
            mask = F.interpolate(mask, x.shape[2:], mode="nearest")
        for block in blocks:
            x = block(x, mask)
        return x


class HexEncoder(nn.Module):
    """Nodes of a hexagonal face (b, 73, 2) to a token; mask (b, 73, 1), 1 where hidden."""

    def __init__(self, dim: int, width: int = 96) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(2, width), nn.LayerNorm(width), nn.GELU())
        self.layers = nn.ModuleList(HexNeXtBlock(width) for _ in range(4))
        self.proj = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim))

    def forward(self, x: Tensor, edges: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns (b, dim)."""
        x = self.stem(x if mask is None else x * (1 - mask))
        for layer in self.layers:
            x = layer(x, edges, mask)
        return self.proj(x.mean(1))


class XECEncoder(nn.Module):
    """Sensors to fused tokens.

    Args:
        geometry: `documented` or `physical`.
        outer_mode: `finegrid`, or `split` for the coarse map and its centre as two faces.
        pool: Kernel and stride (rows, columns) on the fine grid, or None.
        dim: Width of a token.
        n_layers: Transformer layers.
        n_heads: Attention heads.
        sentinel: Value of invalid times, left out of pooled means.
        outer_mask: Which sensors hide cells of the fine grid: `coarse`, the coarse ones
            alone, or `painted`, whichever a cell shows.
    """

    def __init__(
        self,
        geometry: str = "documented",
        outer_mode: str = "finegrid",
        pool: tuple[int, int] | None = None,
        *,
        dim: int = 1024,
        n_layers: int = 2,
        n_heads: int = 8,
        sentinel: float = -1.0,
        outer_mask: str = "coarse",
    ) -> None:
        super().__init__()
        self.geometry = g = make_geometry(geometry)
        self.is_split, self.pool = outer_mode == "split", pool or (1, 1)
        self.sentinel, self.paints_mask = sentinel, outer_mask == "painted"
        outer = ("outer_coarse", "outer_center")
        grids = ("inner", *outer, "us", "ds") if self.is_split else ("inner", "us", "ds", "outer")
        self.tokens = (*grids, "top", "bot")
        self.pos_embed = nn.Parameter(torch.empty(1, len(self.tokens), dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.register_buffer("top_hex_indices", torch.tensor(g.top))
        self.register_buffer("bottom_hex_indices", torch.tensor(g.bottom))
        self.register_buffer("hex_edge_index", torch.tensor(g.edges))
        self.backbone = FaceBackbone(dim // 32)
        self.hex_encoder = HexEncoder(dim)
        layer = nn.TransformerEncoderLayer(
            dim, n_heads, 4 * dim, dropout=0.1, activation="gelu", batch_first=True
        )
        self.fusion_transformer = nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Encodes events.

        Args:
            x: (b, 4760, 2), normalized photons and times.
            hidden: bool (b, 4760), sensors that must not be seen.

        Returns:
            (b, t, d).
        """
        faces = self.faces(x)
        masks = {} if hidden is None else self.masks(hidden.to(x.dtype)[..., None])
        tokens = []
        for name in self.tokens:
            if name in ("top", "bot"):
                nodes, edges = faces[name].mT, self.hex_edge_index
                mask = masks[name].mT if masks else None
                tokens.append(self.hex_encoder(nodes, edges, mask))
            else:
                tokens.append(self.backbone(faces[name], masks.get(name)))
        return self.fusion_transformer(torch.stack(tokens, 1) + self.pos_embed)

    def faces(self, x: Tensor) -> dict[str, Tensor]:
        """Shows (b, 4760, c) on every face: (b, c, h, w), or (b, c, 73)."""
        g = self.geometry
        maps = {"inner": g.inner, "us": g.us, "ds": g.ds, "top": g.top, "bot": g.bottom}
        maps |= {"outer_coarse": g.coarse, "outer_center": g.centre}
        faces = {name: x[:, torch.tensor(ids)].movedim(-1, 1) for name, ids in maps.items()}
        coarse, centre = faces["outer_coarse"], faces["outer_center"]
        if not self.is_split and x.shape[-1] == 2:
            share = [x.new_tensor([k, 1.0]).view(2, 1, 1) for k in (1 / 15, 1 / 6)]
            fine = paint(coarse * share[0], centre * share[1])
            npho, time = fine[:, :1], fine[:, 1:]
            is_valid = (time != self.sentinel).to(x.dtype)
            n_valid = F.avg_pool2d(is_valid, self.pool)
            time = F.avg_pool2d(time * is_valid, self.pool) / n_valid.clamp_min(1e-9)
            time = torch.where(n_valid > 0, time, self.sentinel)
            faces["outer"] = torch.cat([F.avg_pool2d(npho, self.pool), time], 1)
        return faces

    def masks(self, mask: Tensor) -> dict[str, Tensor]:
        """Shows a mask (b, 4760, 1) of 0 and 1 on every face; one marked cell marks a pixel."""
        faces = self.faces(mask)
        return faces | {"outer": F.max_pool2d(self._deciding(faces), self.pool)}

    def means(self, values: Tensor) -> dict[str, Tensor]:
        """Shows (b, 4760, 1) on every face, averaged over the cells of a pixel."""
        faces = self.faces(values)
        return faces | {"outer": F.avg_pool2d(self._deciding(faces), self.pool)}

    def _deciding(self, faces: dict[str, Tensor]) -> Tensor:
        """Values on the fine grid of those sensors that decide for its cells."""
        return paint(faces["outer_coarse"], faces["outer_center"] if self.paints_mask else None)


def paint(coarse: Tensor, centre: Tensor | None) -> Tensor:
    """Repeats the coarse map (b, c, 9, 24) to 45 x 72 cells, lays the centre's cells over it."""
    fine = _repeat(coarse, COARSE_CELL)
    if centre is not None:
        fine[:, :, CENTRE_ROWS, CENTRE_COLUMNS] = _repeat(centre, CENTRE_CELL)
    return fine


def _repeat(x: Tensor, cell: tuple[int, int]) -> Tensor:
    return x.repeat_interleave(cell[0], 2).repeat_interleave(cell[1], 3)
