"""What a run records of its images and of the runs it began with, and what that is good for."""

import json
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from qrdali.data.index import Dataset
from qrdali.data.scan import build_dataset
from qrdali.errors import Interrupted, RunError
from qrdali.evaluation.prediction_rows import read_metadata
from qrdali.interfaces import JobControl
from qrdali.report.build import ReportOptions, contents
from qrdali.report.read import named, read_run
from qrdali.runs.configuration import chain_of
from qrdali.runs.settings import read_toml, validate_settings
from qrdali.workflows.evaluate import evaluate
from qrdali.workflows.train import run_training

TINY = {"model": "test_resnet", "input_size": 32, "batch_size": 8, "device": "cpu", "threads": 1}


def train(folder: Path, data: Path, stop_after: int = 0, **settings: Any) -> Path:
    """Trains, and is stopped at a step where `stop_after` says so."""
    calls: Iterator[int] = count(1)
    control = JobControl(stop=lambda: 15 if stop_after and next(calls) > stop_after else 0)
    values = {"method": "baseline", "max_epochs": 1, "data": str(data), **TINY, **settings}
    run_training(validate_settings(values), folder, True, control)
    return folder


def first_row(run: Path) -> dict[str, Any]:
    with open(run / "metrics.jsonl", encoding="utf-8") as file:
        return json.loads(file.readline())  # type: ignore[no-any-return]


def seeds(folders: list[Path]) -> list[tuple[str, float]]:
    """Names of configurations, and over how many seeds they are averaged."""
    runs = [read_run(f, name, lambda text: None) for f, name in zip(folders, named(folders), strict=True)]
    tables = [t for part in contents(runs, [], ReportOptions()) for t in part.filled_tables]
    return [
        (row[0].text, float(row[3].text)) for t in tables if t.slug.startswith("accuracy-") for row in t.rows
    ]


def test_runs_below_two_mounts_are_one_experiment(images: Path, tmp_path: Path) -> None:
    folders = []
    for seed, mount in enumerate(("a", "b")):
        shutil.copytree(images, tmp_path / mount)
        build_dataset(tmp_path / mount, tmp_path / f"data-{mount}")
        folders.append(train(tmp_path / f"run{seed}", tmp_path / f"data-{mount}", seed=seed))
        evaluate(folders[-1], data=tmp_path / f"data-{mount}", sets={"mine": str(tmp_path / mount / "test")})
    one, two = (first_row(folder)["fingerprints"] for folder in folders)
    assert [one[split]["content"] == two[split]["content"] for split in ("train", "val")] == [True, True]
    assert one["train"]["file"] != two["train"]["file"]
    for name in ("val", "test", "mine"):
        assert read_metadata(folders[0], name)["images"] == read_metadata(folders[1], name)["images"], name
    assert seeds(folders) == [("baseline", 2)]


def test_a_run_on_fewer_images_is_another(images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "few")
    next((tmp_path / "few" / "train").glob("*/*")).unlink()
    for name, root in (("all", images), ("less", tmp_path / "few")):
        build_dataset(root, tmp_path / name)
        train(tmp_path / f"run-{name}", tmp_path / name, seed=len(name))
    assert seeds([tmp_path / "run-all", tmp_path / "run-less"]) == [("baseline", 1)] * 2


def test_a_run_goes_on_with_the_same_images_elsewhere_and_not_with_others(
    images: Path, tmp_path: Path
) -> None:
    shutil.copytree(images, tmp_path / "a")
    build_dataset(tmp_path / "a", tmp_path / "data")
    with pytest.raises(Interrupted):
        train(tmp_path / "run", tmp_path / "data", stop_after=2)
    saved = json.loads((tmp_path / "run" / "last" / "state.json").read_text())["data"]
    assert saved == Dataset.open(tmp_path / "data")["train"].fingerprint
    (tmp_path / "a").rename(tmp_path / "b")
    shutil.rmtree(tmp_path / "data")
    build_dataset(tmp_path / "b", tmp_path / "data")
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    train(tmp_path / "run", tmp_path / "data")
    next((tmp_path / "b" / "train").glob("*/*")).unlink()
    shutil.rmtree(tmp_path / "data")
    build_dataset(tmp_path / "b", tmp_path / "data")
    with pytest.raises(RunError, match="the index of the training images has changed"):
        train(tmp_path / "again", tmp_path / "data")


def test_the_chain_is_recorded_and_outlives_its_folders(dataset: Dataset, tmp_path: Path) -> None:
    before = tmp_path / "before"
    shared = train(before / "shared", dataset.folder, method="shared", epochs=1)
    fixed = train(before / "fixed", dataset.folder, method="fixed", init=str(shared))
    folders = [
        train(before / "one", dataset.folder, init=str(shared)),
        train(before / "other", dataset.folder, init=str(fixed), seed=1),
        train(before / "matched", dataset.folder, init=str(shared), match=str(fixed)),
    ]
    expected = [
        ("baseline (from shared)", 1.0),
        ("baseline (from fixed 0.5 paired-epochs combination)", 1.0),
        ("baseline matched", 1.0),
    ]
    assert seeds(folders) == expected
    # What is read of folders that are there is what was recorded.
    settings = validate_settings(read_toml(folders[2] / "config.toml"))
    assert chain_of(settings).model_dump(exclude_defaults=True) == first_row(folders[2])["chain"]
    shutil.rmtree(shared)
    shutil.rmtree(fixed)
    before.rename(tmp_path / "after")
    assert seeds([tmp_path / "after" / folder.name for folder in folders]) == expected
