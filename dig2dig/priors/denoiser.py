"""One contract for every network: a noisy image and its time in, the estimate of the clean image out."""

import sys
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from dig2dig.priors.schedule import amplitudes
from dig2dig.priors.windows import in_windows
from dig2dig.shapes import Image, Timestep

Prediction = Literal["epsilon", "v_prediction", "sample"]
Precision = Literal["auto", "fp32", "bf16"]

OVERLAP = 64  # pixels that neighbouring windows share
WINDOW = 1408  # side of the windows, pixels: one call of the bundled prior then takes about 1 GiB


@lru_cache
def supports_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is native, and so faster than float32: recent CUDA cards, CPUs with AMX or AVX512-BF16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return False


def pick_device(asked: str = "auto") -> torch.device:
    """A device by its name; ``auto`` and ``gpu`` are a GPU by CUDA, else Apple's, else the CPU."""
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return torch.device(best if asked in ("auto", "gpu") else asked)


@dataclass(frozen=True)
class Layout:
    """What a network predicts, and of which images."""

    prediction: Prediction = "epsilon"  # what the network predicts, named as in diffusers
    channels: int = 3  # channels of the images, 1 or 3
    patch: int = 1  # side of the patches that the network works on
    multiple: int = 1  # height and width must be divisible by this
    native: int | None = None  # side of the images that a network with attention was trained on; None without attention


class Denoiser(nn.Module):
    r"""Estimates the clean image from a noisy one: :math:`\hat x_0(x_t, t)`.

    The network may predict the noise, v (Salimans and Ho, "Progressive distillation for fast sampling of diffusion
    models", 2022), or the image:

    .. math::
        \hat x_0 = (x_t - \sqrt{1-\bar\alpha_t}\,\hat\varepsilon) / \sqrt{\bar\alpha_t}, \qquad
        \hat x_0 = \sqrt{\bar\alpha_t}\, x_t - \sqrt{1-\bar\alpha_t}\,\hat v .

    A network on 2×2 patches gets its images through ``pixel_unshuffle``; learned variances are dropped.

    Args:
        network: Maps ``(x_t, t)`` to the prediction, shape (b, channels · patch², h / patch, w / patch), or
            twice the channels if it also predicts a variance.
        alpha_bar: Schedule, float64, shape (n,).
        layout: What the network predicts, and of which images.
        precision: ``fp32``, ``bf16`` (autocast of the network alone), or ``auto``: bf16 where it is native.
        window: Larger images are processed in windows of this side, and one call of the network gets at most as
            many pixels as one window has; 0 = images are always processed whole. Networks with attention get windows
            of at most twice their native side, because attention costs the square of the area.
    """

    def __init__(
        self,
        network: nn.Module,
        alpha_bar: Tensor,
        layout: Layout | None = None,
        precision: Precision = "fp32",
        window: int = WINDOW,
    ) -> None:
        super().__init__()
        self.network = network
        self.layout = layout or Layout()
        self.prediction, self.channels = self.layout.prediction, self.layout.channels
        self.patch, self.multiple = self.layout.patch, self.layout.multiple
        self.precision: Precision = precision
        self.window = window
        self.runs_on: torch.device | None = None  # where offloaded weights travel; None = they stay where they are
        self.alpha_bar = alpha_bar.double().cpu()  # no buffer: not every device has float64

    @property
    def device(self) -> torch.device:
        """Where the network runs: images must be there."""
        return self.runs_on or next((weight.device for weight in self.parameters()), torch.device("cpu"))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Denoiser":
        """Moves and converts the weights, but for those that stay in main memory."""
        return self if self.runs_on else super()._apply(fn, recurse)

    def in_windows(self, side: int) -> "Denoiser":
        """The same network with windows of another side; the weights are shared."""
        other = copy(self)
        other.window = side
        return other

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context of this precision for networks on a device."""
        bf16 = self.precision == "bf16" or (self.precision == "auto" and supports_bf16(device))
        enabled = bf16 or torch.is_autocast_enabled(device.type)
        return torch.autocast(device.type, torch.bfloat16, enabled=enabled)

    def outputs(self, x_t: Image, t: Timestep) -> Image:
        """What the network itself predicts, in the image's layout and float32."""
        with self.autocast(x_t.device):
            output = self.network(pixel_unshuffle(x_t, self.patch), t)
        return pixel_shuffle(output.float()[:, : self.channels * self.patch**2], self.patch)

    def estimate(self, x_t: Image, prediction: Image, t: Timestep) -> Image:
        """The estimate of the clean image that a prediction stands for."""
        if self.prediction == "sample":
            return prediction
        image, noise = amplitudes(self.alpha_bar, t, x_t)
        if self.prediction == "v_prediction":
            return image * x_t - noise * prediction
        return (x_t - noise * prediction) / image

    def whole(self, x_t: Image, t: Timestep) -> Image:
        """The estimate of the clean image, in one call of the network."""
        return self.estimate(x_t, self.outputs(x_t, t), t)

    def forward(self, x_t: Image, t: Timestep) -> Image:
        """The clean image, about [-1, 1], by each sample's time; large images in windows, large batches in parts."""
        side = self.side(*x_t.shape[-2:])
        if x_t[:, 0].numel() <= self.pixels and max(x_t.shape[-2:]) <= side:
            return self.whole(x_t, t)
        return in_windows(self.whole, x_t, t, side, OVERLAP, self.multiple, self.pixels)

    @property
    def pixels(self) -> int:
        """Most pixels, of all images together, that one call of the network gets."""
        return self.side(0, 0) ** 2 if self.window else sys.maxsize

    def side(self, height: int, width: int) -> int:
        """The largest side of an image that one call processes whole: a multiple of ``multiple``, or the whole side."""
        if self.window == 0:
            return max(height, width)
        side = min(self.window, 2 * self.layout.native) if self.layout.native else self.window
        return max(side // self.multiple, 1) * self.multiple
