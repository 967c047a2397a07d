"""What a prior can be: pipelines, networks and schedules judged by their JSON files, before weights are read."""

from collections.abc import Mapping
from typing import Any, get_args

from dig2dig.errors import PriorError
from dig2dig.priors.denoiser import Prediction
from dig2dig.priors.schedule import BetaSchedule

KIND = "a prior here is an unconditional UNet2DModel on pixels"
NEEDS = {
    **dict.fromkeys(("vae", "vqvae", "movq"), "works on latents"),
    **dict.fromkeys(("text_encoder", "tokenizer"), "needs a text"),
    "controlnet": "needs a control image",
    "image_encoder": "needs an image",
    "transformer": "has a transformer",
}
"""Parts of pipelines that are no prior, the telling ones first."""
LEVELS, LAYERS, CHANNELS, STEPS = 12, 32, 16_384, 100_000  # no network that can be run has more


def check_pipeline(name: str, index: Mapping[str, Any]) -> None:
    """Refuses a pipeline (``model_index.json``) that has more than a network and a schedule."""
    parts = [part for part, kind in index.items() if isinstance(kind, list) and any(kind)]
    parts = [part for part in parts if part not in ("unet", "scheduler")]
    if parts:
        part = next((part for part in NEEDS if part in parts), parts[0])
        pipeline, reason = index.get("_class_name"), NEEDS.get(part, "needs another part")
        raise PriorError(f"{name}: a {pipeline} {reason} ({part}); {KIND}")


def check_network(name: str, config: Mapping[str, Any]) -> None:
    """Refuses a network by its config: another class, a condition, other channels, or sizes that nobody can run."""
    kind = config.get("_class_name")
    if kind not in ("UNet2DModel", "ResidualUNet"):
        raise PriorError(f"{name}: holds a {kind!s:.40}; {KIND}")
    for option in ("class_embed_type", "num_class_embeds"):
        if config.get(option) is not None:
            raise PriorError(f"{name}: its network needs a class ({option}={config[option]!s:.20}); {KIND}")
    inputs, outputs = config.get("in_channels", 3), config.get("out_channels", 3)
    if inputs not in (1, 3, 4, 12) or outputs not in (inputs, 2 * inputs):
        raise PriorError(
            f"{name}: its network makes {outputs!s:.20} channels of {inputs!s:.20}; a prior takes images of 1 or 3 "
            "channels, or their patches (4 or 12), and gives as many, or twice as many with a variance"
        )
    channels, layers = config.get("block_out_channels", [224]), config.get("layers_per_block", 2)
    blocks = [config.get(f"{way}_block_types", []) for way in ("down", "up")]
    lists = all(isinstance(many, list) and len(many) <= LEVELS for many in (channels, *blocks))
    if not (lists and _within(1, layers, LAYERS) and all(_within(1, width, CHANNELS) for width in channels)):
        raise PriorError(
            f"{name}: its config describes no network of a usable size (block_out_channels={channels!s:.60}, "
            f"layers_per_block={layers!s:.20}); at most {LEVELS} levels, {LAYERS} layers, {CHANNELS} channels"
        )


def check_scheduler(name: str, scheduler: Mapping[str, Any]) -> None:
    """Refuses a schedule that is not computed here, instead of taking another for it."""
    betas, trained = scheduler.get("beta_schedule", "linear"), scheduler.get("trained_betas")
    prediction = scheduler.get("prediction_type", "epsilon")
    known = trained is not None or betas in get_args(BetaSchedule)
    variance_preserving = "sigma_max" not in scheduler and not scheduler.get("rescale_betas_zero_snr")
    if not (known and prediction in get_args(Prediction) and variance_preserving):
        raise PriorError(
            f"{name}: {scheduler.get('_class_name')} with betas '{betas!s:.40}' and prediction '{prediction!s:.40}'; "
            f"known are {', '.join(get_args(BetaSchedule))} without rescaling, and {', '.join(get_args(Prediction))}"
        )
    ends = [scheduler.get(f"beta_{end}", 0.01) for end in ("start", "end")] if trained is None else trained
    ends = ends if isinstance(ends, list) else []
    steps = scheduler.get("num_train_timesteps", 1000) if trained is None else len(ends)
    sound = all(isinstance(beta, float | int) and 0 <= beta < 1 for beta in ends)
    if not (ends and sound and _within(1, steps, STEPS)):
        raise PriorError(f"{name}: expected 1 to {STEPS} steps, and betas in [0, 1)")


def _within(least: int, number: object, most: int) -> bool:
    return isinstance(number, int) and least <= number <= most
