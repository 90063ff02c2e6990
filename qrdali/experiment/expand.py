"""Expands an experiment matrix to its runs: names, settings, order and patterns. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from qrdali.data import storage
from qrdali.errors import InputError, printable
from qrdali.experiment.adopted import adopt_request
from qrdali.experiment.config import Matrix, Method, Network
from qrdali.runs import settings as run_settings
from qrdali.runs.adoption import AdoptRequest
from qrdali.runs.settings import Settings
from qrdali.schedule.methods import check_settings

MOST_RUNS, MOST_EPOCHS = 10_000, 100_000
RANDAUGMENT = "rand-m9"  # of the control "randaugment": RandAugment's usual magnitude


@dataclass(frozen=True)
class PlannedRun:
    """Names a run of the matrix, trained or not, and its settings.

    name: NETWORK/RUN, or NETWORK/seed-N/RUN where there are several seeds; also its folder below runs/.
    values: for `validate_settings`. needs: names of the runs that must be finished first. adopt: what is
    adopted in place of training; `values` then say how the run is evaluated.
    """

    name: str
    network: str
    values: dict[str, Any]
    needs: tuple[str, ...] = ()
    adopt: AdoptRequest | None = None

    @property
    def settings(self) -> Settings:
        """Returns the run's settings. Raises InputError naming the run and the setting."""
        try:
            settings = run_settings.validate_settings(self.values)
            for key in ("epochs", "max_epochs"):
                if getattr(settings, key) > MOST_EPOCHS:
                    raise InputError(f"{key} = {getattr(settings, key)}: at most {MOST_EPOCHS}")
            check_settings(settings)
            return settings
        except InputError as error:
            raise InputError(f"run {printable(self.name)}: {error}") from None


def matches(name: str, pattern: str) -> bool:
    """Returns whether a shell pattern (* ? []) matches a run: its whole name, or, without a slash, its last
    part.
    """
    return fnmatchcase(name, pattern) or (
        "/" not in pattern and fnmatchcase(name.rpartition("/")[2], pattern)
    )


def select(runs: list[PlannedRun], patterns: Iterable[str], whose: str) -> list[PlannedRun]:
    """Returns the runs that a pattern names and those they need, in the order of `runs`; all of them without
    a pattern.

    Raises InputError for a pattern that names none; whose: the option or key it was given by.
    """
    patterns = list(patterns)
    for pattern in patterns:
        if not any(matches(run.name, pattern) for run in runs):
            raise InputError(
                f"{whose} {printable(pattern)!r} names no run: there are "
                f"{', '.join(run.name for run in runs[:4])}"
                f"{', …' if len(runs) > 4 else ''}"
            )
    wanted = {
        run.name for run in runs if not patterns or any(matches(run.name, pattern) for pattern in patterns)
    }
    for run in reversed(runs):  # what a run needs stands before it
        if run.name in wanted:
            wanted.update(run.needs)
    return [run for run in runs if run.name in wanted]


def expand(matrix: Matrix, data: Path) -> list[PlannedRun]:
    """Returns every run, those that others start from first. data: the data set's folder.

    Raises InputError naming the run or key that is wrong.
    """
    # At most eight sequences of each method: no matrix that is too large is expanded to find that out.
    size = (
        len(matrix.network)
        * len(matrix.seeds)
        * (2 + (len(matrix.runs.methods) + len(matrix.runs.controls)) * 8 * len(matrix.runs.reductions))
    )
    if size > 10 * MOST_RUNS:
        raise InputError(f"this matrix has about {size} runs: at most {MOST_RUNS}")
    runs = [
        run
        for network in matrix.network
        for seed in matrix.seeds
        for run in _network_runs(matrix, network, seed, data)
    ]
    if len(runs) > MOST_RUNS:
        raise InputError(f"this matrix has {len(runs)} runs: at most {MOST_RUNS}")
    runs = select(runs, matrix.runs.only, "runs.only")
    for run in runs:
        _ = run.settings
    return runs


def _network_runs(matrix: Matrix, network: Network, seed: int, data: Path) -> list[PlannedRun]:
    wanted, folder = matrix.runs, Path(matrix.out).absolute() / "runs"
    prefix = f"{network.folder}/" + (f"seed-{seed}/" if len(matrix.seeds) > 1 else "")
    of_network: dict[str, Any] = {
        "batch_size": network.batch_size,
        "lr": network.lr,
        "input_size": network.input_size or None,
    }
    common = {
        **matrix.train,
        **{key: value for key, value in of_network.items() if value is not None},
        "model": network.model,
        "data": str(data.absolute()),
        "seed": seed,
    }
    first = {"epochs": network.epochs} if network.epochs is not None else {}
    shared = {} if network.is_adopted else dict(network.shared)
    if isinstance(shared.get("init"), str):
        shared["init"] = str(Path(shared["init"]).absolute())
    runs = [
        PlannedRun(
            f"{prefix}shared",
            network.folder,
            _with_absolute_sets(
                {**common, **first, **wanted.shared.settings(), **shared, "method": "shared"}
            ),
            adopt=_adopted(matrix, network),
        )
    ]

    def add(name: str, method: str, table: Method, **values: Any) -> None:
        init = {"init": str(folder / runs[0].name), "method": method}
        runs.append(
            PlannedRun(
                f"{prefix}{name}",
                network.folder,
                _with_absolute_sets({**common, **table.settings(), **network.others, **init, **values}),
                (runs[0].name,),
            )
        )

    if "baseline" in wanted.methods:
        add("baseline", "baseline", wanted.baseline)
    for method, table in (
        ("fixed", wanted.fixed),
        ("linear", wanted.linear),
        ("adaptive", wanted.adaptive),
        ("random", wanted.random),
    ):
        if method in (*wanted.methods, *wanted.controls):
            usual = ["paired-epochs"] if method in ("fixed", "random") else wanted.sequences
            for sequence in table.sequences or usual:
                for reduction in wanted.reductions:
                    add(
                        f"{method}-{sequence}-{reduction}",
                        method,
                        table,
                        sequence=sequence,
                        reduction=reduction,
                    )
    if "sham" in wanted.controls:
        for sequence in wanted.sham.sequences or wanted.sequences:
            add(f"sham-{sequence}", "fixed", wanted.sham, sequence=sequence, reduction="none")
    if "randaugment" in wanted.controls:
        baseline, own = wanted.baseline.settings(), wanted.randaugment.settings()
        policy = own.get("auto_augment", RANDAUGMENT)
        if policy in ("", "none", {**common, **baseline, **network.others}.get("auto_augment")):
            raise InputError(
                f'runs.controls: "randaugment" with auto_augment = {printable(policy)!r:.80} is the baseline '
                "itself: give runs.randaugment.auto_augment another policy, or leave the control out"
            )
        add("baseline-randaugment", "baseline", Method(**{**baseline, **own}), auto_augment=policy)
    if "matched" in wanted.controls:
        model = next((run for run in runs[1:] if run.name == prefix + wanted.match), None)
        if model is None:
            raise InputError(
                f"runs.match = {printable(wanted.match)!r} is no run of {network.folder} that trains after "
                f"shared, such as {runs[-1].name.removeprefix(prefix)}"
            )
        add("baseline-matched", "baseline", wanted.matched, match=str(folder / model.name))
        runs[-1] = PlannedRun(runs[-1].name, network.folder, runs[-1].values, (runs[0].name, model.name))
    return runs


def _adopted(matrix: Matrix, network: Network) -> AdoptRequest | None:
    """Returns what is adopted in place of a network's shared run, None where that is trained."""
    if not network.is_adopted:
        return None
    fit = str(matrix.train.get("fit", "whole"))
    return adopt_request(network.shared, network.model, network.input_size, fit)


def _with_absolute_sets(values: dict[str, Any]) -> dict[str, Any]:
    """Returns `values` with absolute folders of tracked sets, as a run's config.toml holds them."""
    if isinstance(values.get("track_sets"), dict):
        return {
            **values,
            "track_sets": {
                name: storage.absolute(str(folder)) for name, folder in values["track_sets"].items()
            },
        }
    return values
