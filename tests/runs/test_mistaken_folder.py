"""Where a run or a data set is wanted, and something else is given, the message says what to give."""

import re
from pathlib import Path

import pytest

from qrdali.data.index import Dataset
from qrdali.errors import InputError
from qrdali.runs.folder import describe_best


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a data set, images, a MEPI set, a run in runs/ and a file."""
    for folder in ("data", "images/train/cat", "mepi", "runs/shared/best", "runs/baseline", "empty"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("data/classes.tsv", "mepi/options.json", "photo.jpg", "runs/shared/metrics.jsonl"):
        (tmp_path / file).touch()
    for run in ("runs/shared", "runs/baseline"):
        (tmp_path / run / "config.toml").write_text('method = "shared"\n')
    return tmp_path


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ("gone", "there is no such folder; `qrdali train"),
        ("photo.jpg", "it is a file; `qrdali train"),
        ("empty", "`qrdali train … --run FOLDER`"),
        ("data", "it is a data set, which --data takes"),
        ("mepi", "it is a MEPI set"),
        ("images", "it looks like a folder of images"),
        ("runs", "it holds runs: give one of them, such as {place}/runs/baseline, {place}/runs/shared"),
        ("runs/shared/best", "it is a part of the run {place}/runs/shared: give that folder"),
        ("runs/shared/metrics.jsonl", "it is a file of the run {place}/runs/shared: give that folder"),
        ("empty/\0", "there is no such folder"),
    ],
)
def test_no_run(place: Path, given: str, advice: str) -> None:
    expected = f"is not a run folder (no config.toml): {advice.format(place=place)}"
    with pytest.raises(InputError, match=re.escape(expected)) as caught:
        describe_best(place / given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ("gone", "there is no such folder"),
        ("runs/shared", "it is a run"),
        ("images", "it looks like a folder of images: run `qrdali data index` on it"),
        ("empty", "`qrdali data index ROOT --out DATASET` makes one"),
        ("photo.jpg", "`qrdali data index ROOT --out DATASET` makes one"),
    ],
)
def test_no_data_set(place: Path, given: str, advice: str) -> None:
    with pytest.raises(InputError, match=r"is not a data set \(no classes.tsv\); ") as caught:
        Dataset.open(place / given)
    assert str(caught.value).split("; ", 1)[1].startswith(advice)
