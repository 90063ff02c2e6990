"""Puts runs together: by data set and network, and several seeds of one configuration as one."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qrdali.errors import printable
from qrdali.report.read import Run
from qrdali.runs.settings import Settings

# Settings that do not make two runs different experiments.
_ASIDE = frozenset(
    {
        "seed",
        "init",
        "data",
        "device",
        "deterministic",
        "threads",
        "save_every",
        "match",
        "match_steps",
        "track_sets",
        "track_reduced",
        "probe_batch_size",
    }
)


@dataclass(frozen=True)
class Configuration:
    """Holds runs that differ by their seeds only.

    method, reduction, sequence: as the slides' tables name them; "–" where there is none.
    """

    method: str
    reduction: str
    sequence: str
    runs: tuple[Run, ...]

    @property
    def label(self) -> str:
        return " ".join(part for part in (self.method, self.sequence, self.reduction) if part != "–")

    def values(self, of: Callable[[Run], float | None]) -> list[float]:
        """Returns what `of` gives for each run that has it."""
        return [value for value in map(of, self.runs) if value is not None]

    def mean(self, of: Callable[[Run], float | None]) -> tuple[float | None, float | None]:
        """Returns mean and standard deviation over seeds: (None, None) without values, no deviation of a
        single one.
        """
        values = self.values(of)
        return (
            statistics.mean(values) if values else None,
            statistics.stdev(values) if len(values) > 1 else None,
        )


@dataclass(frozen=True)
class Group:
    """Holds the runs of one network on one data set."""

    data: str
    network: str
    classes: tuple[str, ...]
    configurations: tuple[Configuration, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple(run for configuration in self.configurations for run in configuration.runs)

    @property
    def sets(self) -> tuple[str, ...]:
        """Returns the names of all evaluated sets: val, test, then the others."""
        names = dict.fromkeys(["val", *(name for run in self.runs for name in run.sets)])
        return tuple(
            sorted(
                names, key=lambda name: (["val", "test"].index(name) if name in ("val", "test") else 2, name)
            )
        )

    def baseline(self, run: Run) -> Run | None:
        """Returns the baseline that `run` is compared with: of the same seed, and of several the one that
        agrees in most settings.
        """
        baselines = [
            candidate
            for candidate in self.runs
            if is_baseline(candidate.settings)
            and candidate.settings.seed == run.settings.seed
            and candidate is not run
        ]
        settings = run.settings.model_dump()
        return max(
            baselines,
            key=lambda candidate: sum(
                settings[key] == value for key, value in candidate.settings.model_dump().items()
            ),
            default=None,
        )


def is_baseline(settings: Settings) -> bool:
    """Returns whether settings are those of a baseline; one that is matched to another run's steps is a
    control.
    """
    return settings.method == "baseline" and not settings.match_steps


def group(known: list[Run]) -> list[Group]:
    """Groups runs, in the order in which data sets and networks first appear."""
    parts: dict[tuple[Any, ...], list[Run]] = {}
    for run in known:
        parts.setdefault(
            (run.images, run.trained.classes, run.trained.model, run.trained.preprocessing), []
        ).append(run)
    names = [part[0].settings.data.rstrip("/").rpartition("/") for part in parts.values()]
    plain = {name[2] for name in names}
    # Two data sets may both end in /data: then the folder above tells them apart.
    short = len(plain) == len({(key[0], key[1]) for key in parts})
    return [
        Group(
            printable(name[2] if short or not name[0] else f"{name[0].rpartition('/')[2]}/{name[2]}"),
            _network(part[0]),
            part[0].trained.classes,
            tuple(_configurations(part)),
        )
        for name, part in zip(names, parts.values(), strict=True)
    ]


def _network(run: Run) -> str:
    pre = run.trained.preprocessing
    return printable(
        f"{run.trained.model} at {pre.input_size} px" + ("" if pre.fit == "whole" else f", {pre.fit}")
    )


def _configurations(part: list[Run]) -> list[Configuration]:
    keys: dict[tuple[Any, ...], list[Run]] = {}
    for run in part:
        left_out = _ASIDE | ({"max_epochs"} if run.settings.match_steps else set())
        settings = run.settings.model_dump(exclude=set(left_out))
        settings["begins"] = (
            "from a run"
            if run.settings.init
            else "published weights"
            if run.settings.pretrained
            else "from scratch"
        )
        keys.setdefault(
            (
                *_names(run.settings),
                *(f"{k}={v!r}" for k, v in settings.items() if k not in ("model", "method")),
            ),
            [],
        ).append(run)
    result = []
    for key, same in keys.items():
        method, reduction, sequence = key[:3]
        # Two configurations of one name are told apart by the settings in which they differ.
        others = [set(other[3:]) for other in keys if other is not key and other[:3] == key[:3]]
        differing = [text for text in key[3:] if any(text not in other for other in others)]
        # A seed given twice is two runs, not two seeds of one configuration.
        seeds = [run.settings.seed for run in same]
        extra = f" ({', '.join(differing)})" if differing else ""
        if len(set(seeds)) == len(seeds):
            result.append(Configuration(method + extra, reduction, sequence, tuple(same)))
        else:
            result += [
                Configuration(f"{method}{extra} ({printable(run.name)})", reduction, sequence, (run,))
                for run in same
            ]
    return result


def _names(settings: Settings) -> tuple[str, str, str]:
    """Returns method, reduction and sequence as the slides' tables name them."""
    if settings.method in ("shared", "baseline"):
        return ("baseline matched" if settings.match_steps else settings.method), "–", "–"
    method = {
        "fixed": f"fixed {settings.quality:g}",
        "linear": f"linear{' up' if settings.direction == 'up' else ''}",
        "adaptive": f"adaptive{' online' if settings.feedback == 'online' else ''}",
    }.get(settings.method, settings.method)
    return ("sham" if settings.reduction == "none" else method), settings.reduction, settings.sequence
