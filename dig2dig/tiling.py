"""Any size in, same size out."""

import torch
from torch import Tensor


def pad(images: Tensor, multiple: int) -> Tensor:
    """Extends the last two axes by reflection until both are divisible by ``multiple``, at the bottom and right.

    Images may be smaller than what is added: the reflection is then reflected again.
    """
    height, width = images.shape[-2:]
    rows = _reflected(height, -height % multiple, images.device)
    columns = _reflected(width, -width % multiple, images.device)
    return images[..., rows, :][..., columns]


def _reflected(size: int, extra: int, device: torch.device) -> Tensor:
    period = max(2 * (size - 1), 1)
    position = torch.arange(size + extra, device=device) % period
    return torch.minimum(position, period - position) if size > 1 else torch.zeros_like(position)


def crop(images: Tensor, height: int, width: int) -> Tensor:
    """Takes back what ``pad`` added."""
    return images[..., :height, :width]
