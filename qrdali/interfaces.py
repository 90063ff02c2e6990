"""What a loader hands to whoever asks for an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from qrdali.distributed import SINGLE_PROCESS, ProcessGroup

if TYPE_CHECKING:
    import torch

    from qrdali.reduction.neighbors import Candidates
    from qrdali.reduction.quality import ReductionParams
    from qrdali.schedule.epoch_plan import EpochPlan
    from qrdali.system.energy import EnergyMeter


@dataclass(frozen=True)
class Batch:
    """images: float32 [N, 3, S, S], channels last in memory, normalised, on the loader's device. labels, samples: int64
    [N] on the same device: class and sample number of each image. number: of the batch in its plan."""

    images: torch.Tensor
    labels: torch.Tensor
    samples: torch.Tensor
    number: int


@dataclass(frozen=True)
class CandidateRequest:
    """States whose neighbours are to be shown to a network. samples: int64 [N]. window: int32 [N, 4], the windows of the
    states; the candidates' lie within."""

    samples: npt.NDArray[np.int64]
    window: npt.NDArray[np.int32]
    candidates: Candidates


@dataclass(frozen=True)
class CandidateBatch:
    """What was asked, as network inputs. images: float32 [K, N, 3, S, S], as `Batch.images`; those that do not exist are
    of no use. pictures: the reduced images uint8 HWC, K lists of N, or None where they were not wanted."""

    request: CandidateRequest
    images: torch.Tensor
    reduced_images: list[list[npt.NDArray[np.uint8]]] | None


class BatchSource(Protocol):
    """Decodes, reduces and prepares the images of one split. The core knows the DALI loader only by this."""

    def epoch(
        self, plan: EpochPlan, on_unreadable: Callable[[dict[int, str]], None] | None = None
    ) -> Iterator[Batch]:
        """The batches of `plan` from `plan.first_batch` on; a batch without images is left out.

        Images that cannot be read raise Unreadable. With `unreadable` they are told to it instead, by sample number with the reason,
        and left out: everything else comes once, in the same batches and order."""
        ...

    def candidates(
        self,
        requests: Iterator[CandidateRequest],
        max_batch: int,
        columns: tuple[int, ...],
        with_images: bool,
    ) -> Iterator[CandidateBatch]:
        """The neighbours of states, each image decoded once. `most`: the largest N. `dimensions`: of the K columns. Raises Unreadable."""
        ...


class ImageReducer(Protocol):
    """Decodes originals that a search keeps, and makes reduced images of them: the same bytes as a loader's."""

    def decode(
        self,
        samples: Iterator[int],
        on_unreadable: Callable[[int, str], None],
        max_batch: Callable[[], int] | None = None,
    ) -> Iterator[tuple[int, Any]]:
        """(sample, pixels) of each image in order, decoded ahead. Pixels are uint8 HWC, where the maker wants them: host
        arrays or tensors on its GPU. Images that cannot be read are left out and told to `unreadable` with the reason.
        `most` says how many may be taken from `samples` together, if fewer than the maker would."""
        ...

    def network_inputs(self, pixels: list[Any], reduction: ReductionParams) -> torch.Tensor:
        """Network inputs, as `Batch.images`, of M originals reduced by `reduction`, on the maker's device."""
        ...

    def reduced_images(self, pixels: list[Any], reduction: ReductionParams) -> list[npt.NDArray[np.uint8]]:
        """The reduced images uint8 HWC of M originals, in host memory."""
        ...


class ProgressListener(Protocol):
    """Is called with the progress of long work: shows it on a terminal, in a notebook, or not at all.

    `begin` opens a pass over `total` units (0: unknown), `advance` reports units done since the last call,
    `end` closes the pass; an `end` without a pass does nothing. `note` is called only where its text is
    shown: it may read figures off the device. `line` is called with what has happened, `warn` with what
    should not have."""

    def begin(self, what: str, total: int, unit: str = "images") -> None: ...
    def advance(self, images: int, note: Callable[[], str]) -> None: ...
    def end(self) -> None: ...
    def line(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...


class SilentListener:
    """Shows nothing: the default of every workflow."""

    def begin(self, what: str, total: int, unit: str = "images") -> None: ...
    def advance(self, images: int, note: Callable[[], str]) -> None: ...
    def end(self) -> None: ...
    def line(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...


def never_stop() -> int:
    """Returns 0: no signal ever stops the job."""
    return 0


@dataclass(frozen=True)
class JobControl:
    """Holds what a job is watched and stopped by, and the processes that share it.

    stop: returns the number of a signal that asked the job to stop, or 0; it is called at every batch. group:
    the processes that torchrun started, all of which call the same workflow with the same arguments."""

    listener: ProgressListener = field(default_factory=SilentListener)
    stop: Callable[[], int] = never_stop
    group: ProcessGroup = SINGLE_PROCESS


NO_CONTROL = JobControl()  # reports to nobody, is never stopped, and runs in one process


@dataclass(frozen=True)
class RunContext:
    """Holds what every part of a run needs of its surroundings, in one argument.

    device: where the network is. autocast: makes the context of a forward pass, which sets its precision.
    energy: the meter of that device. group, listener, stop: as in `JobControl`."""

    device: torch.device
    autocast: Callable[[], AbstractContextManager[object]]
    energy: EnergyMeter
    group: ProcessGroup
    listener: ProgressListener
    stop: Callable[[], int]
