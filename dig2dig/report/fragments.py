"""The card of one fused pair, and the file that keeps it until the page is made: pure functions, files apart."""

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from torch import Tensor

from datamodules.pairs import Sample
from datamodules.readers.pixels import is_image
from dig2dig.atomic import write_atomically
from dig2dig.color import luminance, merge
from dig2dig.fusion import comparators as baselines
from dig2dig.fusion.plan import Snapshot
from dig2dig.modules.results import Result
from dig2dig.report.pictures import MEASURED, Shown, encoded, load_picture, relative, scores, size_facts
from dig2dig.report.thumbs import Detail, data_uri, evenly, grey_map, small, within_budget
from dig2dig.report.views import PairView, Panel, StepView

FOLDER = "report"
"""Folder of the fragments, inside the run's."""

STEPS = 16
"""Most steps whose maps are shown."""


def source_panels(sample: Sample, files: Mapping[str, Path], folder: Path) -> list[Shown]:
    """Each source with its picture: as it is on disk, in its colours, or as it was fused."""
    found: list[Shown] = []
    for modality, channels in zip(sample.modalities, sample.sources, strict=True):
        file = files.get(modality)
        picture = load_picture(file) if file and is_image(file) else None  # no other frame
        if picture is None or not same(picture, channels):
            picture = channels
        found.append((Panel(modality, "source", file=relative(file, folder) if file else ""), small(picture)))
    return found


def same(picture: Tensor, channels: Tensor) -> bool:
    """Whether a picture is what was fused, but for its colour: not registered, resized, nor of another range."""
    if picture.shape[-2:] != channels.shape[-2:]:
        return False
    return bool((luminance(picture) - luminance(channels)).abs().mean() < 2 / 255)


def baseline_panels(sample: Sample, names: Sequence[str]) -> list[Shown]:
    """Classical fusions of the same sources, with their metrics; none of large ones."""
    found: list[Shown] = []
    for name in names if sample.sources[0, 0].numel() <= MEASURED else ():
        fused = baselines.CLASSICAL[name](sample.sources[None])[0].clamp(0, 1)
        found.append(
            (Panel(name, "baseline", scores=scores(fused, sample.sources)), small(merge(fused, sample.chroma)))
        )
    return found


def step_view(step: Snapshot, detail: Detail) -> StepView:
    """One step of one image, encoded."""
    weight, gain = step.weight[0, :, 0], step.gain[0, :, 0].nan_to_num(0.0)
    low, high = float(gain.amin()), float(gain.amax())  # one scale for all sources of a step
    return StepView(
        index=step.index,
        t=int(step.t[0]),
        sigma=step.sigma[0],
        weight=[grey_map(one, 0.0, 1.0, detail.map) for one in weight],
        gain=[grey_map(one, low, high, detail.map, 0.5) for one in gain],
        low=low,
        high=high,
        guided=data_uri(step.guided[0], detail.step, detail.quality),
        estimate="" if step.x0_hat is None else data_uri(step.x0_hat[0], detail.step, detail.quality),
    )


def pair_view(
    result: Result, file: str, files: Mapping[str, Path], folder: Path, names: Sequence[str] = ()
) -> PairView:
    """The card of a fused pair.

    Args:
        result: What ``predict_step`` gave, with its steps if they were kept.
        file: Name of its picture.
        files: File of each modality.
        folder: Where the page will lie.
        names: Classical fusions to compare with.
    """
    sample = result.sample
    assert result.image is not None and result.fused is not None and sample is not None
    height, width = result.image.shape[-2:]
    ours = Panel("fused", "result", file=file, scores=scores(result.fused, sample.sources))
    pictures = [
        *source_panels(sample, files, folder),
        (ours, small(result.image)),
        *baseline_panels(sample, names),
    ]
    chosen = [result.trace[i] for i in evenly(len(result.trace), STEPS)]

    def make(detail: Detail) -> PairView:
        return PairView(
            name=result.name,
            facts=[*size_facts(height, width), f"{result.seconds:.2f} s", f"seed {result.seed}"],
            width=width,
            height=height,
            panels=encoded(pictures, detail),
            modalities=list(sample.modalities),
            times=[int(step.t[0]) for step in result.trace],
            weights=[[round(float(one), 4) for one in step.weight[0].mean((1, 2, 3))] for step in result.trace],
            views=[step_view(step, detail) for step in chosen],
        )

    return within_budget(make)


def fragment_file(folder: Path, name: str) -> Path:
    """Where the fragment of a pair lies, short whatever its name."""
    return folder / FOLDER / f"{sha256(name.encode(errors='surrogateescape')).hexdigest()[:20]}.json"


def write_fragment(folder: Path, card: PairView, key: str, inputs: str) -> None:
    """Keeps a card with what it depends on: the run's configuration and the pair's files."""
    content = {"key": key, "inputs": inputs, "card": card.to_json()}
    write_atomically(fragment_file(folder, card.name), json.dumps(content).encode())


def read_fragment(folder: Path, name: str, key: str, inputs: str) -> PairView | None:
    """The card of a pair; None where there is none of this configuration and these files."""
    try:
        content = json.loads(fragment_file(folder, name).read_bytes())
        if (content["key"], content["inputs"]) == (key, inputs):
            card = PairView.from_json(content["card"])
            return card if card.name == name else None
    except (OSError, ValueError, TypeError, KeyError):
        pass
    return None


def prune(folder: Path, kept: Sequence[str]) -> None:
    """Removes the fragments of all pairs but these, and the page that showed them."""
    files = {fragment_file(folder, name) for name in kept}
    ours = (folder / FOLDER).glob(f"{'[0-9a-f]' * 20}.json")
    stale = [file for file in ours if file not in files]
    for file in stale:
        file.unlink(missing_ok=True)
    if stale:
        (folder / "report.html").unlink(missing_ok=True)
