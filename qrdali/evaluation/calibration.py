"""Says how far a network's confidence is from its accuracy: the expected calibration error and its bins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BINS = 15  # of equal width; the number of Guo et al., On Calibration of Modern Neural Networks, ICML 2017


@dataclass(frozen=True)
class Calibration:
    """Holds images by the confidence of their prediction, in `BINS` bins of equal width over [0, 1].

    images: int64 [BINS]. confidence: float64 [BINS], the sum of the images' confidences. correct: int64
    [BINS], how many are right. Bin i holds confidences above i ÷ BINS and at most (i + 1) ÷ BINS, the first
    one 0 as well.
    """

    images: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float64]
    correct: npt.NDArray[np.int64]

    @property
    def error(self) -> float:
        """Returns the expected calibration error in [0, 1]: the mean over images of the distance between the
        mean confidence and the accuracy of their bin.
        """
        return float(np.abs(self.confidence - self.correct).sum() / self.images.sum())

    @property
    def mean_confidence(self) -> float:
        """Returns the mean confidence of all images, in [0, 1]."""
        return float(self.confidence.sum() / self.images.sum())

    @property
    def accuracy(self) -> float:
        """Returns the share of all images that are right, in [0, 1]."""
        return float(self.correct.sum() / self.images.sum())

    def __add__(self, other: Calibration) -> Calibration:
        return Calibration(
            self.images + other.images, self.confidence + other.confidence, self.correct + other.correct
        )


def bin_edges() -> npt.NDArray[np.float64]:
    """Returns the limits of the bins, float64 [BINS + 1], from 0 to 1."""
    return np.linspace(0, 1, BINS + 1)


def calibration(confidence: npt.NDArray[np.floating], correct: npt.NDArray[np.bool_]) -> Calibration | None:
    """Sorts images into bins by confidence [N] in [0, 1], N >= 1, of whether each is right, bool [N].

    Returns None where a confidence is NaN, as that of a network whose logits are, or no probability.
    """
    values = confidence.astype(np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        return None
    number = np.searchsorted(bin_edges()[1:-1], values, side="left")
    return Calibration(
        np.bincount(number, minlength=BINS).astype(np.int64),
        np.bincount(number, weights=values, minlength=BINS).astype(np.float64),
        np.bincount(number[correct], minlength=BINS).astype(np.int64),
    )
