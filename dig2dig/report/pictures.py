"""Cards of one pair, of a fusion just made or of pictures on disk, with pictures small enough for a page."""

import base64
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from datamodules.pairs import Sample
from datamodules.ranges import to_unit
from datamodules.readers.pixels import is_image
from datamodules.readers.source import read_source
from datamodules.validity import without_data
from dig2dig.color import luminance, merge, to_pixels
from dig2dig.errors import ImageError
from dig2dig.fusion.comparators import CLASSICAL
from dig2dig.fusion.plan import Snapshot
from dig2dig.fusion.resample import resize
from dig2dig.metrics import fusion_metrics, grey_levels
from dig2dig.modules.results import Result
from dig2dig.report.views import PairView, Panel, StepView, finite

BUDGET = 700_000  # characters of all pictures of one pair: twenty pairs stay below 15 MB
Shown = tuple[Panel, Tensor | None]  # a panel that has no thumbnail yet, and its picture
MEASURED = 2**22  # pixels; metrics of larger pictures need more memory than their fusion
STEPS = 16  # whose maps are shown, at most


@dataclass(frozen=True)
class Detail:
    """How much of a pair is kept: longest sides in pixels, and the quality of JPEG, 0 to 100."""

    picture: int
    step: int
    map: int
    quality: int


DETAILS = (
    Detail(1024, 320, 320, 86),
    Detail(800, 320, 256, 80),
    Detail(640, 320, 224, 72),
    Detail(448, 224, 160, 64),
    Detail(256, 128, 96, 50),
    Detail(96, 64, 48, 30),
)
"""From much to little; the last one of noise in twenty panels still fits the budget."""


def small(image: Tensor | None) -> Tensor | None:
    """As much of a picture as any page shows."""
    return None if image is None else resize(image.float(), DETAILS[0].picture)


def data_uri(image: Tensor, side: int, quality: int) -> str:
    """An image (1 or 3, h, w) in [0, 1], no larger than ``side`` pixels, as a JPEG, which is made fast, in a URI."""
    pixels = to_pixels(resize(image.detach().float(), side).nan_to_num(0.0))
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def grey_map(values: Tensor, low: float, high: float, side: int, power: float = 1.0) -> str:
    """A map (h, w) as a grey picture: black at ``low``, white at ``high``, ``share ** power`` between them."""
    scaled = (resize(values[None].float(), side) - low) / max(high - low, 1e-12)
    return data_uri(scaled.clamp(0, 1) ** power, side, 85)


def step_view(step: Snapshot, detail: Detail) -> StepView:
    """One step of one image, encoded."""
    weight, gain = step.weight[0, :, 0], step.gain[0, :, 0].nan_to_num(0.0)
    low, high = float(gain.amin()), float(gain.amax())  # one scale for all sources of a step
    weights = [grey_map(one, 0.0, 1.0, detail.map) for one in weight]
    gains = [grey_map(one, low, high, detail.map, 0.5) for one in gain]
    guided = data_uri(step.guided[0], detail.step, detail.quality)
    estimate = "" if step.x0_hat is None else data_uri(step.x0_hat[0], detail.step, detail.quality)
    return StepView(step.index, step.t, step.sigma, weights, gains, low, high, guided, estimate)


def illustrated(card: PairView, pictures: Sequence[Shown], steps: Sequence[Snapshot] = ()) -> PairView:
    """The card with its panels and steps, as detailed as the budget allows, or else as little as there is."""
    for detail in DETAILS:
        panels = [
            panel if image is None else replace(panel, image=data_uri(image, detail.picture, detail.quality))
            for panel, image in pictures
        ]
        card = replace(card, panels=panels, views=[step_view(step, detail) for step in steps])
        if card.characters <= BUDGET:
            break
    return card


def evenly(count: int, most: int) -> list[int]:
    """At most so many of the first ``count`` numbers, spread evenly, with the first and the last."""
    return sorted(set(torch.linspace(0, count - 1, min(count, most)).round().int().tolist())) if count else []


def load_picture(file: Path, scale: str = "auto", modality: str = "") -> Tensor | None:
    """A source as (1 or 3, h, w) in [0, 1], of a video or volume the first frame; None where it cannot be read."""
    try:
        picture = read_source(file, modality=modality)
    except ImageError:
        return None
    valid = without_data(picture.pixels, picture.valid)[0]
    pixels = torch.from_numpy(to_unit(picture.pixels, scale, valid, picture.inverted)[0])
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def relative(file: Path, folder: Path) -> str:
    """The way from a folder to a file; the file's whole path where there is none."""
    try:
        return Path(os.path.relpath(file, folder)).as_posix()
    except ValueError:  # on another drive
        return file.absolute().as_posix()


def scores(fused: Tensor, sources: Tensor) -> dict[str, float]:
    """Metrics of a fused image (c, h, w) with its sources (k, c, h, w), as far as numbers; none of large images."""
    if fused[0].numel() > MEASURED:
        return {}
    return finite(fusion_metrics(grey_levels(fused.cpu())[None] / 255, grey_levels(sources.cpu())[None] / 255))


def view_of_files(
    name: str,
    sources: Mapping[str, Path],  # file of each modality
    results: Mapping[str, Path],  # file of each method or run
    folder: Path,  # of the page
    facts: Sequence[str] = (),  # what stands beside the name
    known: Mapping[str, dict[str, float]] | None = None,  # metrics by method
    ours: Sequence[str] = (),  # methods that are not baselines; all if empty
    prepare: Callable[[Tensor], Tensor] = lambda image: image,  # done to each picture first, say a crop
) -> PairView:
    """The card of one pair from files; a file that cannot be read is shown as missing."""

    def read(file: Path, scale: str, modality: str = "") -> tuple[Tensor | None, str]:
        """A picture, and the way to its file unless only a part of the picture is shown."""
        whole = load_picture(file, scale, modality)
        image = None if whole is None else prepare(whole)
        cut = whole is not None and image is not None and image.shape != whole.shape
        return image, "" if cut else relative(file, folder)

    pictures = {label: read(file, "auto", label) for label, file in sources.items()}
    size = next((image.shape[-2:] for image, _ in pictures.values() if image is not None), None)
    shown: list[Shown] = [
        (Panel(label, "source", file=link, note=_note(image, size)), small(image))
        for label, (image, link) in pictures.items()
    ]
    for label, file in results.items():
        image, link = read(file, "full")
        size = size or (None if image is None else image.shape[-2:])
        role = "result" if not ours or label in ours else "baseline"
        shown.append((Panel(label, role, "", link, (known or {}).get(label, {}), _note(image, size)), small(image)))
    height, width = size or (3, 4)
    facts = [*[f"{width}×{height}"] * bool(size), *facts]
    return illustrated(PairView(name, facts, width, height, []), shown)


def _note(image: Tensor | None, size: torch.Size | None) -> str:
    if image is None:
        return "cannot be read"
    height, width = image.shape[-2:]
    return "" if size is None or image.shape[-2:] == size else f"of another size: {width}×{height}"


def source_panels(sample: Sample, files: Mapping[str, Path], folder: Path) -> list[Shown]:
    """Each source with its picture: as it is on disk, in its colours, or as it was fused."""
    found: list[Shown] = []
    for k, (modality, channels) in enumerate(zip(sample.modalities, sample.sources, strict=True)):
        file = files.get(modality)
        coloured = sample.chroma is not None and file and is_image(file)  # no other frame
        picture = load_picture(file) if file and coloured else None
        fits = picture is not None and picture.shape[-2:] == channels.shape[-2:]
        if picture is None or not fits or (luminance(picture) - luminance(channels)).abs().mean() >= 2 / 255:
            picture = channels  # registered, resized, or of another range
        valid, note = None if sample.valid is None else sample.valid[k], ""
        if valid is not None and not valid.all():
            picture, note = hatched(picture, valid), f"{100 * float((~valid).float().mean()):.1f} % no data"
        link = relative(file, folder) if file else ""
        found.append((Panel(modality, "source", file=link, note=note), small(picture)))
    return found


def hatched(picture: Tensor, valid: Tensor) -> Tensor:
    """A picture (c, h, w) with a grey check where it holds no data, as editors show what is transparent."""
    rows, columns = (torch.arange(side) // 8 for side in picture.shape[-2:])
    check = 0.45 + 0.15 * ((rows[:, None] + columns) % 2)
    return torch.where(valid, picture, check.to(picture))


def baseline_panels(sample: Sample, names: Sequence[str]) -> list[Shown]:
    """Classical fusions of the same sources, with their metrics."""
    found: list[Shown] = []
    for name in names:
        fused = merge(CLASSICAL[name](sample.sources[None])[0].clamp(0, 1), sample.chroma)
        note = "of luminance alone" if name == "mertens" and sample.chroma is not None else ""
        found.append((Panel(name, "baseline", scores=scores(fused, sample.sources), note=note), small(fused)))
    return found


def pair_view(result: Result, file: str, files: Mapping[str, Path], folder: Path, names: Sequence[str]) -> PairView:
    """The card of a fused pair, whose picture has the name ``file``.

    Metrics take as long as a third of the fusion. So they are there if something is compared, by these names.
    """
    sample, trace = result.sample, result.trace
    assert result.image is not None and result.fused is not None and sample is not None
    height, width = result.image.shape[-2:]
    facts = [f"{width}×{height}", f"{result.seconds:.2f} s", f"seed {result.seed}"]
    if names and height * width > MEASURED:
        names, facts = (), [*facts, "too large for metrics and baselines"]
    ours = Panel("fused", "result", file=file, scores=scores(result.image, sample.sources) if names else {})
    pictures = [*source_panels(sample, files, folder), (ours, small(result.image)), *baseline_panels(sample, names)]
    weights = [[round(float(one), 4) for one in step.weight[0].mean((1, 2, 3))] for step in trace]
    card = PairView(result.name, facts, width, height, [], list(sample.modalities), [step.t for step in trace], weights)
    return illustrated(card, pictures, [trace[i] for i in evenly(len(trace), STEPS)])
