"""One contract for every network: a noisy image and its time in, the estimate of the clean image out."""

import math
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from dig2dig.priors.schedule import at
from dig2dig.priors.windows import in_windows
from dig2dig.shapes import Image, Timestep

Prediction = Literal["epsilon", "v_prediction", "sample"]
Precision = Literal["auto", "fp32", "bf16"]

OVERLAP = 64
"""Pixels that neighbouring windows share."""

SMALLEST_WINDOW = 192
"""Side of windows that still see enough, for when memory is short."""

ALWAYS_FITS = 256 * 256
"""Pixels that every device has room for: calls up to this size are not measured."""


@lru_cache
def supports_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is native, and so faster than float32: recent CUDA cards, CPUs with AMX or AVX512-BF16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return False


def memory_budget(device: torch.device) -> float:
    """Bytes that one call may take where nobody said: from what the device has, not from what is free just now.

    The windows, and so the result, depend on it.
    """
    if device.type == "cuda":
        return 0.4 * torch.cuda.get_device_properties(device).total_memory
    return 2.0**30


def activation_bytes(denoiser: "Denoiser", device: torch.device, side: int = 64) -> float:
    """Bytes per pixel that the network keeps at its peak, judged from the outputs of its modules on a small image.

    Skip connections are kept all the way; beside them some six tensors as large as the largest one live at once.
    """
    largest, kept = denoiser.channels * 4, 0

    def size(output: object) -> int:
        return output.numel() * output.element_size() if isinstance(output, Tensor) else 0

    def see(_: nn.Module, __: object, output: object) -> None:
        nonlocal largest, kept
        if isinstance(output, tuple):  # what a block of the way down keeps for the way up
            kept += sum(size(one) for part in output if isinstance(part, tuple) for one in part)
        largest = max(largest, size(output))

    side = math.ceil(side / denoiser.multiple) * denoiser.multiple
    handles = [module.register_forward_hook(see) for module in denoiser.network.modules()]
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            image = torch.zeros(1, denoiser.channels, side, side, device=device)
            denoiser.whole(image, torch.zeros(1, dtype=torch.long, device=device))
    finally:
        for handle in handles:
            handle.remove()
    return (kept + 6 * largest) / side**2


class Denoiser(nn.Module):
    r"""Estimates the clean image from a noisy one: :math:`\hat x_0(x_t, t)`.

    The network may predict the noise, v, or the image:

    .. math::
        \hat x_0 = (x_t - \sqrt{1-\bar\alpha_t}\,\hat\varepsilon) / \sqrt{\bar\alpha_t}, \qquad
        \hat x_0 = \sqrt{\bar\alpha_t}\, x_t - \sqrt{1-\bar\alpha_t}\,\hat v .

    A network on 2×2 patches sees its images through ``pixel_unshuffle``; learned variances are dropped.

    Args:
        network: Maps ``(x_t, t)`` to the prediction, shape (b, channels · patch², h / patch, w / patch), or
            twice the channels if it also predicts a variance.
        alpha_bar: Schedule, float64, shape (n,).
        prediction: What the network predicts, named as in diffusers.
        channels: Channels of the images, 1 or 3.
        patch: Side of the patches the network works on.
        multiple: Height and width must be divisible by this.

    Attributes:
        precision: ``fp32``, ``bf16`` (autocast of the network alone), or ``auto``: bf16 where it is native.
        tile: Side of the windows that larger images are seen in; 0 = images are always seen whole, None = as large as
            the memory allows.
        memory: GiB that one call of the network may take for its activations; None = 1 on a CPU, 40 % of a GPU.
        native: Side of the images that a network with attention was trained on, None without.
        scarce: Memory ran out: one smallest window at a time.

    References:
        Salimans and Ho, "Progressive distillation for fast sampling of diffusion models", 2022 (v).
    """

    def __init__(
        self,
        network: nn.Module,
        alpha_bar: Tensor,
        prediction: Prediction = "epsilon",
        channels: int = 3,
        patch: int = 1,
        multiple: int = 1,
    ) -> None:
        super().__init__()
        self.network = network
        self.prediction: Prediction = prediction
        self.channels = channels
        self.patch = patch
        self.multiple = multiple
        self.precision: Precision = "fp32"
        self.tile: int | None = None
        self.memory: float | None = None
        self.native: int | None = None
        self.scarce = False
        self._pixels: dict[tuple[str, str], int] = {}
        self.alpha_bar = alpha_bar.double().cpu()  # no buffer: not every device has float64

    def outputs(self, x_t: Image, t: Timestep) -> tuple[Image, Image | None]:
        """What the network itself predicts and its learned variances, if any, in the image's layout and float32."""
        kind = x_t.device.type
        bf16 = self.precision == "bf16" or (self.precision == "auto" and supports_bf16(x_t.device))
        with torch.autocast(kind, torch.bfloat16, enabled=bf16 or torch.is_autocast_enabled(kind)):
            output = self.network(pixel_unshuffle(x_t, self.patch), t)
        parts = output.float().split(self.channels * self.patch**2, dim=1)
        prediction, *variance = (pixel_shuffle(part, self.patch) for part in parts)
        return prediction, variance[0] if variance else None

    def estimate(self, x_t: Image, prediction: Image, t: Timestep) -> Image:
        """The estimate of the clean image that a prediction stands for."""
        signal = at(self.alpha_bar, t, x_t)
        if self.prediction == "sample":
            return prediction
        if self.prediction == "v_prediction":
            return signal.sqrt() * x_t - (1 - signal).sqrt() * prediction
        return (x_t - (1 - signal).sqrt() * prediction) / signal.sqrt()

    def whole(self, x_t: Image, t: Timestep) -> Image:
        """The estimate of the clean image, in one call of the network."""
        return self.estimate(x_t, self.outputs(x_t, t)[0], t)

    def forward(self, x_t: Image, t: Timestep) -> Image:
        """The estimate of the clean image, about [-1, 1], for each sample's own time.

        Images larger than a window are seen in overlapping ones, batches larger than the memory allows in parts.
        """
        count, size = len(x_t), x_t.shape[-2:]
        side, pixels = self.window(x_t.device, *size), self.pixels(x_t.device, count * math.prod(size))
        if count * math.prod(size) <= pixels and max(size) <= side:
            return self.whole(x_t, t)
        return in_windows(self.whole, x_t, t, side, OVERLAP, self.multiple, pixels)

    def pixels(self, device: torch.device, wanted: int) -> int:
        """How many pixels, of all images together, one call may see on a device: what ``memory`` allows.

        Args:
            device: Where the network runs.
            wanted: How many there are; up to ``ALWAYS_FITS`` nothing is measured.
        """
        if self.scarce:
            return SMALLEST_WINDOW**2
        if self.memory is None and wanted <= ALWAYS_FITS:
            return ALWAYS_FITS
        key = (device.type, self.precision)
        if key not in self._pixels:
            budget = memory_budget(device) if self.memory is None else self.memory * 2**30
            self._pixels[key] = max(int(budget / activation_bytes(self, device)), ALWAYS_FITS // 4)
        return self._pixels[key]

    def window(self, device: torch.device, height: int, width: int) -> int:
        """The largest side of an image that one call sees whole: a multiple of ``multiple``, or the whole side."""
        if self.scarce:
            return max(SMALLEST_WINDOW // self.multiple, 1) * self.multiple
        if self.tile == 0 or (self.tile is None and self.memory is None and height * width <= ALWAYS_FITS):
            return max(height, width)
        side = self.tile or math.isqrt(self.pixels(device, height * width))
        if self.tile is None and self.native:
            side = min(side, 2 * self.native)  # attention costs the square of the area
        return max(side // self.multiple, 1) * self.multiple


class GaussianDenoiser(Denoiser):
    r"""The exact denoiser of independent Gaussian pixels, for tests: the posterior mean in closed form.

    .. math:: \hat x_0 = \mu + \frac{\sqrt{\bar\alpha_t}\, s^2}{\bar\alpha_t s^2 + 1 - \bar\alpha_t}
              (x_t - \sqrt{\bar\alpha_t}\,\mu)

    Args:
        mean: Mean of every pixel.
        std: Standard deviation of every pixel, > 0.
        alpha_bar: Schedule, shape (n,).
        channels: Channels of the images.
    """

    def __init__(self, mean: float, std: float, alpha_bar: Tensor, channels: int = 1) -> None:
        super().__init__(nn.Identity(), alpha_bar, "sample", channels)
        self.mean, self.variance = mean, std**2

    def outputs(self, x_t: Image, t: Timestep) -> tuple[Image, None]:
        """The posterior mean."""
        signal = at(self.alpha_bar, t, x_t)
        slope = signal.sqrt() * self.variance / (signal * self.variance + 1 - signal)
        return self.mean + slope * (x_t - signal.sqrt() * self.mean), None
