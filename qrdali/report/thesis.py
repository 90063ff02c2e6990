"""Figures of the thesis' slides (one RTX 3090, Ryzen 7 1800X, batch size 32) that the report puts beside ours."""

from __future__ import annotations

from dataclasses import dataclass, field

REDUCTIONS = ("color", "crop", "resolution", "combination")


@dataclass(frozen=True)
class Network:
    """gflop: a multiply-add counted once. gpu_mb: on HumaNet. epoch_seconds: of 25,000 images, "full" and by reduction.
    adaptive_seconds: of making one stage's reduced images. mepi_minutes: how many images is not stated."""

    name: str
    gflop: float
    parameters: float
    gpu_mb: int
    epoch_seconds: dict[str, float] = field(default_factory=dict)
    adaptive_seconds: dict[str, float] = field(default_factory=dict)
    mepi_minutes: dict[str, float] = field(default_factory=dict)


def _by(*values: float) -> dict[str, float]:
    return dict(zip(REDUCTIONS, values, strict=True))


NETWORKS = {
    "squeezenet1_1": Network("SqueezeNet", 0.352, 1e6, 4411, {"full": 28.5, **_by(32.6, 29.0, 28.9, 33.5)}, _by(26, 465, 26, 672),
                             _by(38, 39, 39, 39)),
    "resnet152": Network("ResNet-152", 11.0, 60e6, 14685, {"full": 150.5, **_by(154.3, 151.0, 150.9, 155.0)}, _by(56, 1734, 56, 2584),
                         _by(114, 116, 118, 117)),
    "efficientnet_b3": Network("EfficientNet-B3", 1.8, 12e6, 13413, {"full": 90.0, **_by(94.3, 91.2, 90.8, 95.0)},
                               _by(30, 1153, 30, 1513), _by(113, 116, 123, 126)),
}
HUMANET_IMAGES = 25_000
USD_PER_KWH = 0.17
CARDS = (("RTX 3090", 350, 1500), ("Pascal 100", 250, 1000), ("Tesla K80", 300, 350))  # name, watts, price in USD
CLOUD = (("Pascal 100", 1.46), ("Tesla K80", 0.45))  # name, USD an hour
CLP_PER_USD = 1000  # the slides' rate


def network(model: str) -> Network | None:
    """By a model's name, with or without its library's."""
    return NETWORKS.get(model.rpartition("/")[2].partition(".")[0])
