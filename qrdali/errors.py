"""The ways in which a command fails, and how a hostile name is shown."""

from __future__ import annotations

import unicodedata


class InputError(ValueError):
    """An option, a name or a value cannot be used (exit status 2). The message is one line."""


class RunError(RuntimeError):
    """Work failed although its options were right (exit status 1). The message is one line."""


class InUse(RunError):
    """Another process works in the folder: the message names it, and what to do."""


class OutOfMemory(RunError):
    """The memory of the machine, or of its GPU, does not suffice for DALI. The message says what to lower."""


class Unreadable(RunError):
    """Images cannot be read any more. `reasons`: one line by sample number; the message is the first."""

    def __init__(self, reasons: dict[int, str]) -> None:
        super().__init__(next(iter(reasons.values())))
        self.reasons = reasons


class OtherRankFailed(RunError):
    """Another process of the same job failed and prints why; this one ends silently."""


class RanksLost(RunError):
    """Other processes of the same job are gone: killed, or no longer reachable."""


class Interrupted(RunError):
    """The signal `signum` stopped the work; everything up to the current step is saved."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


def printable(text: object) -> str:
    """Returns `text` on one line, with control characters, surrogates and bidirectional overrides as `?`."""
    return "".join(
        "?" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") or c in "\ufffe\uffff" else c
        for c in str(text)
    )
