"""The matrix: the runs of the shipped files, wrong files, patterns, epochs and times."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from qrdali.errors import InputError
from qrdali.experiment import estimate
from qrdali.experiment.config import Matrix, Network, read
from qrdali.experiment.estimate import Pace, Seconds, Work, declared, least, measured, most, span_text
from qrdali.experiment.expand import PlannedRun, expand, matches, select
from qrdali.runs.settings import validate_settings

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
REDUCTIONS = ["color", "crop", "resolution", "combination"]
ONE_NETWORK = [
    "shared",
    "baseline",
    "fixed-paired-epochs-color",
    "fixed-paired-epochs-crop",
    "fixed-paired-epochs-resolution",
    "fixed-paired-epochs-combination",
    "linear-paired-rounds-color",
    "linear-paired-rounds-crop",
    "linear-paired-rounds-resolution",
    "linear-paired-rounds-combination",
    "linear-paired-epochs-color",
    "linear-paired-epochs-crop",
    "linear-paired-epochs-resolution",
    "linear-paired-epochs-combination",
    "adaptive-paired-rounds-color",
    "adaptive-paired-rounds-crop",
    "adaptive-paired-rounds-resolution",
    "adaptive-paired-rounds-combination",
    "adaptive-paired-epochs-color",
    "adaptive-paired-epochs-crop",
    "adaptive-paired-epochs-resolution",
    "adaptive-paired-epochs-combination",
]
SMALL: dict[str, Any] = {"out": "o", "data": {"folder": "d"}, "network": [{"model": "test_resnet"}]}


def written(tmp_path: Path, **changes: Any) -> Path:
    file = tmp_path / "m.toml"
    file.write_text(tomli_w.dumps({**SMALL, **changes}))
    return file


def runs_of(tmp_path: Path, **changes: Any) -> list[PlannedRun]:
    return expand(read(written(tmp_path, **changes)), Path("d"))


def shipped(name: str) -> tuple[Matrix, list[PlannedRun]]:
    matrix = read(CONFIGS / f"{name}.toml")
    return matrix, expand(matrix, Path("d"))


@pytest.mark.parametrize(
    ("name", "networks"),
    [("humanet", ["squeezenet1_1", "resnet152", "efficientnet_b3"]), ("demo", ["test_resnet"])],
)
def test_a_whole_matrix(name: str, networks: list[str]) -> None:
    _, runs = shipped(name)
    assert [run.name for run in runs] == [f"{network}/{run}" for network in networks for run in ONE_NETWORK]
    assert len(runs) == 22 * len(networks)
    assert all(
        run.needs == (() if run.name.endswith("/shared") else (f"{run.network}/shared",)) for run in runs
    )


def test_humanet_is_as_the_slides_say() -> None:
    _, runs = shipped("humanet")
    run = next(run for run in runs if run.name == "efficientnet_b3/adaptive-paired-rounds-crop").settings
    assert (run.method, run.model, run.sequence, run.reduction) == (
        "adaptive",
        "efficientnet_b3",
        "paired-rounds",
        "crop",
    )
    assert (run.batch_size, run.patience, run.step, run.max_epochs, run.input_size, run.seed) == (
        32,
        3,
        0.25,
        300,
        300,
        0,
    )
    assert run.init == str(Path("humanet/runs/efficientnet_b3/shared").absolute())
    assert {run.settings.quality for run in runs if run.settings.method == "fixed"} == {0.5}


def test_imagenet_is_four_runs() -> None:
    matrix, runs = shipped("imagenet")
    assert [run.name for run in runs] == [
        f"efficientnet_b3/{name}"
        for name in ("shared", "baseline", "linear-paired-rounds-crop", "linear-paired-rounds-combination")
    ]
    assert runs[0].settings.epochs == 20
    assert sum(
        declared(matrix.network[0]).seconds(least(run.settings), run.settings.reduction) or 0 for run in runs
    ) == pytest.approx(20 * 7724 + 4 * 7724 + 12 * (7748 + 7724) + 12 * (8172 + 7724))


def test_the_same_four_by_patterns(tmp_path: Path) -> None:
    only = ["baseline", "linear-paired-rounds-crop", "linear-paired-rounds-combination"]
    assert [run.name for run in runs_of(tmp_path, runs={"only": only})] == [
        f"test_resnet/{name}" for name in ("shared", *only)
    ]


def test_settings_of_tables_and_their_order(tmp_path: Path) -> None:
    network = {
        "model": "torchvision/resnet18",
        "lr": 0.01,
        "epochs": 7,
        "batch_size": 4,
        "shared": {"lr": 0.1},
        "others": {"weight_decay": 0.0},
    }
    runs = runs_of(
        tmp_path,
        train={"patience": 2, "batch_size": 64, "max_epochs": 9},
        network=[network],
        runs={
            "methods": ["baseline", "fixed"],
            "reductions": ["crop"],
            "fixed": {"patience": 5, "sequences": ["CCR"]},
        },
    )
    assert [run.name for run in runs] == [
        "torchvision-resnet18/" + name for name in ("shared", "baseline", "fixed-CCR-crop")
    ]
    shared, baseline, fixed = (run.settings for run in runs)
    assert (shared.lr, shared.epochs, shared.batch_size, shared.weight_decay) == (0.1, 7, 4, 0.05)
    assert (baseline.lr, baseline.patience, baseline.weight_decay, baseline.max_epochs) == (0.01, 2, 0.0, 9)
    assert (fixed.sequence, fixed.patience, fixed.model) == ("CCR", 5, "torchvision/resnet18")


def test_seeds_and_controls(tmp_path: Path) -> None:
    runs = runs_of(
        tmp_path,
        seeds=[3, 5],
        runs={
            "methods": ["linear"],
            "sequences": ["paired-rounds"],
            "reductions": ["crop"],
            "controls": ["sham", "random", "matched"],
            "match": "linear-paired-rounds-crop",
            "random": {"low": 0.5},
        },
    )
    assert [run.name for run in runs[:5]] == [
        "test_resnet/seed-3/" + name
        for name in (
            "shared",
            "linear-paired-rounds-crop",
            "random-paired-epochs-crop",
            "sham-paired-rounds",
            "baseline-matched",
        )
    ]
    assert [run.settings.seed for run in runs] == [3] * 5 + [5] * 5
    assert runs[9].needs == ("test_resnet/seed-5/shared", "test_resnet/seed-5/linear-paired-rounds-crop")
    assert (runs[3].settings.method, runs[3].settings.reduction, runs[2].settings.low) == (
        "fixed",
        "none",
        0.5,
    )
    assert [run.name for run in select(runs, ["seed-5/*", "*/seed-5/baseline-*"][1:], "x")] == [
        "test_resnet/seed-5/" + name for name in ("shared", "linear-paired-rounds-crop", "baseline-matched")
    ]


def test_the_control_randaugment_is_the_baseline_with_a_policy(tmp_path: Path) -> None:
    table: dict[str, Any] = {
        "methods": ["baseline"],
        "controls": ["randaugment", "matched"],
        "match": "baseline-randaugment",
        "baseline": {"patience": 7, "lr": 0.01},
    }
    _, baseline, control, matched = runs_of(tmp_path, runs=table, train={"erase": 0.25})
    assert (control.name, control.needs) == ("test_resnet/baseline-randaugment", ("test_resnet/shared",))
    assert matched.needs == ("test_resnet/shared", control.name)
    assert control.settings.auto_augment == "rand-m9"
    assert control.settings.model_copy(update={"auto_augment": ""}) == baseline.settings
    assert (control.settings.patience, control.settings.erase) == (7, 0.25)
    table["randaugment"] = {"auto_augment": "trivial", "patience": 9}
    network = [{"model": "test_resnet", "others": {"auto_augment": "rand-m5"}}]
    _, baseline, control, _ = runs_of(tmp_path, runs=table, network=network)
    assert (baseline.settings.auto_augment, control.settings.auto_augment) == ("rand-m5", "trivial")
    assert (baseline.settings.patience, control.settings.patience) == (7, 9)
    assert (most(control.settings), least(control.settings)) == (Work("C" * 300), Work("C" * 10))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"runs": {"controls": ["randaugment"]}, "train": {"auto_augment": "rand-m9"}},
            ['"randaugment" with auto_augment =', "is the baseline itself"],
        ),
        (
            {"runs": {"controls": ["randaugment"], "randaugment": {"auto_augment": "none"}}},
            ["is the baseline itself"],
        ),
        (
            {"runs": {"controls": ["randaugment"], "randaugment": {"auto_augment": "rand"}}},
            ["baseline-randaugment", "auto_augment = 'rand'", "rand-mM"],
        ),
        (
            {"runs": {"controls": ["randaugment"], "randaugment": {"auto_augment": ["x"]}}},
            ["baseline-randaugment", "auto_augment"],
        ),
        (
            {"runs": {"controls": ["randaugment"], "randaugment": {"sequences": ["RC"]}}},
            ["runs.randaugment.sequences"],
        ),
        ({"surprise": 1}, ["surprise = 1", "Extra inputs"]),
        ({"evalaute": {}}, ["evalaute = {}", "near it: evaluate"]),
        ({"mepi": {"prefers": "entropy"}}, ["mepi.prefers = 'entropy'", "near it: prefer"]),
        ({"data": {"shapes": {"clases": 4}}}, ["data.shapes.clases = 4", "near it: classes"]),
        ({"network": [{"model": "a", "epoch": 3}]}, ["network.1.epoch = 3", "near it: epochs"]),
        ({"runs": {"methods": ["linaer"]}}, ["near it: linear"]),
        ({"train": {"lr_shedule": "wsd"}}, ["train.lr_shedule is no setting of a run; near it: lr_schedule"]),
        ({"train": {"lr_schedule": "cosin"}}, ["lr_schedule = 'cosin'", "near it: cosine"]),
        ({"network": []}, ["network = []"]),
        ({"network": [{"model": "a"}, {"model": "b", "lr": "fast"}]}, ["network.2.lr = 'fast'"]),
        ({"network": [{}]}, ["network.1.model is missing"]),
        ({"network": [{"model": "a"}, {"model": "A"}]}, ["give each [[network]] a name"]),
        ({"network": [{"model": "../.."}]}, ["give each [[network]] a name"]),
        ({"network": [{"model": "a", "name": "../x"}]}, ["network.1.name"]),
        (
            {"network": [{"model": "a", "shared": {"fit": "center"}}]},
            ["network.1.shared.fit", "put it in [train]"],
        ),
        ({"network": [{"model": "a", "epoch_seconds": -1}]}, ["epoch_seconds"]),
        ({"data": {}}, ["[data] needs one of two"]),
        ({"data": {"folder": "d", "shapes": {}}}, ["[data] needs one of two"]),
        ({"data": {"shapes": {"classes": 1}}}, ["data.shapes: classes is 1"]),
        ({"data": {"shapes": {"val": 0}}}, ["data.shapes.val = 0"]),
        ({"data": {"shapes": {"size": "5x"}}}, ["data.shapes.size"]),
        ({"seeds": [1, 1]}, ["seeds = [1, 1]", "twice"]),
        ({"seeds": [-1]}, ["seeds.1 = -1"]),
        ({"train": {"epohcs": 3}}, ["train.epohcs", "no setting"]),
        ({"train": {"seed": 3}}, ["train.seed", "by the matrix itself"]),
        ({"train": {"patience": 0}}, ["test_resnet/shared", "patience = 0"]),
        ({"train": {"max_epochs": 10**9}}, ["max_epochs = 1000000000"]),
        ({"train": {"step": 0.3}}, ["step 0.3"]),
        ({"runs": {"methods": ["linaer"]}}, ["runs.methods.1 = 'linaer'"]),
        ({"runs": {"sequences": ["RC/../x"]}}, ["runs.sequences.1"]),
        ({"runs": {"fixed": {"quality": 0.6}}}, ["fixed-paired-epochs-color", "quality 0.6"]),
        ({"runs": {"fixed": {"reduction": "crop"}}}, ["runs.fixed.reduction"]),
        ({"runs": {"baseline": {"sequences": ["RC"]}}}, ["runs.baseline.sequences"]),
        ({"runs": {"only": ["linear", "*"]}}, ["runs.only 'linear' names no run"]),
        ({"runs": {"controls": ["matched"]}}, ["runs.match"]),
        ({"runs": {"controls": ["matched"], "match": "shared"}}, ["runs.match = 'shared'"]),
        ({"evaluate": {"sets": {"test": "x"}}}, ["evaluate.sets.test"]),
        ({"evaluate": {"sets": {"a/b": "x"}}}, ["evaluate.sets"]),
        ({"evaluate": {"reduced": 0.6}}, ["evaluate.reduced: quality 0.6"]),
        ({"mepi": {"step": 0.3}}, ["mepi.step: step 0.3"]),
        ({"out": "a\u202eb", "x\u001b[1m": 1}, ["x?[1m"]),
        ({"seeds": list(range(9999)), "network": [{"model": f"m{i}"} for i in range(40)]}, ["at most 10000"]),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(
    changes: dict[str, Any], message: list[str], tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        runs_of(tmp_path, **changes)
    assert "\n" not in str(caught.value)
    for words in message:
        assert words in str(caught.value)


def test_patterns() -> None:
    assert matches("a/linear-crop", "linear-*")
    assert matches("a/linear-crop", "a/*")
    assert matches("a/seed-1/linear-crop", "a/*")
    assert matches("a/seed-1/linear-crop", "linear-cro?")
    assert not matches("a/linear-crop", "linear")
    assert not matches("a/linear-crop", "b/*")
    assert not matches("a/linear-crop", "LINEAR-*")


def settings(method: str, **values: Any) -> Any:
    return validate_settings({"method": method, "data": "d", "patience": 1, "max_epochs": 14, **values})


@pytest.mark.parametrize(
    ("method", "values", "short", "long", "probes"),
    [
        ("shared", {"epochs": 3}, "CCC", "CCC", (0, 0)),
        ("baseline", {}, "CC", "C" * 14, (0, 0)),
        ("fixed", {"sequence": "paired-epochs"}, "RCRC", "RC" * 7, (0, 0)),
        ("linear", {"sequence": "paired-rounds"}, "RRCCRRCCRRCC", "RRRRCCRRCCRRCC", (0, 0)),
        ("linear", {"sequence": "paired-rounds", "max_epochs": 5}, "RRCCR", "RRCCR", (0, 0)),
        # Each stage takes four epochs at least, so 6 begin two.
        # One dimension of step .25 has three moves and a last look.
        (
            "adaptive",
            {"sequence": "paired-rounds", "reduction": "crop", "max_epochs": 6},
            "RRCC",
            "RRRRCC",
            (1, 2),
        ),
        ("adaptive", {"sequence": "paired-rounds", "reduction": "crop"}, "RRCC", "R" * 12 + "CC", (1, 4)),
        (
            "adaptive",
            {"sequence": "paired-rounds", "reduction": "crop", "max_epochs": 99},
            "RRCC",
            "R" * 97 + "CC",
            (1, 4),
        ),
        (
            "adaptive",
            {"sequence": "RC", "reduction": "combination", "max_epochs": 99},
            "RCRC",
            "RC" * 49 + "R",
            (1, 10),
        ),
        ("adaptive", {"sequence": "RC", "reduction": "crop", "feedback": "online"}, "RCRC", "RC" * 7, (0, 0)),
    ],
)
def test_epochs_at_least_and_at_most(
    method: str, values: dict[str, Any], short: str, long: str, probes: tuple[int, int]
) -> None:
    low, high = least(settings(method, **values)), most(settings(method, **values))
    assert (low, low.probes) == (Work(short, probes[0]), probes[0])
    assert (len(high.phases), Counter(high.phases), high.probes) == (len(long), Counter(long), probes[1])


def test_seconds() -> None:
    pace = Pace({"full": 10.0, "crop": 12.0}, {"color": 3.0})
    assert pace.seconds(Work("RCC"), "crop") == 32
    assert pace.seconds(Work("RCC", 2), "color") == 36
    assert pace.seconds(Work("", 1), "crop") == pytest.approx(15.1)
    assert Pace({}, {}).seconds(Work("C"), "crop") is None
    assert declared(Network(model="m", epoch_seconds=4)).seconds(Work("RC"), "crop") == 8


def test_the_pace_of_finished_runs_counts_before_the_files(tmp_path: Path) -> None:
    rows = [
        {"epoch": 0, "phase": "start"},
        {"epoch": 1, "phase": "reduced", "seconds": 3.0, "probe_seconds": 9.0},
        {"epoch": 2, "phase": "full", "seconds": 1.0},
        {"epoch": 3, "phase": "full", "seconds": 3.0},
    ]
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"epoch": 4, "phase": "full", "seco']))
    pace = measured([(tmp_path, "crop")], Pace({"full": 100.0, "color": 150.0}, {"color": 50.0}))
    assert pace == Pace({"full": 2.0, "crop": 3.0, "color": 3.0}, {"crop": 9.0, "color": 1.0}, True)
    assert len(estimate.rows(tmp_path)) == 4
    assert measured([(tmp_path / "none", "crop")], Pace({"full": 7.0}, {})) == Pace({"full": 7.0}, {})


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (None, 1.0, "time unknown"),
        (20.0, 20.2, "20 s"),
        (119.0, 121.0, "119 s to 2.0 min"),
        (7_100.0, 7_200.0, "118 min to 2.0 h"),
        (90_000.0, 900_000.0, "25 h to 10 days"),
        (172_800.0, 172_800.0, "2.0 days"),
    ],
)
def test_spans(low: float | None, high: float | None, message: str) -> None:
    assert span_text(Seconds(low, high)) == message


@pytest.mark.parametrize("given", ["run", "run/config.toml", "data"])
def test_what_is_no_experiment_is_told_what_it_is(tmp_path: Path, given: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.toml").write_text('method = "shared"\nmodel = "resnet18"\n')
    (tmp_path / "data").mkdir()
    (tmp_path / "data/classes.tsv").write_text("label\tname\n0\ta\n")
    run, data = tmp_path / "run", tmp_path / "data"
    resume = f"`qrdali train --resume --run {run}`"
    goes_on = f"{resume} goes on with it; reproduce takes an experiment's TOML file"
    said = {
        "run": f"{run} is a run: {goes_on}",
        "run/config.toml": f"{run}/config.toml has the settings of one run: {goes_on}",
        "data": f"{data} is a data set: give an experiment's TOML file, and this as --data {data}",
    }
    with pytest.raises(InputError) as error:
        read(tmp_path / given)
    assert str(error.value) == said[given]
