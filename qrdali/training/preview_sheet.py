"""Draws RUN/previews/: a few training images as the first R epoch of each stage reduces them, for loggers."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from qrdali.errors import Unreadable
from qrdali.files.atomic import write_whole
from qrdali.interfaces import CandidateBatch, CandidateRequest
from qrdali.loggers.run_log import PREVIEWS
from qrdali.loggers.values import has_sheet, sheet_name, sheets_by_epoch
from qrdali.reduction.distortions import DistortionParams, distort
from qrdali.reduction.levels import Levels
from qrdali.reduction.neighbors import Candidates
from qrdali.reduction.pair_picture import paste_pair
from qrdali.reduction.quality import CROP, ReductionParams
from qrdali.schedule.epoch_plan import EpochPlan
from qrdali.schedule.epoch_schedule import ScheduleState
from qrdali.training.run_spec import RunSpec, Split

IMAGES, _COLUMNS = 8, 2
_SIDE, _GAP, _TITLE = 150, 10, 34  # pixels
_PITCH, _LINE = 2 * _SIDE + 3 * _GAP, _SIDE + _GAP  # from one pair to the next, right and down


def draw_preview(spec: RunSpec, state: ScheduleState, levels: Levels, split: Split, definitions: int) -> None:
    """Writes the sheet of the stage in hand, unless it is there: up to 8 images, evenly spread over the
    split, each beside what the epoch after `state` makes of it before augmentation.

    The same run draws the same sheet. Images that cannot be read are left out. levels, definitions: of that
    epoch."""
    folder, epoch = spec.run / PREVIEWS, state.epoch + 1
    if has_sheet(folder, state.stage):
        return
    settings = spec.settings
    plan = EpochPlan(
        len(split.index),
        settings.batch_size,
        levels,
        settings.scale,
        seed=settings.seed,
        epoch=settings.epochs_before + epoch,
        training=True,
        definitions=definitions,
    )
    samples = np.unique(np.linspace(0, plan.samples - 1, min(IMAGES, plan.samples)).astype(np.int64))
    while len(samples):
        params = plan.parameters(samples, split.index.sizes(samples))
        try:
            (batch,) = split.source.candidates(
                iter([_request(split, samples, params)]), len(samples), (CROP, CROP), True
            )
        except Unreadable as error:
            samples = samples[~np.isin(samples, list(error.reasons))]
            continue
        distortions = plan.distortions(samples, spec.preprocessing.input_size)
        batch = _distorted(batch, distortions, spec.preprocessing.input_size)
        sheet = _draw(batch, params, f"stage {state.stage}, epoch {epoch}: {settings.reduction}")
        folder.mkdir(exist_ok=True)
        file = folder / sheet_name(state.stage, epoch)
        encoded = io.BytesIO()
        sheet.save(encoded, "PNG", optimize=True)
        write_whole(file, encoded.getvalue())
        return


def keep_previews(run: Path, epochs: int) -> None:
    """Removes the sheets of epochs after `epochs`: a resumed run draws them again."""
    for epoch, file in sheets_by_epoch(run / PREVIEWS).items():
        if epoch > epochs:
            file.unlink(missing_ok=True)


def _request(split: Split, samples: npt.NDArray[np.int64], params: ReductionParams) -> CandidateRequest:
    """Returns a request of two columns: the originals, and what `params` make of them."""
    sizes = split.index.sizes(samples).astype(np.int32)
    whole = np.concatenate([np.zeros_like(sizes), sizes], axis=1)
    unbinned = np.ones_like(params.bin_width)
    candidates = Candidates(
        np.ones((len(samples), 2), np.bool_),
        np.zeros((len(samples), 2, 3), np.uint8),  # the numbers that follow are made of the levels already
        np.stack([whole, params.window], axis=1).astype(np.int32),
        np.stack([sizes, params.size], axis=1).astype(np.int32),
        np.stack([unbinned, params.bin_width], axis=1).astype(np.int32),
    )
    return CandidateRequest(samples, whole, candidates)


def _distorted(batch: CandidateBatch, params: tuple[DistortionParams, ...], side: int) -> CandidateBatch:
    """Returns a batch whose reduced images are squares of `side` pixels, distorted as a network sees them."""
    if not params:
        return batch
    assert batch.reduced_images is not None
    originals, reduced = batch.reduced_images
    distorted = []
    for i, picture in enumerate(reduced):
        seen = np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR))
        distorted.append(distort(seen, params, i))
    return replace(batch, reduced_images=[originals, distorted])


def _draw(batch: CandidateBatch, params: ReductionParams, title: str) -> Image.Image:
    assert batch.reduced_images is not None
    originals, reduced = batch.reduced_images
    columns = min(_COLUMNS, len(originals))
    lines = -(-len(originals) // columns)
    sheet = Image.new("RGB", (columns * _PITCH + _GAP, _TITLE + lines * _LINE + _GAP), "white")
    ImageDraw.Draw(sheet).text((_GAP, _TITLE / 2), title, "black", ImageFont.load_default(15), anchor="lm")
    for i, (original, picture) in enumerate(zip(originals, reduced, strict=True)):
        corner = _GAP + i % columns * _PITCH, _TITLE + i // columns * _LINE
        pair = Image.fromarray(original), Image.fromarray(picture)
        paste_pair(sheet, corner, *pair, params.window[i], (_SIDE, _GAP))
    return sheet
