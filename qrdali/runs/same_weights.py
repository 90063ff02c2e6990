"""Says whether the weights of runs are the same, as where training never improved on its start."""

from __future__ import annotations

from pathlib import Path

from qrdali.errors import InputError, RunError, printable
from qrdali.runs import folder as run_folder
from qrdali.runs import settings


def is_same_network(one: run_folder.BestModel, other: run_folder.BestModel) -> bool:
    """Returns whether two networks that hold the same weights answer the same to an image."""
    return (one.model, one.preprocessing, one.model_options) == (
        other.model,
        other.preprocessing,
        other.model_options,
    )


def same_weights_note(first: Path, second: Path) -> str:
    """Returns the sentence that two runs, A and B, hold the same weights; "" where they do not, or one of
    them is no run.

    Raises RunError for damaged runs.
    """
    folders = (first, second)
    if not all(run_folder.holds_run(folder) for folder in folders):
        return ""
    digests = [run_folder.recorded_weights(folder) for folder in folders]
    if not digests[0] or digests[0] != digests[1]:
        return ""
    one, other = (run_folder.describe_best(folder) for folder in folders)
    text = "A and B hold the same weights"
    if is_same_network(one, other):
        text += " and are the same network: no difference between them comes from training"
    else:
        text += "; what differs is how an image is prepared for them, or an option of the network"
    at_start = [
        f"{name}'s best epoch is 0, the weights that it began with"
        for name, trained, folder in zip("AB", (one, other), folders, strict=True)
        if trained.epoch == 0 and not run_folder.is_adopted(folder)
    ]
    return "; ".join([text, *at_start])


def start_note(run: Path) -> str:
    """Returns the sentence that a run's best/ holds the weights that it began with; "" where it does not.

    Raises InputError or RunError for a folder that is no run, or a damaged one.
    """
    if run_folder.is_adopted(run) or run_folder.describe_best(run).epoch:
        return ""
    text = (
        f"the best epoch of {printable(run)} is 0: best/ holds the weights that it began with, and nothing "
        "that it trained"
    )
    init = settings.read_toml(run / "config.toml").get("init")
    if not isinstance(init, str) or not init:
        return text
    try:
        is_same = run_folder.recorded_weights(Path(init)) == run_folder.recorded_weights(run)
    except (InputError, RunError, ValueError):  # what it began with is damaged, which is nothing to this run
        is_same = False
    return f"{text}; the run {printable(init)} has the same weights" if is_same else text
