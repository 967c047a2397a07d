"""Opens the page to try fusion: python -m dig2dig.app [port=7860] [key=value …]."""

import os
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from dig2dig.app.config import AppConfig
from dig2dig.cli import load
from dig2dig.errors import RunError, exits_in_one_line


@exits_in_one_line
def main(argv: list[str]) -> int:
    """Serves the page until it is interrupted, and gives the exit code."""
    config = load(AppConfig, argv)
    if not find_spec("gradio"):
        raise RunError("the page needs Gradio: pip install 'dig2dig[app]'")
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}  # read when it is imported
    from starlette.middleware import Middleware

    from dig2dig.app.gate import Gate, temporary_folder
    from dig2dig.app.page import build
    from dig2dig.app.worker import leave_all
    from dig2dig.inference.interrupts import Interrupted, heed_signals
    from dig2dig.priors.denoiser import pick_device
    from dig2dig.priors.load import open_prior

    with suppress(Interrupted):  # closing the page is how it ends
        denoiser = open_prior(config.prior, pick_device())
        with heed_signals(), temporary_folder() as folder:
            os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
            page = build(config, denoiser, folder)
            room = {"folder": folder / "uploads", "room": config.total * 10**6, "age": 60.0 * config.minutes}
            try:
                _, url, _ = page.launch(
                    server_name="127.0.0.1",
                    server_port=config.port or None,
                    share=False,
                    quiet=True,
                    prevent_thread_lock=True,
                    max_file_size=f"{config.megabytes}mb",
                    css_paths=Path(__file__).with_name("page.css"),
                    enable_monitoring=False,
                    app_kwargs={"middleware": [Middleware(Gate, hosts=config.hosts, **room)]},
                )
            except OSError as error:
                raise RunError(f"port {config.port} cannot be had: give another, or port=0 for any") from error
            print(f"the page is at {url} until Ctrl-C", flush=True)
            try:
                page.block_thread()
            finally:
                leave_all()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
