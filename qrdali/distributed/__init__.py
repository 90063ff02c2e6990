"""The ranks of one job, as torchrun starts them.

Only this folder reads torchrun's environment variables and calls `torch.distributed`. Every method whose
docstring says "Collective" must be called by all ranks, in the same order. What ranks exchange are numbers
and JSON, never pickles.
"""

from qrdali.distributed.counters import LaggedMax, SharedCounter
from qrdali.distributed.launch import from_environment, init_process_group
from qrdali.distributed.process_group import SINGLE_PROCESS, ProcessGroup

__all__ = [
    "SINGLE_PROCESS",
    "LaggedMax",
    "ProcessGroup",
    "SharedCounter",
    "from_environment",
    "init_process_group",
]
