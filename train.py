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

    from dig2dig.inference.run import REFUSALS, hold, one_line, quiet
    from dig2dig.priors.allocator import keep_freed_memory
    from dig2dig.training.run import train, validate

    quiet()
    keep_freed_memory()
    seed_everything(config.seed, verbose=False)
    try:
        if config.validate or config.fast_dev_run:
            validate(config) if config.validate else train(config)
        else:
            with hold(config.out):
                train(config)
    except REFUSALS as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
