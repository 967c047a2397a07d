"""A training replaces neither what it starts from nor what no training wrote."""

from pathlib import Path

import pytest

import train
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
