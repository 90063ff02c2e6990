"""A command in several processes, as torchrun starts them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from qrdali.distributed import Ranks
    from qrdali.pipelines.graphs import Engine


@contextmanager
def job(device: str | None = None) -> Iterator[Ranks]:
    """The ranks of this command. All but the first say nothing but errors. device: "cpu" where GPUs are left alone."""
    from qrdali import distributed as ranks
    from qrdali.cli import terminal

    with ranks.joined(device != "cpu") as found:
        if not found.main:
            terminal.hush(found.rank)
        yield found


def engine_of(device: torch.device, threads: int | None, ranks: Ranks) -> Engine:
    """How each of the ranks decodes. A host's first tries what is not known of a GPU's decoding; the others remember it."""
    from qrdali.cli.terminal import warn
    from qrdali.pipelines.engine import engine_for

    sharing = ranks.sharing()
    first = ranks.together(lambda: None if ranks.local_rank else engine_for(device, threads, warn, sharing))
    return ranks.together(lambda: first or engine_for(device, threads, warn, sharing))
