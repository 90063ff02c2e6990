"""Corruption errors of ImageNet-C, normalized by AlexNet's, as Hendrycks and Dietterich define them.

Of a network f and a corruption c at severities s, with E the share of wrong answers:

    CE(c) = sum over s of E(f, c, s)
            ÷ sum over s of E(AlexNet, c, s)
    relative CE(c) = sum over s of (E(f, c, s) − E(f, clean))
                     ÷ sum over s of (E(AlexNet, c, s) − E(AlexNet, clean))

mCE and relative mCE are their means over the 15 corruptions. All are shares here; 1 is AlexNet's.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qrdali.data.suite_definitions import SuiteDefinition


@dataclass(frozen=True)
class CorruptionError:
    """Holds the errors under one corruption.

    errors: share of wrong answers by severity. error: their mean. ce, relative_ce: None where a severity is
    not there, relative_ce also without a clean error. is_extra: whether mCE leaves it out.
    """

    errors: Mapping[int, float]
    error: float
    alexnet_error: float
    ce: float | None
    relative_ce: float | None
    is_extra: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "errors": {str(severity): error for severity, error in self.errors.items()},
            "error": self.error,
            "alexnet_error": self.alexnet_error,
            "ce": self.ce,
            "relative_ce": self.relative_ce,
            "extra": self.is_extra,
        }


@dataclass(frozen=True)
class CorruptionErrors:
    """Holds the errors under all corruptions that are there.

    corruptions: by name. clean_error: the share of wrong answers on the images without corruption, None where
    it is not known. complete: the names of the corruptions of mCE that have a corruption error.
    """

    corruptions: Mapping[str, CorruptionError]
    clean_error: float | None
    wanted: int

    @property
    def complete(self) -> tuple[str, ...]:
        return tuple(
            name for name, one in self.corruptions.items() if one.ce is not None and not one.is_extra
        )

    @property
    def mean_ce(self) -> float | None:
        """Returns the mean corruption error over `complete`, which is mCE if those are all 15."""
        return self._mean([self.corruptions[name].ce for name in self.complete])

    @property
    def mean_relative_ce(self) -> float | None:
        return self._mean([self.corruptions[name].relative_ce for name in self.complete])

    @property
    def mean_error(self) -> float | None:
        """Returns the mean share of wrong answers over `complete`, not normalized."""
        return self._mean([self.corruptions[name].error for name in self.complete])

    @property
    def mce(self) -> float | None:
        return self.mean_ce if self.is_whole else None

    @property
    def relative_mce(self) -> float | None:
        return self.mean_relative_ce if self.is_whole else None

    @property
    def is_whole(self) -> bool:
        """Returns whether all corruptions that mCE is of are there."""
        return len(self.complete) == self.wanted

    @staticmethod
    def _mean(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if known and len(known) == len(values) else None

    def to_json(self) -> dict[str, Any]:
        return {
            "mce": self.mce,
            "relative_mce": self.relative_mce,
            "mean_ce": self.mean_ce,
            "mean_relative_ce": self.mean_relative_ce,
            "mean_error": self.mean_error,
            "mean_of": list(self.complete),
            "clean_error": self.clean_error,
            "corruptions": {name: one.to_json() for name, one in self.corruptions.items()},
        }


def corruption_errors(
    definition: SuiteDefinition, errors: Mapping[tuple[str, int], float], clean_error: float | None
) -> CorruptionErrors:
    """Returns the corruption errors of a network.

    errors: its shares of wrong answers, by corruption and severity. clean_error: the share of wrong answers
    without corruption, None where it is not known.
    """
    by_corruption: dict[str, dict[int, float]] = {}
    for (corruption, severity), error in sorted(errors.items()):
        by_corruption.setdefault(corruption, {})[severity] = error
    corruptions = {}
    for name in (name for name in definition.corruptions if name in by_corruption):
        own = by_corruption[name]
        is_extra = name not in definition.alexnet_error
        alexnet = (definition.alexnet_error_extra if is_extra else definition.alexnet_error)[name]
        error = statistics.fmean(own.values())
        ce = relative = None
        if len(own) == definition.severities:
            # Means in place of sums: both have the same number of severities.
            ce = error / alexnet
            if clean_error is not None:
                relative = (error - clean_error) / (alexnet - definition.alexnet_clean_error)
        corruptions[name] = CorruptionError(own, error, alexnet, ce, relative, is_extra)
    return CorruptionErrors(corruptions, clean_error, len(definition.alexnet_error))
