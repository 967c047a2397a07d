"""One fusion of the page: from uploaded files to the file that ``infer.py`` would write, step by step."""

import math
import re
import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock

import numpy as np
import torch

from datamodules.pairing import Pair
from datamodules.pairs import Failure, read_pair
from datamodules.readers.pixels import IMAGE_SUFFIXES, image_size, read_picture
from datamodules.readers.source import shows_heat
from dig2dig.api import preset_config, write_result
from dig2dig.app.config import AppConfig
from dig2dig.app.worker import check
from dig2dig.color import to_pixels
from dig2dig.config import PriorConfig
from dig2dig.errors import ImageError, UserError
from dig2dig.fusion.plan import Snapshot
from dig2dig.fusion.resample import resize
from dig2dig.inference.encode import suffix_of
from dig2dig.inference.state import reading
from dig2dig.modules.fuser import Fuser
from dig2dig.modules.results import Result, Tracing
from dig2dig.priors.denoiser import Denoiser
from dig2dig.report.pictures import data_uri
from dig2dig.tracking.panels import to_colours

TASKS = {
    "infrared-visible": "ivf",
    "medical": "mif",
    "multi-exposure": "mef",
    "multi-focus": "mff",
    "anything else": "universal",
}
"""The presets of the page, by what people call them."""

ALIGNMENTS = {
    "take them as they are": "none",
    "bring them to one size": "resize",
    "find scale and place": "auto",
    "find the shift": "phase",
    "find the homography": "ecc",
}
"""What the page does with images that do not lie on each other; no file of this machine, as a rig is."""

CONTROLS = {
    "align=resize or auto brings them to one": "choose under 'If they do not lie on each other' what to do",
    "align=auto registers": "'find scale and place' registers them",
    "align=ecc registers": "'find the homography' registers it",
    "=keep keeps": "=keep in the command keeps",
    "=nodata=nan": "=nodata=nan to infer.py",
    "cannot be read (No such file or directory)": "no longer on the page: drop it again",
    "onto the reference": "onto the first image",
    ": take a colour prior": "; choose 'infrared-visible' or 'medical', or start the page with a colour prior",
}
"""What the page has in place of options in messages."""

SIDE, QUALITY = 480, 80  # of the pictures of sources and weights: longest side in pixels, JPEG
AT_WORK = Lock()  # a fusion that is given up goes on to the end of its layer, and the next one waits for it
PREVIEW = 1600  # longest side of the result on the page, pixels; the file that is downloaded is whole


@dataclass(frozen=True)
class Order:
    """A fusion as it is asked for."""

    files: Sequence[tuple[Path, str]]  # uploaded images and their names on their owner's disk
    task: str  # name of a config
    tone: str = "balanced"
    prefer: float = 1.0  # factor on the weight of the last image
    seed: int = 0
    align: str = "none"

    @property
    def names(self) -> list[str]:
        """The files' names."""
        return [Path(name).name for _, name in self.files]


@dataclass(frozen=True)
class Progress:
    """One step, as it is shown while the next one is made."""

    text: str  # number of the step, noise level and mean weights
    panels: list[tuple[str, str]]  # the sources, then the weight of each in colours: data URIs and captions


@dataclass(frozen=True)
class Done:
    """A fusion that is finished."""

    text: str
    file: Path  # the picture, called fused, with the depth and format that infer.py gives it
    preview: np.ndarray  # the same for the screen, 8 bits
    command: str  # the command line that makes the same bytes


def fuse_order(
    order: Order, denoiser: Denoiser, limits: AppConfig, folder: Path, show: Callable[[Progress], None]
) -> Done:
    """Fuses uploaded images and shows every step; the result lies in ``folder``; UserError in the page's terms."""
    try:
        pair = admit(order, limits, folder)
    except ImageError as error:
        raise UserError(in_page_terms(str(error), folder, order.names)) from error
    options = overrides(order, limits.prior, list(pair.files)[-1])
    config = preset_config(order.task, {modality: modality for modality in pair.files}, *options)
    sample = read_pair(pair, reading(config))
    if isinstance(sample, Failure):
        raise UserError(in_page_terms(sample.reason.removeprefix(f"{pair.name}: "), folder, order.names))
    shown = [data_uri(source, SIDE, QUALITY) for source in sample.sources]
    tracing = Tracing(side=SIDE, watch=lambda step: show(describe(step, shown, captions(order.names))))
    with AT_WORK:
        check()
        (result,) = Fuser(denoiser, config, tracing).fuse([sample], denoiser.device)
    return finish(result, order.names, folder, command(order, list(pair.files), options))


def overrides(order: Order, prior: PriorConfig, last: str) -> list[str]:
    """The options in which an order differs from its config; ``last`` is the modality of the last image."""
    usual = preset_config(order.task, {"a": "a", "b": "b"})  # whatever its sources
    asked = {
        "sampler.tone": (order.tone, usual.sampler.tone),
        f"prefer.{last}": (order.prefer, 1.0),
        "align": (order.align, usual.align),
        "seed": (order.seed, usual.seed),
    }
    asked |= {f"prior.{name}": (value, getattr(PriorConfig(), name)) for name, value in asdict(prior).items()}
    return [f"{name}={value}" for name, (value, default) in asked.items() if value not in (None, default)]


def admit(order: Order, limits: AppConfig, folder: Path) -> Pair:
    """The uploaded files under their own names, as one pair; of ``ivf``, the one that shows heat is called infrared.

    UserError if there are too few, too many, too large ones, others than images, or one twice; ImageError if damaged.
    """
    if not 2 <= len(order.files) <= limits.images:
        raise UserError(f"drop 2 to {limits.images} images of one scene, not {len(order.files)}")
    uploads = [file.resolve() for file, _ in order.files]
    placed: dict[str, Path] = {}
    for k, (upload, name) in enumerate(zip(uploads, order.names, strict=True), 1):
        if Path(name).suffix.lower() not in IMAGE_SUFFIXES:
            raise UserError(f"{name}: not an image; this page takes {', '.join(sorted(IMAGE_SUFFIXES))}")
        if upload in uploads[: k - 1]:
            raise UserError(f"{name}: dropped twice")
        place = folder / str(k) / name
        place.parent.mkdir(parents=True)
        try:
            place.symlink_to(upload)
        except (OSError, ValueError) as error:
            raise UserError(f"{name[:40]}: no name that a file can have here; give it another") from error
        placed[f"source_{k}"] = place
        height, width = image_size(place)
        if height * width > limits.megapixels * 1e6:
            more = f"this page takes {limits.megapixels:g} million, infer.py takes more"
            raise UserError(f"{name}: {width}x{height} pixels; {more}")
    warm = [modality for modality, file in placed.items() if order.task == "ivf" and shows_heat(file)]
    if len(warm) == 1:
        placed = {one.replace("source", "infrared") if one in warm else one: file for one, file in placed.items()}
    return Pair(next(iter(placed.values())).stem, placed)


def in_page_terms(text: str, folder: Path, names: Sequence[str]) -> str:
    """A message about files under the names with which they were dropped, about controls instead of options."""
    files = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    pattern = rf"{re.escape(str(folder))}/\d+/({files})|(?<!range\.)\b(?:source|infrared)_(\d+)\b"
    text = re.sub(pattern, lambda match: match[1] or names[int(match[2]) - 1], text)
    for option, control in CONTROLS.items():
        text = text.replace(option, control)
    return text


def guess_task(files: Sequence[str] | None, limits: AppConfig | None = None) -> str:
    """``mef`` for three or more colour pictures of one size, else the first task."""
    paths, most = [Path(file) for file in files or []], limits or AppConfig()
    with suppress(ImageError):
        sizes = {image_size(path) for path in paths if 2 < len(paths) <= most.images}
        alike = len(sizes) == 1 and math.prod(sizes.pop()) <= most.megapixels * 1e6  # nothing large is decoded
        if alike and all(len(read_picture(path).pixels.shape) == 3 for path in paths):
            return "mef"
    return "ivf"


def captions(names: Sequence[str]) -> list[str]:
    """What sources are called on the page: their names, numbered where two are alike."""
    stems = [Path(name).stem for name in names]
    alike = len(set(stems)) < len(stems)
    return [f"{k}. {stem}" if alike else stem for k, stem in enumerate(stems, 1)]


def describe(step: Snapshot, shown: Sequence[str], names: Sequence[str]) -> Progress:
    """Step, noise level, and each source beside its weight."""
    panels = list(zip(shown, names, strict=True))
    means = []
    for name, weight in zip(names, step.weight[0, :, 0].cpu(), strict=True):
        mean = f"{float(weight.mean()):.2f}"
        means.append(f"{name} {mean}")
        colours = torch.from_numpy(to_colours(weight, 0.0, 1.0).copy()).permute(2, 0, 1) / 255
        panels.append((data_uri(colours, SIDE, QUALITY), f"weight {mean}"))
    text = f"Step {step.index + 1} of {step.steps}, noise {step.sigma:.2f}; mean weights: {', '.join(means)}"
    return Progress(text, panels)


def finish(result: Result, names: Sequence[str], folder: Path, command: str) -> Done:
    """Writes the picture as ``infer.py`` does; UserError if it could not be fused, or its format has no room for it."""
    if result.image is None or result.sample is None:
        raise UserError(in_page_terms(result.reason.removeprefix(f"{result.name}: "), folder, names))
    file = folder / f"fused{suffix_of('reference', result.sample.suffix)}"
    write_result(result, file)
    height, width = result.image.shape[-2:]
    note = f"; {in_page_terms(result.note, folder, names)}" if result.note else ""
    text = f"Fused: {width}×{height} pixels in {result.seconds:.1f} s{note}"
    preview = to_pixels(resize(result.image[None], PREVIEW)[0])
    return Done(text, file, np.broadcast_to(preview, (*preview.shape[:2], 3)), command)


def command(order: Order, modalities: Sequence[str], options: Sequence[str]) -> str:
    """The command line for the same files in the current folder; those of one name keep a folder each."""
    alike = len(set(order.names)) < len(order.names)
    placed = [f"FOLDER_{k}/{name}" if alike else name for k, name in enumerate(order.names, 1)]
    sources = [f"sources.{modality}={name}" for modality, name in zip(modalities, placed, strict=True)]
    return shlex.join(["dig2dig", "infer", order.task, *sources, *options, "out=out"])
