"""torchrun as the child of a worker: `python -m qrdali.workflows.rank_agent WORKER-PID OPTIONS-OF-TORCHRUN`.

Differs from torchrun in three things: it stops its ranks, with a save, when the worker dies; SIGUSR1 and
SIGUSR2, which Slurm sends to all processes of a job, do not kill it, since the worker sends SIGTERM then; and
it ends with 128 + the signal's number without a traceback.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int) -> None:
    """Has this process get SIGTERM when the one that started it dies; at once if that is gone already.

    parent: the number of the process that started it.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Runs torchrun with the arguments of this process, and exits."""
    parent, *words = sys.argv[1:]
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    end_with_parent(int(parent))

    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        run.main(words)
    except SignalException as stopped:
        sys.exit(128 + int(stopped.sigval))
    except ChildFailedError:  # the rank that failed has said why
        sys.exit(1)


if __name__ == "__main__":
    main()
