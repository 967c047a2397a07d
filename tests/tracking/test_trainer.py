"""Which devices a run takes."""

import pytest
import torch

from dig2dig.config import TrainerConfig
from dig2dig.errors import RunError
from dig2dig.tracking.trainer import build_trainer, with_work


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight of them."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)


@pytest.mark.parametrize(("pairs", "taken"), [(0, "1"), (1, "1"), (5, "5"), (8, "auto"), (100, "auto"), (None, "auto")])
def test_auto_takes_no_more_gpus_than_there_are_pairs(gpus, pairs: int | None, taken: str, capsys) -> None:
    assert with_work(TrainerConfig(), pairs).devices == taken
    said = capsys.readouterr().err
    assert (f"{taken} of 8 GPUs have a pair" in said) == (taken != "auto") == bool(said)
    assert with_work(TrainerConfig("cpu"), pairs).devices == "auto"
    assert with_work(TrainerConfig(devices="3"), pairs).devices == "3"


def test_auto_is_each_process_of_a_launcher(gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TORCHELASTIC_RUN_ID", "1"), ("LOCAL_WORLD_SIZE", "4"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    taken = with_work(TrainerConfig(), 1)
    assert (taken.devices, taken.num_nodes) == ("4", 2)


@pytest.mark.parametrize(
    ("given", "kept"), [("[0,2]", "0,2,"), ("[0, 2]", "0,2,"), ("[2]", "2,"), ("2", "2"), ("0,2", "0,2")]
)
def test_devices_may_be_a_list(given: str, kept: str) -> None:
    """A list of one device names it, a number counts them."""
    assert TrainerConfig(devices=given).devices == kept
    if kept.count(",") > 1:
        from lightning.fabric.utilities.device_parser import _normalize_parse_gpu_string_input as parsed

        assert parsed(kept) == [0, 2]


def test_nodes_need_a_launcher() -> None:
    with pytest.raises(RunError, match=r"trainer\.num_nodes=2: start it on each node, with torchrun or srun"):
        build_trainer(TrainerConfig("cpu", "1", num_nodes=2), logger=False)


def test_a_training_on_several_devices_says_what_a_batch_is(capsys: pytest.CaptureFixture) -> None:
    options = {"logger": False, "enable_checkpointing": False}
    two = TrainerConfig("cpu", "2")
    build_trainer(two, 4, **options)
    build_trainer(TrainerConfig("cpu", "1"), max_steps=3, **options)
    assert capsys.readouterr().err == ""
    build_trainer(two, max_steps=3, **options)
    assert capsys.readouterr().err == "2 devices: each batch is 2 times data.batch_size\n"
