"""A command in several processes, as torchrun starts them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qrdali.distributed import ProcessGroup


@contextmanager
def job(device: str | None = None) -> Iterator[ProcessGroup]:
    """Yields the processes of this command; all but the first print nothing but errors.

    device: "cpu" where GPUs are left alone.
    """
    from qrdali.cli import terminal
    from qrdali.distributed import init_process_group

    with init_process_group(device != "cpu") as group:
        if not group.is_main:
            terminal.hush(group.rank)
        yield group
