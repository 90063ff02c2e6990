"""A progress listener that records its calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class RecordingListener:
    """Keeps what a workflow reports.

    passes: (what, total, units done) in order. open: the pass that has not ended.
    """

    passes: list[tuple[str, int, int]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    open: tuple[str, int, int] | None = None

    def begin(self, what: str, total: int, unit: str = "images") -> None:
        assert self.open is None, f"{what} began before {self.open} ended"
        self.open = (what, total, 0)

    def advance(self, images: int, note: Callable[[], str]) -> None:
        assert self.open is not None
        assert isinstance(note(), str)
        what, total, done = self.open
        self.open = (what, total, done + images)

    def end(self) -> None:
        assert self.open is not None
        self.passes.append(self.open)
        self.open = None

    def line(self, text: str) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)
