"""Says which images runs were trained, validated and evaluated on, whatever they recorded of them.

A run records content fingerprints, which agree below any mount. One of version 0.1 recorded its training
images' index file in its checkpoint, and the paths of the images it was evaluated on: those are known for the
same images where a newer run has both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from qrdali.report.read import Run
from qrdali.report.set_rows import SetRows


@dataclass(frozen=True)
class Identified:
    """Holds a run whose rows' digests can be compared with those of the other runs.

    trained_on, validated_on: what tells its images from others'. assumed: whether the first is only the data
    set's folder and number of images, for want of a fingerprint.
    """

    run: Run
    trained_on: str
    validated_on: str
    assumed: bool


def identified(runs: list[Run]) -> list[Identified]:
    """Returns the runs, in their order, with what their images are."""
    recorded = [run.start.fingerprints.get("train") for run in runs]
    content_of_file = {one.file: one.content for one in recorded if one}
    trained = [
        one.content if one else content_of_file.get(run.index, run.index)
        for run, one in zip(runs, recorded, strict=True)
    ]
    by_folder: dict[str, set[str]] = {}
    for run, images in zip(runs, trained, strict=True):
        if images:
            by_folder.setdefault(_folder_of(run), set()).add(images)
    result = []
    for run, images, validated_on in zip(runs, trained, _validated_on(runs), strict=True):
        known = by_folder.get(_folder_of(run), set())
        assumed = next(iter(known)) if len(known) == 1 else _folder_of(run)
        is_assumed = not images and run.adoption is None
        result.append(Identified(run, images or assumed, validated_on, is_assumed))
    return _with_comparable_rows(result)


def _folder_of(run: Run) -> str:
    """Returns the folder of a run's data set and the number of its training images."""
    if run.adoption is not None:
        return "elsewhere"  # nothing is known of what an adopted network was trained on
    return f"{run.settings.data} {(run.start.images or {}).get('train')}"


def _validated_on(runs: list[Run]) -> list[str]:
    recorded = [run.start.fingerprints.get("val") for run in runs]
    content_of_rows = {
        run.validated_on: one.content
        for run, one in zip(runs, recorded, strict=True)
        if one and run.validated_on
    }
    return [
        one.content if one else content_of_rows.get(run.validated_on, run.validated_on) or run.settings.data
        for run, one in zip(runs, recorded, strict=True)
    ]


def _with_comparable_rows(known: list[Identified]) -> list[Identified]:
    """Returns the runs with rows whose digests are equal where their images are."""
    every = [(name, rows) for one in known for name, rows in one.run.sets.items()]
    content_of_paths = {(name, rows.digest): rows.content for name, rows in every if rows.content}

    def comparable(name: str, rows: SetRows) -> SetRows:
        content = rows.content or content_of_paths.get((name, rows.digest))
        return replace(rows, digest=content) if content else rows

    return [
        replace(
            one,
            run=replace(one.run, sets={name: comparable(name, rows) for name, rows in one.run.sets.items()}),
        )
        for one in known
    ]
