import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from dig2dig.tiling import crop, pad


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2, 8, 32]))
def test_pad_reflects_as_numpy_and_crop_takes_it_back(height: int, width: int, multiple: int) -> None:
    image = torch.rand(2, 1, height, width)
    padded = pad(image, multiple)
    assert padded.shape[-2] % multiple == 0 and padded.shape[-1] % multiple == 0
    margin = [(0, 0), (0, 0), (0, -height % multiple), (0, -width % multiple)]
    np.testing.assert_array_equal(padded.numpy(), np.pad(image.numpy(), margin, mode="reflect"))
    assert torch.equal(crop(padded, height, width), image)
