"""Pictures small enough for a page, as data URIs."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from dig2dig.color import to_pixels
from dig2dig.fusion.plan import Snapshot
from dig2dig.fusion.resample import resize
from dig2dig.report.views import PairView, Panel, StepView

BUDGET = 700_000  # characters of all pictures of one pair: twenty pairs stay below 15 MB
Shown = tuple[Panel, Tensor | None]  # a panel that has no thumbnail yet, and its picture


@dataclass(frozen=True)
class Detail:
    """How much of a pair is kept: longest sides in pixels, and the quality of JPEG, 0 to 100."""

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
    """An image (1 or 3, h, w) in [0, 1], no larger than ``side`` pixels, as a JPEG, which is made fast, in a URI."""
    pixels = to_pixels(resize(image.detach().float(), side).nan_to_num(0.0))
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def grey_map(values: Tensor, low: float, high: float, side: int, power: float = 1.0) -> str:
    """A map (h, w) as a grey picture: black at ``low``, white at ``high``, ``share ** power`` between them."""
    scaled = (resize(values[None].float(), side) - low) / max(high - low, 1e-12)
    return data_uri(scaled.clamp(0, 1) ** power, side, 85)


def step_view(step: Snapshot, detail: Detail) -> StepView:
    """One step of one image, encoded."""
    weight, gain = step.weight[0, :, 0], step.gain[0, :, 0].nan_to_num(0.0)
    low, high = float(gain.amin()), float(gain.amax())  # one scale for all sources of a step
    weights = [grey_map(one, 0.0, 1.0, detail.map) for one in weight]
    gains = [grey_map(one, low, high, detail.map, 0.5) for one in gain]
    guided = data_uri(step.guided[0], detail.step, detail.quality)
    estimate = "" if step.x0_hat is None else data_uri(step.x0_hat[0], detail.step, detail.quality)
    return StepView(step.index, int(step.t[0]), step.sigma[0], weights, gains, low, high, guided, estimate)


def illustrated(card: PairView, pictures: Sequence[Shown], steps: Sequence[Snapshot] = ()) -> PairView:
    """The card with its panels and steps, as detailed as the budget allows, or else as little as there is."""
    for detail in DETAILS:
        panels = [
            panel if image is None else replace(panel, image=data_uri(image, detail.picture, detail.quality))
            for panel, image in pictures
        ]
        card = replace(card, panels=panels, views=[step_view(step, detail) for step in steps])
        if card.characters <= BUDGET:
            break
    return card


def evenly(count: int, most: int) -> list[int]:
    """At most so many of the first ``count`` numbers, spread evenly, with the first and the last."""
    return sorted(set(torch.linspace(0, count - 1, min(count, most)).round().int().tolist())) if count else []
