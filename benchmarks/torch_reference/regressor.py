"""Heads on the flattened tokens, and the loss over several targets."""

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_reference.encoder import XECEncoder

OUTPUTS = {"angle": 2, "energy": 1, "timing": 1, "uvwFI": 3, "angleVec": 3, "n_gamma": 5}


class XECRegressor(nn.Module):
    """Encoder and one head per task.

    Args:
        encoder: Any.
        tasks: Which heads to make, keys of `OUTPUTS`.
        hidden: Width of the heads.
        doubled: Tasks with a log-variance behind each output.
    """

    def __init__(
        self,
        encoder: XECEncoder,
        tasks: Iterable[str] = OUTPUTS,
        hidden: int = 256,
        doubled: Iterable[str] = (),
    ) -> None:
        super().__init__()
        self.backbone = encoder
        width, doubled = encoder.pos_embed.numel(), tuple(doubled)
        outputs = {task: OUTPUTS[task] * (1 + (task in doubled)) for task in tasks}
        self.heads = nn.ModuleDict({t: _head(width, hidden, n) for t, n in outputs.items()})

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> dict[str, Tensor]:
        """Maps (b, 4760, 2) to {task: (b, outputs)}."""
        flat = self.backbone(x, hidden).flatten(1)
        return {task: head(flat) for task, head in self.heads.items()}


def _head(width: int, hidden: int, outputs: int) -> nn.Sequential:
    first = (nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Dropout(0.2))
    return nn.Sequential(*first, nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, outputs))


def pointwise(name: str, prediction: Tensor, target: Tensor, beta: float = 1.0) -> Tensor:
    """Loss of each element; for `gaussian_nll` the prediction holds means, then log-variances."""
    if name == "gaussian_nll":
        mean, log_variance = prediction.chunk(2, -1)
        nll = 0.5 * (log_variance + (target - mean) ** 2 * torch.exp(-log_variance))
        return torch.exp(beta * log_variance).detach() * nll
    if name == "cosine":
        return 1 - (direction(prediction) * direction(target)).sum(-1, keepdim=True)
    if name.startswith("relative_"):
        size = target.abs().clamp_min(1e-3)
        size = size**2 if name == "relative_mse" else size
        return pointwise(name.removeprefix("relative_"), prediction, target, beta) / size
    match name:
        case "smooth_l1" | "huber":
            return F.smooth_l1_loss(prediction, target, reduction="none", beta=beta)
        case "l1":
            return (prediction - target).abs()
        case "mse" | "l2":
            return (prediction - target) ** 2
    raise ValueError(name)


def direction(angles: Tensor) -> Tensor:
    """Unit vectors (..., 3) of angles (theta, phi) in degrees (..., 2)."""
    theta, phi = torch.deg2rad(angles).unbind(-1)
    sine = torch.sin(theta)
    return torch.stack([-sine * torch.cos(phi), sine * torch.sin(phi), torch.cos(theta)], -1)


def task_loss(
    predictions: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    losses: Mapping[str, tuple[str, float, float]],
    weight: Tensor | None = None,
    log_variances: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Sums the mean losses of the tasks.

    Args:
        predictions: {task: (b, outputs)}.
        targets: {task: (b, outputs)}.
        losses: {task: (name of the loss, beta, weight of the task)}.
        weight: (b,) weights of the events in the batch mean.
        log_variances: {task: s}, scalars; with them a task counts exp(-s) L / 2 + s / 2.
    """
    total = torch.zeros(())
    for task, (name, beta, task_weight) in losses.items():
        per_event = pointwise(name, predictions[task], targets[task], beta).mean(-1)
        loss = (per_event if weight is None else per_event * weight).mean()
        if log_variances is not None:
            s = log_variances[task]
            loss = 0.5 * torch.exp(-s) * loss + 0.5 * s
        total = total + task_weight * loss
    return total
