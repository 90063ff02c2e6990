"""The training loop alone, with fakes instead of files, DALI and command line: each test takes a moment."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loop_fakes import FakeSource, Recorder, trainer_of
from safetensors.torch import load_file

from qrdali.distributed import SINGLE_PROCESS
from qrdali.errors import Interrupted, RunError
from qrdali.training.progress import TrainProgress
from qrdali.training.trainer import Trainer

TIMED = ("second", "time", "memory", "energy")


def rows(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without what was measured."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not any(word in k for word in TIMED)} for row in lines]


def saved(run: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(run / f"{name}.safetensors")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def weights_after(trainer: Trainer) -> Iterator[tuple[TrainProgress, dict[str, torch.Tensor]]]:
    """The progress and the weights at the end of each epoch's steps, once `train` has run."""
    train = trainer.epochs.train
    kept: list[tuple[TrainProgress, dict[str, torch.Tensor]]] = []

    def keeping(*arguments: Any) -> TrainProgress:
        progress = train(*arguments)
        kept.append((progress, {k: v.clone() for k, v in trainer.train_step.model.state_dict().items()}))
        return progress

    trainer.epochs.train = keeping  # type: ignore[method-assign]
    trainer.train(False)
    yield from kept


def test_patience_ends_the_run_after_the_epochs_that_did_not_improve(
    tmp_path: Path, accuracies: Callable[..., None]
) -> None:
    accuracies(0.1, 0.5, 0.6, 0.6, 0.4)
    listener = Recorder()
    state = trainer_of(tmp_path / "run", listener, patience=2).train(False)
    assert [row["val_accuracy"] for row in rows(tmp_path / "run")] == [0.1, 0.5, 0.6, 0.6, 0.4]
    assert (state.epoch, state.run_best_epoch, state.run_best) == (4, 2, 0.6)
    assert listener.lines[-2].startswith(
        "stage 1 ended by patience: 2 epochs did not exceed 0.6000 of epoch 2"
    )
    assert listener.lines[-1] == "run ended; best is epoch 2 with val 0.6000"


@pytest.mark.parametrize("restore_best", [True, False])
def test_the_best_epochs_weights_really_come_back(
    tmp_path: Path, accuracies: Callable[..., None], restore_best: bool
) -> None:
    accuracies(0.1, 0.5, 0.4)
    run = tmp_path / "run"
    trainer = trainer_of(run, patience=1, restore_best=restore_best)
    (_, first), (_, second) = weights_after(trainer)
    assert not equal(first, second)
    expected = first if restore_best else second
    assert equal(dict(trainer.train_step.model.state_dict()), expected)
    assert equal(saved(run, "last/model"), expected)
    assert equal(saved(run, "best/model"), first)
    assert (run / "unit").exists() == restore_best


def test_rounds_alternate_and_each_begins_from_the_best_of_the_one_before(
    tmp_path: Path, accuracies: Callable[..., None]
) -> None:
    accuracies(0.1, *[0.5, 0.4] * 8)  # in each round the first epoch is the best, and the second ends it
    trainer = trainer_of(
        tmp_path / "run", method="linear", reduction="color", sequence="paired-rounds", patience=1
    )
    epochs = list(weights_after(trainer))
    source = trainer.splits.train.source
    assert isinstance(source, FakeSource)
    levels = [int(plan.levels.for_samples(np.zeros(1, np.int64))[0, 0]) for plan in source.plans]
    assert levels == [1, 1, 0, 0, 2, 2, 0, 0, 3, 3, 0, 0]
    assert [row["phase"] for row in rows(tmp_path / "run")[1:]] == ["reduced", "reduced", "full", "full"] * 3
    assert [row["stage"] for row in rows(tmp_path / "run")[1:]] == [1] * 4 + [2] * 4 + [3] * 4
    # The optimizer's steps are counted on, but its weights are those of the round's best epoch.
    assert [progress.totals.optimizer_steps for progress, _ in epochs] == [3 * i for i in range(1, 13)]


@pytest.mark.parametrize("method", ["baseline", "adaptive", "online"])
def test_a_signal_saves_the_last_progress_and_the_resumed_run_ends_equal(tmp_path: Path, method: str) -> None:
    """A run that is stopped again and again, ever later, ends with the same files as one that never is."""
    values: dict[str, Any] = {"max_epochs": 4, "patience": 2}
    if method != "baseline":
        feedback = "online" if method == "online" else "probe"
        values |= {"method": "adaptive", "reduction": "color", "sequence": "RC", "feedback": feedback}
    trainer_of(tmp_path / "whole", **values).train(False)
    stops, run = 0, tmp_path / "stopped"
    for attempt in range(100):
        calls = iter(range(10**6))
        trainer = trainer_of(
            run, stop=lambda calls=calls, due=1 + attempt % 7: 15 if next(calls) >= due else 0, **values
        )
        progress: list[TrainProgress] = []
        save = trainer.store.save

        def keeping(
            name: str, last: TrainProgress, *rest: Any, save: Any = save, kept: Any = progress
        ) -> None:
            kept.append(last)
            save(name, last, *rest)

        trainer.store.save = keeping  # type: ignore[method-assign]
        try:
            trainer.train(True)
            break
        except Interrupted:
            stops += 1
            if progress and progress[-1].epoch:
                state = json.loads((run / "last/state.json").read_text())
                assert state["epoch"]["step"] == progress[-1].epoch.step
                assert state["totals"]["optimizer_steps"] == progress[-1].totals.optimizer_steps
    assert stops > 4
    assert rows(tmp_path / "whole") == rows(run)
    for name in ("last/model", "last/optimizer", "last/random", "best/model"):
        assert equal(saved(tmp_path / "whole", name), saved(run, name)), name
    for file in (tmp_path / "whole").glob("levels/*.npy"):
        assert file.read_bytes() == (run / "levels" / file.name).read_bytes()


def test_what_a_signal_has_saved_is_continued_at_that_step(tmp_path: Path) -> None:
    signals: list[int] = []

    def at_batch(what: str, batch: int) -> None:
        if (what, batch) == ("epoch 2 C", 2):
            signals.append(2)

    run = tmp_path / "run"
    trainer = trainer_of(
        run, Recorder(at_batch), lambda: signals[0] if signals else 0, method="shared", epochs=2
    )
    with pytest.raises(Interrupted, match="stopped in epoch 2 after step 2, saved") as interruption:
        trainer.train(False)
    assert interruption.value.signum == 2
    listener = Recorder()
    resumed = trainer_of(run, listener, method="shared", epochs=2)
    resumed.train(True)
    source = resumed.splits.train.source
    assert isinstance(source, FakeSource)
    assert [plan.first_batch for plan in source.plans] == [2]
    assert listener.lines[0] == "continuing after epoch 1 and 2 steps of the next"


def test_a_signal_in_validation_saves_the_epochs_steps(tmp_path: Path) -> None:
    signals: list[int] = []

    def at_batch(what: str, batch: int) -> None:
        if what == "epoch 1 val":
            signals.append(15)

    run = tmp_path / "run"
    values: dict[str, Any] = {"method": "shared", "epochs": 2}
    trainer = trainer_of(run, Recorder(at_batch), lambda: signals[0] if signals else 0, **values)
    with pytest.raises(Interrupted, match="stopped in validation, saved"):
        trainer.train(False)
    assert json.loads((run / "last/state.json").read_text())["epoch"]["step"] == 3
    resumed = trainer_of(run, **values)
    resumed.train(True)
    source = resumed.splits.train.source
    assert isinstance(source, FakeSource)
    assert [plan.epoch for plan in source.plans] == [2]


def test_a_bad_file_is_quarantined_and_the_run_goes_on(tmp_path: Path) -> None:
    run, listener = tmp_path / "run", Recorder()
    trainer = trainer_of(run, listener, method="shared", epochs=2)
    source = trainer.splits.train.source
    assert isinstance(source, FakeSource)
    source.bad = {7}
    trainer.train(False)
    assert [plan.excluded for plan in source.plans] == [(), (7,)]
    assert [row.get("quarantined") for row in rows(run)] == [None, 1, 1]
    assert rows(run)[-1]["forward_images"] == 3 * 8 + 2 * 11
    assert listener.warnings == ["sample 7 is bad; training goes on without it"]
    assert (run / "quarantine.tsv").read_text().splitlines()[1:] == ["1\t7\timage-7.jpg\tsample 7 is bad"]


def test_more_bad_files_than_may_be_end_the_run(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path / "run", method="shared", epochs=2)
    source = trainer.splits.train.source
    assert isinstance(source, FakeSource)
    source.bad = {1, 2, 3}
    with pytest.raises(RunError, match="3 of 12 training images cannot be read, 2 may"):
        trainer.train(False)


def test_an_adaptive_stage_moves_images_and_a_probe_begins_again_without_a_bad_file(tmp_path: Path) -> None:
    run = tmp_path / "run"
    trainer = trainer_of(run, method="adaptive", reduction="color", sequence="RC", max_epochs=2, lr=1e-9)
    source = trainer.splits.train.source
    assert isinstance(source, FakeSource)
    source.bad = {3}
    trainer.train(False)
    first = rows(run)[1]
    levels = np.load(run / "levels/0001.levels.npy")
    assert levels[3].tolist() == [0, 0, 0]
    assert 0 < first["moved"] < 1
    assert first["moved"] == (levels[:, 0] > 0).sum() / 12
    assert first["probe_candidates"] == 11
    assert first["levels"]["color"] == [int((levels[:, 0] == k).sum()) for k in range(4)]
    assert "moved" not in rows(run)[2]  # of a stage's first epoch only
    assert not SINGLE_PROCESS.restarts


def test_progress_that_was_returned_is_never_changed(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path / "run", method="shared", epochs=1, save_every="1")
    kept: list[tuple[TrainProgress, tuple[Any, ...]]] = []
    save = trainer.store.save

    def keeping(name: str, progress: TrainProgress, *rest: Any) -> None:
        sums = progress.epoch
        if sums:
            kept.append((progress, (sums.step, sums.images, float(sums.loss), int(sums.correct))))
        save(name, progress, *rest)

    trainer.store.save = keeping  # type: ignore[method-assign]
    trainer.train(False)
    assert [values[:2] for _, values in kept] == [(1, 4), (2, 8), (3, 12)]
    for progress, values in kept:
        sums = progress.epoch
        assert sums
        assert (sums.step, sums.images, float(sums.loss), int(sums.correct)) == values
