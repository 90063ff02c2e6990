"""A command in several processes, as torchrun starts them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from qrdali.distributed import ProcessGroup
    from qrdali.pipelines.engine import Engine


@contextmanager
def job(device: str | None = None) -> Iterator[ProcessGroup]:
    """The ranks of this command. All but the first say nothing but errors. device: "cpu" where GPUs are left alone."""
    from qrdali.cli import terminal
    from qrdali.distributed import init_process_group

    with init_process_group(device != "cpu") as group:
        if not group.is_main:
            terminal.hush(group.rank)
        yield group


def engine_of(device: torch.device, threads: int | None, group: ProcessGroup) -> Engine:
    """How each of the ranks decodes. A host's first tries what is not known of a GPU's decoding; the others remember it."""
    from qrdali.cli.terminal import warn
    from qrdali.pipelines.engine import engine_for

    sharing = group.processes_on_these_cpus()
    first = group.run_on_all(lambda: None if group.local_rank else engine_for(device, threads, warn, sharing))
    return group.run_on_all(lambda: first or engine_for(device, threads, warn, sharing))
