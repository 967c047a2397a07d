"""Trains a prior, or adapts one to a domain.

python train.py configs/finetune.yaml data.root=DIR out=DIR [key=value …]
"""

import sys

from dig2dig.cli import load
from dig2dig.config_train import TrainConfig


def main(argv: list[str]) -> int:
    """Trains, or resumes where ``OUT/checkpoints`` stands, and writes the finished prior or adapter into ``OUT``."""
    config = load(TrainConfig, argv)
    # heavy imports come after the config, so that --help and errors answer at once
    from lightning import seed_everything
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from datamodules.images import ImageDataModule
    from datamodules.pairs import PairingError
    from dig2dig.logs import close, log_scalars
    from dig2dig.modules import PriorModule
    from dig2dig.run import quiet
    from dig2dig.training import (
        checkpoint_path,
        choose_weights,
        export,
        fusion_samples,
        make_trainer,
        measure,
        open_prior,
        open_run,
    )
    from dig2dig.weights import PriorError

    quiet()
    seed_everything(config.seed, verbose=False)
    try:
        denoiser = open_prior(config)
        data = ImageDataModule(config.data, config.seed, config.optim.steps, config.overfit)
        samples = fusion_samples(config)
        if config.validate:
            for name, value in measure(config, denoiser, data, samples).items():
                print(f"{name:<28} {value:.4g}")
            return 0
        start, path = open_run(config), checkpoint_path(config)
        module = PriorModule(choose_weights(denoiser, config.adapt), config.optim, config.seed)
        trainer = make_trainer(config, samples, start)
    except (PriorError, PairingError, MisconfigurationException, ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if start < config.optim.steps:
        trainer.fit(module, data, ckpt_path=path if start else None)
        if config.fast_dev_run:
            return 0
        trainer.save_checkpoint(path)
    if trainer.is_global_zero:
        psnr = export(config, data, trainer.world_size)
        log_scalars(trainer.loggers, {f"final/{name}": value for name, value in psnr.items()}, config.optim.steps)
    close(trainer.loggers)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
