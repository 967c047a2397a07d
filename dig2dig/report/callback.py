"""The callback that keeps what the report of a run shows, pair by pair as they are fused."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from datamodules.pairing import Pair
from datamodules.pairs import Sample
from dig2dig.config import InferConfig, ReportConfig
from dig2dig.fusion.sampler import Snapshot
from dig2dig.modules import FusionModule, Result, Tracing
from dig2dig.priors.schedule import noise_level
from dig2dig.report.fragments import fusion_card, read_fragment, write_fragment
from dig2dig.report.runs import write_run_page

SIDE = 512
"""Longest side of the steps that are kept, pixels."""

PIXELS = 2**20
"""Larger pictures are shown without the prior's estimates, which would cost more than their fusion."""


class ReportWriter(Callback):
    """Writes a fragment for each pair that the report shows, and never stops a run.

    Pairs that an earlier run has left a fragment of come first, then those to fuse in their order, up to the cap.

    Args:
        out: The run's folder.
        todo: Pairs to fuse.
        done: Rows of an earlier run that stay valid.
        key: Changes with whatever shapes a result.
        config: How much is shown.
    """

    def __init__(
        self,
        out: Path,
        todo: Sequence[Pair],
        done: Mapping[str, Mapping[str, str]],
        key: str,
        config: ReportConfig,
    ) -> None:
        self.out, self.key, self.config = out, key, config
        found = (
            {name: read_fragment(out, name, key, row["inputs"]) for name, row in done.items()} if config.pairs else {}
        )
        cards = [card for card in found.values() if card]
        shown = [pair for pair in todo if not pair.missing or len(pair.files) > 1][: max(config.pairs - len(cards), 0)]
        heard = sum(any(moment.estimate for moment in card.moments) for card in cards)
        self.files = {pair.name: pair.files for pair in shown}
        self.heard = {pair.name for pair in shown[: max(config.estimates - heard, 0)]}
        self.samples: dict[str, tuple[Sample, Sequence[Snapshot]]] = {}
        self.level: Sequence[float] = ()

    @property
    def tracing(self) -> Tracing:
        """The steps that the report needs."""
        return Tracing(set(self.files), SIDE, estimates=False)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the samples until they are written, and asks the prior for its estimates of a few."""
        assert isinstance(pl_module, FusionModule)
        self.level = self.level or noise_level(pl_module.denoiser.alpha_bar).tolist()
        samples = {sample.name: sample for sample in batch if isinstance(sample, Sample)}
        for result in outputs:
            if result.image is not None and result.name in self.files:
                sample = samples[result.name]
                self.samples[result.name] = sample, self._estimates(pl_module, sample, result)

    def _estimates(self, module: FusionModule, sample: Sample, result: Result) -> list[Snapshot]:
        """The steps with the prior's estimates, from a second fusion that leaves the first as it is."""
        known = result.trace and result.trace[0].x0_hat is not None
        if known or sample.name not in self.heard or sample.sources[0, 0].numel() > PIXELS:
            return []
        tracing = module.tracing
        try:
            module.tracing = Tracing(None, SIDE)
            return module.fuse_samples([sample])[0].trace
        except Exception as error:  # whatever it is, the picture is there
            self._tell(sample.name, "the prior's estimates", error)
            return []
        finally:
            module.tracing = tracing

    def write(self, result: Result, file: str) -> None:
        """Writes the fragment of a fused pair, whose picture is in ``file``; called before the table tells."""
        sample, estimates = self.samples.pop(result.name, (None, ()))
        if sample is None or result.image is None:
            return
        try:
            files, level = self.files[result.name], lambda t: self.level[t]
            card = fusion_card(result, file, sample, files, self.out, level, self.config.compared, estimates)
            write_fragment(self.out, card, self.key, result.digest)
        except Exception as error:
            self._tell(result.name, "its details", error)

    def conclude(self, record: InferConfig, rows: Mapping[str, Mapping[str, str]], command: Sequence[str]) -> None:
        """Writes the page of the whole run and prints where it is."""
        if not self.config.pairs:
            return
        try:
            print(f"report: {write_run_page(self.out, record, self.key, rows, shlex.join(command))}")
        except Exception as error:  # the pictures are there all the same
            print(f"report: not written ({type(error).__name__}: {error})", file=sys.stderr)

    @staticmethod
    def _tell(name: str, lacking: str, error: Exception) -> None:
        reason = (str(error).splitlines() or [""])[0]
        print(f"report: {name} is shown without {lacking} ({type(error).__name__}: {reason})", file=sys.stderr)
