"""What happens to colour, decided per task.

Infrared-visible and medical fusion work on luminance. The colour of a visible image, or of a PET map, belongs to
one source only: mixing it with a grey source in RGB would wash it out, so chroma is kept and luminance is fused.

Exposures are fused in luminance too. An exposure that is too short or too long has lost its chroma, so chroma is taken
where it is strong and well exposed. Weights made for luminance would make it pale.

Multi-focus fusion works on all three channels, since a defocused source has blurred its chroma as well.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

LUMINANCE_TASKS = ("ivf", "mif", "mef")  # fuse luminance and keep chroma; mff fuses colour
EXPOSED = 0.2  # standard deviation of well-exposedness around mid-grey: Mertens, Kautz and Van Reeth, 2007

_RGB_TO_YCBCR = torch.tensor(
    [[0.299, 0.587, 0.114], [-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]]
)


def luminance(images: Tensor) -> Tensor:
    """BT.601 luminance of grey or RGB images, channels at axis -3."""
    if images.shape[-3] == 1:
        return images
    return torch.einsum("j,...jhw->...hw", _RGB_TO_YCBCR[0].to(images), images).unsqueeze(-3)


def rgb_to_ycbcr(rgb: Tensor) -> Tensor:
    """Full-range BT.601 luminance in [0, 1] and chroma centred on zero, channels at axis -3 (ITU-T T.871, JPEG)."""
    return torch.einsum("ij,...jhw->...ihw", _RGB_TO_YCBCR.to(rgb), rgb)


def ycbcr_to_rgb(ycbcr: Tensor) -> Tensor:
    """Inverse of :func:`rgb_to_ycbcr`, not clipped."""
    return torch.einsum("ij,...jhw->...ihw", torch.linalg.inv(_RGB_TO_YCBCR.double()).to(ycbcr), ycbcr)


def split(
    images: Sequence[Tensor], task: str, valid: Tensor | None = None, into: Callable[..., Tensor] = torch.empty
) -> tuple[Tensor, Tensor | None]:
    """The channels that are fused, and the chroma that waits beside them.

    Args:
        images: K images of one size, each (1, h, w) grey or (3, h, w) RGB, in [0, 1].
        task: ``ivf``, ``mif``, ``mef`` or ``mff``.
        valid: Pixels that show the scene, (k, 1, h, w); the chroma of others does not count. None = all.
        into: Gives room for sources of a shape.

    Returns:
        Sources (k, c, h, w), and chroma (2, h, w) or None. Chroma is the mean over the sources with their saturation
        times their well-exposedness, exp(-(Y - 0.5)² / 2 · 0.2²), as the weight: neither a grey source nor a
        clipped one washes out a coloured one.
    """
    channels, size = max(len(image) for image in images), images[0].shape[1:]
    coloured = channels == 3 and task in LUMINANCE_TASKS
    sources = into((len(images), 1 if coloured else channels, *size))
    tint = total = torch.zeros(())
    for k, image in enumerate(images):  # one at a time: a tall stack has no room for all
        if not coloured:
            sources[k] = image
            continue
        ycbcr = rgb_to_ycbcr(image.expand(3, -1, -1))
        sources[k], chroma = ycbcr[:1], ycbcr[1:]
        exposed = (-(ycbcr[:1] - 0.5).square() / (2 * EXPOSED**2)).exp()
        weight = exposed * chroma.norm(dim=0, keepdim=True) + 1e-12
        weight = weight if valid is None else weight * valid[k] + 1e-12
        tint, total = tint + weight * chroma, total + weight
    return sources, tint / total if coloured else None


def merge(fused: Tensor, chroma: Tensor | None) -> Tensor:
    """The picture: a fused luminance (1, h, w) gets its chroma back, anything else stays as it is.

    Where a colour would leave [0, 1] it is desaturated just as far as needed: luminance stays as fused.
    """
    if chroma is None:
        return fused
    tint = ycbcr_to_rgb(torch.cat([torch.zeros_like(fused), chroma]))
    room = torch.where(tint > 0, 1 - fused, fused) / tint.abs().clamp(min=1e-6)
    return fused + tint * room.amin(0, keepdim=True).clamp(max=1)


def to_channels(images: Tensor, channels: int) -> Tensor:
    """Repeats grey to colour or averages colour to grey, channels at axis -3."""
    if images.shape[-3] == channels:
        return images
    if images.shape[-3] == 1:
        return images.expand(*images.shape[:-3], channels, *images.shape[-2:])
    if channels == 1:
        return images.mean(-3, keepdim=True)
    raise ValueError(f"cannot turn {images.shape[-3]} channels into {channels}")


def to_pixels(image: Tensor, depth: int = 8) -> np.ndarray:
    """An image (1 or 3, h, w) in [0, 1] as rounded 8- or 16-bit values (h, w, 1 or 3)."""
    top, kind = (65535, np.uint16) if depth > 8 else (255, np.uint8)
    return (image.detach().clamp(0, 1) * top).round().permute(1, 2, 0).cpu().numpy().astype(kind)
