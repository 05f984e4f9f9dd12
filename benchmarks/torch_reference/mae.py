"""The masked autoencoder: which sensors to hide, decoders, the loss over hidden cells."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_reference.blocks import HexNeXtBlock
from torch_reference.encoder import XECEncoder
from torch_reference.regressor import pointwise

FACES = ("inner", "us", "ds", "outer", "top", "bot")


class FaceDecoder(nn.Module):
    """A token (b, dim) to an image (b, out, rows, columns)."""

    def __init__(self, dim: int, width: int, shape: tuple[int, int], out: int) -> None:
        super().__init__()
        self.shape = shape
        self.linear = nn.Linear(dim, 2 * width * 16)
        half = width // 2
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(2 * width, width, 3, 2, 1, 1),
            nn.LayerNorm((width, 8, 8)),
            nn.GELU(),
            nn.ConvTranspose2d(width, half, 3, 2, 1, 1),
            nn.LayerNorm((half, 16, 16)),
            nn.GELU(),
            nn.ConvTranspose2d(half, out, 3, 1, 1),
        )

    def forward(self, token: Tensor) -> Tensor:
        """Draws the face."""
        image = self.decoder(self.linear(token).unflatten(1, (-1, 4, 4)))
        return F.interpolate(image, self.shape, mode="bilinear", align_corners=False)


class HexDecoder(nn.Module):
    """A token (b, dim) to the nodes of a hexagonal face (b, out, 73)."""

    def __init__(self, dim: int, width: int, edges: Tensor, out: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.empty(1, 73, width))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.register_buffer("adj_matrix", edges.clone())
        self.proj_in = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(HexNeXtBlock(width) for _ in range(2))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, out))

    def forward(self, token: Tensor) -> Tensor:
        """Draws the face."""
        x = self.proj_in(token)[:, None] + self.pos_embed
        for block in self.blocks:
            x = block(x, self.adj_matrix)
        return self.head(x).mT


class XECMAE(nn.Module):
    """Encoder and one decoder per face.

    Args:
        encoder: Any; in split mode the outer decoder draws the coarse map.
        width: Width of the decoders.
        hex_width: That of the hexagonal ones; `width` if None.
        out: Channels to predict, 2 or the photons alone.
    """

    def __init__(
        self, encoder: XECEncoder, width: int = 128, hex_width: int | None = None, out: int = 2
    ) -> None:
        super().__init__()
        self.channel_log_vars = nn.Parameter(torch.zeros(2))
        self.encoder = encoder
        dim, (rows, columns) = encoder.pos_embed.shape[-1], encoder.pool
        outer = (9, 24) if encoder.is_split else (45 // rows, 72 // columns)
        shapes = {"inner": (93, 44), "us": (24, 6), "ds": (24, 6), "outer": outer}
        for face, shape in shapes.items():
            self.add_module(f"dec_{face}", FaceDecoder(dim, width, shape, out))
        for face in ("top", "bot"):
            decoder = HexDecoder(dim, hex_width or width, encoder.hex_edge_index, out)
            self.add_module(f"dec_{face}", decoder)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> dict[str, Tensor]:
        """Reconstructs from (b, 4760, 2) whose hidden sensors carry sentinels already.

        Returns:
            {face: (b, out, h, w) or (b, out, 73)}.
        """
        names = [name.replace("outer_coarse", "outer") for name in self.encoder.tokens]
        tokens = dict(zip(names, self.encoder(x, hidden).unbind(1), strict=True))
        return {face: self.get_submodule(f"dec_{face}")(tokens[face]) for face in FACES}


def choose_hidden(
    invalid: Tensor, noise: Tensor, ratio: float, favored: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """Hides a share of the valid sensors of each event: those with the smallest noise.

    Args:
        invalid: bool (b, 4760), never hidden.
        noise: (b, 4760), uniform in [0, 1).
        ratio: Share of the valid sensors.
        favored: bool (b, 4760), sensors whose noise is divided by `scale`.
        scale: Above 1 hides the favored ones more often.
    """
    if favored is not None:
        noise = torch.where(favored, noise / scale, noise)
    noise = noise.masked_fill(invalid, torch.inf)
    count = ((~invalid).sum(1).float() * ratio).long()
    rank = noise.argsort(dim=1, stable=True).argsort(1)
    return (rank < count[:, None]) & ~invalid


def fill_hidden(x: Tensor, hidden: Tensor, sentinels: tuple[float, float]) -> Tensor:
    """Writes the sentinels of photons and time over hidden sensors."""
    return torch.where(hidden[..., None], x.new_tensor(sentinels), x)


def mae_loss(
    model: XECMAE,
    faces: dict[str, Tensor],
    x: Tensor,
    hidden: Tensor,
    photons: Tensor,
    timed: Tensor | None = None,
    *,
    loss: tuple[str, float] = ("smooth_l1", 1.0),
    weights: tuple[float, float] = (1.0, 1.0),
    threshold: float = 100.0,
    by_photons: bool = True,
) -> Tensor:
    """Sums the losses of all faces and channels, each a mean over the hidden cells of a batch.

    Args:
        model: For its geometry.
        faces: What it reconstructed.
        x: (b, 4760, 2), the events before hiding.
        hidden: bool (b, 4760).
        photons: (b, 4760), raw counts, for the weights of times.
        timed: bool (b, 4760), sensors whose time counts; those above the threshold if None.
        loss: Name and beta.
        weights: Of photons and time.
        threshold: Photons below which times do not count.
        by_photons: Weigh times by the root of the photons, at least that of the threshold.
    """
    encoder = model.encoder
    targets, masks = encoder.faces(x), encoder.masks(hidden.to(x.dtype)[..., None])
    timed = photons > threshold if timed is None else timed
    bright = encoder.masks(timed.to(x.dtype)[..., None])
    counts = encoder.means(photons[..., None].to(x.dtype))
    total = torch.zeros((), dtype=x.dtype)
    for face in FACES:
        name = "outer_coarse" if face == "outer" and encoder.is_split else face
        target, mask = targets[name], masks[name][:, 0]
        error = pointwise(loss[0], faces[face], target[:, : faces[face].shape[1]], loss[1])
        total = total + weights[0] * (mask * error[:, 0]).sum() / (mask.sum() + 1e-8)
        if error.shape[1] == 2:
            mask = mask * bright[name][:, 0]
            weight = torch.ones_like(mask)
            if by_photons:
                weight = counts[name][:, 0].clamp_min(threshold).sqrt()
                weight = weight / ((mask * weight).sum() / (mask.sum() + 1e-8)).clamp_min(1e-8)
            mean = (mask * weight * error[:, 1]).sum() / (mask.sum() + 1e-8)
            total = total + weights[1] * mean
    return total
