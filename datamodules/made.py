"""Scenes made from photographs: focal planes whose ideal is known, and exposures of a scene of high contrast."""

from collections.abc import Callable

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

GAMMA = 2.2  # of a display: files hold intensity to the power of 1 / GAMMA


def made_focus(photo: np.ndarray, random: np.random.Generator) -> dict[str, Tensor]:
    """Two focal planes of a scene whose sharp image is ``photo`` (h, w, 3) in [0, 1].

    A mask divides near from far. Its edge is sharp in half of the scenes, and soft in the others. The near plane out of
    focus spreads over its edge; the far plane out of focus does not cover what is near. The blur is a disc or a
    Gaussian of 1 to 5 pixels.
    """
    mask = _mask(photo.shape[:2], random)[..., None]
    blur = _defocus(random)
    spread = blur(mask)
    near = mask * photo + (1 - mask) * blur(photo)
    far = blur(mask * photo) + (1 - spread) * photo
    sources = [near, far] if random.integers(2) else [far, near]
    stacked = np.stack([_digitised(source, random) for source in sources])
    return {"sources": _tensor(stacked), "truth": _tensor(photo[None])[0]}


def _mask(size: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """Which pixels are near, (h, w) in [0, 1]: noise of some scale, above its median or so, and a few ellipses."""
    h, w = size
    scale = random.uniform(0.08, 0.4) * min(h, w)
    grid = max(2, int(h / scale) + 2), max(2, int(w / scale) + 2)
    field = cv2.resize(random.standard_normal(grid).astype(np.float32), (w, h), interpolation=cv2.INTER_CUBIC)
    mask = (field > np.quantile(field, random.uniform(0.3, 0.7))).astype(np.float32)
    for _ in range(random.integers(4)):
        centre = (int(random.integers(w)), int(random.integers(h)))
        axes = (int(random.uniform(0.03, 0.2) * w), int(random.uniform(0.03, 0.2) * h))
        cv2.ellipse(mask, centre, axes, random.uniform(0, 180), 0, 360, float(random.integers(2)), -1)
    return cv2.GaussianBlur(mask, (0, 0), 0.6 if random.integers(2) else random.uniform(1, 12))


def _defocus(random: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """A disc or a Gaussian of a random radius."""
    sigma, disc = random.uniform(1, 5), random.integers(2)
    radius = round(sigma * 1.6)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1)).astype(np.float32)

    def blur(image: np.ndarray) -> np.ndarray:
        blurred = cv2.filter2D(image, -1, kernel / kernel.sum()) if disc else cv2.GaussianBlur(image, (0, 0), sigma)
        return blurred.reshape(image.shape)

    return blur


def made_exposures(photo: np.ndarray, random: np.random.Generator) -> dict[str, Tensor]:
    """Two or three exposures of a scene that is ``photo`` (h, w, 3) in [0, 1] under light of high contrast.

    Intensity is ``photo`` to the power of 2.2, times light that varies smoothly by up to eight stops. An exposure is
    clipped, as a camera's is.
    """
    h, w = photo.shape[:2]
    grid = tuple(int(n) for n in random.integers(2, 6, 2))
    light = cv2.resize(random.standard_normal(grid).astype(np.float32), (w, h), interpolation=cv2.INTER_CUBIC)
    if random.integers(2):  # a window, a lamp, a shadow: the light changes at an edge
        light += random.uniform(-2, 2) * _mask((h, w), random)
    scene = photo**GAMMA * 2 ** np.clip(random.uniform(0.5, 1.5) * light, -4, 4)[..., None]
    stops = random.uniform(1, 3.2)
    exposures = [-stops, stops] if random.integers(2) else [-stops, random.uniform(-0.5, 0.5), stops]
    middle = np.log2(0.18 / np.exp(np.log(scene + 1e-3).mean()))
    images = [np.clip(scene * 2 ** (middle + stop), 0, 1) ** (1 / GAMMA) for stop in exposures]
    return {"sources": _tensor(np.stack([_digitised(image, random) for image in images]))}


def _digitised(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """An image with a little noise of a sensor, in whole steps of 1 / 255."""
    noisy = image + random.normal(0, random.uniform(0, 0.006), image.shape)
    return np.clip(np.round(255 * noisy) / 255, 0, 1)


def _tensor(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32))


MADE = {"focus": made_focus, "exposures": made_exposures}
"""How scenes are made from photographs, by name."""


def varied(images: dict[str, Tensor], random: np.random.Generator) -> dict[str, Tensor]:
    """A scene at another size, each source with a contrast and gamma of its own: cameras that were not at hand.

    Sizes shrink by 1 to 2. A source becomes ``low + (high - low) · x ** gamma`` with gamma from 0.6 to 1.7.
    """
    h, w = images["sources"].shape[-2:]
    scale = random.uniform(0.5, 1.0) if min(h, w) >= 384 else 1.0
    size = (round(h * scale), round(w * scale))
    found = {name: interpolate(image.view(-1, 1, h, w), size, mode="area") for name, image in images.items()}
    found = {name: image.view(*images[name].shape[:-2], *size) for name, image in found.items()}
    k = len(found["sources"])
    low, high, gamma = (torch.tensor(random.uniform(*ends, k)).float().view(k, 1, 1, 1) for ends in
                        ((0.0, 0.15), (0.75, 1.0), (0.6, 1.7)))  # fmt: skip
    return found | {"sources": low + (high - low) * found["sources"].clamp(0, 1) ** gamma}
