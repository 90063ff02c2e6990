"""Which runs a report averages and compares: training images, chains of starts, definitions, settings."""

import json
import shutil
from pathlib import Path
from typing import Any

import fake_runs
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from qrdali.cli.main import cli
from qrdali.interfaces import SilentListener
from qrdali.report.build import ReportOptions, contents
from qrdali.report.read import named, read_run
from qrdali.report.read_mepis import read_mepis
from qrdali.report.setup import searches
from qrdali.report.tables import Table
from qrdali.runs.configuration import chain_of
from qrdali.runs.settings import validate_settings
from qrdali.workflows.compare import compare

VAL = np.arange(20) % 2 == 0


def note(folder: Path, name: str, **metadata: Any) -> None:
    """Puts metadata into the rows of a set, as `evaluate` does."""
    file = folder / "predictions" / f"{name}.parquet"
    text = {"qrdali": json.dumps({"epoch": 1, **metadata})}
    pq.write_table(pq.read_table(file).replace_schema_metadata(text), file)


def right(*counts: int) -> "np.ndarray[Any, Any]":
    """`counts` of right and wrong answers, in turn."""
    return np.concatenate([np.full(count, i % 2 == 0) for i, count in enumerate(counts)])


def fingerprints(train: str, file: str = "") -> dict[str, Any]:
    """What a run records of its images."""
    return {
        "fingerprints": {
            "train": {"content": train * 64, "file": (file or train) * 64},
            "val": {"content": "e" * 64, "file": "e" * 64},
        }
    }


def run(folder: Path, test: "np.ndarray[Any, Any]", **more: Any) -> Path:
    return fake_runs.run(folder, [0.5, 0.6], {"val": VAL, "test": test}, **more)


def tables(*folders: Path) -> dict[str, Table]:
    """The tables of a report, without drawing its figures."""
    warn = SilentListener().warn
    runs = [read_run(folder, name, warn) for folder, name in zip(folders, named([*folders]), strict=True)]
    return {table.slug: table for part in contents(runs, [], ReportOptions()) for table in part.filled_tables}


def rows(table: Table) -> list[dict[str, Any]]:
    return [dict(zip(table.columns, [cell.value for cell in row], strict=True)) for row in table.rows]


def seeds(table: Table) -> dict[str, int]:
    """Runs per configuration by its method."""
    return {row["method"]: int(row["seeds"]) for row in rows(table)}


def test_runs_of_other_training_images_are_neither_averaged_nor_compared(tmp_path: Path) -> None:
    # The same validation and test images: 60 right of a baseline on all images, 12 of one on few.
    full, few = fingerprints("a"), fingerprints("b")
    good = run(tmp_path / "good", right(44, 16), seed=0, data="/data/full", extra=full)
    poor = run(tmp_path / "poor", right(7, 53), seed=1, data="/data/few", extra=few)
    linear = {"method": "linear", "reduction": "crop", "sequence": "paired-epochs"}
    ours = run(tmp_path / "linear", right(44, 0, 5, 11), seed=0, data="/data/full", extra=full, **linear)
    theirs = run(tmp_path / "linear1", right(44, 16), seed=1, data="/data/full", extra=full, **linear)
    found = tables(good, poor, ours, theirs)
    assert seeds(found["accuracy-1"]) == {"baseline": 1, "linear": 2}
    assert seeds(found["accuracy-2"]) == {"baseline": 1}
    compared = {row["run"]: row for row in rows(found["comparisons-1"]) if row["set"] == "test"}
    assert compared["linear"]["difference"] == pytest.approx(100 * 5 / 60)
    assert compared["linear"]["p"] == compared["linear"]["p (Holm)"] == pytest.approx(0.02535, abs=1e-5)
    # Of its seed there is a baseline on other images only.
    assert compared["linear1"]["baseline"] is None
    notes = found["accuracy-1"].notes
    assert any("poor were trained on other images" in text and "nor compared" in text for text in notes)
    assert any("No baseline of the same seed is here for linear1" in text for text in notes)


def test_the_same_images_under_another_mount_are_one_experiment(tmp_path: Path) -> None:
    folders = []
    for seed, mount in enumerate(("/mnt/a/", "/mnt/b/")):
        more: dict[str, Any] = {"extra": fingerprints("a", str(seed)), "data": f"{mount}set", "prefix": mount}
        folders.append(run(tmp_path / f"b{seed}", right(30, 30), seed=0, **more))
        folders.append(run(tmp_path / f"f{seed}", right(36, 24), seed=seed, method="fixed", **more))
    shutil.rmtree(folders.pop(2))
    for folder in folders:
        note(folder, "val", images="b" * 64)
        note(folder, "test", images="c" * 64)
    found = tables(*folders)
    assert seeds(found["accuracy-1"]) == {"baseline": 1, "fixed 0.5": 2}
    assert "accuracy-2" not in found
    assert not any("not of the same images" in text for text in found["accuracy-1"].notes)
    assert compare(folders[0], folders[2]).c == 6
    # Other images have another fingerprint, whatever their paths are.
    note(folders[1], "test", images="d" * 64)
    assert any("not of the same images" in text for text in tables(*folders)["accuracy-1"].notes)


def test_runs_that_recorded_no_fingerprint(tmp_path: Path) -> None:
    one = run(tmp_path / "one", right(30, 30), seed=0, data="/data/x", extra={"images": {"train": 50}})
    two = run(tmp_path / "two", right(36, 24), seed=1, data="/data/x", extra={"images": {"train": 50}})
    few = run(tmp_path / "few", right(10, 50), seed=2, data="/data/x", extra={"images": {"train": 5}})
    other = run(tmp_path / "other", right(10, 50), seed=3, data="/data/y", extra={"images": {"train": 50}})
    found = tables(one, two, few, other)
    assert [seeds(found[f"accuracy-{i}"]) for i in (1, 2, 3)] == [{"baseline": 2}, *[{"baseline": 1}] * 2]
    assert any(
        "Not recorded is which images one, two were trained on" in n for n in found["accuracy-1"].notes
    )


def checkpoint_of(folder: Path, recorded: str) -> Path:
    """The checkpoint of a run of version 0.1 that has ended, which recorded the index file."""
    (folder / "last").mkdir()
    (folder / "last" / "state.json").write_text(json.dumps({"data": recorded, "schedule": {"ended": True}}))
    return folder


def test_the_checkpoint_says_what_version_0_1_was_trained_on(tmp_path: Path) -> None:
    old = checkpoint_of(run(tmp_path / "old", right(30, 30), seed=0), "5" * 64)
    same = checkpoint_of(run(tmp_path / "same", right(30, 30), seed=1, data="/copy"), "5" * 64)
    other = checkpoint_of(run(tmp_path / "other", right(30, 30), seed=2), "6" * 64)
    new = run(tmp_path / "new", right(30, 30), seed=3, extra=fingerprints("a", "5"))
    found = tables(old, same, other, new)
    assert [seeds(found[f"accuracy-{i}"]) for i in (1, 2)] == [{"baseline": 3}, {"baseline": 1}]
    assert not any("Not recorded" in text for text in found["accuracy-1"].notes)
    assert compare(old, new).notes == compare(old, same).notes == ()
    for pair in ((old, other), (new, other)):
        assert compare(*pair).notes == (
            "A and B were trained on different images: the difference may come from them",
        )


def started(tmp_path: Path, name: str, **settings: Any) -> dict[str, str]:
    """A run that others begin with."""
    return {"init": str(run(tmp_path / "starts" / name, right(30, 30), **settings))}


def test_a_start_of_another_configuration_is_no_seed(tmp_path: Path) -> None:
    shared = [started(tmp_path, f"shared{i}", method="shared", seed=i) for i in range(2)]
    fixed = started(tmp_path, "fixed", method="fixed", seed=2, **shared[0])
    folders = [
        run(tmp_path / f"b{seed}", right(30 + seed, 30 - seed), seed=seed, **start)
        for seed, start in enumerate((*shared, fixed))
    ]
    expected = {"baseline (from shared)": 2, "baseline (from fixed 0.5 paired-epochs combination)": 1}
    assert seeds(tables(*folders)["accuracy-1"]) == expected


@pytest.mark.parametrize(
    "other",
    [
        {"epochs": 20},
        {"lr": 0.5},
        {"extra": fingerprints("b")},
        {"method": "baseline"},
        {"pretrained": True},
    ],
)
def test_starts_that_differ_in_anything_but_the_seed_differ(tmp_path: Path, other: dict[str, Any]) -> None:
    first = started(tmp_path, "a", method="shared", seed=0, extra=fingerprints("a"))
    again = started(tmp_path, "b", method="shared", seed=1, extra=fingerprints("a"), threads=3, root="/x")
    third = started(tmp_path, "c", **{"method": "shared", "seed": 2, "extra": fingerprints("a"), **other})
    folders = [
        run(tmp_path / f"r{i}", right(30, 30), seed=i, **start)
        for i, start in enumerate((first, again, third))
    ]
    assert sorted(seeds(tables(*folders)["accuracy-1"]).values()) == [1, 2]


def test_a_chain_is_followed_to_its_beginning(tmp_path: Path) -> None:
    folders = []
    for seed, lr in enumerate((0.1, 0.1, 0.2)):
        first = started(tmp_path, f"first{seed}", method="shared", seed=seed, lr=lr)
        second = started(tmp_path, f"second{seed}", method="linear", seed=seed, **first)
        folders.append(run(tmp_path / f"r{seed}", right(30, 30), seed=seed, **second))
    names = seeds(tables(*folders)["accuracy-1"])
    assert sorted(names.values()) == [1, 2]
    # The starts have one name: what tells them apart is the digest.
    assert all("from linear paired-epochs combination [" in name for name in names)


def matched(tmp_path: Path, name: str, steps: int, **settings: Any) -> dict[str, Any]:
    folder = run(tmp_path / "matched" / name, right(30, 30), **settings)
    return {"match": str(folder), "match_steps": steps, "max_epochs": steps // 10}


def test_matched_baselines_are_those_of_one_configuration(tmp_path: Path) -> None:
    linear = {"method": "linear", "reduction": "crop"}
    folders = [
        run(
            tmp_path / f"m{seed}",
            right(30, 30),
            seed=seed,
            **matched(tmp_path, f"l{seed}", steps, seed=seed, **what),
        )
        for seed, (steps, what) in enumerate(((228, linear), (240, linear), (72, {"method": "fixed"})))
    ]
    expected = {
        "baseline matched (steps of linear paired-epochs crop)": 2,
        "baseline matched (steps of fixed 0.5 paired-epochs combination)": 1,
    }
    assert seeds(tables(*folders)["accuracy-1"]) == expected


def test_steps_of_one_run_at_two_times_are_two_controls(tmp_path: Path) -> None:
    first = matched(tmp_path, "linear", 228, method="linear")
    folders = [
        run(tmp_path / f"m{seed}", right(30, 30), seed=seed, **{**first, "match_steps": steps})
        for seed, steps in enumerate((228, 72))
    ]
    assert [*seeds(tables(*folders)["accuracy-1"]).values()] == [1, 1]
    shutil.rmtree(tmp_path / "matched")
    assert [*seeds(tables(*folders)["accuracy-1"]).values()] == [1, 1]
    # Steps that were given as a number.
    alone = [
        run(tmp_path / f"n{seed}", right(30, 30), seed=seed, match_steps=steps)
        for seed, steps in enumerate((228, 72, 72))
    ]
    assert sorted(seeds(tables(*alone)["accuracy-1"]).values()) == [1, 2]


def chain(label: str, digit: str) -> dict[str, Any]:
    return {"chain": {"init": {"label": label, "digest": digit * 64}}}


def test_what_a_run_recorded_of_its_start_outlives_the_folder(tmp_path: Path) -> None:
    starts = (
        ("/gone/a", chain("shared", "1")),
        ("/gone/b", chain("shared", "1")),
        ("/gone/a", chain("fixed", "2")),
    )
    folders = [
        run(tmp_path / f"r{seed}", right(30, 30), seed=seed, init=init, extra=extra)
        for seed, (init, extra) in enumerate(starts)
    ]
    found = tables(*folders)["accuracy-1"]
    assert seeds(found) == {"baseline (from shared)": 2, "baseline (from fixed)": 1}
    assert not any("is gone" in text for text in found.notes)


def test_a_start_that_is_gone_and_unrecorded_is_told_by_its_path(tmp_path: Path) -> None:
    folders = [
        run(tmp_path / f"r{seed}", right(30, 30), seed=seed, init=init)
        for seed, init in enumerate(("/gone/a", "/gone/a", "/gone/b"))
    ]
    found = tables(*folders)["accuracy-1"]
    assert seeds(found) == {"baseline (from the run a)": 2, "baseline (from the run b)": 1}
    assert any("What r0, r1, r2 began with" in text and "is gone" in text for text in found.notes)


def test_runs_that_begin_with_themselves(tmp_path: Path) -> None:
    one = run(tmp_path / "one", right(30, 30), init=str(tmp_path / "two"), match=str(tmp_path / "one"))
    two = run(tmp_path / "two", right(30, 30), seed=1, init=str(tmp_path / "one"))
    assert len(tables(one, two)["accuracy-1"].rows) == 2


def test_places_and_machines_make_no_other_configuration(tmp_path: Path) -> None:
    cpu = {"environment": {"cpu": "x", "gpu": None}}
    different: list[dict[str, Any]] = [
        {},
        {"root": "/moved", "max_bad": 0.5, "threads": 3, "save_every": "9", "device": "cpu", "amp": "off"},
        {"epochs": 99, "quality": 0.25, "direction": "up", "windows": 9, "track_reduced": 0.5},
    ]
    folders = [
        run(tmp_path / f"r{seed}", right(30, 30), seed=seed, extra=cpu, **settings)
        for seed, settings in enumerate(different)
    ]
    assert seeds(tables(*folders)["accuracy-1"]) == {"baseline": 3}


def test_a_sham_in_stages_is_not_one_without(tmp_path: Path) -> None:
    folders = [
        run(tmp_path / method, right(30, 30), seed=seed, method=method, reduction="none")
        for seed, method in enumerate(("fixed", "linear"))
    ]
    assert [*seeds(tables(*folders)["accuracy-1"])] == [
        "sham (method=fixed)",
        "sham (method=linear, step=0.25)",
    ]


def under(folder: Path, definitions: int, changed_at: int | None = None) -> Path:
    """A run begun under `definitions` that went on under 2 from an epoch on."""
    file = folder / "config.toml"
    lines = [line for line in file.read_text().splitlines() if not line.startswith("definitions")]
    # Version 0.1 had no such key. Keys stand before tables.
    file.write_text("\n".join([f"definitions = {definitions}"] * (definitions > 1) + lines))
    metrics = folder / "metrics.jsonl"
    epochs = [json.loads(line) for line in metrics.read_text().splitlines()]
    for epoch in epochs:
        if epoch["epoch"] == changed_at:
            epoch["definitions"] = 2
    metrics.write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))
    return folder


def test_runs_of_other_definitions_are_not_averaged_and_not_compared_without_a_note(tmp_path: Path) -> None:
    old = under(run(tmp_path / "old", right(30, 30), seed=0), 1)
    new = under(run(tmp_path / "new", right(30, 30), seed=1), 2)
    again = under(run(tmp_path / "again", right(30, 30), seed=2), 2)
    mixed = under(run(tmp_path / "mixed", right(30, 30), seed=3), 1, changed_at=1)
    linear = under(run(tmp_path / "linear", right(33, 27), seed=0, method="linear"), 2)
    found = tables(old, new, again, mixed, linear)
    assert seeds(found["accuracy-1"]) == {
        "baseline (definitions 1)": 1,
        "baseline (definitions 2)": 2,
        "baseline (definitions mixed)": 1,
        "linear": 1,
    }
    notes = found["accuracy-1"].notes
    assert any(
        "mixed was begun under definitions 1 and goes on under 2 from epoch 1: its definitions are mixed"
        in text
        for text in notes
    )
    assert any("of different definitions (1: old; 2: new, again, linear; mixed: mixed)" in n for n in notes)
    shown = {row["run"]: row["definitions"] for row in rows(found["configurations"])}
    assert shown == {"old": "1", "new": "2", "again": "2", "mixed": "mixed", "linear": "2"}
    assert not any("definitions" in text for text in tables(new, again)["accuracy-1"].notes)
    (note,) = compare(old, new).notes
    assert note == "A was trained under definitions 1, B under 2: the difference may come from them"
    assert compare(new, again).notes == ()
    # Of two baselines of a seed the one of the same definitions is the one to compare with.
    both = under(run(tmp_path / "both", right(30, 30), seed=0), 2)
    pair = next(r for r in rows(tables(old, both, linear)["comparisons-1"]) if r["run"] == "linear")
    assert pair["baseline"] == "both"


@pytest.mark.parametrize("number", ['"x"', "0", "-1", "true", "1.5", "[2]"])
def test_definitions_that_are_none(tmp_path: Path, number: str) -> None:
    folder = under(run(tmp_path / "r", right(30, 30)), 1)
    file = folder / "config.toml"
    file.write_text(f"definitions = {number}\n" + file.read_text())
    result = CliRunner().invoke(cli, ["report", str(folder), "--out", str(tmp_path / "out")])
    assert "definitions" in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_rows_of_other_definitions_are_named(tmp_path: Path) -> None:
    old, new = (run(tmp_path / name, right(30, 30), seed=seed) for seed, name in enumerate(("old", "new")))
    note(new, "test", definitions=2)
    notes = tables(old, new)["accuracy-1"].notes
    assert any("The rows of test of old were made under older definitions" in text for text in notes)
    assert any("the rows of A were made under definitions 1" in text for text in compare(old, new).notes)
    said = CliRunner().invoke(cli, ["compare", str(old), str(new)]).stderr
    assert "note: the rows of A were made under definitions 1, those of B under 2" in said


def shown(*folders: Path) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """The settings that all runs share, and those in which they differ."""
    found = tables(*folders)
    return (
        {row["setting"]: row["value"] for row in rows(found["settings"])},
        rows(found["configurations"]) if "configurations" in found else [],
    )


def test_only_settings_that_a_method_uses_are_shown(tmp_path: Path) -> None:
    gpu = {"environment": {"cpu": "x", "gpu": "H100"}}
    cpu = {"environment": {"cpu": "x", "gpu": None}}
    shared = run(tmp_path / "shared", right(30, 30), method="shared", extra=cpu)
    alone, _ = shown(shared)
    assert (alone["epochs"], alone["device"]) == ("10", "cpu")
    for name in ("patience", "max_epochs", "restore_best", "amp", "threads", "quality", "step", "reduction"):
        assert name not in alone, name
    baseline = run(tmp_path / "baseline", right(30, 30), extra=cpu)
    fixed = run(tmp_path / "fixed", right(30, 30), method="fixed", extra=cpu)
    steps = run(tmp_path / "matched", right(30, 30), match="/gone", match_steps=72, extra=cpu)
    common, differing = shown(shared, baseline, fixed, steps)
    assert "epochs" not in common
    of_run = {row["run"]: row for row in differing}
    assert [of_run[n]["epochs"] for n in ("shared", "baseline", "fixed", "matched")] == [10, None, None, None]
    assert [of_run[n]["patience"] for n in ("shared", "baseline", "fixed", "matched")] == [None, 3, 3, None]
    assert [of_run[n]["quality"] for n in ("shared", "baseline", "fixed", "matched")] == [
        None,
        None,
        0.5,
        None,
    ]
    assert [of_run[n]["match_steps"] for n in ("baseline", "matched")] == [None, 72]
    assert "low" not in of_run["fixed"]
    assert "amp" not in common
    # On a GPU, and where a CPU was asked for it, precision is a setting.
    on_gpu = run(tmp_path / "gpu", right(30, 30), extra=gpu)
    asked = run(tmp_path / "asked", right(30, 30), extra=cpu, amp="bf16")
    assert (shown(on_gpu)[0]["amp"], shown(on_gpu)[0]["device"]) == ("auto", "cuda")
    assert shown(asked)[0]["amp"] == "bf16"


def test_a_p_value_below_five_percent_is_not_shown_as_five(tmp_path: Path) -> None:
    # b = 12, c = 24 of 36 discordant: χ² = 4, p = .0455; b = 89, c = 117: χ² = 3.806, p = .0511.
    base = run(tmp_path / "base", right(200, 200))
    starred = run(tmp_path / "starred", right(188, 12, 24, 176), method="fixed")
    plain = run(tmp_path / "plain", right(111, 89, 117, 83), method="random")
    # b = 42, c = 62: χ² = 3.846, p = .04986.
    close = run(tmp_path / "close", right(158, 42, 62, 138), method="linear")
    table = tables(base, starred, plain, close)["comparisons-1"]
    texts = {
        row[1].text: (row[table.columns.index("p")].text, row[-1].text)
        for row in table.rows
        if row[0].text == "test"
    }
    assert texts["starred"] == ("0.046", "*")
    assert texts["plain"] == ("0.051", "n.s.")
    assert texts["close"] == ("0.0499", "*")
    said = CliRunner().invoke(cli, ["compare", str(base), str(close)]).stderr
    assert "p = 0.0499 *" in said


def test_few_discordant_images_are_told(tmp_path: Path) -> None:
    base, four = run(tmp_path / "base", right(30, 30)), run(tmp_path / "four", right(34, 26), method="fixed")
    note = tables(base, four)["comparisons-1"].notes[-1]
    assert note.startswith("Fewer than 25 images tell the two apart")
    assert "four on test" in note
    assert compare(base, four).notes == ("only 4 images tell the two apart: the exact p is the one to go by",)


def test_a_baseline_of_another_start_is_told(tmp_path: Path) -> None:
    start = started(tmp_path, "shared", method="shared")
    base = run(tmp_path / "base", right(30, 30))
    linear = run(tmp_path / "linear", right(33, 27), method="linear", **start)
    assert any("began with another run" in text for text in tables(base, linear)["accuracy-1"].notes)
    same = run(tmp_path / "same", right(30, 30), **start)
    found = tables(base, same, linear)
    assert not any("began with another run" in text for text in found["accuracy-1"].notes)
    pair = next(r for r in rows(found["comparisons-1"]) if r["run"] == "linear")
    assert pair["baseline"] == "same"


GPU_RUN: dict[str, Any] = {"environment": {"cpu": "x", "gpu": "H100"}}
CPU_RUN: dict[str, Any] = {"environment": {"cpu": "x", "gpu": None}}
LEFT = ["device", "amp", "threads"]
# How the same run stands in config.toml: as older versions wrote it, and as it was resolved.
OF_GPU: list[dict[str, Any]] = [
    {},
    {"device": "cuda", "amp": "bf16", "threads": 16, "automatic": LEFT},
    {"device": "cuda", "amp": "fp16", "threads": 8, "automatic": LEFT},
]
OF_CPU: list[dict[str, Any]] = [
    {},
    {"device": "cpu"},
    {"device": "cpu", "amp": "off", "threads": 2, "automatic": LEFT},
    {"device": "cpu", "amp": "off", "threads": 3, "automatic": []},
]


@pytest.mark.parametrize(("extra", "forms"), [(GPU_RUN, OF_GPU), (CPU_RUN, OF_CPU)], ids=["GPU", "CPU"])
def test_runs_of_before_and_after_settings_were_resolved_are_one(
    tmp_path: Path, extra: dict[str, Any], forms: list[dict[str, Any]]
) -> None:
    folders = [
        run(tmp_path / f"r{i}", right(30, 30), seed=i, extra=extra, **form) for i, form in enumerate(forms)
    ]
    assert seeds(tables(*folders)["accuracy-1"]) == {"baseline": len(forms)}
    # And so are what they began with.
    starts = [
        started(tmp_path, f"s{i}", method="shared", seed=i, extra=extra, **form)
        for i, form in enumerate(forms)
    ]
    others = [run(tmp_path / f"o{i}", right(30, 30), seed=i, **start) for i, start in enumerate(starts)]
    assert seeds(tables(*others)["accuracy-1"]) == {"baseline": len(forms)}


def test_another_precision_is_another_configuration(tmp_path: Path) -> None:
    gpu = {"device": "cuda", "threads": 8, "automatic": ["threads"]}
    amps = ("bf16", "fp16", "off")
    folders = [
        run(tmp_path / amp, right(30, 30), seed=seed, extra=GPU_RUN, amp=amp, **gpu)
        for seed, amp in enumerate(amps)
    ]
    folders.append(run(tmp_path / "auto", right(30, 30), seed=3, extra=GPU_RUN, **OF_GPU[1]))
    # bf16 that was asked for is what auto chose.
    assert sorted(seeds(tables(*folders)["accuracy-1"]).values()) == [1, 1, 2]


@pytest.mark.parametrize(
    ("extra", "form", "digest"),
    [
        *((GPU_RUN, form, "bc2a6e5eef83") for form in OF_GPU),
        *((CPU_RUN, form, "2b0f8821595e") for form in OF_CPU),
        ({}, {}, "bc2a6e5eef83"),
        (GPU_RUN, {"amp": "bf16"}, "8521026b11d8"),
        (GPU_RUN, {"amp": "fp16"}, "b23587950d7f"),
        (GPU_RUN, {"amp": "off"}, "2b0f8821595e"),
    ],
)
def test_digests_that_runs_recorded_stay(
    tmp_path: Path, extra: dict[str, Any], form: dict[str, Any], digest: str
) -> None:
    """The digests are those that the version before computed from the same files."""
    images = fingerprints("a", "b")
    start = run(tmp_path / "s", right(30, 30), method="shared", extra={**images, **extra}, **form)
    init = chain_of(validate_settings({"method": "baseline", "data": "x", "init": str(start)})).init
    assert init is not None
    assert init.digest.startswith(digest)


def test_the_machine_does_not_choose_the_baseline(tmp_path: Path) -> None:
    """A run is compared with the baseline of the same settings, not with that of the same host."""
    new = OF_GPU[1]
    older = run(tmp_path / "older", right(30, 30), extra=GPU_RUN, lr=0.5)
    other = run(tmp_path / "other", right(30, 30), extra=GPU_RUN, lr=0.1, **new)
    linear = run(tmp_path / "linear", right(33, 27), method="linear", extra=GPU_RUN, lr=0.5, **new)
    pair = next(r for r in rows(tables(other, older, linear)["comparisons-1"]) if r["run"] == "linear")
    assert pair["baseline"] == "older"


def test_the_device_and_precision_that_a_run_had_are_shown(tmp_path: Path) -> None:
    new = shown(run(tmp_path / "new", right(30, 30), extra=GPU_RUN, **OF_GPU[1]))[0]
    assert (new["device"], new["amp"]) == ("cuda", "bf16")
    assert not {"threads", "automatic"} & new.keys()
    cpu = shown(run(tmp_path / "cpu", right(30, 30), extra=CPU_RUN, **OF_CPU[2]))[0]
    assert cpu["device"] == "cpu"
    assert "amp" not in cpu
    moved = shown(run(tmp_path / "moved", right(30, 30), extra=GPU_RUN, **OF_CPU[2]))[0]
    assert (moved["device"], moved["amp"]) == ("cuda, then cpu", "off")
    silent = shown(run(tmp_path / "silent", right(30, 30), **OF_CPU[2]))[0]
    assert silent["device"] == "cpu"
    assert "amp" not in silent


@pytest.mark.parametrize(("scaler", "amp"), [({}, "bf16"), ({"scale": 1024.0}, "fp16")])
def test_what_auto_was_for_an_older_run_of_a_gpu_is_in_its_checkpoint(
    tmp_path: Path, scaler: dict[str, Any], amp: str
) -> None:
    folder = run(tmp_path / "r", right(30, 30), extra=GPU_RUN)
    (folder / "last").mkdir()
    (folder / "last" / "state.json").write_text(json.dumps({"scaler": scaler}))
    assert shown(folder)[0]["amp"] == amp


def test_sets_of_a_cpu_have_no_precision(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", right(30, 30))
    known, sets = read_run(folder, "run", SilentListener().warn), []
    for name, device, amp in (("a", "cpu", "auto"), ("b", "cpu", "bf16"), ("c", "cuda", "auto")):
        made = fake_runs.mepis(tmp_path / name, folder, {"crop": {0: 0.5}}, 4, device=device, amp=amp)
        sets.append(read_mepis(made, name, [known]))
    table = searches(sets, "mepi-options")
    assert table is not None
    assert [row["amp"] for row in rows(table)] == [None, "bf16", "auto"]


def test_an_augmented_baseline_is_a_control_beside_a_plain_one(tmp_path: Path) -> None:
    extra = fingerprints("a")
    plain = run(tmp_path / "baseline", right(40, 20), extra=extra)
    rand = run(tmp_path / "baseline-randaugment", right(44, 16), extra=extra, auto_augment="rand-m9")
    fixed = run(
        tmp_path / "fixed",
        right(46, 14),
        extra=extra,
        method="fixed",
        reduction="crop",
        sequence="paired-epochs",
    )
    for folders in ((plain, rand, fixed), (fixed, rand, plain)):
        made = tables(*folders)
        (table,) = [t for t in made.values() if t.title == "Accuracy"]
        names = [row["method"] for row in rows(table)]
        assert sorted(names) == ["baseline", "baseline rand-m9", "fixed 0.5"]
        assert table.marked == {names.index("baseline")}
        (compared,) = [t for t in made.values() if t.title == "Comparisons with the baseline"]
        bases = {(row["run"], row["baseline"]) for row in rows(compared) if row["set"] == "test"}
        assert bases == {("baseline", None), ("baseline-randaugment", "baseline"), ("fixed", "baseline")}


def test_what_all_runs_are_augmented_by_is_the_recipe(tmp_path: Path) -> None:
    extra, recipe = fingerprints("a"), {"auto_augment": "rand-m7", "mixup": 0.1}
    base = run(tmp_path / "base", right(40, 20), extra=extra, **recipe)
    more = run(tmp_path / "more", right(44, 16), extra=extra, **recipe, cutmix=1.0)
    fixed = run(
        tmp_path / "fixed",
        right(46, 14),
        extra=extra,
        method="fixed",
        reduction="crop",
        sequence="paired-epochs",
        **recipe,
    )
    (compared,) = [
        t for t in tables(more, fixed, base).values() if t.title == "Comparisons with the baseline"
    ]
    bases = {(row["run"], row["baseline"]) for row in rows(compared) if row["set"] == "test"}
    assert bases == {("base", None), ("more", "base"), ("fixed", "base")}


def test_a_run_is_compared_with_the_baseline_that_is_augmented_as_it_is(tmp_path: Path) -> None:
    extra = fingerprints("a")
    # The control agrees with the fixed run in more of the other settings.
    plain = run(tmp_path / "plain", right(40, 20), extra=extra, patience=5, weight_decay=0.1)
    rand = run(tmp_path / "rand", right(44, 16), extra=extra, auto_augment="rand-m9")
    what = {"method": "fixed", "reduction": "crop", "sequence": "paired-epochs"}
    fixed = run(tmp_path / "fixed", right(46, 14), extra=extra, **what)
    augmented = run(tmp_path / "augmented", right(46, 14), extra=extra, auto_augment="rand-m9", **what)
    made = tables(plain, rand, fixed, augmented)
    (compared,) = [t for t in made.values() if t.title == "Comparisons with the baseline"]
    bases = {row["run"]: row["baseline"] for row in rows(compared) if row["set"] == "test"}
    assert (bases["fixed"], bases["augmented"]) == ("plain", "rand")
