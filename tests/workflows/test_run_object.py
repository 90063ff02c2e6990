"""qrdali.train and qrdali.Run: options in, a finished run as an object out."""

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
import torch

import qrdali
from qrdali.interfaces import SilentListener
from qrdali.models import preprocessing
from qrdali.runs import folder as run_folder

SMALL: dict[str, Any] = {
    "model": "test_resnet", "input_size": 32, "batch_size": 8, "device": "cpu", "threads": 1,
}  # fmt: skip


def test_a_run_has_its_network_and_its_settings(workplace: Path) -> None:
    run = qrdali.Run(workplace / "runs" / "shared")
    assert run.classes == qrdali.Dataset.open(workplace / "data").classes
    assert run.preprocessing == preprocessing("test_resnet", 32)
    assert (run.settings.method, run.settings.epochs, run.settings.lr) == ("shared", 2, 2e-3)
    assert run.best == run_folder.describe_best(run.folder)
    model = run.model()
    assert not model.training
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 4)
    assert Path(run) == workplace / "runs" / "shared"
    assert repr(run).startswith("Run('")


def test_its_network_makes_the_predictions_of_its_rows(workplace: Path) -> None:
    run, data = qrdali.Run(workplace / "runs" / "shared"), qrdali.Dataset.open(workplace / "data")
    rows = run.rows("val")
    described = ["sample", "path", "label", "prediction", "correct", "confidence"]
    assert rows.column_names == [*described, "rank", "true_probability"]
    assert rows["path"].to_pylist() == data["val"].paths(np.arange(12))
    loader = qrdali.Loader(data["val"], model="test_resnet", input_size=32, batch_size=8, device="cpu")
    model = run.model()
    with torch.inference_mode():
        predictions = torch.cat([model(batch.images).argmax(1) for batch in loader.epoch(0, shuffle=False)])
    assert rows["prediction"].to_pylist() == predictions.tolist()
    assert np.mean(rows["correct"].to_numpy()) == run.best.val_accuracy


def test_metrics_are_a_table_of_what_the_file_says(workplace: Path) -> None:
    run = qrdali.Run(workplace / "runs" / "shared")
    table = run.metrics()
    assert isinstance(table, pa.Table)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert table["epoch"].to_pylist() == [0, 1, 2]
    assert table["phase"].to_pylist() == [line["phase"] for line in lines]
    assert table["val_accuracy"].to_pylist() == [line["val_accuracy"] for line in lines]
    assert table["train_loss"].to_pylist() == [None, *(line["train_loss"] for line in lines[1:])]
    assert table.flatten()["quality.crop"].to_pylist() == [1.0, 1.0, 1.0]


def test_metrics_without_a_common_type_are_text(workplace: Path, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('method = "shared"\ndata = "data"\n')
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 0, "odd": "text"}\n{"epoch": 1, "odd": {"a": 1}}\n')
    assert qrdali.Run(tmp_path).metrics()["odd"].to_pylist() == ['"text"', '{"a": 1}']
    with pytest.raises(qrdali.RunError, match="best/"):
        qrdali.Run(tmp_path).model()


def test_what_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(qrdali.InputError, match="is not a run folder"):
        qrdali.Run(tmp_path)


def test_rows_that_do_not_exist_are_refused_with_the_way_to_make_them(workplace: Path) -> None:
    with pytest.raises(qrdali.InputError, match="qrdali evaluate"):
        qrdali.Run(workplace / "runs" / "shared").rows("nothing")


def test_a_run_starts_from_another(workplace: Path, tmp_path: Path) -> None:
    shared = qrdali.Run(workplace / "runs" / "shared")
    run = qrdali.train(
        "fixed",
        data=qrdali.Dataset.open(workplace / "data"),
        run=tmp_path / "run",
        init=shared,
        reduction="crop",
        quality=0.5,
        max_epochs=1,
        batch_size=8,
        device="cpu",
        threads=1,
    )
    assert run.settings.init == str(shared.folder)
    assert run.metrics()["val_accuracy"].to_pylist()[0] == shared.best.val_accuracy
    assert run.metrics()["phase"].to_pylist() == ["start", "reduced"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epoch": 2}, "epoch = 2: there is no such setting; near it: .*epochs"),
        ({"epochs": 0}, "epochs = 0"),
        ({"quality": 0.6, "method": "fixed"}, "quality 0.6 is no level"),
        ({"lr": "fast"}, "lr = 'fast'"),
        ({"data": "nowhere"}, "nowhere"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_written(
    workplace: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    given = {"method": "shared", "data": workplace / "data", **SMALL, **options}
    with pytest.raises(qrdali.InputError, match=message):
        qrdali.train(given.pop("method"), run=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_a_run_that_exists_is_resumed_only_if_asked(workplace: Path) -> None:
    run = workplace / "runs" / "shared"
    options = {"data": workplace / "data", "run": run, "epochs": 2, "lr": 2e-3, **SMALL}
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(qrdali.InputError, match="already holds a run"):
        qrdali.train("shared", **options)
    assert qrdali.train("shared", resume=True, **options).folder == run  # it is finished
    assert (run / "metrics.jsonl").read_bytes() == before


def test_images_that_moved_are_found_by_a_data_set_that_knows(workplace: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(workplace / "images", tmp_path / "images")
    data = qrdali.index(tmp_path / "images", tmp_path / "data", threads=1)
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    with pytest.raises(qrdali.RunError, match="is gone"):
        qrdali.train("shared", data=data, run=tmp_path / "a", epochs=1, **SMALL)
    moved = qrdali.Dataset.open(tmp_path / "data", root=str(tmp_path / "elsewhere"))
    run = qrdali.train("shared", data=moved, run=tmp_path / "b", epochs=1, **SMALL)
    assert run.settings.root == f"{tmp_path / 'images'}={tmp_path / 'elsewhere'}"


def test_indexing_reports_to_a_listener(images: Path, tmp_path: Path) -> None:
    class Counting(SilentListener):
        def __init__(self) -> None:
            self.passes: list[tuple[str, int, str]] = []
            self.done = 0

        def begin(self, what: str, total: int, unit: str = "images") -> None:
            self.passes.append((what, total, unit))

        def advance(self, images: int, note: Any) -> None:
            self.done += images

    listener = Counting()
    data = qrdali.index(images, tmp_path / "data", threads=1, progress=listener)
    assert listener.passes == [("index", 48, "files")]
    assert listener.done == 48
    assert data.splits == ("train", "val", "test")
    with pytest.raises(qrdali.InputError, match="not empty"):
        qrdali.index(images, tmp_path / "data")
    with pytest.raises(qrdali.InputError, match="has a val already"):
        qrdali.index(images, tmp_path / "other", val_share=0.5)
    assert not (tmp_path / "other").exists()


def test_the_rich_listener_shows_passes_and_lines(capsys: pytest.CaptureFixture[str]) -> None:
    from qrdali.workflows.progress import listener_for

    listener = listener_for(True)
    listener.begin("epoch 1", 10)
    listener.advance(10, lambda: "train 0.5")
    listener.line("epoch 1 val [0.5]\x1b[31m")
    listener.warn("something")
    listener.end()
    listener.end()
    listener.advance(1, str)  # outside a pass nothing is shown
    out = capsys.readouterr().out
    assert "epoch 1 val [0.5]?[31m" in out
    assert "warning: something" in out
    assert isinstance(listener_for(False), SilentListener)


def test_a_callers_listener_is_told_in_pythons_words() -> None:
    from qrdali.workflows.progress import listener_for

    class Lines(SilentListener):
        lines: ClassVar[list[str]] = []

        def line(self, text: str) -> None:
            self.lines.append(text)

        def warn(self, text: str) -> None:
            self.lines.append(f"warning: {text}")

    listener = listener_for(Lines())
    listener.line("lower --lr, then `qrdali train --resume`")
    listener.warn("--compile: no compiler")
    assert Lines.lines == ["lower lr, then `qrdali train --resume`", "warning: compile=True: no compiler"]
