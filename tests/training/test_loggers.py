"""Loggers of a run: what TensorBoard reads back, failures, and runs that are killed and resumed."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loop_fakes import Recorder, trainer_of

from qrdali.errors import Interrupted
from qrdali.loggers import run_log as run_log_module
from qrdali.loggers.interface import LoggedEpoch, LoggedRun
from qrdali.loggers.values import sheet_name
from qrdali.runs import folder as run_folder
from qrdali.training.preview_sheet import keep_previews

STAGED: dict[str, Any] = {
    "method": "linear",
    "reduction": "color",
    "sequence": "RC",
    "patience": 1,
    "step": 0.25,
    "max_epochs": 12,
}


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar in RUN/tensorboard as (step, value), as TensorBoard's own reader finds them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run / "tensorboard"), {"scalars": 0, "images": 0})
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def raw_steps(run: Path, tag: str) -> list[int]:
    """The steps of a tag in the files themselves: readers other than TensorBoard hide nothing."""
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    steps = []
    for file in sorted((run / "tensorboard").iterdir()):
        for event in loader.EventFileLoader(str(file)).Load():
            steps += [event.step for value in event.summary.value if value.tag == tag]
    return steps


def close(values: list[tuple[int, float]], expected: list[tuple[int, float]]) -> bool:
    return [step for step, _ in values] == [step for step, _ in expected] and all(
        value == pytest.approx(other, rel=1e-6)
        for (_, value), (_, other) in zip(values, expected, strict=True)
    )


def test_tensorboard_reads_back_the_numbers_of_every_row(tmp_path: Path) -> None:
    run = tmp_path / "run"
    trainer_of(run, log="tensorboard", **STAGED).train(False)
    read, written = scalars(run), rows(run)
    assert len(written) > 6
    for tag in ("val_accuracy", "quality/color", "quality/crop", "stage"):
        values = [
            (row["epoch"], row[tag.partition("/")[0]][tag[8:]] if "/" in tag else row[tag]) for row in written
        ]
        assert close(read[tag], values), tag
    assert [step for step, _ in read["train_loss"]] == list(range(1, len(written)))
    assert close(read["optimizer_steps"], [(epoch, 3.0 * epoch) for epoch in range(1, len(written))])
    assert "epoch" not in read
    assert not any(tag.startswith("environment") for tag in read)


def test_each_stage_has_a_curve_of_its_own_from_one(tmp_path: Path) -> None:
    run = tmp_path / "run"
    trainer_of(run, log="tensorboard", **STAGED).train(False)
    read = scalars(run)
    stages = {row["stage"] for row in rows(run)[1:]}
    assert len(stages) > 1
    for stage in stages:
        expected = [row["val_accuracy"] for row in rows(run)[1:] if row["stage"] == stage]
        assert close(read[f"stages/{stage}/val_accuracy"], list(enumerate(expected, 1)))
    trainer_of(tmp_path / "flat", log="tensorboard", method="shared", epochs=1).train(False)
    assert not any(tag.startswith("stages") for tag in scalars(tmp_path / "flat"))


def test_the_configuration_is_logged(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = tmp_path / "run"
    trainer_of(run, log="tensorboard", method="shared", epochs=1).train(False)
    events = accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    (text,) = events.Tensors("config/text_summary")
    config = json.loads(text.tensor_proto.string_val[0].decode())
    assert (config["method"], config["epochs"], config["environment"]) == ("shared", 1, {"python": "fake"})
    assert "_hparams_/session_start_info" in events.PluginTagToContent("hparams")


def test_without_log_nothing_is_written(tmp_path: Path) -> None:
    trainer_of(tmp_path / "run", **STAGED).train(False)
    names = {file.name for file in (tmp_path / "run").iterdir()}
    assert not names & {"tensorboard", "previews", "log.json"}


def test_a_run_that_is_stopped_again_and_again_has_each_epoch_once(tmp_path: Path) -> None:
    trainer_of(tmp_path / "whole", log="tensorboard", **STAGED).train(False)
    run, stops = tmp_path / "stopped", 0
    for attempt in range(100):
        calls = iter(range(10**6))
        trainer = trainer_of(
            run,
            stop=lambda calls=calls, due=3 + attempt % 9: 15 if next(calls) >= due else 0,
            log="tensorboard",
            **STAGED,
        )
        try:
            trainer.train(True)
            break
        except Interrupted:
            stops += 1
            trainer.log.close()
            (run / "previews").mkdir(exist_ok=True)
            (run / "previews" / sheet_name(9, 9999)).write_bytes(b"of an epoch that is done again")
    assert stops > 3
    assert raw_steps(run, "val_accuracy") == list(range(len(rows(tmp_path / "whole"))))
    drawn = sorted((tmp_path / "whole" / "previews").iterdir())
    assert len(drawn) == len({row["stage"] for row in rows(run)})
    assert [file.name for file in drawn] == sorted(file.name for file in (run / "previews").iterdir())
    assert raw_steps(run, "preview") == sorted(int(file.stem.rpartition("-")[2]) for file in drawn)
    whole, stopped = scalars(tmp_path / "whole"), scalars(run)
    timed = ("second", "memory", "energy", "time")
    assert whole.keys() == stopped.keys()
    for tag in whole:
        if not any(word in tag for word in timed):
            assert whole[tag] == stopped[tag], tag


class Killed(BaseException):
    """What a kill is to a test."""


@pytest.mark.parametrize("where", ["before the log", "before last"])
def test_a_kill_after_the_row_leaves_no_gap_and_no_double(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Before the log: metrics.jsonl holds the row, the log lacks it. Before last: both hold what is done
    again."""
    run, values = tmp_path / "run", {"method": "shared", "epochs": 4, "log": "tensorboard"}
    trainer = trainer_of(run, **values)
    if where == "before the log":
        append = run_folder.append_metrics

        def kill_after(folder: Path, row: dict[str, Any]) -> None:
            append(folder, row)
            if row["epoch"] == 2:
                raise Killed

        monkeypatch.setattr(run_folder, "append_metrics", kill_after)
    else:
        save = trainer.store.save

        def kill_before(name: str, progress: Any, *rest: Any) -> None:
            if progress.schedule.epoch == 2:
                raise Killed
            save(name, progress, *rest)

        trainer.store.save = kill_before  # type: ignore[method-assign]
    with pytest.raises(Killed):
        trainer.train(False)
    monkeypatch.undo()
    assert raw_steps(run, "val_accuracy") == list(range(2 if where == "before the log" else 3))
    trainer_of(run, **values).train(True)
    assert raw_steps(run, "val_accuracy") == list(range(5))
    assert close(scalars(run)["val_accuracy"], [(row["epoch"], row["val_accuracy"]) for row in rows(run)])


def test_sheets_of_epochs_that_are_done_again_are_drawn_again(tmp_path: Path) -> None:
    names = [sheet_name(1, 1), sheet_name(2, 9), sheet_name(3, 17)]
    for name in (*names, "mine.png"):
        (tmp_path / "previews").mkdir(exist_ok=True)
        (tmp_path / "previews" / name).write_bytes(b"")
    keep_previews(tmp_path, 9)
    assert sorted(file.name for file in (tmp_path / "previews").iterdir()) == sorted([*names[:2], "mine.png"])


def test_a_preview_that_cannot_be_drawn_is_a_warning(tmp_path: Path) -> None:
    listener, run = Recorder(), tmp_path / "run"
    run.mkdir()
    (run / "previews").write_text("a file")
    trainer_of(run, listener, log="tensorboard", **{**STAGED, "max_epochs": 2}).train(False)
    (warning,) = listener.warnings
    assert warning.startswith("stage 1 has no preview: ")
    assert len(rows(run)) == 3


def test_files_of_others_in_the_folder_stay(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "tensorboard").mkdir(parents=True)
    (run / "tensorboard/events.out.tfevents.1.mine").write_bytes(b"")
    (run / "tensorboard/.history.partial").write_bytes(b"cut")
    trainer_of(run, log="tensorboard", method="shared", epochs=1).train(False)
    names = sorted(file.name for file in (run / "tensorboard").iterdir())
    assert len(names) == 2
    assert "events.out.tfevents.1.mine" in names


class FailingLogger:
    """Fails at one call."""

    def __init__(self, at: str, error: Exception) -> None:
        self.at, self.error, self.calls = at, error, list[str]()

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.at:
            raise self.error

    def begin(self, run: LoggedRun) -> None:
        self._call("begin")

    def epoch(self, epoch: LoggedEpoch) -> None:
        self._call("epoch")

    def end(self, finished: bool) -> None:
        self._call("end")

    def place(self) -> str:
        return ""


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Exception], FailingLogger]:
    """Makes wandb a logger that fails; the others are what they are."""
    create = run_log_module.create_logger

    def prepare(at: str, error: Exception) -> FailingLogger:
        logger = FailingLogger(at, error)
        monkeypatch.setattr(
            run_log_module,
            "create_logger",
            lambda name, run: logger if name == "wandb" else create(name, run),
        )
        return logger

    return prepare


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("a\nb"), KeyError()])
@pytest.mark.parametrize("at", ["begin", "epoch", "end"])
def test_a_logger_that_fails_warns_once_and_ends_neither_the_run_nor_the_others(
    tmp_path: Path, failing: Callable[[str, Exception], FailingLogger], at: str, error: Exception
) -> None:
    logger, listener, run = failing(at, error), Recorder(), tmp_path / "run"
    trainer_of(run, listener, log="wandb,tensorboard", method="shared", epochs=3).train(False)
    assert len(rows(run)) == 4
    assert raw_steps(run, "val_accuracy") == [0, 1, 2, 3]
    (warning,) = listener.warnings
    assert warning.startswith(f"the log wandb has failed and gets nothing more ({type(error).__name__}")
    assert f"qrdali log {run} --to wandb" in warning
    assert "\n" not in warning
    assert logger.calls.count("epoch") == {"begin": 0, "epoch": 1, "end": 3}[at]


def test_a_folder_that_cannot_be_written_later_is_a_warning_too(tmp_path: Path) -> None:
    run, listener = tmp_path / "run", Recorder()
    run.mkdir()
    (run / "tensorboard").write_text("a file")
    trainer_of(run, listener, log="tensorboard", method="shared", epochs=1).train(False)
    assert len(listener.warnings) == 1
    assert len(rows(run)) == 2


def test_a_full_disk_under_the_log_alone_does_not_end_the_run(tmp_path: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    run, listener = tmp_path / "run", Recorder()
    trainer = trainer_of(run, listener, log="tensorboard", method="shared", epochs=3)
    begin = trainer.log.begin

    def begin_and_fill(*arguments: Any) -> None:
        begin(*arguments)
        logger: Any = trainer.log._loggers._loggers["tensorboard"]
        logger._file.close()
        logger._file = open("/dev/full", "ab")  # noqa: SIM115

    trainer.log.begin = begin_and_fill  # type: ignore[method-assign]
    trainer.train(False)
    assert len(rows(run)) == 4
    assert ["No space left" in warning for warning in listener.warnings] == [True]
