"""Has files decoded by the training decoder in a child process, which hostile files may crash or hang.

Only the child knows DALI: this room names its program and sends it bytes. A request is a JSON object and then
each file's content; the answer is a JSON list of findings. Empty messages before it say that a batch begins.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from threading import Lock

from qrdali.errors import RunError, printable

IDLE_SECONDS = 60  # without a request the child ends: it keeps memory that a long run may need
_BATCH_SECONDS = 120.0  # one batch; the largest image of 128 million pixels takes less than 10 on one core
_START_SECONDS = 180.0  # a first import from a cold disk takes a minute
PARENT_GONE_SECONDS = 150
_KILL_SECONDS = 5.0
_LAST_LINE_BYTES = 4096
_PIPE_BYTES = 1 << 20
_PROGRAM = "qrdali.pipelines.decoding_server"


@dataclass(frozen=True)
class Finding:
    """Says what a file's content is: upright width and height in pixels, or the reason why it is rejected.

    warning: what decoders say of an image that is damaged and still read alike by all.
    """

    width: int = 0
    height: int = 0
    reason: str = ""
    warning: str = ""


class _ChildFailed(Exception):
    """The child has crashed or hangs; the message says how."""


class DecoderProcess:
    """A child process that decodes; it is started when it is needed, and again after a crash.

    Several threads may use it, one at a time.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._child: _Child | None = None

    def start(self) -> None:
        """Starts the child without waiting for it, so that its imports overlap the caller's own work.

        What goes wrong is said when it is asked.
        """
        with self._lock, suppress(RunError):
            self._ensure_child()

    def check(self, contents: Sequence[bytes], threads: int, max_pixels: int) -> list[Finding]:
        """Returns a finding for each file.

        A file that crashes the decoder, or on which it hangs, is rejected. Raises RunError if the child
        cannot be started.
        """
        with self._lock:
            try:
                return self._ask(contents, threads, max_pixels)
            except _ChildFailed:
                # Any of them may be the cause, or none: a child that was idle for long ends by itself.
                return [self._check_alone(content, threads, max_pixels) for content in contents]

    def close(self) -> None:
        """Ends the child, if there is one."""
        if self._lock.acquire(timeout=_KILL_SECONDS):  # another thread may wait for an answer
            self._end()
            self._lock.release()

    def _check_alone(self, content: bytes, threads: int, max_pixels: int) -> Finding:
        try:
            return self._ask([content], threads, max_pixels)[0]
        except _ChildFailed as failure:
            return Finding(reason=f"the decoder does not survive it: {failure}")

    def _ask(self, contents: Sequence[bytes], threads: int, max_pixels: int) -> list[Finding]:
        child = self._ensure_child()
        try:
            return child.ask(contents, threads, max_pixels)
        except BaseException:  # an interrupt too: an answer that nobody reads would be taken for the next one
            self._end()
            raise

    def _ensure_child(self) -> _Child:
        if self._child is not None and self._child.is_mine() and self._child.has_ended():
            self._end()
        if self._child is None or not self._child.is_mine():
            self._child = _Child()
        return self._child

    def _end(self) -> None:
        if self._child is not None and self._child.is_mine():
            self._child.end()
        self._child = None


class _Child:
    """One child process and the pipes to it."""

    def __init__(self) -> None:
        self._parent = os.getpid()
        their_requests, our_requests = os.pipe()
        our_answers, their_answers = os.pipe()
        # As in system/subprocess_trial.py: -c would import from the working directory first.
        program = (
            f"import sys; sys.path[:] = {sys.path!r}; from {_PROGRAM} import serve; "
            f"serve({their_requests}, {their_answers})"
        )
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.DEVNULL,
                stdout=self._printed,
                stderr=self._printed,
                pass_fds=(their_requests, their_answers),
                start_new_session=True,  # Ctrl-C is for this process, which ends the child
            )
        except OSError as error:
            for descriptor in (our_requests, our_answers):
                os.close(descriptor)
            self._printed.close()
            raise RunError(f"no process can be started to decode images in: {printable(error)}") from None
        finally:
            os.close(their_requests)
            os.close(their_answers)
        self._requests = Connection(our_requests, readable=False)
        self._answers = Connection(our_answers, writable=False)
        with suppress(OSError):  # what a user may take, by default; else a batch is sent in parts of 64 KiB
            fcntl.fcntl(our_requests, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._is_ready = False

    def is_mine(self) -> bool:
        """Returns whether this process has started the child, not one that it was forked from."""
        return self._parent == os.getpid()

    def has_ended(self) -> bool:
        """Returns whether the child has ended by itself, as one does that is idle for long."""
        return self._process.poll() == 0

    def _wait_until_ready(self) -> None:
        """Waits until the child has imported what it needs. Raises RunError if it cannot."""
        if self._is_ready:
            return
        try:
            self._next_message(_START_SECONDS)
        except _ChildFailed as failure:
            raise RunError(
                f"images cannot be decoded here ({self._last_line() or failure}): `qrdali doctor` says more, "
                "and --no-verify indexes without decoding"
            ) from None
        self._is_ready = True

    def ask(self, contents: Sequence[bytes], threads: int, max_pixels: int) -> list[Finding]:
        """Returns the findings. Raises _ChildFailed if it crashes or hangs, RunError if it does not start."""
        self._wait_until_ready()
        request = {"files": len(contents), "threads": threads, "max_pixels": max_pixels}
        try:
            self._requests.send_bytes(json.dumps(request).encode())
            for content in contents:
                self._requests.send_bytes(content)
        except OSError:
            raise _ChildFailed(self._how_it_ended()) from None
        while not (answer := self._next_message(_BATCH_SECONDS)):
            pass
        return [Finding(**finding) for finding in json.loads(answer)]

    def end(self) -> None:
        """Kills the child and gives back what it took."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_KILL_SECONDS)
        for file in (self._requests, self._answers, self._printed):
            with suppress(OSError):
                file.close()

    def _next_message(self, seconds: float) -> bytes:
        try:
            if not self._answers.poll(seconds):
                raise _ChildFailed(f"no answer within {seconds:g} s")
            return self._answers.recv_bytes()
        except (EOFError, OSError):
            raise _ChildFailed(self._how_it_ended()) from None

    def _how_it_ended(self) -> str:
        try:
            status = self._process.wait(_KILL_SECONDS)
        except subprocess.TimeoutExpired:
            return "it no longer answers"
        if status == -signal.SIGKILL:
            return "the decoding was killed, perhaps for want of memory"
        if status < 0:
            with suppress(ValueError):
                return f"it crashes with {signal.Signals(-status).name}"
        return f"it ends with status {status}"

    def _last_line(self) -> str:
        size = os.fstat(self._printed.fileno()).st_size
        text = os.pread(self._printed.fileno(), _LAST_LINE_BYTES, max(0, size - _LAST_LINE_BYTES))
        lines = [line for line in text.decode("utf-8", "replace").splitlines() if line.strip()]
        return printable(lines[-1].strip())[:200] if lines else ""


# One for the whole process: importing DALI takes longer than checking a small folder.
decoder_process = DecoderProcess()
atexit.register(decoder_process.close)
