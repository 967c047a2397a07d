"""Trains a prior, or adapts one to a domain.

python train.py configs/prior.yaml data.root=DIR out=DIR [key=value …]
"""

import sys
from pathlib import Path

from dig2dig.config import TrainConfig, load, to_yaml


def main(argv: list[str]) -> None:
    """Loads the config, trains or resumes, and writes the finished prior to ``OUT/prior``."""
    config = load(TrainConfig, argv)
    # heavy imports come after the config, so that --help and errors answer at once
    from lightning import Trainer, seed_everything
    from lightning.pytorch.callbacks import EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger

    from datamodules.images import ImageDataModule
    from dig2dig.backbone import build_prior, save_prior
    from dig2dig.modules import PriorModule

    seed_everything(config.seed)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.yaml").write_text(to_yaml(config))
    network = config.network
    module = PriorModule(build_prior(network.channels, network.layers, network.patch), config.optim, config.seed)
    checkpoints = ModelCheckpoint(out / "checkpoints", save_last=True, save_top_k=0, every_n_train_steps=config.save_every)
    trainer = Trainer(
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
        log_every_n_steps=50,
        use_distributed_sampler=False,  # the sampler splits global batches itself
        fast_dev_run=config.fast_dev_run,
        logger=CSVLogger(out, name="log", version=""),
        callbacks=[EMAWeightAveraging(decay=config.optim.ema), checkpoints, LearningRateMonitor()],
    )
    last = out / "checkpoints" / "last.ckpt"
    data = ImageDataModule(config.data, config.seed, config.optim.steps)
    trainer.fit(module, data, ckpt_path=last if last.is_file() else None)
    if trainer.is_global_zero and not config.fast_dev_run:
        save_prior(module.denoiser, out / "prior")
        print(f"prior written to {out / 'prior'}")


if __name__ == "__main__":
    main(sys.argv[1:])
