"""A denoiser in closed form."""

from torch import Tensor, nn

from dig2dig.priors.denoiser import Denoiser, Layout
from dig2dig.priors.schedule import at
from dig2dig.shapes import Image, Timestep


class GaussianDenoiser(Denoiser):
    r"""The exact denoiser of independent Gaussian pixels: the posterior mean in closed form.

    .. math:: \hat x_0 = \mu + \frac{\sqrt{\bar\alpha_t}\, s^2}{\bar\alpha_t s^2 + 1 - \bar\alpha_t}
              (x_t - \sqrt{\bar\alpha_t}\,\mu)

    Args:
        mean: Mean of every pixel.
        std: Standard deviation of every pixel, > 0.
        alpha_bar: Schedule, shape (n,).
        channels: Channels of the images.
    """

    def __init__(self, mean: float, std: float, alpha_bar: Tensor, channels: int = 1) -> None:
        super().__init__(nn.Identity(), alpha_bar, Layout("sample", channels))
        self.mean, self.variance = mean, std**2

    def outputs(self, x_t: Image, t: Timestep) -> Image:
        """The posterior mean."""
        alpha_bar_t = at(self.alpha_bar, t, x_t)
        slope = alpha_bar_t.sqrt() * self.variance / (alpha_bar_t * self.variance + 1 - alpha_bar_t)
        return self.mean + slope * (x_t - alpha_bar_t.sqrt() * self.mean)
