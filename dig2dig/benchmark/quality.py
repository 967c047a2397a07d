"""``benchmark quality``: every method on every pair, judged as 8-bit pictures, as anybody's results on disk are."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from datamodules.pairs import Reading, Sample, pair_digest
from dig2dig.atomic import write_atomically
from dig2dig.benchmark.config import QualityConfig
from dig2dig.benchmark.datasets import Case, Failures, centre, find_cases, names, read_case, read_luminance
from dig2dig.benchmark.gallery import write_gallery
from dig2dig.benchmark.methods import STRETCHED, Fused, Fuser, applies, hashed, open_fuser, sampler_of
from dig2dig.benchmark.rows import Row, Rows
from dig2dig.benchmark.tables import write_tables
from dig2dig.color import luminance, merge
from dig2dig.config import SamplerConfig
from dig2dig.errors import MethodError
from dig2dig.fusion import comparators as baselines
from dig2dig.metrics import ALL, MAIN, fusion_metrics
from dig2dig.tracking.panels import to_pixels, to_png


def run(config: QualityConfig) -> int:
    """Fuses what is not yet fused, scores what is not yet scored, writes the tables."""
    cases = find_cases(config.data, config.datasets, config.half, config.limit)
    out, methods = Path(config.out), [*names(config.methods), *config.variants]
    for method in methods:
        check(method, config)
    rows = Rows(out / "results.csv")
    judge = Judge(config, open_fuser(config.prior, config.seed, config.device), rows)
    kept: list[Row] = []
    failed = Failures()
    for case in tqdm(cases, desc="pairs"):
        with failed.told():
            sample = read_case(case, config.crop)
            for method in methods:
                with failed.told():
                    kept += judge.rows_of(case, sample, method)
        judge.fused.clear()
        rows.save()
    write_tables(kept, config, out)
    print(f"{len(kept)} rows in {out / 'results.csv'}, tables in {out / 'table.md'}")
    if config.report:
        print(
            f"report: {write_gallery(cases, judge.pictures, kept, config, judge.fuser.identity, failed.reasons, out)}"
        )
    return failed.exit_code


def check(method: str, config: QualityConfig) -> None:
    """Tells an unknown name before any work.

    Raises:
        MethodError: There is no such method, or no such folder of peers.
    """
    kind, _, folder = method.partition(":")
    if kind != "peers":
        sampler_of(method, "ivf", config.variants)
    elif folder and not Path(folder).is_dir():
        raise MethodError(f"methods: {method}: no such folder")


@dataclass(frozen=True)
class Picture:
    """A result on disk.

    Attributes:
        method: Who made it.
        path: The file.
        key: Changes with whatever shaped it.
        seconds: Time of the fusion, None for somebody else's.
        evaluations: Network evaluations.
    """

    method: str
    path: Path
    key: str
    seconds: float | None = None
    evaluations: float | None = None


class Judge:
    """Makes and scores pictures, and knows which of them an earlier run has made and scored."""

    def __init__(self, config: QualityConfig, fuser: Fuser, rows: Rows) -> None:
        self.config, self.fuser, self.rows = config, fuser, rows
        self.fused: dict[str, Fused] = {}  # methods that share a setting share the work
        self.pictures: dict[tuple[str, str], dict[str, Path]] = {}

    def rows_of(self, case: Case, sample: Sample, method: str) -> Iterator[Row]:
        """The rows of one method on one case, one for each stretch; none where it does not apply."""
        pictures = self.peers(case, method) if method.startswith("peers") else self.own(case, sample, method)
        stretches = ("none", "minmax") if self.config.stretch == "both" else (self.config.stretch,)
        for picture in pictures:
            self.pictures.setdefault((case.dataset, case.pair.name), {})[picture.method] = picture.path
            for stretch in stretches:
                if not (stretch == "minmax" and picture.method == "ddfm-unstretched"):  # would be ddfm twice
                    yield self.row(case, sample, picture, stretch)

    def peers(self, case: Case, method: str) -> Iterator[Picture]:
        """Somebody else's pictures of this case."""
        found = case.peers()
        if folder := method.partition(":")[2]:
            files = [file for file in Path(folder).glob("*") if file.stem == case.pair.name]
            found = {Path(folder).name: files[0]} if files else {}
        for peer, path in found.items():
            stat = path.stat()
            yield Picture(peer, path, hashed(stat.st_size, stat.st_mtime_ns, self.config.crop))

    def own(self, case: Case, sample: Sample, method: str) -> Iterator[Picture]:
        """The picture of one of our methods, made now unless an earlier run has made it."""
        if not applies(method, case.task, len(sample.sources)):
            return
        setting = sampler_of(method, case.task, self.config.variants)
        told = method if setting is None else asdict(setting)
        shaped_by = (told, self.fuser.identity if setting else None, self.config.seed, self.config.crop)
        key = hashed(*shaped_by, method in STRETCHED, pair_digest(case.pair, Reading()))
        path = Path(self.config.out) / "pictures" / case.dataset / method / f"{case.pair.name}.png"
        earlier = self.rows.find(case.dataset, case.pair.name, method)
        if path.is_file() and earlier and earlier["key"] == key:
            yield Picture(method, path, key, float(earlier["seconds"]), float(earlier["evaluations"]))
            return
        fused = self.fuse(sample, method, setting)
        image = baselines.stretch(fused.image) if method in STRETCHED else fused.image
        write_atomically(path, to_png(to_pixels(merge(image[0], sample.chroma))))
        yield Picture(method, path, key, fused.seconds, fused.evaluations)

    def fuse(self, sample: Sample, method: str, setting: SamplerConfig | None) -> Fused:
        """Fuses, once for all methods of one setting."""
        told = repr(setting) if setting else method
        if told not in self.fused:
            self.fused[told] = self.fuser(sample.sources[None], setting or baselines.CLASSICAL[method])
        return self.fused[told]

    def row(self, case: Case, sample: Sample, picture: Picture, stretch: str) -> Row:
        """Scores a picture, unless it stands in ``results.csv`` already."""
        wanted = ALL if self.config.metrics == "all" else MAIN
        identity = (case.dataset, case.pair.name, picture.method, stretch)
        known = self.rows.find(*identity)
        complete = known is not None and all(known.get(name) for name in wanted)
        if known and complete and (known["key"], known["convention"]) == (picture.key, self.config.convention):
            return known
        own = picture.seconds is not None
        fused = read_luminance(picture.path)
        fused = fused if own else centre(fused, self.config.crop)
        if fused.shape[-2:] != sample.sources.shape[-2:]:
            raise MethodError(f"{picture.path}: its size is not that of the sources")
        scored = baselines.stretch(fused) if stretch == "minmax" else fused
        scores = fusion_metrics(scored[None], luminance(sample.sources)[None], self.config.convention, wanted)
        row: dict[str, Any] = {"task": case.task, "k": len(sample.sources), "key": picture.key, "own": int(own)}
        row |= {"seconds": f"{picture.seconds:.3f}", "evaluations": picture.evaluations} if own else {}
        row |= {"convention": self.config.convention, **{name: f"{float(v):.7g}" for name, v in scores.items()}}
        return self.rows.put(*identity, {name: str(value) for name, value in row.items()})
