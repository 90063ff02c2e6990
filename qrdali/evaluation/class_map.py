"""Maps a network's classes to a data set's, so that networks of other classes can be evaluated on it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from qrdali.errors import InputError, printable
from qrdali.files import text_lines
from qrdali.files.text_lines import quote
from qrdali.interfaces import Judgement
from qrdali.system.device_copies import to_device

MapRule = Literal["argmax", "sum"]
UNMAPPED = -1  # the prediction of an image whose class is none of the data set's
_HEADER = ("run_class", "data_class")


@dataclass(frozen=True)
class ClassMap:
    """Maps R classes of a network to D classes of a data set.

    classes: the D names. target: int64 [R], the data class of each of the network's classes, or -1. rule:
    "argmax" maps the network's first choice among all R; one that is not mapped is the prediction -1, which
    is wrong; the confidence is that class's probability. "sum" adds the probabilities of each data class; the
    largest sum wins and is the confidence. run_classes: the names of the R.
    """

    classes: tuple[str, ...]
    target: npt.NDArray[np.int64]
    rule: MapRule
    run_classes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Returns the SHA-256 of which class maps to which, whatever the file's order and comments."""
        mapping = [list(self.classes), self.target.tolist(), list(self.run_classes)]
        return hashlib.sha256(json.dumps(mapping).encode()).hexdigest()

    @property
    def answers(self) -> tuple[str, ...]:
        """Returns the names of what `judge` answers: the data's classes, then the run's if "argmax"."""
        return self.classes if self.rule == "sum" else self.classes + self.run_classes

    @property
    def chance(self) -> float:
        """Returns the expected accuracy of a uniform guess on balanced images, in (0, 1].

        The guess is among the network's classes, or among the data set's for "sum".
        """
        share = float((self.target != UNMAPPED).mean()) if self.rule == "argmax" else 1.0
        return share / len(self.classes)

    @cached_property
    def _copies(self) -> dict[tuple[torch.device, int], torch.Tensor]:
        return {}

    @cached_property
    def _members(self) -> npt.NDArray[np.float32]:
        """Returns float32 [R, D], 1 where a class of the network belongs to one of the data set."""
        members: npt.NDArray[np.bool_] = self.target[:, None] == np.arange(len(self.classes))
        return members.astype(np.float32)

    @cached_property
    def _answer_numbers(self) -> npt.NDArray[np.int64]:
        """Returns the target of each of the network's classes, and a number of its own for one without."""
        own = len(self.classes) + np.arange(len(self.target))
        return np.where(self.target == UNMAPPED, own, self.target)

    def decide(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (predictions int64 [N], confidences float32 [N]) of logits [N, R]."""
        probability = logits.float().softmax(1)
        if self.rule == "argmax":
            confidence, first = probability.max(1)
            return self._on(logits.device, self.target)[first], confidence
        # A product instead of scattered additions, whose order and with it the last bit varies on a GPU.
        confidence, prediction = (probability @ self._on(logits.device, self._members)).max(1)
        return prediction, confidence.clamp(max=1.0)  # a sum of all may round to just above

    def judge(self, logits: torch.Tensor, labels: torch.Tensor) -> Judgement:
        """Judges images of the data's classes, `labels` int64 [N]; answers are numbers of `answers`.

        An image's probability is that of its data class: for "sum" the sum over the network's classes that
        map to it, for "argmax" the largest of theirs, which is the confidence where the first choice is one
        of them.
        """
        probability = logits.float().softmax(1)
        if self.rule == "argmax":
            confidence, first = probability.max(1)
            answers = self._on(logits.device, self._answer_numbers)
            members = answers == labels[:, None]
            return Judgement(answers[first], confidence, (probability * members).max(1)[0])
        sums = (probability @ self._on(logits.device, self._members)).clamp(max=1.0)
        confidence, answer = sums.max(1)
        return Judgement(answer, confidence, sums.gather(1, labels[:, None])[:, 0])

    def _on(self, device: torch.device, values: npt.NDArray[Any]) -> torch.Tensor:
        """Returns an array of this map on `device`, copied there at the first batch alone."""
        key = device, id(values)
        if key not in self._copies:
            self._copies[key] = to_device(values, device)
        return self._copies[key]


def read_class_map(
    file: Path, run_classes: tuple[str, ...], data_classes: tuple[str, ...] | None, rule: MapRule
) -> ClassMap:
    """Reads a map from a TSV file of run class and data class.

    Without `data_classes` they are the second column's, sorted.

    Raises InputError, naming the line, for anything but UTF-8 lines of two known names in which no run class
    occurs twice; and for a data class that no line has.
    """
    number_of = {name: i for i, name in enumerate(run_classes)}
    known = None if data_classes is None else set(data_classes)
    mapping: dict[str, str] = {}
    for where, run_class, data_class in _lines(file):
        if run_class not in number_of:
            raise InputError(f"{where}: {quote(run_class)} is not a class of the run")
        if known is not None and data_class not in known:
            raise InputError(f"{where}: {quote(data_class)} is not a class of the data set")
        if run_class in mapping:
            raise InputError(
                f"{where}: {quote(run_class)} is in an earlier line too: a class of the run maps to one class"
            )
        mapping[run_class] = data_class
    if not mapping:
        raise InputError(
            f"{printable(file)} maps no class: give lines of a class of the run, a tab and a class of the "
            "data set"
        )
    reached = set(mapping.values())
    classes = data_classes or tuple(sorted(reached))
    missing = [name for name in classes if name not in reached]
    if missing:
        raise InputError(
            f"{printable(file)} maps no class of the run to {quote(missing[0])} ({len(missing)} such): none "
            "of its images could be right"
        )
    target = np.full(len(run_classes), UNMAPPED, np.int64)
    label_of = {name: i for i, name in enumerate(classes)}
    for run_class, data_class in mapping.items():
        target[number_of[run_class]] = label_of[data_class]
    return ClassMap(classes, target, rule, run_classes)


def _lines(file: Path) -> Iterator[tuple[str, str, str]]:
    """Yields (FILE line N, first column, second column) of each line but the header."""
    for number, (where, text) in enumerate(text_lines.read_lines(file)):
        columns = text.split("\t")
        if len(columns) != 2 or not all(columns):
            raise InputError(
                f"{where} is {quote(text)}: give a class of the run, a tab and a class of the data set"
            )
        if number or tuple(columns) != _HEADER:
            yield where, columns[0], columns[1]
