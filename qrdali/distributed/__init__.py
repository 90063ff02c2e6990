"""The processes of one job, as torchrun starts them: the only folder that reads its environment or calls torch.distributed.

Every method that speaks to the others must be called by all ranks, in the same order. What they tell one another are numbers and
JSON, never pickles.
"""

from qrdali.distributed.counters import Agreement, Counter
from qrdali.distributed.launch import declared, joined
from qrdali.distributed.process_group import ALONE, Ranks

__all__ = ["ALONE", "Agreement", "Counter", "Ranks", "declared", "joined"]
