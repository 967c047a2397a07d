"""The command line of the benchmarks."""

import sys
from importlib import import_module

from dig2dig.benchmark import config as schemas
from dig2dig.cli import load
from dig2dig.errors import UserError, exits_in_one_line, last_resort, usage

USAGE = """python -m dig2dig.benchmark COMMAND [FILE.yaml …] [key=value …]

  quality   methods × datasets × metrics, with seconds and network evaluations
  theory    covariance of weights and contributions against the final error, where the ideal image is known
  degraded  noisy sources against clean ones
  flicker   change from frame to frame where nothing moves, with one noise for all frames and one for each
  ghosts    a thing that moves within a stack, removed and kept; and what is wrongly found in static stacks
  align     registration of pairs that were moved by a known amount, and of unrelated ones
  stack     focal planes of many depths: error, seconds and memory as their number grows
  speed     cost of gains, steps, batches, sizes and windows, as ratios in one run

COMMAND --help lists its options."""

COMMANDS = ("quality", "theory", "degraded", "flicker", "ghosts", "align", "stack", "speed")
"""Each one is a module, with a schema called after it."""


@exits_in_one_line
def main(argv: list[str]) -> int:
    """Runs one benchmark and gives the exit code."""
    if not argv or argv[0] not in COMMANDS:
        if argv and argv[0] not in ("--help", "-h"):
            print(f"error: no command '{argv[0]}'\n", file=sys.stderr)
        return usage(USAGE, argv[:1])
    config = load(getattr(schemas, f"{argv[0].capitalize()}Config"), argv[1:])
    from dig2dig.priors.denoiser import pick_device
    from dig2dig.tracking.trainer import prepare

    if (wanted := getattr(config, "device", "auto")) not in ("auto", "cpu", pick_device().type):
        raise UserError(f"device={wanted}: there is none here; take auto or cpu")
    prepare()
    return import_module(f"dig2dig.benchmark.{argv[0]}").run(config)


if __name__ == "__main__":
    sys.excepthook = last_resort
    raise SystemExit(main(sys.argv[1:]))
