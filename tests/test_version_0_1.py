"""What version 0.1 left on the disk is read, resumed, evaluated and reported by this one.

`fixtures/v0_1` is that version's own work, made and stopped there; `expected.json` is what it made of it when
it went on itself. Everything goes through the command line. The paths in the fixtures begin with
/proc/self/cwd, the working directory, so that the files serve unchanged wherever they are copied to.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from PIL import features

from qrdali.cli.main import cli

FIXTURES = Path(__file__).parent / "fixtures" / "v0_1"
RUNS = "experiment/runs/test_efficientnet"
SHARED, LINEAR = f"{RUNS}/shared", f"{RUNS}/linear-paired-rounds-crop"
INDEXED, PICTURES = "/proc/self/cwd/data", "/proc/self/cwd/experiment/images"

COMMON = f"--data {INDEXED} --device cpu --threads 1 --batch-size 4"
ADAPTIVE = f"""
    train adaptive {COMMON} --run adaptive --init /proc/self/cwd/{SHARED} --optimizer adafactor --lr 1e-4
    --reduction crop --sequence paired-rounds --patience 1 --max-epochs 10 --seed 13 --max-bad 10%
    --track-set seen={PICTURES}/val --track-reduced 0.5 --resume
""".split()
MEPIS = f"""
    build-mepi {COMMON} --run /proc/self/cwd/{SHARED} --out mepi --split train --step 0.1 --limit 12
""".split()
EVALUATE = f"evaluate {COMMON}".split()

# What an epoch's line counts, and what it measures of the network; times, memory and machine are left out.
COUNTED = ["epoch", "phase", "stage", "quality", "quarantined", "levels", "classes", "images", "source"]
COUNTED += ["optimizer_steps", "forward_images", "moved", "probe_candidates"]
MEASURED = ["train_loss", "train_accuracy", "val_accuracy", "tracked"]
# By a part of a float's place; an image of 12 or 23 may be seen otherwise by another processor.
TOLERANCES = {"accuracy": 0.09, "tracked": 0.09, "train_loss": 0.01, "confidence": 0.01}
# Settings that are younger than others: a run may have been begun before there were any.
YOUNG = ["root", "probe_batch_size", "accumulate", "ema", "sync_batch_norm", "save_every", "deterministic"]
YOUNG += ["max_bad", "track_reduced", "[track_sets]"]


def run(*words: object) -> Result:
    """A command, in this process."""
    return CliRunner().invoke(cli, [str(word) for word in words])


def done(*words: object) -> Result:
    """A command that ends well."""
    result = run(*words)
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def told(*words: object) -> Any:
    """What a command prints with --json."""
    return json.loads(done(*words, "--json").stdout)


def copy(source: Path, folder: Path) -> None:
    """Copies the fixtures, with the times of files that the experiment has noted: no checkout keeps those."""
    shutil.copytree(source, folder)
    for key, note in json.loads((folder / "experiment/done.json").read_text()).items():
        place = folder / "experiment/runs" / key.partition(" ")[2]
        seen = {f"predictions/{name}.parquet": file for name, file in note.get("files", {}).items()}
        if isinstance(note.get("weights"), list):
            seen["best/model.safetensors"] = note["weights"]
        for name, (size, time) in seen.items():
            assert (place / name).stat().st_size == size
            os.utime(place / name, ns=(time, time))


def epochs(folder: str) -> list[dict[str, Any]]:
    """Every epoch's line of a run, without what differs from one time to the next."""
    lines = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in (*COUNTED, *MEASURED) if key in line} for line in lines]


def rows(file: str) -> Any:
    """The rows of a Parquet file as plain data."""
    return pq.read_table(file).to_pylist()


def of_data() -> Any:
    return {name: told("data", "info", name) for name in ("data", "experiment/data")}


def of_adaptive() -> Any:
    assert "continuing" in done(*ADAPTIVE).output
    return epochs("adaptive")


def of_linear() -> Any:
    settings = ["--config", f"{LINEAR}/config.toml", "--data", "/proc/self/cwd/experiment/data"]
    assert "continuing" in done("train", "linear", *settings, "--run", LINEAR, "--resume").output
    return epochs(LINEAR)


def of_init() -> Any:
    done("train", "baseline", *COMMON.split(), "--run", "new", "--init", SHARED, "--max-epochs", 1)
    return epochs("new")


def of_evaluation() -> Any:
    found = {}
    for name in (SHARED, "adaptive"):
        result = told(*EVALUATE, "--run", name)
        made = rows(f"{name}/predictions/test.parquet")
        found[name] = {"images": result["images"], "correct": result["correct"], "rows": made}
    return found


def of_comparison() -> Any:
    return told("compare", SHARED, "adaptive")


def of_mepis() -> Any:
    summary = told(*MEPIS, "--reduction", "crop", "--resume")["crop"]
    kept = ("images", "without_mepi", "unreadable", "returned", "lowest_state")
    return {"rows": rows("mepi/manifest.parquet"), "summary": {key: summary[key] for key in kept}}


def of_report() -> Any:
    tables = told("report", SHARED, "adaptive", LINEAR, "--mepi", "mepi", "--out", "report")["tables"]
    names = ("accuracy-1", "comparisons-1", "quotients-1", "quotients-by-class-1")
    added = tables["quotients-1"]["columns"].index("mean of the others")  # by a later version
    for row in tables["quotients-1"]["rows"]:
        del row[added]
    return {name: tables[name]["rows"] for name in names}


def states() -> list[list[str]]:
    tasks = told("reproduce", "experiment.toml", "--dry-run")["tasks"]
    return [[task["kind"], task["name"], task["state"]] for task in tasks]


def of_experiment() -> Any:
    before = states()
    said = done("reproduce", "experiment.toml").output
    begun = [line.partition("] ")[2] for line in said.splitlines() if line.startswith("[")]
    return {"before": before, "begun": begun, "after": states(), "linear": epochs(LINEAR)}


# What fixtures/v0_1/make.py asks of version 0.1, each time with a fresh copy as the working directory.
FACTS: dict[str, Callable[[], Any]] = {
    "data": of_data,
    "adaptive": of_adaptive,
    "linear": of_linear,
    "init": of_init,
    "evaluation": of_evaluation,
    "comparison": of_comparison,
    "mepis": of_mepis,
    "report": of_report,
    "experiment": of_experiment,
}


@pytest.fixture
def expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What version 0.1 made of the fixtures; a copy of them is the working directory."""
    copy(FIXTURES, tmp_path / "v0_1")
    monkeypatch.chdir(tmp_path / "v0_1")
    return json.loads(Path("expected.json").read_text())


def agree(found: Any, expected: Any, where: str = "") -> None:
    """Requires the same whole numbers, texts and order, and floats as near as those of two processors.

    What is found may tell more than what is expected.
    """
    if isinstance(expected, dict):
        assert expected.keys() <= found.keys(), where
        for key, value in expected.items():
            agree(found[key], value, f"{where} {key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for number, value in enumerate(expected):
            agree(found[number], value, f"{where} {number}")
    elif isinstance(expected, float):
        tolerance = next((value for key, value in TOLERANCES.items() if key in where), 1e-9)
        assert found == pytest.approx(expected, rel=1e-9, abs=tolerance), where
    else:
        assert (type(found), found) == (type(expected), expected), where


def agree_until_definitions_change(folder: str, expected: Any, first: int) -> None:
    """Requires version 0.1's own epochs before `first`, which is the first one by today's definitions.

    The epoch in which a run was stopped is ended by the definitions under which it was begun."""
    found = epochs(folder)
    agree(found[:first], expected[:first])
    lines = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if "definitions" in line] == [first]
    assert lines[first]["definitions"] == 2
    assert "definitions = 1" in Path(folder, "config.toml").read_text()


def stamps(folder: str) -> dict[Path, int]:
    """When each file of a folder was last written; locks are not looked at."""
    return {
        path: path.stat().st_mtime_ns
        for path in Path(folder).rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_data_sets_are_read(expected: Any) -> None:
    agree(of_data(), expected["data"])
    done("data", "verify", "data", "--hash")
    done("data", "verify", "experiment/data")


def test_images_that_have_moved_are_found(expected: Any) -> None:
    Path("experiment/images").rename("moved")
    assert run("data", "verify", "data").exit_code == 1
    done("data", "verify", "data", "--root", "moved")
    done("data", "verify", "experiment/data", "--root", f"{PICTURES}={Path.cwd() / 'moved'}")
    made = told(*EVALUATE, "--run", SHARED, "--root", "moved")["rows"]
    agree(rows(made), expected["evaluation"][SHARED]["rows"])
    done(*MEPIS, "--reduction", "crop", "--resume", "--root", "moved")


def test_a_run_with_levels_goes_on(expected: Any) -> None:
    """It was stopped in its second stage, has lost an image, and goes back to weights that it has kept."""
    levels = {file: file.read_bytes() for file in Path("adaptive/levels").iterdir()}
    assert len(levels) == 4
    assert of_adaptive()
    agree_until_definitions_change("adaptive", expected["adaptive"], 10)
    assert {file: file.read_bytes() for file in levels} == levels


@pytest.mark.parametrize("older", [False, True])
def test_a_run_with_the_default_optimizer_goes_on(expected: Any, older: bool) -> None:
    """With `older`, as if it had been begun before some settings and the hashes of saved files existed."""
    config = Path(LINEAR, "config.toml")
    whole = config.read_text()
    if older:
        kept = [line for line in whole.splitlines() if line and line.split()[0] not in YOUNG]
        config.write_text("\n".join(kept) + "\n")
        for file in Path("experiment/runs").rglob("SHA256SUMS"):
            file.unlink()
        agree(states(), expected["experiment"]["before"])
    assert of_linear()
    agree_until_definitions_change(LINEAR, expected["linear"], 2)
    after = set(config.read_text().splitlines())
    assert set(whole.splitlines()) - after == {'amp = "auto"'}
    assert 'amp = "off"' in after  # what auto was on the CPU that trained it


def test_a_finished_run_is_left_alone(expected: Any) -> None:
    before = stamps(SHARED)
    settings = ["--config", f"{SHARED}/config.toml", "--data", "/proc/self/cwd/experiment/data"]
    assert "nothing to do" in done("train", "shared", *settings, "--run", SHARED, "--resume").output
    assert stamps(SHARED) == before


def test_a_new_run_starts_from_an_old_one(expected: Any) -> None:
    """What it trains is drawn by definitions 2, after the start's own epochs."""
    agree(of_init()[:1], expected["init"][:1])
    config = Path("new/config.toml").read_text()
    assert "definitions = 2" in config
    trained = [json.loads(line)["epoch"] for line in Path(SHARED, "metrics.jsonl").read_text().splitlines()][
        -1
    ]
    assert f"epochs_before = {trained}" in config


def test_runs_are_evaluated_and_compared(expected: Any) -> None:
    agree(of_comparison(), expected["comparison"])  # of rows that version 0.1 has written
    agree(of_evaluation(), expected["evaluation"])
    agree(of_comparison(), expected["comparison"])


def test_mepis_are_completed(expected: Any) -> None:
    options = Path("mepi/options.json")
    before, encoder = (
        json.loads(options.read_text()),
        f"Pillow {PIL.__version__}, zlib {features.version('zlib')}",
    )
    if before["encoder"] != encoder:  # entropies are an encoder's, and no set is continued with another
        options.write_text(json.dumps({**before, "encoder": encoder}))
        for row in expected["mepis"]["rows"]:
            del row["entropy_full"], row["entropy_mepi"], row["quotient"]
    kept = stamps("mepi/color")
    assert "color is finished; nothing to do" in done(*MEPIS, "--reduction", "color", "--resume").output
    found, color = of_mepis(), [row for row in expected["mepis"]["rows"] if row["reduction"] == "color"]
    # What version 0.1 had finished is as it was; the rest has been searched under today's definitions.
    agree([row for row in found["rows"] if row["reduction"] == "color"], color)
    assert found["summary"]["images"] == expected["mepis"]["summary"]["images"]
    assert json.loads(options.read_text())["continued_under"] == 2
    assert stamps("mepi/color") == kept
    assert "crop is finished; nothing to do" in done(*MEPIS, "--reduction", "crop", "--resume").output
    for name in ("color", "crop"):
        result = told(*EVALUATE, "--run", SHARED, "--set", f"mepi-{name}=mepi/{name}")["sets"][f"mepi-{name}"]
        assert result["correct"] == result["images"] == 11


def test_runs_and_mepis_are_reported(expected: Any) -> None:
    agree(of_report(), expected["report"])
    assert "linear-paired-rounds-crop" in Path("report/report.html").read_text()


def test_an_experiment_goes_on(expected: Any) -> None:
    """One of its runs had been stopped, an evaluation had failed, and what was done is not done again."""
    finished = stamps(SHARED)
    found = of_experiment()
    for key in ("before", "begun", "after"):
        agree(found[key], expected["experiment"][key])
    agree_until_definitions_change(LINEAR, expected["experiment"]["linear"], 2)
    assert stamps(SHARED) == finished
    # Notes of that version stay as they are; a task's own note is the newer one.
    (old,) = json.loads(Path("experiment/failures.json").read_text())
    assert not list(Path("experiment/tasks").glob("*/failed.json"))
    note = Path("experiment/tasks", old.replace(" ", "+").replace("/", "+"), "done.json")
    assert len(json.loads(note.read_text())["failed_before"]) == 1
    assert Path("experiment/report/report.html").is_file()


def test_an_experiment_whose_files_have_other_times_is_evaluated_again(expected: Any) -> None:
    for file in Path("experiment/runs").rglob("*.*"):
        file.touch()
    before = {(kind, name): state for kind, name, state in expected["experiment"]["before"]}
    again = {
        ("evaluate", "test_efficientnet/shared"): "waiting",
        ("mepi", "test_efficientnet/shared"): "begun",
    }
    assert {(kind, name): state for kind, name, state in states()} == {**before, **again}
