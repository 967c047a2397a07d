"""Random numbers of training samples: by hand, in any batch, on any device, and Gaussian."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dig2dig.config_train import ImageDataConfig, OptimConfig, TrainConfig
from dig2dig.modules.prior import PriorModule
from dig2dig.priors.adm import ADM_256
from dig2dig.priors.build import SCHEDULE, as_denoiser, build_prior, new_unet
from dig2dig.priors.counter import draws, mixed
from tests.counter import draws_by_hand


def test_the_hash_is_splitmix64() -> None:
    """The first numbers of the published generator from the seed 1234567, whose counter grows by the golden ratio."""
    counters = [(1234567 + (i + 1) * 0x9E3779B97F4A7C15) % 2**64 for i in range(5)]
    signed = torch.tensor([one - 2**64 if one >= 2**63 else one for one in counters])
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [one % 2**64 for one in mixed(signed).tolist()] == expected


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 3, 5), (1,)])
def test_numbers_are_those_by_hand(shape: tuple[int, ...]) -> None:
    index = torch.tensor([0, 7, 2**40])
    for seed in (0, 5, 2**23 - 1):
        uniform, noise = draws(seed, index, shape)
        assert uniform.dtype == noise.dtype == torch.float32 and noise.shape == (3, *shape)
        for i, one in enumerate(index.tolist()):
            numbers, expected = draws_by_hand(seed, one, shape)
            assert uniform[i].tolist() == numbers  # exactly: all devices must draw the same times
            torch.testing.assert_close(noise[i].double(), expected, rtol=1e-5, atol=2e-6)
    assert index.tolist() == [0, 7, 2**40]


def test_a_sample_has_the_same_numbers_in_every_batch() -> None:
    index, shape = torch.randperm(500)[:24], (3, 17, 9)
    uniform, noise = draws(3, index, shape)
    for parts in (index.split(1), index.split(7)):
        again = [draws(3, part, shape) for part in parts]
        assert torch.equal(torch.cat([one for one, _ in again]), uniform)
        torch.testing.assert_close(torch.cat([one for _, one in again]), noise, rtol=0, atol=2e-6)
    order = torch.randperm(24)
    torch.testing.assert_close(draws(3, index[order], shape)[1], noise[order], rtol=0, atol=2e-6)


def test_noise_is_gaussian() -> None:
    uniform, noise = draws(1, torch.arange(256), (3, 64, 64))
    x = noise.double().flatten()
    error = 1 / math.sqrt(len(x))  # standard error of a mean of unit variance
    assert abs(float(x.mean())) < 5 * error
    assert abs(float(x.var()) - 1) < 5 * error * 2**0.5
    assert abs(float((x**3).mean())) < 5 * error * 15**0.5
    assert abs(float((x**4).mean()) - 3) < 5 * error * 96**0.5
    assert 4.8 < float(x.abs().max()) < 6
    assert stats.kstest(x.numpy(), "norm").pvalue > 1e-3
    bins = np.histogram(uniform.numpy(), 16, (0, 1))[0]
    assert stats.chisquare(bins).pvalue > 1e-3


def test_neighbours_channels_samples_and_seeds_are_independent() -> None:
    """Correlations, also of squares, of everything that lies next to each other, within five standard errors."""
    index = torch.arange(128)
    noise = draws(1, index, (3, 64, 64))[1].double()
    half = noise.flatten(1).unflatten(1, (2, -1))  # one angle gives a number of each half
    pairs = {
        "row": (noise[..., 1:, :], noise[..., :-1, :]), "column": (noise[..., 1:], noise[..., :-1]),
        "channel": (noise[:, 1:], noise[:, :-1]), "sample": (noise[1:], noise[:-1]), "angle": (half[:, 0], half[:, 1]),
        "shifted sample": (noise[1:, ..., 1:], noise[:-1, ..., :-1]),
        "seed": (noise, draws(2, index, (3, 64, 64))[1].double()),
        "seed and sample": (noise[1:], draws(2, index, (3, 64, 64))[1].double()[:-1]),
    }  # fmt: skip
    for name, (a, b) in pairs.items():
        limit = 5 / math.sqrt(a.numel())
        assert abs(float((a * b).mean())) < limit, name
        assert abs(float(((a**2 - 1) * (b**2 - 1)).mean()) / 2) < limit, name
    means = noise.flatten(1).mean(1) * math.sqrt(3 * 64 * 64)
    assert stats.kstest(means.numpy(), "norm").pvalue > 1e-3  # samples differ as independent ones do
    far = draws(1, torch.tensor([5, 5 + 2**32]), (4, 4))[1]
    assert float((far[0] - far[1]).abs().max()) > 0.1


@pytest.mark.parametrize("adm", [False, True])
def test_a_training_step_stays_on_its_device(adm: bool) -> None:
    """A card that is not there: PyTorch's fake tensors refuse to mix devices and to be read."""
    config = TrainConfig(data=ImageDataConfig(root="x"), optim=OptimConfig(weighting="min_snr"))
    small = ADM_256 | {"block_out_channels": (32, 32, 32, 32, 32, 32), "attention_head_dim": 32, "layers_per_block": 1}
    denoiser = as_denoiser(new_unet(small), SCHEDULE) if adm else build_prior([32], 1, 2)

    class Copies(TorchDispatchMode):
        """Counts what is copied from main memory: each copy that is not pinned waits."""

        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = func(*args, **kwargs or {})
            if isinstance(found, torch.Tensor) and isinstance(args[0] if args else None, torch.Tensor):
                self.count += args[0].device.type == "cpu" and found.device.type == "cuda"
            return found

    with FakeTensorMode(allow_non_fake_inputs=True):
        module = PriorModule(config, denoiser).to("cuda")
        module.log = lambda *_, **__: None  # pyright: ignore[reportAttributeAccessIssue]
        image, index = torch.rand(2, 3, 32, 32, device="cuda"), torch.arange(2, device="cuda")
        counts = []
        for _ in range(2):
            with Copies() as copies:
                loss = module.training_step({"image": image, "index": index}, 0)
            counts.append(copies.count)
    assert loss.device.type == "cuda" and counts[0] > 0 == counts[1]  # tables travel once
