"""Tries in a child process whether this machine decodes images correctly.

Decoding on GPUs fails or crashes with some versions on some cards, windows more than whole images. Importing
this imports neither torch nor DALI: `qrdali doctor` runs where they are broken.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from qrdali.system.subprocess_trial import Say, run_in_child

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]

LIMIT = 60.0  # seconds of one trial: a first import from a cold disk takes half of that
_RUNS = 3  # batches decoded in a trial: some failures need more than one
_CPU_TOLERANCE = 0.5  # mean difference from Pillow, of 255
_GPU_TOLERANCE = 3.0  # nvJPEG's transforms round differently


class _Window(NamedTuple):
    """A window in upright pixels."""

    top: int
    left: int
    height: int
    width: int


# Windows of an image 375 high and 500 wide. All but the last lie off a JPEG decoder's grid of 8 or 16 pixels.
_WINDOWS = (
    _Window(13, 21, 187, 250),
    _Window(187, 249, 188, 251),
    _Window(1, 2, 372, 497),
    _Window(94, 125, 188, 250),
    _Window(0, 0, 375, 500),
)


@dataclass(frozen=True)
class TrialResult:
    """Says whether a way of decoding works. reason: one line on why it does not, else empty."""

    works: bool
    reason: str = ""


def run_trial(device_id: int | None, whole: bool, limit: float = LIMIT) -> TrialResult:
    """Decodes generated JPEGs in a child process as the loaders do.

    device_id: a GPU, or None for the CPU. whole: whole images, as on a GPU, or windows of them, as on a CPU.
    limit: seconds after which the child is killed.
    """
    answer = run_in_child("qrdali.pipelines.decoder_trial:trial_in_child", device_id, whole, limit=limit)
    if answer.failure is None and answer.said:
        return TrialResult(True)
    return TrialResult(False, answer.failure or "no answer")


def trial_in_child(say: Say, device_id: int | None, whole: bool) -> None:
    """Does the work of `run_trial` in the child.

    Raises ValueError if pixels differ from Pillow's by more than rounding.
    """
    import numpy as np

    if device_id is not None:
        import torch

        torch.zeros(1, device=f"cuda:{device_id}")  # as in a run: torch's CUDA libraries lie beside DALI's
    from nvidia.dali import fn, pipeline_def

    from qrdali.pipelines import dali_ops as ops
    from qrdali.pipelines.decode_options import DecodeOptions

    cases = [(name, data, reference, window) for name, data, reference in _pictures() for window in _WINDOWS]
    # Without names: no file is left behind, whatever happens.
    files = [tempfile.TemporaryFile(buffering=0) for _ in cases]  # noqa: SIM115
    for file, (_, data, _, _) in zip(files, cases, strict=True):
        file.write(data)
    paths = [np.frombuffer(f"/proc/self/fd/{file.fileno()}".encode(), np.uint8) for file in files]
    windows = np.array([_fitting(window, reference) for _, _, reference, window in cases], np.int32)
    starts, shapes = windows[:, :2].copy(), windows[:, 2:].copy()  # DALI takes no strides

    options = DecodeOptions("cpu" if device_id is None else "mixed", whole)

    @pipeline_def(
        batch_size=len(files),
        num_threads=2,
        device_id=device_id,
        prefetch_queue_depth=2,
        enable_conditionals=True,
    )
    def graph() -> Any:
        path, start, shape = fn.external_source(lambda: (paths, starts, shapes), num_outputs=3, batch=True)
        return ops.read(path, start, shape, options)

    pipe = graph()
    worst = 0.0
    for _ in range(_RUNS):
        (decoded,) = pipe.run()
        decoded = decoded.as_cpu()
        for i, (name, _, reference, _) in enumerate(cases):
            top, left, height, width = windows[i].tolist()
            difference = _difference(
                np.asarray(decoded[i]), reference[top : top + height, left : left + width]
            )
            if difference > (_CPU_TOLERANCE if device_id is None else _GPU_TOLERANCE):
                raise ValueError(
                    f"wrong pixels: a {name} JPEG differs from Pillow's by {difference:.1f} of 255"
                )
            worst = max(worst, difference)
    say({"difference": worst})


def _pictures() -> list[tuple[str, bytes, Pixels]]:
    """Returns (kind, file, upright pixels by Pillow) of JPEGs as they occur.

    Their luma is fine, so that a shift by one pixel changes it; their chroma is smooth, where decoders agree.
    """
    import io

    import numpy as np
    from PIL import Image, ImageOps

    luma = np.random.default_rng(0).integers(-60, 61, (125, 167)).repeat(3, 0).repeat(3, 1)[:375, :500]
    y, x = np.mgrid[:375, :500]
    colour = np.stack([x * 100 / 500, y * 100 / 375, 100 - x * 100 / 500], -1) + 78
    image = Image.fromarray((colour + luma[..., None]).clip(0, 255).astype(np.uint8))
    rotated = Image.Exif()
    rotated[0x0112] = 6  # the camera stood upright
    pictures: list[tuple[str, bytes, Pixels]] = []
    for name, variant, options in (
        ("baseline", image, {"subsampling": "4:2:0"}),
        ("4:4:4", image, {"subsampling": "4:4:4"}),
        ("progressive", image, {"progressive": True}),
        ("gray", image.convert("L"), {}),
        ("rotated", image, {"exif": rotated.tobytes()}),
    ):
        file = io.BytesIO()
        variant.save(file, "JPEG", quality=90, **options)
        with Image.open(file) as opened:
            upright = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
        pictures.append((name, file.getvalue(), upright))
    return pictures


def _fitting(window: _Window, reference: Pixels) -> _Window:
    """Returns the window for an image that may stand upright: transposed where it does."""
    if reference.shape[0] == 375:
        return window
    return _Window(window.left, window.top, window.width, window.height)


def _difference(decoded: Pixels, reference: Pixels) -> float:
    """Returns the mean absolute difference of two uint8 images, 255 if their sizes differ."""
    import numpy as np

    if decoded.shape != reference.shape:
        return 255.0
    return float(np.abs(decoded.astype(np.int16) - reference).mean())
