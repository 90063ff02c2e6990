"""A command in several processes, as torchrun starts them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qrdali.ranks import Ranks


@contextmanager
def job(device: str | None = None) -> Iterator[Ranks]:
    """The ranks of this command. All but the first say nothing but errors. device: "cpu" where GPUs are left alone."""
    from qrdali import ranks
    from qrdali.cli import terminal

    with ranks.joined(device != "cpu") as found:
        if not found.main:
            terminal.hush(found.rank)
        yield found
