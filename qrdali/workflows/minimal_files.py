"""Writes the minimal images of files, and a sheet of each: what `qrdali minimal` does."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from qrdali.errors import InputError, RunError, printable
from qrdali.interfaces import JobControl, ProgressListener
from qrdali.mepi.folder import SEARCHED
from qrdali.workflows.minimal_image import MinimalImage, MinimalStep
from qrdali.workflows.minimal_network import open_run_network
from qrdali.workflows.minimal_search import Files, Finder, MinimalOptions, Misjudged, index_files

_LONGEST_STEM = 100  # characters of a file's name that the names of its results begin with


def write_minimal_images(
    images: Sequence[str],
    run: str | Path,
    *,
    out: str | Path,
    label: str | None = None,
    reduction: str = "combination",
    step: float = 0.05,
    tail: str = "full",
    windows: int = 5,
    prefer: str = "confidence",
    search_batch_size: int | None = None,
    memory: int = 1024,
    device: str = "auto",
    amp: str = "auto",
    threads: int | None = None,
    control: JobControl = JobControl(),
) -> list[dict[str, Any]]:
    """Writes the minimal image of each file, NAME-REDUCTION.png, and its sheet, NAME-REDUCTION-sheet.png.

    images: files, or URLs of objects. label: the class of all of them; None for what the network answers for
    each. reduction: one of the four, or "all". The other options are those of `build_mepi`.

    Returns a row per reduction and image, in the order given: {"image", "reduction", "label", "mepi",
    "sheet", "quotient", …}, or with "mepi" None, "answer" and "confidence" for an image that the network does
    not take for `label`. Raises InputError, before anything is searched, for what cannot be
    used; RunError where not one image could be read.
    """
    one = "color" if reduction == "all" else reduction
    options = MinimalOptions(one, step, tail, windows, prefer, search_batch_size, memory)
    options.rule()
    reductions = SEARCHED if reduction == "all" else (reduction,)
    targets = _Targets(Path(out), images, reductions)
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    with TemporaryDirectory() as scratch:
        groups = index_files(images, Path(scratch))
        with open_run_network(run, device, amp, threads, control) as network:
            number = network.class_number(label)
            targets.folder.mkdir(parents=True, exist_ok=True)
            for name in reductions:
                finder = Finder(network, replace(options, reduction=name), number)
                for group in groups:
                    for place, row in _write_group(finder, group, images, targets, control.listener):
                        rows[name, place] = row
    ordered = [rows[name, place] for place in range(len(images)) for name in reductions]
    if all("unreadable" in row for row in ordered):
        raise RunError(f"no image could be read: {ordered[0]['unreadable']}")
    return ordered


class _Targets:
    """Says where the results of each image go."""

    def __init__(self, folder: Path, images: Sequence[str], reductions: Sequence[str]) -> None:
        """Raises InputError for a folder that is none, and where a result would replace one of the images."""
        self.folder = folder
        if folder.exists() and not folder.is_dir():
            raise InputError(f"--out is {printable(folder)}, which is not a folder")
        self._stems: list[str] = []
        taken: set[str] = set()
        for image in images:
            wanted = re.sub(r"[^\w. -]", "_", printable(PurePosixPath(image).stem))[:_LONGEST_STEM] or "image"
            stem, copies = wanted, 1
            while stem.casefold() in taken:
                copies += 1
                stem = f"{wanted}-{copies}"
            taken.add(stem.casefold())
            self._stems.append(stem)
        written = {
            os.path.realpath(file)
            for number in range(len(images))
            for name in reductions
            for file in (self.mepi(number, name), self.sheet(number, name))
        }
        if lost := [image for image in images if os.path.realpath(image) in written]:
            raise InputError(f"{printable(lost[0])} would be replaced by a result: choose another --out")

    def mepi(self, number: int, reduction: str) -> Path:
        """Returns the file of the minimal image of image `number`."""
        return self.folder / f"{self._stems[number]}-{reduction}.png"

    def sheet(self, number: int, reduction: str) -> Path:
        """Returns the file of its sheet."""
        return self.folder / f"{self._stems[number]}-{reduction}-sheet.png"


def _write_group(
    finder: Finder, group: Files, images: Sequence[str], targets: _Targets, listener: ProgressListener
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (number of the image, row) for each of `group`, its files written."""
    names, reduction = [images[number] for number in group.numbers], finder.options.reduction
    unreadable: dict[int, str] = {}

    def on_unreadable(sample: int, reason: str) -> None:
        listener.warn(f"left out: {reason}")
        unreadable[sample] = printable(reason)

    for sample, found in finder.of_files(group.index, names, on_unreadable):
        number = group.numbers[sample]
        if isinstance(found, Misjudged):
            listener.line(str(found))
            yield number, _misjudged_row(found)
            continue
        mepi, sheet = targets.mepi(number, reduction), targets.sheet(number, reduction)
        found.save(mepi)
        found.sheet(sheet)
        listener.line(f"{_line(found)}; {mepi}, {sheet.name}")
        yield number, _row(found, mepi, sheet)
    for sample, reason in unreadable.items():
        row = {"image": printable(names[sample]), "reduction": reduction, "mepi": None, "unreadable": reason}
        yield group.numbers[sample], row


def _line(found: MinimalImage) -> str:
    height, width = found.steps[-1].size
    text = (
        f"{printable(found.name)}, {found.reduction}: {printable(found.class_name)!r} "
        f"({found.probability:.1%}) at quotient {found.quotient:#.3g}, {len(found.png):,} of "
        f"{len(found.steps[0].png):,} bytes, {width}x{height}"
    )
    if found.next_step is None:
        return text + "; no further step changes the image"
    return (
        f"{text}; one step further {printable(found.next_step.answer)!r} ({found.next_step.confidence:.1%})"
    )


def _misjudged_row(found: Misjudged) -> dict[str, Any]:
    return {
        "image": printable(found.name),
        "reduction": found.reduction,
        "label": found.class_name,
        "mepi": None,
        "answer": found.answer,
        "confidence": found.confidence,
    }


def _row(found: MinimalImage, mepi: Path, sheet: Path) -> dict[str, Any]:
    return {
        "image": printable(found.name),
        "reduction": found.reduction,
        "label": found.class_name,
        "mepi": str(mepi),
        "sheet": str(sheet),
        "quotient": found.quotient,
        "entropy_full": len(found.steps[0].png),
        "entropy_mepi": len(found.png),
        "evaluations": found.evaluations,
        "steps": [_step_values(step) for step in found.steps],
        "next_step": None if found.next_step is None else _step_values(found.next_step),
    }


def _step_values(step: MinimalStep) -> dict[str, Any]:
    return {
        "levels": step.levels._asdict(),
        "window": step.window._asdict(),
        "probability": step.probability,
        "quotient": step.quotient,
        "answer": step.answer,
        "confidence": step.confidence,
    }
