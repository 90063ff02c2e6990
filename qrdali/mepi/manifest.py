"""The manifest of a MEPI set: a row per MEPI, from which its file can be made again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from qrdali.data.index import Samples
from qrdali.mepi.search_path import params_of_states

if TYPE_CHECKING:
    from qrdali.mepi.folder import MepiSource

_FIELDS: list[Any] = [
    ("sample", pa.int64()),
    ("path", pa.string()),
    ("label", pa.int32()),
    ("reduction", pa.string()),
    ("step", pa.float64()),
    ("color_level", pa.int32()),
    ("crop_level", pa.int32()),
    ("resolution_level", pa.int32()),
    ("top", pa.int32()),
    ("left", pa.int32()),
    ("height", pa.int32()),
    ("width", pa.int32()),
    ("entropy_full", pa.int64()),
    ("entropy_mepi", pa.int64()),
    ("quotient", pa.float64()),
    ("evaluations", pa.int64()),
    ("confidence", pa.float64()),
]
SCHEMA = pa.schema(_FIELDS)
# What the network answers one step further; null where no further step changes the image, and in rows of
# journals that earlier versions began. Manifests of those versions have no such columns.
_NEXT_FIELDS: list[Any] = [
    ("next_color_level", pa.int32()),
    ("next_crop_level", pa.int32()),
    ("next_resolution_level", pa.int32()),
    ("next_top", pa.int32()),
    ("next_left", pa.int32()),
    ("next_class", pa.string()),
    ("next_confidence", pa.float64()),
]
NEXT_SCHEMA = pa.schema(_NEXT_FIELDS)
WRITTEN_SCHEMA = pa.schema([*SCHEMA, *NEXT_SCHEMA])


def manifest_rows(
    source: MepiSource, reduction: str, samples: Samples, rows: npt.NDArray[np.void]
) -> pa.Table:
    """Returns the manifest of `samples` [N] from their rows of the journal, `ROW` [N]."""
    window = params_of_states(rows["state"], source.index.sizes(samples), source.scale).window
    columns = [
        samples,
        source.index.paths(samples),
        source.index.labels(samples),
        [reduction] * len(rows),
        [1 / source.scale.grid] * len(rows),
        *rows["state"][:, :3].T,
        *window.T,
        rows["full"],
        rows["mepi"],
        rows["mepi"] / rows["full"],
        rows["evaluations"],
        rows["confidence"],
    ]
    without = rows["failed_answer"] < 0
    names = [None if answer < 0 else source.answer(answer) for answer in rows["failed_answer"].tolist()]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    arrays += [pa.array(values, pa.int32(), mask=without) for values in rows["failed_state"].T]
    arrays += [pa.array(names, pa.string())]
    arrays += [pa.array(rows["failed_confidence"], pa.float64(), mask=without)]
    return pa.table(arrays, schema=WRITTEN_SCHEMA)
