"""Fuses images.

python infer.py configs/ivf.yaml sources.visible=DIR_OR_FILE sources.infrared=DIR_OR_FILE out=DIR [key=value …]
"""

import sys
from dataclasses import asdict
from pathlib import Path

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
    from dig2dig.adapters import merge_adapter
    from dig2dig.backbone import PriorError, load_prior
    from dig2dig.callbacks import FusionWriter
    from dig2dig.logs import make_loggers
    from dig2dig.modules import FusionModule
    from dig2dig.monitor import FusionMonitor
    from dig2dig.run import conclude, list_pairs, open_run, quiet

    quiet()
    try:
        run = open_run(config, find_pairs(config.sources))
        if config.dry_run:
            list_pairs(run)
            return 0
        writer = FusionWriter(run.out, run.done, run.inputs)
        denoiser = load_prior(config.prior.path, config.prior.sha256, config.prior.precision)
        if config.prior.adapter:
            merge_adapter(denoiser, Path(config.prior.adapter), config.prior.path, config.prior.adapter_sha256)
        loggers = make_loggers(config.logger, run.out, asdict(config))
        trainer = Trainer(
            accelerator=config.trainer.accelerator,
            devices=config.trainer.devices,
            num_nodes=config.trainer.num_nodes,
            strategy=config.trainer.strategy,
            callbacks=[writer, FusionMonitor(run.out / "panels", config.logger.pairs), TQDMProgressBar()],
            logger=loggers,
            inference_mode=False,  # posterior guidance needs gradients
            use_distributed_sampler=False,  # SizeBatches splits whole batches
        )
        run.start()
    except (PairingError, PriorError, MisconfigurationException, ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2

    module = FusionModule(denoiser, config.sampler, config.seed, trace=config.save.weights or bool(loggers))
    data = FusionDataModule(run.todo, config.task, config.batch_size, config.workers, config.allow_missing)
    if run.todo:
        trainer.predict(module, data, return_predictions=False)
    return conclude(run, writer.rows) if trainer.is_global_zero else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
