"""Trains a prior, or adapts one to a domain.

python train.py configs/prior.yaml data.root=DIR out=DIR [key=value …]
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dig2dig.cli import load, to_yaml
from dig2dig.config import TrainConfig

if TYPE_CHECKING:
    from lightning import Trainer


def main(argv: list[str]) -> int:
    """Trains, or resumes where ``OUT/checkpoints`` stands, and writes the finished prior to ``OUT/prior``."""
    config = load(TrainConfig, argv)
    # heavy imports come after the config, so that --help and errors answer at once
    import torch
    from lightning import seed_everything

    from datamodules.images import ImageDataModule
    from dig2dig.backbone import PriorError, build_prior, load_prior, save_prior
    from dig2dig.callbacks import write_atomically
    from dig2dig.modules import PriorModule
    from dig2dig.run import quiet

    quiet()
    seed_everything(config.seed, verbose=False)
    out, net, last = Path(config.out), config.network, Path(config.out) / "checkpoints" / "last.ckpt"
    try:
        if config.prior:
            denoiser = load_prior(config.prior, precision="fp32")  # the trainer's precision decides
        else:
            denoiser = build_prior(net.channels, net.layers, net.patch)
        data = ImageDataModule(config.data, config.seed, config.optim.steps)
    except (PriorError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    module, trainer = (
        PriorModule(denoiser.requires_grad_(True).train(), config.optim, config.seed),
        make_trainer(config),
    )
    if config.validate:
        trainer.validate(module, data)
        return 0
    saved = torch.load(last, map_location="cpu", weights_only=True) if last.is_file() else None
    if saved and saved["global_step"] >= config.optim.steps:
        module.load_state_dict(saved["state_dict"])  # trained already: the checkpoint holds the averaged weights
    else:
        trainer.fit(module, data, ckpt_path=last if saved else None)
    if trainer.is_global_zero and not config.fast_dev_run:
        write_atomically(out / "config.yaml", to_yaml(config).encode())
        save_prior(module.denoiser, out / "prior")
        print(f"prior written: python infer.py … prior.path={out / 'prior'}")
    return 0


def make_trainer(config: TrainConfig) -> "Trainer":
    """Lightning's trainer with EMA, checkpoints, a CSV log and a progress bar; bare for validation."""
    from lightning import Trainer
    from lightning.pytorch.callbacks import EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint, TQDMProgressBar
    from lightning.pytorch.loggers import CSVLogger

    out, recording = Path(config.out), not config.validate
    saving = ModelCheckpoint(
        out / "checkpoints",
        save_last=True,
        save_top_k=0,
        every_n_train_steps=config.save_every,
        enable_version_counter=False,
    )
    averaging = EMAWeightAveraging(decay=config.optim.ema)
    return Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=config.strategy,
        precision=config.precision,  # pyright: ignore[reportArgumentType]
        max_steps=config.optim.steps,
        gradient_clip_val=config.optim.clip,
        val_check_interval=config.val_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=min(50, config.optim.steps),
        use_distributed_sampler=False,  # the sampler splits global batches itself
        fast_dev_run=config.fast_dev_run,
        logger=CSVLogger(out, name="log") if recording else False,
        callbacks=[averaging, saving, LearningRateMonitor(), TQDMProgressBar()] if recording else None,
        enable_checkpointing=recording,
    )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
