"""Validation after an epoch: predictions of the validation split, and the accuracy of tracked sets."""

from __future__ import annotations

from torch import nn

from qrdali.errors import Interrupted
from qrdali.evaluation.predict import inference_batch_size, predict
from qrdali.evaluation.prediction_rows import PredictionRows
from qrdali.interfaces import RunContext
from qrdali.reduction.levels import Levels
from qrdali.runs.settings import DEFINITIONS
from qrdali.schedule.epoch_plan import EpochPlan
from qrdali.training.run_spec import RunSpec, Splits


class Validator:
    """Shows images to a network without training it. Both methods are collective.

    After a signal to any rank they raise Interrupted on all of them: ranks have to leave together, because
    saving needs all of them."""

    def __init__(self, spec: RunSpec, splits: Splits, context: RunContext) -> None:
        self._settings, self._splits, self._context = spec.settings, splits, context

    def validate(
        self, title: str, model: nn.Module, levels: Levels, definitions: int = DEFINITIONS
    ) -> PredictionRows:
        """Returns the predictions of the validation split at `levels`, the same on all ranks.

        definitions: of the epoch that is judged, as in `EpochPlan`."""
        settings, context, val = self._settings, self._context, self._splits.val
        batch_size = inference_batch_size(settings.batch_size, context.group.world_size)
        plan = EpochPlan(len(val.index), batch_size, levels, settings.scale, definitions=definitions)
        context.listener.begin(title, plan.samples)
        rows = predict(model, val.source, plan, context, on_batch=self._after_batch)
        context.listener.end()
        self._raise_if_signalled()
        return rows

    def evaluate_tracked(
        self, title: str, model: nn.Module, definitions: int = DEFINITIONS
    ) -> dict[str, dict[str, float | None]]:
        """Returns {"tracked": accuracy by name}, or {} if no sets are tracked."""
        sets = self._splits.tracked.under(definitions)
        tracked = sets.evaluate(title, model, self._context, self._after_batch)
        self._raise_if_signalled()
        return tracked

    def _after_batch(self, images: int) -> None:
        self._context.energy.poll()
        self._context.listener.advance(images, str)
        if signum := self._context.stop():
            raise Interrupted("stopped in validation", signum)  # `run_interruptible` raises it on every rank

    def _raise_if_signalled(self) -> None:
        """Raises Interrupted on all ranks if a signal came to any after its last batch."""
        if self._context.group.is_single:
            return
        signals = self._context.group.all_gather_object(self._context.stop())
        if signum := max(signals):
            raise Interrupted("stopped in validation", signum)
