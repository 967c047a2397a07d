"""What learned weights are trained for: sums of named terms, each of which is small where the picture is good.

A term compares the fused image with its sources, and gives one value for the batch. Most are a metric of
:mod:`dig2dig.metrics` on grey levels that are not rounded.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cv2
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from dig2dig.color import luminance, rgb_to_ycbcr
from dig2dig.errors import UserError
from dig2dig.metrics import gradient, perception, structure, tone
from dig2dig.shapes import Image, Sources


@dataclass(frozen=True)
class View:
    """What a term may use: images in [0, 1], the fused one as it is before it is clipped."""

    fused: Image  # (b, c, h, w)
    sources: Sources  # (b, k, c, h, w)
    truth: Image | None = None  # the ideal image, where it is known
    mask: Tensor | None = None  # targets that are marked in one of the sources, (b, 1, h, w) in {0, 1}

    @property
    def levels(self) -> tuple[Tensor, Tensor]:
        """Luminance in grey levels that are not rounded, (b, 1, h, w) and (b, k, h, w)."""
        return 255 * luminance(self.fused).clamp(0, 1), 255 * luminance(self.sources)[:, :, 0]


def mef_ssim(view: View) -> Tensor:
    """Minus MEF-SSIM."""
    place = "cpu" if view.fused.device.type == "mps" else view.fused.device  # which has no float64
    fused, sources = (levels.to(place) for levels in view.levels)
    return -structure.exposure_fusion_similarity(fused.double(), sources.double()).float().mean()


def target(view: View) -> Tensor:
    """Mean distance to the brightest source at each pixel."""
    return (view.fused - view.sources.amax(1)).abs().mean()


def mask(view: View) -> Tensor:
    """Share of the contrast of marked targets that is lost, see :func:`tone.targets`; 0 where none are marked."""
    if view.mask is None:
        return view.fused.new_zeros(())
    fused, sources = view.levels
    inside, ring = tone.inside_and_ring(view.mask)
    ours, theirs = tone.target_contrast(fused, inside, ring), tone.target_contrast(sources, inside, ring).amax(1)
    seen = (theirs >= tone.LEAST_CONTRAST) & (inside.sum((1, 2, 3)) >= tone.LEAST_AREA)
    return ((1 - ours[:, 0] / theirs.clamp(min=tone.LEAST_CONTRAST)).clamp(min=0) * seen).mean()


def salient(view: View) -> Tensor:
    """Local brightness of the most salient source that is lost: targets keep their contrast without any label.

    Local brightness is the mean of 4×4 pixels less that of 52×52 around it, where positive.
    """
    small = [avg_pool2d(levels / 255, 4) for levels in view.levels]
    local = [one - avg_pool2d(one, 13, 1, 6, count_include_pad=False) for one in small]
    wanted = local[1].amax(1, keepdim=True).clamp(min=0)
    return ((wanted - local[0]).clamp(min=0) * wanted).sum() / wanted.square().sum().clamp(min=1e-6)


def sharp(view: View) -> Tensor:
    """Minus the root mean square of the gradients, in multiples of that of the steepest source at each pixel."""
    ours, theirs = view.fused.new_zeros(len(view.fused)), view.fused.new_zeros(len(view.fused))
    for axis in (-1, -2):
        ours = ours + view.fused.diff(dim=axis).square().flatten(1).mean(1)
        theirs = theirs + view.sources.diff(dim=axis).square().amax(1).flatten(1).mean(1)
    return -(ours / theirs.clamp(min=1e-9) + 1e-6).sqrt().clamp(max=1).mean()


def contrast(view: View) -> Tensor:
    """Minus the standard deviation."""
    return -view.fused.flatten(1).std(1).mean()


def bounds(view: View) -> Tensor:
    """How far the image, halved up to five times, leaves the range of the sources there: halos."""
    total, fused, sources = view.fused.new_zeros(()), view.fused, view.sources
    for _ in range(5):
        if min(fused.shape[-2:]) < 2:
            break
        fused, sources = avg_pool2d(fused, 2), avg_pool2d(sources.flatten(0, 1), 2).unflatten(0, sources.shape[:2])
        over, under = (fused - sources.amax(1)).clamp(min=0), (sources.amin(1) - fused).clamp(min=0)
        total = total + (over + under).mean()
    return total


def overflow(view: View) -> Tensor:
    """How far the image leaves [0, 1]."""
    return ((view.fused - 1).clamp(min=0) + (-view.fused).clamp(min=0)).mean()


def exposure(view: View) -> Tensor:
    """Mean distance, over 8×8 blocks, to OpenCV's exposure fusion of the sources: the tone that people expect."""
    return (avg_pool2d(view.fused, 8) - avg_pool2d(mertens(view.sources), 8)).abs().mean()


def mertens(sources: Sources) -> Image:
    """Exposure fusion by contrast, saturation and well-exposedness, as OpenCV has it.

    Reference: Mertens, Kautz and Van Reeth, "Exposure fusion", 2007.
    """
    stacks = (sources * 255).round().byte().expand(-1, -1, 3, -1, -1).movedim(2, -1).contiguous().cpu().numpy()
    fused = [torch.from_numpy(cv2.createMergeMertens().process(list(stack))).movedim(-1, 0) for stack in stacks]
    return torch.stack(fused)[:, : sources.shape[2]].to(sources).clamp(0, 1)


def colour(view: View) -> Tensor:
    """Mean distance of the chroma from that of the most saturated source at each pixel; 0 for grey images."""
    if view.fused.shape[1] == 1:
        return view.fused.new_zeros(())
    ours, theirs = rgb_to_ycbcr(view.fused)[:, 1:], rgb_to_ycbcr(view.sources)[:, :, 1:]
    index = theirs.norm(dim=2, keepdim=True).argmax(1, keepdim=True).expand(-1, -1, 2, -1, -1)
    return (ours - theirs.gather(1, index)[:, 0]).abs().mean()


def truth(view: View) -> Tensor:
    """Mean distance to the ideal image; 0 where none is known."""
    return view.fused.new_zeros(()) if view.truth is None else (view.fused - view.truth).abs().mean()


def truth_ssim(view: View) -> Tensor:
    """Minus SSIM with the ideal image; 0 where none is known."""
    if view.truth is None:
        return view.fused.new_zeros(())
    return -structure.similarity(view.levels[0], 255 * luminance(view.truth)).mean()


def _metric(score: Callable[[Tensor, Tensor], Tensor], sign: int = -1) -> Callable[[View], Tensor]:
    """A metric of grey levels, summed over the sources where it has a value for each."""
    return lambda view: sign * score(*view.levels).reshape(len(view.fused), -1).sum(1).mean()


TERMS: dict[str, Callable[[View], Tensor]] = {
    "vif": _metric(perception.visual_information),
    "ssim": _metric(structure.similarity),
    "qabf": _metric(gradient.gradient_preservation),
    "scd": _metric(structure.correlation_of_differences),
    "artefact": _metric(gradient.fusion_artefacts, 1),
    "halo": _metric(tone.halo_of, 1),
    "order": _metric(tone.order_of, 1),
}
_OWN = (mef_ssim, target, salient, mask, contrast, sharp, bounds, overflow, exposure, colour, truth, truth_ssim)
TERMS |= {term.__name__: term for term in _OWN}
"""All terms by name."""


def check_terms(factors: Mapping[str, float]) -> None:
    """Refuses terms that do not exist with a UserError."""
    if unknown := sorted(set(factors) - set(TERMS)):
        raise UserError(f"objective: no term {', '.join(unknown)}; there are {', '.join(TERMS)}")


def objective(view: View, factors: Mapping[str, float]) -> dict[str, Tensor]:
    """Each term times its factor."""
    return {name: factor * TERMS[name](view) for name, factor in factors.items() if factor}
