"""The schema of the page to try fusion."""

from dataclasses import dataclass

from dig2dig.config import PriorConfig
from dig2dig.options import option, require


@dataclass
class AppConfig:
    """A page to try fusion in the browser, for this machine alone: dig2dig app [key=value …]."""

    port: int = option(7860, "port on 127.0.0.1; 0 = any that is free")
    images: int = option(8, "most images of one fusion")
    megapixels: float = option(16.0, "most pixels of an image, in millions")
    megabytes: int = option(64, "largest file")
    waiting: int = option(8, "most fusions that wait for the one at work")
    total: int = option(2048, "most megabytes of all uploads and results together")
    minutes: int = option(60, "uploads and results are removed after so long")
    hosts: list[str] = option([], "names of the page beside localhost and 127.0.0.1, as behind a proxy")
    prior: PriorConfig = option(PriorConfig, "the pretrained denoiser")

    def __post_init__(self) -> None:
        require(0 <= self.port < 65536, f"port must lie in [0, 65535], not {self.port}")
        require(self.images >= 2, f"images must be at least 2, not {self.images}")
        limits = (self.megapixels, self.megabytes, self.waiting, self.total, self.minutes)
        require(min(limits) > 0, "limits must be positive")
