"""One fusion of the page: from uploaded files to the file that ``infer.py`` would write, step by step."""

import math
import re
import shlex
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import torch

from datamodules.pairing import Pair, find_pairs
from datamodules.pairs import Align, Failure, read_pair
from datamodules.readers.pixels import IMAGE_SUFFIXES, image_size, read_picture
from dig2dig.api import preset_config
from dig2dig.app.config import AppConfig
from dig2dig.atomic import write_atomically
from dig2dig.config import PriorConfig
from dig2dig.errors import ImageError, JobError, PairingError
from dig2dig.fusion.plan import Snapshot
from dig2dig.fusion.resample import resize
from dig2dig.inference.encode import encode, suffix_of
from dig2dig.inference.state import reading
from dig2dig.modules.fuser import Fuser
from dig2dig.modules.results import Result, Tracing
from dig2dig.priors.denoiser import Denoiser
from dig2dig.report.thumbs import data_uri
from dig2dig.tracking.panels import to_colours, to_pixels

TASKS = {
    "infrared-visible": "ivf",
    "medical": "mif",
    "multi-exposure": "mef",
    "multi-focus": "mff",
    "anything else": "universal",
}
"""The presets of the page, by what people call them."""

PAIR = {"a": "a", "b": "b"}
"""Two sources whose names do not matter."""

SIDE = 480
"""Longest side of the pictures of sources and weights, pixels."""

QUALITY = 80
"""Of those pictures, as WebP."""

PREVIEW = 1600
"""Longest side of the result on the page, pixels; the file that is downloaded is whole."""


@dataclass(frozen=True)
class Order:
    """What somebody asks for.

    Attributes:
        files: Uploaded images and their names on their owner's disk.
        task: Name of a config.
        steps: Of the sampling; None for the config's.
        temperature: Of the weights; None for the config's.
        seed: Seed of the noise.
        align: What to do with images of another size or place than the first.
    """

    files: Sequence[tuple[Path, str]]
    task: str
    steps: int | None = None
    temperature: float | None = None
    seed: int = 0
    align: Align = "none"


@dataclass(frozen=True)
class Progress:
    """One step, as it is shown while the next one is made.

    Attributes:
        text: Number of the step, noise level and mean weights.
        panels: The sources, then the weight of each in colours: data URIs and captions.
    """

    text: str
    panels: list[tuple[str, str]]


@dataclass(frozen=True)
class Done:
    """A fusion that is finished.

    Attributes:
        text: What was done.
        file: The picture, called fused, with the depth and format that ``infer.py`` gives it.
        preview: The same for the screen, 8 bits.
        command: The command line that makes the same bytes.
    """

    text: str
    file: Path
    preview: np.ndarray
    command: str


def fuse_order(order: Order, denoiser: Denoiser, limits: AppConfig, folder: Path) -> Iterator[Progress | Done]:
    """Fuses uploaded images; gives every step, then the result.

    The order is done when the iterator ends; one that is left early ends when its fusion does.

    Args:
        order: What to fuse, and how.
        denoiser: The prior.
        limits: What is too much.
        folder: Where the result is written.

    Raises:
        JobError: The images cannot be fused.
    """
    options = overrides(order, limits.prior)
    pair = admit(order, limits, folder)
    config = preset_config(order.task, {modality: modality for modality in pair.files}, *options)
    names = captions([name for _, name in order.files])
    sample = read_pair(pair, reading(config))
    if isinstance(sample, Failure):
        raise JobError(in_page_terms(sample.reason, folder, names))
    steps: SimpleQueue[Snapshot | None] = SimpleQueue()
    fuser = Fuser(denoiser, config, Tracing(side=SIDE, watch=steps.put))
    device = next(denoiser.parameters()).device
    with ThreadPoolExecutor(1) as thread:
        fusing = thread.submit(fuser.fuse, [sample], device)
        fusing.add_done_callback(lambda _: steps.put(None))
        shown = [data_uri(source, SIDE, QUALITY) for source in sample.sources]
        while (step := steps.get()) is not None:
            yield describe(step, shown, names)
        (result,) = fusing.result()
    yield finish(result, names, folder, command(order, pair, options))


def overrides(order: Order, prior: PriorConfig) -> list[str]:
    """The options in which an order differs from its config.

    Raises:
        JobError: There is no such config, or a number is out of its range.
    """
    if order.task not in TASKS.values():
        raise JobError(f"no task '{order.task}': there are {', '.join(TASKS.values())}")
    if order.steps is not None and not 1 <= order.steps <= 100:
        raise JobError(f"steps must lie in [1, 100], not {order.steps}")
    if order.temperature is not None and not 0 < order.temperature < math.inf:
        raise JobError(f"the temperature must be above 0, not {order.temperature:g}")
    known, given = preset_config(order.task, PAIR), list[str]()
    if order.steps not in (None, known.sampler.steps):
        given.append(f"sampler.steps={order.steps}")
    if order.temperature not in (None, known.sampler.dig.temperature):
        given.append(f"sampler.dig.temperature={order.temperature:g}")
    if order.align != known.align:
        given.append(f"align={order.align}")
    if order.seed != known.seed:
        given.append(f"seed={order.seed}")
    usual = asdict(PriorConfig())
    return given + [f"prior.{name}={value}" for name, value in asdict(prior).items() if value != usual[name]]


def admit(order: Order, limits: AppConfig, folder: Path) -> Pair:
    """The uploaded files under their own names, as one pair.

    Raises:
        JobError: There are too few, too many, too large ones, others than images, or one twice.
    """
    if not 2 <= len(order.files) <= limits.images:
        raise JobError(f"{len(order.files)} images: give 2 to {limits.images} of one scene")
    placed: dict[str, str] = {}
    for k, (file, name) in enumerate(order.files, 1):
        if Path(name).suffix.lower() not in IMAGE_SUFFIXES:
            raise JobError(f"{name}: not an image; this page takes {', '.join(sorted(IMAGE_SUFFIXES))}")
        place = folder / str(k) / Path(name).name
        place.parent.mkdir(parents=True)
        place.symlink_to(file.resolve())
        placed[f"source_{k}"] = str(place)
    try:
        (pair,) = find_pairs(placed)
        for file in pair.files.values():
            height, width = image_size(file)
            if height * width > limits.megapixels * 1e6:
                raise JobError(
                    f"{file.name}: {width}x{height} pixels; this page takes {limits.megapixels:g} million, "
                    "infer.py takes more"
                )
    except (PairingError, ImageError) as error:
        raise JobError(in_page_terms(str(error), folder, [name for _, name in order.files])) from error
    return pair


CONTROLS = {
    "align=resize, ecc or phase brings them to one": "choose under 'If they do not lie on each other' what to do",
    "align=ecc registers": "'find the homography' registers them",
    "; take save.format=png": "",
    "given twice, as": "dropped twice, as",
}
"""What messages about options are on the page."""


def in_page_terms(text: str, folder: Path, names: Sequence[str]) -> str:
    """A message about uploaded files under the names that their owner knows, about controls instead of options."""
    text = re.sub(re.escape(f"{folder}/") + r"\d+/", "", text)
    text = re.sub(r"\bsource_(\d+)\b", lambda match: names[int(match[1]) - 1], text)
    for option, control in CONTROLS.items():
        text = text.replace(option, control)
    return text


def guess_task(files: Sequence[Path]) -> str | None:
    """``mef`` for three or more colour pictures of one size, the usual bracket; None where nothing suggests a task."""
    try:
        pictures = [read_picture(file).pixels for file in files] if len(files) > 2 else []
    except ImageError:
        return None
    alike = len({pixels.shape for pixels in pictures}) == 1 and pictures[0].ndim == 3 if pictures else False
    return "mef" if alike else None


def captions(names: Sequence[str]) -> list[str]:
    """What sources are called on the page: their names, numbered where two are alike."""
    stems = [Path(name).stem for name in names]
    alike = len(set(stems)) < len(stems)
    return [f"{k}. {stem}" if alike else stem for k, stem in enumerate(stems, 1)]


def describe(step: Snapshot, shown: Sequence[str], names: Sequence[str]) -> Progress:
    """Step, noise level, and each source beside its weight."""
    weights = step.weight[0, :, 0].cpu()
    means = ", ".join(f"{name} {float(weight.mean()):.2f}" for name, weight in zip(names, weights, strict=True))
    maps = [torch.from_numpy(to_colours(weight, 0.0, 1.0).copy()).permute(2, 0, 1) / 255 for weight in weights]
    told = [f"weight {float(weight.mean()):.2f}" for weight in weights]
    panels = [*zip(shown, names, strict=True), *zip((data_uri(one, SIDE, QUALITY) for one in maps), told, strict=True)]
    return Progress(f"Step {step.index + 1} of {step.steps}, noise {step.sigma[0]:.2f}; mean weights: {means}", panels)


def finish(result: Result, names: Sequence[str], folder: Path, command: str) -> Done:
    """Writes the picture as ``infer.py`` does.

    Raises:
        JobError: It could not be fused, or its format has no room for it.
    """
    if result.image is None or result.sample is None:
        raise JobError(in_page_terms(result.reason, folder, names))
    suffix = suffix_of("reference", result.sample.suffix)
    try:
        content = encode(result.image, suffix, result.sample.depth)
    except ValueError as error:
        raise JobError(str(error)) from error
    file = folder / f"fused{suffix}"
    write_atomically(file, content)
    height, width = result.image.shape[-2:]
    note = f"; {in_page_terms(result.note, folder, names)}" if result.note else ""
    text = f"Fused: {width}×{height} pixels in {result.seconds:.1f} s{note}"
    preview = to_pixels(resize(result.image[None], PREVIEW)[0])
    return Done(text, file, np.broadcast_to(preview, (*preview.shape[:2], 3)), command)


def command(order: Order, pair: Pair, options: Sequence[str]) -> str:
    """The command line for the same files in the current folder; those of one name keep a folder each."""
    names = [Path(name).name for _, name in order.files]
    alike = len(set(names)) < len(names)
    placed = [f"FOLDER_{k}/{name}" if alike else name for k, name in enumerate(names, 1)]
    sources = [f"sources.{modality}={name}" for modality, name in zip(pair.files, placed, strict=True)]
    return shlex.join(["python", "infer.py", f"configs/{order.task}.yaml", *sources, *options, "out=out"])
