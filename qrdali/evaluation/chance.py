"""Says whether an accuracy is above chance: that of always answering the most frequent class of the set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from qrdali.evaluation.seeded_differences import ALPHA
from qrdali.evaluation.stats import p_text


@dataclass(frozen=True)
class Chance:
    """Compares a network's answers to a set with the same answer to every image.

    correct: images that the network has right, of `images`. most_frequent: images of the most frequent class,
    which that one answer has right. p_value: of the one-sided binomial test that the network is right more
    often than that; 1 where all images are of one class, as nothing can be above that.
    """

    correct: int
    images: int
    most_frequent: int
    p_value: float

    @property
    def is_not_above(self) -> bool:
        """Returns whether the test fails to show that the network is right more often (p > .05).

        False where all images are of one class: such a set cannot show it of any network.
        """
        return self.most_frequent < self.images and self.p_value > ALPHA

    @property
    def figures(self) -> str:
        """Returns what was compared: "24 of 120 right, the most frequent class is 20 of 120"."""
        return (
            f"{self.correct:,} of {self.images:,} right, the most frequent class is "
            f"{self.most_frequent:,} of {self.images:,}"
        )

    def sentence(self, network: str, name: str) -> str:
        """Returns that `network` is not above chance on the set `name`, "" where that is not so."""
        if not self.is_not_above:
            return ""
        return (
            f"{network} is not above chance on {name}: {self.figures} (one-sided binomial test, "
            f"p = {p_text(self.p_value)})"
        )


def most_frequent(labels: npt.NDArray[np.integer]) -> int:
    """Returns how many of the labels, integers [N], N >= 1, are the most frequent one."""
    return int(np.unique(labels, return_counts=True)[1].max())


def chance(correct: int, images: int, of_most_frequent: int) -> Chance:
    """Returns the comparison of `correct` right answers with `of_most_frequent`, both of `images`.

    The p value is binomial, of the frequency in this very set: the set is what the network was asked.
    """
    test = binomtest(correct, images, of_most_frequent / images, alternative="greater")
    return Chance(correct, images, of_most_frequent, float(test.pvalue))


def chance_of_rows(labels: npt.NDArray[np.integer], right: npt.NDArray[np.bool_]) -> Chance:
    """Returns the comparison of rows.

    labels: integers [N], N >= 1. right: bool [N], whether each answer is.
    """
    return chance(int(right.sum()), len(right), most_frequent(labels))
