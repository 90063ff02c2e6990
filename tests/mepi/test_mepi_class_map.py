"""MEPI sets of a network whose classes are not the data's."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import qrdali
from qrdali.data.index import Dataset
from qrdali.data.scan import build_dataset
from qrdali.errors import InputError
from qrdali.evaluation.class_map import ClassMap
from qrdali.reduction.quality import MAX_TAIL, REDUCTIONS
from qrdali.workflows.bench_mepi import naive_module
from qrdali.workflows.build_mepi import build_mepi

RULES = ("argmax", "sum")


@pytest.fixture(scope="module")
def run(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> qrdali.Run:
    options = {"model": "test_resnet", "input_size": 32, "batch_size": 8, "threads": 2, "epochs": 12}
    folder = tmp_path_factory.mktemp("trained") / "run"
    return qrdali.train("shared", data=dataset, run=folder, device="cpu", lr=2e-3, **options)


@pytest.fixture(scope="module")
def two(images: Path, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of four classes as two, in another order than the run's."""
    root = tmp_path_factory.mktemp("two")
    for name in dataset.classes:
        for path in sorted((images / "train" / name).iterdir()):
            folder = root / "images" / "val" / ("red" if name.startswith("red") else "z-orange")
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / f"{name}-{path.name}")
    build_dataset(root / "images", root / "data")
    return root / "data"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of the run's four classes is not mapped."""
    file = tmp_path_factory.mktemp("map") / "map.tsv"
    file.write_text("orange-striped-disc\tz-orange\nred-striped-disc\tred\nred-striped-square\tred\n")
    return file


def options(run: qrdali.Run, two: Path, out: Path, **values: Any) -> dict[str, Any]:
    return {"run": run.folder, "data": two, "out": out, "step": 0.25, "device": "cpu", "threads": 2, **values}


@pytest.fixture(scope="module")
def sets(
    run: qrdali.Run, two: Path, table: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sets")
    for rule in RULES:
        build_mepi(**options(run, two, folder / rule, class_map=table, map_rule=rule))
    return {rule: folder / rule for rule in RULES}


@pytest.mark.parametrize("rule", RULES)
def test_the_mapped_class_is_what_is_right(
    run: qrdali.Run, two: Path, table: Path, sets: dict[str, Path], rule: Any
) -> None:
    named = {f"mepi-{name}": sets[rule] / name for name in ("color", "combination")}
    full, *results = qrdali.evaluate(
        run, two, split="val", sets=named, class_map=table, map_rule=rule, device="cpu"
    )
    manifest = pq.read_table(sets[rule] / "manifest.parquet").to_pylist()
    for result in results:
        reduction = result["set"].removeprefix("mepi-").partition("-mapped")[0]
        of_set = {row["sample"]: row for row in manifest if row["reduction"] == reduction}
        assert result["correct"] == result["images"] == len(of_set) == full["correct"] > 4
        # The confidence is what `evaluate` says of the written file.
        rows = run.rows(result["set"]).to_pylist()
        written = {int(Path(row["path"]).stem): row["confidence"] for row in rows}
        np.testing.assert_allclose(
            [written[sample] for sample in sorted(written)],
            [of_set[sample]["confidence"] for sample in sorted(written)],
            rtol=1e-3,
        )
    classes = Dataset.open(two).classes
    assert {row["label"] for row in manifest} <= set(range(len(classes)))
    assert {path.parent.name for path in sets[rule].glob("*/*/*.png")} <= set(classes)


def test_the_rules_differ(sets: dict[str, Path]) -> None:
    summaries = [json.loads((sets[rule] / "summary.json").read_text())["combination"] for rule in RULES]
    assert summaries[0]["without_mepi"] != summaries[1]["without_mepi"] or (
        summaries[0]["mean_quotient"] != summaries[1]["mean_quotient"]
    )


def test_the_map_is_recorded_and_kept(
    run: qrdali.Run, two: Path, table: Path, sets: dict[str, Path], tmp_path: Path
) -> None:
    recorded = json.loads((sets["sum"] / "options.json").read_text())
    assert (recorded["map_rule"], recorded["class_map_file"]) == ("sum", str(table))
    assert recorded["classes"] == ["red", "z-orange"]
    assert len(recorded["class_map"]) == 64
    moved = tmp_path / "moved.tsv"
    moved.write_text("# the same in another order\n" + "\n".join(reversed(table.read_text().splitlines())))
    same = build_mepi(
        **options(run, two, sets["sum"], class_map=moved, map_rule="sum", resume=True, reduction="color")
    )
    assert same["color"]["images"] == 24
    moved.write_text(table.read_text() + "orange-striped-square\tz-orange\n")
    for words, said in (
        ({"class_map": table, "map_rule": "argmax"}, "map_rule sum → argmax"),
        ({"class_map": moved, "map_rule": "sum"}, "class_map [0-9a-f]{64} → [0-9a-f]{64}"),
        ({"map_rule": "sum"}, "--map-rule is of a --class-map"),
        ({}, "only in the run"),
    ):
        with pytest.raises(InputError, match=said):
            build_mepi(**options(run, two, sets["sum"], resume=True, **words))


def test_the_report_shows_the_map(run: qrdali.Run, sets: dict[str, Path], tmp_path: Path) -> None:
    page = qrdali.write_report([run], mepi=[sets["sum"]], out=tmp_path / "report").page.read_text()
    assert "map_rule" in page
    assert "map.tsv" in page
    assert "z-orange" in page  # classes are the data set's


def test_an_answer_that_maps_to_nothing_has_the_name_of_the_runs_class(
    run: qrdali.Run, two: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided = ClassMap.judge
    answers: list[list[int]] = []

    def judge(self: ClassMap, logits: Any, labels: Any) -> Any:
        judged = decided(self, logits, labels)
        answers.append(judged.answer.tolist())
        return judged

    monkeypatch.setattr(ClassMap, "judge", judge)
    words = options(run, two, tmp_path / "set", class_map=table, reduction="resolution")
    summary = build_mepi(**words)["resolution"]
    names = (*Dataset.open(two).classes, *run.classes)
    of_voids = [answer for batch in answers[-3:] for answer in batch]  # 24 images, 8 at a time
    assert summary["near_void_class"] == names[Counter(of_voids).most_common(1)[0][0]]


@pytest.mark.parametrize("rule", RULES)
def test_the_naive_reference_gives_the_same_answers(
    run: qrdali.Run, sets: dict[str, Path], rule: str
) -> None:
    """Up to what the resize filters may tip."""
    targets = [1, -1, 0, 0]  # orange disc, orange square, red disc, red square; red is 0 and z-orange 1
    naive = naive_module().Naive(run.model(), "cpu", run.preprocessing, mapped=(targets, rule))
    same = Counter[bool]()
    for row in pq.read_table(sets[rule] / "manifest.parquet").to_pylist()[::3]:
        state, _ = naive.search(row["path"], row["label"], REDUCTIONS[row["reduction"]], 4, MAX_TAIL)
        keys = ("color_level", "crop_level", "resolution_level", "top", "left")
        same[state == tuple(row[key] for key in keys)] += 1
    assert same.total() > 8
    assert same[True] >= 0.85 * same.total(), same
