"""dig2dig: training-free image fusion with diffusion information gain.

from dig2dig import fuse, fuse_files, load_prior
picture = fuse_files(["visible.png", "infrared.png"], task="ivf")
fused = fuse(sources, load_prior())  # (b, k, c, h, w) in [0, 1] -> (b, c, h, w)

The public names stand in ``__init__.pyi``. Each is imported at its first use: ``--help`` must not wait for torch.
"""

from importlib.metadata import version

import lazy_loader

__version__ = version("dig2dig")
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
