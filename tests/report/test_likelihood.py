"""Top-5 accuracy and negative log-likelihood in the report: of rows that hold them, absent elsewhere."""

import json
import re
from pathlib import Path
from typing import Any

import fake_runs
import numpy as np
import pyarrow.parquet as pq
import pytest

from qrdali.report.build import build

CLASSES = tuple("abcdefgh")


def add_figures(run: Path, name: str, ranks: list[int], probability: list[float]) -> None:
    """Writes rank and probability of the true class into rows, as evaluation does."""
    file = run / "predictions" / f"{name}.parquet"
    table = pq.read_table(file)
    table = table.append_column("rank", [np.array(ranks, np.int32)])
    pq.write_table(table.append_column("true_probability", [np.array(probability)]), file)


def run(folder: Path, seed: int = 0, **settings: Any) -> Path:
    right = {"val": np.arange(8) < 4, "test": np.arange(8) < 2}
    return fake_runs.run(folder, [0.1, 0.5], right, classes=CLASSES, seed=seed, **settings)


def lines(report: dict[str, Any]) -> list[dict[str, Any]]:
    table = report["tables"]["likelihood-1"]
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


def test_figures_are_means_over_seeds_and_absent_where_rows_lack_them(tmp_path: Path) -> None:
    first, second, old = (
        run(tmp_path / "first"),
        run(tmp_path / "second", 1),
        run(tmp_path / "old", method="linear"),
    )
    add_figures(first, "test", [1, 1, 2, 5, 6, 8, 3, 3], [0.5] * 8)
    add_figures(second, "test", [1, 1, 6, 6, 6, 6, 6, 5], [0.25] * 8)
    add_figures(first, "val", [1, 1, 1, 1, 2, 2, 2, 7], [0.5] * 4 + [0.125] * 4)
    report = build([first, second, old], [], tmp_path / "out")
    found = {(row["set"], row["method"]): row for row in lines(report)}
    assert list(found) == [(s, m) for s in ("val", "test") for m in ("baseline", "linear")]
    test = found["test", "baseline"]
    assert test["top-5"] == pytest.approx(100 * (6 / 8 + 3 / 8) / 2)
    assert test["NLL"] == pytest.approx((np.log(2) + np.log(4)) / 2)
    assert (test["top-1"], test["seeds"]) == (25, 2)
    assert found["val", "baseline"]["NLL"] == pytest.approx((np.log(2) + np.log(8)) / 2)
    assert [found[s, "linear"]["top-5"] for s in ("val", "test")] == [None, None]
    assert [found[s, "linear"]["NLL"] for s in ("val", "test")] == [None, None]
    page = (tmp_path / "out" / "report.html").read_text()
    shown = page[page.index('id="table-likelihood-1"') :].partition("</table>")[0]
    text = " ".join(re.sub(r"<[^>]*>", " ", shown).split())
    assert "set method reduction sequence seeds top-1 top-5 NLL" in text
    assert "87.5 (1 of 2)" in text  # val: one seed's rows hold them
    assert "test linear combination paired-epochs 1 25.0 – –" in text
    assert "8 classes gives 2.079" in str(report["tables"]["likelihood-1"]["notes"])


def test_few_classes_are_said_and_old_rows_alone_make_no_table(tmp_path: Path) -> None:
    old = run(tmp_path / "old")
    assert "likelihood-1" not in build([old], [], tmp_path / "none")["tables"]
    few = fake_runs.run(tmp_path / "few", [0.5, 0.5], {"test": np.arange(4) < 2})
    add_figures(few, "test", [1, 1, 4, 2], [0.9, 0.9, 0.0, 0.1])
    report = build([few], [], tmp_path / "out")
    (row,) = (row for row in lines(report) if row["set"] == "test")
    assert row["top-5"] == 100
    assert np.isfinite(row["NLL"])
    assert "whatever a network says" in json.dumps(report["tables"]["likelihood-1"]["notes"])
