"""Tables of whether networks err on the same images as people, from what people answered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, islice

import numpy as np
import numpy.typing as npt

from qrdali.data.set_names import RESERVED
from qrdali.errors import printable
from qrdali.evaluation.consistency import ErrorConsistency, error_consistency
from qrdali.evaluation.human_answers import HumanAnswers, MatchedAnswers, PersonAnswers, match_answers
from qrdali.report.agreement import KAPPA_NOTE
from qrdali.report.shared_rows import SharedRows
from qrdali.report.tables import Cell, Table, number, words

_MOST_ROWS = 10_000  # of the table of persons
_MOST_PERSONS = 60  # of whom each two are compared
_NAMED_ANSWERS = 5


@dataclass(frozen=True)
class HumanSet:
    """Holds what people answered to images of a set that runs have rows of.

    right: of each of the persons who answered, bool [M], whether each of their images is.
    """

    shared: SharedRows
    matched: MatchedAnswers
    right: tuple[npt.NDArray[np.bool_], ...]


def human_sets(every: list[SharedRows], answers: HumanAnswers) -> list[HumanSet]:
    """Returns the sets of which people saw images.

    Answers that name no set are of images as they are: not of a split at a reduced quality, whose images have
    the same files.
    """
    named = set(answers.sets) - {""}
    found = []
    for shared in every:
        reserved = RESERVED.fullmatch(shared.name)
        if shared.name not in named and reserved and reserved[2]:
            continue
        paths = shared.rows(shared.runs[0]).paths()
        if paths is None or not len(shared.classes):
            continue
        matched = match_answers(answers, shared.name, paths.tolist(), shared.classes)
        if matched.persons:
            right = tuple(shared.labels[one.images] == one.labels for one in matched.persons)
            found.append(HumanSet(shared, matched, right))
    return found


def summary(found: list[HumanSet], slug: str) -> Table | None:
    """Returns the table of each run's mean consistency with people, and of people among themselves; None
    where nobody answered to any image.
    """
    rows = [row for one in found for row in _summary_rows(one)]
    if not rows:
        return None
    columns = ("set", "run", "people", "answers", "people's accuracy", "its accuracy", "mean κ")
    notes = [
        "Each person is compared with a run on the images that the person answered to; mean ± standard "
        "deviation over people. Accuracies in percent: an answer is right if it names the image's class.",
        KAPPA_NOTE,
        *(note for one in found for note in _notes(one)),
    ]
    return Table(slug, "Error consistency with people", columns, tuple(rows), tuple(notes))


def _summary_rows(one: HumanSet) -> list[tuple[Cell, ...]]:
    """Returns the rows of a set: of people among themselves, then of each run."""
    persons, name = one.matched.persons, words(one.shared.name)
    fixed = (number(len(persons)), number(sum(map(len, one.right))))
    accuracy = _mean_percent([right.mean() for right in one.right])
    among = [consistency.kappa for _, _, consistency in _among_persons(one)]
    rows: list[tuple[Cell, ...]] = []
    rows.append((name, words("people among themselves"), *fixed, accuracy, accuracy, _mean_kappa(among)))
    for run in one.shared.runs:
        correct = one.shared.rows(run).correct
        own = _mean_percent([correct[person.images].mean() for person in persons])
        kappas = [
            _with_run(person, right, correct).kappa for person, right in zip(persons, one.right, strict=True)
        ]
        rows.append((name, words(run.name), *fixed, accuracy, own, _mean_kappa(kappas)))
    return rows


def _mean_percent(shares: list[float]) -> Cell:
    values = 100 * np.array(shares)
    return number(float(values.mean()), ".1f", _sd(values))


def _mean_kappa(kappas: list[float | None]) -> Cell:
    known = np.array([kappa for kappa in kappas if kappa is not None])
    return number(float(known.mean()) if len(known) else None, ".3f", _sd(known))


def _sd(values: npt.NDArray[np.float64]) -> float | None:
    return float(values.std(ddof=1)) if len(values) > 1 else None


def details(found: list[HumanSet], slug: str) -> Table | None:
    """Returns the table of every person with every run, and of each two people; None without."""
    rows = list(islice((row for one in found for row in _detail_rows(one)), _MOST_ROWS + 1))
    if not rows:
        return None
    columns = (
        "set",
        "person",
        "with",
        "images",
        "the person's accuracy",
        "the other's accuracy",
        "observed %",
        "expected %",
        "κ",
    )
    is_cut = len(rows) > _MOST_ROWS
    notes = (f"The first {_MOST_ROWS:,} pairs; there are more.",) if is_cut else ()
    return Table(slug, "Error consistency, person by person", columns, tuple(rows[:_MOST_ROWS]), notes)


def _detail_rows(one: HumanSet) -> Iterator[tuple[Cell, ...]]:
    name, persons = one.shared.name, one.matched.persons
    for person, right in zip(persons, one.right, strict=True):
        for run in one.shared.runs:
            correct = one.shared.rows(run).correct
            consistency = _with_run(person, right, correct)
            yield _row((name, person.person, run.name), consistency, right, correct[person.images])
    for i, j, consistency in _among_persons(one):
        own, others = _common_images(persons[i], persons[j])
        shown = (name, persons[i].person, persons[j].person)
        yield _row(shown, consistency, one.right[i][own], one.right[j][others])


def _row(
    shown: tuple[str, str, str],
    consistency: ErrorConsistency,
    first: npt.NDArray[np.bool_],
    second: npt.NDArray[np.bool_],
) -> tuple[Cell, ...]:
    return (
        *map(words, shown),
        number(consistency.images),
        number(100 * first.mean(), ".1f"),
        number(100 * second.mean(), ".1f"),
        number(100 * consistency.observed, ".2f"),
        number(100 * consistency.expected, ".2f"),
        number(consistency.kappa, ".3f"),
    )


def _with_run(
    person: PersonAnswers, right: npt.NDArray[np.bool_], correct: npt.NDArray[np.bool_]
) -> ErrorConsistency:
    """Compares a person with a run whose rows are right where `correct`, bool [N of the set]."""
    return _compared(right, correct[person.images])


def _compared(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> ErrorConsistency:
    both = int((first & second).sum())
    one, other = int(first.sum()) - both, int(second.sum()) - both
    return error_consistency(both, one, other, len(first) - both - one - other)


def _among_persons(one: HumanSet) -> list[tuple[int, int, ErrorConsistency]]:
    """Returns the numbers of each two persons and their consistency on images that both answered to."""
    found = []
    persons = one.matched.persons[:_MOST_PERSONS]
    for i, j in combinations(range(len(persons)), 2):
        own, others = _common_images(persons[i], persons[j])
        if len(own):
            found.append((i, j, _compared(one.right[i][own], one.right[j][others])))
    return found


def _common_images(
    first: PersonAnswers, second: PersonAnswers
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns where the answers of each to the images that both answered to stand, int64 [M] twice."""
    _, own, others = np.intersect1d(first.images, second.images, assume_unique=True, return_indices=True)
    return own, others


def _notes(one: HumanSet) -> list[str]:
    """Returns what of people's rows on a set was not taken as it stands."""
    matched, name = one.matched, one.shared.name
    notes = list(one.shared.notes)
    if matched.unknown:
        rows = sum(matched.unknown.values())
        shown = ", ".join(repr(printable(answer[:40])) for answer in list(matched.unknown)[:_NAMED_ANSWERS])
        more = len(matched.unknown) - _NAMED_ANSWERS
        notes.append(
            f"On {name}, {rows:,} answers of people are none of the classes and count as wrong: {shown}"
            + (f" and {more} others." if more > 0 else ".")
        )
    if matched.repeated:
        notes.append(
            f"On {name}, {matched.repeated:,} answers are to an image that the person had answered to "
            "before: the first one counts."
        )
    if matched.ambiguous:
        notes.append(
            f"On {name}, {matched.ambiguous:,} rows of people are of a file name that several images have, "
            "and are left out: give the folder too."
        )
    if len(matched.persons) > _MOST_PERSONS:
        notes.append(f"On {name}, people are compared among themselves by the first {_MOST_PERSONS}.")
    return notes


def unmatched(answers: HumanAnswers) -> str:
    """Returns a warning for answers of which none is to an image that a run was evaluated on."""
    return (
        f"{printable(answers.file)}: none of its {len(answers):,} rows is of an image that these runs were "
        f"evaluated on (its first is {printable(answers.paths[0])[:120]!r}): there is no comparison with "
        "people"
    )
