"""The child process in which files are checked: requests come through one pipe, answers go through another.

`qrdali.data.decoder_process` starts it and describes what is sent.
"""

from __future__ import annotations

import json
import os
import resource
import signal
from dataclasses import asdict
from multiprocessing.connection import Connection

from qrdali.data.decoder_process import IDLE_SECONDS, PARENT_GONE_SECONDS


def serve(requests: int, answers: int) -> None:
    """Answers requests until there are none for a while, or the parent is gone; then ends the process."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is expected: it leaves no core file
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _answer(Connection(requests, writable=False), Connection(answers, readable=False))
    os._exit(0)  # without the libraries' own cleanup, which may hang after a failure


def _answer(requests: Connection, answers: Connection) -> None:
    from qrdali.pipelines.decoding_check import DecodingCheck

    def begin() -> None:
        signal.alarm(PARENT_GONE_SECONDS)  # if the parent is gone, nobody else ends an endless decoder
        answers.send_bytes(b"")

    checks: dict[tuple[int, int], DecodingCheck] = {}
    begin()
    try:
        while requests.poll(IDLE_SECONDS):
            request = json.loads(requests.recv_bytes())
            contents = [requests.recv_bytes() for _ in range(request["files"])]
            options = (request["threads"], request["max_pixels"])
            if options not in checks:
                checks = {options: DecodingCheck(*options, begin)}
            findings = checks[options].check(contents)
            signal.alarm(0)
            answers.send_bytes(json.dumps([asdict(finding) for finding in findings]).encode())
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
