"""The model card of a trained prior: what it is, how it was made, and what was measured."""

import platform
from dataclasses import dataclass
from importlib.metadata import version

from dig2dig.config_train import TrainConfig
from dig2dig.priors.denoiser import Denoiser
from dig2dig.priors.loss import UNIFORM_SHARE

CARD = """---
library_name: diffusers
tags: [diffusion, image-fusion, denoising, unconditional]
---

# {title}

An unconditional diffusion prior for dig2dig, {origin}.

| | |
| --- | --- |
| network | {parameters:,} parameters, {patch}×{patch} patches, {channels} image channel(s), predicts {prediction} |
| learned | {mode} |
| steps | {steps} of {batch} crops of {crop} px, seed {seed}, precision {precision} |
| learning rate | {lr:g}, {warmup} steps of warm-up, then cosine; EMA {ema:g}; clipped at {clip:g} |
| noise levels | uniform in log sigma from {sigma_min:g} to {sigma_max:g}, {uniform:.0%} uniform in time |
| weighting | {weighting} |
| data | {images} images of `{root}` |
| made with | dig2dig {dig2dig}, torch {torch}, Python {python} |

## Use

```bash
python infer.py configs/ivf.yaml sources.visible=DIR sources.infrared=DIR {use}
```

## How well it denoises

{measured}

## Before you share it

Licence, intended use and limits follow from the data, which only you know: add them here.
"""


@dataclass(frozen=True)
class Facts:
    """What a finished training knows beside its configuration.

    Attributes:
        images: How many images it was trained on.
        held_out: How many images validated it.
        devices: How many processes shared each batch.
        before: Denoising PSNR in dB before, by noise level; empty if it began from scratch or nothing was held out.
        after: The same after.
    """

    images: int
    held_out: int
    devices: int
    before: dict[str, float]
    after: dict[str, float]


def model_card(config: TrainConfig, denoiser: Denoiser, facts: Facts) -> str:
    """Fills the card from a finished run."""
    o, data, adapt = config.optim, config.data, config.adapt
    mode = {
        "full": "all weights",
        "lora": f"low-rank adapters of rank {adapt.rank}, alpha {adapt.alpha:g}; `adapter/` holds them alone",
        "last": "the output layers and the last up block",
    }[adapt.mode]
    weighting = f"min-SNR, gamma {o.gamma:g}" if o.weighting == "min_snr" else "none"
    use = f"prior.path={config.prior} prior.adapter={config.out}/adapter"
    return CARD.format(
        title=config.out.rstrip("/").rpartition("/")[2],
        origin=f"adapted from `{config.prior}`" if config.prior else "trained from scratch",
        parameters=sum(weight.numel() for weight in denoiser.parameters()),
        patch=denoiser.patch,
        channels=denoiser.channels,
        prediction={"epsilon": "the noise", "v_prediction": "v", "sample": "the image"}[denoiser.prediction],
        mode=mode,
        batch=data.batch_size * o.accumulate * facts.devices,
        crop=data.crop,
        root=data.root,
        seed=config.seed,
        precision=config.precision,
        weighting=weighting,
        use=use if adapt.mode == "lora" else f"prior.path={config.out}/prior",
        images=facts.images,
        measured=_table(facts),
        dig2dig=version("dig2dig"),
        torch=version("torch"),
        python=platform.python_version(),
        **{name: getattr(o, name) for name in ("steps", "lr", "warmup", "ema", "clip", "sigma_min", "sigma_max")},
        uniform=UNIFORM_SHARE,
    )


def _table(facts: Facts) -> str:
    if not facts.after:
        return "Not measured: the run had no validation images (`data.val`, `data.val_share`)."
    names = list(facts.after)
    lines = [
        f"PSNR in dB of one-step estimates on {facts.held_out} held-out images, one noise draw each:",
        "",
        f"| sigma of 255 | {' | '.join(name.removeprefix('psnr_') for name in names)} |",
        f"| --- |{' --- |' * len(names)}",
    ]
    for title, row in (("before", facts.before), ("after", facts.after)):
        if row:
            lines.append(f"| {title} | {' | '.join(f'{row[name]:.2f}' for name in names)} |")
    return "\n".join(lines)
