"""One run of ``train.py``: where it stands, how Lightning runs it, and what it leaves."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, LearningRateMonitor

from dig2dig.atomic import lock, process_number, refuse_inputs, write_atomically
from dig2dig.cli import from_yaml, to_yaml
from dig2dig.config_train import TrainConfig
from dig2dig.errors import RunError, exits_in_one_line, note
from dig2dig.inference.interrupts import Interrupted, heed_signals
from dig2dig.inference.ownership import claim, read_names
from dig2dig.priors.files import prior_sha256
from dig2dig.tracking.loggers import close, log_scalars, make_loggers
from dig2dig.tracking.monitor import FusionMonitor
from dig2dig.tracking.progress import Progress
from dig2dig.tracking.trainer import build_trainer, prepare
from dig2dig.training.checkpoints import AtomicCheckpointIO, Diverged, WeightAverage, newest_checkpoint, read_checkpoint
from dig2dig.training.guard import Guard
from dig2dig.training.prior import PriorLearning
from dig2dig.training.weights import WeightLearning

FOLDERS = ("checkpoints/", "prior/", "adapter/", "weights/", "scenes/", "fusion/", "log/", "tensorboard/", "wandb/")
WRITTEN = ("config.yaml", "wandb_id", *FOLDERS)  # in OUT
LAST = "checkpoints/last.ckpt"  # in OUT, the checkpoint that a run goes on from


@exits_in_one_line
def train(config: TrainConfig, given: Sequence[Path] = ()) -> int:
    """Trains, or resumes where ``OUT/checkpoints`` stands, and writes the finished prior or adapter into ``OUT``.

    ``given`` are the configuration's files. The exit code is 1 if the training lost its way, and that of a shell's if a
    signal ended it.
    """
    prepare()
    seed_everything(config.seed, verbose=False)
    if config.validate:
        validate(config)
        return 0
    refuse_to_replace_inputs(config, given)
    try:
        with heed_signals(), lock(Path(config.out)):
            if process_number() == 0:
                claim(Path(config.out), WRITTEN, read_names(Path(config.out)))
            fit(config)
    except Interrupted as signal:
        note(f"interrupted: the same command goes on ({signal})")
        return signal.exit_code
    except Diverged as error:
        note(f"stopped: {error}; the last good checkpoint and export are kept: try a smaller optim.lr, another out=")
        return 1
    return 0


def refuse_to_replace_inputs(config: TrainConfig, given: Sequence[Path]) -> None:
    """RunError if what a training writes is what it starts from, learns from, or is configured by."""
    out, data = Path(config.out), config.data
    folders = [config.prior, config.adapter, config.weights, data.root, data.val, data.mask, data.stacks, data.manifest]
    read = [Path(text) for text in (*folders, *data.sources.values(), *config.fusion.sources.values()) if text]
    read = [folder / part for folder in read for part in ("", "unet", "scheduler") if (folder / part).exists()]
    changed = [file for file in given if file.read_bytes() != to_yaml(config).encode()]  # config.yaml goes on
    refuse_inputs(config.out, [out, *(out / name for name in WRITTEN)], [*read, *changed])


def find_start(config: TrainConfig) -> tuple[TrainConfig, int, Path | None]:
    """The configuration with the prior's hash, the run's step and its checkpoint, 0 and None if new.

    RunError for other options, or if no checkpoint can be read.
    """
    if config.prior:
        config = replace(config, prior_sha256=config.prior_sha256 or prior_sha256(config.prior))
    found = newest_checkpoint(Path(config.out) / LAST)
    if found is None:
        return config, 0, None
    steps = int(found[1]["global_step"])
    earlier = from_yaml(TrainConfig, Path(config.out) / "config.yaml")
    now, before = _shaping(config), _shaping(earlier) if earlier else {}
    changed = [f"{name} was {before.get(name)}, now {now[name]}" for name in now if before.get(name) != now[name]]
    if steps and changed:
        raise RunError(f"{config.out}: holds a run with other options ({changed[0]}); give another out=")
    return config, steps, found[0] if steps else None


def _shaping(config: TrainConfig) -> dict[str, Any]:
    """What the weights depend on, by option."""
    free = ("val_crop", "workers", "cache", "licence")
    data = {name: value for name, value in asdict(config.data).items() if name not in free}
    groups = {"data": data} | {name: asdict(getattr(config, name)) for name in ("network", "adapt", "optim")}
    values = {f"{group}.{name}": value for group, options in groups.items() for name, value in options.items()}
    names = ("prior", "prior_sha256", "adapter", "seed", "precision", "weights", "objective")
    if config.learns_weights:
        values |= {"fusion.task": config.fusion.task, "fusion.sampler": asdict(config.fusion.sampler)}
    return values | {name: getattr(config, name) for name in names}


def make_trainer(config: TrainConfig, guard: Guard, start: int, whole: bool) -> Trainer:
    """Lightning's trainer with averaged weights, a progress bar, fusions to look at, checkpoints, and loggers."""
    out, optim = Path(config.out), config.optim
    average: list[Callback] = [WeightAverage(optim.ema)] if optim.ema else []
    trainer = build_trainer(
        config.trainer,
        default_root_dir=out,
        precision=config.precision,
        max_steps=optim.steps,
        accumulate_grad_batches=optim.accumulate,
        val_check_interval=config.val_every * optim.accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=min(config.logger.every, optim.steps),
        benchmark=True,  # crops are of one size
        logger=False,
        enable_checkpointing=False,
        callbacks=[*average, Progress(optim.steps, "step", start), FusionMonitor(out / "fusion"), guard],
        plugins=[AtomicCheckpointIO(whole)],
    )
    begin = start + (start == optim.steps)  # a finished run keeps its last validation
    trainer.loggers = make_loggers(config.logger, out, asdict(config), begin)  # now each process knows its rank
    if trainer.loggers:
        trainer.callbacks[-1:-1] = [LearningRateMonitor()]  # pyright: ignore[reportAttributeAccessIssue, reportIndexIssue]
    if trainer.is_global_zero:
        write_atomically(out / "config.yaml", to_yaml(config).encode())
    return trainer


def fit(config: TrainConfig) -> None:
    """Trains from where the run stands to its last step, and exports."""
    config, start, stands = find_start(config)
    learning = WeightLearning(config) if config.learns_weights else PriorLearning(config)
    module, data, steps = learning.module, learning.data, config.optim.steps
    path = Path(config.out) / LAST
    guard = Guard(path, (config.save_every, config.val_every), start)
    trainer = make_trainer(config, guard, start, whole=stands == path)
    watched = bool(data.samples) and start < steps
    if watched and not start:
        trainer.validate(module, data, verbose=False)  # before anything is learned
    if start < steps:
        with guard.heeding():
            trainer.fit(module, data, ckpt_path=stands)
    if guard.saved < steps:
        trainer.save_checkpoint(path)
    if watched and steps % config.val_every:
        trainer.validate(module, data, verbose=False)
    if trainer.is_global_zero:
        scores = learning.export(read_checkpoint(path if start < steps else stands or path), trainer.world_size)
        log_scalars(trainer.loggers, {f"final/{name}": value for name, value in scores.items()}, steps)
    close(trainer.loggers)


def validate(config: TrainConfig) -> None:
    """Prints what validation measures of a prior, or of learned weights, without any training."""
    learning = WeightLearning(config) if config.learns_weights else PriorLearning(config)
    trainer = build_trainer(config.trainer, logger=False, enable_checkpointing=False)
    found = trainer.validate(learning.module, learning.data, verbose=False)
    values = {name.removeprefix("val/"): value for part in found for name, value in part.items()}
    if not values:
        raise RunError("nothing is held out to measure: give fusion.sources or data.val_share")
    for name, value in values.items() if trainer.is_global_zero else ():
        print(f"{name:<28} {value:.4g}")
