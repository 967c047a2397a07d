import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from dig2dig.priors.denoiser import Denoiser
from dig2dig.priors.schedule import alpha_bar
from tests.gaussian import GaussianDenoiser

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
EXAMPLES = ROOT / "examples"

settings.register_profile("steady", deadline=None)  # first calls are slow; time is never what a test asserts
settings.load_profile("steady")


@pytest.fixture(autouse=True)
def deterministic() -> None:
    torch.manual_seed(0)


@pytest.fixture
def signal() -> torch.Tensor:
    """The linear schedule."""
    return alpha_bar()


@pytest.fixture
def gaussian(signal: torch.Tensor) -> GaussianDenoiser:
    """The exact denoiser of grey pixels around 0.1."""
    return GaussianDenoiser(0.1, 0.5, signal)


@pytest.fixture(scope="session")
def bundled() -> Denoiser:
    """The prior in the package, in fp32."""
    from dig2dig.priors.load import load_prior

    return load_prior(precision="fp32")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prior with random weights: for wiring, where the picture does not matter."""
    from dig2dig.priors.build import build_prior, save_prior

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    save_prior(build_prior([32], 1, 2), folder)
    return folder


@pytest.fixture
def mortal() -> Iterator[Path]:
    """A folder whose permissions count: who runs the tests as root is somebody else for a while."""
    if not hasattr(os, "geteuid"):
        pytest.skip("permissions of another kind")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        yield Path(folder)
        if root:
            os.seteuid(0)
        else:
            subprocess.run(["chmod", "-R", "u+rwx", folder], check=True)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium of the system; tests that need one skip without."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not found:
        pytest.skip("no Chromium found")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> tuple[list[str], Path]:
    """A run over odd names, one of which is no picture, with baselines and one pair's estimates."""
    import infer
    from tests import reports

    folder = tmp_path_factory.mktemp("run")
    pairs = reports.write_pairs(folder, [*reports.ODD, "broken"], ("visible", "infrared"))
    (folder / "infrared" / "broken.png").write_bytes(b"no picture")
    arguments = [*reports.FAST, *pairs, f"prior.path={tiny}", f"out={folder / 'o?ut #1'}"]
    assert infer.main([*arguments, "report.baselines=mean, laplacian", "report.estimates=1"]) == 1
    return arguments, folder / "o?ut #1"
