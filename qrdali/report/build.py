"""From folders to a report: what it contains, and its files written whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from qrdali.errors import InputError, RunError, printable
from qrdali.files.json_objects import read_object
from qrdali.reduction.png_entropy import encoder_name
from qrdali.report import accuracy, gallery, groups, plots, quotients, resources, setup, thesis
from qrdali.report.figures import DARK, Figure
from qrdali.report.groups import Group
from qrdali.report.page import Drawn, Gallery, Section, page
from qrdali.report.read import Mepis, Run, Warn, named, read_mepis, read_run
from qrdali.report.resources import Prices
from qrdali.report.tables import Table
from qrdali.runs.folder import weights_digest
from qrdali.version import __version__

MARKER = "report.json"
_CONTENT = ("report.html", MARKER, "tables", "figures")
T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """A section before its figures are drawn."""

    slug: str
    title: str
    text: tuple[str, ...] = ()
    figures: tuple[Figure | None, ...] = ()
    tables: tuple[Table | None, ...] = ()
    galleries: tuple[Gallery, ...] = ()
    folded: frozenset[str] = frozenset()


def build(
    run_folders: list[Path],
    mepi_folders: list[Path],
    out: Path,
    *,
    title: str = "",
    prices: Prices | None = None,
    gallery_rows: int = 8,
    warn: Warn = lambda text: None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """Writes report.html, tables/ (csv, md, tex), figures/ (svg, png) and report.json into `out`; returns what report.json holds.

    gallery_rows: images per MEPI set in the gallery. Nothing but the folders' own files is read, and pictures of the gallery where
    they are still there. Raises InputError for folders that hold nothing to report or an `out` that is something else, RunError for
    damaged files; nothing is written then.
    """
    out = out.resolve()
    check_out(out)
    if not run_folders:
        raise InputError("no run to report: give at least one run folder")
    known = _readable(run_folders, lambda folder, name: read_run(folder, name, warn), warn)
    digests = {run.name: weights_digest(run.folder) for run in known} if mepi_folders else {}
    sets = _readable(mepi_folders, lambda folder, name: read_mepis(folder, name, known, digests), warn)
    for mepis in sets:
        if mepis.run is None:
            warn(
                f"{printable(mepis.folder)} was made with other weights than those of the runs given: it is shown by its folder's name"
            )
    parts = contents(known, sets, prices or Prices(), gallery_rows)
    title = printable(title) or "Training with quality-reduced images"
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / "tables").mkdir(parents=True)
        (partial / "figures").mkdir()
        drawn = _draw(parts, partial / "figures", progress)
        tables = [table for part in parts for table in part.tables if table]
        for table in tables:
            for kind, text in (("csv", table.csv()), ("md", table.markdown()), ("tex", table.latex())):
                (partial / "tables" / f"{table.slug}.{kind}").write_text(text, "utf-8", newline="")
        sections = [
            Section(
                part.slug,
                part.title,
                part.text,
                drawn[part.slug],
                tuple(t for t in part.tables if t),
                part.galleries,
                part.folded,
            )
            for part in parts
        ]
        (partial / "report.html").write_text(page(title, setup.facts(known, sets), sections), "utf-8")
        told = {
            "title": title,
            "qrdali": __version__,
            "encoder": encoder_name(),
            "runs": [str(run.folder) for run in known],
            "mepi": [str(mepis.folder) for mepis in sets],
            "tables": {
                t.slug: {
                    "title": t.title,
                    "columns": list(t.columns),
                    "rows": [[c.value for c in row] for row in t.rows],
                    "notes": list(t.notes),
                }
                for t in tables
            },
        }
        (partial / MARKER).write_text(json.dumps(told, indent=1) + "\n", "utf-8")
        _swap(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return told


def _readable(folders: list[Path], read: Callable[[Path, str], T], warn: Warn) -> list[T]:
    """What can be read; the rest is left out with a warning, unless nothing remains. A folder of another kind is an error."""
    found: list[T] = []
    damaged: RunError | None = None
    for folder, name in zip(folders, named(folders), strict=True):
        try:
            found.append(read(folder, name))
        except RunError as error:
            damaged = error
            warn(f"{error}: left out of the report")
    if damaged is not None and not found:
        raise damaged
    return found


def check_out(out: Path) -> None:
    """Raises InputError unless `out` is new, empty, or holds a report and nothing else, which may be made again."""
    if not out.exists():
        return
    entries = {entry.name for entry in out.iterdir()} if out.is_dir() else {""}
    if not entries:
        return
    try:
        ours = entries <= set(_CONTENT) and "qrdali" in read_object(out / MARKER)
    except RunError:
        ours = False
    if not ours:
        raise InputError(f"{printable(out)} exists and is no report: choose another --out")


def _swap(partial: Path, out: Path) -> None:
    """A report that was there stays until the new one is whole."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    try:
        partial.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _draw(
    parts: list[Part], folder: Path, progress: Callable[[str, int, int], None]
) -> dict[str, tuple[Drawn, ...]]:
    total, done = sum(figure is not None for part in parts for figure in part.figures), 0
    result = {}
    for part in parts:
        own = []
        for figure in (f for f in part.figures if f is not None):
            light = figure.render("svg")
            (folder / f"{figure.slug}.svg").write_bytes(light)
            (folder / f"{figure.slug}.png").write_bytes(figure.render("png"))
            own.append(
                Drawn(
                    figure.slug,
                    printable(figure.title),
                    printable(figure.alt),
                    light,
                    figure.render("svg", DARK),
                )
            )
            done += 1
            progress(figure.slug, done, total)
        result[part.slug] = tuple(own)
    return result


def contents(known: list[Run], sets: list[Mepis], prices: Prices, gallery_rows: int) -> list[Part]:
    """Every section; data sets and networks stand under headings of their own."""
    found = groups.group(known)
    parts = []
    for i, group in enumerate(found, 1):
        parts += _results(group, f"{i}", f": {group.network} on {group.data}" if len(found) > 1 else "")
    for i, (what, own) in enumerate(quotients.alike(sets), 1):
        where = f": {what}" if what else ""
        parts.append(
            Part(
                f"quotients-{i}",
                f"Entropy quotients{where}",
                (
                    "How little of an image's entropy the network needs: the minimal-entropy positive image (MEPI) is the reduced image where the "
                    "search ended, still classified correctly. A descent ends where every further step is misclassified; a smaller image may "
                    "exist.",
                ),
                tuple(plots.mepi_figures(own, f"{i}")),
                (
                    quotients.means(own, f"quotients-{i}"),
                    quotients.compared(own, f"quotient-pairs-{i}"),
                    quotients.shares(own, f"quotient-shares-{i}"),
                    quotients.per_class(own, f"quotients-by-class-{i}"),
                ),
                folded=frozenset({f"quotients-by-class-{i}"}),
            )
        )
    if sets and gallery_rows:
        pictures = (
            Gallery(printable(mepis.name), tuple(gallery.rows(mepis, gallery_rows))) for mepis in sets
        )
        parts.append(
            Part(
                "gallery",
                "Minimal images",
                (
                    "Original and MEPIs, each in its place and size within the original; under it its share of the original's entropy, and its "
                    "size in pixels.",
                ),
                galleries=tuple(g for g in pictures if g.rows),
            )
        )
    parts.append(
        Part(
            "resources",
            "Resources",
            (),
            (),
            (
                resources.networks(found, "networks"),
                resources.epochs(found, "epoch-seconds"),
                resources.adaptive(found, "adaptive-seconds"),
                resources.searches(sets, "mepi-seconds"),
                resources.energy(found, prices, "energy"),
                resources.cards(prices, "cards"),
                resources.cloud(prices, "cloud"),
                thesis.accuracies("slides-accuracy"),
            ),
            folded=frozenset({"cards", "cloud", "slides-accuracy"}),
        )
    )
    parts.append(
        Part(
            "setup",
            "Set-up",
            (setup.DEFINITIONS,),
            (),
            (
                setup.data(found, "data"),
                setup.common(known, "settings"),
                setup.configurations(known, "configurations"),
                setup.versions(known, "versions"),
                setup.searches(sets, "mepi-options"),
            ),
            folded=frozenset({"settings", "configurations", "versions", "mepi-options"}),
        )
    )
    return [part for part in parts if any(part.figures) or any(part.tables) or part.galleries]


def _results(group: Group, number: str, where: str) -> list[Part]:
    phase = any(run.settings.monitor == "phase" for run in group.runs)
    extra = list(dict.fromkeys(name for run in group.runs for e in run.epochs for name in e.tracked))
    lines = [
        plots.evolution(group, c, f"evolution-{number}-{i}")
        for i, c in enumerate(group.configurations, 1)
        if max(run.last.epoch for run in c.runs) > 0
    ]
    curves = [
        plots.quality_curve(
            curve,
            1 / len(group.classes) if chance is None else chance,
            f"curve-{number}-{i}-{j}",
            f"{run.name}, {printable(name)}",
        )
        for i, run in enumerate(group.runs, 1)
        for j, (name, (curve, chance)) in enumerate(run.curves.items(), 1)
    ]
    return [
        Part(
            f"accuracy-{number}",
            f"Accuracy{where}",
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
                accuracy.comparisons(group, f"comparisons-{number}"),
            ),
            folded=frozenset({f"comparisons-{number}"}),
        ),
        Part(
            f"evolution-{number}",
            f"Epoch by epoch{where}",
            (
                f"Validation accuracy after each epoch at {'the quality it was monitored at' if phase else 'full quality'}: filled after a C "
                "epoch, open after an R epoch, stages shaded where there is one seed.",
            ),
            (
                *lines,
                *(plots.tracked(group, name, f"tracked-{number}-{i}") for i, name in enumerate(extra, 1)),
            ),
        ),
        Part(f"curves-{number}", f"Accuracy along the qualities{where}", (), tuple(curves)),
    ]
