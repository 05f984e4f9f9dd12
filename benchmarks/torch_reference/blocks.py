"""Building blocks, channels first on images, channels last on graphs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each pixel of (b, c, h, w)."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class GRN(nn.Module):
    """Global response normalization of (b, ..., c) over all positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(width))
        self.beta = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes."""
        norm = torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim - 1)), keepdim=True)
        relative = norm / (norm.mean(-1, keepdim=True) + 1e-6)
        return self.gamma * (x * relative) + self.beta + x


class NextBlock(nn.Module):
    """What follows the depthwise convolution in ConvNeXt V2 blocks, on (b, ..., c)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.grn = GRN(4 * width)
        self.pwconv2 = nn.Linear(4 * width, width)

    def branch(self, x: Tensor) -> Tensor:
        """Mixes channels."""
        return self.pwconv2(self.grn(F.gelu(self.pwconv1(self.norm(x)))))


class ConvNeXtBlock(NextBlock):
    """On (b, c, h, w); a mask (b, 1, h, w) is 1 where the input is hidden."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mixes neighbours, then channels."""
        shown = 1.0 if mask is None else 1 - mask
        y = self.dwconv(x) * shown
        return x * shown + self.branch(y.movedim(1, -1)).movedim(-1, 1)


class HexConv(nn.Module):
    """Sums what arrives at each node over its edges, weighted per channel by the edge's type."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.02 * torch.randn(1, 7, width))
        self.bias = nn.Parameter(torch.zeros(1, 1, width))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Passes one message per edge (3, e) between nodes (b, n, c)."""
        source, target, kind = edges
        messages = x[:, source] * self.weight[:, kind]
        return torch.zeros_like(x).index_add(1, target, messages) + self.bias


class HexNeXtBlock(NextBlock):
    """On nodes (b, n, c); a mask (b, n, 1) is 1 where the input is hidden."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.spatial_conv = HexConv(width)

    def forward(self, x: Tensor, edges: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mixes neighbours, then channels."""
        shown = 1.0 if mask is None else 1 - mask
        return x * shown + self.branch(self.spatial_conv(x, edges) * shown)
