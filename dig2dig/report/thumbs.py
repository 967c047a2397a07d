"""Pictures small enough for a page, as data URIs."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from dig2dig.fusion.resample import resize
from dig2dig.report.views import PairView
from dig2dig.tracking.panels import to_pixels

BUDGET = 700_000
"""Characters of all pictures of one pair: twenty pairs stay below 15 MB."""


@dataclass(frozen=True)
class Detail:
    """How much of a pair is kept: longest sides in pixels, and the quality of WebP, 0 to 100."""

    picture: int
    step: int
    map: int
    quality: int


DETAILS = (
    Detail(1024, 448, 320, 86),
    Detail(800, 384, 256, 80),
    Detail(640, 320, 224, 72),
    Detail(448, 224, 160, 64),
    Detail(256, 128, 96, 50),
    Detail(96, 64, 48, 30),
)
"""From much to little; the last one of noise in twenty panels still fits the budget."""


def small(image: Tensor | None) -> Tensor | None:
    """As much of a picture as any page shows."""
    return None if image is None else resize(image.float(), DETAILS[0].picture)


def data_uri(image: Tensor, side: int, quality: int) -> str:
    """An image (1 or 3, h, w) in [0, 1], no larger than ``side`` pixels, as a WebP picture in a URI."""
    pixels = to_pixels(resize(image.detach().float(), side).nan_to_num(0.0))
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(
        buffer, "WEBP", quality=quality, method=2, exact=False
    )
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def grey_map(values: Tensor, low: float, high: float, side: int, power: float = 1.0) -> str:
    """A map (h, w) as a grey picture: black at ``low``, white at ``high``, ``share ** power`` between them."""
    scaled = (resize(values[None].float(), side) - low) / max(high - low, 1e-12)
    return data_uri(scaled.clamp(0, 1) ** power, side, 90)


def within_budget(make: Callable[[Detail], PairView], budget: int = BUDGET) -> PairView:
    """The most detailed card that is no longer than the budget, or else the least detailed one."""
    card = make(DETAILS[0])
    for detail in DETAILS[1:]:
        if card.characters <= budget:
            break
        card = make(detail)
    return card


def evenly(count: int, most: int) -> list[int]:
    """At most so many of the first ``count`` numbers, spread evenly, with the first and the last."""
    return sorted(set(torch.linspace(0, count - 1, min(count, most)).round().int().tolist())) if count else []
