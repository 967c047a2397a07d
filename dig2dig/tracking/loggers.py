"""Loggers by configuration, and one way to send numbers, pictures and histograms to all of them."""

import csv
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from dig2dig.atomic import is_first_process, write_atomically
from dig2dig.config import LoggerConfig, WandbConfig
from dig2dig.errors import RunError

Arrays = Mapping[str, np.ndarray]


def make_loggers(config: LoggerConfig, out: Path, record: dict[str, Any], start: int = 0) -> list[Logger]:
    """The loggers that a configuration names; RunError if one is not installed.

    They go on at the step ``start`` and replace what was logged from there on. W&B shows ``record`` beside the run.
    """
    loggers: list[Logger] = [_csv_logger(out, start)] if config.csv else []
    if config.tensorboard:
        try:
            loggers.append(TensorBoardLogger(out, name="tensorboard", version="", purge_step=start or None))
        except ModuleNotFoundError as error:
            raise RunError("logger.tensorboard needs TensorBoard: pip install 'dig2dig[finetune]'") from error
    if config.wandb.mode != "disabled":
        loggers.append(_wandb_logger(config.wandb, out, record))
    return loggers


def _csv_logger(out: Path, start: int) -> CSVLogger:
    path, kept = out / "log" / "metrics.csv", []
    if path.is_file():
        with path.open(newline="") as file:
            rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
        kept = [row for row in rows if int(row.get("step", start)) < start]
    logger = CSVLogger(out, name="log", version="", flush_logs_every_n_steps=1)
    if is_first_process():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Experiment logs directory")
            logger.experiment.metrics = kept
            logger.experiment.save()  # Lightning begins its file anew
    return logger


def _wandb_logger(config: WandbConfig, out: Path, record: dict[str, Any]) -> WandbLogger:
    from wandb import Settings

    mark = out / "wandb_id"
    if is_first_process() and not mark.is_file():
        write_atomically(mark, token_hex(4).encode())
    online = config.mode == "online"
    logger = WandbLogger(
        name=config.name or out.name,
        save_dir=out,
        id=mark.read_text() if mark.is_file() else None,
        project=config.project,
        entity=config.entity,
        offline=not online,
        resume="allow" if online else None,
        config=record,
        settings=Settings(silent=True, console="off"),
    )
    logger._wandb_init.pop("anonymous", None)  # Lightning passes it always, and W&B warns that it has no effect
    return logger


def log_scalars(loggers: Iterable[Logger], values: dict[str, float], step: int) -> None:
    """Sends numbers."""
    for logger in loggers:
        logger.log_metrics(values, step)


def close(loggers: Iterable[Logger]) -> None:
    """Writes what is left, and ends what would otherwise stay open until the process ends."""
    for logger in loggers:
        if not isinstance(logger, WandbLogger):
            logger.finalize("success")
        elif is_first_process() and logger._experiment is not None:
            logger.experiment.finish()


def log_maps(loggers: Iterable[Logger], pictures: Arrays, histograms: Arrays, step: int) -> None:
    """Sends pictures, uint8 (h, w, 3), and how values are distributed, by key."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            from wandb import Histogram

            for key, pixels in pictures.items():
                logger.log_image(key, [pixels], step)
            counts: Any = {key: Histogram(np_histogram=np.histogram(values, 64)) for key, values in histograms.items()}
            logger.log_metrics(counts, step)
        elif isinstance(logger, TensorBoardLogger):
            for key, pixels in pictures.items():
                logger.experiment.add_image(key, pixels, step, dataformats="HWC")
            for key, values in histograms.items():
                logger.experiment.add_histogram(key, values, step)
