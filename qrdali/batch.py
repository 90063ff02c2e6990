"""What a loader hands to whoever asks for an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from qrdali.plan import Plan


@dataclass(frozen=True)
class Batch:
    """images: float32 [N, 3, S, S], channels last in memory, normalised, on the loader's device. labels, samples: int64
    [N] on the same device: class and sample number of each image."""

    images: torch.Tensor
    labels: torch.Tensor
    samples: torch.Tensor


class Loader(Protocol):
    """Decodes, reduces and prepares the images of one split. The core knows the DALI loader only by this."""

    def epoch(self, plan: Plan) -> Iterator[Batch]:
        """The batches of `plan` from `plan.first_batch` on. Raises RunError naming the file that cannot be read."""
        ...
