"""A training replaces neither what it starts from nor what no training wrote."""

import shutil
from pathlib import Path

import pytest

import train
from dig2dig.inference.ownership import read_names
from dig2dig.priors.files import CHECKSUMS, weights_files
from tests.training.test_train import STEPS, arguments, fit

pytestmark = pytest.mark.slow


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_training_does_not_replace_the_prior_that_it_starts_from(tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    fit(out, *STEPS)
    before = everything(out)
    for start in (f"prior={out / 'prior'}", f"prior={out / 'prior' / '..' / 'prior'}", f"data.root={out}"):
        assert train.main(arguments(out, *STEPS, start)) == 2
        assert "which this run reads; give another folder" in capsys.readouterr().err
    assert everything(out) == before


def test_a_training_refuses_a_folder_with_files_of_others_and_goes_on_in_its_own(tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    (out / "prior").mkdir(parents=True)
    (out / "prior" / "mine.txt").write_text("mine")
    assert train.main(arguments(out, *STEPS)) == 2
    assert "holds prior/, which no run of dig2dig wrote; give another folder\n" in capsys.readouterr().err
    assert everything(out) == {str(out / "prior" / "mine.txt"): b"mine"}
    fit(tmp_path / "new", *STEPS)
    again = str(tmp_path / "new" / "config.yaml")
    assert train.main([again, f"out={tmp_path / 'new'}", "trainer.accelerator=cpu"]) == 0
    assert train.main([again, f"out={tmp_path / 'new'}", "seed=9"]) == 2


@pytest.mark.parametrize("name", ["wandb/mine", "tensorboard/mine", "log/mine", "wandb_id"])
def test_a_training_refuses_logs_of_others_and_records_its_own(name: str, tmp_path: Path, capsys) -> None:
    folder, out = name.partition("/")[0], tmp_path / "run"
    loggers = ["optim.steps=1", "logger.wandb.mode=offline", "logger.tensorboard=true", "logger.every=1"]
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine")
    assert train.main(arguments(out, *STEPS, *loggers)) == 2
    assert f"holds {folder}" in capsys.readouterr().err
    assert everything(out) == {str(out / name): b"mine"}
    if folder == "wandb":
        fit(tmp_path / "new", *STEPS, *loggers)
        fit(tmp_path / "new", *STEPS, *loggers)
        made = {path.relative_to(tmp_path / "new").parts[0] for path in (tmp_path / "new").rglob("*")}
        assert {"wandb", "wandb_id", "tensorboard", "log"} <= made
        assert made <= {owned.split("/")[0] for owned in read_names(tmp_path / "new")}


def test_a_training_with_other_bytes_of_its_prior_ends_in_one_line(tmp_path: Path, tiny: Path, capsys) -> None:
    prior, out = shutil.copytree(tiny, tmp_path / "prior"), tmp_path / "run"
    (prior / CHECKSUMS).unlink()
    start = [*STEPS, "optim.steps=2", f"prior={prior}"]
    fit(out, *start)
    before, file = everything(out), weights_files(prior)[0]
    file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1]))
    capsys.readouterr()
    for more in ("optim.steps=2", "optim.steps=3"):
        assert train.main(arguments(out, *start, more)) == 2
    assert train.main([str(out / "config.yaml"), f"out={tmp_path / 'again'}", "trainer.accelerator=cpu"]) == 2
    resumed, more, repeated = capsys.readouterr().err.splitlines()
    assert all("holds a run with other options" in line for line in (resumed, more)) and "(prior_sha256 was " in resumed
    assert "altered or cut" in repeated
    assert everything(out) == before
