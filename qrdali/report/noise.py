"""The noise floor of runs and MEPI sets: of every configuration that was trained with several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qrdali.evaluation.noise_floor import NoiseFloor, accuracy_floor, quotient_floor
from qrdali.report.groups import Configuration, Group
from qrdali.report.quotients import alike, values
from qrdali.report.read import Run
from qrdali.report.read_mepis import Mepis
from qrdali.report.tables import NOTHING, Table, number, words


@dataclass(frozen=True)
class Measured:
    """Holds the noise floor of one figure of a configuration.

    kind: "accuracy" or "quotient". of: the set, or the reduction. same_start: whether all runs began with the
    same run, whose luck is then not in the floor. images: of the set; of quotients the fewest of a run.
    networks: how many different ones the runs hold.
    """

    group: Group
    configuration: Configuration
    kind: str
    of: str
    images: int
    floor: NoiseFloor
    same_start: bool
    networks: int

    @property
    def is_of_baseline(self) -> bool:
        return self.configuration.is_baseline

    def to_json(self) -> dict[str, Any]:
        """Returns the floor as an object, unrounded; accuracies in 0 to 1."""
        floor = self.floor
        return {
            "data": self.group.data,
            "network": self.group.network,
            "configuration": self.configuration.label,
            "kind": self.kind,
            "of": self.of,
            "images": self.images,
            "runs": floor.runs,
            "values": list(floor.values),
            "mean": floor.mean,
            "deviation": floor.deviation,
            "deviation_95": list(floor.deviation_interval()),
            "pairs": floor.pairs,
            "rejected": floor.rejected,
            "rejection_rate": floor.rejection_rate,
            "smallest_of_single_runs": floor.smallest_of_single_runs,
            "smallest_of_means": floor.smallest_of_means,
            "same_start": self.same_start,
            "networks": self.networks,
        }


def measure(groups: list[Group], sets: list[Mepis]) -> list[Measured]:
    """Returns the noise floors of all configurations with two seeds or more, those of baselines first; none
    of one whose runs are all the same network.
    """
    found = []
    for group in groups:
        for configuration in group.configurations:
            if len(configuration.runs) > 1:
                found += _accuracies(group, configuration)
                found += _quotients(group, configuration, sets)
    return sorted(found, key=lambda measured: not measured.is_of_baseline)


def networks_of(runs: Sequence[Run]) -> list[int]:
    """Returns a number for each run's network; runs that hold the same one have the same number."""
    numbers: list[int] = []
    for i, run in enumerate(runs):
        same = next((j for j in range(i) if run.is_network_of(runs[j])), None)
        numbers.append(i if same is None else numbers[same])
    return numbers


def _same_start(configuration: Configuration) -> bool:
    starts = {run.settings.init for run in configuration.runs}
    return len(starts) == 1 and starts != {""}


def _accuracies(group: Group, configuration: Configuration) -> list[Measured]:
    found = []
    for name in group.sets:
        known = [run for run in configuration.runs if name in run.sets]
        digests = [run.sets[name].digest for run in known]
        # Only rows of the same images are compared: those of most runs.
        most = max(digests, key=digests.count, default="")
        compared = [run for run in known if run.sets[name].digest == most]
        numbers = networks_of(compared)
        if len(set(numbers)) > 1:
            answers = [run.sets[name].correct for run in compared]
            found.append(
                Measured(
                    group,
                    configuration,
                    "accuracy",
                    name,
                    len(answers[0]),
                    accuracy_floor(answers, numbers),
                    _same_start(configuration),
                    len(set(numbers)),
                )
            )
    return found


def _quotients(group: Group, configuration: Configuration, sets: list[Mepis]) -> list[Measured]:
    found, of_runs = [], {run.name for run in configuration.runs}
    for _, comparable in alike(sets):
        by_run = {mepis.run.name: mepis for mepis in comparable if mepis.run and mepis.run.name in of_runs}
        for reduction in dict.fromkeys(r for mepis in by_run.values() for r in mepis.rows):
            usable = [
                mepis
                for mepis in by_run.values()
                if reduction in mepis.rows and len(mepis.rows[reduction]["sample"])
            ]
            measured = [
                dict(
                    zip(map(int, m.rows[reduction]["sample"]), map(float, values(m, reduction)), strict=True)
                )
                for m in usable
            ]
            numbers = networks_of([mepis.run for mepis in usable if mepis.run is not None])
            if len(set(numbers)) > 1:
                found.append(
                    Measured(
                        group,
                        configuration,
                        "quotient",
                        reduction,
                        min(map(len, measured)),
                        quotient_floor(measured, numbers),
                        _same_start(configuration),
                        len(set(numbers)),
                    )
                )
    return found


_COLUMNS = (
    "data set",
    "network",
    "configuration",
    "figure",
    "runs",
    "mean",
    "standard deviation",
    "A/A pairs",
    "told apart",
    "smallest of two runs",
    "smallest of means",
    "images",
    "deviation, 95% low",
    "deviation, 95% high",
    "share told apart, %",
    "same start",
    "networks",
)
_ON_PAGE = 11  # columns of the table
NOTE = (
    "Runs of one configuration that differ by their seeds. Accuracies in percent, their deviations and "
    "differences in points; quotients as they are. An A/A pair is two such runs; told apart are those that "
    "a test of two runs gives p < .05 (accuracy: McNemar's, the exact one below 25 differing images; "
    "quotients: the paired test of the mean), which chance alone does in 5% of independent pairs: a larger "
    "share says that such a test tells two trainings apart, not two methods. Pairs share runs, so the "
    "share is rough. Smallest of two runs: half-width of the 95% prediction interval of the difference of "
    "two single runs. Smallest of means: the true difference of two means of so many runs each that a "
    "t-test finds with a power of 80%. Networks: how many different ones the runs hold; runs of the same "
    "weights are no A/A pair. On val the best epoch was chosen."
)


def table(found: list[Measured], slug: str) -> Table | None:
    """Returns the table of noise floors; None without any."""
    rows = []
    for measured in found:
        floor, accuracy = measured.floor, measured.kind == "accuracy"
        scale, form = (100, ".2f") if accuracy else (1, ".4f")
        low, high = floor.deviation_interval()
        rows.append(
            (
                words(measured.group.data),
                words(measured.group.network),
                words(measured.configuration.label),
                words(f"accuracy on {measured.of}" if accuracy else f"quotient of {measured.of}"),
                number(floor.runs),
                *(number(scale * value, form) for value in (floor.mean, floor.deviation)),
                number(floor.pairs),
                number(floor.rejected),
                number(scale * floor.smallest_of_single_runs, form),
                number(scale * floor.smallest_of_means, form),
                number(measured.images),
                *(number(scale * value, form) for value in (low, high)),
                number(100 * floor.rejection_rate, ".0f") if floor.pairs else NOTHING,
                words("yes" if measured.same_start else "no"),
                number(measured.networks),
            )
        )
    if not rows:
        return None
    return Table(slug, "Noise floor", _COLUMNS, tuple(rows), (NOTE,), page_columns=_ON_PAGE)
