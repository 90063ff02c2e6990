"""--lr-schedule: the rate at every epoch's end, what a restore does to it, and runs that are stopped."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from loop_fakes import Recorder, stopped_again_and_again, trainer_of
from test_trainer_loop import equal, rows, saved

from qrdali.errors import InputError, Interrupted, RunError
from qrdali.runs.settings import validate_settings
from qrdali.schedule.methods import check_settings, schedule_rule_of
from qrdali.training.learning_rate import RatePlan, RateSchedule, note_on_rate, plan_rate, rate_schedule

Prescribe = Callable[..., None]
LR = 0.05  # of `trainer_of`, whose epochs have three steps


def rates(run: Path) -> list[float]:
    """The rate of the first step and at each epoch's end, as shares of the whole one."""
    return [row["lr"] / LR for row in rows(run)]


def cosine(*shares: float, least: float = 0.0) -> list[float]:
    return [least + (1 - least) * (1 + math.cos(math.pi * share)) / 2 for share in shares]


def trained(folder: Path, *, patience: int = 1, **values: Any) -> tuple[list[float], list[str]]:
    listener = Recorder()
    trainer_of(folder / "run", listener, patience=patience, **values).train(False)
    return rates(folder / "run"), listener.lines


def test_constant_is_not_touched(tmp_path: Path) -> None:
    found, _ = trained(tmp_path, method="shared", epochs=3)
    assert found == [1.0] * 4
    state = json.loads((tmp_path / "run/last/state.json").read_text())
    assert "rate" not in state
    assert "initial_lr" not in state["optimizer"]["param_groups"][0]


def test_warm_up_of_a_constant_rate_goes_on_after_a_restore(tmp_path: Path, accuracies: Prescribe) -> None:
    accuracies(0.1, 0.5, 0.4, 0.5, 0.4, 0.5, 0.4)
    found, lines = trained(
        tmp_path, method="linear", reduction="color", sequence="CR", max_epochs=6, warmup_epochs=4
    )
    assert any("back to epoch 1" in line for line in lines)
    assert found == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 1])


def test_cosine_spans_the_run(tmp_path: Path) -> None:
    found, _ = trained(tmp_path, method="shared", epochs=4, lr_schedule="cosine")
    assert found == pytest.approx(cosine(0, 1 / 4, 1 / 2, 3 / 4, 1))


def test_cosine_with_warm_up_and_a_least_rate(tmp_path: Path) -> None:
    found, _ = trained(
        tmp_path, method="shared", epochs=5, lr_schedule="cosine", warmup_epochs=1, min_lr=LR / 5
    )
    assert found == pytest.approx([0, *cosine(0, 1 / 4, 1 / 2, 3 / 4, 1, least=0.2)])


def test_cosine_goes_on_by_the_runs_steps_after_a_restore(tmp_path: Path, accuracies: Prescribe) -> None:
    accuracies(0.1, *[0.5, 0.4] * 4)
    listener = Recorder()
    trainer = trainer_of(
        tmp_path / "run",
        listener,
        method="linear",
        reduction="color",
        sequence="paired-rounds",
        patience=1,
        max_epochs=8,
        lr_schedule="cosine",
    )
    train, first_rates = trainer.epochs.train, list[float]()

    def noting(*arguments: Any) -> Any:
        first_rates.append(trainer.train_step.rate.rate / LR)
        return train(*arguments)

    trainer.epochs.train = noting  # type: ignore[method-assign]
    trainer.train(False)
    assert sum("back to epoch" in line for line in listener.lines) == 4
    expected = cosine(*(i / 8 for i in range(9)))
    assert rates(tmp_path / "run") == pytest.approx(expected)
    assert first_rates == pytest.approx(expected[:-1])  # of an epoch after a restore too


def test_stage_begins_anew_with_each_round_and_stays_at_the_least_rate(
    tmp_path: Path,
    accuracies: Prescribe,
) -> None:
    accuracies(0.1, 0.5, 0.4, 0.5, 0.6, 0.7, 0.6, 0.5, 0.4)
    found, _ = trained(
        tmp_path,
        method="linear",
        reduction="color",
        sequence="paired-rounds",
        max_epochs=8,
        lr_schedule="stage",
        stage_epochs=3,
        warmup_epochs=1,
        min_lr=LR / 10,
    )
    down = cosine(0, 1 / 2, 1, least=0.1)
    # Rounds of two, four and two epochs; the row has the rate before the next round begins.
    assert found == pytest.approx([0, *down[:2], *down, 0.1, *down[:2]])


def test_plateau_lowers_the_rate_and_a_restore_brings_the_units_back(
    tmp_path: Path,
    accuracies: Prescribe,
) -> None:
    accuracies(0.1, 0.5, 0.4, 0.4, 0.6, 0.5, 0.5, 0.5, 0.2, 0.1, 0.1)
    found, lines = trained(
        tmp_path,
        method="linear",
        reduction="color",
        sequence="paired-rounds",
        patience=3,
        max_epochs=10,
        lr_schedule="plateau",
        plateau_patience=0,
        plateau_factor=0.5,
    )
    # The R round: worse twice, a new best at a quarter, worse three times, back to that quarter. The C round
    # begins with a best of its own: .2 does not lower the rate although .6 was better, .1 does.
    assert found == pytest.approx([1, 1, 1, 1 / 2, 1 / 4, 1 / 4, 1 / 8, 1 / 16, 1 / 4, 1 / 4, 1 / 8])
    assert any("back to epoch 4" in line for line in lines)


def test_plateau_goes_by_units_and_not_below_the_least_rate(tmp_path: Path, accuracies: Prescribe) -> None:
    accuracies(0.1, 0.9, 0.5, 0.9, 0.4, 0.9, 0.4, 0.9, 0.4)
    found, _ = trained(
        tmp_path,
        method="fixed",
        reduction="color",
        sequence="RC",
        patience=9,
        max_epochs=8,
        lr_schedule="plateau",
        plateau_patience=0,
        min_lr=LR / 20,
    )
    assert found == pytest.approx([1, 1, 1, 1, 1, 0.1, 0.1, 0.05, 0.05])


def test_a_unit_within_the_warm_up_of_plateau_brings_its_steps_back(
    tmp_path: Path, accuracies: Prescribe
) -> None:
    accuracies(0.1, 0.5, 0.4, 0.6, 0.7, 0.6)
    found, lines = trained(
        tmp_path,
        method="linear",
        reduction="color",
        sequence="paired-rounds",
        max_epochs=5,
        lr_schedule="plateau",
        warmup_epochs=3,
    )
    assert any("back to epoch 1" in line for line in lines)
    assert found == pytest.approx([0, 1 / 3, 2 / 3, 2 / 3, 1, 1])


def test_the_default_patience_of_plateau_is_one_less_and_a_line_says_what_that_does() -> None:
    base: dict[str, Any] = {"data": "", "lr_schedule": "plateau"}
    for patience, own in ((1, 0), (2, 1), (3, 2), (9, 8)):
        settings = validate_settings({"method": "baseline", **base, "patience": patience})
        assert plan_rate(settings, 10).patience == own
        assert f"--patience {patience} has ended the stage" in note_on_rate(settings)
    for acts in ({"plateau_patience": 1}, {"restore_best": False}, {"method": "shared"}):
        assert note_on_rate(validate_settings({"method": "baseline", **base, **acts})) == ""
    assert "--plateau-patience 1 changes" in note_on_rate(validate_settings({"method": "baseline", **base}))


def test_wsd_decays_after_the_end_by_patience(tmp_path: Path, accuracies: Prescribe) -> None:
    accuracies(0.1, 0.5, 0.4, 0.3, 0.2, 0.6)
    run = tmp_path / "run"
    listener = Recorder()
    trainer = trainer_of(run, listener, patience=1, lr_schedule="wsd", decay_epochs=3, warmup_epochs=1)
    weights: list[dict[str, torch.Tensor]] = []
    train = trainer.epochs.train

    def keeping(*arguments: Any) -> Any:
        weights.append({k: v.clone() for k, v in trainer.train_step.model.state_dict().items()})
        return train(*arguments)

    trainer.epochs.train = keeping  # type: ignore[method-assign]
    state = trainer.train(False)
    assert rates(run) == pytest.approx([0, 1, 1, 2 / 3, 1 / 3, 0])
    assert (state.ended, state.epoch) == ("the decay of the learning rate over 3 epochs", 5)
    assert equal(weights[1], weights[2])  # epoch 3 begins from the restored state, that after epoch 1
    assert not equal(dict(trainer.train_step.model.state_dict()), weights[2])  # the decay is not restored
    assert "the learning rate decays over 3 C epochs" in listener.lines
    assert listener.lines[-1] == (
        "run ended by the decay of the learning rate over 3 epochs; best is epoch 5 with val 0.6000"
    )
    assert not any(
        "back to" in line
        for line in listener.lines[listener.lines.index("the learning rate decays over 3 C epochs") :]
    )


def test_wsd_says_what_the_bound_of_the_run_leaves(tmp_path: Path, accuracies: Prescribe) -> None:
    accuracies(0.1, 0.5, 0.4)
    for bound, line in (
        (2, "no decay of the learning rate: --max-epochs 2 ended the run first"),
        (1, "no decay of the learning rate: --max-epochs 1 ended the run first"),
        (3, "the learning rate decays over 1 C epoch, as many as --max-epochs 3 leaves"),
    ):
        folder = tmp_path / str(bound)
        folder.mkdir()
        accuracies(0.1, 0.5, 0.4)
        found, lines = trained(folder, lr_schedule="wsd", decay_epochs=2, max_epochs=bound)
        assert line in lines
        assert found == pytest.approx([1, 1, 1, 0][: bound + 1])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"method": "shared", "epochs": 5, "decay_epochs": 2, "min_lr": LR / 2}, [1, 1, 1, 1, 0.75, 0.5]),
        ({"method": "shared", "epochs": 5}, [1, 1, 1, 1, 1, 0]),
        # 8 steps are two epochs and two of the third's three steps: the decay has their last three.
        ({"match_steps": 8, "max_epochs": 3, "decay_epochs": 1}, [1, 1, 2 / 3, 0]),
    ],
)
def test_wsd_of_a_set_length_has_its_decay_at_the_end(
    tmp_path: Path, values: dict[str, Any], expected: list[float]
) -> None:
    assert trained(tmp_path, lr_schedule="wsd", **values)[0] == pytest.approx(expected)


def test_every_row_has_rate_loss_and_time(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path / "run", method="shared", epochs=2, label_smoothing=0.1)
    logits: list[torch.Tensor] = []
    handle = trainer.train_step.model.register_forward_hook(
        lambda module, given, answer: None if module.training else logits.append(answer.detach())
    )
    trainer.train(False)
    handle.remove()
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    labels = torch.arange(8) % 2
    losses = [
        torch.nn.functional.cross_entropy(torch.cat(logits[i : i + len(logits) // 3]), labels).item()
        for i in range(0, len(logits), len(logits) // 3)
    ]
    assert [row["val_loss"] for row in lines] == pytest.approx(losses)  # without smoothing
    for row in lines:
        assert row["time"].endswith("+00:00")
        assert len(row["time"]) == len("2026-01-31T12:00:00+00:00")
    assert [row["lr"] for row in lines] == [LR] * 3


STOPPED: dict[str, dict[str, Any]] = {
    "warm-up": {"warmup_epochs": 2},
    "cosine": {"lr_schedule": "cosine", "warmup_epochs": 0.5},
    "plateau": {"lr_schedule": "plateau", "plateau_patience": 0, "warmup_epochs": 1},
    "stage": {"lr_schedule": "stage", "stage_epochs": 2, "warmup_epochs": 1},
    "wsd": {"lr_schedule": "wsd", "decay_epochs": 2, "warmup_epochs": 1.5},
    "sgd": {"lr_schedule": "cosine", "optimizer": "sgd", "optimizer_options": {"momentum": 0.5}},
}


# What acts in each step beside the schedule, with a state of its own or without.
BESIDE: dict[str, dict[str, Any]] = {
    "alone": {},
    "with all": {"ema": 0.9, "ema_warmup": True, "clip_grad": 0.5},
}


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("name", STOPPED)
def test_a_run_stopped_again_and_again_ends_as_if_it_never_was(
    tmp_path: Path, name: str, beside: str
) -> None:
    values: dict[str, Any] = {
        "method": "linear",
        "reduction": "color",
        "sequence": "paired-rounds",
        "step": 0.5,
        "patience": 1,
        "max_epochs": 7,
        "save_every": "1",
        **STOPPED[name],
        **BESIDE[beside],
    }
    trainer_of(tmp_path / "whole", **values).train(False)
    run = tmp_path / "stopped"
    assert stopped_again_and_again(run, **values) > 4
    assert rows(tmp_path / "whole") == rows(run)
    assert len({row["lr"] for row in rows(run)}) > 1
    files = ("last/model", "last/optimizer", "last/random", "best/model")
    for file in (*files, "last/ema") if "ema" in values else files:
        assert equal(saved(tmp_path / "whole", file), saved(run, file)), file
    states = [json.loads((folder / "last/state.json").read_text()) for folder in (tmp_path / "whole", run)]
    assert states[0]["rate"] == states[1]["rate"]
    assert states[0]["optimizer"] == states[1]["optimizer"]


def schedule_of(name: str, **values: Any) -> RateSchedule:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    return rate_schedule(optimizer, RatePlan(name, 3, span=9, **values))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("cosine", {"steps": -1}),
        ("cosine", {"steps": 1.5}),
        ("cosine", {"steps": None}),
        ("wsd", {"decay_start": "0"}),
        ("wsd", {"decay_start": 1, "decay_steps": 0}),
        ("wsd", {"decay_start": 1, "decay_steps": -3}),
        ("plateau", {"plateau": None}),
        ("plateau", {"plateau": {"step": "replaced"}}),
    ],
)
def test_states_that_were_never_saved_are_refused(name: str, change: dict[str, Any]) -> None:
    schedule = schedule_of(name)
    good = json.loads(json.dumps(schedule.state_dict()))
    schedule.load_state_dict(good)
    with pytest.raises((KeyError, TypeError, ValueError)):
        schedule.load_state_dict({**good, **change})


@pytest.mark.parametrize(
    "change", [{"best": "0.5"}, {"best": math.nan}, {"num_bad_epochs": None}, {"min_lrs": []}, {"extra": 1}]
)
def test_a_plateaus_state_is_checked_key_by_key(change: dict[str, Any]) -> None:
    schedule = schedule_of("plateau")
    schedule.after_unit(0.5)
    good = json.loads(json.dumps(schedule.state_dict()))
    assert good["plateau"]["best"] == 0.5
    with pytest.raises((TypeError, ValueError)):
        schedule.load_state_dict({**good, "plateau": {**good["plateau"], **change}})


def test_a_checkpoint_without_the_rates_state_is_refused_in_one_line(tmp_path: Path) -> None:
    values: dict[str, Any] = {"method": "shared", "epochs": 2, "lr_schedule": "cosine"}
    signals: list[int] = []
    listener = Recorder(lambda what, batch: signals.append(15) if (what, batch) == ("epoch 1 C", 2) else None)
    with pytest.raises(Interrupted):
        trainer_of(tmp_path / "run", listener, stop=lambda: signals[0] if signals else 0, **values).train(
            False
        )
    file = tmp_path / "run/last/state.json"
    state = json.loads(file.read_text())
    del state["rate"]
    file.write_text(json.dumps(state))
    (tmp_path / "run/last/SHA256SUMS").unlink()
    with pytest.raises(RunError, match="does not fit this run: 'steps'"):
        trainer_of(tmp_path / "run", **values).train(True)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lr_schedule": "stage"}, "--lr-schedule stage needs --stage-epochs N"),
        ({"stage_epochs": 3}, "--stage-epochs is for --lr-schedule stage, not constant"),
        ({"decay_epochs": 3, "lr_schedule": "cosine"}, "--decay-epochs is for --lr-schedule wsd, not cosine"),
        ({"plateau_factor": 0.2}, "--plateau-factor is for --lr-schedule plateau, not constant"),
        ({"plateau_patience": 0}, "--plateau-patience is for --lr-schedule plateau, not constant"),
        ({"min_lr": 1e-5}, "--min-lr is for --lr-schedule cosine, plateau, stage or wsd, not constant"),
        ({"min_lr": 1e-3, "lr": 1e-3, "lr_schedule": "wsd"}, "--min-lr 0.001 is not below --lr 0.001"),
        ({"warmup_epochs": 10}, "--warmup-epochs 10 is not shorter than the 10 epochs of --epochs"),
        (
            {"warmup_epochs": 4, "method": "baseline", "max_epochs": 4},
            "--warmup-epochs 4 is not shorter than the 4 epochs of --max-epochs",
        ),
        (
            {"warmup_epochs": 3, "lr_schedule": "stage", "stage_epochs": 2},
            "--warmup-epochs 3 is not shorter than the 2 epochs of --stage-epochs",
        ),
        (
            {"warmup_epochs": 3, "lr_schedule": "wsd", "decay_epochs": 8},
            "--warmup-epochs 3 and --decay-epochs 8 are longer than the 10 epochs of --epochs",
        ),
    ],
)
def test_schedules_without_room_and_options_of_others(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        check_settings(validate_settings({"method": "shared", "data": "", **values}))
    assert said in str(error.value)


def test_what_just_fits() -> None:
    for values in (
        {"warmup_epochs": 9.5},
        {"warmup_epochs": 2, "lr_schedule": "wsd", "decay_epochs": 8},
        {"lr": 1e-3, "min_lr": 0.9e-3, "lr_schedule": "cosine"},
    ):
        check_settings(validate_settings({"method": "shared", "data": "", **values}))
    rule = schedule_rule_of(validate_settings({"method": "baseline", "data": "", "lr_schedule": "wsd"}))
    assert (rule.decay_epochs, rule.decay_after(50)) == (0, 10)
