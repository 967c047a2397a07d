"""``benchmark speed``: time and memory, as ratios between what is measured in turn within one run."""

import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dig2dig.api import preset
from dig2dig.atomic import write_atomically
from dig2dig.benchmark.config import SpeedConfig
from dig2dig.benchmark.datasets import names
from dig2dig.benchmark.methods import Fuser, open_fuser
from dig2dig.benchmark.size import example_pair, sizes, windows
from dig2dig.benchmark.spread import spread
from dig2dig.benchmark.tables import markdown
from dig2dig.config import SamplerConfig
from dig2dig.errors import MethodError
from dig2dig.fusion import comparators as baselines

SIDE = 256
"""Pixels of the pair that all but the sizes are measured on."""


@dataclass(frozen=True)
class Section:
    """One part of the report.

    Attributes:
        title: Heading.
        text: What is measured, and how to read it.
        rows: One line of the table each; the same keys in all.
    """

    title: str
    text: str
    rows: list[dict[str, str | float]]


def run(config: SpeedConfig) -> int:
    """Measures the sections that are asked for, and writes ``speed.json`` and ``table.md``."""
    measures: dict[str, Callable[[SpeedConfig, Fuser], Section]] = {
        "cost": cost,
        "profile": profiled,
        "operators": operators,
        "batches": batches,
        "sizes": lambda config, fuser: Section(*sizes(config, fuser)),
        "windows": lambda config, fuser: Section(*windows(config, fuser)),
        "spread": lambda config, fuser: Section(*spread(config, fuser)),
        "adm": big_prior,
    }
    if unknown := [name for name in names(config.sections) if name not in measures]:
        raise MethodError(f"sections: no '{unknown[0]}'; there are {', '.join(measures)}")
    fuser, out, sections = open_fuser(config.prior, 0, config.device), Path(config.out), []
    for name in names(config.sections):
        print(f"{name} …", flush=True)
        sections.append(measures[name](config, fuser))
        told = {"machine": machine(fuser.device), "sections": {part.title: part.rows for part in sections}}
        write_atomically(out / "speed.json", json.dumps(told, indent=2).encode())
        write_atomically(out / "table.md", report(sections, fuser.device).encode())
    print(f"{out / 'table.md'} and {out / 'speed.json'} written")
    return 0


def machine(device: torch.device) -> str:
    """What the figures were measured on."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    chip = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        found = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        chip = found[0] if found else chip
    return f"{chip}, {torch.get_num_threads()} threads of {os.cpu_count()}, torch {torch.__version__}"


def report(sections: list[Section], device: torch.device) -> str:
    """All sections as Markdown."""
    parts = [f"Measured on: {machine(device)}. Times are medians over paired rounds, ratios medians of each round's.\n"]
    for section in sections:
        header = list(section.rows[0])
        cells = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in section.rows]
        parts += [f"## {section.title}\n", section.text + "\n", markdown(header, cells)]
    return "\n".join(parts)


def in_turn(contenders: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, np.ndarray]:
    """Seconds of each contender in each round; the first round warms up and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats + 1):
        for name, contender in contenders.items():
            started = time.perf_counter()
            contender()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[name].append(time.perf_counter() - started)
    return {name: np.array(values[1:]) for name, values in seconds.items()}


def ratio(a: np.ndarray, b: np.ndarray) -> str:
    """Median over rounds of a / b, with the smallest and largest."""
    values = a / b
    return f"{np.median(values):.3g} ({values.min():.3g} to {values.max():.3g})"


def forward(fuser: Fuser, side: int = SIDE, count: int = 1) -> Callable[[], Tensor]:
    """One bare call of the network."""
    x_t = torch.randn(count, fuser.denoiser.channels, side, side, device=fuser.device)
    t = torch.full((count,), 100, device=fuser.device)

    def call() -> Tensor:
        with torch.no_grad():
            return fuser.denoiser.whole(x_t, t)

    return call


def with_prior(sampler: SamplerConfig, sigma_n: float) -> SamplerConfig:
    """The same sampling with the network in its loop."""
    return replace(sampler, guidance=replace(sampler.guidance, sigma_n=sigma_n))


def cost(config: SpeedConfig, fuser: Fuser) -> Section:
    """Gains against static weights, the naive form and DDFM, on one pair."""
    sources, ours = example_pair(SIDE, SIDE), preset(config.task)
    static = replace(ours, dig=replace(ours.dig, kind="static"))
    naive = replace(ours, dig=replace(ours.dig, reduce=0.0, refresh=1))
    settings = {
        "preset": ours,
        "preset, static weights": static,
        "prior in the loop": with_prior(ours, config.pull),
        "prior in the loop, static weights": with_prior(static, config.pull),
        "prior in the loop, naive gains": with_prior(naive, config.pull),
        "ddfm, 100 steps": baselines.ddfm(),
    }
    evaluations = {name: fuser(sources, setting).evaluations for name, setting in settings.items()}
    contenders: dict[str, Callable[[], object]] = {"bare network": forward(fuser)}
    contenders |= {name: lambda setting=setting: fuser(sources, setting) for name, setting in settings.items()}
    seconds = in_turn(contenders, config.repeats, fuser.device)
    against = "prior in the loop, static weights"
    to_static = {name: ratio(seconds[name], seconds[against]) for name in seconds if name.startswith("prior")}
    close = {name: contenders[name] for name in ("prior in the loop", against)}
    paired = in_turn(close, 5 * config.repeats, fuser.device)  # next to each other, often: the ratio is near one
    to_static["prior in the loop"] = ratio(paired["prior in the loop"], paired[against])
    rows: list[dict[str, str | float]] = [
        {
            "setting": name,
            "evaluations": evaluations.get(name, 1.0),
            "seconds": float(np.median(taken)),
            "network calls it could be": ratio(taken, seconds["bare network"]),
            "× its static form": to_static.get(name, ""),
            "DDFM takes × longer": ratio(seconds["ddfm, 100 steps"], taken),
        }
        for name, taken in seconds.items()
    ]
    return Section(
        "What a fusion costs",
        f"One pair of {SIDE} px, two sources, {ours.steps} steps. *Evaluations* are pixels that passed the network, in "
        f"images. *Prior in the loop*: `sampler.guidance.sigma_n={config.pull}`, so that each step runs the network; "
        "the presets trust the sources alone, their loop runs none, and all that they pay for are gains.",
        rows,
    )


def profiled(config: SpeedConfig, fuser: Fuser) -> Section:
    """Where the time of a step goes: inside the network, and around it."""
    rows: list[dict[str, str | float]] = []
    ours = preset(config.task)
    for name, setting in (("preset", ours), ("prior in the loop", with_prior(ours, config.pull))):
        for side in (SIDE, 2 * SIDE):
            inside, whole = network_share(fuser, example_pair(side, side), setting, config.repeats)
            outside = 1000 * (whole - inside)
            share = 100 * (1 - inside / whole)
            row = {"setting": name, "pixels": f"{side} × {side}", "ms in the network": 1000 * inside}
            rows.append(row | {"ms around it": outside, "around it, %": share, "a step, ms": outside / ours.steps})
    return Section(
        "What is not the network",
        "Wall time inside and around network calls: noise, gains from estimates, smoothing, weights, bands, states.",
        rows,
    )


def network_share(fuser: Fuser, sources: Tensor, setting: SamplerConfig, repeats: int) -> tuple[float, float]:
    """Median seconds inside the network and altogether."""
    moments: list[float] = []

    def note(*_: object) -> None:
        if fuser.device.type == "cuda":
            torch.cuda.synchronize(fuser.device)
        moments.append(time.perf_counter())

    network = fuser.denoiser.network
    handles = [network.register_forward_pre_hook(note), network.register_forward_hook(note)]
    found = []
    for _ in range(repeats + 1):
        moments.clear()
        whole = fuser(sources, setting).seconds
        found.append((float(np.sum(np.diff(moments)[::2])), whole))
    for handle in handles:
        handle.remove()
    inside, whole = np.median(np.array(found[1:]), axis=0)
    return float(inside), float(whole)


def operators(config: SpeedConfig, fuser: Fuser) -> Section:
    """What torch.profiler finds: the operators that take most of the time themselves."""
    from torch.profiler import ProfilerActivity, profile

    cuda = fuser.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    ours, sources = preset(config.task), example_pair(SIDE, SIDE)
    shares: list[dict[str, float]] = []
    for setting in (ours, with_prior(ours, config.pull)):
        fuser(sources, setting)
        with profile(activities=activities) as found:
            for _ in range(config.repeats):
                fuser(sources, setting)
        events = found.key_averages()
        taken = {e.key: e.self_device_time_total if cuda else e.self_cpu_time_total for e in events}
        shares.append({name: 100 * one / sum(taken.values()) for name, one in taken.items()})
    first, second = shares
    order = sorted(set(first) | set(second), key=lambda name: -second.get(name, 0.0))[:12]
    rows: list[dict[str, str | float]] = [
        {"operator": name, "preset, %": first.get(name, 0.0), "prior in the loop, %": second.get(name, 0.0)}
        for name in order
    ]
    return Section("Where the time goes", f"Own time of operators by torch.profiler, a pair of {SIDE} px.", rows)


def batches(config: SpeedConfig, fuser: Fuser) -> Section:
    """Images per second in batches of several sizes, and one step of a batch against the bare network."""
    counts, ours = (1, 2, 4, 8), preset(config.task)
    pair = example_pair(SIDE, SIDE)
    contenders: dict[str, Callable[[], object]] = {}
    for n in counts:
        contenders[f"{n}"] = lambda n=n: fuser(pair.expand(n, -1, -1, -1, -1), ours)
        contenders[f"{n} loop"] = lambda n=n: fuser(pair.expand(n, -1, -1, -1, -1), with_prior(ours, config.pull))
        contenders[f"{n} bare"] = forward(fuser, SIDE, n)
    seconds = in_turn(contenders, config.repeats, fuser.device)
    rows: list[dict[str, str | float]] = [
        {
            "batch": str(n),
            "images/s, preset": float(np.median(n / seconds[f"{n}"])),
            "images/s, prior in the loop": float(np.median(n / seconds[f"{n} loop"])),
            "images/s, bare network": float(np.median(n / seconds[f"{n} bare"])),
            "preset, × batch of one": ratio(n * seconds["1"], seconds[f"{n}"]),
        }
        for n in counts
    ]
    return Section("Batches", f"Pairs of {SIDE} px that are fused together.", rows)


def big_prior(config: SpeedConfig, fuser: Fuser) -> Section:
    """ADM's network of 552 million parameters with random weights: a pair end to end."""
    from dig2dig.priors.build import build_adm

    denoiser = build_adm(precision=config.prior.precision).to(fuser.device)
    if denoiser.precision == "bf16":
        denoiser.network.to(torch.bfloat16)
    adm, ours = Fuser(denoiser, 0, fuser.device), preset(config.task)
    sources = example_pair(SIDE, SIDE)
    loop = replace(with_prior(ours, config.pull), steps=4)
    static = replace(loop, dig=replace(ours.dig, kind="static"))
    contenders: dict[str, Callable[[], object]] = {
        "bare network": forward(adm),
        "preset": lambda: adm(sources, ours),
        "prior in the loop, 4 steps, static weights": lambda: adm(sources, static),
        "prior in the loop, 4 steps": lambda: adm(sources, loop),
    }
    seconds = in_turn(contenders, min(config.repeats, 2), fuser.device)
    parameters = sum(weight.numel() for weight in denoiser.parameters())
    rows: list[dict[str, str | float]] = [
        {
            "setting": name,
            "seconds": float(np.median(taken)),
            "× bare network": ratio(taken, seconds["bare network"]),
        }
        for name, taken in seconds.items()
    ]
    return Section(
        "A big prior",
        f"ADM's architecture, {parameters:,} random weights, a pair of {SIDE} px; precision {denoiser.precision}.",
        rows,
    )
