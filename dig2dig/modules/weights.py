"""Training the weights: a small network from gains to weights, or both the network and the prior beneath it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torch.utils.data import default_collate

from dig2dig.config import GuidanceConfig
from dig2dig.config_train import TrainConfig
from dig2dig.errors import RunError
from dig2dig.fusion.guidance import Step, bands
from dig2dig.fusion.plan import network_gains, network_times
from dig2dig.fusion.weight import Level, WeightNetwork, adopted, load_weights, scale_space
from dig2dig.metrics.objectives import View, objective
from dig2dig.modules.learner import Learner
from dig2dig.modules.prior import choose_weights, speed_up, starting_prior
from dig2dig.modules.results import Result
from dig2dig.priors.counter import draws
from dig2dig.priors.denoiser import Denoiser
from dig2dig.priors.schedule import noise_level
from dig2dig.shapes import Image, Maps, Sources


def composed(space: Sequence[Maps], levels: Sequence[Level], sigmas: Sequence[float], how: GuidanceConfig) -> Image:
    """The weighted bands of a scale space of sources in [-1, 1], not clipped; differentiable with its levels."""
    base, *rest = levels
    sources, state = space[-1], None
    for i, ((sigma, sigma_next), level) in enumerate(zip(pairwise([*sigmas, 0.0]), rest, strict=True)):
        learned = level.weight, None, None, base.weight, level.factor, space[i : i + 2]
        step = Step(0, sigma, sigma_next, None, sources, *learned)
        _, state = bands(sources[:, 0], step, state, sigma_n=0.0, scale=how.scale, energy=how.energy, tone=1.0)
    assert state is not None
    return state.target


def stacked(crops: Sequence[dict[str, Any]], device: torch.device) -> list[dict[str, Any]]:
    """Crops of one shape, number of sources and kind as one batch each."""
    alike: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for crop in crops:
        alike[crop["sources"].shape, "truth" in crop, "mask" in crop].append(crop)
    return [default_collate(move_data_to_device(group, device)) for group in alike.values()]


def starting_weights(config: TrainConfig) -> WeightNetwork:
    """The network that a training starts from, or a new one."""
    network = WeightNetwork(config.fusion.sampler)
    if config.weights:
        known = load_weights(config.weights)
        if adopted(config.fusion.sampler, known.settings) != config.fusion.sampler:
            raise RunError(f"weights={config.weights}: trained with other steps, gains or bands than fusion.sampler's")
        network.load_state_dict(known.state_dict())
    return network.train()


class WeightModule(Learner):
    """Trains fusion weights on pairs and stacks without labels, and with ``adapt.mode`` also the prior beneath them.

    The gains of each crop come with it, measured once; where the prior learns, they are measured anew in each step, and
    the objective reaches the prior through them.
    """

    def __init__(
        self,
        config: TrainConfig | Mapping[str, Any],
        denoiser: Denoiser | None = None,
        network: WeightNetwork | None = None,
    ) -> None:
        super().__init__(config)
        self.network = network or starting_weights(self.config)
        self.denoiser = denoiser or starting_prior(self.config)
        if self.config.learns_prior and not self.config.validate:
            speed_up(choose_weights(self.denoiser, self.config.adapt), self.config)
        else:
            self.denoiser.requires_grad_(False).eval()
        times = network_times(self.denoiser.alpha_bar, self.config.fusion.sampler)[1:]
        self.sigmas: list[float] = noise_level(self.denoiser.alpha_bar)[times].tolist()

    def training_step(self, batch: Sequence[dict[str, Any]], index: int) -> Tensor:
        """The objective's mean over the crops."""
        total = torch.zeros((), device=self.device)
        terms: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        guidance = self.config.fusion.sampler.guidance
        for crops in stacked(batch, self.device):
            sources, share = 2 * crops["sources"] - 1, len(crops["sources"]) / len(batch)
            space = scale_space(sources, self.sigmas, guidance.scale)
            levels = self.network(space, self.gains(sources, crops), self.sigmas)
            fused = (composed(space, levels, self.sigmas, guidance) + 1) / 2
            view = View(fused, crops["sources"], crops.get("truth"), crops.get("mask"))
            with torch.autocast(self.device.type, enabled=False):  # products of colours would be in half
                found = objective(view, self.config.objective)
            for name, value in found.items():
                terms[name] = terms[name] + share * value.detach()
                total = total + share * value
        self.parts[index % self.config.optim.accumulate :] = [torch.stack([total.detach(), *terms.values()])]
        for name, value in zip(["loss", *terms], self.shared(torch.stack(self.parts).mean(0)), strict=True):
            self.log(f"train/{name}", value, prog_bar=name == "loss", batch_size=len(batch))
        return total

    def gains(self, sources: Sources, crops: dict[str, Any]) -> list[Maps]:
        """Gains that came with the crops, or of the prior as it is now."""
        if not self.config.learns_prior:
            return crops["gains"]
        index = torch.as_tensor(crops["index"], device=sources.device)
        _, noise = draws(self.config.seed, index, (self.denoiser.channels, *sources.shape[-2:]))
        return network_gains(sources, [noise], self.denoiser, self.config.fusion.sampler).gains

    def validation_step(self, batch: Any, _: int) -> dict[str, list[Result]]:
        """Scores of fused pairs."""
        return self.score(batch, self.denoiser, self.network)

    def rates(self) -> list[dict[str, Any]]:
        """The network at the peak rate, the prior at a share of it."""
        groups: list[dict[str, Any]] = [{"params": list(self.network.parameters())}]
        if self.config.learns_prior:
            prior = [parameter for parameter in self.denoiser.parameters() if parameter.requires_grad]
            groups.append({"params": prior, "lr": self.config.optim.prior_share * self.config.optim.lr})
        return groups
