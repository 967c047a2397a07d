"""What all trainings share: checkpoints of what learns, the optimiser, scores of fused pairs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from datamodules.pairs import Failure, Sample
from dig2dig.cli import from_dict
from dig2dig.config import FusionConfig
from dig2dig.config_train import TrainConfig
from dig2dig.errors import RunError
from dig2dig.fusion.weight import WeightNetwork
from dig2dig.modules.fuser import Fuser
from dig2dig.modules.results import Result, Tracing
from dig2dig.modules.scores import PairScores
from dig2dig.priors.denoiser import Denoiser


class Learner(LightningModule):
    """A module that learns by a configuration.

    Checkpoints hold the parameters that learn, not those that an adaptation leaves frozen. A configuration from a
    checkpoint is a mapping, checked like YAML.
    """

    def __init__(self, config: TrainConfig | Mapping[str, Any]) -> None:
        super().__init__()
        self.config = config if isinstance(config, TrainConfig) else from_dict(TrainConfig, config)
        self.save_hyperparameters({"config": asdict(self.config)}, logger=False)
        self.scores = PairScores()
        self.strict_loading, self.processes, self.parts = False, 0, list[Tensor]()  # losses of a step's batches so far

    @property
    def due(self) -> bool:
        """Whether the log gets an entry after this step."""
        return (self.global_step + 1) % min(self.config.logger.every, self.config.optim.steps) == 0

    def shared(self, values: Tensor) -> Tensor:
        """The mean over processes where an entry is due; else a process's own, without waiting for the others."""
        if self.due and torch.distributed.is_available() and torch.distributed.is_initialized():
            values = values / torch.distributed.get_world_size()
            torch.distributed.all_reduce(values)
        return values

    def score(
        self, batch: Sequence[Sample | Failure], denoiser: Denoiser, weights: WeightNetwork | None = None
    ) -> dict[str, list[Result]]:
        """Fuses pairs with every step and estimate, and keeps their scores."""
        config = FusionConfig(sampler=self.config.fusion.sampler, seed=self.config.seed)
        return self.scores.add(Fuser(denoiser, config, Tracing(None, None), weights)(batch, self.device))

    def on_validation_epoch_end(self) -> None:
        """Logs the means over the images and fused pairs of all processes."""
        for name, value in self.scores.means().items():
            self.log(name, value, prog_bar=name in ("val/psnr_25", "val/psnr_50"))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves out what is frozen."""
        learning = {name for name, weight in self.named_parameters() if weight.requires_grad}
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: weight for name, weight in state.items() if name in learning}
        checkpoint["processes"] = self.trainer.world_size

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Notes how many processes made the run."""
        self.processes = checkpoint["processes"]

    def on_fit_start(self) -> None:
        """Refuses to go on with another number of processes: the batches would be others."""
        before, now = self.processes, self.trainer.world_size
        if before not in (0, now):
            told = f"the run was made by {before} processes, now there are {now}: its batches would change"
            raise RunError(f"{told}; use as many, or another out=")

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clips the norm of the gradients: Lightning does so for no fused optimiser in mixed precision."""
        if self.config.optim.clip:
            torch.nn.utils.clip_grad_norm_(self.parameters(), self.config.optim.clip)

    def rates(self) -> list[dict[str, Any]]:
        """What learns, in groups of one peak rate each."""
        return [{"params": [parameter for parameter in self.parameters() if parameter.requires_grad]}]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with warm-up and cosine decay to a hundredth of the peak rate."""
        o = self.config.optim
        fused = self.device.type in ("cpu", "cuda") or None  # half the time of a step on a CPU
        optimizer = torch.optim.AdamW(self.rates(), o.lr, (0.9, 0.99), weight_decay=o.weight_decay, fused=fused)

        def rate(step: int) -> float:
            progress = min(max(step - o.warmup, 0) / max(o.steps - o.warmup, 1), 1.0)
            return min((step + 1) / max(o.warmup, 1), 1.0) * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
