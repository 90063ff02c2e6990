"""Fixtures of tests of the training loop."""

from collections.abc import Callable

import pytest

from qrdali.evaluation.prediction_rows import PredictionRows


@pytest.fixture
def accuracies(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Prescribes the accuracy of each validation: of the start first, the last one for ever."""

    def prescribe(*values: float) -> None:
        known: list[tuple[PredictionRows, float]] = []
        remaining = iter(values)

        def accuracy(self: PredictionRows) -> float:
            for one, value in known:
                if one is self:
                    return value
            known.append((self, next(remaining, values[-1])))
            return known[-1][1]

        monkeypatch.setattr(PredictionRows, "accuracy", property(accuracy))

    return prescribe
