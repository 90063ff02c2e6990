"""Finds which files a failure of DALI is about, and why: DALI's own message seldom names them."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qrdali.data import storage
from qrdali.data.index import Index
from qrdali.data.inspect import MAX_PIXELS, inspect_file, quiet_pillow
from qrdali.errors import RunError, printable
from qrdali.pipelines.file_reader import REQUESTS, FileReader
from qrdali.pipelines.graph_inputs import DecodeInputs
from qrdali.pipelines.undecodable import (
    Decode,
    check_decoder,
    decoder_message,
    raise_if_no_files_fault,
    undecodable,
    without,
)

# How the errors of a machine begin that is short of memory or files, or has lost a mounted folder.
_SHORTAGES = (
    "MemoryError",
    *(
        f"[Errno {number}]"
        for number in (
            errno.ENOMEM,
            errno.ENFILE,
            errno.EMFILE,
            errno.ENOTCONN,
            errno.ESTALE,
            errno.EHOSTDOWN,
        )
    ),
)


class InFlight(NamedTuple):
    """Holds a batch whose outputs have not come. samples: int64 [N]; inputs: their files and windows."""

    samples: npt.NDArray[np.int64]
    inputs: DecodeInputs


def diagnose(
    reader: FileReader, error: Exception, in_flight: Iterable[InFlight], decode: Decode
) -> dict[int, str]:
    """Returns which samples in flight at a pipeline's `error` cannot be read, and why.

    decode: the decoder that failed. Files that are gone or have another size are known by their headers; of
    the rest, those count that `decode` refuses again. Raises RunError if no file is the cause: for an error
    that is a RunError already, which is the source's own, for a shortage of memory or files, and where the
    decoder takes every file now, or not even sound pictures.
    """
    if isinstance(error, RunError):
        raise error from None
    raise_if_no_files_fault(error)
    try:
        check_decoder(decode, reader.needs_bytes)
    except (RuntimeError, MemoryError, OSError) as failure:
        if not isinstance(failure, OSError):
            raise_if_no_files_fault(failure)
        raise RunError(
            f"{one_line_error(error)}; sound pictures cannot be decoded either ({decoder_message(failure)})"
        ) from None
    reasons: dict[int, str] = {}
    for batch in in_flight:
        reasons |= _unreadable_of(reader.index, batch, decode)
    if not reasons:
        raise RunError(one_line_error(error)) from None
    return reasons


def _unreadable_of(index: Index, batch: InFlight, decode: Decode) -> dict[int, str]:
    samples = batch.samples.tolist()
    with ThreadPoolExecutor(REQUESTS, "header") as pool:
        by_header = list(pool.map(partial(why_unreadable, index, verify=False), samples))
    reasons = {sample: reason for sample, reason in zip(samples, by_header, strict=True) if reason}
    remaining, positions = without(batch.inputs, (i for i, reason in enumerate(by_header) if reason))
    for i, message in undecodable(decode, remaining).items():
        sample = samples[positions[i]]
        reasons[sample] = why_unreadable(index, sample) or _refused(index, sample, message)
    return reasons


def why_unreadable(index: Index, sample: int, verify: bool = True) -> str | None:
    """Returns why an indexed image cannot be read any more, naming it, or None if it can.

    verify: decodes it with Pillow; else its header is read. Raises RunError where the machine is short of
    memory or files, Unreachable where the store cannot be reached.
    """
    name = _name(index, sample)
    number = np.array([sample])
    path = index.paths(number)[0]
    if not storage.exists(path):
        return (
            f"{name}, is gone since it was indexed: restore it, say by "
            "--root OLD=NEW where it is now, or index again"
        )
    height, width = index.sizes(number)[0].tolist()
    quiet_pillow()
    inspected = inspect_file(path, verify=verify, max_pixels=max(MAX_PIXELS, height * width))
    if inspected.reason:
        if inspected.reason.startswith(_SHORTAGES):
            raise RunError(f"{name}, cannot be opened: {inspected.reason}")
        return f"{name}, cannot be decoded: {inspected.reason}"
    if (inspected.width, inspected.height) != (width, height):
        return (
            f"{name}, is {inspected.width}x{inspected.height} pixels, "
            f"was indexed as {width}x{height}: index again"
        )
    return None


def _refused(index: Index, sample: int, message: str) -> str:
    return (
        f"{_name(index, sample)}, cannot be decoded: {_refusal(message)}: save it anew, or index again to "
        "leave it out"
    )


def _name(index: Index, sample: int) -> str:
    return f"sample {sample}, {printable(index.paths(np.array([sample]))[0])}"


def refused_image(path: str, error: Exception) -> RunError:
    """Returns the error that names a single image which Pillow reads and DALI does not.

    error: the pipeline's. Raises RunError for an error that is not the file's fault.
    """
    raise_if_no_files_fault(error)
    return RunError(f"{printable(path)} cannot be decoded: {_refusal(decoder_message(error))}: save it anew")


def _refusal(message: str) -> str:
    why = f" ({message})" if message else ""
    return f"Pillow reads it, but DALI's decoder does not{why}"


def one_line_error(error: Exception) -> str:
    """Returns a pipeline's error on one line."""
    return f"the image pipeline failed: {decoder_message(error) or 'an image cannot be decoded'}"
