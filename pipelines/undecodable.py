"""Finds the files that a pipeline's decoder refuses: decodes batches again, halving those that fail.

Pillow cannot be asked: there are files that it reads and DALI's decoders do not.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from PIL import Image

from qrdali.errors import OutOfMemory, RunError, printable
from qrdali.pipelines import graphs
from qrdali.pipelines.engine import Engine
from qrdali.pipelines.file_reader import Files
from qrdali.pipelines.graph_inputs import DecodeInputs, WindowBounds

Decode = Callable[[DecodeInputs], None]  # raises RuntimeError, as DALI does

_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
_SIDE = 16  # of the pictures that every working decoder takes, in pixels
_LONGEST = 300  # characters of a reason
_NOT_THE_REASON = ("C++ context:", "Current pipeline object is no longer valid", "Failed to decode sample #")
_CODEC_FAILURE = re.compile(r"nvImageCodec failure: '#(\d+)'")
_CODEC_STATUS = {  # nvimgcodecStatus_t of nvimgcodec.h
    3: "bad code stream",
    4: "unsupported code stream",
    5: "out of memory",
    13: "bad code stream",
    14: "unsupported code stream",
    15: "out of memory",
    19: "incomplete code stream",
}
_OUTSIDE = re.compile(r"Slice can't be placed out of bounds.*?input_shape=\{(\d+)\}.*")
_NAMES_A_FILE = re.compile(r"File mapping failed: |Could not open file")  # the name may hold any words
# In the words of C++, CUDA, DALI (cuda_error.h), nvImageCodec and nvJPEG.
_MEMORY = re.compile(
    r"bad_alloc|out.of.memory|cannot allocate memory|MemoryAllocation|CUDA allocation failed|"
    r"Can't allocate \d+ bytes on |failed to allocate pinned|NvmlBadAlloc|Nvml insufficient memory|"
    r"Memory allocator error|allocator fail",
    re.I,
)
_SYSTEM = re.compile(r"too many open files|no space left on device", re.I)


def decode_once(engine: Engine, needs_bytes: bool, inputs: DecodeInputs) -> None:
    """Decodes one batch as the pipelines of `engine` do, and drops the pixels. Raises as DALI does.

    needs_bytes: whether the files are bytes instead of names.
    """
    source = iter([inputs])
    pipe = graphs.decode_windows(
        lambda: next(source), replace(engine, depth=1), len(inputs.files), needs_bytes
    )
    pipe.run()


def undecodable(decode: Decode, inputs: DecodeInputs) -> dict[int, str]:
    """Returns which files of a batch, by position, `decode` refuses, and why in the decoder's words.

    k bad files of N take at most 2·k·log2(N) + 1 calls, each of at most N files. Raises RunError for an error
    that is no file's fault, and torch.OutOfMemoryError.
    """
    reasons: dict[int, str] = {}

    def search(first: int, last: int) -> None:
        try:
            decode(_part(inputs, range(first, last)))
        except (RuntimeError, MemoryError) as error:
            raise_if_no_files_fault(error)
            if last - first == 1:
                reasons[first] = decoder_message(error)
                return
            middle = (first + last) // 2
            search(first, middle)
            search(middle, last)

    if len(inputs.files):
        search(0, len(inputs.files))
    return reasons


def without(inputs: DecodeInputs, positions: Iterable[int]) -> tuple[DecodeInputs, list[int]]:
    """Returns a batch less the files at `positions`, and where its files stood before."""
    dropped = set(positions)
    kept = [position for position in range(len(inputs.files)) if position not in dropped]
    return _part(inputs, kept), kept


def _part(inputs: DecodeInputs, positions: Iterable[int]) -> DecodeInputs:
    where = list(positions)
    bounds = inputs.window
    return DecodeInputs(
        [inputs.files[i] for i in where], WindowBounds(bounds.start[where], bounds.shape[where])
    )


def check_decoder(decode: Decode, needs_bytes: bool) -> None:
    """Raises RuntimeError, or OSError, unless `decode` takes a sound picture of each format.

    A decoder that refuses these is out of order, or short of something, and would refuse any file.
    """
    size = np.full((len(_FORMATS), 2), _SIDE, np.int32)
    with _control_files(needs_bytes) as files:
        decode(DecodeInputs(files, WindowBounds(np.zeros_like(size), size)))


@contextmanager
def _control_files(needs_bytes: bool) -> Iterator[Files]:
    """Yields the pictures' bytes, or names under which they can be read."""
    if needs_bytes:
        yield [np.frombuffer(content, np.uint8) for content in _control_pictures()]
        return
    descriptors: list[int] = []
    try:
        for content in _control_pictures():
            descriptors.append(os.memfd_create("picture", os.MFD_CLOEXEC))
            os.write(descriptors[-1], content)
        yield [np.frombuffer(f"/proc/self/fd/{file}".encode(), np.uint8) for file in descriptors]
    finally:
        for file in descriptors:
            os.close(file)


@lru_cache(maxsize=1)
def _control_pictures() -> tuple[bytes, ...]:
    pictures = []
    for kind in _FORMATS:
        file = io.BytesIO()
        Image.new("RGB", (_SIDE, _SIDE), (40, 120, 200)).save(file, kind)
        pictures.append(file.getvalue())
    return tuple(pictures)


def raise_if_no_files_fault(error: Exception) -> None:
    """Raises an error that says that memory or another resource of the machine is short.

    Raises OutOfMemory for DALI's and Python's, torch.OutOfMemoryError as it is, and RunError for the rest.
    """
    if isinstance(error, torch.OutOfMemoryError):
        raise error from None
    message = decoder_message(error)
    if _NAMES_A_FILE.search(message):
        return
    if isinstance(error, MemoryError) or _MEMORY.search(message):
        raise OutOfMemory(
            f"out of memory while images are decoded ({message or 'MemoryError'}): lower --batch-size or "
            "--threads, in build-mepi also --search-batch-size or --memory"
        ) from None
    if _SYSTEM.search(message):
        raise RunError(f"the image pipeline failed: {message}") from None


def decoder_message(error: Exception) -> str:
    """Returns on one line what went wrong in an operator, without the pipeline's definition."""
    text = str(error).rpartition("encountered:")[2]
    lines = [line.strip() for line in text.splitlines()]
    message = " ".join(line for line in lines if line and not line.startswith(_NOT_THE_REASON))
    message = _OUTSIDE.sub(_outside, _CODEC_FAILURE.sub(_codec_failure, message))
    return printable(message)[:_LONGEST].rstrip(": ")


def _outside(match: re.Match[str]) -> str:
    """Returns what the check of `dali_ops.read` has found."""
    return "a depth that it does not know" if match[1] == "0" else "it sees another size"


def _codec_failure(match: re.Match[str]) -> str:
    status = int(match[1])
    return f"nvImageCodec: {_CODEC_STATUS.get(status, f'status {status}')}"
