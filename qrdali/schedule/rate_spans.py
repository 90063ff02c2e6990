"""How many epochs the spans of a learning rate's schedule have, by a run's settings alone."""

from __future__ import annotations

from qrdali.runs.settings import Settings


def has_set_length(settings: Settings) -> bool:
    """Returns whether a run ends after a set number of epochs or steps, and not by patience."""
    return settings.method == "shared" or bool(settings.match or settings.match_steps)


def horizon_epochs(settings: Settings) -> int:
    """Returns the epochs that a run has at most."""
    return settings.epochs if settings.method == "shared" else settings.max_epochs


def span_epochs(settings: Settings) -> tuple[int, str]:
    """Returns the epochs in which warm-up must end, and the option that says how many they are."""
    if settings.lr_schedule == "stage":
        return settings.stage_epochs, "--stage-epochs"
    if settings.method == "shared":
        return settings.epochs, "--epochs"
    return settings.max_epochs, "--match" if settings.match_steps else "--max-epochs"


def last_decay_epochs(settings: Settings) -> int:
    """Returns the epochs of the decay of wsd at the end of a run of set length, 20% of them by default."""
    epochs = horizon_epochs(settings)
    return min(epochs, settings.decay_epochs or max(1, round(epochs / 5)))
