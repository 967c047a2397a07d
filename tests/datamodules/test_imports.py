"""What importing the package does to the process: nothing."""

import subprocess
import sys

from tests.conftest import ROOT

CODE = """
import importlib, os, pkgutil
import cv2, lightning, PIL.Image, scipy.fft, torch  # what these do on import is theirs
cv2.setNumThreads(3)
state = lambda: (PIL.Image.MAX_IMAGE_PIXELS, cv2.getNumThreads(), torch.get_num_threads(), dict(os.environ))
before = state()
import datamodules
names = [module.name for module in pkgutil.walk_packages(datamodules.__path__, "datamodules.")]
for name in names:
    importlib.import_module(name)
    assert state() == before, name
assert before[1] == 3 and len(names) > 10 and "datamodules.readers.pixels" in names
"""


def test_importing_changes_nothing_global() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
