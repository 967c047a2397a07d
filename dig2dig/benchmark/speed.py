"""``benchmark speed``: time and memory, as ratios between contenders that run in turn."""

import json
import os
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dig2dig.api import preset
from dig2dig.atomic import write_atomically
from dig2dig.benchmark.commands import start, throughput, train
from dig2dig.benchmark.config import SpeedConfig
from dig2dig.benchmark.datasets import example_pair, names
from dig2dig.benchmark.methods import GAIN, SCOPES, Fuser, open_fuser
from dig2dig.benchmark.sections import Contenders, Section, in_loop, in_turn, naive, peak_memory, ratio, sizes, windows
from dig2dig.benchmark.tables import markdown
from dig2dig.errors import UserError
from dig2dig.fusion import comparators

SIDE = 256  # pixels of the pair of all sections but the sizes


def run(config: SpeedConfig) -> int:
    """Measures the sections that are asked for, and writes ``speed.json`` and ``table.md``."""
    every = (cost, profile, batches, sizes, windows, start, throughput, train, adm)
    measures = {one.__name__: one for one in every}
    if unknown := [name for name in names(config.sections) if name not in measures]:
        raise UserError(f"sections: no '{unknown[0]}'; there are {', '.join(measures)}")
    fuser, out = open_fuser(config), Path(config.out)
    place, tables = machine(fuser.device), {}
    parts = [f"Measured on: {place}. Times are medians over paired rounds, ratios medians of each round's.\n"]
    for name in names(config.sections):
        print(f"{name} …", flush=True)
        section = measures[name](config, fuser)
        tables[section.title] = section.rows
        cells = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in section.rows]
        parts += [f"## {section.title}\n", section.text + "\n", markdown(list(section.rows[0]), cells)]
        write_atomically(out / "speed.json", json.dumps({"machine": place, "sections": tables}, indent=2).encode())
        write_atomically(out / "table.md", "\n".join(parts).encode())
    print(f"{out / 'table.md'} and {out / 'speed.json'} written")
    return 0


def machine(device: torch.device) -> str:
    """The device and the version of torch."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    found = (line.partition(":")[2].strip() for line in lines if "model name" in line)
    chip = next(found, platform.processor() or platform.machine())
    return f"{chip}, {torch.get_num_threads()} threads of {os.cpu_count()}, torch {torch.__version__}"


def cost(config: SpeedConfig, fuser: Fuser) -> Section:
    """Gains against static weights, the naive form and DDFM, on one pair."""
    sources, ours = example_pair(SIDE, SIDE), preset(config.task)
    loop, against = "prior in the loop", "prior in the loop, static weights"
    settings = {
        "preset": ours,
        "preset, weights from gains alone": preset(config.task, GAIN),
        "preset, static weights": preset(config.task, *SCOPES["static"].split()),
        loop: in_loop(config),
        against: in_loop(config, SCOPES["static"]),
        "prior in the loop, naive gains": naive(in_loop(config)),
        "ddfm, 100 steps": comparators.ddfm(),
    }
    evaluations = {name: fuser(sources, setting).evaluations for name, setting in settings.items()}
    contenders: Contenders = {"bare network": forward(fuser)}
    contenders |= {name: partial(fuser, sources, setting) for name, setting in settings.items()}
    seconds = in_turn(contenders, config.repeats, fuser.device)
    to_static = {name: ratio(seconds[name], seconds[against]) for name in seconds if name.startswith(loop)}
    close = {name: contenders[name] for name in (loop, against)}
    paired = in_turn(close, 5 * config.repeats, fuser.device)  # next to each other, often: the ratio is near one
    to_static[loop] = ratio(paired[loop], paired[against])
    rows = [
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
    text = (
        f"One pair of {SIDE} px, two sources. *Evaluations* are pixels that passed the network, in images. *Prior in "
        f"the loop*: `sampler.guidance.sigma_n={config.pull}`, so that each of {ours.steps} steps runs the network. "
        "The presets use the sources alone: their loop runs no network, and only gains cost evaluations."
    )
    return Section("What a fusion costs", text, rows)


def forward(fuser: Fuser, count: int = 1) -> Callable[[], Tensor]:
    """One bare call of the network."""
    x_t = torch.randn(count, fuser.denoiser.channels, SIDE, SIDE, device=fuser.device)
    t = torch.full((count,), 100, device=fuser.device)
    return torch.no_grad()(lambda: fuser.denoiser.whole(x_t, t))


def profile(config: SpeedConfig, fuser: Fuser) -> Section:
    """Time inside the network, and around it."""
    moments: list[float] = []

    def note(*_: object) -> None:
        if fuser.device.type != "cpu":
            torch.accelerator.synchronize(fuser.device)
        moments.append(time.perf_counter())

    network, rows = fuser.denoiser.network, []
    handles = [network.register_forward_pre_hook(note), network.register_forward_hook(note)]
    for name, setting in (("preset", preset(config.task)), ("prior in the loop", in_loop(config))):
        for side in (SIDE, 2 * SIDE):
            sources, found = example_pair(side, side), []
            for _ in range(config.repeats + 1):  # the first warms up
                moments.clear()
                whole = fuser(sources, setting).seconds
                found.append((np.sum(np.diff(moments)[::2]), whole))
            inside, whole = np.median(found[1:], axis=0).tolist()
            row = {"setting": name, "pixels": f"{side} × {side}", "ms in the network": 1000 * inside}
            rows.append(row | {"ms around it": 1000 * (whole - inside), "around it, %": 100 * (1 - inside / whole)})
    for handle in handles:
        handle.remove()
    text = "Wall time inside and around network calls: noise, gains from estimates, smoothing, weights, bands, states."
    return Section("What is not the network", text, rows)


def batches(config: SpeedConfig, fuser: Fuser) -> Section:
    """Images per second in batches of several sizes, and one step of a batch against the bare network."""
    counts, pair, contenders = (1, 2, 4, 8), example_pair(SIDE, SIDE), Contenders()
    settings = {"preset": preset(config.task), "prior in the loop": in_loop(config)}
    for n in counts:
        stack = pair.expand(n, -1, -1, -1, -1)
        contenders |= {f"{n} {name}": partial(fuser, stack, setting) for name, setting in settings.items()}
        contenders[f"{n} bare network"] = forward(fuser, n)
    seconds = in_turn(contenders, config.repeats, fuser.device)
    rows = []
    for n in counts:
        taken = {name: seconds[f"{n} {name}"] for name in (*settings, "bare network")}
        rates = {f"images/s, {name}": float(np.median(n / one)) for name, one in taken.items()}
        gain = ratio(n * seconds["1 preset"], taken["preset"])
        rows.append({"batch": str(n)} | rates | {"preset, × batch of one": gain})
    return Section("Batches", f"Pairs of {SIDE} px that are fused together.", rows)


def adm(config: SpeedConfig, fuser: Fuser) -> Section:
    """ADM's network of 552 million parameters with random weights: a pair end to end."""
    from dig2dig.priors.build import build_adm, offload

    denoiser = build_adm(precision=config.prior.precision)
    if denoiser.precision == "bf16":
        denoiser.network.to(torch.bfloat16)
    if config.prior.offload:
        offload(denoiser, fuser.device)
    denoiser.to(fuser.device)
    big, sources = Fuser(denoiser, 0, fuser.device), example_pair(SIDE, SIDE)
    settings = {
        "preset": preset(config.task),
        "prior in the loop, 4 steps, static weights": in_loop(config, "sampler.steps=4", SCOPES["static"]),
        "prior in the loop, 4 steps": in_loop(config, "sampler.steps=4"),
    }
    contenders: Contenders = {"bare network": forward(big)}
    contenders |= {name: partial(big, sources, setting) for name, setting in settings.items()}
    seconds = in_turn(contenders, min(config.repeats, 2), fuser.device)
    bare, parameters = seconds["bare network"], sum(weight.numel() for weight in denoiser.parameters())
    rows = [
        {"setting": name, "seconds": float(np.median(taken)), "× bare network": ratio(taken, bare)}
        for name, taken in seconds.items()
    ]
    text = f"ADM's architecture, {parameters:,} random weights, a pair of {SIDE} px; precision {denoiser.precision}, "
    text += f"offload {config.prior.offload}. Peak memory of all sections so far: {peak_memory(fuser.device):.2f} GiB."
    return Section("A big prior", text, rows)
