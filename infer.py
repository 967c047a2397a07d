"""Fuses images.

python infer.py configs/ivf.yaml sources.visible=DIR_OR_FILE sources.infrared=DIR_OR_FILE out=DIR [key=value …]
"""

import sys

from dig2dig.cli import load
from dig2dig.config import InferConfig


def main(argv: list[str]) -> int:
    """Fuses every pair that the config names, and gives the exit code: 1 if any pair failed."""
    config = load(InferConfig, argv)
    # heavy imports come after the config, so that --help and errors answer at once
    from lightning import Trainer
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.callbacks import TQDMProgressBar

    from datamodules.fusion import FusionDataModule
    from datamodules.pairs import PairingError, find_pairs
    from dig2dig.backbone import PriorError, load_prior
    from dig2dig.callbacks import FusionWriter
    from dig2dig.modules import FusionModule
    from dig2dig.run import conclude, list_pairs, open_run, quiet

    quiet()
    try:
        run = open_run(config, find_pairs(config.sources))
        if config.dry_run:
            list_pairs(run)
            return 0
        writer = FusionWriter(run.out, run.done, run.inputs)
        denoiser = load_prior(config.prior.path, config.prior.sha256, config.prior.precision)
        trainer = Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            callbacks=[writer, TQDMProgressBar()],
            logger=False,
            inference_mode=False,  # posterior guidance needs gradients
            use_distributed_sampler=False,  # SizeBatches splits whole batches
        )
        run.start()
    except (PairingError, PriorError, MisconfigurationException, ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2

    module = FusionModule(denoiser, config.sampler, config.seed, trace=config.save.weights)
    data = FusionDataModule(run.todo, config.task, config.batch_size, config.workers, config.allow_missing)
    if run.todo:
        trainer.predict(module, data, return_predictions=False)
    return conclude(run, writer.rows) if trainer.is_global_zero else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
