"""The Lightning module that fuses pairs: results for files, and scores for validation."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lightning import LightningModule

from datamodules.pairs import Failure, Sample
from dig2dig.cli import from_dict
from dig2dig.config import FusionConfig
from dig2dig.fusion.weight import load_weights
from dig2dig.modules.fuser import Fuser
from dig2dig.modules.results import Result, Results, Tracing
from dig2dig.modules.scores import PairScores
from dig2dig.priors.build import offload
from dig2dig.priors.denoiser import Denoiser
from dig2dig.priors.load import open_prior


class FusionModule(LightningModule):
    """Fuses pairs with a prior, for ``Trainer.predict`` and ``Trainer.validate``.

    ``trainer.validate`` logs the means of fusion metrics (``fusion/NAME``) and of what the gains say (``dig/NAME``).
    A configuration from a checkpoint is a mapping, checked like YAML. Without a denoiser, it names the prior.
    """

    def __init__(
        self, config: FusionConfig | Mapping[str, Any], denoiser: Denoiser | None = None, tracing: Tracing | None = None
    ) -> None:
        super().__init__()
        known = config if isinstance(config, FusionConfig) else from_dict(FusionConfig, config)
        self.config = FusionConfig(**{name: getattr(known, name) for name in FusionConfig.__dataclass_fields__})
        self.save_hyperparameters({"config": asdict(self.config)}, logger=False)
        self.denoiser = denoiser or open_prior(self.config.prior)
        if self.config.prior.offload:
            offload(self.denoiser, self.denoiser.device)  # before a strategy moves it
        learned = self.config.sampler.weights
        self.weights = None if learned == "gain" else load_weights(learned)  # once: a record tells what was opened
        self.tracing, self.scores = tracing or Tracing(), PairScores()

    def on_predict_start(self) -> None:
        """Has weights that stay in main memory travel to the device that Lightning chose."""
        if self.config.prior.offload:
            offload(self.denoiser, self.device)

    on_validation_start = on_predict_start

    def predict_step(self, batch: Sequence[Sample | Failure], _: int = 0) -> Results:
        """Fuses the pairs of a batch."""
        return Results(Fuser(self.denoiser, self.config, self.tracing, self.weights)(batch, self.device))

    def validation_step(self, batch: Sequence[Sample | Failure], _: int = 0) -> dict[str, list[Result]]:
        """Fuses the pairs of a batch with every step and estimate, and keeps their scores."""
        return self.scores.add(Fuser(self.denoiser, self.config, Tracing(None, None), self.weights)(batch, self.device))

    def on_validation_epoch_end(self) -> None:
        """Logs the means over all pairs of all processes."""
        self.log_dict(self.scores.means())
