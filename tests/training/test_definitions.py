"""What a run keeps of how it began: its definitions, and the epochs of the runs that it continues."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loop_fakes import FakeSource, Recorder, trainer_of

from qrdali.data.index import Dataset
from qrdali.errors import InputError, Interrupted
from qrdali.evaluation.prediction_rows import PredictionRows
from qrdali.runs import checkpoint
from qrdali.runs.settings import validate_settings
from qrdali.training.trainer import Trainer
from qrdali.training.validation import Validator
from qrdali.workflows.train import run_training

SIGTERM = 15


def plans(trainer: Trainer) -> list[Any]:
    source = trainer.splits.train.source
    assert isinstance(source, FakeSource)
    return source.plans


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def trained(run: Path, **values: Any) -> list[Any]:
    trainer = trainer_of(run, **values)
    trainer.train(False)
    return plans(trainer)


def test_streams_go_on_from_the_epochs_before(tmp_path: Path) -> None:
    first = trained(tmp_path / "a", method="shared", epochs=3)
    assert [plan.epoch for plan in first] == [1, 2, 3]
    then = trained(tmp_path / "b", method="shared", epochs=3, epochs_before=3)
    assert [plan.epoch for plan in then] == [4, 5, 6]
    orders = [tuple(plan.batch(0).tolist()) for plan in [*first, *then]]
    assert len(set(orders)) == 6


def test_random_quality_is_drawn_by_the_same_count(tmp_path: Path) -> None:
    (plan,) = trained(
        tmp_path / "a", method="random", reduction="color", sequence="R", max_epochs=1, epochs_before=9
    )
    assert plan.levels.epoch == plan.epoch == 10


@pytest.mark.parametrize(
    ("sequence", "epochs"), [("RC", [1, 1, 3, 3]), ("RRC", [1, 2, 2, 4, 5, 5]), ("CCR", [1, 2, 2, 4, 5, 5])]
)
def test_same_order_is_for_the_two_epochs_of_a_pair(tmp_path: Path, sequence: str, epochs: list[int]) -> None:
    options = {"method": "fixed", "reduction": "color", "patience": 9, "max_epochs": len(epochs)}
    made = trained(tmp_path / "a", **options, sequence=sequence, same_order=True)
    assert [plan.epoch for plan in made] == epochs
    made = trained(tmp_path / "b", **options, sequence=sequence)
    assert [plan.epoch for plan in made] == list(range(1, len(epochs) + 1))


def test_the_unit_that_is_restored_is_that_of_the_epoch_that_judged_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In CCR that is the second C: the R behind it has changed the weights since."""
    given = iter([0.1, 0.2, 0.6, 0.5, 0.2, 0.3, 0.4])

    def validate(*_: Any) -> Any:
        accuracy = next(given)
        zeros, ones = np.zeros(1, np.int64), np.ones(1)
        rows = PredictionRows(np.arange(1), zeros, zeros, ones, ones, ones)
        monkeypatch.setattr(PredictionRows, "accuracy", property(lambda _: accuracy))
        return rows

    monkeypatch.setattr(Validator, "validate", validate)
    run = tmp_path / "run"
    listener = Recorder()
    trainer = trainer_of(
        run, listener, method="fixed", reduction="color", sequence="CCR", patience=1, max_epochs=9
    )
    kept: dict[int, dict[str, torch.Tensor]] = {}
    save: Callable[..., None] = trainer.store.save

    def saving(name: str, progress: Any, feedback: Any) -> None:
        if name == "last" and progress.epoch is None and progress.schedule.epoch == 2:
            kept[2] = {k: v.clone() for k, v in trainer.train_step.model.state_dict().items()}
        save(name, progress, feedback)

    trainer.store.save = saving  # type: ignore[method-assign]
    trainer.train(False)
    restored = checkpoint.load(run / "last", "model")[1][0]
    assert all(torch.equal(restored[key], value) for key, value in kept[2].items())
    assert "1 CCR repetition did not exceed 0.6000 of epoch 2; back to epoch 2" in listener.lines[-2]


def test_an_epoch_that_version_0_1_began_is_ended_by_its_definitions(tmp_path: Path) -> None:
    run, options = tmp_path / "run", {"method": "shared", "epochs": 4, "definitions": 1}
    stopped = trainer_of(run, stop=counting_stop(8), **options)  # in epoch 2
    with pytest.raises(Interrupted):
        stopped.train(False)
    state = run / "last" / "state.json"
    saved = json.loads(state.read_text())
    assert saved["epoch"]["step"] < 3
    assert saved.pop("definitions") == 2  # version 0.1 wrote none
    state.write_text(json.dumps(saved))
    (run / "last" / "SHA256SUMS").unlink()
    written = [{key: row[key] for key in row if key != "definitions"} for row in metrics(run)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
    config = run / "config.toml"
    config.write_text('method = "shared"\n')

    listener = Recorder()
    again = trainer_of(run, listener, stop=counting_stop(6), **options)
    with pytest.raises(Interrupted):  # in epoch 3
        again.train(True)
    assert [plan.definitions for plan in plans(again)] == [1, 2]
    assert [warning for warning in listener.warnings if "definitions 2" in warning] == listener.warnings
    assert len(listener.warnings) == 1
    assert "from epoch 3 on" in listener.warnings[0]

    listener = Recorder()
    last = trainer_of(run, listener, **options)
    last.train(True)
    assert {plan.definitions for plan in plans(last)} == {2}
    assert listener.warnings == []  # it has been said
    assert [row["epoch"] for row in metrics(run) if "definitions" in row] == [3]


def test_a_run_of_unknown_definitions_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        trainer_of(run, stop=counting_stop(5), method="shared", epochs=4).train(False)
    state = run / "last" / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "definitions": 3}))
    (run / "last" / "SHA256SUMS").unlink()
    with pytest.raises(Exception, match="definitions"):
        trainer_of(run, method="shared", epochs=4).train(True)


def counting_stop(steps: int) -> Callable[[], int]:
    """Returns a `stop` that asks for the end when it has been asked `steps` times."""
    asked = 0

    def stop() -> int:
        nonlocal asked
        asked += 1
        return SIGTERM if asked >= steps else 0

    return stop


def test_definitions_are_no_setting_to_choose(dataset: Dataset, tmp_path: Path) -> None:
    values = {"method": "shared", "data": str(dataset.folder), "model": "test_resnet", "device": "cpu"}
    with pytest.raises(InputError, match="definitions = 1: new runs go by definitions 2"):
        run_training(validate_settings({**values, "definitions": 1}), tmp_path / "run", False)
    assert not (tmp_path / "run").exists()
