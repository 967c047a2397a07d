"""Pulling the estimate to the weighted sources: closed forms, with any state passed in and out.

Every guidance has one signature, so that users can pass their own: ``(x0_hat, step, state) -> (x0_hat', state)``.
The state is None before the first step, and after it whatever the guidance returned. Three attributes of a function
say what it needs: ``needs_graph = True`` if it differentiates with respect to ``step.x_t``; ``needs_estimate = False``
if it never reads ``x0_hat``, so that the network need not run; ``needs_reconstructions = False`` if it never reads
``step.estimate`` and ``step.estimate_next``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dig2dig.config import SamplerConfig
from dig2dig.fusion.bands import BandSum, blurred, room, surroundings, within
from dig2dig.fusion.resample import grouped, resample
from dig2dig.shapes import Image, Maps, Sources, State, Weights

TONES = {"natural": 0.8, "balanced": 1.0, "vivid": 1.25}


@dataclass(frozen=True)
class Step:
    """What a guidance may use in one step; all images in [-1, 1].

    ``sigma`` is the noise level at the time index ``t``, and ``sigma_next`` the following one, 0 after the last time.
    ``x_t`` is the noisy state, with the prior's channels. It carries the graph of x0_hat where gradients are asked for,
    and is None where the network does not run. ``sources`` are clean. ``weights`` may be coarser than they; ``weight``
    has their size. ``estimate`` is the denoiser's estimate of the sources at this time, or None. ``base`` are the
    weights of what is coarser than the first step, None for the plain mean. ``factor`` is a factor on the band of this
    step that learned weights ask for, (b, 1, h, w), or None. ``space`` are the sources blurred as at this step and at
    the next one, if known.
    """

    t: int
    sigma: float
    sigma_next: float
    x_t: State | None
    sources: Sources
    weights: Maps
    estimate: Sources | None
    estimate_next: Sources | None
    base: Maps | None = None
    factor: Tensor | None = None
    space: Sequence[Maps] | None = None

    @property
    def alpha_bar(self) -> float:
        """The signal's share of the variance of ``x_t``."""
        return 1 / (1 + self.sigma**2)

    @property
    def variance(self) -> float:
        """The noise's share, 1 - alpha_bar, without the rounding error of that subtraction."""
        return self.sigma**2 / (1 + self.sigma**2)

    @property
    def weight(self) -> Weights:
        """The weight of each source at each pixel."""
        return resample(self.weights, *self.sources.shape[-2:])

    def start(self, images: Sources) -> Image:
        """The weighted sum of what the sources show before the first step."""
        return images.mean(1) if self.base is None else (resample(self.base, *images.shape[-2:]) * images).sum(1)


Guidance = Callable[[Tensor, Step, Any], tuple[Tensor, Any]]
"""``(x0_hat, step, state) -> (x0_hat', state)``."""


def proximal(x0_hat: Image, target: Image, sigma: float, sigma_n: float) -> Image:
    r"""The point between the prior's estimate and a target that balances both.

    .. math:: \hat x_0' = \frac{\rho_t \hat x_0 + m}{\rho_t + 1}, \qquad
              \rho_t = \sigma_n^2 \frac{\bar\alpha_t}{1-\bar\alpha_t} = \frac{\sigma_n^2}{\sigma_t^2}

    sigma_n is the noise assumed in the target m, sigma the noise level, both for images in [-1, 1]. Early
    in sampling the target decides, late the prior; sigma_n = 0 is the target alone.

    Reference: Zhu et al., "Denoising diffusion models for plug-and-play image restoration" (DiffPIR), 2023.
    """
    if sigma_n == 0:  # large images have no room for another copy
        return target
    return x0_hat.lerp(target, 1 / (sigma_n**2 / sigma**2 + 1))


def blend(x0_hat: Image, step: Step, state: None, *, sigma_n: float) -> tuple[Image, None]:
    r"""Proximal to the weighted mean of the sources, :math:`m_t = \sum_k w_k c_k`."""
    return proximal(x0_hat, (step.weight * step.sources).sum(1), step.sigma, sigma_n), state


def increments(x0_hat: Image, step: Step, state: Tensor | None, *, sigma_n: float) -> tuple[Image, Tensor]:
    r"""Proximal to the sum of what each source gained so far, weighted by its gain in that step.

    .. math:: m_s = m_t + \sum_k w_k(t)\,\big(\hat c_k(s) - \hat c_k(t)\big), \qquad
              m_T = \sum_k w_k \hat c_k(T)

    A fusion pyramid whose bands are the denoiser's own scale space: static weights telescope to the plain
    mean. Our own form. The target stays in the range that the sources span in each image. A step without estimates of
    the sources is a ValueError.
    """
    if step.estimate is None or step.estimate_next is None:
        raise ValueError("increments guidance needs the estimates of the sources")
    target = step.start(step.estimate) if state is None else state
    target = target + (step.weight * (step.estimate_next - step.estimate)).sum(1)
    low, high = (bound.view(-1, 1, 1, 1) for bound in step.sources.flatten(1).aminmax(dim=1))
    return proximal(x0_hat, target.clamp(low, high), step.sigma, sigma_n), target


@dataclass(frozen=True)
class BandState:
    """The sum of the bands so far, and each source as far as it was seen; on a grid as coarse as they are blurred."""

    target: Image
    seen: list[Maps]


def bands(
    x0_hat: Image, step: Step, state: BandState | None, *, sigma_n: float, scale: float, energy: float, tone: float
) -> tuple[Image, BandState]:
    r"""``increments`` in a linear scale space: each step adds the bands of the sources between two noise levels.

    .. math:: m_s = m_t + a \sum_k w_k(t)\,\big(G_{\rho(s)} c_k - G_{\rho(t)} c_k\big), \qquad
              \rho(t) = r \sqrt{(1-\bar\alpha_t)/\bar\alpha_t}

    with Gaussian filters G of standard deviation :math:`\rho` (none after the last step), from the weighted sum of the
    blurred sources. The denoiser decides the weights only: its estimates at high noise do not enter the picture.

    Bands that differ cancel in an average: K independent ones of equal weight lose :math:`\sqrt K` of their
    amplitude. The factor a restores the local energy that the weights stand for,

    .. math:: a^2 = \frac{G \sum_k w_k |\Delta_k|^2}{G |\sum_k w_k \Delta_k|^2} \in [1, K]

    so that equal sources stay as they are. Learned weights bring one more factor, on the band; the product is held to
    :math:`\max_k |\Delta_k|` at each pixel. Our own form. The target stays in the range that the sources span, and at
    last in their range around each pixel, see ``bands.within``.

    ``scale`` is r, pixels of blur per unit of noise level for images in [-1, 1]; ``energy`` the exponent of a: 0 leaves
    the plain weighted sum, 1 restores all energy; ``tone`` a factor on every band. The state is used up.
    """
    parts = grouped(step.sources.shape[1], step.sources.shape)
    space = [[images[:, part] for part in parts] for images in step.space] if step.space else None
    blur = partial(blurred, scale=scale)
    seen = state.seen if state else space[0] if space else [blur(step.sources[:, part], step.sigma) for part in parts]
    target = step.start(torch.cat(seen, 1)) if state is None else state.target
    total = BandSum(energy, held=step.factor is not None)
    for i, part in enumerate(parts):
        sharper = space[1][i] if space else blur(step.sources[:, part], step.sigma_next)
        total.add(sharper, seen[i], step.weights[:, part])
        seen[i] = sharper
    fused = total.restored(step.sigma_next, scale, step.factor)
    target = torch.add(resample(target[:, None], *fused.shape[-2:])[:, 0], fused, alpha=tone, out=room(fused))
    del total, fused  # large images have no room for what is used up
    whole = resample(target[:, None], *step.sources.shape[-2:])[:, 0]
    if step.sigma_next and sigma_n > 0:  # else no network sees it
        low, high = (bound.view(-1, 1, 1, 1) for bound in step.sources.flatten(1).aminmax(dim=1))
        whole = whole.clamp(low, high)
    elif not step.sigma_next:  # nothing sharper follows
        whole = within(whole, *surroundings(step.sources))
    return proximal(x0_hat, whole, step.sigma, sigma_n), BandState(target, seen)


@dataclass(frozen=True)
class EMState:
    """Scales of the Laplace residuals, shape (b, k), and the split gradient of the total variation."""

    scale: Tensor
    gradient_x: Tensor
    gradient_y: Tensor


def em(
    x0_hat: Image, step: Step, state: EMState | None, *, form: str, penalty: float = 0.01, tv: float = 0.5
) -> tuple[Image, EMState]:
    r"""One step of DDFM's hierarchical expectation-maximisation with the weights in its likelihood.

    Residuals :math:`f - c_k` are Laplace, a Gaussian scale mixture. The E-step gives each pixel's precision,
    the M-step a weighted mean with a total-variation term that is split off:

    .. math:: a_k = \sqrt{2 / \tau_k} \,/\, |\hat x_0 - c_k|, \qquad
              f = \frac{\sum_k 2 K w_k a_k c_k + \eta h}{\sum_k 2 K w_k a_k + \eta}

    with :math:`h = (1 + \nabla^\top\nabla)^{-1}(\hat x_0 + \nabla^\top u)` in the Fourier domain. DDFM
    bounds the second precision by twice the first, and so does ``code``; ``paper`` bounds each by twice the smallest,
    which does not depend on the order. DDFM writes two sources; K is our generalisation, and so is the
    total variation of f itself, which at its weight of 0.01 changes little.

    ``form`` ``paper`` returns f (its :math:`f = x + v`). ``code`` returns :math:`i - x = i + v - f` as DDFM's published
    code does, which reflects the estimate about the middle of the two sources i (infrared in DDFM) and v; any other
    number of sources is a ValueError. ``penalty`` is the weight eta of the split, ``tv`` that of the total variation.

    Reference: Zhao et al., "DDFM: Denoising diffusion model for multi-modality image fusion", ICCV 2023.
    """
    k = step.sources.shape[1]
    if form == "code" and k != 2:
        raise ValueError(f"em_form=code is defined for two sources, not {k}: use em_form=paper")
    if state is None:
        zeros = torch.zeros_like(x0_hat)
        state = EMState(x0_hat.new_ones(len(x0_hat), k), zeros, zeros)
    precision = (2 / state.scale.view(-1, k, 1, 1, 1) / ((x0_hat[:, None] - step.sources).square() + 1e-6)).sqrt()
    bound = precision[:, :1] if form == "code" else precision.amin(1, keepdim=True)
    precision = precision.minimum(2 * bound)
    scale = (1 / (precision + 1e-10)).mean((2, 3, 4)) + state.scale / 2
    smooth = _split_smooth(x0_hat, state)
    shrink = penalty / (2 * tv + penalty)
    new_state = EMState(scale, shrink * (smooth - smooth.roll(-1, -1)), shrink * (smooth - smooth.roll(-1, -2)))
    share = 2 * k * step.weight * precision
    fused = ((share * step.sources).sum(1) + penalty * smooth) / (share.sum(1) + penalty)
    return (step.sources.sum(1) - fused if form == "code" else fused), new_state


def _split_smooth(image: Tensor, state: EMState) -> Tensor:
    """Solves (1 + D'D) h = image + D'u with periodic forward differences D."""
    h, w = image.shape[-2:]
    back_x = state.gradient_x - state.gradient_x.roll(1, -1)
    back_y = state.gradient_y - state.gradient_y.roll(1, -2)
    eigen_y = 2 - 2 * torch.cos(2 * torch.pi * torch.fft.fftfreq(h, device=image.device))
    eigen_x = 2 - 2 * torch.cos(2 * torch.pi * torch.fft.rfftfreq(w, device=image.device))
    spectrum = torch.fft.rfft2(image + back_x + back_y) / (1 + eigen_y[:, None] + eigen_x)
    return torch.fft.irfft2(spectrum, s=(h, w)).to(image)


def posterior(x0_hat: Image, step: Step, state: None, *, sigma_n: float) -> tuple[Image, None]:
    r"""Posterior mean of the image given the sources, by a gradient through the network.

    .. math:: \hat x_0' = \hat x_0 - \frac{1-\bar\alpha_t}{\sqrt{\bar\alpha_t}}\,
              \nabla_{x_t} \frac{\sum_k w_k \lVert c_k - \hat x_0(x_t) \rVert^2}{2\,(1-\bar\alpha_t + \sigma_n^2)}

    Tweedie's formula for the likelihood of DPS, with the estimate's own variance added as in ΠGDM: ``blend`` with the
    denoiser's Jacobian in place of a constant. The result is kept between the estimate and the sources.

    References: Chung et al., "Diffusion posterior sampling", 2023;
    Song et al., "Pseudoinverse-guided diffusion models", 2023.
    """
    assert step.x_t is not None
    difference = (step.weight * (x0_hat[:, None] - step.sources).square()).sum() / 2
    (gradient,) = torch.autograd.grad(difference, step.x_t)
    channels = step.x_t.shape[1] // x0_hat.shape[1]  # a grey estimate is the mean of three, its variance a third
    gradient = gradient.unflatten(1, (-1, channels)).mean(2)
    x0_hat = x0_hat.detach()
    scale = step.variance / step.alpha_bar**0.5 / (step.variance / channels + sigma_n**2)
    low = step.sources.amin(1).minimum(x0_hat)
    high = step.sources.amax(1).maximum(x0_hat)
    return (x0_hat - scale * gradient).clamp(low, high), state


posterior.needs_graph = True  # pyright: ignore[reportFunctionMemberAccess]
for _own in (blend, bands, em, posterior):
    _own.needs_reconstructions = False  # pyright: ignore[reportFunctionMemberAccess, reportAttributeAccessIssue]


def needs(guidance: Guidance, what: str) -> bool:
    """Whether a guidance needs the ``graph``, the ``estimate`` or the ``reconstructions``, by its attributes."""
    told = getattr(getattr(guidance, "func", guidance), f"needs_{what}", what != "graph")
    alone = what == "estimate" and getattr(guidance, "keywords", {}).get("sigma_n") == 0
    return told and not (alone and getattr(guidance, "func", None) in (blend, increments, bands))


def make_guidance(config: SamplerConfig) -> Guidance:
    """The guidance of a configuration."""
    g = config.guidance
    if g.kind == "em":
        return partial(em, form=config.research.em_form)
    if g.kind == "bands":
        return partial(bands, sigma_n=g.sigma_n, scale=g.scale, energy=g.energy, tone=TONES[config.tone])
    return partial({"blend": blend, "increments": increments, "posterior": posterior}[g.kind], sigma_n=g.sigma_n)
