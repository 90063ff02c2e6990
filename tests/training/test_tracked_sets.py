"""Sets tracked after every epoch: their figures are those of `evaluate`, and training does not know of
them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from qrdali.cli.main import cli
from qrdali.cli.terminal import TerminalListener
from qrdali.data.index import Dataset
from qrdali.errors import InputError, Interrupted, RunError
from qrdali.interfaces import JobControl, SilentListener
from qrdali.runs.settings import Settings, read_toml, validate_settings
from qrdali.training.epoch import EpochTrainer
from qrdali.training.progress import TrainProgress
from qrdali.training.tracked_sets import TrackedSets, tracked_summary
from qrdali.training.train_state import TrainStateStore
from qrdali.training.validation import Validator
from qrdali.workflows.evaluate import EvaluateOptions, Evaluator
from qrdali.workflows.train import run_training


def settings(dataset: Dataset, **values: object) -> Settings:
    return validate_settings(
        {
            "method": "shared",
            "data": str(dataset.folder),
            "model": "test_resnet",
            "input_size": 32,
            "batch_size": 8,
            "device": "cpu",
            "threads": 1,
            "epochs": 2,
            **values,
        }
    )


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def mine(images: Path, tmp_path: Path) -> Path:
    """The first two classes of the test split, in a folder of their own."""
    for name in sorted(path.name for path in (images / "test").iterdir())[:2]:
        shutil.copytree(images / "test" / name, tmp_path / "mine" / name)
    return tmp_path / "mine"


@pytest.fixture(scope="module")
def plain(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("plain") / "run"
    run_training(settings(dataset), run, False)
    return run


def test_training_is_the_same_and_the_figures_are_those_of_evaluate(
    dataset: Dataset, plain: Path, mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run_training(
        settings(dataset, track_sets={"mine": str(mine)}, track_reduced=0.25),
        run,
        False,
        JobControl(TerminalListener()),
    )
    rows = rows_of(run)
    reduced = [f"val-{r}-0.25" for r in ("color", "crop", "resolution", "combination")]
    assert all(list(row["tracked"]) == ["mine", *reduced] for row in rows)
    without, timed = rows_of(plain), ("second", "time", "memory", "energy")
    assert [
        {k: v for k, v in row.items() if k != "tracked" and not any(t in k for t in timed)} for row in rows
    ] == [{k: v for k, v in row.items() if not any(t in k for t in timed)} for row in without]
    for file in ("best/model", "last/model", "last/optimizer", "last/random"):
        one, other = (load_file(r / f"{file}.safetensors") for r in (plain, run))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    best = rows[json.loads((run / "best" / "state.json").read_text())["epoch"]]
    evaluator = Evaluator(run, EvaluateOptions(8, "cpu", threads=1, reduced=0.25))
    assert best["tracked"]["mine"] == evaluator.folder("mine", mine)["accuracy"]
    found = evaluator.split(dataset.folder, "val")["reduced"]
    assert [best["tracked"][name] for name in reduced] == [own["accuracy"] for own in found.values()]
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch")]
    assert len(said) == 3
    for row, line in zip(rows, said, strict=True):
        mine_is, *others = [f"{accuracy:.3f}" for accuracy in row["tracked"].values()]
        assert line.endswith(
            "  tracked mine {} at 0.25 color {} crop {} resolution {} combination {}".format(mine_is, *others)
        )


def test_many_sets_are_not_for_a_line() -> None:
    assert tracked_summary({}) == ""
    assert tracked_summary({"tracked": {"a": 0.5, "val-x": None}}) == "  tracked a 0.500 val-x none"
    assert tracked_summary({"tracked": {str(i): 0.0 for i in range(6)}}).count("0.000") == 6
    assert tracked_summary({"tracked": {str(i): 0.0 for i in range(7)}}) == ""


def _go_on(run: Path) -> None:
    """Makes a finished run one that a signal has stopped after its last epoch."""
    file = run / "last" / "state.json"
    state = json.loads(file.read_text())
    state["schedule"]["ended"] = ""
    state["schedule"]["epoch"] -= 1
    file.write_text(json.dumps(state))
    (run / "last" / "SHA256SUMS").unlink()  # which would tell that somebody has changed it


def test_a_continued_run_keeps_its_images_and_may_track_more(
    dataset: Dataset, images: Path, mine: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run_training(settings(dataset, track_sets={"mine": str(mine)}), run, False)
    before = (run / "tracked" / "mine.arrow").read_bytes()
    more = min(mine.rglob("*.jpg"))
    shutil.copy(more, more.with_name("zz.jpg"))
    _go_on(run)
    run_training(
        settings(dataset, track_sets={"mine": str(mine), "all": str(images / "test")}, track_reduced=0.5),
        run,
        True,
    )
    assert (run / "tracked" / "mine.arrow").read_bytes() == before
    assert list(rows_of(run)[1]["tracked"]) == ["mine"]
    assert list(rows_of(run)[2]["tracked"]) == [
        "mine",
        "all",
        "val-color-0.5",
        "val-crop-0.5",
        "val-resolution-0.5",
        "val-combination-0.5",
    ]
    assert list(read_toml(run / "config.toml")["track_sets"]) == ["mine", "all"]
    _go_on(run)
    with pytest.raises(
        InputError,
        match="the tracked set mine was .*/mine and is now .*/val: give the other folder another NAME",
    ):
        run_training(settings(dataset, track_sets={"mine": str(images / "val")}), run, True)
    (run / "tracked" / "mine.arrow").write_bytes(before[:200])
    with pytest.raises(RunError, match=r"mine.arrow is damaged: remove it"):
        run_training(settings(dataset, track_sets={"mine": str(mine)}), run, True)


def test_a_set_that_cannot_be_read_any_more_does_not_end_training(
    dataset: Dataset, mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run_training(settings(dataset, track_sets={"mine": str(mine)}, epochs=1), run, False)
    _go_on(run)
    gone = min(mine.rglob("*.jpg"))
    gone.rename(tmp_path / "elsewhere.jpg")
    run_training(
        settings(dataset, track_sets={"mine": str(mine)}, epochs=1), run, True, JobControl(TerminalListener())
    )
    assert rows_of(run)[1]["tracked"] == {"mine": None}
    assert rows_of(run)[1]["val_accuracy"] is not None
    assert f"the tracked set mine has no accuracy here: sample 0, {gone}, is gone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"track_sets": {"x": "{tmp}/unknown"}}, "has the folder 'zebra', which is not a class of the run"),
        ({"track_sets": {"x": "{tmp}/empty"}}, "holds no readable image in a class folder"),
        ({"track_sets": {"x": "{tmp}/nowhere"}}, "is not a folder"),
        (
            {"track_sets": {"val-crop-0.5": "{tmp}/empty"}},
            "--track-set has the name 'val-crop-0.5'.* nor one of them reduced",
        ),
        ({"track_sets": {"../x": "{tmp}/empty"}}, "--track-set has the name '../x'"),
        ({"track_sets": {str(i): "x" for i in range(101)}}, "at most 100"),
        ({"track_reduced": 0.6}, "--track-reduced: quality 0.6 is no level"),
        ({"track_reduced": 1}, "track_reduced"),
    ],
)
def test_refusals_write_nothing(
    dataset: Dataset, mine: Path, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    (tmp_path / "unknown" / "zebra").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    if "track_sets" in values:  # the first set is good: it is not written either
        values = {
            "track_sets": {"mine": str(mine)}
            | {k: v.format(tmp=tmp_path) for k, v in values["track_sets"].items()}
        }
    with pytest.raises(InputError, match=message):
        run_training(settings(dataset, **values), tmp_path / "run", False)
    assert not (tmp_path / "run").exists()


def test_the_options(dataset: Dataset, mine: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(f"track_reduced = 0.75\n[track_sets]\nother = '{mine}'\n")
    common = [
        "train",
        "baseline",
        "--data",
        str(dataset.folder),
        "--model",
        "test_resnet",
        "--input-size",
        "16",
        "--device",
        "cpu",
        "--threads",
        "1",
        "--max-epochs",
        "1",
        "--batch-size",
        "12",
        "--config",
        str(config),
    ]
    assert CliRunner().invoke(cli, [*common, "--run", str(tmp_path / "a")]).exit_code == 0
    assert list(rows_of(tmp_path / "a")[1]["tracked"]) == [
        "other",
        "val-color-0.75",
        "val-crop-0.75",
        "val-resolution-0.75",
        "val-combination-0.75",
    ]
    own = ["--track-set", f"a.b={mine}", "--track-set", f"c={mine}", "--track-reduced", "0.5"]
    assert CliRunner().invoke(cli, [*common, "--run", str(tmp_path / "b"), *own]).exit_code == 0
    assert list(rows_of(tmp_path / "b")[1]["tracked"])[:3] == ["a.b", "c", "val-color-0.5"]
    twice = CliRunner().invoke(cli, [*common, "--run", str(tmp_path / "x"), *own[:2], *own[:2]])
    assert "--track-set gives one NAME twice" in str(twice.exception)
    assert "give NAME=FOLDER" in str(
        CliRunner().invoke(cli, [*common, "--run", str(tmp_path / "x"), "--track-set", "a"]).exception
    )


def test_what_is_tracked_are_the_epochs_weights_not_those_restored(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each epoch's figure equals an evaluation of the weights as they were when its training ended."""
    seen: list[dict[str, float]] = []
    measure, validate, restore = TrackedSets.evaluate, Validator.validate, TrainStateStore.restore
    restored: list[bool] = []

    def noted(self: Any, what: str, model: Any, *rest: Any) -> Any:
        seen.append({"sum": float(sum(p.detach().double().abs().sum() for p in model.parameters()))})
        return measure(self, what, model, *rest)

    def validated_too(self: Any, title: str, model: Any, *rest: Any) -> Any:
        seen.append({"val": float(sum(p.detach().double().abs().sum() for p in model.parameters()))})
        return validate(self, title, model, *rest)

    def restored_too(self: Any, *rest: Any) -> Any:
        restored.append(True)
        return restore(self, *rest)

    monkeypatch.setattr(TrackedSets, "evaluate", noted)
    monkeypatch.setattr(Validator, "validate", validated_too)
    monkeypatch.setattr(TrainStateStore, "restore", restored_too)
    run_training(
        settings(dataset, method="baseline", patience=1, max_epochs=6, track_reduced=0.5),
        tmp_path / "run",
        False,
    )
    assert restored, "no patience ended: this test shows nothing"
    pairs = list(zip(seen[::2], seen[1::2], strict=True))
    assert all(first["val"] == second["sum"] for first, second in pairs)


@pytest.mark.parametrize("when", ["val", "tracked"])
def test_stopped_in_validation_and_continued(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """The epoch's training is not done again, and nothing differs in the end."""
    chosen = settings(dataset, track_reduced=0.5)
    run_training(chosen, tmp_path / "whole", False)
    train, steps, signals = EpochTrainer.train, list[int](), list[int]()

    class Stopping(SilentListener):
        def begin(self, what: str, total: int, unit: str = "images") -> None:
            if what == ("epoch 1 val" if when == "val" else "epoch 1 val-crop-0.5"):
                signals.append(15)

    def counted(self: EpochTrainer, progress: TrainProgress, *rest: Any) -> TrainProgress:
        after = train(self, progress, *rest)
        steps.append(after.totals.optimizer_steps - progress.totals.optimizer_steps)
        return after

    monkeypatch.setattr(EpochTrainer, "train", counted)
    control = JobControl(Stopping(), lambda: signals[0] if signals else 0)
    with pytest.raises(Interrupted) as interruption:
        run_training(chosen, tmp_path / "run", False, control)
    assert interruption.value.signum == 15
    run_training(chosen, tmp_path / "run", True)
    assert steps == [3, 0, 3]
    timed = ("second", "time", "memory", "energy")
    one, other = (
        [{k: v for k, v in row.items() if not any(t in k for t in timed)} for row in rows_of(tmp_path / name)]
        for name in ("whole", "run")
    )
    assert one == other
    for file in ("best/model", "last/model", "last/optimizer", "last/random"):
        first, second = (load_file(tmp_path / name / f"{file}.safetensors") for name in ("whole", "run"))
        assert all(torch.equal(first[key], second[key]) for key in first)
