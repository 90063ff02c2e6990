"""evaluate, compare, build_mepi, write_report and reproduce from Python: the command line's results."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import qrdali
from qrdali.interfaces import SilentListener

CPU: dict[str, Any] = {"device": "cpu", "threads": 1}


@pytest.fixture(scope="module")
def run(workplace: Path) -> qrdali.Run:
    return qrdali.Run(workplace / "runs" / "shared")


@pytest.fixture(scope="module")
def data(workplace: Path) -> qrdali.Dataset:
    return qrdali.Dataset.open(workplace / "data")


def test_a_run_is_evaluated_on_a_split_and_on_folders(
    run: qrdali.Run, data: qrdali.Dataset, workplace: Path
) -> None:
    split, mine = qrdali.evaluate(
        run, data, split="test", sets={"mine": workplace / "images" / "val"}, reduced=0.5, **CPU
    )
    rows = run.rows("test")
    assert (split["set"], split["images"]) == ("test", len(rows))
    assert np.mean(rows["correct"].to_numpy()) == split["accuracy"]
    assert set(split["reduced"]) == {"color", "crop", "resolution", "combination"}
    assert (mine["set"], mine["images"], mine["unreadable"]) == ("mine", 12, 0)
    assert run.rows("mine")["label"].to_pylist() == run.rows("val")["label"].to_pylist()


def test_images_that_moved_are_evaluated_where_they_are(
    run: qrdali.Run, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "new").mkdir()
    before = qrdali.index(images, tmp_path / "data", threads=1)
    moved = qrdali.Dataset.open(before.folder, root=str(images))
    assert moved.relocation is not None
    (result,) = qrdali.evaluate(run, moved, split="train", **CPU)
    assert result["images"] == 24
    elsewhere = qrdali.Dataset.open(before.folder, root=str(tmp_path / "new"))
    with pytest.raises(qrdali.RunError, match="is gone"):
        qrdali.evaluate(run, elsewhere, **CPU)


def test_two_runs_are_compared(run: qrdali.Run, data: qrdali.Dataset, tmp_path: Path) -> None:
    other = qrdali.train(
        "fixed", data=data, run=tmp_path / "fixed", init=run, max_epochs=2, batch_size=8, **CPU
    )
    result = qrdali.compare(run, other, set="val")
    first, second = (np.asarray(one.rows("val")["correct"]) for one in (run, other))
    assert (result.a, result.b) == (int((first & second).sum()), int((first & ~second).sum()))
    assert (result.c, result.d) == (int((~first & second).sum()), int((~first & ~second).sum()))
    assert [one.accuracy for one in result.runs] == [first.mean(), second.mean()]
    with pytest.raises(qrdali.InputError, match="no rows of 'nothing'"):
        qrdali.compare(run, other, set="nothing")


def test_a_mepi_set_and_a_report_are_made(run: qrdali.Run, data: qrdali.Dataset, tmp_path: Path) -> None:
    out = tmp_path / "mepi"
    summaries = qrdali.build_mepi(run, data, out=out, split="val", reduction="crop", step=0.25, **CPU)
    assert list(summaries) == ["crop"]
    assert summaries["crop"]["images"] == 12
    files = sorted((out / "crop").rglob("*.png"))
    assert len(files) == 12 - summaries["crop"]["without_mepi"] > 0
    # `reduce` makes the same bytes of the level, with an anchor that leads to the window that was found.
    row = pq.read_table(out / "manifest.parquet").to_pylist()[0]
    image = qrdali.read(row["path"])
    spare = [side - size for side, size in zip(image.shape, (row["height"], row["width"]), strict=False)]
    anchor = tuple(place / max(1, left) for place, left in zip((row["top"], row["left"]), spare, strict=True))
    ours = qrdali.reduce(image, level=(0, row["crop_level"], 0), step=0.25, anchor=anchor)  # type: ignore[arg-type]
    assert np.array_equal(
        ours, qrdali.read(out / "crop" / data.classes[row["label"]] / f"{row['sample']}.png")
    )
    report = qrdali.write_report([run], out=tmp_path / "report", mepi=[out], title="Of Python")
    assert report.page == tmp_path / "report" / "report.html"
    assert "Of Python" in report.page.read_text()


def test_a_matrix_is_carried_out_and_continued(in_workplace: Path, tmp_path: Path) -> None:
    result = qrdali.reproduce("matrix.toml", out=tmp_path / "matrix", device="cpu")
    assert sorted(one.name.rpartition("/")[2] for one in result.runs) == ["baseline", "shared"]
    assert result.failed == {}
    assert result.page is not None
    before = result.page.stat().st_mtime_ns
    again = qrdali.reproduce("matrix.toml", out=tmp_path / "matrix", device="cpu")
    assert again.page is not None
    assert again.page.stat().st_mtime_ns == before


class Stopping(SilentListener):
    """Ctrl-C at the third batch."""

    def __init__(self) -> None:
        self.batches = 0

    def advance(self, images: int, note: Any) -> None:
        self.batches += 1
        if self.batches == 3:
            signal.raise_signal(signal.SIGINT)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Makes SIGINT raise KeyboardInterrupt: a process that a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_is_keyboard_interrupt_and_the_run_continues(data: qrdali.Dataset, tmp_path: Path) -> None:
    options = {
        "model": "test_resnet",
        "input_size": 32,
        "epochs": 2,
        "batch_size": 8,
        "save_every": "1",
        **CPU,
    }
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        qrdali.train("shared", data=data, run=tmp_path / "run", progress=Stopping(), **options)
    assert signal.getsignal(signal.SIGINT) is handler
    run = qrdali.train("shared", data=data, run=tmp_path / "run", resume=True, **options)
    assert run.metrics()["epoch"].to_pylist() == [0, 1, 2]


def test_nothing_is_printed(run: qrdali.Run, data: qrdali.Dataset, capfd: pytest.CaptureFixture[str]) -> None:
    qrdali.evaluate(run, data, split="val", **CPU)
    qrdali.compare(run, run, set="val")
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_an_option_that_does_not_exist_is_a_type_error(run: qrdali.Run) -> None:
    with pytest.raises(TypeError, match="batchsize"):
        qrdali.evaluate(run, sets={}, batchsize=3)  # type: ignore[call-arg]
    with pytest.raises(qrdali.InputError, match="nothing to evaluate"):
        qrdali.evaluate(run)
