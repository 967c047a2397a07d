"""``benchmark quality``: every method on every pair, measured on 8-bit pictures, as results of others on disk are."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from datamodules.pairs import Reading, Sample, pair_digest
from datamodules.readers.pixels import image_size, is_image, read_image
from datamodules.readers.source import source_digest
from dig2dig.atomic import write_atomically
from dig2dig.benchmark.config import QualityConfig
from dig2dig.benchmark.datasets import Case, centre, find_cases, names, noted, read_case, read_luminance, read_targets
from dig2dig.benchmark.gallery import write_gallery
from dig2dig.benchmark.methods import DDFM, Fused, Fuser, hashed, open_fuser, sampler_of
from dig2dig.benchmark.tables import COST, EYE, Row, Rows, all_tables
from dig2dig.color import luminance, merge, to_pixels
from dig2dig.errors import ImageError, UserError
from dig2dig.fusion import comparators
from dig2dig.fusion.weight import weights_sha256
from dig2dig.metrics import ALL, MAIN, fusion_metrics
from dig2dig.metrics.tone import bright_targets, targets
from dig2dig.tracking.panels import to_png

INFRARED = ("ir", "infrared")  # sides that show what is warm


def run(config: QualityConfig) -> int:
    """Fuses and scores all that an earlier run has not, and writes the tables."""
    cases = find_cases(config.data, config.datasets, config.half, config.limit)
    methods = [*names(config.methods), *config.variants]
    compared = any(method in (config.reference, "peers") or method.startswith("peers:") for method in methods)
    if not methods or (config.reference != "dig2dig" and not compared):
        raise UserError(f"reference={config.reference} is none of the methods" if methods else "methods= is empty")
    for task, method in dict.fromkeys((case.task, method) for case in cases for method in methods):
        sampler_of(method, task, config.variants)  # refuses what is no method of a task before any work
    kept, failed = list[Row](), list[str]()
    judge = Judge(config, open_fuser(config), Rows(Path(config.out) / "results.csv"), failed)
    for case in tqdm(cases, desc="pairs"):
        with noted(failed):
            sample = read_case(case, config.crop)
            for method in methods:
                with noted(failed):
                    kept += judge.rows_of(case, sample, method)
        judge.fused.clear()
        judge.rows.save()
    if kept and config.reference not in ("dig2dig", *(row["method"] for row in kept)):
        raise UserError(f"reference={config.reference}: no picture is of it")
    judge.rows.finish(kept, all_tables(kept, config))
    if config.report and kept:
        print(f"report: {write_gallery(config, cases, judge.pictures, kept, failed)}")
    return int(bool(failed))


def digest_of(case: Case) -> str:
    """Changes with the sources of a case, and with its targets."""
    return pair_digest(case.pair, Reading()) + (source_digest(case.targets) if case.targets else "")


@dataclass(frozen=True)
class Picture:
    """A result on disk."""

    method: str
    path: Path
    key: str  # changes with all that shaped the picture
    cost: Row  # seconds and evaluations of the fusion; empty for a picture of others


class Judge:
    """Makes and scores pictures, unless an earlier run has made and scored them."""

    def __init__(self, config: QualityConfig, fuser: Fuser, rows: Rows, failed: list[str]) -> None:
        self.config, self.fuser, self.rows, self.failed = config, fuser, rows, failed
        self.fused: dict[str, Fused] = {}  # methods that share a setting share the work
        self.pictures: dict[tuple[str, str], dict[str, Path]] = {}

    def rows_of(self, case: Case, sample: Sample, method: str) -> Iterator[Row]:
        """The rows of one method on one case, one for each stretch; none where it does not apply."""
        pictures = self.peers(case, method) if method.startswith("peers") else self.own(case, sample, method)
        stretches = ("none", "minmax") if self.config.stretch == "both" else (self.config.stretch,)
        for picture in pictures:
            made = self.pictures.setdefault((case.dataset, case.pair.name), {})
            if not (other := made.setdefault(picture.method, picture.path)).samefile(picture.path):
                raise UserError(f"methods: {other} and {picture.path} are of one name: rename a folder")
            for stretch in stretches:
                with noted(self.failed):
                    if not (stretch == "minmax" and picture.method == "ddfm-unstretched"):  # would be ddfm twice
                        yield self.row(case, sample, picture, stretch)

    def peers(self, case: Case, method: str) -> Iterator[Picture]:
        """Pictures of this case by others."""
        folder = method.partition(":")[2]
        files = Path(folder).absolute().glob("*") if folder else (case.folder / "peers").glob("*/*")
        found = {file.parent.name: file for file in sorted(files) if file.stem == case.pair.name and is_image(file)}
        digest = digest_of(case)
        for peer, path in found.items():
            stat = path.stat()
            yield Picture(peer, path, hashed(stat.st_size, stat.st_mtime_ns, self.config.crop, digest), {})

    def own(self, case: Case, sample: Sample, method: str) -> Iterator[Picture]:
        """The picture of one of our methods, made now unless an earlier run has made it."""
        if (method == "mertens" and case.task != "mef") or (DDFM.get(method) == "code" and len(sample.sources) != 2):
            return  # OpenCV's exposure fusion is made for exposures, DDFM's code for two sources
        setting = sampler_of(method, case.task, self.config.variants)
        if method == "mertens":
            sample = read_case(case, self.config.crop, colour=True)
        shaped_by = (method, sample.sources.shape[1])
        if setting:
            shaped_by = (asdict(setting), (*self.fuser.identity, weights_sha256(setting.weights)))
        stretched, digest = method == "ddfm", digest_of(case)  # as DDFM is published
        key = hashed(*shaped_by, self.config.seed, self.config.crop, stretched, digest)
        path = Path(self.config.out) / "pictures" / case.dataset / method / f"{case.pair.name}.png"
        earlier = self.rows.find(case.dataset, case.pair.name, method, key=key)
        if path.is_file() and earlier:
            yield Picture(method, path, key, {name: earlier[name] for name in COST})
            return
        self.rows.drop(case.dataset, case.pair.name, method)
        name = repr(setting) if setting else method
        if name not in self.fused:
            self.fused[name] = self.fuser(sample.sources[None], setting or comparators.CLASSICAL[method])
        fused = self.fused[name]
        image = comparators.stretch(fused.image) if stretched else fused.image
        write_atomically(path, to_png(to_pixels(merge(image[0], sample.chroma))))
        yield Picture(method, path, key, fused.cost)

    def row(self, case: Case, sample: Sample, picture: Picture, stretch: str) -> Row:
        """Scores a picture, unless ``results.csv`` has its row already."""
        wanted = ALL if self.config.metrics == "all" else (*MAIN, *EYE, *(["MEF-SSIM"] if case.task == "mef" else []))
        convention = self.config.convention
        identity = (case.dataset, case.pair.name, picture.method, stretch)
        known = self.rows.find(*identity, key=picture.key)
        if known and known["convention"] == convention and all(map(known.get, wanted)):
            return known
        fused = centre(read_luminance(picture.path), self.config.crop)
        if fused.shape[-2:] != sample.sources.shape[-2:]:
            raise ImageError(f"{picture.path}: its size is not that of the sources")
        scored = comparators.stretch(fused) if stretch == "minmax" else fused
        scores = fusion_metrics(scored[None], luminance(sample.sources)[None], convention, wanted)
        scores |= self.seen(case, sample, picture, scored)
        own = "1" if picture.cost else "0"
        row = {"task": case.task, "k": str(len(sample.sources)), "key": picture.key, "own": own, **picture.cost}
        row |= {"convention": convention} | {name: f"{float(value):.7g}" for name, value in scores.items()}
        return self.rows.put(*identity, row=row)

    def seen(self, case: Case, sample: Sample, picture: Picture, fused: Tensor) -> dict[str, Tensor]:
        """Contrast of marked or warm targets that is kept, and targets that are lost; saturation of exposures."""
        found: dict[str, Tensor] = {}
        warm = next((k for k, modality in enumerate(sample.modalities) if modality in INFRARED), None)
        if case.targets or warm is not None:
            if case.targets:
                whole = image_size(next(iter(case.pair.files.values())))
                mask = read_targets(case.targets, *whole)
                if mask.shape[-2:] != tuple(whole):
                    raise ImageError(f"{case.targets}: its size is not that of the sources")
                mask = centre(mask, self.config.crop)
            else:
                mask = bright_targets(luminance(sample.sources)[warm][None])[0]
            kept, lost = targets(fused[None], luminance(sample.sources)[None], mask)
            found = {"targets": torch.tensor(kept).mean(), "lost": torch.tensor(lost)} if kept else {}
        pixels = read_image(picture.path)
        if pixels.ndim == 3 and case.task == "mef":
            found["saturation"] = torch.tensor(float((pixels.max(-1).astype(float) - pixels.min(-1)).mean()))
        return found
