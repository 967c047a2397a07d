"""The tables of the benchmarks on made rows."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from dig2dig.benchmark import tables
from dig2dig.benchmark.config import QualityConfig
from dig2dig.benchmark.datasets import find_cases, read_targets
from dig2dig.benchmark.tables import Row, Rows, Scores, all_tables, collect, means_table
from dig2dig.errors import RunError
from dig2dig.metrics import MAIN


def scored(method: str, name: str, value: float, **more: str) -> Row:
    known = {"dataset": "set", "name": name, "method": method, "stretch": "none", "task": "ivf", "k": "2"}
    return known | {metric: str(value) for metric in MAIN} | more


def comparison(images: int) -> str:
    """The row of the test against a method that is worse on every image."""
    values = np.arange(2.0 * images * 8).reshape(2, images, 8)
    scores = Scores(["bad", "good"], [*MAIN[:7], "AG"], values, np.zeros((2, 2)), [])
    return tables.tests_table(scores, "good")


def test_p_is_left_out_where_no_result_could_be_significant() -> None:
    """Of eight metrics: 8 · 2 / 2^8 is above 0.05, 8 · 2 / 2^9 is below."""
    few, enough = (comparison(images).splitlines()[2] for images in (8, 9))
    assert few == f"| bad | 8 | n too small |{' +1.00 |' * 8}"
    assert enough == f"| bad | 8 | 8 / 0 |{' +1.00 (0.031) |' * 8}"


def test_means_table_in_full() -> None:
    rows = [
        scored("ours", "a", 3, seconds="0.25", evaluations="4"),
        scored("ours", "b", 2, seconds="0.5", evaluations="4"),
    ]
    rows += [scored("peer", "b", 1), scored("peer", "a", 1), scored("half", "a", 9)]
    better, means = " ↑ | ".join(MAIN[:-1]), "2.5 | " * 8
    assert means_table(collect(rows)) == (
        f"| method | {better} ↑ | Nabf ↓ | mean rank | seconds | evaluations |\n"
        f"{'| --- ' * 12}|\n"
        f"| ours | {means}1.12 | 0.38 | 4.0 |\n"
        f"| peer | {'1 | ' * 8}1.88 |  |  |\n"
        "\nWithout all images, and so left out: half.\n"
    )


def test_a_method_that_comes_twice_counts_once_and_the_last_row_counts() -> None:
    rows = [scored("one", "a", 1), scored("two", "a", 2), scored("one", "a", 3)]
    scores = collect(rows)
    assert scores.methods == ["one", "two"] and scores.values[:, 0, 0].tolist() == [3, 2]
    assert np.isnan(scores.cost).all()


@pytest.mark.parametrize("rows", [[], [scored("one", "a", 1), scored("two", "b", 2)]])
def test_tables_are_made_though_no_method_has_all_images(rows: list[Row]) -> None:
    assert all_tables(rows, QualityConfig()).count("left out: one, two.") == (2 if rows else 0)


@pytest.mark.parametrize("text", ["dataset,name,warp\nset,a,own\n", "my,own\n1,2\n", "notes of mine\n"])
def test_a_table_of_something_else_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.csv").write_text(text)
    with pytest.raises(RunError, match="not a table of this benchmark"):
        Rows(tmp_path / "results.csv")


def test_rows_come_back_as_they_were_put(tmp_path: Path) -> None:
    texts = ["NA", "nan", "", "01", "1.0", 'a "b", c', " x\ny", "é"]
    rows = Rows(tmp_path / "rows.csv", ("name", "method"))
    rows.save()
    assert rows.path.read_text() == "name,method\n"
    for i, text in enumerate(texts):
        rows.put(f"{i}", text, row={"value": text} if i % 2 else {"other": text})
    rows.save()
    again = Rows(rows.path, rows.identity)
    assert list(again.rows) == sorted(rows.rows)
    for i, text in enumerate(texts):
        filled = {"other": "", "value": ""} | {"value" if i % 2 else "other": text}
        assert again.find(f"{i}", text) == again.find(f"{i}") == {"name": f"{i}", "method": text} | filled
    assert again.find("9") is None and again.find("0", "no") is None


def test_targets_are_masks_or_boxes_and_no_source(tmp_path: Path) -> None:
    root = tmp_path / "infrared_visible" / "Marked"
    for side in ("ir", "vi", "mask"):
        (root / side).mkdir(parents=True)
    (root / "labels").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60), np.uint8)
    mask = np.zeros((40, 60), np.uint8)
    mask[10:20, 30:50] = 255
    for name in ("a", "b"):
        cv2.imwrite(str(root / "ir" / f"{name}.png"), pixels)
        cv2.imwrite(str(root / "vi" / f"{name}.png"), 255 - pixels)
    cv2.imwrite(str(root / "mask" / "a.png"), mask)
    (root / "labels" / "b.txt").write_text("0 0.6666667 0.375 0.3333333 0.25\n")
    first, second = find_cases(str(tmp_path))
    assert list(first.pair.files) == ["ir", "vi"]
    for case in (first, second):
        assert case.targets is not None
        np.testing.assert_array_equal(read_targets(case.targets, 40, 60)[0].numpy(), mask > 0)


def test_columns_without_a_rank_are_shown_beside() -> None:
    rows = [
        {"method": method, "dataset": "d", "name": "n", **dict.fromkeys(MAIN, "1"), "halo": halo, "targets": kept}
        for method, halo, kept in (("one", "0.1", ""), ("two", "0.3", "0.75"))
    ]
    scores = collect(rows)
    assert scores.metrics == list(MAIN) and scores.shown["halo"].tolist() == [0.1, 0.3]
    assert np.isnan(scores.shown["targets"][0]) and scores.shown["targets"][1] == 0.75
    assert "| mean rank | halo | targets |" in means_table(scores).splitlines()[0]
