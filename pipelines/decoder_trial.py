"""Whether this machine decodes images rightly: tried in a process of its own, and remembered for a GPU.

Region-of-interest decoding on GPUs fails or crashes with some versions on some cards, so it is never taken untried. Importing this
imports neither torch nor DALI: `qrdali doctor` runs where they are broken.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qrdali.errors import printable
from qrdali.system.subprocess_trial import Say, run_in_child

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]

LIMIT = 60.0  # seconds of one trial: a first import from a cold disk takes half of that
_RUNS = 3  # batches decoded in a trial: some failures need more than one
_CPU_TOLERANCE, _GPU_TOLERANCE = (
    0.5,
    3.0,
)  # mean difference from Pillow, of 255: nvJPEG's transforms round otherwise
_MOST, _ENTRIES = 1 << 18, 50  # bytes and entries of the cache file: whatever is longer is none of ours

# Upright pixels: top, left, height, width of a picture 375 high and 500 wide. None on the decoder's grid of 8 or 16 but the last.
_WINDOWS = ((13, 21, 187, 250), (187, 249, 188, 251), (1, 2, 372, 497), (94, 125, 188, 250), (0, 0, 375, 500))


@dataclass(frozen=True)
class TrialResult:
    """A way of decoding, tried. reason: one line on why it does not work, else empty."""

    works: bool
    reason: str = ""


def run_trial(device_id: int | None, whole: bool, limit: float = LIMIT) -> TrialResult:
    """Decodes generated JPEGs as the loaders do, on a GPU (None: the CPU), whole images or regions of interest, in a child process."""
    answer = run_in_child("qrdali.pipelines.decoder_trial:trial_in_child", device_id, whole, limit=limit)
    if answer.failure is None and answer.said:
        return TrialResult(True)
    return TrialResult(False, answer.failure or "no answer")


def trial_in_child(say: Say, device_id: int | None, whole: bool) -> None:
    """The child's side of `tried`. Raises ValueError if pixels differ from Pillow's by more than a decoder's rounding."""
    import numpy as np

    if device_id is not None:
        import torch

        torch.zeros(1, device=f"cuda:{device_id}")  # as in a run: torch's CUDA libraries lie beside DALI's
    from nvidia.dali import fn, pipeline_def

    from qrdali.pipelines import dali_ops as ops

    pictures = [
        (name, data, reference, window) for name, data, reference in _pictures() for window in _WINDOWS
    ]
    # Without names: no file is left behind, whatever happens.
    files = [tempfile.TemporaryFile(buffering=0) for _ in pictures]  # noqa: SIM115
    for file, (_, data, _, _) in zip(files, pictures, strict=True):
        file.write(data)
    paths = [np.frombuffer(f"/proc/self/fd/{file.fileno()}".encode(), np.uint8) for file in files]
    windows = np.array([_fitting(window, reference) for _, _, reference, window in pictures], np.int32)
    starts, shapes = windows[:, :2].copy(), windows[:, 2:].copy()  # DALI takes no strides

    @pipeline_def(batch_size=len(files), num_threads=2, device_id=device_id, prefetch_queue_depth=2)
    def graph() -> Any:
        path, start, shape = fn.external_source(lambda: (paths, starts, shapes), num_outputs=3, batch=True)
        return ops.read(path, start, shape, "cpu" if device_id is None else "mixed", whole)

    pipe = graph()
    worst = 0.0
    for _ in range(_RUNS):
        (decoded,) = pipe.run()
        decoded = decoded.as_cpu()
        for i, (name, _, reference, _) in enumerate(pictures):
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
    """(kind, file, upright pixels by Pillow) of JPEGs as they occur: fine luma that a shift by one pixel changes, smooth chroma on
    which decoders agree."""
    import io

    import numpy as np
    from PIL import Image, ImageOps

    luma = np.random.default_rng(0).integers(-60, 61, (125, 167)).repeat(3, 0).repeat(3, 1)[:375, :500]
    y, x = np.mgrid[:375, :500]
    colour = np.stack([x * 100 / 500, y * 100 / 375, 100 - x * 100 / 500], -1) + 78
    image = Image.fromarray((colour + luma[..., None]).clip(0, 255).astype(np.uint8))
    rotated = Image.Exif()
    rotated[0x0112] = 6  # the camera stood upright
    found: list[tuple[str, bytes, Pixels]] = []
    for name, own, options in (
        ("baseline", image, {"subsampling": "4:2:0"}),
        ("4:4:4", image, {"subsampling": "4:4:4"}),
        ("progressive", image, {"progressive": True}),
        ("gray", image.convert("L"), {}),
        ("rotated", image, {"exif": rotated.tobytes()}),
    ):
        file = io.BytesIO()
        own.save(file, "JPEG", quality=90, **options)
        with Image.open(file) as opened:
            found.append((name, file.getvalue(), np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))))
    return found


def _fitting(window: tuple[int, int, int, int], reference: Pixels) -> tuple[int, int, int, int]:
    """The window in a picture that may be upright."""
    top, left, height, width = window
    return window if reference.shape[0] == 375 else (left, top, width, height)


def _difference(decoded: Pixels, reference: Pixels) -> float:
    """Mean absolute difference of two uint8 images, 255 if they are not of one size."""
    import numpy as np

    if decoded.shape != reference.shape:
        return 255.0
    return float(np.abs(decoded.astype(np.int16) - reference).mean())


def cache_file() -> Path | None:
    """Where trials are remembered, None where a user has no such folder."""
    folder = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(folder):  # others are to be ignored, says its specification
        return Path(folder) / "qrdali" / "decoding.json"
    try:
        return Path.home() / ".cache" / "qrdali" / "decoding.json"
    except RuntimeError:
        return None


def trial_key(dali: str | None, codec: str | None, driver: str | None, gpu: str | None) -> str | None:
    """The key under which a GPU's decoding is remembered; None where it cannot be told from another."""
    if not (dali and codec and driver and gpu):
        return None
    return printable(f"DALI {dali}, nvImageCodec {codec}, driver {driver}, {gpu}")


def recall(place: str) -> TrialResult | None:
    """What was found of region-of-interest decoding at a place, None if it is to be tried."""
    return _entries().get(place)


def remember(place: str, found: TrialResult) -> None:
    """Keeps what was found at `place` for later processes; a folder that cannot be written forgets it."""
    from pydantic import TypeAdapter

    file = cache_file()
    if file is None:
        return
    entries = {**{key: value for key, value in _entries().items() if key != place}, place: found}
    kept = dict(list(entries.items())[-_ENTRIES:])
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(TypeAdapter(dict[str, TrialResult]).dump_json(kept, indent=1))
            partial.rename(file)
        except OSError:
            partial.unlink(missing_ok=True)


def _entries() -> dict[str, TrialResult]:
    """The cache file, empty if it is not there or not as it was written."""
    from pydantic import TypeAdapter, ValidationError

    file = cache_file()
    try:
        if file is None or not file.is_file():
            return {}
        with open(file, "rb") as opened:
            return TypeAdapter(dict[str, TrialResult]).validate_json(opened.read(_MOST), strict=True)
    except (OSError, ValueError, ValidationError):
        return {}
