"""One run of ``train.py``: what learns, where it stands, how Lightning runs it, and what it leaves."""

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint, ThroughputMonitor
from lightning.pytorch.callbacks import TQDMProgressBar as ProgressBar

from datamodules.image_data import ImageDataModule
from datamodules.pair_data import PairDataset
from datamodules.pairing import find_pairs
from datamodules.pairs import Reading, Sample
from datamodules.transforms import PairTransform, validation_crop
from dig2dig.atomic import write_atomically
from dig2dig.cli import from_yaml, to_yaml
from dig2dig.config_train import AdaptConfig, TrainConfig
from dig2dig.inference.run import build_trainer
from dig2dig.modules import PriorModule
from dig2dig.priors.denoiser import Denoiser
from dig2dig.priors.files import PriorError, file_sha256
from dig2dig.priors.load import build_prior, load_prior, save_prior, weights_file
from dig2dig.priors.lora import add_adapter, merge_adapter, save_adapter
from dig2dig.priors.loss import validation_psnr
from dig2dig.tracking.loggers import close, log_scalars, make_loggers
from dig2dig.tracking.monitor import FusionMonitor, fuse_and_describe, scalars
from dig2dig.training.card import Facts, model_card
from dig2dig.training.checkpoints import AtomicCheckpointIO, WeightAverage, cluster, finish, read_checkpoint


def open_prior(config: TrainConfig) -> Denoiser:
    """The prior that a run starts from, or a new one; in fp32, the trainer's precision decides."""
    if not config.prior:
        net = config.network
        return build_prior(net.channels, net.layers, net.patch, net.prediction)
    denoiser = load_prior(config.prior, config.prior_sha256, "fp32")
    if config.adapter:
        merge_adapter(denoiser, Path(config.adapter), config.prior)
    return denoiser


def choose_weights(denoiser: Denoiser, adapt: AdaptConfig) -> Denoiser:
    """Lets those weights learn that the mode names, and no others."""
    denoiser.requires_grad_(adapt.mode == "full").train()
    if adapt.mode == "lora":
        add_adapter(denoiser, adapt.rank, adapt.alpha)
    elif adapt.mode == "last":
        unet: Any = denoiser.network.unet
        blocks = list(unet.up_blocks)[len(unet.up_blocks) - min(adapt.blocks, len(unet.up_blocks)) :]
        for part in (*blocks, unet.conv_norm_out, unet.conv_out):
            part.requires_grad_(True)
    return denoiser


def fusion_samples(config: TrainConfig) -> list[Sample]:
    """The pairs that are fused during training, cropped; pairs that cannot be read are reported and left out."""
    if not config.fusion.sources:
        return []
    fusion = config.fusion
    transform = PairTransform(validation_crop(fusion.crop)) if fusion.crop else None
    pairs = PairDataset(find_pairs(fusion.sources), Reading(fusion.task, True, transform=transform))
    samples: list[Sample] = []
    for index in range(len(pairs)):
        item = pairs[index]
        if len(samples) == config.logger.pairs:
            break
        if isinstance(item, Sample):
            samples.append(item)
        else:
            print(f"skipped: {item.reason}", file=sys.stderr)
    return samples


def checkpoint_path(config: TrainConfig) -> Path:
    """The checkpoint that a run goes on from."""
    return Path(config.out) / "checkpoints" / "last.ckpt"


def open_run(config: TrainConfig) -> tuple[TrainConfig, int]:
    """The configuration with the prior's hash, and the step at which a run in ``out`` stands, 0 if there is none.

    Raises:
        PriorError: The folder holds a run with other options, or its checkpoint is damaged.
    """
    if config.prior:
        sha256 = config.prior_sha256 or file_sha256(weights_file(config.prior))
        config = replace(config, prior_sha256=sha256)
    path = checkpoint_path(config)
    if config.fast_dev_run or not path.is_file():
        return config, 0
    steps = int(read_checkpoint(path)["global_step"])
    earlier = from_yaml(TrainConfig, Path(config.out) / "config.yaml")
    changed = _differences(_shaping(earlier), _shaping(config)) if earlier else ["its config.yaml cannot be read"]
    if steps and changed:
        raise PriorError(f"{config.out}: holds a run with other options ({changed[0]}); give another out=")
    return config, steps


def _shaping(config: TrainConfig) -> dict[str, Any]:
    """What the weights depend on, by option."""
    free = ("val_crop", "workers", "cache")
    data = {name: value for name, value in asdict(config.data).items() if name not in free}
    groups = {"data": data, "network": asdict(config.network), "adapt": asdict(config.adapt)}
    groups["optim"] = asdict(config.optim)
    values = {f"{group}.{name}": value for group, options in groups.items() for name, value in options.items()}
    names = ("prior", "prior_sha256", "adapter", "seed", "precision", "overfit")
    return values | {name: getattr(config, name) for name in names}


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [f"{name} was {before[name]}, now {now[name]}" for name in now if before[name] != now[name]]


def check_sizes(config: TrainConfig, denoiser: Denoiser) -> None:
    """Refuses crops that the network cannot take, before hours have passed.

    Raises:
        PriorError: A side is not divisible as the network needs it, or the prior is not one for colour.
    """
    if denoiser.channels != 3:
        raise PriorError(f"{config.prior}: a prior for grey images; training reads colour")
    for name in ("crop", "val_crop"):
        side = getattr(config.data, name)
        if side % denoiser.multiple:
            raise PriorError(f"data.{name}={side}: this network takes multiples of {denoiser.multiple}")


class Throughput(ThroughputMonitor):
    """Lightning's monitor without validation, whose batches it would log at steps that are not the training's."""

    def _compute(self, trainer: Trainer, iter_num: int | None = None) -> None:
        if trainer.training:
            super()._compute(trainer, iter_num)


def make_callbacks(config: TrainConfig, samples: list[Sample], start: int) -> list[Callback]:
    """Averaged weights, checkpoints, what is logged, fusions to look at, and a progress bar."""
    callbacks: list[Callback] = [WeightAverage(config.optim.ema)] if config.optim.ema else []
    callbacks.append(ProgressBar())
    if config.fast_dev_run:
        return callbacks
    saving = ModelCheckpoint(
        checkpoint_path(config).parent,
        save_last=True,
        save_top_k=0,
        every_n_train_steps=config.save_every,
        enable_version_counter=False,
    )
    saving._last_global_step_saved = start  # or a resumed run would save once amid an accumulation
    callbacks.append(saving)
    log = config.logger
    if log.csv or log.tensorboard or log.wandb.mode != "disabled":
        callbacks += [LearningRateMonitor(), Throughput(lambda batch: len(batch["image"]), window_size=20)]
    if samples:
        fusion, folder = config.fusion, Path(config.out) / "fusion"
        callbacks.append(FusionMonitor(folder, len(samples), samples, fusion.sampler, fusion.every, config.seed))
    return callbacks


def make_trainer(config: TrainConfig, samples: list[Sample], start: int) -> Trainer:
    """Lightning's trainer with :func:`make_callbacks` and the loggers that the configuration names."""
    out, optim = Path(config.out), config.optim
    trainer = build_trainer(
        config.trainer,
        default_root_dir=out,
        precision=config.precision,
        max_steps=optim.steps,
        accumulate_grad_batches=optim.accumulate,
        gradient_clip_val=optim.clip or None,
        val_check_interval=config.val_every * optim.accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=min(config.logger.every, optim.steps),
        use_distributed_sampler=False,  # the sampler splits global batches itself
        fast_dev_run=config.fast_dev_run,
        logger=False,
        enable_checkpointing=not config.fast_dev_run,
        callbacks=make_callbacks(config, samples, start),
        plugins=[AtomicCheckpointIO(), *cluster()],
    )
    if not config.fast_dev_run:  # now each process knows its rank
        trainer.loggers = make_loggers(config.logger, out, asdict(config), start)
        if trainer.is_global_zero:
            write_atomically(out / "config.yaml", to_yaml(config).encode())
    return trainer


def measure(config: TrainConfig, denoiser: Denoiser, data: ImageDataModule, samples: list[Sample]) -> dict[str, float]:
    """Denoising PSNR on the held-out images, and metrics and gain statistics of fusions, outside of any training."""
    device = torch.device("cuda" if torch.cuda.is_available() and config.trainer.accelerator != "cpu" else "cpu")
    denoiser = denoiser.to(device).eval()
    batches = ({name: value.to(device) for name, value in batch.items()} for batch in data.val_dataloader())
    values = validation_psnr(denoiser, batches)
    return values | scalars(fuse_and_describe(samples, denoiser, config.fusion.sampler, config.seed, device))


def export(config: TrainConfig, data: ImageDataModule, devices: int) -> dict[str, float]:
    """Writes the prior, or its adapter, with averaged weights and a model card; gives its PSNR by noise level."""
    out = Path(config.out)
    before = measure(config, open_prior(config), data, []) if config.prior else {}
    denoiser = choose_weights(open_prior(config), config.adapt)
    finish(torch.nn.ModuleDict({"denoiser": denoiser}), read_checkpoint(checkpoint_path(config)))
    after = measure(config, denoiser, data, [])
    card = model_card(config, denoiser, Facts(len(data.train), len(data.val or []), devices, before, after))
    folder = out / ("adapter" if config.adapt.mode == "lora" else "prior")
    if config.adapt.mode == "lora":
        save_adapter(denoiser, folder, config.prior, config.adapt.rank, config.adapt.alpha)
        print(f"adapter written: python infer.py … prior.path={config.prior} prior.adapter={folder}")
    else:
        save_prior(denoiser, folder)
        print(f"prior written: python infer.py … prior.path={folder}")
    write_atomically(folder / "README.md", card.encode())
    return after


def validate(config: TrainConfig) -> None:
    """Prints what :func:`measure` gives for a prior as it is."""
    denoiser = open_prior(config)
    check_sizes(config, denoiser)
    data = ImageDataModule(config.data, config.seed, config.optim.steps)
    for name, value in measure(config, denoiser, data, fusion_samples(config)).items():
        print(f"{name:<28} {value:.4g}")


def train(config: TrainConfig) -> None:
    """Trains, or goes on where ``OUT/checkpoints`` stands, and writes the prior or the adapter."""
    config, start = open_run(config)
    denoiser = open_prior(config)
    check_sizes(config, denoiser)
    data = ImageDataModule(config.data, config.seed, config.optim.steps, config.overfit)
    module = PriorModule(choose_weights(denoiser, config.adapt), config.optim, config.seed)
    trainer = make_trainer(config, fusion_samples(config), start)
    path = checkpoint_path(config)
    if start < config.optim.steps:
        trainer.fit(module, data, ckpt_path=path if start else None)
    if config.fast_dev_run:
        return
    if start < config.optim.steps:
        trainer.save_checkpoint(path)
    if trainer.is_global_zero:
        psnr = export(config, data, trainer.world_size)
        log_scalars(trainer.loggers, {f"final/{name}": value for name, value in psnr.items()}, config.optim.steps)
    close(trainer.loggers)
