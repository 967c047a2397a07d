"""The model card of a trained prior: what it is, how it was made, and what was measured."""

import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from jinja2 import StrictUndefined, Template

from dig2dig.config_train import TrainConfig
from dig2dig.priors.denoiser import Denoiser
from dig2dig.priors.loss import UNIFORM_SHARE

PREDICTIONS = {"epsilon": "the noise", "v_prediction": "v", "sample": "the image"}
MODES = {
    "full": "all weights",
    "lora": "low-rank adapters of rank {rank}, alpha {alpha:g}; `adapter/` holds them alone",
    "last": "the output layers and the last up block",
}


@dataclass(frozen=True)
class Facts:
    """What a finished training knows beside its configuration."""

    images: int  # it was trained on
    held_out: int  # images that validated it
    devices: int  # processes that shared each batch
    before: dict[str, float]  # denoising PSNR in dB before, by noise level; empty if it is not known
    after: dict[str, float]  # the same after


def model_card(config: TrainConfig, denoiser: Denoiser, facts: Facts) -> str:
    """Fills the card from a finished run."""
    optim, adapt = config.optim, config.adapt
    lora = f"prior.path={config.prior} prior.adapter={config.out}/adapter"
    text = Path(__file__).with_name("card.md.j2").read_text(encoding="utf-8")
    return Template(text, undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True).render(
        config=config,
        optim=optim,
        denoiser=denoiser,
        facts=facts,
        title=config.out.rstrip("/").rpartition("/")[2],
        origin=f"adapted from `{config.prior}`" if config.prior else "trained from scratch",
        parameters=sum(weight.numel() for weight in denoiser.parameters()),
        prediction=PREDICTIONS[denoiser.prediction],
        mode=MODES[adapt.mode].format(rank=adapt.rank, alpha=adapt.alpha),
        batch=config.data.batch_size * optim.accumulate * facts.devices,
        weighting=f"min-SNR, gamma {optim.gamma:g}" if optim.weighting == "min_snr" else "none",
        use=lora if adapt.mode == "lora" else f"prior.path={config.out}/prior",
        uniform=UNIFORM_SHARE,
        dig2dig=version("dig2dig"),
        torch=version("torch"),
        python=platform.python_version(),
    )
