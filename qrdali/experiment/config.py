"""The experiment matrix as its TOML file has it: networks, methods, sequences, reductions, and what is made
of their runs.

Paths in the file are relative to the working directory, as everywhere in qrdali. `expand` turns a matrix into
runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from qrdali.data.shapes import ShapesSpec
from qrdali.data.suite_names import check_suites
from qrdali.errors import InputError, printable
from qrdali.experiment.adopted import adopt_request, is_adopting
from qrdali.experiment.config_mistakes import first_mistake
from qrdali.reduction.quality import LevelScale, level_of, num_levels_of, tail_levels
from qrdali.runs import settings as run_settings
from qrdali.runs.number_or_word import NumberOrWord
from qrdali.runs.setting_table import near_names
from qrdali.runs.settings import Settings

Reduction = Literal["color", "crop", "resolution", "combination"]
ALL_REDUCTIONS: list[Reduction] = ["color", "crop", "resolution", "combination"]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Sequence = Annotated[str, StringConstraints(pattern=r"^(paired-epochs|paired-rounds|[RC]{1,40})$")]
Split = Literal["train", "val", "test"]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
# Settings of a run that the matrix itself makes, and those that one network's runs must share: no table may
# change them.
FIXED_KEYS = (
    "method",
    "data",
    "model",
    "init",
    "match",
    "match_steps",
    "reduction",
    "sequence",
    "seed",
    "input_size",
)
COMMON_KEYS = ("fit", "device", "amp")


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Shapes(_Table):
    """Says which pictures to generate, numbers per class; the options of `qrdali data shapes`."""

    classes: int = 20
    train: int = 50
    val: int = 10
    test: int = 10
    size: Annotated[str, StringConstraints(pattern=r"^\d{2,4}x\d{2,4}$")] = "160x120"
    seed: int = 0

    def spec(self) -> ShapesSpec:
        """Returns the pictures' specification. Raises InputError for numbers that are out of range."""
        width, height = map(int, self.size.split("x"))
        try:
            return ShapesSpec(self.classes, self.train, self.val, self.test, (width, height), self.seed)
        except InputError as error:
            raise InputError(f"data.shapes: {str(error).removeprefix('--')}") from None


class Data(_Table):
    """Names an indexed data set's folder, or the pictures to generate and index."""

    folder: str = ""
    shapes: Shapes | None = None


class Network(_Table):
    """Holds a network and what its runs differ in from [train].

    epochs: of the shared run. shared, others: settings of the shared run and of the runs that start from it;
    or `shared` says what is adopted in place of a shared run that is trained: adopt = the model, weights,
    classes, mean, std and interpolation, as of `qrdali adopt`. shared = { init = RUN } fine-tunes the network
    of another run, an adopted one for instance.
    gpus: how many GPUs its training, evaluation and MEPI sets share, each in a process of its own.
    epoch_seconds: of a training epoch, one number or by "full" and reduction. probe_seconds: of an adaptive
    run's probe of all images before a stage, by reduction. Both are guesses until a run has been measured.
    """

    model: str
    name: Name | None = None
    input_size: int = Field(default=0, ge=0, le=4096)
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    gpus: int = Field(default=1, ge=1, le=64)
    shared: dict[str, Any] = {}
    others: dict[str, Any] = {}
    epoch_seconds: Seconds | dict[Literal["full", "color", "crop", "resolution", "combination"], Seconds] = {}
    probe_seconds: dict[Reduction, Seconds] = {}

    @property
    def is_adopted(self) -> bool:
        """Returns whether the shared run is adopted."""
        return is_adopting(self.shared)

    @property
    def folder(self) -> str:
        """Returns `name`, or the model's with what a folder's name should not hold replaced."""
        return self.name or re.sub(r"[^A-Za-z0-9._-]+", "-", self.model).strip(".-")[:100]


class Method(BaseModel):
    """Holds settings of one method's runs, any of a run's config.toml; `sequences` in place of those of all
    methods.
    """

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    sequences: list[Sequence] | None = Field(default=None, min_length=1)

    def settings(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Runs(_Table):
    """Says which runs each network has besides `shared`.

    match: the run whose optimizer steps the control "matched" takes. only: patterns of the runs that are
    wanted of all these. fixed and random have paired epochs where their table does not say otherwise. The
    control "randaugment" is the baseline, with the baseline's table, and auto_augment rand-m9 unless its own
    table has another.
    """

    methods: list[Literal["baseline", "fixed", "linear", "adaptive"]] = [
        "baseline",
        "fixed",
        "linear",
        "adaptive",
    ]
    sequences: list[Sequence] = Field(default=["paired-rounds", "paired-epochs"], min_length=1)
    reductions: list[Reduction] = Field(default=ALL_REDUCTIONS, min_length=1)
    controls: list[Literal["sham", "random", "matched", "randaugment"]] = []
    match: str = ""
    only: list[str] = []
    shared: Method = Method()
    baseline: Method = Method()
    fixed: Method = Method()
    linear: Method = Method()
    adaptive: Method = Method()
    sham: Method = Method()
    random: Method = Method()
    matched: Method = Method()
    randaugment: Method = Method()


class Evaluate(_Table):
    """Says what every run's best/ is evaluated on.

    sets: folders by name. suites: folders of published suites, as `evaluate --suite` takes them. reduced:
    quality at which the splits are evaluated too. curve: whether accuracy is also measured at every quality
    of curve_step and of curve_tail, which is that of the MEPI sets where it is not given.
    """

    splits: list[Split] = Field(default=["test"], min_length=1)
    sets: dict[Name, str] = {}
    suites: dict[Name, str] = {}
    reduced: float | None = Field(default=None, gt=0, lt=1)
    curve: bool = False
    curve_step: float = 0.25
    curve_tail: NumberOrWord | None = None


class Mepi(_Table):
    """Says of which runs minimal images are built (patterns); the options are those of `build-mepi`.

    tail: None for that of the folder, which is "full" where it is new.
    """

    runs: list[str] = []
    split: Split = "val"
    reductions: list[Reduction] = Field(default=ALL_REDUCTIONS, min_length=1)
    step: float = 0.05
    tail: NumberOrWord | None = None
    windows: Literal[5, 9] = 5
    prefer: Literal["confidence", "entropy"] = "confidence"
    limit: int | None = Field(default=None, ge=1)


class Report(_Table):
    """Says whether a report is made at the end, and of which runs (patterns)."""

    make: bool = True
    runs: list[str] = Field(default=["*"], min_length=1)


class Matrix(_Table):
    """Holds the whole file."""

    out: str = Field(min_length=1)
    seeds: list[Annotated[int, Field(ge=0, lt=2**63)]] = Field(default=[0], min_length=1)
    data: Data = Data()
    train: dict[str, Any] = {}
    network: list[Network] = Field(min_length=1)
    runs: Runs = Runs()
    evaluate: Evaluate = Evaluate()
    mepi: Mepi = Mepi()
    report: Report = Report()


def read(file: Path, *, out: str | None = None, data: str | None = None) -> Matrix:
    """Returns the matrix in a TOML file; `out` and `data` (a data set's folder) take the place of its own.

    Raises InputError naming the first key that is wrong, its value and the rule.
    """
    _require_no_folder(file)
    values = run_settings.read_toml(file)
    _require_no_run(file, values)
    if out is not None:
        values["out"] = out
    if data is not None:
        values["data"] = {"folder": data}
    try:
        matrix = Matrix(**values)
    except (ValidationError, TypeError) as error:
        raise InputError(f"{printable(file)}: {first_mistake(error, Matrix)}") from None
    try:
        _check(matrix)
    except InputError as error:
        raise InputError(f"{printable(file)}: {error}") from None
    return matrix


def _require_no_folder(file: Path) -> None:
    """Raises InputError for a run's or a data set's folder, saying what takes it."""
    where = printable(file)
    if (file / "config.toml").is_file():
        raise InputError(f"{where} is a run: {_goes_on(file)}")
    if (file / "classes.tsv").is_file():
        raise InputError(f"{where} is a data set: give an experiment's TOML file, and this as --data {where}")


def _require_no_run(file: Path, values: dict[str, Any]) -> None:
    """Raises InputError for the settings that a run keeps."""
    if "method" in values and "network" not in values:
        raise InputError(f"{printable(file)} has the settings of one run: {_goes_on(file.parent)}")


def _goes_on(run: Path) -> str:
    return (
        f"`qrdali train --resume --run {printable(run)}` goes on with it; reproduce takes an experiment's "
        "TOML file"
    )


def _check(matrix: Matrix) -> None:
    """Raises InputError for what is right key by key and wrong together."""
    _check_data(matrix)
    _check_network_names(matrix)
    _check_repetitions(matrix)
    _check_tables(matrix)
    _check_runs(matrix.runs)
    _check_evaluation(matrix)
    if "\0" in matrix.out:
        raise InputError("out holds a NUL character: no folder can have that name")


def _check_data(matrix: Matrix) -> None:
    if bool(matrix.data.folder) == (matrix.data.shapes is not None):
        raise InputError(
            "[data] needs one of two: folder = a data set made by `qrdali data index`, or [data.shapes]"
        )
    if matrix.data.shapes is not None:
        spec = matrix.data.shapes.spec()
        empty = next(
            (split for split in ("train", "val", *matrix.evaluate.splits) if not getattr(spec, split)), ""
        )
        if empty:
            raise InputError(f"data.shapes.{empty} = 0: this matrix needs pictures of {empty}")


def _check_network_names(matrix: Matrix) -> None:
    folders = [network.folder.lower() for network in matrix.network]
    for network in matrix.network:
        if not network.folder or folders.count(network.folder.lower()) > 1:
            raise InputError(
                f"more than one network, or none, can be called {printable(network.folder)!r}: give each "
                "[[network]] a name"
            )


def _check_repetitions(matrix: Matrix) -> None:
    lists: dict[str, list[Any]] = {
        "seeds": matrix.seeds,
        "runs.methods": matrix.runs.methods,
        "runs.sequences": matrix.runs.sequences,
        "runs.reductions": matrix.runs.reductions,
        "runs.controls": matrix.runs.controls,
        "evaluate.splits": matrix.evaluate.splits,
        "mepi.reductions": matrix.mepi.reductions,
    }
    lists |= {f"runs.{name}.sequences": method.sequences or [] for name, method in _methods(matrix)}
    for key, values in lists.items():
        if len(set(values)) < len(values):
            raise InputError(f"{key} = {printable(values):.80}: something stands there twice")


def _check_tables(matrix: Matrix) -> None:
    """Raises InputError for a key that is not a run's setting, or that no table of its kind may hold."""
    tables: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {"train": (matrix.train, ())}
    for number, network in enumerate(matrix.network, 1):
        trained = ("others",) if network.is_adopted else ("shared", "others")
        tables |= {f"network.{number}.{key}": (getattr(network, key), COMMON_KEYS) for key in trained}
        if network.is_adopted:
            _check_adopted(network, number, matrix)
    tables |= {f"runs.{name}": (method.settings(), COMMON_KEYS) for name, method in _methods(matrix)}
    for name, (table, common) in tables.items():
        for key in table:
            if key == "init" and name.endswith(".shared") and name != "runs.shared":
                continue
            if key in FIXED_KEYS or key not in Settings.model_fields:
                near = near_names(key, Settings.model_fields)
                why = "is set by the matrix itself" if key in FIXED_KEYS else f"is no setting of a run{near}"
                raise InputError(f"{name}.{printable(key)} {why}: leave it out")
            if key in common:
                raise InputError(
                    f"{name}.{key} would differ between the runs of a network: put it in [train]"
                )


def _check_adopted(network: Network, number: int, matrix: Matrix) -> None:
    """Raises InputError for a shared run that is adopted and cannot be, or that is to be trained too."""
    if network.epochs is not None:
        raise InputError(
            f"network.{number}.epochs = {network.epochs}: the shared run is adopted, not trained: leave "
            "it out"
        )
    try:
        adopt_request(
            network.shared, network.model, network.input_size, str(matrix.train.get("fit", "whole"))
        )
    except InputError as error:
        raise InputError(f"network.{number}.{error}") from None


def _check_runs(runs: Runs) -> None:
    for name in ("shared", "baseline", "matched", "randaugment"):
        if getattr(runs, name).sequences:
            raise InputError(f"runs.{name}.sequences: these runs have full-quality epochs only, leave it out")
    if ("matched" in runs.controls) != bool(runs.match):
        raise InputError(
            'runs.match = RUN and "matched" in runs.controls belong together: the run whose optimizer steps '
            "are taken"
        )


def _check_evaluation(matrix: Matrix) -> None:
    check_suites(matrix.evaluate.suites, matrix.evaluate.sets)
    if matrix.evaluate.sets:
        from qrdali.data.set_names import check_set_name
    for name, folder in matrix.evaluate.sets.items():
        check_set_name(name, f"evaluate.sets.{name}")
        if not folder:
            raise InputError(f"evaluate.sets.{name} is empty: give a folder of class folders")
    for key, step in (("evaluate.curve_step", matrix.evaluate.curve_step), ("mepi.step", matrix.mepi.step)):
        try:
            num_levels_of(step)
        except InputError as error:
            raise InputError(f"{key}: {error}") from None
    for key, tail in (("evaluate.curve_tail", matrix.evaluate.curve_tail), ("mepi.tail", matrix.mepi.tail)):
        try:
            tail_levels(tail or "none")
        except InputError as error:
            raise InputError(f"{key}: {error}") from None
    if matrix.evaluate.reduced is not None:
        try:
            level_of(matrix.evaluate.reduced, LevelScale(4))
        except InputError as error:
            raise InputError(f"evaluate.reduced: {error}") from None


def _methods(matrix: Matrix) -> Iterable[tuple[str, Method]]:
    return (
        (name, value) for name in Runs.model_fields if isinstance(value := getattr(matrix.runs, name), Method)
    )
