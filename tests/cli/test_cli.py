"""The program as a person runs it: `qrdali.cli.main.main` with its exit statuses, lines and files."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qrdali.cli.main import main
from qrdali.cli.terminal import say
from qrdali.data.index import Dataset
from qrdali.data.shapes import class_names
from qrdali.reduction.png_entropy import entropy, png_bytes


@dataclass
class Result:
    status: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    def call(*words: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["qrdali", *map(str, words)])
        with pytest.raises(SystemExit) as exit:
            main()
        captured = capsys.readouterr()
        assert isinstance(exit.value.code, int)
        return Result(exit.value.code, captured.out, captured.err)

    return call


def refused(result: Result, status: int, *words: str) -> None:
    """One line on stderr with `words` in it, nothing on stdout."""
    assert result.status == status, result.err
    assert result.out == ""
    assert result.err.startswith("qrdali: error: ")
    assert result.err.count("\n") == 1
    for word in words:
        assert word in result.err


def picture(file: Path, size: tuple[int, int] = (64, 48)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(5).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(file)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two classes of two pictures each, train only."""
    for name in ("cat", "dog"):
        for number in range(2):
            picture(tmp_path / "images" / "train" / name / f"{number}.png")
    return tmp_path / "images"


def test_shapes_index_info(run: Run, tmp_path: Path) -> None:
    images, data = tmp_path / "images", tmp_path / "data"
    made = run(
        "data", "shapes", images, "--classes", 2, "--train", 2, "--val", 1, "--test", 1, "--size", "64x48"
    )
    assert (made.status, made.out) == (0, "")
    assert len(list(images.glob("*/*/*.jpg"))) == 8
    indexed = run("data", "index", images, "--out", data, "--threads", 1)
    assert (indexed.status, indexed.out) == (0, "")
    info = run("data", "info", data, "--json")
    assert (info.status, info.err) == (0, "")
    shown = json.loads(info.out)
    assert shown["classes"] == class_names(2)
    assert shown["rejected"] == 0
    assert {split: row["images"] for split, row in shown["splits"].items()} == {
        "train": 4,
        "val": 2,
        "test": 2,
    }
    for row in shown["splits"].values():
        assert row["per_class_min"] == row["per_class_max"] == row["images"] // 2
        for side in ("width", "height"):
            assert row[side] == sorted(row[side])
            assert {row[side][0], row[side][2]} <= {48, 64}
    again = run("data", "shapes", images)
    refused(again, 2, str(images), "train")


def test_corrupt_file_is_rejected_with_its_reason(run: Run, folders: Path, tmp_path: Path) -> None:
    bad = folders / "train" / "dog" / "2.png"
    bad.write_bytes((folders / "train" / "dog" / "1.png").read_bytes()[:200])
    result = run("data", "index", folders, "--out", tmp_path / "data")
    assert result.status == 0
    assert "1 rejected" in result.err
    header, row = (tmp_path / "data" / "rejected.tsv").read_text("utf-8").splitlines()
    assert header == "path\treason"
    assert row.split("\t")[0] == str(bad)
    assert row.split("\t")[1]
    assert json.loads(run("data", "info", tmp_path / "data", "--json").out)["rejected"] == 1


def test_split_without_images_is_shown_as_empty(run: Run, folders: Path, tmp_path: Path) -> None:
    (folders / "val").mkdir()
    assert run("data", "index", folders, "--out", tmp_path / "data").status == 0
    shown = json.loads(run("data", "info", tmp_path / "data", "--json").out)
    assert {split: row["images"] for split, row in shown["splits"].items()} == {"train": 4, "val": 0}
    assert run("data", "info", tmp_path / "data").status == 0


def test_index_refusals(run: Run, folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    refused(run("data", "index", tmp_path / "nowhere", "--out", out), 2, "nowhere", "not a folder")
    (tmp_path / "bare").mkdir()
    refused(run("data", "index", tmp_path / "bare", "--out", out), 2, "train/, val/, test/")
    picture(tmp_path / "lone" / "train" / "cat" / "0.png")
    refused(run("data", "index", tmp_path / "lone", "--out", out), 1, "1 class", "at least two")
    (folders / "train" / "elk").mkdir()
    refused(run("data", "index", folders, "--out", out), 1, "elk", "no readable image")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "bare",
        "images",
        "lone",
    ]  # nothing left behind


def test_existing_out_is_untouched(run: Run, folders: Path, tmp_path: Path) -> None:
    kept = tmp_path / "data" / "thesis.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    refused(run("data", "index", folders, "--out", kept.parent), 2, str(kept.parent), "not empty")
    assert list(kept.parent.iterdir()) == [kept]
    assert kept.read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["nonsense"], ["nonsense", "see 'qrdali --help'"]),
        (["data", "index", "."], ["--out", "see 'qrdali data index --help'"]),
        (
            ["data", "index", ".", "--out", "x", "--threads", "0"],
            ["--threads", "see 'qrdali data index --help'"],
        ),
        (["data", "shapes", "x", "--size", "9"], ["'9'", "500x375"]),
        (["data", "shapes", "x", "--classes", "1"], ["--classes is 1"]),
        (["data", "info", "nowhere"], ["nowhere", "qrdali data index"]),
    ],
)
def test_usage_is_one_line_and_status_2(
    run: Run, words: list[str], named: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(run(*words), 2, *named)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words", [[], ["data"], ["data", "shapes"], ["data", "index"], ["data", "info"], ["preview"], ["models"]]
)
def test_help_holds_an_example(run: Run, words: list[str]) -> None:
    result = run(*words, "--help")
    assert result.status == 0
    assert f"qrdali {' '.join(words)}" in result.out.partition("\n")[2]


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt("interrupted"), 130), (OSError("disk full"), 1), (ModuleNotFoundError("no dali"), 1)],
)
def test_failures_are_one_line(
    run: Run, error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> None:
        raise error

    monkeypatch.setattr("qrdali.data.index.Dataset.open", fail)
    refused(run("data", "info", "x"), status, str(error))


def test_control_characters_are_replaced(
    run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    result = run("data", "index", tmp_path / "a\x1b[31m\nb\u202e", "--out", tmp_path / "data")
    refused(result, 2, "a?[31m?b?")
    say("[bold]\x07name\x9b")
    assert capsys.readouterr().err == "[bold]?name?\n"


@pytest.mark.parametrize("size", [(64, 48), (48, 64)])
def test_preview_layout(run: Run, size: tuple[int, int], tmp_path: Path) -> None:
    picture(tmp_path / "image.png", size)
    for step, columns in ((0.25, 4), (0.05, 8)):
        sheet = tmp_path / f"{columns}.png"
        result = run("preview", tmp_path / "image.png", "--out", sheet, "--step", step)
        assert (result.status, result.out) == (0, "")
        pixels = np.asarray(Image.open(sheet).convert("RGB")).astype(int)
        colored = np.ptp(pixels, axis=2) > 40  # captions and margins are gray; the noise is not
        # Crops leave gaps: the columns of cells are read in the first row, the rows in the first column.
        rows = runs(colored.any(axis=1), 60)
        assert len(rows) == 4
        first_row = runs(colored[rows[0][0] : rows[0][1]].any(axis=0), 60)
        assert len(first_row) == columns
        cell = (rows[0][1] - rows[0][0], first_row[0][1] - first_row[0][0])
        assert max(cell) > 140
        assert abs(cell[1] / cell[0] - size[0] / size[1]) < 0.05
        for top, bottom in rows:
            assert abs(bottom - top - cell[0]) <= 2  # the first column is whole in every row
        # The crop at the lowest quality stands in its place: its centre is the cell's.
        shown = colored[rows[1][0] : rows[1][1], first_row[-1][0] : first_row[-1][1]]
        y, x = np.nonzero(shown)
        share = (np.ptp(y) + 1) * (np.ptp(x) + 1) / (cell[0] * cell[1])
        assert abs(share - (0.25 if columns == 4 else 0.05)) < 0.03
        assert abs((y.min() + y.max()) / 2 - cell[0] / 2) < 3
        assert abs((x.min() + x.max()) / 2 - cell[1] / 2) < 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4.png", "8.png", "image.png"]


@pytest.mark.parametrize("size", [(1, 1), (900, 7), (3, 400)])
def test_preview_of_odd_sizes(run: Run, size: tuple[int, int], tmp_path: Path) -> None:
    picture(tmp_path / "image.png", size)
    assert run("preview", tmp_path / "image.png", "--out", tmp_path / "sheet.png").status == 0
    assert max(Image.open(tmp_path / "sheet.png").size) > 300


def runs(mask: np.ndarray, least: int) -> list[tuple[int, int]]:
    """(start, end) of the runs of True at least `least` long; holes of up to two are part of a run."""
    found: list[tuple[int, int]] = []
    for place in np.flatnonzero(mask).tolist():
        if found and place - found[-1][1] <= 2:
            found[-1] = (found[-1][0], place + 1)
        else:
            found.append((place, place + 1))
    return [(start, end) for start, end in found if end - start >= least]


def test_preview_refusals(run: Run, tmp_path: Path) -> None:
    picture(tmp_path / "image.png")
    (tmp_path / "text.png").write_text("no image")
    image, sheet = tmp_path / "image.png", tmp_path / "sheet.png"
    refused(run("preview", tmp_path / "nowhere.png", "--out", sheet), 2, "nowhere.png")
    refused(run("preview", tmp_path / "text.png", "--out", sheet), 2, "text.png", "cannot be decoded")
    refused(run("preview", image, "--out", tmp_path / "sheet.jpg"), 2, "sheet.jpg", ".png")
    refused(run("preview", image, "--out", tmp_path / "none" / "sheet.png"), 2, "none", "not a folder")
    refused(run("preview", image, "--out", sheet, "--step", 0.3), 2, "0.3")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.png", "text.png"]


def test_entropy_is_the_size_of_pillows_png(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", compress_level=6)
    assert png_bytes(pixels) == (tmp_path / "a.png").read_bytes()
    assert entropy(pixels) == (tmp_path / "a.png").stat().st_size
    assert entropy(pixels // 64 * 64) < entropy(pixels)


def test_a_dry_run_prints_every_epoch_and_touches_nothing(run: Run, tmp_path: Path) -> None:
    result = run(
        "train",
        "linear",
        "--data",
        tmp_path / "no",
        "--run",
        tmp_path / "run",
        "--sequence",
        "paired-rounds",
        "--patience",
        1,
        "--max-epochs",
        14,
        "--reduction",
        "crop",
        "--dry-run",
    )
    lines = result.out.splitlines()
    assert result.status == 0
    assert [line.split()[1:] for line in lines[:5]] == [
        [str(i), "stage", "1", *what]
        for i, what in enumerate([["R", "crop", "0.75"]] * 4 + [["C", "full", "quality"]], 1)
    ]
    assert lines[13].split()[:5] == ["epoch", "14", "stage", "3", "C"]
    assert lines[14].startswith("#")
    assert len(lines) == 15
    assert not list(tmp_path.iterdir())
    up = run(
        "train", "linear", "--data", "x", "--run", "y", "--direction", "up", "--max-epochs", 20, "--dry-run"
    )
    assert "color 0.25, crop 0.25, resolution 0.25" in up.out.splitlines()[0]
    sham = run(
        "train",
        "fixed",
        "--data",
        "x",
        "--run",
        "y",
        "--reduction",
        "none",
        "--sequence",
        "C",
        "--max-epochs",
        3,
        "--dry-run",
    )
    assert sham.out.count("full quality") == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("fixed", "--step", 0.3), "not 1/n"),
        (("linear", "--step", 1 / 255), "from 2 to 200"),
        (("fixed", "--quality", 0), "quality"),
        (("fixed", "--quality", 1.2), "quality"),
        (("linear", "--sequence", "RCX"), "neither paired-epochs nor paired-rounds"),
        (("adaptive", "--sequence", "CCC"), "no R epoch"),
        (("adaptive", "--patience", 0), "patience"),
        (("random", "--low", 0.75, "--high", 0.5), "above --high"),
        (("linear", "--same-order", "--sequence", "paired-rounds"), "--same-order"),
        (("adaptive", "--windows", 7), "--windows"),
        (("baseline", "--match", "nowhere"), "is it a run folder"),
    ],
)
def test_methods_refuse_what_cannot_be(
    run: Run, dataset: Dataset, tmp_path: Path, words: tuple[object, ...], message: str
) -> None:
    refused(
        run("train", *words, "--data", dataset.folder, "--run", tmp_path / "run", "--model", "test_resnet"),
        2,
        message,
    )
    assert not (tmp_path / "run").exists()


def test_a_last_batch_of_one_that_batch_norm_cannot_take_is_explained(
    run: Run, dataset: Dataset, tmp_path: Path
) -> None:
    result = run(
        "train",
        "shared",
        "--data",
        dataset.folder,
        "--run",
        tmp_path / "run",
        "--model",
        "test_resnet",
        "--input-size",
        16,
        "--batch-size",
        23,
        "--epochs",
        1,
        "--device",
        "cpu",
        "--threads",
        1,
    )
    refused(result, 2, "--batch-size 23 leaves one of 24 training images alone", "use --batch-size 24")
