"""Training with distortions: what is recorded, interrupted runs, and what is refused by name."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file

from qrdali.cli.main import cli
from qrdali.data.index import Dataset
from qrdali.errors import InputError, Interrupted
from qrdali.interfaces import JobControl
from qrdali.reduction.names import DISTORTIONS, SEARCHED, TRAINED
from qrdali.runs.settings import Settings, validate_settings
from qrdali.schedule.methods import check_settings, require_live_levels, stage_levels
from qrdali.workflows.mepi_options import make_rules
from qrdali.workflows.minimal_search import MinimalOptions
from qrdali.workflows.train import run_training

TIMES = ("second", "time", "memory_mb", "energy")


def settings_of(dataset: Dataset, method: str, reduction: str, **values: Any) -> Settings:
    small = {"model": "test_resnet", "input_size": 32, "batch_size": 8, "device": "cpu", "threads": 1}
    base = {"method": method, "data": str(dataset.folder), "reduction": reduction, "patience": 1}
    return validate_settings({**base, **small, "max_epochs": 4, **values})


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def unmeasured(run: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in row.items() if not any(word in key for word in TIMES)}
        for row in rows_of(run)
    ]


@pytest.mark.parametrize(
    ("method", "reduction", "reduced"),
    [
        ("linear", "gray", [0.75, 1, 0.5, 1]),
        ("linear", "jpeg", [0.75, 1, 0.5, 1]),
        ("fixed", "contrast", [0.5, 1, 0.5, 1]),
        ("fixed", "blur", [0.5, 1, 0.5, 1]),
        ("random", "noise", None),
    ],
)
def test_rows_have_the_quality_of_the_distortion(
    dataset: Dataset, tmp_path: Path, method: str, reduction: str, reduced: list[float] | None
) -> None:
    more = {"sequence": "paired-rounds"} if method == "random" else {}
    settings = settings_of(dataset, method, reduction, track_reduced=0.5, restore_best=False, **more)
    run_training(settings, tmp_path / "run", False)
    rows = rows_of(tmp_path / "run")
    assert all(list(row["quality"]) == ["color", "crop", "resolution", reduction] for row in rows)
    assert all(row["quality"][name] == 1 for row in rows for name in ("color", "crop", "resolution"))
    assert rows[0]["quality"][reduction] == 1
    found = [row["quality"][reduction] for row in rows[1:]]
    if reduced is not None:
        expected = [
            1 if row["phase"] == "full" else (1 - 0.25 * row["stage"] if method == "linear" else 0.5)
            for row in rows[1:]
        ]
        assert found == expected
        assert min(found) < 1 == max(found)
    else:
        assert all((q == 1) == (row["phase"] == "full") for q, row in zip(found, rows[1:], strict=True))
        assert all(0.3 < row["quality"][reduction] < 0.95 for row in rows[1:] if row["phase"] == "reduced")
    tracked = [f"val-{name}-0.5" for name in (*SEARCHED, reduction)]
    assert all(list(row["tracked"]) == tracked for row in rows)


def test_other_runs_have_the_three_qualities(dataset: Dataset, tmp_path: Path) -> None:
    run_training(settings_of(dataset, "fixed", "crop", max_epochs=2), tmp_path / "run", False)
    assert all(list(row["quality"]) == ["color", "crop", "resolution"] for row in rows_of(tmp_path / "run"))


@pytest.mark.parametrize(("method", "reduction"), [("random", "noise"), ("linear", "blur")])
def test_stopped_and_resumed_is_uninterrupted(
    dataset: Dataset, tmp_path: Path, method: str, reduction: str
) -> None:
    settings = settings_of(dataset, method, reduction, save_every="2", max_epochs=5)
    run_training(settings, tmp_path / "once", False)
    run, stopped = tmp_path / "stopped", 0
    for due in itertools.count(3):
        calls = itertools.count(1)
        control = JobControl(stop=lambda calls=calls, due=due: 15 if next(calls) == due else 0)  # type: ignore[misc]
        try:
            run_training(settings, run, stopped > 0, control)
            break
        except Interrupted:
            stopped += 1
    assert stopped > 2
    assert unmeasured(run) == unmeasured(tmp_path / "once")
    one, two = (load_file(folder / "last" / "model.safetensors") for folder in (tmp_path / "once", run))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_distortion_trains_otherwise_than_none(dataset: Dataset, tmp_path: Path) -> None:
    """The sham has the same sequence: only what the network saw can differ."""
    losses = {}
    for reduction in ("noise", "jpeg", "none"):
        settings = settings_of(dataset, "fixed", reduction, max_epochs=1, quality=0.25)
        run_training(settings, tmp_path / reduction, False)
        losses[reduction] = rows_of(tmp_path / reduction)[1]["train_loss"]
    assert len(set(losses.values())) == 3


def test_validation_under_the_phases_quality(dataset: Dataset, tmp_path: Path) -> None:
    by_phase = settings_of(
        dataset, "fixed", "contrast", max_epochs=1, quality=0.05, step=0.05, monitor="phase"
    )
    run_training(by_phase, tmp_path / "phase", False)
    full = by_phase.model_copy(update={"monitor": "full", "track_reduced": 0.05})
    run_training(full, tmp_path / "full", False)
    row = rows_of(tmp_path / "full")[1]
    reduced = rows_of(tmp_path / "phase")[1]["val_accuracy"]
    assert reduced == row["tracked"]["val-contrast-0.05"]
    assert rows_of(tmp_path / "phase")[1]["val_loss"] != row["val_loss"]


def test_stages_are_the_live_levels_of_the_distortion(dataset: Dataset) -> None:
    settings = settings_of(dataset, "linear", "jpeg", step=0.005)
    check_settings(settings)
    # libjpeg has 100 qualities. Level 1, .995, is the first of quality 100; level 0 is no JPEG at all.
    levels = stage_levels(settings)
    assert levels[:4] == (1, 2, 4, 6)
    assert len(levels) == 100
    for name in DISTORTIONS:
        assert stage_levels(settings_of(dataset, "linear", name, input_size=64)) == (1, 2, 3)
        tailed = settings_of(dataset, "linear", name, tail="2", input_size=64)
        assert stage_levels(tailed) == (1, 2, 3, 4, 5)
        require_live_levels(settings_of(dataset, "fixed", name, quality=0.75, input_size=64))
        with pytest.raises(InputError, match=f"quality 1 of {name} changes no training image"):
            require_live_levels(settings_of(dataset, "fixed", name, quality=1.0))
    assert stage_levels(settings_of(dataset, "linear", "blur")) == (2, 3)  # of 32 pixels a quarter is no blur
    with pytest.raises(
        InputError, match=r"quality 0\.75 of blur changes no training image: use 0\.5 or less"
    ):
        require_live_levels(settings_of(dataset, "fixed", "blur", quality=0.75))


@pytest.mark.parametrize("name", DISTORTIONS)
def test_searches_and_adaptive_refuse_by_name(dataset: Dataset, tmp_path: Path, name: str) -> None:
    reason = f"{name} is a distortion of what the network sees, which makes no image smaller"
    adaptive = settings_of(dataset, "adaptive", name)
    with pytest.raises(InputError, match=f"--reduction {reason}.*{name} is for fixed, linear and random"):
        check_settings(adaptive)
    with pytest.raises(InputError, match=reason):
        run_training(adaptive, tmp_path / "run", False)
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match=f"--reduction {reason}: a search takes color, crop, resolution or"):
        make_rules(name, adaptive.scale, 5, "confidence", "descend")
    with pytest.raises(InputError, match=reason):
        MinimalOptions(name).rule()
    image = tmp_path / "x.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(image)
    for words in (
        ["build-mepi", "--run", "r", "--data", "d", "--out", "o"],
        ["minimal", str(image), "--run", "r"],
    ):
        result = CliRunner().invoke(cli, [*words, "--reduction", name])
        assert result.exit_code == 2
        assert reason in f"{result.stderr} {result.exception}"
    result = CliRunner().invoke(cli, ["build-mepi", "--help"])
    assert name not in result.stdout


def test_train_takes_the_names_of_the_table() -> None:
    for name in TRAINED:
        words = ["train", "fixed", "--data", "d", "--run", "r", "--reduction", name, "--dry-run"]
        result = CliRunner().invoke(cli, [*words, "--max-epochs", "2"])
        assert result.exit_code == 0, result.output
        shown = {"none": "full quality (sham)", "combination": "color 0.5, crop 0.5, resolution 0.5"}
        assert shown.get(name, f"{name} 0.5") in result.stdout


def test_previews_show_what_the_network_sees(dataset: Dataset, tmp_path: Path) -> None:
    """The second picture of each pair is distorted, and alike in two runs."""
    pytest.importorskip("tensorboard")
    sheets = {}
    for name, reduction, quality in (
        ("a", "contrast", 0.25),
        ("b", "contrast", 0.25),
        ("c", "contrast", 0.75),
    ):
        values = {"max_epochs": 1, "quality": quality, "log": "tensorboard"}
        run_training(settings_of(dataset, "fixed", reduction, **values), tmp_path / name, False)
        (sheet,) = (tmp_path / name / "previews").iterdir()
        sheets[name] = np.asarray(Image.open(sheet).convert("RGB"))
    assert np.array_equal(sheets["a"], sheets["b"])
    strong, weak = (sheets[name].astype(int) for name in ("a", "c"))
    changed = (strong != weak).any(axis=2)
    assert changed.any()
    assert not changed[:, :170].any()  # the originals, on the left of their pairs
    assert np.abs(strong[changed] - 127.5).max() <= 0.25 * 127.5 + 1
    assert np.abs(weak[changed] - 127.5).max() > 0.5 * 127.5
