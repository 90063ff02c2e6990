"""Keeps what image decoders print out of the terminal: lines that name no file, once per file and epoch.

libjpeg, libpng and libtiff write to file descriptor 2 from DALI's threads and have no switch that could be
reached. What they say of files that cannot be decoded is said by qrdali, with the file's name.
"""

from __future__ import annotations

import atexit
import os
import re
import select
import signal
import sys
import time
from contextlib import suppress

from qrdali.cli.process import message_stream

_HELD_SECONDS = 0.2  # that the beginning of a line is kept back: nvImageCodec writes its lines in parts
_EXIT_SECONDS = 1.0  # that the last lines are waited for: a process that was left behind may hold the pipe
_BLOCK = 1 << 16

# printf formats of libjpeg-turbo's jerror.h: its warnings, then the errors that a damaged file may cause.
_LIBJPEG = (
    "Corrupt JPEG data: %s",
    "Premature end of JPEG file",
    "Warning: unknown JFIF revision number %d.%d",
    "Invalid SOS parameters for sequential JPEG",
    "Inconsistent progression sequence for component %d coefficient %d",
    "Unknown Adobe color transform code %d",
    "Application transferred too many scanlines",
    "Input file read error",
    "Empty input file",
    "Premature end of input file",
    "Bogus %s",
    "Unsupported marker type %s",
    "Unsupported JPEG process: SOF type %s",
    "Unsupported JPEG data precision %d",
    "Unsupported color conversion request",
    "Invalid JPEG file structure: %s",
    "Invalid progressive/lossless parameters %s",
    "Invalid component ID %d in SOS",
    "Invalid crop request",
    "Not a JPEG file: starts with %s",
    "JPEG datastream contains no image",
    "Huffman table %s was not defined",
    "Quantization table %s was not defined",
    "Arithmetic table %s was not defined",
    "Huffman code size table overflow",
    "Missing Huffman code table entry",
    "Sampling factors too large for interleaved scan",
    "Fractional sampling not implemented yet",
    "CCIR601 sampling not implemented yet",
    "Sorry, arithmetic coding is not implemented",
    "Too many color components: %s",
    "Component index %d: mismatching sampling ratio %s",
    "Maximum supported image dimension is %d pixels",
    "Image too wide for this implementation",
    "Empty JPEG image (DNL not supported)",
    "Didn't expect more than one scan",
    "IDCT output block size %d not supported",
    "DCT coefficient (lossy) or spatial difference (lossless) out of range",
    "Cannot transcode due to multiple use of quantization table %d",
)
_LIBTIFF = (
    r"_?TIFF\w*|O?JPEG\w*|LZW\w*|ZIP\w*|Fax\w+|PackBits\w*|ThunderDecode\w*|LogL\w+|LogLuv\w*|ZSTD\w*|WebP\w*"
    r"|PixarLog\w*|LERC\w*|JBIG\w*|Dump\w*|NeXTDecode|Predictor\w*"
)
_COLOUR = rb"(?:\x1b\[[0-9;]*m)*"
_KNOWN = re.compile(
    b"|".join(
        (
            *(re.escape(text).replace("%d", r"\d+").replace("%s", ".+").encode() for text in _LIBJPEG),
            rb"libpng (?:warning|error): .*",
            rf"(?:{_LIBTIFF}): .+".encode(),
            rb"\[ *(?:WARN|ERROR|INFO):\d+@[\d.]+\] global \w+\.[ch]pp:\d+ .*",
            # Of several threads, parts of nvImageCodec's lines mix.
            _COLOUR
            + rb"(?:\[(?:ERROR|WARNING)\] "
            + _COLOUR
            + rb")+(?:\[(?:\w+_parser|libjpeg_turbo_decoder|libtiff_decoder|opencv_\w+)\] .*)?",
        )
    )
)


def is_decoder_message(line: bytes) -> bool:
    """Returns whether a line, without its end, is one that decoders print of a damaged file."""
    return _KNOWN.fullmatch(line) is not None


def keep_out_of_stderr() -> None:
    """Has a process pass on what is written to file descriptor 2, less decoders' messages, from now on.

    A process, since its lines must come through when this one crashes. Python's `sys.stderr` writes to where
    descriptor 2 led before: terminals stay terminals, and nothing that Python prints is filtered. Must be
    called before there are threads; where descriptor 2 is closed nothing happens.
    """
    try:
        destination = os.dup(2)
    except OSError:
        return
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        _pass_on_and_exit(read_end, destination, write_end)
    os.close(read_end)
    os.dup2(write_end, 2)
    os.close(write_end)
    if sys.stderr is not None:
        sys.stderr = message_stream(destination)
        sys.__stderr__ = sys.stderr  # type: ignore[misc, assignment]  # rich asks this one how wide the terminal is
    atexit.register(_finish, os.getpid(), child, destination)


def _finish(process: int, child: int, destination: int) -> None:
    """Waits until the last lines are passed on."""
    if os.getpid() != process:  # a fork of this one
        return
    os.dup2(destination, 2)  # closes the pipe
    end = time.monotonic() + _EXIT_SECONDS
    with suppress(ChildProcessError):
        while os.waitpid(child, os.WNOHANG) == (0, 0) and time.monotonic() < end:
            time.sleep(0.002)


def _pass_on_and_exit(source: int, destination: int, write_end: int) -> None:
    try:
        # A terminal's and Slurm's go to all processes: this one ends after the other.
        for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGQUIT"):
            signal.signal(signal.Signals[name], signal.SIG_IGN)
        for descriptor in (0, 1, write_end):
            with suppress(OSError):
                os.close(descriptor)
        pass_on(source, destination)
    except OSError:  # nobody reads any more
        pass
    finally:
        os._exit(0)


def pass_on(source: int, destination: int) -> None:
    """Copies lines from one descriptor to another until the end, less decoders' messages.

    The beginning of a line is passed on after a moment, and then the whole line. Raises OSError.
    """
    held, begun = b"", False  # begun: whether the beginning of the line is through already
    while True:
        if held and not select.select([source], [], [], _HELD_SECONDS)[0]:
            _write(destination, held)
            held, begun = b"", True
        block = os.read(source, _BLOCK)
        *lines, held = (held + block).split(b"\n")
        passed = []
        for line in lines:
            if begun or not is_decoder_message(line):
                passed.append(line + b"\n")
            begun = False
        _write(destination, b"".join(passed) if block else held)
        if not block:
            return


def _write(destination: int, data: bytes) -> None:
    while data:
        data = data[os.write(destination, data) :]
