"""Sources that many tests fuse."""

import torch

from datamodules.readers.pixels import read_image
from tests.conftest import EXAMPLES


def random_sources(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def crop_of(folder: str, top: int, left: int, side: int, *modalities: str, mode="L") -> torch.Tensor:
    """A crop of each modality's first example, (1, k, c, side, side)."""
    images = []
    for modality in modalities:
        path = sorted((EXAMPLES / folder / modality).glob("*.png"))[0]
        pixels = read_image(path, mode)[top : top + side, left : left + side]
        images.append(torch.tensor(pixels.reshape(side, side, -1)).permute(2, 0, 1) / 255)
    return torch.stack(images)[None]
