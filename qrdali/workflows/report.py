"""Writes the report on runs and MEPI sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qrdali.interfaces import JobControl


@dataclass(frozen=True)
class WrittenReport:
    """Says where a report is, and what it says.

    page: report.html in the report's folder. contents: what report.json beside it holds.
    """

    page: Path
    contents: dict[str, Any]


def write_report(
    runs: Sequence[Path],
    out: Path,
    *,
    mepi: Sequence[Path] = (),
    humans: Path | None = None,
    title: str = "",
    gallery: int = 8,
    usd_per_kwh: float = 0.17,
    watts: float | None = None,
    control: JobControl = JobControl(),
) -> WrittenReport:
    """Writes report.html, findings.md, tables/, figures/ and report.json on run folders and MEPI sets into
    the folder `out`.

    A report that is there is replaced once the new one is whole. gallery: images of each MEPI set that are
    shown, and images on which runs disagree. humans: a CSV or Parquet file of what people answered to images,
    as `qrdali.evaluation.human_answers` reads it. usd_per_kwh: price of electricity. watts: power drawn by
    runs whose energy could not be measured. Raises InputError for folders that hold nothing to report or an
    `out` that is something else, RunError for damaged files; nothing is written then.
    """
    from qrdali.report.build import ReportOptions, build
    from qrdali.report.resources import Prices

    options = ReportOptions(title, Prices(usd_per_kwh, watts), gallery, humans)
    contents = build(list(runs), list(mepi), out, options, control.listener)
    return WrittenReport(out / "report.html", contents)
