"""The command ``dig2dig``."""

import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path

from dig2dig import __version__
from dig2dig.cli import importing, keep_freed_memory, load
from dig2dig.config import InferConfig, PriorConfig
from dig2dig.config_train import TrainConfig
from dig2dig.errors import UserError, exits_in_one_line, last_resort, usage

USAGE = """dig2dig COMMAND …: image fusion with diffusion information gain

  fuse TASK FILE FILE … [out=RESULT] [key=value …]   fuse the files of one scene, or folders of them
  infer [CONFIG.yaml …] [key=value …]                fuse pairs and stacks, with a report; what infer.py does
  train [CONFIG.yaml …] [key=value …]                train a prior or weights; what train.py does
  rig TASK sources.NAME=DIR … out=rig.yaml           calibrate the cameras of one mount, for align=rig.yaml
  report RUN RUN … [out=FILE]                        compare runs on one page
  benchmark COMMAND … [key=value …]                  quality, speed, align, ghosts, stack, flicker, …
  metrics FUSED SOURCE SOURCE … [key=value …]        metrics of a fused picture against its sources
  prior convert|merge …                              convert an ADM checkpoint, merge an adapter
  app [key=value …]                                  a page to try fusion in the browser

TASK is ivf (infrared-visible), mif (medical), mef (exposures), mff (focal planes) or universal.
dig2dig COMMAND --help says more; dig2dig --version prints the version."""

TASKS = ("ivf", "mif", "mef", "mff", "universal", "paper")
PACKAGES = ("report", "benchmark", "metrics", "app")

FUSE = """dig2dig fuse TASK FILE FILE … [out=RESULT] [key=value …]

Fuses the files of one scene into RESULT (by default fused with the suffix of the first file, or .png), or folders of
scenes, paired by name, into the folder RESULT. TASK is ivf (visible first, then infrared), mif, mef, mff or
universal; the first source decides the size and the depth. Options of dig2dig infer may follow, as align=auto;
those of runs, as report or workers, are for folders."""

RIG = """dig2dig rig TASK sources.NAME=DIR sources.NAME=DIR … out=rig.yaml [key=value …]

Registers several frames of cameras on one mount, and writes the median of what it finds for align=rig.yaml.
Options of dig2dig infer that say how files are paired and read may follow, as reference=visible."""

PRIOR = """dig2dig prior convert PRIOR FOLDER [half]     ADM or another prior as a diffusers folder; half: float16
dig2dig prior merge PRIOR ADAPTER FOLDER      a prior with a LoRA adapter in its weights, as a diffusers folder"""


def infer(argv: list[str], command: Sequence[str] = ("python", "infer.py")) -> int:
    """Fuses every pair that the configuration names, and gives the exit code: 1 if any pair failed."""
    config = load(InferConfig, argv)
    with importing():  # after the config, so that --help and errors answer at once
        from dig2dig.inference.run import infer as run
        from dig2dig.report.writer import ReportWriter

    return run(config, [*command, *argv], ReportWriter)


def train(argv: list[str]) -> int:
    """Trains, or resumes where ``OUT/checkpoints`` stands, and gives the exit code."""
    config = load(TrainConfig, argv)
    with importing():
        from dig2dig.atomic import is_file
        from dig2dig.training.run import train as run

    return run(config, [file for file in map(Path, argv) if "=" not in str(file) and is_file(file)])


@exits_in_one_line
def fuse(arguments: list[str]) -> int:
    """Fuses the files of one scene, or folders, with a preset."""
    if len(arguments) < 2 or {"--help", "-h"} & set(arguments):
        return usage(FUSE, arguments)
    task, *rest = arguments
    if task not in TASKS:
        raise UserError(f"no task '{task}': the first argument is ivf, mif, mef, mff or universal")
    options = [one for one in rest if "=" in one and not Path(one).exists()]
    files = [Path(one) for one in rest if one not in options]
    out = next((one.removeprefix("out=") for one in options if one.startswith("out=")), "")
    if len(files) < 2:
        raise UserError("give at least two files of one scene, or two folders")
    if lost := [file for file in files if not file.exists()]:
        raise UserError(f"{lost[0]}: no such file or folder" + "; type options as out=FILE" * (str(lost[0])[0] == "-"))
    with importing():
        from dig2dig.api import check_picture_file, fuse_result, named_sources, write_result
        from dig2dig.inference.encode import suffix_of

    if any(file.is_dir() for file in files):
        named = (f"sources.{name}={file}" for name, file in named_sources(task, files).items())
        return infer([task, *named, *options], command=("dig2dig", "infer"))
    target = Path(out or f"fused{suffix_of('reference', files[0].suffix.lower())}").expanduser()
    check_picture_file(target)
    if target.resolve() in [file.resolve() for file in files] or (not out and target.exists()):
        raise UserError(f"{target} exists: give another file, as out=result.png")
    keep_freed_memory()
    result = fuse_result(files, task, overrides=[one for one in options if not one.startswith("out=")])
    notes = [*([result.note] if result.note else []), *write_result(result, target)]
    assert result.image is not None
    height, width = result.image.shape[-2:]
    print("; ".join([f"{target}: {width}x{height}, fused in {result.seconds:.1f} s", *notes]))
    return 0


@exits_in_one_line
def prior(arguments: list[str]) -> int:
    """Converts a prior, or merges an adapter into it, once."""
    match arguments:
        case ["convert", source, folder] | ["convert", source, folder, "half"]:
            adapter, half = "", len(arguments) > 3
        case ["merge", source, adapter, folder]:
            half = False
        case _:
            return usage(PRIOR, arguments[:1])
    if not folder or Path(folder).is_file() or (Path(folder).is_dir() and any(Path(folder).iterdir())):
        state = "is a file" if Path(folder).is_file() else "is not empty"
        raise UserError(f"'{folder}' {state}: give a new folder" if folder else "the folder's name is empty")
    from dig2dig.priors.build import save_prior
    from dig2dig.priors.load import open_prior

    denoiser = open_prior(PriorConfig(source, adapter, precision="fp32"))
    if half:
        denoiser.network.half()
    save_prior(denoiser, Path(folder))
    print(f"{folder}: diffusers folder written")
    return 0


@exits_in_one_line
def rig(arguments: list[str]) -> int:
    """Finds how the cameras of a mount look beside the reference, from several frames, and writes it."""
    if not arguments or {"--help", "-h"} & set(arguments):
        return usage(RIG, arguments)
    config = load(InferConfig, arguments)
    from dig2dig.inference.calibrate import write_calibration

    return write_calibration(config)


def main(argv: list[str] | None = None) -> int:
    """Runs a command and gives its exit code."""
    sys.excepthook = last_resort
    argv = sys.argv[1:] if argv is None else argv
    match argv:
        case ["--version" | "-V"]:
            print(f"dig2dig {__version__}")
            return 0
        case ["fuse" | "infer" | "train" | "prior" | "rig" as command, *arguments]:
            own = {"fuse": fuse, "train": train, "prior": prior, "rig": rig}
            own["infer"] = partial(infer, command=("dig2dig", "infer"))
            return own[command](arguments)
        case [command, *arguments] if command in PACKAGES:
            return import_module(f"dig2dig.{command}.__main__").main(arguments) or 0
    if argv and argv[0] not in ("--help", "-h"):
        print(f"error: no command '{argv[0]}'\n", file=sys.stderr)
    return usage(USAGE, argv[:1])


if __name__ == "__main__":
    raise SystemExit(main())
