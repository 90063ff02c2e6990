"""Makes the sections that follow from prediction rows alone: calibration, classes, and where runs agree."""

from __future__ import annotations

from qrdali.evaluation.human_answers import HumanAnswers
from qrdali.report import agreement, classes, disagreement, humans, reliability
from qrdali.report.groups import Group
from qrdali.report.page import Gallery
from qrdali.report.parts import Part
from qrdali.report.shared_rows import SharedRows, shared_rows
from qrdali.report.tables import Table

_MOST_DIAGRAMS = 6  # sets with a reliability diagram; the table of bins has all
_MOST_MATRICES = 4  # configurations with a confusion matrix


def parts(
    group: Group, number: str, heading: str, gallery_rows: int, answers: HumanAnswers | None
) -> list[Part]:
    """Returns the sections of a group; those that hold nothing too.

    number: ends the slugs. gallery_rows: images on which runs disagree that are shown. answers: what people
    answered, if anything is known of that.
    """
    every = shared_rows(group)
    return [
        _calibration(group, number, heading),
        _classes([shared for shared in every if len(shared.classes)], number, heading),
        _agreement(every, number, heading, gallery_rows, answers),
    ]


def _main(every: list[SharedRows]) -> SharedRows | None:
    """Returns the rows of test, or without them those of the first set."""
    return next((shared for shared in every if shared.name == "test"), every[0] if every else None)


def _calibration(group: Group, number: str, heading: str) -> Part:
    names = sorted(group.sets, key=lambda name: name != "test")[:_MOST_DIAGRAMS]
    return Part(
        f"calibration-{number}",
        f"Calibration{heading}",
        (),
        tuple(
            reliability.diagram(group, name, f"reliability-{number}-{i}") for i, name in enumerate(names, 1)
        ),
        (
            reliability.table(group, f"calibration-{number}"),
            reliability.bins_table(group, f"reliability-bins-{number}"),
        ),
        folded=frozenset({f"reliability-bins-{number}"}),
    )


def _classes(every: list[SharedRows], number: str, heading: str) -> Part:
    with_confusions = [(shared, classes.confusions(shared)) for shared in every]
    tables: list[Table | None] = [
        classes.accuracy_table(shared, found, f"classes-{number}-{i}", len(every))
        for i, (shared, found) in enumerate(with_confusions, 1)
    ]
    tables.append(classes.pairs_table(with_confusions, f"confusions-{number}"))
    main = _main(every)
    matrices = [] if main is None else main.configurations[:_MOST_MATRICES]
    return Part(
        f"classes-{number}",
        f"Classes and confusions{heading}",
        (),
        tuple(
            classes.matrix(main, configuration, f"confusion-matrix-{number}-{i}")
            for i, configuration in enumerate(matrices, 1)
            if main is not None
        ),
        tuple(tables),
        folded=frozenset(table.slug for table in tables if table),
    )


def _agreement(
    every: list[SharedRows], number: str, heading: str, gallery_rows: int, answers: HumanAnswers | None
) -> Part:
    main = _main(every)
    answered = humans.human_sets(every, answers) if answers else []
    tables = [
        humans.summary(answered, f"humans-{number}"),
        humans.details(answered, f"human-pairs-{number}"),
        agreement.table(every, f"consistency-{number}"),
    ]
    text: list[str] = []
    galleries: list[Gallery] = []
    found = disagreement.disputed(main) if main else None
    if found is not None:
        tables.append(disagreement.table(found, f"disagreement-{number}"))
        if gallery_rows:
            row, missing = disagreement.gallery(found, gallery_rows)
            if missing:
                text.append(
                    f"{missing} of the images on which runs disagree cannot be opened where they were and "
                    f"{'is' if missing == 1 else 'are'} passed over in the gallery."
                )
            if row:
                title = f"Images of {found.shared.name} on which runs disagree most"
                galleries.append(Gallery(title, (row,), enlarged=False))
                text.append(
                    "Under each disputed image: its class and file, which runs are right, and what the "
                    "others answer."
                )
    return Part(
        f"agreement-{number}",
        f"Where runs agree and disagree{heading}",
        tuple(text),
        (agreement.figure(main, f"consistency-{number}"),) if main else (),
        tuple(tables),
        tuple(galleries),
        folded=frozenset({f"human-pairs-{number}", f"consistency-{number}", f"disagreement-{number}"}),
    )
