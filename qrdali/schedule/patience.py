"""Judges units of patience: whether one improves on the best so far, and when too many in a row have not.

A unit is one repetition of a pattern such as RC, or one epoch of a round (see `epoch_schedule`). Improving is
strictly greater: after .6 another .6 does not improve.
"""

from __future__ import annotations

from typing import NamedTuple

NEVER = float("-inf")  # the best accuracy before the first unit: whatever comes improves on it


class PatienceRecord(NamedTuple):
    """Remembers a stage or round: the best unit's accuracy, the epoch that judged it, and the units since."""

    best: float = NEVER
    best_epoch: int = 0
    wait: int = 0


def scoring_position(pattern: str) -> int:
    """Returns the position in `pattern` whose accuracy is the unit's: the last C, or the last without a C.

    1 for RC, 0 for CR, 1 for CCR, 2 for RRR. Accuracy falls after an R epoch, which says nothing about the
    unit.
    """
    return pattern.rindex("C") if "C" in pattern else len(pattern) - 1


def after_unit(record: PatienceRecord, accuracy: float, epoch: int) -> PatienceRecord:
    """Returns the record after a unit of that `accuracy`, which is the accuracy after `epoch`.

    With a best of .6, an accuracy of .6001 resets the wait to 0, and .6 or less adds 1.
    """
    if accuracy > record.best:
        return PatienceRecord(accuracy, epoch, 0)
    return record._replace(wait=record.wait + 1)


def has_run_out(record: PatienceRecord, patience: int | None) -> bool:
    """Returns whether as many units as `patience` allows have not improved. None never runs out.

    With patience 3 a wait of 2 has not run out, a wait of 3 has.
    """
    return patience is not None and record.wait >= patience


def reason_of_end(record: PatienceRecord, pattern: str) -> str:
    """Returns why patience has run out, for a line of the log: what was waited for and in vain."""
    unit = "epoch" if len(pattern) == 1 else f"{pattern} repetition"
    plural = "s" if record.wait > 1 else ""
    return (
        f"patience: {record.wait} {unit}{plural} did not exceed {record.best:.4f} "
        f"of epoch {record.best_epoch}"
    )
