"""Fuses images: python infer.py or dig2dig infer CONFIG.yaml sources.MODALITY=DIR_OR_FILE … out=DIR [key=value …]."""

import sys

from dig2dig.cli import load
from dig2dig.config import InferConfig


def main(argv: list[str]) -> int:
    """Fuses every pair that the configuration names, and gives the exit code: 1 if any pair failed."""
    config = load(InferConfig, argv)
    # heavy imports come after the config, so that --help and errors answer at once
    from dig2dig.inference.run import infer
    from dig2dig.report.writer import ReportWriter

    return infer(config, ["python", "infer.py", *argv], ReportWriter)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
