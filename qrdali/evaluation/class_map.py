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
from torch.nn.functional import pad

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
    largest sum wins and is the confidence. `probability` says what the rank of the true class is counted
    among. run_classes: the names of the R.
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
    def unmapped(self) -> int:
        """Returns how many of the network's classes are an answer of their own, for want of a data class."""
        return int((self.target == UNMAPPED).sum()) if self.rule == "argmax" else 0

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

    def probability(self, logits: torch.Tensor) -> torch.Tensor:
        """Returns the probability of each possible answer, float64 [N, K]: first of the D data classes.

        For "sum" there are no others, and a data class has the sum over its classes of the network. For
        "argmax" a data class has the probability of the most probable of its classes of the network, so that
        the first answer is the prediction and its probability the confidence; after the data classes comes
        each class of the network that is not mapped. logits: [N, R].
        """
        probability = logits.double().softmax(1)
        if self.rule == "sum":
            members = self._on(logits.device, self._members).double()
            return (probability @ members).clamp(max=1.0)
        # Not by scatter_reduce, which deterministic algorithms refuse on a GPU: classes of one answer stand
        # side by side, and doubling steps bring the largest of them to the first.
        plan = self._grouping
        # The last column, of zeros, is for data classes that no class of the network is mapped to.
        probability = pad(probability, (0, 1)).index_select(1, self._on(logits.device, plan.order))
        for step in plan.steps:
            ahead = probability.index_select(1, self._on(logits.device, step))
            probability = probability.maximum(ahead)
        return probability.index_select(1, self._on(logits.device, plan.firsts))

    @cached_property
    def _grouping(self) -> _Grouping:
        return _grouping(self.target, len(self.classes))

    def _on(self, device: torch.device, values: npt.NDArray[Any]) -> torch.Tensor:
        """Returns one of this map's arrays on `device`, copied there at the first batch alone."""
        key = device, id(values)
        if key not in self._copies:
            self._copies[key] = to_device(values, device)
        return self._copies[key]


@dataclass(frozen=True)
class _Grouping:
    """Says how the largest value of each group of columns is found, the last column being a group's own.

    order: int64 [R + 1], puts groups side by side. steps: int64 [R + 1] each; a column takes the larger of
    its own value and that of the column named. firsts: int64 [K], where each group's largest value is then;
    of a group without columns, the last one.
    """

    order: npt.NDArray[np.int64]
    steps: tuple[npt.NDArray[np.int64], ...]
    firsts: npt.NDArray[np.int64]


def _grouping(target: npt.NDArray[np.int64], classes: int) -> _Grouping:
    """Returns how columns are grouped by `target`, each unmapped one after the `classes` by itself."""
    unmapped = target == UNMAPPED
    count = classes + int(unmapped.sum())
    groups = np.append(target, count)
    groups[:-1][unmapped] = np.arange(classes, count)
    order = np.argsort(groups, kind="stable")
    ordered, columns = groups[order], np.arange(len(groups))
    steps, distance = [], 1
    while distance < np.bincount(groups).max():
        other = np.minimum(columns + distance, len(columns) - 1)
        steps.append(np.where(ordered[other] == ordered, other, columns))
        distance *= 2
    firsts = np.full(count, len(target))
    present, where = np.unique(ordered, return_index=True)
    firsts[present[:-1]] = where[:-1]
    return _Grouping(order, tuple(steps), firsts)


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
