"""Trains or adapts a prior: python train.py or dig2dig train CONFIG.yaml data.root=DIR out=DIR [key=value …]."""

import sys

from dig2dig.cli import load
from dig2dig.config_train import TrainConfig


def main(argv: list[str]) -> int:
    """Trains, or resumes where ``OUT/checkpoints`` stands, and gives the exit code."""
    config = load(TrainConfig, argv)
    # heavy imports come after the config, so that --help and errors answer at once
    from dig2dig.training.run import train

    return train(config)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
