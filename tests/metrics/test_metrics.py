"""Closed forms, invariances and edge cases of the metrics."""

import math

import pytest
import torch
from torch import Tensor

from dig2dig import metrics
from dig2dig.metrics import ALL, CONVENTIONS, MAIN, METRICS, fusion_metrics, gradient, information
from dig2dig.metrics.levels import slide


def copies(image: Tensor, k: int = 2) -> Tensor:
    return image[:, None].expand(-1, k, -1, -1, -1)


@pytest.fixture
def ramp() -> Tensor:
    """Every grey level once."""
    return torch.arange(256.0).view(1, 1, 16, 16) / 255


def test_contrast_in_closed_form(ramp: Tensor) -> None:
    assert float(information.entropy(ramp)) == pytest.approx(8.0)
    assert float(gradient.standard_deviation(ramp)) == pytest.approx(math.sqrt((256**2 - 1) / 12))
    assert float(gradient.spatial_frequency(ramp)) == pytest.approx(math.sqrt(1 + 16**2))
    assert float(gradient.average_gradient(ramp)) == pytest.approx(math.sqrt((1 + 16**2) / 2))
    assert float(gradient.average_gradient_matlab(ramp)) == pytest.approx(math.sqrt((1 + 16**2) / 2) * (16 / 15) ** 2)
    middle = ramp[..., :3, :] * 0 + ramp[..., :1, :]
    assert float(gradient.edge_intensity(middle)) == pytest.approx((14 * 8 + 2 * 4) / 16)


def test_information_in_closed_form(ramp: Tensor) -> None:
    images = copies(ramp, 3)
    assert float(METRICS["MI"](ramp, images)) == pytest.approx(3 * 8)
    assert float(METRICS["MI"](ramp, images, "cddfuse")) == pytest.approx(3 * 8 * math.log(2))
    assert float(METRICS["NMI"](ramp, images)) == pytest.approx(3)
    half = (ramp > 0.5).float()
    assert float(METRICS["MI"](half, images)) == pytest.approx(3 * 1)
    assert float(METRICS["NMI"](half, images)) == pytest.approx(3 * 2 / 9)
    saturated = METRICS["MI"](ramp, images, "tang")  # two of 256 levels count as one together, as two alone
    assert float(saturated) == pytest.approx(3 * (8 + 2 / 256))


def test_errors_in_closed_form() -> None:
    fused = torch.full((1, 1, 20, 20), 100 / 255)
    fused[..., 0] = 200 / 255
    sources = torch.stack([fused + 10 / 255, fused - 20 / 255], 1)
    error = (10**2 + 20**2) / 2
    values = {key: float(METRICS["PSNR"](fused, sources, key)) for key in CONVENTIONS}
    assert float(METRICS["MSE"](fused, sources)) == pytest.approx(error)
    assert float(METRICS["MSE"](fused, sources, "tang")) == pytest.approx(error / 255**2)
    assert values["standard"] == pytest.approx(10 * math.log10(255**2 / error))
    assert values["cddfuse"] == pytest.approx(10 * math.log10(200**2 / error))
    assert values["tang"] == pytest.approx(10 * math.log10(255**4 / error))
    assert values["vifb"] == pytest.approx(10 * math.log10(255**2 / (15 / 20)))
    assert float(METRICS["CC"](fused, sources)) == pytest.approx(1)
    assert float(METRICS["SCD"](fused, sources)) == pytest.approx(0)  # what one source added is constant


def test_a_perfect_copy() -> None:
    image = torch.rand(1, 1, 180, 180)
    values = {name: float(value) for name, value in fusion_metrics(image, copies(image), names=ALL).items()}
    ones = ("SSIM", "MS-SSIM", "MEF-SSIM", "FMI_pixel", "FMI_gradient", "CC", "Qcb")
    assert {name: values[name] for name in ones} == pytest.approx(dict.fromkeys(ones, 1.0))
    assert (values["VIF"], values["NMI"]) == pytest.approx((2, 2))
    assert (values["Nabf"], values["Qcv"], values["MSE"], values["PSNR"]) == (0, 0, 0, math.inf)
    assert values["MI"] == pytest.approx(2 * values["EN"]) and values["Qabf"] > 0.97


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_order_of_sources_and_company_in_a_batch_do_not_matter(convention: str) -> None:
    fused, sources = torch.rand(2, 3, 176, 180), torch.rand(2, 3, 3, 176, 180)
    names = ALL if convention == "standard" else [name for name in ALL if convention in METRICS[name].variants]
    values = fusion_metrics(fused, sources, convention, names)
    swapped = fusion_metrics(fused[:1], sources[:1, [2, 0, 1]], convention, names)
    assert list(values) == list(names)
    for name, value in values.items():
        assert value.shape == (2,) and value.isfinite().all()
        if (name, convention) != ("Nabf", "tang"):  # this one takes the first source for the fused image
            torch.testing.assert_close(value[:1], swapped[name], rtol=1e-6, atol=1e-9)


def test_colour_is_luminance_or_channels() -> None:
    grey = torch.randint(0, 256, (2, 1, 60, 50)) / 255
    sources = torch.randint(0, 256, (2, 2, 1, 60, 50)) / 255
    colour = grey.expand(-1, 3, -1, -1), sources.expand(-1, -1, 3, -1, -1)
    names = [name for name in ALL if name not in ("MS-SSIM", "SF")]
    for convention in ("standard", "vifb"):
        single = fusion_metrics(grey, sources, convention, names)
        for name, value in fusion_metrics(*colour, convention, names).items():
            torch.testing.assert_close(value, single[name])
    rgb = torch.rand(1, 3, 40, 40)
    channels = torch.stack([information.entropy(rgb[:, c : c + 1]) for c in range(3)])
    torch.testing.assert_close(METRICS["EN"](rgb, rgb[:, None], "vifb"), channels.mean(0))
    wide = torch.cat(rgb.unbind(1), -1)[:, None]
    expected = gradient.spatial_frequency_vifb(wide)
    torch.testing.assert_close(METRICS["SF"](rgb, rgb[:, None], "vifb"), expected)


def test_main_metrics_come_first_and_small_images_leave_some_out() -> None:
    assert ALL[:8] == MAIN == ("EN", "SD", "SF", "SCD", "VIF", "Qabf", "SSIM", "Nabf")
    image = torch.rand(1, 1, 180, 180)
    for side, missing in ((2, 12), (20, 3), (41, 2), (44, 1), (176, 0)):
        small = image[..., :side, :]
        values = fusion_metrics(small, copies(small), names=ALL)
        if side == 2:
            assert set(values) == {name for name in ALL if METRICS[name].smallest == 2}
        else:
            assert len(values) == len(ALL) - missing
    with pytest.raises(ValueError, match=r"no metric XYZ; there are EN, SD"):
        fusion_metrics(image, copies(image), names=["EN", "XYZ"])
    with pytest.raises(ValueError, match="no convention 'mine'; there are standard, cddfuse, tang, vifb"):
        fusion_metrics(image, copies(image), "mine")


def test_constant_images_give_finite_values() -> None:
    flat = torch.full((1, 1, 180, 180), 0.5)
    for fused, sources in ((flat, copies(flat)), (flat, torch.rand(1, 2, 1, 180, 180)), (flat * 0, copies(flat))):
        for name, value in fusion_metrics(fused, sources, names=ALL).items():
            assert value.isfinite().all() or name == "PSNR"


def test_nabf_counts_only_edges_that_no_source_has() -> None:
    step, nabf = torch.zeros(1, 1, 32, 32), METRICS["Nabf"]
    step[..., 16:] = 0.5
    flat = torch.zeros_like(step)
    assert float(nabf(step, torch.stack([step, flat], 1))) == 0
    assert float(nabf(step, torch.stack([flat, flat], 1))) > 0.05
    defect = nabf(flat, torch.stack([step, flat], 1), "tang")
    assert float(defect) == float(nabf(step, torch.stack([flat, flat], 1)))


def test_against_the_truth() -> None:
    truth = torch.randint(50, 200, (2, 1, 24, 30)) / 255
    found = metrics.fusion_metrics(truth + 2 / 255, truth[:, None], names=("PSNR", "SSIM"))
    torch.testing.assert_close(found["PSNR"], torch.full((2,), 20 * math.log10(255 / 2), dtype=torch.float64))
    assert set(metrics.fusion_metrics(truth[..., :5], truth[:, None, ..., :5], names=("PSNR", "SSIM"))) == {"PSNR"}


def test_grey_levels_are_those_of_an_8_bit_file() -> None:
    pixels = torch.tensor([[0, 255, 10], [1, 2, 3], [7, 7, 7], [255, 254, 255]])
    images = (pixels / 255).T.reshape(1, 3, 2, 2)
    expected = [0.587 * 255 + 1.14, 0.299 + 1.174 + 0.342, 7, 0.413 * 255 + 0.587 * 254]
    assert metrics.grey_levels(images).flatten().tolist() == [round(value) for value in expected]
    assert metrics.grey_levels(torch.tensor([[[[-0.1, 0.5, 1.2]]]])).tolist() == [[[[0, 128, 255]]]]


@pytest.mark.parametrize("length", [1, 2, 3, 4, 11])
def test_windows_slide_the_same_with_and_without_derivatives(length: int) -> None:
    images = torch.rand(2, 3, 20, 14, dtype=torch.float64)
    weights = torch.rand(length, dtype=torch.float64).tolist()
    plain, differentiable = slide(images, weights), slide(images.clone().requires_grad_(), weights)
    assert plain.shape == (2, 3, 21 - length, 15 - length)
    torch.testing.assert_close(plain, differentiable.detach(), rtol=1e-12, atol=1e-12)
    window = torch.outer(*2 * [torch.tensor(weights, dtype=torch.float64)])
    expected = (images[0, 0, 2 : 2 + length, 1 : 1 + length] * window).sum()
    torch.testing.assert_close(plain[0, 0, 2, 1], expected, rtol=1e-12, atol=1e-12)


def test_feature_information_of_flat_pictures_is_a_number() -> None:
    """All mass of a window lies at one pixel where it is all that stands out: alike there, or not."""
    one, other = torch.zeros(2, 1, 1, 12, 12, dtype=torch.float64)
    one[..., 5, 5], other[..., 6, 6] = 1.0, 1.0
    for name in ("FMI_pixel", "FMI_gradient"):
        alike, apart = (float(METRICS[name](one, torch.stack([image, image], 1))) for image in (one / 2, other))
        assert 0 <= apart < alike <= 1, name
