"""Loggers by configuration, and one way to send numbers, pictures and histograms to all of them."""

import csv
import warnings
from collections.abc import Iterable
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from dig2dig.atomic import is_first_process, write_atomically
from dig2dig.config import LoggerConfig
from dig2dig.errors import RunError


def make_loggers(config: LoggerConfig, out: Path, record: dict[str, Any], start: int = 0) -> list[Logger]:
    """The loggers that a configuration names; those of an interrupted run go on.

    Args:
        config: Which.
        out: The run's folder.
        record: The whole configuration, shown beside the run.
        start: Step at which a resumed run goes on: what was logged from there on is replaced.

    Raises:
        RunError: A logger is not installed.
    """
    loggers: list[Logger] = []
    if config.csv:
        loggers.append(_csv_logger(out, start))
    if config.tensorboard:
        loggers.append(_tensorboard_logger(out, start))
    if config.wandb.mode != "disabled":
        loggers.append(_wandb_logger(config, out, record))
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


def _tensorboard_logger(out: Path, start: int) -> TensorBoardLogger:
    try:
        return TensorBoardLogger(out, name="tensorboard", version="", purge_step=start or None)
    except ModuleNotFoundError as error:
        raise RunError("logger.tensorboard needs TensorBoard: pip install 'dig2dig[finetune]'") from error


def _wandb_logger(config: LoggerConfig, out: Path, record: dict[str, Any]) -> WandbLogger:
    from wandb import Settings

    mark = out / "wandb_id"
    if is_first_process() and not mark.is_file():
        write_atomically(mark, token_hex(4).encode())
    online = config.wandb.mode == "online"
    return WandbLogger(
        name=config.wandb.name or out.name,
        save_dir=out,
        id=mark.read_text() if mark.is_file() else None,
        project=config.wandb.project,
        entity=config.wandb.entity,
        offline=not online,
        resume="allow" if online else None,
        config=record,
        settings=Settings(silent=True, console="off"),
    )


def log_scalars(loggers: Iterable[Logger], values: dict[str, float], step: int) -> None:
    """Sends numbers."""
    for logger in loggers:
        logger.log_metrics(values, step)


def close(loggers: Iterable[Logger]) -> None:
    """Writes what is left, and ends what would otherwise stay open until the process ends."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            if is_first_process() and logger._experiment is not None:
                logger.experiment.finish()
        else:
            logger.finalize("success")


def log_image(loggers: Iterable[Logger], key: str, pixels: np.ndarray, step: int) -> None:
    """Sends a picture, uint8, (h, w, 3)."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key, [pixels], step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(key, pixels, step, dataformats="HWC")


def log_histogram(loggers: Iterable[Logger], key: str, values: np.ndarray, step: int) -> None:
    """Sends how values are distributed."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            from wandb import Histogram

            logger.log_metrics({key: Histogram(np_histogram=np.histogram(values, 64))}, step)  # pyright: ignore
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_histogram(key, values, step)
