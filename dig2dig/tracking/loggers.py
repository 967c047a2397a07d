"""Loggers by configuration, and one way to send numbers, pictures and histograms to all of them."""

import csv
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from secrets import token_hex
from textwrap import shorten
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from dig2dig.atomic import process_number, write_atomically
from dig2dig.config import LoggerConfig, WandbConfig
from dig2dig.errors import RunError, first_line, note

Arrays = Mapping[str, np.ndarray]
PATIENCE = 5.0, 20.0  # seconds for W&B's server to answer at all, and for it to take the run


def make_loggers(config: LoggerConfig, out: Path, record: dict[str, Any], start: int = 0) -> list[Logger]:
    """The loggers that a configuration names; RunError if one is not installed.

    They go on at the step ``start`` and replace what was logged from there on. W&B shows ``record`` beside the run.
    If W&B cannot be had online, a line says so and the others go on.
    """
    loggers: list[Logger] = [_csv_logger(out, start)] if config.csv else []
    if config.tensorboard:
        try:
            loggers.append(TensorBoardLogger(out, name="tensorboard", version="", purge_step=start or None))
        except ModuleNotFoundError as error:
            raise RunError("logger.tensorboard needs TensorBoard: pip install 'dig2dig[finetune]'") from error
    if config.wandb.mode != "disabled":
        loggers += _wandb_logger(config.wandb, out, record)
    return loggers


def _csv_logger(out: Path, start: int) -> CSVLogger:
    path, kept = out / "log" / "metrics.csv", []
    if path.is_file():
        with path.open(newline="") as file:
            rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
        kept = [row for row in rows if int(row.get("step", start)) < start and "final/" not in "".join(row)]
    logger = CSVLogger(out, name="log", version="", flush_logs_every_n_steps=1)
    if process_number() == 0:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Experiment logs directory")
            logger.experiment.metrics = kept
            logger.experiment.save()  # Lightning begins its file anew
    return logger


def _wandb_logger(config: WandbConfig, out: Path, record: dict[str, Any]) -> list[WandbLogger]:
    """W&B's logger, or none where it cannot be reached."""
    from wandb import Settings
    from wandb.errors import Error

    os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")  # it advertises the tracing of language models
    if config.mode == "online" and (reason := _refusal()):
        return _without(reason)
    mark = out / "wandb_id"
    if process_number() == 0 and not mark.is_file():
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
        settings=Settings(silent=True, console="off", init_timeout=PATIENCE[1]),
    )
    logger._wandb_init.pop("anonymous", None)  # Lightning passes it always, and W&B warns that it has no effect
    try:
        if online and process_number() == 0:
            _ = logger.experiment
    except (Error, OSError) as error:
        return _without(first_line(error))
    return [logger]


def _refusal() -> str:
    """Why W&B cannot be had online; empty if it can, as far as that is seen at once."""
    from requests.utils import get_netrc_auth
    from wandb import setup

    settings = setup().settings
    named = settings.api_key or any(name in os.environ for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"))
    if not named and not get_netrc_auth(settings.base_url):
        return "no key is known"
    try:
        with urlopen(settings.base_url, timeout=PATIENCE[0]):
            return ""
    except HTTPError:  # an answer
        return ""
    except (OSError, ValueError) as error:
        return f"{settings.base_url} does not answer ({getattr(error, 'reason', error)})"


def _without(reason: str) -> list[WandbLogger]:
    reason = shorten(reason, 200)
    note(f"warning: nothing is logged to W&B: {reason}; give logger.wandb.mode=offline, or log in with wandb login")
    return []


def log_scalars(loggers: Iterable[Logger], values: dict[str, float], step: int) -> None:
    """Sends numbers."""
    for logger in loggers:
        logger.log_metrics(values, step)


def close(loggers: Iterable[Logger]) -> None:
    """Writes what is left, and ends what would otherwise stay open until the process ends."""
    for logger in loggers:
        if not isinstance(logger, WandbLogger):
            logger.finalize("success")
        elif process_number() == 0 and logger._experiment is not None:
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
