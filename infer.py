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
    from datamodules.fusion import FusionDataModule
    from datamodules.pairs import find_pairs
    from dig2dig.adapters import open_prior
    from dig2dig.allocator import keep_freed_memory
    from dig2dig.callbacks import FusionWriter
    from dig2dig.logs import close
    from dig2dig.modules import FusionModule
    from dig2dig.run import REFUSALS, conclude, list_pairs, make_trainer, one_line, open_run, quiet

    quiet()
    keep_freed_memory()
    try:
        run = open_run(config, find_pairs(config.sources))
        if config.dry_run:
            list_pairs(run)
            return 0
        denoiser = open_prior(config.prior)
        writer = FusionWriter(run.out, run.done, run.inputs, config.save.weights)
        trainer = make_trainer(config, run, writer)
        trace = config.save.weights or bool(trainer.loggers)
        module = FusionModule(denoiser, config.sampler, config.seed, trace, config.noise, config.prior.offload)
        data = FusionDataModule(run.todo, config.task, config.batch_size, config.workers, config.allow_missing)
        if run.todo:
            trainer.predict(module, data, return_predictions=False)
        elif trainer.is_global_zero:
            run.start()
        close(trainer.loggers)
    except REFUSALS as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return conclude(run, writer.rows) if trainer.is_global_zero else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
