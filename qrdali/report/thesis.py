"""Figures of the thesis' slides (one RTX 3090, Ryzen 7 1800X, batch size 32) that stand beside ours in the
report.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from qrdali.report.tables import Table, number, words

REDUCTIONS = ("color", "crop", "resolution", "combination")
CONDITIONS = (
    "The slides' figures are of one RTX 3090 and batches of 32: of HumaNet (25,000 training images, 20 "
    "classes), "
    "or of ImageNet beside a network with 1,000 classes."
)


@dataclass(frozen=True)
class Network:
    """Holds the slides' figures of a network; what they do not give is left out.

    gflop: a multiply-add counted once. epoch_seconds: "full" and by reduction. adaptive_seconds: of making
    one stage's reduced images. mepi_minutes: for a number of images that is not stated.
    """

    name: str
    gflop: float
    parameters: float
    gpu_mb: int
    epoch_seconds: dict[str, float] = field(default_factory=dict)
    adaptive_seconds: dict[str, float] = field(default_factory=dict)
    mepi_minutes: dict[str, float] = field(default_factory=dict)


def _by(*values: float) -> dict[str, float]:
    return dict(zip(REDUCTIONS, values, strict=True))


HUMANET = {
    "squeezenet1_1": Network(
        "SqueezeNet",
        0.352,
        1e6,
        4411,
        {"full": 28.5, **_by(32.6, 29.0, 28.9, 33.5)},
        _by(26, 465, 26, 672),
        _by(38, 39, 39, 39),
    ),
    "resnet152": Network(
        "ResNet-152",
        11.0,
        60e6,
        14685,
        {"full": 150.5, **_by(154.3, 151.0, 150.9, 155.0)},
        _by(56, 1734, 56, 2584),
        _by(114, 116, 118, 117),
    ),
    "efficientnet_b3": Network(
        "EfficientNet-B3",
        1.8,
        12e6,
        13413,
        {"full": 90.0, **_by(94.3, 91.2, 90.8, 95.0)},
        _by(30, 1153, 30, 1513),
        _by(113, 116, 123, 126),
    ),
}
IMAGENET = {
    "efficientnet_b3": Network(
        "EfficientNet-B3",
        1.8,
        12e6,
        21107,
        {"full": 7724, "crop": 7748, "combination": 8172},
        {},
        _by(1077, 3176, 698, 3297),
    )
}
USD_PER_KWH = 0.17
CARDS = (
    ("RTX 3090", 350, 1500),
    ("Pascal 100", 250, 1000),
    ("Tesla K80", 300, 350),
)  # name, watts, price in USD
CLOUD = (("Pascal 100", 1.46), ("Tesla K80", 0.45))  # name, USD an hour
CLP_PER_USD = 1000  # the slides' rate

# Method and reduction; accuracy in percent on val, test, and fixed sets of 300 images reduced by color,
# combination, crop, resolution.
_SETS = ("val", "test", "color", "combination", "crop", "resolution")
_ACCURACY: dict[str, dict[str, tuple[float | None, ...]]] = {
    "EfficientNet-B3 on HumaNet": {
        "shared": (68.0, None, 30.0, 24.3, 27.6, 38.3),
        "baseline": (73.4, 74.8, 33.3, 28.0, 31.0, 45.3),
        "adaptive paired-rounds crop": (75.0, 74.9, 35.7, 34.0, 47.7, 45.0),
        "linear paired-rounds crop": (72.6, 74.4, 31.7, 31.7, 39.9, 45.3),
        "linear paired-rounds resolution": (72.6, 73.8, 31.3, 26.3, 32.3, 54.0),
        "linear paired-rounds combination": (71.4, 72.4, 34.7, 30.7, 36.0, 46.7),
        "adaptive paired-epochs combination": (71.4, 73.9, 35.3, 28.3, 42.0, 46.3),
        "linear paired-epochs combination": (69.8, 73.4, 38.0, 27.7, 31.3, 42.0),
    },
    "ResNet-152 on HumaNet": {
        "shared": (61.6, None, 42.3, 35.3, 24.0, 53.6),
        "baseline": (61.6, 60.4, 42.3, 35.3, 24.0, 53.6),
        "every method": (61.6, 60.4, 42.3, 35.3, 24.0, 53.7),
    },
    "SqueezeNet on HumaNet": {
        "shared": (39.8, None, 26.6, 27.3, 18.3, 35.3),
        "baseline": (40.0, 39.1, 27.0, 27.6, 18.3, 35.6),
        "linear paired-epochs crop": (40.4, 38.7, 26.3, 28.0, 19.7, 35.0),
        "linear paired-rounds resolution": (40.2, 39.5, 28.0, 27.0, 18.0, 35.7),
        "linear paired-epochs resolution": (40.2, 39.2, 27.3, 27.7, 18.3, 36.0),
        "linear paired-epochs color": (40.2, 39.2, 27.0, 27.7, 18.3, 35.7),
        "linear paired-epochs combination": (40.2, 39.0, 27.3, 28.0, 18.0, 36.0),
        "linear paired-rounds combination": (40.0, 39.2, 26.3, 27.3, 19.7, 34.7),
        "linear paired-rounds color": (40.0, 39.1, 27.0, 27.7, 18.3, 36.0),
    },
    "EfficientNet-B3 on ImageNet": {
        "shared": (65.804, 63.314),
        "baseline": (74.364, 71.614),
        "linear paired-rounds crop": (75.556, 72.39),
        "linear paired-rounds combination": (75.348, 72.2),
    },
}


# The epoch in which the best was found; the baseline's is counted on from that of the shared run.
_BEST_EPOCH = {
    "EfficientNet-B3 on HumaNet": {"shared": 19, "baseline": 143},
    "ResNet-152 on HumaNet": {"shared": 11, "baseline": 11},
    "SqueezeNet on HumaNet": {"shared": 21, "baseline": 29},
}


def best_epoch(model: str, classes: int, method: str) -> int | None:
    """Returns the epoch in which the slides found the best of a method, "shared" or "baseline", with a
    network.
    """
    known = network(model, classes)
    if known is None or classes >= 1000:
        return None
    return _BEST_EPOCH.get(f"{known.name} on HumaNet", {}).get(method)


def network(model: str, classes: int) -> Network | None:
    """Returns a network by a model's name, with or without its library's; on ImageNet from 1,000 classes on,
    else on HumaNet.
    """
    return (IMAGENET if classes >= 1000 else HUMANET).get(model.rpartition("/")[2].partition(".")[0])


def accuracies(slug: str) -> Table:
    """Returns the slides' table of accuracies (annexes 2 and 5)."""
    rows = tuple(
        (
            words(where),
            words(method),
            number(_BEST_EPOCH.get(where, {}).get(method)),
            *(number(values[i] if i < len(values) else None, ".1f") for i in range(len(_SETS))),
        )
        for where, methods in _ACCURACY.items()
        for method, values in methods.items()
    )
    return Table(
        slug,
        "Accuracy in the thesis' slides",
        ("network", "run", "best epoch", *_SETS),
        rows,
        (
            "Percent. The reduced sets are fixed sets, by their figures of 300 images: they are not the "
            "networks' own minimal images. On ImageNet's 50,000 test images the slides give all three *** "
            "against the baseline. Best epoch: where the slides give it; the baseline's is counted on from "
            "the shared run's.",
        ),
    )
