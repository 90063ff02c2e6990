"""What a reader must know before the findings: the words and rules, and what was trained on which data."""

from __future__ import annotations

from qrdali.errors import printable
from qrdali.models import SMALL
from qrdali.report.findings.accuracy_tests import tested_sets
from qrdali.report.findings.finding import counted
from qrdali.report.findings.opponents import CONTROLS, methods, opponent
from qrdali.report.groups import Configuration, Group

_MOST_GROUPS, _MOST_RUNS, _MOST_SETS, _MOST_CLASSES = 4, 10, 8, 8
_LONGEST = 40  # characters of a class's name

RULES = (
    "This report was made by qrdali, a program that trains image classifiers on images of reduced "
    "quality as proposed in the thesis of Pablo Felipe Torres Gutiérrez, Training Convolutional Neural "
    "Networks with Quality-Reduced Examples (University of Chile; the slides are those of its defence). "
    "It asks the thesis' two questions: P1, which training is more accurate on full and on reduced "
    "images, and P2, whether networks then need less information. By the information of an image, its "
    "entropy, the size of its PNG file is meant. A minimal image is the most reduced one found that a "
    "network still classifies correctly; its entropy quotient is its entropy divided by the original's.",
    "Shared: a run on full-quality images with whose weights others begin. Baseline: trained on "
    "full-quality images only. Method: trained on reduced images in some epochs (R) and on full-quality "
    "ones in the others (C). A method's name has three parts. How its quality changes: fixed keeps one, "
    "linear lowers it step by step, each step a stage, adaptive lowers it for each image as long as the "
    "network classifies that correctly. In which order, the sequence: paired-epochs is R and C in turn, "
    "paired-rounds several epochs of each until they no longer help. What is reduced: crop keeps a "
    "window, resolution fewer pixels, color fewer levels, each at quality 0.5 half of the raw "
    "information; combination reduces all three. A set such as test-crop-0.5 is test reduced by crop to "
    "quality 0.5.",
    "Controls are trained like a method but for one thing, with the same sequence and, if they have one, the "
    "same reduction: matched is a baseline that trains for as "
    "many steps, sham reduces nothing, random draws each image's quality anew in every epoch, "
    "randaugment is a baseline with an automatic augmentation, whose policy (such as rand-m9) stands in "
    "its name. Seeds are repetitions with other random numbers; compared are runs of the same seed. A "
    "point is a percentage point.",
    "Each sentence is computed by fixed rules from what the runs answered to each image. A difference "
    "counts as shown if its p value is below .05 after Holm's correction over all comparisons of its "
    "kind (with the baseline, or with controls); with several seeds both a test over images and one "
    "over seeds must show it. “Not shown” does not mean that there is no difference. Detectable is the "
    "true difference that would be shown with 80% power, that is in 4 of 5 repetitions of the whole "
    "experiment. It is estimated from the spread of these runs, from few seeds roughly, and at the "
    "threshold in force: the corrected one of the first comparison, .05 divided by the number of "
    "comparisons.",
)


def introduction(groups: list[Group]) -> tuple[str, ...]:
    """Returns the paragraphs before the findings: the rules, and what each group of runs is."""
    shown = [_of_group(group) for group in groups[:_MOST_GROUPS]]
    if len(groups) > _MOST_GROUPS:
        more = len(groups) - _MOST_GROUPS
        which = "network and data set stands" if more == 1 else "networks and data sets stand"
        shown.append(f"{more} more {which} in the table of data sets.")
    return (*RULES, *map(printable, shown))


def _of_group(group: Group) -> str:
    sizes = next((run.start.images for run in group.runs if run.start.images), None) or {}
    counts = {name: len(run.sets[name].correct) for run in group.runs for name in run.sets}
    images = [
        f"{sizes['train']:,} training images" if sizes.get("train") else "",
        f"{counts.get('val') or sizes.get('val', 0):,} of val, which choose the best epoch",
        f"{counts['test']:,} of test" if "test" in counts else "",
    ]
    model = group.runs[0].trained.model
    small = ", a network of few layers for demonstrations" if model in SMALL else ""
    classes = ", ".join(name[:_LONGEST] for name in group.classes[:_MOST_CLASSES])
    classes += ", …" if len(group.classes) > _MOST_CLASSES else ""
    runs = [_of_configuration(configuration) for configuration in group.configurations]
    parts = [
        f"Data set, by its folder's name: {group.data}; {counted(len(group.classes), 'class', 'classes')} "
        f"({classes}), "
        f"{', '.join(text for text in images if text)}. Network: {group.network}{small}.",
        f"Runs: {_some(runs, _MOST_RUNS)}.",
        *_of_methods(group),
        _of_baseline(group),
    ]
    return " ".join(part for part in parts if part)


def _some(texts: list[str], most: int) -> str:
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return "; ".join(texts[:most]) + more


def _of_configuration(configuration: Configuration) -> str:
    """Returns a configuration with its seeds and epochs, "baseline (3 seeds, 12 to 20 epochs)"."""
    last = [run.last.epoch for run in configuration.runs]
    epochs = f"{last[0]}" if len(set(last)) == 1 else f"{min(last)} to {max(last)}"
    trained = f", {epochs} {'epoch' if epochs == '1' else 'epochs'}" if max(last) else ""
    return f"{configuration.label} ({counted(len(configuration.runs), 'seed')}{trained})"


def _of_methods(group: Group) -> list[str]:
    """Returns for how many runs of each method the baseline and each control is there; methods of which the
    same is to be said share a sentence.
    """
    alike: dict[str, list[str]] = {}
    for configuration in methods(group):
        runs = configuration.runs
        parts = []
        for name in ("baseline", *(c.name for c in CONTROLS if c.applies(runs[0].settings))):
            found = sum(opponent(group, run, name) is not None for run in runs)
            parts.append(f"{found or 'no'} {name}")
        *first, last = parts
        labels = alike.setdefault(f"{', '.join(first)} and {last}", [])
        labels.append(f"{counted(len(runs), 'run')} of {configuration.label}")
    return [
        f"Beside {_some(labels, _MOST_RUNS)} stand, of the same seeds{' and for each' * (len(labels) > 1)}: "
        f"{what}."
        for what, labels in alike.items()
    ][:_MOST_RUNS]


def _of_baseline(group: Group) -> str:
    """Returns the baselines' mean accuracies, and that of one answer to all images; "" without rows of a
    tested set.
    """
    runs = [
        run
        for configuration in group.configurations
        if configuration.is_baseline
        for run in configuration.runs
    ]
    shown, frequent = [], []
    for name in tested_sets(group):
        known = [run.sets[name] for run in runs if name in run.sets]
        if known:
            shown.append(f"{name} {sum(rows.accuracy for rows in known) / len(known):.1%}")
            frequent += [rows.chance.most_frequent / rows.chance.images for rows in known]
    if not shown:
        return ""
    low, high = f"{min(frequent):.1%}", f"{max(frequent):.1%}"
    return (
        f"Mean accuracy of the baselines: {_some(shown, _MOST_SETS)}; always answering the most frequent "
        f"class of a set, which is chance, is right in {low if low == high else f'{low} to {high}'}."
    )
