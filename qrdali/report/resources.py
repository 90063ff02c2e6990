"""Tables on what runs cost, beside the slides': networks, seconds of epochs, probes and MEPI searches, energy
and money.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from qrdali.errors import printable
from qrdali.mepi.folder import SEARCHED
from qrdali.report import thesis
from qrdali.report.groups import Group
from qrdali.report.read import Epoch, Network, Run
from qrdali.report.read_mepis import Mepis
from qrdali.report.tables import NOTHING, Table, number, words


@dataclass(frozen=True)
class Prices:
    """Holds what energy costs. usd_per_kwh: of electricity.

    watts: stated draw of the machine or card, used where no run measured its energy; None: not stated.
    """

    usd_per_kwh: float = thesis.USD_PER_KWH
    watts: float | None = None


def _trained(run: Run) -> tuple[Epoch, ...]:
    return run.epochs[1:]


def networks(groups: list[Group], slug: str) -> Table:
    """Returns the table of the cost of one image, parameters and memory (annex 1)."""
    rows = []
    for group in groups:
        run = group.runs[0]
        network = next((r.start.network for r in group.runs if r.start.network), Network())
        memory = [
            (e.peak_memory_mb, e.memory_of or "")
            for r in group.runs
            for e in r.epochs
            if e.peak_memory_mb is not None
        ]
        peak = max(memory, default=None)
        theirs = thesis.network(run.trained.model, len(group.classes))
        rows.append(
            (
                words(group.network),
                words(group.data),
                number(network.gmacs, ".3f"),
                number(network.parameters),
                number(peak[0], ",.0f") if peak else NOTHING,
                words(peak[1]) if peak and peak[1] else NOTHING,
                *(
                    (number(theirs.gflop, ".3f"), number(theirs.parameters), number(theirs.gpu_mb))
                    if theirs
                    else [NOTHING] * 3
                ),
            )
        )
    return Table(
        slug,
        "Networks",
        (
            "network",
            "data set",
            "GFLOP",
            "parameters",
            "peak memory, MB",
            "memory of",
            "slides: GFLOP",
            "slides: parameters",
            "slides: GPU MB",
        ),
        tuple(rows),
        (
            "GFLOP of one image forward, a multiply-add counted once as in the slides, at this input size "
            "and "
            "with this data set's classes; the slides' are for 1,000 classes at the published sizes and "
            "rounded. Memory: the whole GPU's, decoding included, or the process'. " + thesis.CONDITIONS,
        ),
    )


def machines(runs: Iterable[Run]) -> list[str]:
    """Returns the devices that runs were trained on by their own record, each once."""
    environments = [e.environment for run in runs for e in run.epochs if e.environment]
    return list(
        dict.fromkeys(
            printable(environment.get("gpu") or environment.get("cpu") or "an unknown machine")
            for environment in environments
        )
    )


def _mixed(runs: Iterable[Run]) -> tuple[str, ...]:
    devices = machines(runs)
    return (f"Times of several machines are mixed here: {'; '.join(devices)}.",) if len(devices) > 1 else ()


def _seconds(run: Run, phase: str) -> list[float]:
    """Returns the seconds of a run's epochs of a phase."""
    return [e.seconds for e in _trained(run) if e.phase == phase and e.seconds > 0]


def epochs(groups: list[Group], slug: str) -> Table | None:
    """Returns the table of seconds of a training epoch, full and reduced (annex 1); None without epochs.

    ÷ full: of a run's reduced epochs to its own full ones, median over runs.
    """
    rows = []
    for group in groups:
        theirs = thesis.network(group.runs[0].trained.model, len(group.classes))
        for kind in ("full", *SEARCHED, "none"):
            phase = "full" if kind == "full" else "reduced"
            runs = [run for run in group.runs if kind == "full" or run.settings.reduction == kind]
            seconds = [s for run in runs for s in _seconds(run, phase)]
            if not seconds:
                continue
            rates = [
                e.images_per_second
                for run in runs
                for e in _trained(run)
                if e.phase == phase and e.images_per_second
            ]
            ratios = [
                statistics.median(_seconds(run, phase)) / statistics.median(_seconds(run, "full"))
                for run in runs
                if _seconds(run, phase) and _seconds(run, "full")
            ]
            slide = theirs.epoch_seconds.get(kind) if theirs else None
            rows.append(
                (
                    words(group.network),
                    words(group.data),
                    words("sham" if kind == "none" else kind),
                    number(len(seconds)),
                    number(statistics.median(seconds), ",.2f"),
                    number(statistics.median(rates) if rates else None, ",.0f"),
                    number(statistics.median(ratios) if ratios else None, ".3f"),
                    number(slide, ".1f"),
                    number(slide / theirs.epoch_seconds["full"] if theirs and slide else None, ".3f"),
                )
            )
    if not rows:
        return None
    return Table(
        slug,
        "Seconds of a training epoch",
        (
            "network",
            "data set",
            "epoch",
            "epochs",
            "median seconds",
            "images/s",
            "÷ full",
            "slides: seconds",
            "slides: ÷ full",
        ),
        tuple(rows),
        (
            "Training only, without validation; ÷ full compares a run's reduced epochs with its own full "
            "ones. " + thesis.CONDITIONS,
            *_mixed(run for group in groups for run in group.runs),
        ),
    )


def adaptive(groups: list[Group], slug: str) -> Table | None:
    """Returns the table of seconds that a probe takes before a stage (annex 8); None without probes."""
    rows = []
    for group in groups:
        theirs = thesis.network(group.runs[0].trained.model, len(group.classes))
        for reduction in SEARCHED:
            probes = [
                e.probe_seconds
                for run in group.runs
                if run.settings.method == "adaptive"
                and run.settings.reduction == reduction
                and run.settings.feedback == "probe"
                for e in run.epochs
                if e.probe_seconds is not None
            ]
            if probes:
                images = next((run.start.images.get("train") for run in group.runs if run.start.images), None)
                rows.append(
                    (
                        words(group.network),
                        words(group.data),
                        words(reduction),
                        number(len(probes)),
                        number(statistics.median(probes), ",.2f"),
                        number(
                            images / statistics.median(probes)
                            if images and statistics.median(probes) > 0
                            else None,
                            ",.0f",
                        ),
                        number(theirs.adaptive_seconds.get(reduction) if theirs else None),
                    )
                )
    if not rows:
        return None
    return Table(
        slug,
        "Adaptive generation",
        ("network", "data set", "reduction", "probes", "median seconds", "images/s", "slides: seconds"),
        tuple(rows),
        (
            "One probe shows every neighbour of every training image to the network, once per stage. "
            + thesis.CONDITIONS,
            *_mixed(run for group in groups for run in group.runs),
        ),
    )


def searches(sets: list[Mepis], slug: str) -> Table | None:
    """Returns the table of times to build MEPIs (annex 1); None without sets."""
    rows = []
    for mepis in sets:
        theirs = (
            thesis.network(mepis.run.trained.model, len(mepis.run.trained.classes)) if mepis.run else None
        )
        for reduction, row in mepis.summary.items():
            images, seconds = int(row["images"]), float(row["seconds"])
            evaluations = row.get("evaluations")
            rows.append(
                (
                    words(mepis.name),
                    words(reduction),
                    number(images),
                    number(seconds, ",.1f"),
                    number(images / seconds if seconds > 0 else None, ",.2f"),
                    number(evaluations / images if isinstance(evaluations, int) and images else None, ",.1f"),
                    number(theirs.mepi_minutes.get(reduction) if theirs else None),
                )
            )
    if not rows:
        return None
    return Table(
        slug,
        "Time to build MEPIs",
        ("set", "reduction", "images", "seconds", "images/s", "candidates per image", "slides: minutes"),
        tuple(rows),
        ("The slides do not say of how many images their minutes are. " + thesis.CONDITIONS,),
    )


def energy(groups: list[Group], prices: Prices, slug: str) -> Table:
    """Returns the table of energy and cost of every run: measured by its machine where it could be, else from
    the stated watts.
    """
    rows = []
    for group in groups:
        for run in group.runs:
            joules = [e.energy_joules for e in _trained(run)]
            seconds = run.last.total_seconds
            if joules and all(j is not None for j in joules):
                kwh, source = (
                    sum(j or 0 for j in (*joules, *(e.probe_energy_joules for e in _trained(run)))) / 3.6e6,
                    "measured",
                )
            elif prices.watts is not None and seconds is not None:
                kwh, source = prices.watts * seconds / 3.6e6, f"stated, {prices.watts:g} W"
            else:
                kwh, source = None, "–"
            rows.append(
                (
                    words(run.name),
                    words(group.network),
                    number(run.last.epoch),
                    number(run.last.optimizer_steps),
                    number(run.last.forward_images),
                    number(seconds, ",.1f"),
                    number(kwh, ",.5f"),
                    words(source),
                    number(None if kwh is None else kwh * prices.usd_per_kwh, ",.5f"),
                    *(
                        number(None if seconds is None else seconds / 3600 * usd, ",.5f")
                        for _, usd in thesis.CLOUD
                    ),
                )
            )
    return Table(
        slug,
        "Steps, time, energy and cost of each run",
        (
            "run",
            "network",
            "epochs",
            "optimizer steps",
            "forward images",
            "seconds",
            "kWh",
            "energy",
            f"USD at {prices.usd_per_kwh:g}/kWh",
            *(f"USD on a cloud {name}" for name, _ in thesis.CLOUD),
        ),
        tuple(rows),
        (
            "Training and probes of the run itself, without the shared run it starts from; forward images "
            "count validation and probes too. Measured energy is the device's, validation included; where "
            "none "
            "could be read, --watts states the power. The cloud's columns take the same seconds at the "
            "slides' "
            "hourly prices, whatever the speed of that card would be.",
        ),
    )


def cards(prices: Prices, slug: str) -> Table:
    """Returns the slides' table of own cards (annex 6)."""
    rows = tuple(
        (
            words(name),
            number(watts),
            number(watts * 24 / 1000, ".1f"),
            number(watts * 24 / 1000 * prices.usd_per_kwh, ".3f"),
            number(watts * 24 / 1000 * thesis.USD_PER_KWH * thesis.CLP_PER_USD),
            number(price),
        )
        for name, watts, price in thesis.CARDS
    )
    return Table(
        slug,
        "The slides' comparison of costs: own cards",
        (
            "card",
            "watts",
            "kWh a day",
            f"USD a day at {prices.usd_per_kwh:g}/kWh",
            f"slides: CLP a day at {thesis.USD_PER_KWH}/kWh",
            "price, USD",
        ),
        rows,
    )


def cloud(prices: Prices, slug: str) -> Table:
    """Returns the slides' table of the same cards rented (annex 6), and after how many days of use buying one
    costs less.
    """
    cards_by_name = {name: (watts, price) for name, watts, price in thesis.CARDS}
    rows = []
    for name, usd in thesis.CLOUD:
        watts, price = cards_by_name[name]
        saved = 24 * usd - watts * 24 / 1000 * prices.usd_per_kwh
        rows.append(
            (
                words(name),
                number(usd, ".2f"),
                number(24 * usd, ".2f"),
                number(24 * usd * thesis.CLP_PER_USD),
                number(price / saved if saved > 0 else None, ".1f"),
            )
        )
    return Table(
        slug,
        "The slides' comparison of costs: cloud",
        (
            "card",
            "USD an hour",
            "USD a day",
            "CLP a day",
            "days of use after which an own card costs less",
        ),
        tuple(rows),
        ("Electricity is counted for the own card, the rest of its machine is not.",),
    )
