"""A stand-in for the child process that decodes: some contents crash or hang it, as faulty decoders do."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from typing import Any

CRASH, HANG, KILLED = b"crash this decoder", b"hang this decoder", b"kill this decoder"


def serve(requests: int, answers: int) -> None:
    from qrdali.pipelines import decoding_check, decoding_server

    check = decoding_check.DecodingCheck.check

    def checked(self: Any, contents: Sequence[bytes]) -> list[Any]:
        for content in contents:
            if CRASH in content:
                os.kill(os.getpid(), signal.SIGSEGV)
            if KILLED in content:
                os.kill(os.getpid(), signal.SIGKILL)
            if HANG in content:
                time.sleep(600)
        return check(self, contents)

    decoding_check.DecodingCheck.check = checked  # type: ignore[method-assign]
    decoding_server.serve(requests, answers)
