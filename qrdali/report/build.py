"""Makes a report of run folders and MEPI sets: its contents, and its files, whole or not at all."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qrdali.errors import InputError, RunError, printable
from qrdali.evaluation.human_answers import HumanAnswers, read_human_answers
from qrdali.files.atomic import replace_atomically
from qrdali.files.json_objects import read_object
from qrdali.interfaces import ProgressListener, SilentListener
from qrdali.reduction.png_entropy import encoder_name
from qrdali.report import (
    accuracy,
    best_epochs,
    gallery,
    groups,
    humans,
    likelihood,
    mepi_plots,
    plots,
    quotients,
    resources,
    row_parts,
    rows,
    setup,
    suites,
    thesis,
)
from qrdali.report.figures import DARK, Figure
from qrdali.report.findings import noise
from qrdali.report.findings import section as findings_section
from qrdali.report.findings.finding import markdown
from qrdali.report.findings.finding import table as findings_table
from qrdali.report.groups import Group
from qrdali.report.inputs import read_inputs
from qrdali.report.page import Drawn, Gallery, page
from qrdali.report.parts import Part
from qrdali.report.read import Run
from qrdali.report.read_mepis import Mepis
from qrdali.report.resources import Prices
from qrdali.version import __version__

MARKER = "report.json"
_CONTENT = ("report.html", MARKER, "findings.md", "tables", "figures")


@dataclass(frozen=True)
class ReportOptions:
    """Says how a report looks and how far it goes.

    title: heading of the page. prices: of energy. gallery_rows: images of each MEPI set in the gallery, and
    images on which runs disagree. humans: a file of what people answered, as `read_human_answers` reads it.
    """

    title: str = ""
    prices: Prices = field(default_factory=Prices)
    gallery_rows: int = 8
    humans: Path | None = None


def build(
    run_folders: list[Path],
    mepi_folders: list[Path],
    out: Path,
    options: ReportOptions = ReportOptions(),
    listener: ProgressListener = SilentListener(),
) -> dict[str, Any]:
    """Writes report.html, findings.md, tables/ (csv, md, tex), figures/ (svg, png) and report.json into
    `out`; returns what report.json holds.

    Nothing but the folders' own files is read, the gallery's originals where they still are, and of runs that
    did not record what they began with that run's. Raises
    InputError for folders that hold nothing to report or an `out` that is something else, RunError for
    damaged files; nothing is written then.
    """
    out = out.resolve()
    require_report_folder(out)
    answers = None if options.humans is None else read_human_answers(options.humans)
    runs, sets = read_inputs(run_folders, mepi_folders, listener)
    parts = contents(runs, sets, options, answers)
    slugs = [table.slug for part in parts for table in part.filled_tables]
    if answers and not any(slug.startswith("humans-") for slug in slugs):
        listener.warn(humans.unmatched(answers))
    title = printable(options.title) or "Training with quality-reduced images"
    # A folder beside `out`, so that a report of before stays until this one is whole.
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / "tables").mkdir(parents=True)
        (partial / "figures").mkdir()
        figures = _draw(parts, partial / "figures", listener)
        found = [finding for part in parts for finding in part.findings]
        # The page has the findings as sentences, the files as a table too.
        tables = [table for part in parts for table in part.filled_tables]
        tables.append(findings_table(found, "findings"))
        for table in tables:
            for kind, text in (("csv", table.csv()), ("md", table.markdown()), ("tex", table.latex())):
                (partial / "tables" / f"{table.slug}.{kind}").write_text(text, "utf-8", newline="")
        sections = [part.drawn(figures[part.slug]) for part in parts]
        facts = setup.facts(groups.group(runs), sets)
        (partial / "report.html").write_text(page(title, facts, sections), "utf-8")
        titles = {table.slug: table.title for table in tables}
        # Those that the page has a short form of stand among the sentences, which say what a single row says.
        tests = [t for t in parts[0].filled_tables if t.slug != noise.SLUG]
        brief = [t for t in tests if t.page_columns and len(t.rows) > 1]
        text = markdown(title, parts[0].text, found, titles, brief)
        (partial / "findings.md").write_text(text, "utf-8")
        summary = {
            "title": title,
            "qrdali": __version__,
            "encoder": encoder_name(),
            "runs": [str(run.folder) for run in runs],
            "mepi": [str(mepis.folder) for mepis in sets],
            "tables": rows.of_tables(tables),
            "figures": rows.of_figures(parts),
            "galleries": rows.of_galleries(parts),
            "findings": [one.to_json() for one in found],
        }
        (partial / MARKER).write_text(json.dumps(summary, indent=1) + "\n", "utf-8")
        _swap(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return summary


def require_report_folder(out: Path) -> None:
    """Raises InputError unless `out` is new, empty, or holds a report and nothing else, which may be made
    again.
    """
    if not out.exists():
        return
    entries = {entry.name for entry in out.iterdir()} if out.is_dir() else {""}
    if not entries:
        return
    try:
        is_report = entries <= set(_CONTENT) and "qrdali" in read_object(out / MARKER)
    except RunError:
        is_report = False
    if not is_report:
        raise InputError(f"{printable(out)} exists and is not a report: choose another --out")


def _swap(partial: Path, out: Path) -> None:
    """Gives the complete report its name; a report that was there stays until then, and comes back if that
    fails.
    """
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    try:
        replace_atomically(partial, out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _draw(parts: list[Part], folder: Path, listener: ProgressListener) -> dict[str, tuple[Drawn, ...]]:
    """Draws all figures into `folder`; returns those of each part, by its slug."""
    total = sum(figure is not None for part in parts for figure in part.figures)
    drawn: dict[str, list[Drawn]] = {part.slug: [] for part in parts}
    if total:
        listener.begin("figures", total, "figures")
    try:
        for part in parts:
            for figure in (figure for figure in part.figures if figure is not None):
                drawn[part.slug].append(_draw_one(figure, folder))
                listener.advance(1, lambda figure=figure: figure.slug)  # type: ignore[misc]
    finally:
        if total:
            listener.end()
    return {slug: tuple(figures) for slug, figures in drawn.items()}


def _draw_one(figure: Figure, folder: Path) -> Drawn:
    light, png = figure.render(("svg", "png"))
    (folder / f"{figure.slug}.svg").write_bytes(light)
    (folder / f"{figure.slug}.png").write_bytes(png)
    (dark,) = figure.render(("svg",), DARK)
    return Drawn(figure.slug, printable(figure.title), printable(figure.alt), light, dark, figure.is_wide)


def contents(
    runs: list[Run], sets: list[Mepis], options: ReportOptions, answers: HumanAnswers | None = None
) -> list[Part]:
    """Returns every section that holds something, those of each data set and network under its heading."""
    by_experiment = groups.group(runs)
    parts: list[Part] = []
    for i, group in enumerate(by_experiment, 1):
        heading = f": {group.network} on {group.data}" if len(by_experiment) > 1 else ""
        parts += _results(group, f"{i}", heading)
        parts += row_parts.parts(group, f"{i}", heading, options.gallery_rows, answers)
    parts.append(_suites(by_experiment))
    for i, (difference, comparable) in enumerate(quotients.alike(sets), 1):
        parts.append(_quotients(comparable, f"{i}", f": {difference}" if difference else ""))
    if sets and options.gallery_rows:
        parts.append(_gallery(sets, options.gallery_rows))
    parts += [_resources(by_experiment, sets, options.prices), _setup(by_experiment, runs, sets)]
    parts = [part for part in parts if any(part.figures) or any(part.tables) or part.galleries]
    return [_findings(by_experiment, sets, parts), *parts]


def _findings(by_experiment: list[Group], sets: list[Mepis], others: list[Part]) -> Part:
    """Returns the first section. others: those whose tables its findings may link to."""
    found = findings_section.findings(by_experiment, sets)
    slugs = {table.slug for table in (*found.tables, *(t for part in others for t in part.filled_tables))}
    return Part(
        "findings",
        "Findings",
        found.text,
        tables=found.tables,
        folded=frozenset(table.slug for table in found.tables),
        findings=findings_section.linked(found.findings, slugs),
    )


def _suites(by_experiment: list[Group]) -> Part:
    """Returns the section on published suites, of all networks and data sets together."""
    return Part(
        "suites",
        "Published suites",
        tables=(
            suites.table(by_experiment, "suites"),
            suites.figures(by_experiment, "suite-figures"),
            suites.corruptions(by_experiment, "corruptions"),
        ),
        folded=frozenset({"suite-figures", "corruptions"}),
    )


def _quotients(sets: list[Mepis], number: str, heading: str) -> Part:
    return Part(
        f"quotients-{number}",
        f"Entropy quotients{heading}",
        (
            "How little of an image's entropy the network needs: the minimal-entropy positive image (MEPI) "
            "is "
            "the reduced image where the search ended, still classified correctly. A descent ends where "
            "every "
            "further step is misclassified; a smaller image may exist.",
        ),
        tuple(mepi_plots.figures(sets, number)),
        (
            quotients.means(sets, f"quotients-{number}"),
            quotients.compared(sets, f"quotient-pairs-{number}"),
            quotients.shares(sets, f"quotient-shares-{number}"),
            quotients.per_class(sets, f"quotients-by-class-{number}"),
        ),
        folded=frozenset({f"quotients-by-class-{number}"}),
    )


def _gallery(sets: list[Mepis], rows: int) -> Part:
    """Returns the section of originals beside their MEPIs."""
    galleries = (Gallery(printable(mepis.name), tuple(gallery.rows(mepis, rows))) for mepis in sets)
    return Part(
        "gallery",
        "Minimal images",
        (
            "The original, framed where its crop (blue) and combination (purple) lie, and its MEPIs, "
            "enlarged; under each its share of the original's entropy, its size in pixels, and what the "
            "network answers one step further: of the steps, all wrong, the one at which the class was "
            "likeliest. Most reduced first; the lowest state, which shows nothing of the object, last.",
        ),
        galleries=tuple(shown for shown in galleries if shown.rows),
    )


def _resources(by_experiment: list[Group], sets: list[Mepis], prices: Prices) -> Part:
    return Part(
        "resources",
        "Resources",
        tables=(
            resources.networks(by_experiment, "networks"),
            resources.epochs(by_experiment, "epoch-seconds"),
            resources.adaptive(by_experiment, "adaptive-seconds"),
            resources.searches(sets, "mepi-seconds"),
            resources.energy(by_experiment, prices, "energy"),
            resources.cards(prices, "cards"),
            resources.cloud(prices, "cloud"),
            thesis.accuracies("slides-accuracy"),
        ),
        folded=frozenset({"cards", "cloud", "slides-accuracy"}),
    )


def _setup(by_experiment: list[Group], runs: list[Run], sets: list[Mepis]) -> Part:
    return Part(
        "setup",
        "Set-up",
        (setup.DEFINITIONS,),
        tables=(
            setup.data(by_experiment, "data"),
            setup.common(runs, "settings"),
            setup.configurations(runs, "configurations"),
            setup.versions(runs, "versions"),
            setup.searches(sets, "mepi-options"),
        ),
        folded=frozenset({"settings", "configurations", "versions", "mepi-options"}),
    )


def _results(group: Group, number: str, heading: str) -> list[Part]:
    """Returns the sections on one network and data set: accuracy, epochs and curves."""
    by_phase = any(run.settings.monitor == "phase" for run in group.runs)
    quality = "the quality it was monitored at" if by_phase else "full quality"
    tracked = list(
        dict.fromkeys(name for run in group.runs for epoch in run.epochs for name in epoch.tracked)
    )
    evolutions = [
        plots.evolution(group, configuration, f"evolution-{number}-{i}")
        for i, configuration in enumerate(group.configurations, 1)
        if max(run.last.epoch for run in configuration.runs) > 0
    ]
    several = len({curve.definitions for run in group.runs for curve in run.curves.values()}) > 1
    curves = [
        plots.quality_curve(
            curve.reductions,
            1 / len(group.classes) if curve.chance is None else curve.chance,
            f"curve-{number}-{i}-{j}",
            f"{run.name}, {printable(name)}" + (f", definitions {curve.definitions}" if several else ""),
        )
        for i, run in enumerate(group.runs, 1)
        for j, (name, curve) in enumerate(run.curves.items(), 1)
    ]
    return [
        Part(
            f"accuracy-{number}",
            f"Accuracy{heading}",
            (),
            (
                plots.joint(group, f"joint-{number}"),
                plots.cost(group, "optimizer steps", f"cost-steps-{number}"),
                plots.cost(group, "seconds", f"cost-seconds-{number}"),
            ),
            (
                accuracy.table(group, f"accuracy-{number}"),
                accuracy.top(group, "val", f"top-val-{number}"),
                accuracy.top(group, "test", f"top-test-{number}"),
                likelihood.table(group, f"likelihood-{number}"),
                best_epochs.table(group, f"best-epochs-{number}"),
                accuracy.comparisons(group, f"comparisons-{number}"),
            ),
            folded=frozenset({f"comparisons-{number}"}),
        ),
        Part(
            f"evolution-{number}",
            f"Epoch by epoch{heading}",
            (
                f"Validation accuracy after each epoch at {quality}: filled after a C epoch, open after an R "
                "epoch, stages shaded where there is one seed.",
            ),
            (
                *evolutions,
                *(plots.tracked(group, name, f"tracked-{number}-{i}") for i, name in enumerate(tracked, 1)),
            ),
        ),
        Part(f"curves-{number}", f"Accuracy along the qualities{heading}", (), tuple(curves)),
    ]
