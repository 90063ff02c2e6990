"""Decodes one image file as the pipelines do, for whoever has a path and wants its pixels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from nvidia.dali import fn, pipeline_def

from qrdali.data import storage
from qrdali.data.inspect import MAX_BYTES, inspect_file, quiet_pillow
from qrdali.errors import RunError, printable
from qrdali.pipelines import dali_ops
from qrdali.pipelines.diagnose import refused_image


def decode_image(path: str) -> npt.NDArray[np.uint8]:
    """Returns the upright RGB pixels of an image file, uint8 [H, W, 3], decoded by DALI on the CPU.

    path: a file's name, or the URL of an object or of a member of a tar shard. Raises RunError naming a file
    that cannot be read.
    """
    quiet_pillow()
    report = inspect_file(path, verify=True)
    if report.reason:
        raise RunError(f"{printable(path)} cannot be decoded: {report.reason}")
    needs_bytes = storage.is_url(path)
    file = storage.whole(path, MAX_BYTES) if needs_bytes else path.encode()
    height_and_width = np.array([[report.height, report.width]], np.int32)

    @pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def graph() -> object:
        encoded = fn.external_source(lambda: [np.frombuffer(file, np.uint8)], batch=True)
        start = fn.external_source(lambda: np.zeros((1, 2), np.int32), batch=True)
        shape = fn.external_source(lambda: height_and_width, batch=True)
        return dali_ops.read(encoded, start, shape, needs_bytes=needs_bytes)

    try:
        (images,) = graph().run()
    except (RuntimeError, MemoryError) as error:
        raise refused_image(path, error) from None
    return np.array(images[0])
