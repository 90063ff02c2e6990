"""Decodes batches of image files' contents by the operators of the training graphs, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from nvidia.dali import fn, pipeline_def

from qrdali.pipelines import dali_ops as ops

Pixels = npt.NDArray[np.uint8]

BATCH_FILES = 64  # that are decoded at once, at most


class Window(NamedTuple):
    """A window in upright pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def rows(self) -> slice:
        return slice(self.top, self.top + self.height)

    @property
    def columns(self) -> slice:
        return slice(self.left, self.left + self.width)


class BatchDecoder:
    """Decodes batches by the operators of the training graphs."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._batch: tuple[Any, ...] = ()
        self._pipeline: Any = None

    def run(
        self, contents: Sequence[bytes], windows: Sequence[Window]
    ) -> list[tuple[Pixels, tuple[int, ...]]]:
        """Returns for each file the window's pixels, valid until the next call, and the whole's shape.

        Raises RuntimeError if one of them cannot be decoded.
        """
        areas = np.array(windows, np.int32)
        # DALI takes no strides.
        self._batch = (
            [np.frombuffer(content, np.uint8) for content in contents],
            areas[:, :2].copy(),
            areas[:, 2:].copy(),
        )
        if self._pipeline is None:
            self._pipeline = self._built()
        try:
            images, shapes = self._pipeline.run()
        except BaseException:
            self.release()  # a pipeline that has failed is not to be used again
            raise
        # Views: DALI's `at` copies, into memory that is new to the process each time.
        return [(np.asarray(images[i]), tuple(np.asarray(shapes[i]).tolist())) for i in range(len(contents))]

    def release(self) -> None:
        """Gives back the decoder's buffers."""
        self._pipeline = None

    def _built(self) -> Any:
        @pipeline_def(
            batch_size=BATCH_FILES,
            num_threads=self._threads,
            device_id=None,
            prefetch_queue_depth=1,
            exec_async=False,
            exec_pipelined=False,
            enable_conditionals=True,
        )
        def graph() -> Any:
            encoded, start, shape = fn.external_source(lambda: self._batch, num_outputs=3, batch=True)
            return ops.read(encoded, start, shape, needs_bytes=True), fn.peek_image_shape(encoded)

        return graph()
