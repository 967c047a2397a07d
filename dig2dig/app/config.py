"""The schema of the page to try fusion."""

from dataclasses import dataclass

from dig2dig.config import PriorConfig
from dig2dig.options import Checked, option


@dataclass
class AppConfig(Checked):
    """A page to try fusion in the browser, for this machine alone: dig2dig app [key=value …]."""

    port: int = option(7860, "port on 127.0.0.1; 0 = any that is free", least=0, most=65535)
    images: int = option(8, "most images of one fusion", least=2)
    megapixels: float = option(16.0, "most pixels of an image, in millions", above=0)
    megabytes: int = option(64, "largest file", above=0)
    waiting: int = option(8, "most fusions that wait for the one at work", above=0)
    total: int = option(2048, "most megabytes of all uploads and results together", above=0)
    minutes: int = option(60, "uploads and results are removed after so long", above=0)
    hosts: list[str] = option([], "names of the page beside localhost and 127.0.0.1, as behind a proxy")
    prior: PriorConfig = option(PriorConfig, "the pretrained denoiser")
