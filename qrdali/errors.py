"""The two ways a command can fail, and how a hostile name is shown."""

from __future__ import annotations

import unicodedata


class InputError(ValueError):
    """An option, a name or a value that cannot be used (exit status 2). The message is one line."""


class RunError(RuntimeError):
    """Work that could not be done although it was asked for rightly (exit status 1). The message is one line."""


class Unreadable(RunError):
    """Images that cannot be read any more. `reasons`: by sample number, one line each; the message is the first."""

    def __init__(self, reasons: dict[int, str]) -> None:
        super().__init__(next(iter(reasons.values())))
        self.reasons = reasons


class OtherRankFailed(RunError):
    """Another process of the same job failed, and has said why: this one ends without a word."""


class RanksLost(RunError):
    """Other processes of the same job are gone."""


class Interrupted(RunError):
    """A signal asked to stop; everything up to the current step is saved. `signum` is the signal."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


def printable(text: object) -> str:
    """`text` on one line, with control characters, surrogates and bidirectional overrides replaced by `?`."""
    return "".join(
        "?" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") or c in "\ufffe\uffff" else c
        for c in str(text)
    )
