"""The memory of a training of ADM, counted on tensors without numbers, and measured on a GPU: python -m docs.memory."""

import time

import torch
from torch.autograd.graph import saved_tensors_hooks

from dig2dig.config_train import AdaptConfig
from dig2dig.modules.prior import choose_weights
from dig2dig.priors.adm import ADM_256
from dig2dig.priors.build import SCHEDULE, as_denoiser, new_unet, recompute
from dig2dig.priors.denoiser import Denoiser
from dig2dig.priors.loss import diffusion_loss

GB = 1e9


def adm(mode: str, again: bool) -> Denoiser:
    """ADM's network on the meta device, as a training prepares it."""
    with torch.device("meta"):
        unet = new_unet(ADM_256)
    denoiser = choose_weights(as_denoiser(unet, SCHEDULE), AdaptConfig(mode, 8)).to("meta")  # pyright: ignore
    if again:
        recompute(denoiser)
    return denoiser


def kept(denoiser: Denoiser, side: int) -> int:
    """Bytes that the forward pass of one image keeps for the backward pass, parameters left out; float32."""
    parameters = {weight.untyped_storage()._cdata for weight in denoiser.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            storages[storage._cdata] = storage  # held, so that no other takes its place
        return tensor

    x, t = torch.empty(1, 3, side, side, device="meta"), torch.empty(1, dtype=torch.long, device="meta")
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        denoiser.network(x, t)
    return sum(storage.nbytes() for storage in storages.values())


def row(mode: str, side: int, again: bool) -> list[str]:
    """Weights, gradients, Adam's two states, the average, and features of one image: float32, in GB."""
    denoiser = adm(mode, again)
    weights = sum(weight.nbytes for weight in denoiser.parameters())
    learn = sum(weight.nbytes for weight in denoiser.parameters() if weight.requires_grad)
    fixed, features = weights + 4 * learn, kept(denoiser, side)
    numbers = (weights, learn, 2 * learn, learn, fixed, features)
    return [mode, f"{side}", "yes" if again else "no", *(f"{number / GB:.2f}" for number in numbers)]


def step(denoiser: Denoiser, optimizer: torch.optim.Optimizer, average: list[torch.Tensor], batch: int) -> None:
    """One step of a training on crops of 256 pixels, as Lightning makes it."""
    x0, t = torch.rand(batch, 3, 256, 256, device="cuda"), torch.full((batch,), 300, device="cuda")
    diffusion_loss(denoiser, x0, torch.randn_like(x0), t).mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    weights = [weight.detach() for weight in denoiser.parameters() if weight.requires_grad]
    torch._foreach_lerp_(average, weights, 0.001)  # pyright: ignore[reportPrivateImportUsage]


def measured(mode: str, again: bool, batch: int, precision: str) -> list[str]:
    """Peak memory of two steps on the GPU in GB, and the second one's seconds."""
    unet = new_unet(ADM_256)
    denoiser = choose_weights(as_denoiser(unet, SCHEDULE), AdaptConfig(mode, 8)).to("cuda")  # pyright: ignore
    if again:
        recompute(denoiser)
    learn = [weight for weight in denoiser.parameters() if weight.requires_grad]
    optimizer, average = torch.optim.AdamW(learn, 1e-5, fused=True), [weight.detach().clone() for weight in learn]
    torch.cuda.reset_peak_memory_stats()
    started = 0.0
    for _ in range(2):
        torch.cuda.synchronize()
        started = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16-mixed"):
            step(denoiser, optimizer, average, batch)
    torch.cuda.synchronize()
    numbers = (torch.cuda.max_memory_allocated() / GB, time.perf_counter() - started)
    return [mode, precision, "yes" if again else "no", f"{batch}", *(f"{number:.2f}" for number in numbers)]


def on_a_gpu() -> None:
    """Prints the table of what was measured."""
    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print("| mode | precision | recompute | crops of 256 px | peak GB | seconds a step |")
    print("| --- " * 6 + "|")
    for mode, batch in (("lora", 3), ("full", 8)):
        for precision in ("32-true", "bf16-mixed"):
            for again in (False, True):
                try:
                    print("| " + " | ".join(measured(mode, again, batch, precision)) + " |", flush=True)
                except torch.OutOfMemoryError:
                    print(f"| {mode} | {precision} | {'yes' if again else 'no'} | {batch} | too large | |")
                torch.cuda.empty_cache()


def main() -> None:
    """Prints the tables."""
    print("| mode | crop | recompute | weights | gradients | Adam | average | together | features of one crop |")
    print("| --- " * 9 + "|")
    for mode in ("lora", "full"):
        for side in (64, 256):
            for again in (False, True):
                print("| " + " | ".join(row(mode, side, again)) + " |")
    if torch.cuda.is_available():
        on_a_gpu()


if __name__ == "__main__":
    main()
