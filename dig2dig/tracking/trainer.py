"""Lightning's trainer, and what a process needs before it starts one."""

import logging
import os
import warnings
from dataclasses import asdict, replace
from typing import Any

import cv2
import torch
from lightning import Trainer
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException

from dig2dig.cli import keep_freed_memory
from dig2dig.config import TrainerConfig
from dig2dig.errors import RunError, first_line, note

ADVICE = (  # parts of Lightning's advice that does not apply here
    "does not have many workers",
    "LeafSpec",
    "batch sampler `SizeBatches`",
    "dataloader is not resumable",  # our sampler starts where the run stands
    "across ranks is zero",
    "when logging on epoch level",  # scores are gathered before
    "smaller than the logging interval",
    "Checkpoint directory",
    "module\\(s\\) in eval mode",  # a prior that does not learn
    "Found keys that are in the model state dict",  # frozen ones, which checkpoints leave out
)


def prepare() -> None:
    """Hides Lightning's messages about itself, but no warning about a user's mistake."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for advice in ADVICE:
        warnings.filterwarnings("ignore", f".*{advice}.*")
    cv2.setNumThreads(0)  # OpenCV's threads fight torch's
    keep_freed_memory()


def with_work(devices: TrainerConfig, pairs: int | None) -> TrainerConfig:
    """The devices that ``auto`` stands for: one for each process of torchrun, or no more GPUs than pairs."""
    if devices.devices != "auto" or SLURMEnvironment.detect():
        return devices
    if here := int(os.environ.get("LOCAL_WORLD_SIZE", 0)):
        return replace(devices, devices=str(here), num_nodes=int(os.environ["WORLD_SIZE"]) // here)
    if pairs is not None and devices.accelerator != "cpu" and (taken := max(pairs, 1)) < torch.cuda.device_count():
        note(f"{taken} of {torch.cuda.device_count()} GPUs have a pair to fuse; the others are left alone")
        return replace(devices, devices=str(taken))
    return devices


def build_trainer(devices: TrainerConfig, pairs: int | None = None, **options: Any) -> Trainer:
    """Lightning's trainer on some devices, for so many pairs or a training; RunError if Lightning refuses them."""
    settings: dict[str, Any] = {
        **asdict(with_work(devices, pairs)),
        "use_distributed_sampler": False,  # our samplers split the batches
        "inference_mode": False,  # posterior guidance needs gradients
        "enable_model_summary": False,
        "enable_progress_bar": False,
        **options,
    }
    if SLURMEnvironment.detect():  # without Lightning's own checkpoints on signals: a later run would load them
        settings["plugins"] = [*options.get("plugins", []), SLURMEnvironment(auto_requeue=False)]
    if settings["num_nodes"] > 1 and not {"MASTER_ADDR", "SLURM_NTASKS"} & set(os.environ):  # it would wait for ever
        raise RunError(f"trainer.num_nodes={settings['num_nodes']}: start it on each node, with torchrun or srun")
    try:
        trainer = Trainer(**settings)
    except (ValueError, MisconfigurationException) as error:
        raise RunError(first_line(error)) from error
    if "max_steps" in options and trainer.world_size > 1:
        note(f"{trainer.world_size} devices: each batch is {trainer.world_size} times data.batch_size")
    return trainer
