"""What moves between exposures or focal planes: found, and shown once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.align import small
from datamodules.aside import aside
from datamodules.ranges import Valid
from datamodules.readers.pixels import convert

Mask = NDArray[np.bool_]

SIDE = 768  # images are compared at this size at most, longer side in pixels
KNOTS = np.linspace(0, 1, 129)  # intensities of the reference at which a mapping is known
BLACK, WHITE = 0.02, 0.97  # beyond, and where the mapping is unknown, a value may stand for all darker or brighter
DEVIATIONS, FLOOR = 6.0, 6 / 255  # a difference beyond so many robust deviations and this is none of noise
NEAR = 5  # so many sixteenths of the range share their noise: a thing with an intensity for itself is no noise
SURE = 0.1  # share of a thing that must differ clearly
LEAST = 2e-4  # share of the picture; a smaller thing does not count
MOST = 0.4  # share of the picture; what differs on more of it is not a thing that moves
SLACK = {"mef": 1, "mff": 8}  # pixels at the compared size by which a value may lie beside its place: blur spreads


@dataclass(frozen=True)
class Mapping1D:
    """How one channel of the reference looks in another source."""

    curve: np.ndarray  # intensity in the source at each knot, increasing
    deviation: np.ndarray  # robust deviation from it at every eighth knot
    known: tuple[float, float]  # least and largest intensity at which it was measured

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """What the source should show where the reference has these values."""
        return np.interp(values, KNOTS, self.curve).astype(np.float32)

    def tolerance(self, values: np.ndarray) -> np.ndarray:
        """How far noise may lead the source away from it."""
        return (DEVIATIONS * np.interp(values, KNOTS[::8], self.deviation) + FLOOR).astype(np.float32)


def without_ghosts(
    images: Mapping[str, np.ndarray], valids: Mapping[str, Valid], reference: str = "", slack: int = 1
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The images of a stack with the moving things of one of them, and notes on the share that moves.

    Args:
        images: Sources by modality, of one size, (h, w) or (h, w, 3) in [0, 1].
        valids: Pixels of each that show the scene.
        reference: The source whose things stay; the one with the largest well-exposed area if it is none of them.
        slack: Pixels, at the compared size, by which a value may lie beside its place.
    """
    names, sources = list(images), list(images.values())
    chosen = names.index(reference) if reference in names else best_exposed(sources)
    cleaned, masks = shown_once(sources, chosen, [valids[name] for name in names], slack)
    notes = []
    for name, mask in zip(names, masks, strict=True):
        share = f"{max(100 * mask.mean(), 0.1):.1f} % of the picture"
        if mask.mean() > MOST:
            notes.append(f"{name}: differs from {names[chosen]} on {share}: not taken for motion; align=ecc registers")
        elif mask.any():
            notes.append(f"{name}: {share} moves and is taken from {names[chosen]}; ghosts=keep keeps it")
    return dict(zip(names, cleaned, strict=True)), notes


def best_exposed(sources: Sequence[np.ndarray]) -> int:
    """Which source has the largest area that is neither clipped nor dark."""
    light = [(convert(image, "L"), image if image.ndim == 2 else image.max(-1)) for image in sources]
    return int(np.argmax([((grey > 0.1) & (most < WHITE)).mean() for grey, most in light]))


def shown_once(
    sources: Sequence[np.ndarray], reference: int, valids: Sequence[Valid] = (), slack: int = 1
) -> tuple[list[np.ndarray], list[Mask]]:
    """All sources with the reference's things at their own exposure, and where they had others.

    Sources are compared in order of brightness, from the reference to both ends, each with its neighbour, which is
    cleaned already: neighbours are clipped at nearly the same places. Where they contradict each other, the source
    gets what its neighbour predicts. A source that differs on more than ``MOST`` of the picture stays as it is.
    """
    valids = list(valids) or [None] * len(sources)
    images, size = list(sources), sources[0].shape[:2]
    masks = [np.zeros(size, bool) for _ in sources]
    order = sorted(range(len(sources)), key=lambda k: float(sources[k].mean()))
    place = order.index(reference)
    for way in (order[place + 1 :], order[:place][::-1]):
        near = reference
        for k in way:
            both = [valid for valid in (valids[near], valids[k]) if valid is not None]
            valid = np.logical_and.reduce(both) if both else None
            masks[k], curves = contradiction(images[near], images[k], valid, slack)
            if masks[k].mean() <= MOST:
                images[k] = aside(replaced(images[near], images[k], masks[k], curves, valid), len(images))
                near = k
    return images, masks


def contradiction(
    fixed: np.ndarray, other: np.ndarray, valid: Valid = None, slack: int = 1
) -> tuple[Mask, list[Mapping1D]]:
    """Where a source contradicts another, whatever their exposures, (h, w); and the mapping of each channel.

    The mapping and its noise are measured again without what was found: a thing does not explain itself.
    """
    grey = 2 in (fixed.ndim, other.ndim)
    both = (small(convert(image, "L") if grey else image, SIDE) for image in (fixed, other))
    a, b = (np.atleast_3d(cv2.GaussianBlur(image, (0, 0), 1.0)) for image in both)
    inside = np.ones(a.shape[:2], bool)
    if valid is not None:
        inside = ~_grown(cv2.resize(valid.astype(np.uint8), a.shape[1::-1], interpolation=cv2.INTER_AREA) == 0, 3)
    channels = [(a[..., c], b[..., c]) for c in range(a.shape[2])]
    still, found, mappings = inside, ~inside, list[Mapping1D]()
    for _ in range(3):
        if still.sum() < len(KNOTS):
            break
        mappings = [mapping(x[still], y[still]) for x, y in channels]
        far = [inside * excess(x, y, how, slack) for (x, y), how in zip(channels, mappings, strict=True)]
        found = things(far)
        still = inside & ~_grown(found, 2)
    if not mappings or not found.any():
        return np.zeros(fixed.shape[:2], bool), mappings
    return cv2.resize(found.astype(np.float32), fixed.shape[1::-1], interpolation=cv2.INTER_LINEAR) > 0.5, mappings


def mapping(fixed: np.ndarray, other: np.ndarray) -> Mapping1D:
    """The increasing mapping from one image's values to another's, and how far these scatter around it.

    It goes through the medians of ``other`` at each intensity of ``fixed``: what moves is the smaller part there.
    Black stays black where no pixel says more.
    """
    from scipy.ndimage import median_filter  # half a second, which no other task needs

    last = len(KNOTS) - 1
    bins = np.rint(fixed * last).astype(int)
    order = np.lexsort((other, bins))
    bins, values, fixed = bins[order], other[order], fixed[order]
    starts = np.searchsorted(bins, np.arange(last + 2))
    count = np.diff(starts)
    known = np.flatnonzero(count >= min(16, count.max()))
    x, y = KNOTS[known], increasing(values[(starts[known] + starts[known + 1]) // 2])
    before = max(0, len(x) - 9)
    slope = (y[-1] - y[before]) / max(x[-1] - x[before], 1 / last)
    curve = np.interp(KNOTS, [-1e-6, *x, 1 + 1e-6], [0 if x[0] > 0 else y[0], *y, min(1, y[-1] + slope * (1 - x[-1]))])
    scatter = np.abs(values - np.interp(fixed, KNOTS, curve))
    groups = [scatter[bins // 8 == i] for i in range(17)]
    measured = [i for i, part in enumerate(groups) if part.size > 200]
    deviation = np.array([np.median(groups[i]) for i in measured] or [np.median(scatter)])
    steady = 1.4826 * median_filter(deviation, NEAR, mode="mirror")
    return Mapping1D(curve, np.interp(np.arange(17), measured or [0], steady), (float(x[0]), float(x[-1])))


def increasing(values: np.ndarray) -> np.ndarray:
    """The increasing sequence nearest to values, in absolute differences: pools adjacent violators to their median."""
    blocks: list[list[float]] = []
    for value in values.tolist():
        blocks.append([value])
        while len(blocks) > 1 and np.median(blocks[-2]) >= np.median(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    return np.concatenate([np.full(len(block), np.median(block)) for block in blocks])


def excess(fixed: np.ndarray, other: np.ndarray, how: Mapping1D, slack: int) -> np.ndarray:
    """How far a source leaves what the other predicts around each pixel, in tolerances; 0 = within."""
    kernel = np.ones((2 * slack + 1,) * 2, np.uint8)
    black, white = max(BLACK, how.known[0]), min(WHITE, how.known[1])
    values = fixed.clip(black, white)
    predicted, tolerance = how(values), how.tolerance(values)
    above = other - cv2.dilate(predicted + tolerance, kernel)
    below = cv2.erode(predicted - tolerance, kernel) - other
    above[cv2.dilate((fixed > white).astype(np.uint8), kernel) > 0] = 0
    below[cv2.dilate((fixed < black).astype(np.uint8), kernel) > 0] = 0
    return np.maximum(np.maximum(above, below), 0) / tolerance


def things(channels: Sequence[np.ndarray]) -> Mask:
    """Whole things: regions where a channel leaves its tolerance, closed, without holes and specks.

    On a tenth of them two channels must leave 1.5 of their tolerances, or one four: the channels of strong colours
    depend on each other, so that one is not quite predicted by itself alone.
    """
    far = np.sort(channels, 0)
    sure = far[0] > 1 if len(far) == 1 else (far[-2] > 0.5) | (far[-1] > 3)
    weak = cv2.morphologyEx((far[-1] > 0).astype(np.uint8), cv2.MORPH_OPEN, _disc(1))
    weak = cv2.morphologyEx(weak, cv2.MORPH_CLOSE, _disc(4))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(weak)
    strong = np.bincount(labels.ravel(), sure.ravel(), count)
    area = stats[:, cv2.CC_STAT_AREA]
    kept = (area >= LEAST * weak.size) & (strong >= np.maximum(LEAST / 4 * weak.size, SURE * area))
    kept[0] = False
    found = cv2.copyMakeBorder(np.isin(labels, np.flatnonzero(kept)).astype(np.uint8), 9, 9, 9, 9, cv2.BORDER_CONSTANT)
    found = cv2.morphologyEx(found, cv2.MORPH_CLOSE, _disc(8))[9:-9, 9:-9]
    _, labels, stats, _ = cv2.connectedComponentsWithStats(1 - found, connectivity=4)
    holes = stats[:, cv2.CC_STAT_AREA] < 10 * LEAST * weak.size
    holes[0] = False
    return (found > 0) | np.isin(labels, np.flatnonzero(holes))


def replaced(
    fixed: np.ndarray, other: np.ndarray, mask: Mask, mappings: Sequence[Mapping1D], valid: Valid = None
) -> np.ndarray:
    """A source with what the other one predicts where it moves; the edges blend."""
    if not mask.any():
        return other
    scale = max(1.0, max(mask.shape) / SIDE)
    share = cv2.GaussianBlur(_grown(mask, round(4 * scale)).astype(np.float32), (0, 0), 1.5 * scale)
    here = (share > 1 / 512) & (True if valid is None else valid)
    shown = convert(fixed, "L" if other.ndim == 2 else "RGB")[here].reshape(here.sum(), -1)
    hows = mappings if len(mappings) == shown.shape[1] else [mappings[0]] * shown.shape[1]
    predicted = np.stack([how(shown[:, c]) for c, how in enumerate(hows)], -1)
    result, old = other.copy(), other[here].reshape(predicted.shape)
    result[here] = (old + share[here][:, None] * (predicted - old)).reshape(result[here].shape)
    return result


def _grown(mask: np.ndarray, radius: int) -> Mask:
    """A mask and all within so many pixels."""
    return cv2.dilate(mask.astype(np.uint8), _disc(radius)) > 0


def _disc(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)
