"""The memory of a training of ADM, counted on tensors without numbers: python -m docs.memory."""

import torch
from torch.autograd.graph import saved_tensors_hooks

from dig2dig.config_train import AdaptConfig
from dig2dig.modules.prior import choose_weights
from dig2dig.priors.adm import ADM_256
from dig2dig.priors.build import SCHEDULE, as_denoiser, new_unet
from dig2dig.priors.denoiser import Denoiser
from dig2dig.priors.unet import recompute

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


def main() -> None:
    """Prints the table."""
    print("| mode | crop | recompute | weights | gradients | Adam | average | together | features of one crop |")
    print("| --- " * 9 + "|")
    for mode in ("lora", "full"):
        for side in (64, 256):
            for again in (False, True):
                print("| " + " | ".join(row(mode, side, again)) + " |")


if __name__ == "__main__":
    main()
