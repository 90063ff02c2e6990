"""Searches a MEPI as one would write it first.

One image at a time, Pillow reductions, batch-1 forward passes, a PNG at each step.

The rule is the definition's (docs/explanation/definitions.md), so the answers are `qrdali build-mepi`'s,
up to the resize filters. It shares no code with the package. `qrdali bench mepi` times it beside ours on
the same images.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from PIL import Image, ImageOps

ANCHORS = ((0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5))


def _round(x: float) -> int:
    return math.floor(x + 0.5)


def _quality(level: int, n: int) -> float:
    return (n - level) / n if level < n else 0.5 ** (level - n + 1) / n


def _side(length: int, level: int, n: int) -> int:
    return max(1, _round(length * math.sqrt(_quality(level, n))))


def _bins(level: int, n: int) -> int:
    d = _round(256 ** (1 - _quality(level, n)))
    return d if d <= 128 else 128 if level < n else 256


def _png(image: Image.Image) -> int:
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=6)
    return len(out.getvalue())


def reduced(whole: Image.Image, state: tuple[int, ...], n: int) -> Image.Image:
    """Returns the reduced image of a state: color, crop and resolution level, top, left."""
    color, crop, resolution, top, left = state
    h, w = _side(whole.height, crop, n), _side(whole.width, crop, n)
    image = whole.crop((left, top, left + w, top + h))
    size = _side(w, resolution, n), _side(h, resolution, n)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    d = _bins(color, n)
    if d > 1:
        image = image.point([min(255, v // d * d + d // 2) for v in range(256)] * 3)
    return image


def neighbours(
    whole: Image.Image, state: tuple[int, ...], dimensions: tuple[bool, bool, bool], n: int, tail: int
) -> list[tuple[int, ...]]:
    """Returns the states one step below: color, resolution, crop windows. tail: levels below the grid's n."""
    color, crop, resolution, top, left = state
    h, w = _side(whole.height, crop, n), _side(whole.width, crop, n)
    found: list[tuple[int, ...]] = []
    if dimensions[0]:
        found += [
            (k, crop, resolution, top, left)
            for k in range(color + 1, n + tail)
            if _bins(k, n) != _bins(color, n)
        ][:1]
    if dimensions[2]:
        found += [
            (color, crop, k, top, left)
            for k in range(resolution + 1, n + tail)
            if (_side(h, k, n), _side(w, k, n)) != (_side(h, resolution, n), _side(w, resolution, n))
        ][:1]
    if dimensions[1]:
        sizes = [(k, _side(whole.height, k, n), _side(whole.width, k, n)) for k in range(crop + 1, n + tail)]
        for k, a, b in [s for s in sizes if s[1:] != (h, w)][:1]:
            found += [
                (color, k, resolution, top + _round(y * (h - a)), left + _round(x * (w - b)))
                for y, x in ANCHORS
            ]
    return found


class Naive:
    """Searches with a network.

    preprocessing: has input_size, mean and std in 0..1, and interpolation "bilinear" or "bicubic".
    mapped: for labels of other classes, the label of each of the network's classes (-1: none), and the rule,
    "argmax" or "sum".
    """

    def __init__(
        self,
        model: torch.nn.Module,
        device: Any,
        preprocessing: Any,
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
        mapped: tuple[list[int], str] | None = None,
    ) -> None:
        from torchvision import transforms

        self.model, self.device, self.autocast, self.mapped = model, device, autocast, mapped
        side, method = preprocessing.input_size, transforms.InterpolationMode(preprocessing.interpolation)
        normalize = transforms.Normalize(preprocessing.mean, preprocessing.std)
        self.prepare = transforms.Compose(
            [transforms.Resize((side, side), method), transforms.ToTensor(), normalize]
        )

    def judged(self, image: Image.Image, label: int) -> tuple[bool, float]:
        """Returns whether the network is right, and the true class's probability."""
        with torch.inference_mode(), self.autocast():
            p = self.model(self.prepare(image)[None].to(self.device)).float().softmax(1)[0]
        if self.mapped is None:
            return int(p.argmax()) == label, float(p[label])
        targets, rule = self.mapped
        own = [float(value) for value, target in zip(p, targets, strict=True) if target == label]
        if rule == "argmax":
            return targets[int(p.argmax())] == label, max(own)
        sums = {t: sum(float(v) for v, u in zip(p, targets, strict=True) if u == t) for t in set(targets)}
        return all(sums[label] >= sums[other] for other in sums if other >= 0), sums[label]

    def search(
        self, path: str, label: int, dimensions: tuple[bool, bool, bool], n: int, tail: int = 0
    ) -> tuple[tuple[int, ...] | None, float]:
        """Returns (state, entropy quotient) of an image's MEPI, or None and 0 where it is wrong at full
        quality.

        n: of the step 1/n. tail: levels below that grid, each of half the quality of the one before.
        """
        with Image.open(path) as file:
            whole = ImageOps.exif_transpose(file).convert("RGB")
        state: tuple[int, ...] = (0, 0, 0, 0, 0)
        if not self.judged(whole, label)[0]:
            return None, 0.0
        full = entropy = _png(whole)
        while True:
            around = [
                (candidate, *self.judged(reduced(whole, candidate, n), label))
                for candidate in neighbours(whole, state, dimensions, n, tail)
            ]
            good = [c for c in around if c[1]]
            if not good:
                return state, entropy / full
            state = max(good, key=lambda c: c[2])[0]
            entropy = _png(reduced(whole, state, n))
