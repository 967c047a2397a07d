"""The cards of trained priors and weights: what they are, how they were made, and what was measured."""

import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template
from torch import nn

from dig2dig.config_train import TrainConfig
from dig2dig.fusion.weight import WeightNetwork
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

    learned: int  # images or scenes it was trained on
    held_out: int  # images or pairs that validated it
    devices: int  # processes that shared each batch
    scores: dict[str, dict[str, float]]  # means over what was held out before and after; empty if they are not known


def weight_card(config: TrainConfig, network: WeightNetwork, facts: Facts) -> str:
    """Fills the card of learned weights from a finished run."""
    metrics, prior = list(next(iter(facts.scores.values()), {})), (config.prior_sha256 or "")[:12]
    values = {"data": config.data, "sampler": config.fusion.sampler, "metrics": metrics, "prior_sha256": prior}
    return _filled("card_weights.md.j2", config, network, facts, values)


def _filled(template: str, config: TrainConfig, network: nn.Module, facts: Facts, values: dict[str, Any]) -> str:
    """A template with what both cards tell, further values, and the versions of what made the run."""
    text = Path(__file__).with_name(template).read_text(encoding="utf-8")
    versions = {"dig2dig": version("dig2dig"), "torch": version("torch"), "python": platform.python_version()}
    made = Template(text, undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True)
    return made.render(
        config=config,
        optim=config.optim,
        facts=facts,
        title=config.out.rstrip("/").rpartition("/")[2],
        parameters=sum(weight.numel() for name, weight in network.named_parameters() if "lora_" not in name),
        batch=config.data.batch_size * config.optim.accumulate * facts.devices,
        **values,
        **versions,
    )


def model_card(config: TrainConfig, denoiser: Denoiser, facts: Facts) -> str:
    """Fills the card from a finished run."""
    optim, adapt = config.optim, config.adapt
    lora = f"prior.path={config.prior} prior.adapter={config.out}/adapter"
    values = {
        "denoiser": denoiser,
        "origin": f"adapted from `{config.prior}`" if config.prior else "trained from scratch",
        "prediction": PREDICTIONS[denoiser.prediction],
        "mode": MODES[adapt.mode].format(rank=adapt.rank, alpha=adapt.alpha),
        "weighting": f"min-SNR, gamma {optim.gamma:g}" if optim.weighting == "min_snr" else "none",
        "use": lora if adapt.mode == "lora" else f"prior.path={config.out}/prior",
        "uniform": UNIFORM_SHARE,
    }
    return _filled("card.md.j2", config, denoiser, facts, values)
