"""From Python: presets, and files fused in one call."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from datamodules.pairing import expand, find_pairs
from datamodules.pairs import Failure, read_pair
from dig2dig.atomic import refuse_inputs, write_atomically
from dig2dig.cli import load_strictly, preset_file
from dig2dig.color import to_pixels
from dig2dig.config import InferConfig, SamplerConfig
from dig2dig.errors import UserError
from dig2dig.inference.encode import PICTURES, encode, lost
from dig2dig.inference.state import reading
from dig2dig.modules.fuser import Fuser
from dig2dig.modules.results import Result
from dig2dig.priors.denoiser import Denoiser, pick_device
from dig2dig.priors.load import open_prior

FOLDERS_ONLY = (  # options of runs
    "dry_run=", "validate=", "overwrite=", "shard=", "sequence=", "batch_size=", "workers=", "out=", "save.format=",
    "save.weights=", "report.", "logger.", "trainer.devices=", "trainer.num_nodes=", "trainer.strategy=",
)  # fmt: skip
OTHERS = (".nii", ".gz", ".dcm", ".mp4")
MODALITIES = {"ivf": ("visible", "infrared")}  # sources of a task in their order; others are source_1, source_2, …


def preset(task: str, *overrides: str) -> SamplerConfig:
    """The sampling of a shipped preset, for :func:`dig2dig.fuse`.

    ``task`` is ``ivf``, ``mif``, ``mef``, ``mff`` or ``universal``; overrides are as on the command line, as
    ``sampler.tone=vivid``. A ValueError says that there is no such preset or option.
    """
    plain, config = (preset_config(task, {"a": "a", "b": "b"}, *given) for given in ((), overrides))
    if replace(config, sampler=plain.sampler) != plain:
        raise UserError(f"{', '.join(overrides)}: a preset's options are those of sampler.")
    return config.sampler


def preset_config(task: str, sources: Mapping[str, str], *overrides: str) -> InferConfig:
    """The whole configuration of a preset for given sources."""
    if preset_file(task) is None:
        raise UserError(f"no preset '{task}': there are ivf, mif, mef, mff and universal")
    named = [f"sources.{modality}={source}" for modality, source in sources.items()]
    return load_strictly(InferConfig, [task, *named, *overrides])


def named_sources(task: str, files: Sequence[str | Path]) -> dict[str, str]:
    """Sources by modality, in their order."""
    known = MODALITIES.get(task, ())
    names = known if len(known) == len(files) else [f"source_{k}" for k in range(1, len(files) + 1)]
    return {name: str(file) for name, file in zip(names, files, strict=True)}


def fuse_files(
    files: Sequence[str | Path],
    task: str = "ivf",
    out: str | Path | None = None,
    prior: Denoiser | None = None,
    overrides: Sequence[str] = (),
) -> np.ndarray:
    """Fuses the files of one scene, as ``infer.py`` does with a preset.

    Args:
        files: Two or more pictures of one scene; for ``ivf`` the visible one first. The first one decides the size,
            the depth and, for ``out``, the colour profile.
        task: Name of a preset.
        out: File for the result; its suffix is the format. None = nothing is written. What it loses is a warning.
        prior: The denoiser, where it is; None = that of the preset, on a GPU if there is one. Give it for many scenes.
        overrides: Options as on the command line, as ``align=auto``.

    Returns:
        The picture, uint8 or uint16, (h, w) if grey and (h, w, 3) if colour.

    Raises:
        ValueError: A file cannot be used, or an option does not exist; it says which, and what to do.
    """
    if out is not None:
        check_picture_file(Path(out))
        refuse_inputs(str(out), [Path(out)], (Path(file) for file in files if isinstance(file, (str, Path))))
    result = fuse_result(files, task, prior, overrides)
    assert result.image is not None and result.sample is not None
    if out is not None:
        for told in write_result(result, Path(out)):
            warnings.warn(f"{out}: {told}", stacklevel=2)
    pixels = to_pixels(result.image, result.sample.depth)
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


def fuse_result(
    files: Sequence[str | Path], task: str, prior: Denoiser | None = None, overrides: Sequence[str] = ()
) -> Result:
    """The result of :func:`fuse_files` with all that is known of it."""
    overrides = [overrides] if isinstance(overrides, str) else overrides
    if isinstance(files, (str, Path)) or len(files) < 2:
        raise UserError("give at least two files of one scene")
    if not all(isinstance(file, (str, Path)) for file in files):
        raise UserError("give the names of files; dig2dig.fuse takes tensors")
    if prior is not None and not isinstance(prior, Denoiser):
        raise UserError(f"prior={prior}: give what load_prior returns, or prior.path=… among the overrides")
    if unfit := next((one for one in overrides if one.startswith(FOLDERS_ONLY)), None):
        raise UserError(f"{unfit}: means nothing for the files of one scene; dig2dig infer takes it")
    if unfit := next((one for one in overrides if prior and one.startswith("prior.")), None):
        raise UserError(f"{unfit}: means nothing for a prior that is given; load_prior takes it")
    config = preset_config(task, named_sources(task, files), *overrides)
    pair, *more = expand(find_pairs(config.sources))
    if more:
        raise UserError(f"{files[0]}: {len(more) + 1} frames or slices; dig2dig infer fuses videos and volumes")
    sample = read_pair(pair, reading(config))
    if isinstance(sample, Failure):
        raise UserError(sample.reason)
    wanted, best = config.trainer.accelerator, pick_device("auto").type
    if wanted in ("gpu", "cuda", "mps") and (best == "cpu" or wanted not in ("gpu", best)):
        raise UserError(f"trainer.accelerator={wanted}: there is none here; take auto or cpu")
    denoiser = prior or open_prior(config.prior, pick_device(wanted))
    (result,) = Fuser(denoiser, config).fuse([sample], denoiser.device)
    if result.image is None:
        raise UserError(result.reason)
    return result


def check_picture_file(path: Path) -> None:
    """Refuses a name whose suffix is none of a picture's."""
    if path.suffix.lower() not in PICTURES:
        more = "; dig2dig infer writes volumes, series and videos" if path.suffix.lower() in OTHERS else ""
        raise UserError(f"out={path}: give a picture file, as fused.png, .tif, .jpg, .webp or .bmp{more}")


def write_result(result: Result, path: Path) -> list[str]:
    """Writes a fused picture, whole or not at all; gives notes on what the format loses."""
    image, sample, suffix = result.image, result.sample, path.suffix.lower()
    assert image is not None and sample is not None
    write_atomically(path, encode(image, suffix, sample.depth, sample.metadata, result.valid))
    return lost(suffix, sample.metadata, result.valid)
