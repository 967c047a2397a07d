"""What an eye minds and other metrics miss: halos, tone that contradicts the sources, and lost targets."""

import cv2
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d

from dig2dig.metrics.levels import Grey, Levels, Scores, both, gaussian, slide
from dig2dig.shapes import Image, Sources

BLURS = (3.0, 6.0, 12.0)
"""Standard deviations at which halos are looked for, pixels."""


def halo_of(f: Grey, s: Levels) -> Scores:
    r""":func:`halo` of grey levels; differentiable."""
    against, total = f.new_zeros(len(f)), f.new_zeros(len(f))
    images = torch.cat([f, s], 1)
    for sigma in BLURS:
        factor = max(1, int(sigma / 3))  # on a grid where the blur has 3 pixels
        small = avg_pool2d(images, factor) if factor > 1 else images
        size = min(19, 2 * ((min(small.shape[-2:]) - 2) // 2) - 1)
        if size < 3:
            break
        smooth = slide(small, gaussian(size, sigma / factor))
        x, y = smooth[..., :-1, 1:] - smooth[..., :-1, :-1], smooth[..., 1:, :-1] - smooth[..., :-1, :-1]
        opposed = (x[:, :1] * x[:, 1:] + y[:, :1] * y[:, 1:] < 0).all(1)
        energy = x[:, 0].square() + y[:, 0].square()
        against = against + (energy * opposed).sum((1, 2)) / factor**2
        total = total + energy.sum((1, 2)) / factor**2
    return torch.where(total > 0, against / total.clamp(min=1e-12), 0.0)


def halo(fused: Image, sources: Sources) -> Scores:
    r"""Share of the fused image's gradient energy, blurred, that points against every source: rims and glows.

    .. math:: \frac{\sum_\sigma \sum_x |\nabla f_\sigma|^2\, [\forall k: \nabla f_\sigma \cdot \nabla c_{k\sigma} < 0]}
              {\sum_\sigma \sum_x |\nabla f_\sigma|^2}

    with Gaussian blurs of 3, 6 and 12 pixels. Our own.
    """
    return halo_of(*both(fused, sources))


STEP, SHIFTS, AGREED = 8, (1, 2, 4, 8, 16, 32), 4.0  # pixels, steps, grey levels
LEAST_AREA, LEAST_CONTRAST = 30, 10.0  # of a target, pixels and grey levels


def order_of(f: Grey, s: Levels) -> Scores:
    """Mean grey levels by which :func:`tone_order`'s places are turned round, over their mean difference;
    differentiable."""
    wrong, agreed = f.new_zeros(len(f)), f.new_zeros(len(f))
    for ours, sign in _places(f, s):
        wrong = wrong + (-ours * sign).clamp(min=0).sum((1, 2, 3))
        agreed = agreed + (ours * sign).abs().sum((1, 2, 3)).detach()
    return wrong / agreed.clamp(min=1e-6)


def tone_order(fused: Image, sources: Sources) -> Scores:
    """Lightness order error: of pairs of places where all sources agree which is brighter, the share turned round.

    Places are means over 8×8 pixels, up to 256 pixels apart along rows, columns and diagonals. Sources agree where
    each one differs by more than four grey levels in the same direction. Our own, after the lightness order error of
    Wang et al., "Naturalness preserved enhancement algorithm for non-uniform illumination images", 2013.
    """
    f, s = both(fused, sources)
    wrong, agreed = f.new_zeros(len(f)), f.new_zeros(len(f))
    for ours, sign in _places(f, s):
        wrong += (ours * sign < 0).sum((1, 2, 3))
        agreed += (sign != 0).sum((1, 2, 3))
    return torch.where(agreed > 0, wrong / agreed.clamp(min=1), 0.0)


def _places(f: Grey, s: Levels) -> list[tuple[Tensor, Tensor]]:
    """For each shift: differences of the fused image, and the sign on which all sources agree, 0 where they do not."""
    if min(f.shape[-2:]) < 2 * STEP:
        return []
    both_small = avg_pool2d(torch.cat([f, s], 1), STEP)
    h, w = both_small.shape[-2:]
    found = []
    for shift in SHIFTS:
        for down, right in ((0, shift), (shift, 0), (shift, shift), (shift, -shift)):
            if down >= h or abs(right) >= w:
                continue
            here = both_small[..., : h - down, max(0, -right) : w - max(0, right)]
            there = both_small[..., down:, max(0, right) : w + min(0, right)]
            difference = there - here
            ours, theirs = difference[:, :1], difference[:, 1:]
            bright, dark = (theirs > AGREED).all(1, keepdim=True), (theirs < -AGREED).all(1, keepdim=True)
            found.append((ours, bright.to(f) - dark.to(f)))
    return found


def inside_and_ring(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels of targets, and of a ring of 3 to 12 pixels around them, both (b, 1, h, w) in {0, 1}."""
    inside = (mask > 0.5).to(mask)
    return inside, max_pool2d(inside, 25, 1, 12) * (1 - max_pool2d(inside, 5, 1, 2))


def target_contrast(levels: Tensor, inside: Tensor, ring: Tensor) -> Tensor:
    """Mean inside less mean in the ring, grey levels, (b, k)."""

    def mean(where: Tensor) -> Tensor:
        return (levels * where).sum((-2, -1)) / where.sum((-2, -1)).clamp(min=1)

    return mean(inside) - mean(ring)


def bright_targets(infrared: Tensor) -> Tensor:
    """A mask of what is warm in an infrared image (b, 1, h, w) in [0, 1]: 30 levels above its surroundings of 52 px."""
    local = avg_pool2d(infrared, 3, 1, 1) - avg_pool2d(infrared, 53, 1, 26, count_include_pad=False)
    return (local > 30 / 255).to(infrared)


def targets(fused: Image, sources: Sources, mask: Tensor) -> tuple[list[float], int]:
    r"""Share of each marked target's contrast that the fused image keeps, and how many targets are lost.

    .. math:: \min\big(1, \max(0, C(f) / \max_k C(c_k))\big), \qquad C = \text{mean inside} - \text{mean in the ring}

    A target is a connected part of the mask (1, h, w) of at least 30 pixels with a contrast of at least 10 grey levels
    in one of the sources. The ring is 3 to 12 pixels away and holds no other target. A target is lost if its contrast
    is no larger, by one level, than in the source that shows it least. One scene, images in [0, 1]. Our own.
    """
    f, s = both(fused, sources)
    inside, ring = inside_and_ring(mask[None].double())
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(inside[0, 0].to(torch.uint8).cpu().numpy())
    images, kept, lost = torch.cat([f, s, ring], 1), list[float](), 0
    for i, (left, top, width, height, area) in enumerate(boxes.tolist()):
        if i > 0 and area >= LEAST_AREA:
            near = slice(max(0, top - 13), top + height + 13), slice(max(0, left - 13), left + width + 13)
            here, part = torch.from_numpy(labels[near] == i).to(inside)[None, None], images[:, :, *near]
            around = inside_and_ring(here)[1] * part[:, -1:]
            ours, *theirs = target_contrast(part[:, :-1], here, around)[0].tolist()
            if max(theirs) >= LEAST_CONTRAST:
                kept.append(min(1.0, max(0.0, ours / max(theirs))))
                lost += ours <= max(min(theirs), 0) + 1
    return kept, lost
