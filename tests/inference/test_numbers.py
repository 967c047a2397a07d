"""Files that a run writes, decoded, against the tensors that it had."""

import csv
import os
from itertools import product
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
import torch

from datamodules.pairs import Sample
from datamodules.ranges import to_unit
from dig2dig.color import to_pixels
from dig2dig.config import SaveConfig
from dig2dig.fusion.plan import Snapshot
from dig2dig.inference.encode import encode, suffix_of
from dig2dig.inference.table import COLUMNS, append_summary, read_summary, write_summary
from dig2dig.inference.writer import FusionWriter
from dig2dig.modules.results import Result

VIRIDIS = np.asarray(matplotlib.colormaps["viridis"].colors)  # pyright: ignore[reportAttributeAccessIssue]


def values_of(path: Path) -> np.ndarray:
    """The numbers in [0, 1] behind the colours of a map: the nearest entry of matplotlib's own table."""
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    assert pixels is not None and pixels.dtype == np.uint8
    distance = np.linalg.norm(pixels[:, :, None] / 255 - VIRIDIS, axis=-1)
    assert distance.min(-1).max() < 0.02
    return distance.argmin(-1) / 255


def step(index: int, t: int) -> Snapshot:
    """Weights that sum to one, gains from -1 to 3: two sources, 3 × 4 pixels."""
    random = torch.Generator().manual_seed(index)
    weight = torch.rand(1, 1, 1, 3, 4, generator=random)
    gain = torch.rand(1, 2, 1, 3, 4, generator=random) * torch.tensor([1.0, 3.0]).view(1, 2, 1, 1, 1)
    gain[0, 0, 0, 0, 0], gain[0, 1, 0, 2, 3] = -1.0, 3.0
    image = torch.zeros(1, 1, 3, 4)
    return Snapshot(index, 2, t, 1.0, None, image, gain, torch.cat([weight, 1 - weight], 1))


def result(**changes) -> Result:
    image = torch.tensor([0.0, 0.1, 0.2, 0.5, 0.7, 1.0]).view(1, 2, 3)
    sample = Sample("night", ("visible", "infrared"), torch.zeros(2, 1, 2, 3), None, depth=16, digest="d", note="seen")
    return Result("night", sample, image, image, 1.23456, 77, [step(0, 805), step(1, 7)], note="seen", **changes)


def written(out: Path, *results: Result, **save) -> FusionWriter:
    writer = FusionWriter(out, {"old": {"name": "old", "status": "done"}}, SaveConfig(**save))
    writer.write(list(results), out / "summary.csv")
    return writer


def test_maps_hold_the_weights_and_the_gains_of_their_source_and_step(tmp_path: Path) -> None:
    """Weights from 0 to 1; gains between the least and the largest of both sources in the step."""
    made = result()
    (tmp_path / "night_maps").mkdir()
    (tmp_path / "night_maps" / "gain_visible_step009_t001.png").write_bytes(b"of an earlier run")
    (tmp_path / "night_maps" / "gain.png").write_bytes(b"somebody's own")
    written(tmp_path, made, weights=True)
    names = {path.name for path in (tmp_path / "night_maps").iterdir()} - {"gain.png"}
    ends = ("step000_t805", "step001_t007")
    expected = product(("gain", "weight"), ("visible", "infrared"), ends)
    assert names == {f"{kind}_{modality}_{end}.png" for kind, modality, end in expected}
    for snapshot, end in zip(made.trace, ends, strict=True):
        for k, modality in enumerate(("visible", "infrared")):
            weight = values_of(tmp_path / "night_maps" / f"weight_{modality}_{end}.png")
            np.testing.assert_allclose(weight, snapshot.weight[0, k, 0].numpy(), rtol=0, atol=2.5 / 255)
            gain = values_of(tmp_path / "night_maps" / f"gain_{modality}_{end}.png")
            np.testing.assert_allclose(gain, (snapshot.gain[0, k, 0].numpy() + 1) / 4, rtol=0, atol=2.5 / 255)


def test_no_map_is_written_unless_asked_for(tmp_path: Path) -> None:
    written(tmp_path, result())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["night.png", "summary.csv"]


def test_a_picture_has_its_values_rounded_and_its_row_what_became_of_it(tmp_path: Path) -> None:
    failure = Result("day", reason="day: no file")
    seen: list[str] = []
    writer = written(tmp_path, result(), failure)
    pixels = cv2.imread(str(tmp_path / "night.png"), cv2.IMREAD_UNCHANGED)
    assert pixels.tolist() == [[0, 6554, 13107], [32768, 45874, 65535]]  # 6553.5 and 32767.5 to even; 45874.5 as well
    with (tmp_path / "summary.csv").open(newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["night", "day"] and set(rows["day"]) == set(COLUMNS)  # earlier ones are there already
    assert rows["night"] == {
        "name": "night", "status": "done", "file": "night.png", "seconds": "1.235", "size": "3x2", "seed": "77",
        "inputs": "d", "note": "seen", "reason": "", "run": "",
    }  # fmt: skip
    assert rows["day"]["status"] == "failed" and rows["day"]["reason"] == "day: no file" and not rows["day"]["file"]
    writer.report = lambda result, file: seen.append(f"{result.name} {file}")
    writer.write([result(), failure], tmp_path / "summary.csv")
    assert seen == ["night night.png"]


@pytest.mark.parametrize(("suffix", "depth", "top"), [(".png", 8, 255), (".tif", 16, 65535), (".bmp", 16, 255)])
def test_colours_and_depths_survive(suffix: str, depth: int, top: int) -> None:
    """Red, green and blue in their order; formats of 8 bits get 8."""
    image = torch.tensor([[1.0, 0.2], [0.4, 0.0], [-0.3, 1.7]]).view(3, 1, 2)
    content = np.frombuffer(encode(image, suffix, depth), np.uint8)
    pixels = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)[..., ::-1]  # pyright: ignore[reportOptionalSubscript]
    assert pixels.tolist() == [[[top, round(0.4 * top), 0], [round(0.2 * top), 0, top]]]


def test_pixels_are_rounded_and_clipped() -> None:
    image = torch.tensor([0.0, 1.4 / 255, 1.6 / 255, 2.0]).view(1, 1, 4)
    assert to_pixels(image).ravel().tolist() == [0, 1, 2, 255] and to_pixels(image).dtype == np.uint8
    assert to_pixels(image, 16).ravel().tolist() == [0, 360, 411, 65535] and to_pixels(image, 16).shape == (1, 4, 1)


def test_a_result_has_the_format_of_the_reference_where_that_is_a_picture() -> None:
    assert [suffix_of("reference", source) for source in (".jpg", ".nii", ".tif")] == [".jpg", ".png", ".tif"]
    assert suffix_of("webp", ".jpg") == ".webp"


def test_stored_values_become_intensities() -> None:
    """The whole type, chosen values, or the 0.1 and the 99.9 percentile: of 0 … 1000 these are 1 and 999."""
    deep = np.arange(1001, dtype=np.uint16).reshape(1, 1001)
    assert to_unit(deep, "full")[0][0, [0, 1000]].tolist() == pytest.approx([0, 1000 / 65535])
    for scale in ("percentile", "auto"):  # it fills less than a quarter of its type
        unit, note = to_unit(deep, scale)
        assert unit[0, [0, 1, 500, 999, 1000]].tolist() == pytest.approx([0, 0, 499 / 998, 1, 1], abs=1e-5)
        assert note == "values 1 to 999 are black to white"
    assert to_unit(deep, "200-600")[0][0, [100, 200, 300, 700]].tolist() == pytest.approx([0, 0, 0.25, 1])
    assert to_unit(deep * 60)[0][0, 500] == pytest.approx(500 * 60 / 65535)  # this fills it
    assert to_unit(np.array([[0, 51]], np.uint8))[0].tolist() == [[0, pytest.approx(0.2)]]


def test_rows_are_added_at_the_end_and_half_a_row_counts_for_nothing(tmp_path: Path, monkeypatch) -> None:
    """What a batch writes does not grow with the run; wherever a crash cuts the table, whole rows are read."""
    table, written = tmp_path / "t.csv", []
    rows = [
        dict.fromkeys(COLUMNS, "x") | {"name": f'a,"{i}\n', "status": "failed", "run": "12345678"} for i in range(3)
    ]
    monkeypatch.setattr(os, "fsync", lambda file: written.append(os.fstat(file).st_size))
    for row in rows:
        append_summary(table, [row])
    content, head = table.read_bytes(), len(",".join(COLUMNS)) + 1
    assert written == [head + i * (len(content) - head) // 3 for i in range(4)]
    assert list(read_summary(table).values()) == rows
    ends = [head + (i + 1) * (len(content) - head) // 3 for i in range(3)]
    for cut in range(len(content)):
        table.write_bytes(content[:cut])
        whole = sum(cut >= end - 1 for end in ends)  # its line's end may be missing
        assert list(read_summary(table, "12345678").values()) == rows[:whole], cut


def test_a_table_comes_back_as_it_was(tmp_path: Path) -> None:
    done = {"status": "done", "file": "a.png", "seconds": "1.5"}
    rows = {"b": dict.fromkeys(COLUMNS, "x") | {"name": "b", "status": "failed"}, "a": {"name": "a", **done}}
    write_summary(tmp_path / "t.csv", rows)
    assert read_summary(tmp_path / "t.csv") == {
        "a": dict.fromkeys(COLUMNS, "") | rows["a"], "b": rows["b"],
    }  # fmt: skip
    names = "c\rd", "e\r", 'f,"\r\n'
    strange = {name: dict.fromkeys(COLUMNS, "x") | {"name": name, "status": "failed"} for name in names}
    write_summary(tmp_path / "s.csv", strange)
    assert read_summary(tmp_path / "s.csv") == strange
    (tmp_path / "u.csv").write_text("name,status\na,done\n")
    assert read_summary(tmp_path / "u.csv") == read_summary(tmp_path / "none.csv") == {}
