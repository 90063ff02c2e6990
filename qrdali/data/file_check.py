"""Checks the files that are indexed: by their headers alone, or decoded as training decodes them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from qrdali.data.decoder_process import decoder_process
from qrdali.data.inspect import FileReport, inspect_file, read_content

if TYPE_CHECKING:
    from qrdali.data.scan import Reading

_BATCH_FILES = 64
_BATCH_BYTES = 32 << 20  # sent to the decoders at once; a longer file is read when its turn comes, alone
_MAX_THREADS = os.cpu_count() or 1  # of decoding: more of them may wait for a server

_Content = bytes | FileReport | None


def check_files(paths: Sequence[str], reading: Reading, pool: ThreadPoolExecutor) -> Iterator[FileReport]:
    """Yields what each file is, or why it is rejected, in the order of `paths`.

    pool: of the threads that read. Raises Unreachable for a store that does not answer, RunError where
    nothing can be decoded.
    """
    if not reading.verify:

        def inspect(path: str) -> FileReport:
            return inspect_file(path, False, reading.hashed, reading.max_pixels)

        yield from pool.map(inspect, paths)
        return
    blocks = [paths[start : start + _BATCH_FILES] for start in range(0, len(paths), _BATCH_FILES)]
    coming: list[Future[_Content]] = []
    try:
        for number, block in enumerate(blocks):
            contents = coming or _start_reading(block, pool)
            # The next files are read while these are decoded.
            coming = _start_reading(blocks[number + 1], pool) if number + 1 < len(blocks) else []
            yield from _decode(block, contents, reading)
    finally:
        for future in coming:
            future.cancel()


def _start_reading(paths: Sequence[str], pool: ThreadPoolExecutor) -> list[Future[_Content]]:
    return [pool.submit(read_content, path, _BATCH_BYTES) for path in paths]


def _decode(
    paths: Sequence[str], contents: Sequence[Future[_Content]], reading: Reading
) -> Iterator[FileReport]:
    """Yields the reports of files that are being read, decoding them in batches of bounded size."""
    batch: list[tuple[str, bytes | FileReport]] = []
    batch_bytes = 0
    for path, future in zip(paths, contents, strict=True):
        content = future.result()
        if content is None:  # a long file
            yield from _reports(batch, reading)
            batch, batch_bytes = [], 0
            content = read_content(path)
            assert content is not None
        length = len(content) if isinstance(content, bytes) else 0
        if batch_bytes + length > _BATCH_BYTES:
            yield from _reports(batch, reading)
            batch, batch_bytes = [], 0
        batch.append((path, content))
        batch_bytes += length
    yield from _reports(batch, reading)


def _reports(batch: Sequence[tuple[str, bytes | FileReport]], reading: Reading) -> Iterator[FileReport]:
    readable = [content for _, content in batch if isinstance(content, bytes)]
    threads = min(reading.threads or _MAX_THREADS, _MAX_THREADS)
    findings = iter(decoder_process.check(readable, threads, reading.max_pixels) if readable else ())
    for path, content in batch:
        if isinstance(content, FileReport):
            yield content
            continue
        found = next(findings)
        digest = hashlib.sha256(content).digest() if reading.hashed else None
        yield FileReport(path, found.width, found.height, len(content), digest, found.reason, found.warning)
