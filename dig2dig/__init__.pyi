from .api import fuse_files as fuse_files
from .api import preset as preset
from .config import DigConfig as DigConfig
from .config import GuidanceConfig as GuidanceConfig
from .config import SamplerConfig as SamplerConfig
from .errors import PriorError as PriorError
from .fusion.gain import information_gain as information_gain
from .fusion.guidance import Guidance as Guidance
from .fusion.guidance import Step as Step
from .fusion.plan import Snapshot as Snapshot
from .fusion.sampler import fuse as fuse
from .fusion.weight import fusion_weight as fusion_weight
from .priors.build import save_prior as save_prior
from .priors.denoiser import Denoiser as Denoiser
from .priors.load import load_prior as load_prior

__version__: str
