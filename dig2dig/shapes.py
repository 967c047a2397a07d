"""Tensor shapes as types, checked at run time under pytest (jaxtyping + beartype), free otherwise; and what is tall."""

from jaxtyping import Float, Int, Shaped
from torch import Tensor

Image = Float[Tensor, "b c h w"]  # a batch of images: files and metrics in [0, 1], the sampler in [-1, 1]
State = Float[Tensor, "b prior_c h w"]  # a noisy state or its noise; a grey image passes a colour prior as three
Sources = Float[Tensor, "b k c h w"]  # K aligned images of each scene
Gains = Float[Tensor, "b k 1 h w"]  # information gain of each source at each pixel, squared or absolute intensity
Weights = Float[Tensor, "b k 1 h w"]  # fusion weight of each source at each pixel; sums to one over k
Maps = Float[Tensor, "b k _ _ _"]  # images or weights of each source at a resolution of their own
Valid = Shaped[Tensor, "b k 1 h w"]  # whether each pixel of a source shows the scene
Timestep = Int[Tensor, " b"]  # time index of each sample, 0 (clean) to 999 (noise)

TALL = 2**26
"""Values of all sources together from which a stack of three or more is read, and fused, source by source."""


def is_tall(count: int, values: int) -> bool:
    """Whether ``count`` sources of so many values each are too large to be in memory together."""
    return count > 2 and count * values >= TALL
