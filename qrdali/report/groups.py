"""Puts runs together: by data set and network, and several seeds of one configuration as one."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from qrdali.errors import printable
from qrdali.reduction.network_view import shown_share
from qrdali.report.identity import Identified, identified
from qrdali.report.read import Run
from qrdali.runs.configuration import AUGMENTATIONS, distinguishing, label_of, names_of, on_gpu
from qrdali.runs.settings import Settings

# Settings that say how a run was made, not what it is.
_OF_MACHINE = frozenset({"device", "threads", "probe_batch_size", "automatic"})
# Settings that stand in a configuration's name already, or in its group's.
_NAMED = frozenset({"model", "method", "reduction", "sequence"})
_MOST_ADOPTED = 12  # runs of which notes say where their weights come from


class Trait(NamedTuple):
    """Something in which configurations of one name may differ: what is shown, and what is compared."""

    text: str
    value: str


@dataclass(frozen=True)
class Configuration:
    """Holds runs that differ by their seeds only.

    method, reduction, sequence: as the slides' tables name them; "–" where there is none. is_baseline:
    whether it is what others of its group are compared with.
    """

    method: str
    reduction: str
    sequence: str
    runs: tuple[Run, ...]
    is_baseline: bool = False

    @property
    def label(self) -> str:
        return label_of((self.method, self.reduction, self.sequence))

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
    """Holds the runs of one network on one data set, all trained and validated on the same images.

    notes: what a reader of its tables must know of them.
    """

    data: str
    network: str
    classes: tuple[str, ...]
    configurations: tuple[Configuration, ...]
    notes: tuple[str, ...] = ()

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

    def is_baseline(self, run: Run) -> bool:
        """Returns whether others of the group are compared with `run`, and it with none."""
        return any(c.is_baseline and any(one is run for one in c.runs) for c in self.configurations)

    def baseline(self, run: Run) -> Run | None:
        """Returns the baseline that `run` is compared with: of the same seed, and of several the one of the
        same definitions, start and augmentations that agrees in most settings.
        """
        baselines = [
            candidate
            for candidate in self.runs
            if is_unmatched_baseline(candidate.settings)
            and candidate.settings.seed == run.settings.seed
            and candidate is not run
        ]
        settings = _comparable(run)

        def likeness(candidate: Run) -> tuple[bool, bool, int, int]:
            return (
                candidate.definitions == run.definitions,
                candidate.chain.init == run.chain.init,
                sum(getattr(candidate.settings, key) == settings[key] for key in AUGMENTATIONS),
                sum(settings[key] == value for key, value in _comparable(candidate).items()),
            )

        return max(baselines, key=likeness, default=None)


def _comparable(run: Run) -> dict[str, Any]:
    """Returns the settings in which two runs may agree, without those of the machine."""
    values = run.settings.model_dump()
    values["amp"] = distinguishing(run.settings, on_gpu=on_gpu(run.start.environment))["amp"]
    return {name: value for name, value in values.items() if name not in _OF_MACHINE}


def is_unmatched_baseline(settings: Settings) -> bool:
    """Returns whether settings are those of a baseline that is not matched to another run's steps."""
    return settings.method == "baseline" and not settings.match_steps


def augmentations(settings: Settings) -> frozenset[str]:
    """Returns the names of the augmentations that settings have besides `augment`."""
    return frozenset(name for name in AUGMENTATIONS if getattr(settings, name))


def _baselines(part: list[Run]) -> frozenset[str]:
    """Returns the names of those runs of a group that the others are compared with.

    A baseline that is matched to another run's steps is a control, and so is one that has an augmentation
    more than another baseline of the group; where all have it, that is the recipe.
    """
    candidates = [run for run in part if is_unmatched_baseline(run.settings)]
    known = {augmentations(run.settings) for run in candidates}
    return frozenset(
        run.name for run in candidates if not any(fewer < augmentations(run.settings) for fewer in known)
    )


def group(known: list[Run]) -> list[Group]:
    """Groups runs, in the order in which training images and networks first appear.

    Only runs that were trained and validated on the same images are in one group.
    """
    parts: dict[tuple[Any, ...], list[Identified]] = {}
    for one in identified(known):
        run = one.run
        key = (
            one.validated_on,
            run.trained.classes,
            run.trained.model,
            run.trained.preprocessing,
            one.trained_on,
        )
        parts.setdefault(key, []).append(one)
    names = [_data_of(part[0].run).rstrip("/").rpartition("/") for part in parts.values()]
    plain = {name[2] for name in names}
    # Two data sets may both end in /data: then the folder above tells them apart.
    short = len(plain) == len({(key[0], key[1], key[4]) for key in parts})
    titles = [
        printable(name[2] if short or not name[0] else f"{name[0].rpartition('/')[2]}/{name[2]}")
        for name in names
    ]
    alike = Counter((title, key[:4]) for title, key in zip(titles, parts, strict=True))
    numbers: Counter[Any] = Counter()
    groups = []
    for title, (key, part) in zip(titles, parts.items(), strict=True):
        numbers[title, key[:4]] += 1
        number = numbers[title, key[:4]]
        groups.append(
            Group(
                title if alike[title, key[:4]] == 1 else f"{title}, training images {number}",
                _network(part[0].run),
                part[0].run.trained.classes,
                tuple(_configurations([one.run for one in part])),
                tuple(
                    _notes(
                        part,
                        [
                            one
                            for other, ones in parts.items()
                            if other != key and other[:4] == key[:4]
                            for one in ones
                        ],
                    )
                ),
            )
        )
    return groups


def _data_of(run: Run) -> str:
    """Returns the folder of the data set that a run was trained on; an adopted one was trained elsewhere."""
    return run.settings.data if run.adoption is None else "unknown training images"


def _network(run: Run) -> str:
    pre = run.trained.preprocessing
    fit = "" if pre.fit == "whole" else f", {pre.fit} ({shown_share(375, 500, pre):.0%} of a 500×375 image)"
    return printable(f"{run.trained.model} at {pre.input_size} px{fit}")


def _notes(part: list[Identified], apart: list[Identified]) -> list[str]:
    """Returns what a reader of a group's tables must know of its runs' images, starts and definitions.

    apart: the runs that differ in their training images only.
    """
    notes, runs = [], [one.run for one in part]
    adopted = [(run, run.adoption) for run in runs if run.adoption is not None]
    for run, adoption in adopted[:_MOST_ADOPTED]:
        notes.append(f"{run.name} was adopted from {adoption.text} (SHA-256 {adoption.sha256[:16]}…).")
    if apart and not adopted:
        notes.append(
            f"{some_names([one.run for one in apart])} were trained on other images: they have a heading of "
            "their own, and are neither averaged nor compared with these."
        )
    assumed = [one.run for one in part if one.assumed]
    if assumed and len(part) > 1:
        notes.append(
            f"Not recorded is which images {some_names(assumed)} were trained on: the data set's folder and "
            "the number of images are taken for it."
        )
    unknown = [r for r in runs if any(a and not a.known for a in (r.chain.init, r.chain.match))]
    if unknown:
        notes.append(
            f"What {some_names(unknown)} began with, or took the number of steps from, is gone and was not "
            "recorded: its path tells it from others."
        )
    for run in runs:
        if changed := run.changed_definitions:
            notes.append(
                f"{run.name} was begun under definitions {run.begun_under} and goes on under "
                f"{changed.definitions} from epoch {changed.epoch}: its definitions are mixed."
            )
    if len({run.definitions for run in runs}) > 1:
        notes.append(
            "These runs are of different definitions ("
            + "; ".join(
                f"{number}: {some_names([run for run in runs if run.definitions == number])}"
                for number in sorted({run.definitions for run in runs})
            )
            + "). They are not averaged; where they are compared, the definitions may make the difference."
        )
    for name in dict.fromkeys(name for run in runs for name in run.sets):
        made_under = {run.sets[name].definitions for run in runs if name in run.sets}
        if len(made_under) > 1:
            older = [r for r in runs if name in r.sets and r.sets[name].definitions < max(made_under)]
            notes.append(
                f"The rows of {name} of {some_names(older)} were made under older definitions than the "
                "others': evaluate them again before comparing."
            )
    return [printable(note) for note in notes]


def some_names(runs: list[Run]) -> str:
    """Returns the names of at most six runs, and how many more there are."""
    return ", ".join(run.name for run in runs[:6]) + (f" and {len(runs) - 6} more" if len(runs) > 6 else "")


def _configurations(part: list[Run]) -> list[Configuration]:
    keys: dict[tuple[Any, ...], list[Run]] = {}
    baselines = _baselines(part)
    for run in part:
        keys.setdefault((names_of(run.settings), _traits(run)), []).append(run)
    result = []
    for (names, traits), same in keys.items():
        method, reduction, sequence = names
        # Two configurations of one name are told apart by the traits in which they differ.
        others = [other[1] for other in keys if other[0] == names and other[1] != traits]
        differing = [trait for trait in traits if any(trait not in other for other in others)]
        ambiguous = any({t.text for t in differing} <= {t.text for t in other} for other in others)
        texts = [f"{t.text} [{t.value[:8]}]" if ambiguous and t.value else t.text for t in differing]
        extra = f" ({', '.join(texts)})" if texts else ""
        # A seed given twice is two runs, not two seeds of one configuration.
        seeds = [run.settings.seed for run in same]
        if len(set(seeds)) == len(seeds) and _matched_alike(same):
            is_baseline = same[0].name in baselines
            result.append(Configuration(method + extra, reduction, sequence, tuple(same), is_baseline))
        else:
            result += [
                Configuration(
                    f"{method}{extra} ({printable(run.name)})",
                    reduction,
                    sequence,
                    (run,),
                    run.name in baselines,
                )
                for run in same
            ]
    return result


def _matched_alike(runs: list[Run]) -> bool:
    """Returns whether runs that are matched to one run took as many steps, which one that goes on changes."""
    return len({(r.settings.match, r.settings.match_steps) for r in runs}) == len(
        {r.settings.match for r in runs}
    )


def _traits(run: Run) -> tuple[Trait, ...]:
    """Returns all in which a run may differ from others of its name and group, but for the seed."""
    settings = distinguishing(run.settings, on_gpu=on_gpu(run.start.environment))
    traits = [Trait(f"{name}={value!r}", "") for name, value in settings.items() if name not in _NAMED]
    traits.append(Trait(f"definitions {run.definitions}", ""))
    if run.adoption is not None:
        traits.append(Trait("weights", run.adoption.sha256))
    for word, ancestor in (("from", run.chain.init), ("steps of", run.chain.match)):
        if ancestor:
            traits.append(Trait(f"{word} {printable(ancestor.label)}", ancestor.digest))
    return (Trait(f"method={run.settings.method}", ""), *traits)
