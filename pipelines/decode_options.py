"""Says how DALI's decoders decode: on which device, whole images or windows, and with how large buffers.

Importing this imports neither torch nor DALI.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from qrdali.data.index import Index

# Of the buffers that nvJPEG has per thread, one on the device and two on the host (pinned).
_DEVICE_PADDING, _HOST_PADDING = 4 << 20, 2 << 20
# A JPEG of so many pixels without chroma subsampling has coefficients of `_HOST_PADDING` bytes: three int16 a
# pixel.
LARGE_PIXELS = _HOST_PADDING // 6
LARGE_SHARE = 0.1  # of an index's images that are larger, from which on buffers have DALI's size
_LOOKED_AT = 1000  # images of an index, at most


@dataclass(frozen=True)
class DecodeOptions:
    """Says how an operator decodes.

    device: "cpu", or "mixed" for a GPU's decoder, which reads on the host. whole: decodes the whole image and
    slices it, instead of decoding a window. has_large_images: leaves a GPU's buffers as large as DALI has
    them. hardware: leaves a GPU the hardware decoder that it may have and the chroma of nvJPEG, which are
    DALI's defaults, to measure them.
    """

    device: str = "cpu"
    whole: bool = False
    has_large_images: bool = False
    hardware: bool = False

    @property
    def keywords(self) -> dict[str, Any]:
        """Returns DALI's arguments; none on a CPU."""
        if self.device == "cpu":
            return {}
        keywords: dict[str, Any] = {}
        if not self.hardware:
            # The hardware decoder of some GPUs has other pixels than nvJPEG's, its share depends on the first
            # batch, and it has been seen to write before the work that is queued on its stream is done.
            keywords["hw_decoder_load"] = 0.0
        if self.whole and not self.hardware:  # nvImageCodec 0.9 decodes windows so on the CPU only
            # The chroma of libjpeg-turbo, hence of Pillow and of CPUs.
            keywords["jpeg_fancy_upsampling"] = True
        if not self.has_large_images:
            keywords |= {"device_memory_padding": _DEVICE_PADDING, "host_memory_padding": _HOST_PADDING}
        return keywords


def has_large_images(index: Index) -> bool:
    """Returns whether more than a tenth of the images have more than `LARGE_PIXELS`.

    A thousand images are looked at, spread evenly. Smaller buffers only grow once where they do not suffice.
    """
    count = len(index)
    samples = np.unique(np.linspace(0, count - 1, min(count, _LOOKED_AT)).astype(np.int64))
    pixels = index.sizes(samples).astype(np.int64).prod(axis=1)
    return bool(np.mean(pixels > LARGE_PIXELS) > LARGE_SHARE)
