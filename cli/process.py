"""Prepares the process of a command: its standard streams and the encoding of its file names."""

from __future__ import annotations

import codecs
import io
import locale
import os
import select
import sys
from contextlib import suppress
from typing import Any, TextIO

_UTF8_MODE = "PYTHONUTF8"
_WAIT_SECONDS = 1.0  # for a terminal that takes nothing at the moment


def prepare() -> None:
    """Makes file names UTF-8, and standard streams that are open and show any name; no message ends a job.

    To be called first: it may start this program anew in the same process.
    """
    open_closed_descriptors()
    use_utf8_names()
    sys.stdin = sys.stdin or io.TextIOWrapper(io.FileIO(0, closefd=False), "utf-8")
    sys.stdout = _text_stream(_Stream(1, "w", closefd=False), sys.stdout)
    sys.stderr = message_stream(2)


def message_stream(descriptor: int) -> TextIO:
    """Returns a stream for messages on an open file descriptor, which shows names as `sys.stderr` does."""
    return _text_stream(_Messages(descriptor, "w", closefd=False), sys.stderr)


def open_closed_descriptors() -> None:
    """Opens /dev/null in place of standard input, output and error where they are closed (`2>&-`).

    Otherwise the next file that is opened gets their number, and what libraries print goes into that file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest number that is free is this one: those below are open by now.
            opened = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(opened, True)


def use_utf8_names() -> None:
    """Starts this program anew in Python's UTF-8 mode if the locale gives file names another encoding.

    Python fixes that encoding when it starts. In another one a file's name would not be the text that its
    bytes are, and a data set's index would name files that do not exist.
    """
    if sys.getfilesystemencoding() == "utf-8" or os.environ.get(_UTF8_MODE) == "1" or not sys.executable:
        return
    with suppress(OSError):  # no /proc
        with open("/proc/self/cmdline", "rb") as file:  # as bytes: sys.argv is decoded already
            arguments = file.read().split(b"\0")[1:-1]
        os.environ[_UTF8_MODE] = "1"
        executable = os.fsencode(sys.executable)
        os.execv(executable, [executable, *arguments])


class _Stream(io.FileIO):
    """Standard output or error: after what cannot be written, everything is dropped.

    Python would try again when it ends, and exit with status 120.
    """

    _failed = False

    def write(self, data: Any) -> int:
        written: int | None = None
        try:
            while not self._failed and written is None:
                written = super().write(data)
                if written is None:  # in non-blocking mode, and full
                    self._wait()
        except OSError as error:
            self._failed = True
            self._report(error)
        return memoryview(data).nbytes if written is None else written

    def _wait(self) -> None:
        select.select([], [self], [])

    def _report(self, error: OSError) -> None:
        if isinstance(error, BrokenPipeError):  # `| head`: click ends the program without a word
            raise error
        raise OSError(f"standard output cannot be written: {error.strerror}") from None


class _Messages(_Stream):
    """Standard error, whose failure is no error: messages are for whoever still looks.

    The reader of a pipe has gone, a log's disk is full, a terminal has been closed.
    """

    def _wait(self) -> None:
        if not select.select([], [self], [], _WAIT_SECONDS)[1]:
            raise OSError("nobody reads")

    def _report(self, error: OSError) -> None:
        pass


def _text_stream(raw: io.FileIO, before: TextIO | None) -> TextIO:
    """Returns a text stream on `raw`, with the encoding of the stream `before` and escapes for the rest."""
    is_terminal = raw.isatty()
    encoding = before.encoding if before else "utf-8"
    if is_terminal and sys.flags.utf8_mode and "PYTHONIOENCODING" not in os.environ:
        encoding = _terminal_encoding()
    line_buffering = is_terminal or isinstance(raw, _Messages)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=line_buffering
    )


def _terminal_encoding() -> str:
    """Returns the locale's encoding, or UTF-8 for the locale C, whose encoding nobody has chosen."""
    encoding = locale.nl_langinfo(locale.CODESET)
    try:
        return "utf-8" if codecs.lookup(encoding).name == "ascii" else encoding
    except LookupError:  # one that Python does not know
        return "utf-8"
