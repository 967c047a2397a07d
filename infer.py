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
    from datamodules.pair_data import FusionDataModule
    from datamodules.pairing import scenes
    from dig2dig.inference.forecast import list_pairs
    from dig2dig.inference.interrupts import Interrupted, heed_signals
    from dig2dig.inference.run import REFUSALS, conclude, hold, make_trainer, one_line, open_run, quiet, reading
    from dig2dig.inference.videos import join_videos
    from dig2dig.inference.writer import FusionWriter
    from dig2dig.modules import FusionModule, Tracing
    from dig2dig.priors.allocator import keep_freed_memory
    from dig2dig.priors.lora import open_prior
    from dig2dig.report.callback import ReportWriter
    from dig2dig.tracking.loggers import close

    quiet()
    keep_freed_memory()
    try:
        pairs = scenes(config)
        if config.dry_run:
            list_pairs(open_run(config, pairs))
            return 0
        with heed_signals(), hold(config.out):
            run = open_run(config, pairs)
            denoiser = open_prior(config.prior)
            report = ReportWriter(run.out, run.todo, run.done, run.key, config.report)
            writer = FusionWriter(run.out, run.done, config.save, report.write)
            trainer = make_trainer(config, run, report, writer)
            tracing = report.tracing
            if config.save.weights or trainer.loggers:
                logged = {pair.name for pair in run.todo[: config.logger.pairs]} | set(report.files)
                tracing = Tracing(None if config.save.weights else logged, estimates=bool(trainer.loggers))
            module = FusionModule(
                denoiser, config.sampler, config.seed, tracing, config.noise, config.prior.offload, config.exact
            )
            data = FusionDataModule(run.todo, reading(config), config.batch_size, config.workers)
            if run.todo:
                trainer.predict(module, data, return_predictions=False)
            elif trainer.is_global_zero:
                run.start()
            close(trainer.loggers)
            if not trainer.is_global_zero:
                return 0
            join_videos(run.out, pairs, writer.rows, config.reference)
            report.conclude(run.record, writer.rows, ["python", "infer.py", *argv])
            return conclude(run, writer.rows)
    except Interrupted as signal:
        print(f"interrupted: what is fused is kept, the same command goes on ({signal})", file=sys.stderr)
        return signal.exit_code
    except REFUSALS as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
