"""Writes TensorBoard's events to RUN/tensorboard/."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from qrdali.files.atomic import replace_atomically
from qrdali.loggers.interface import LoggedEpoch, LoggedRun
from qrdali.loggers.values import STAGED_METHODS

_SUFFIX = ".qrdali"  # ends the names of this logger's files: others in the folder are left alone
_PARTIAL = ".history.partial"  # not named like events, or TensorBoard would read it
_STAGE_CHARTS = ("val_accuracy", "val_loss", "train_accuracy", "train_loss")


class TensorBoardLogger:
    """Keeps one file of events, which `begin` writes anew from metrics.jsonl, so that no epoch is in it
    twice."""

    def __init__(self, run: Path) -> None:
        self._folder = run / "tensorboard"
        self._file: BinaryIO | None = None

    def place(self) -> str:
        return str(self._folder)

    def begin(self, run: LoggedRun) -> None:
        self._folder.mkdir(exist_ok=True)
        before = list(self._folder.glob(f"events.out.tfevents.*{_SUFFIX}"))
        # A new name: a TensorBoard that is looking on notices new files, not that one was replaced.
        file = self._folder / f"events.out.tfevents.{time.time_ns():020d}{_SUFFIX}"
        partial = self._folder / _PARTIAL
        try:
            with open(partial, "wb") as events:
                events.write(_records(_first_events(run)))
                for epoch in run.epochs:
                    events.write(_records(_events(epoch)))
            replace_atomically(partial, file)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        for old in before:
            old.unlink(missing_ok=True)
        self._file = open(file, "ab")  # noqa: SIM115  closed by `end`

    def epoch(self, epoch: LoggedEpoch) -> None:
        assert self._file is not None
        self._file.write(_records(_events(epoch)))
        self._file.flush()

    def end(self, finished: bool) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            file.close()


def _records(events: Iterable[Any]) -> bytes:
    """Returns events as records of a file."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    for event in events:
        writer.write(event.SerializeToString())
    return buffer.getvalue()


def _first_events(run: LoggedRun) -> list[Any]:
    """Returns the file's version, the mark of a new beginning, the configuration and the charts of stages."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from torch.utils import tensorboard as torch_tensorboard

    summary: Any = torch_tensorboard.summary  # untyped functions
    began = run.epochs[0].time if run.epochs else time.time()
    text = json.dumps(run.config, indent=2, ensure_ascii=False)
    indented = "".join(f"    {line}\n" for line in text.splitlines())  # Markdown's form of code
    plain = {key: value for key, value in run.config.items() if isinstance(value, str | int | float)}
    experiment, session, _ = summary.hparams(plain, {"val_accuracy": None})
    summaries = [summary.text("config", indented), experiment, session]
    if run.config.get("method") in STAGED_METHODS:
        charts = {name: ["Multiline", [f"stages/.*/{name}"]] for name in _STAGE_CHARTS}
        summaries.append(summary.custom_scalars({"stages": charts}))
    return [
        Event(wall_time=began, file_version="brain.Event:2"),
        # A reader that has seen an earlier file forgets what it knows from step 0 on.
        Event(wall_time=began, step=0, session_log=SessionLog(status=SessionLog.START)),
        *(Event(wall_time=began, step=0, summary=one) for one in summaries),
    ]


def _events(epoch: LoggedEpoch) -> list[Any]:
    from tensorboard.compat.proto.event_pb2 import Event

    events = [Event(wall_time=epoch.time, step=epoch.number, summary=_scalars(epoch.values))]
    if epoch.stage_values:
        stage = _scalars(epoch.stage_values)
        events.append(Event(wall_time=epoch.time, step=epoch.stage_epoch, summary=stage))
    if epoch.sheet is not None:
        sheet = _picture(epoch.sheet)
        events.append(Event(wall_time=epoch.time, step=epoch.number, summary=sheet))
    return events


def _scalars(values: Any) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])


def _picture(file: Path) -> Any:
    from PIL import Image
    from tensorboard.compat.proto.summary_pb2 import Summary

    with Image.open(file) as sheet:
        width, height = sheet.size
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=file.read_bytes())
    return Summary(value=[Summary.Value(tag="preview", image=image)])
