"""Train image classifiers on quality-reduced images and ask how little information they need.

The names below are the Python API. Whatever the command line does, they do, without a terminal. First what
a session usually looks like:

    >>> data = qrdali.Dataset.open("data")                  # qrdali.index("images", "data") has made it
    >>> run = qrdali.Run("runs/shared")                     # qrdali.train("shared", data=data, run=…) has
    >>> (result,) = qrdali.evaluate(run, data, split="val", device="cpu")
    >>> result["images"], 0 <= result["accuracy"] <= 1
    (12, True)
    >>> found = qrdali.minimal("photo.jpg", run, device="cpu", reduction="color")
    >>> found.quotient <= 1                                 # of the photograph's information
    True

images          read an image, reduce it, measure its entropy (bytes of its PNG) and the quotient of two
data            index makes a data set of a folder of images, Dataset opens one
whole jobs      train or adopt a network, and Run opens what either has made; evaluate, predict, compare,
                build_mepi; write_report, reproduce and log
one photograph  minimal finds the smallest version of it that a network still gets right
own loops       Loader decodes and reduces batches, Schedule says which epochs are reduced
errors          InputError for an argument that cannot be used, RunError for work that fails

Each name has a help page with shapes, ranges and an example, such as help(qrdali.Loader). So have the types
of what they return or take:

of data         Index, ClassList, Relocation
of runs         Settings, BestModel, Preprocessing, Adoption
of own loops    Batch, Epoch, Phase, ScheduleEvent
of results      Comparison with ComparedRun and ErrorConsistency; ImagePredictions; WrittenReport; LoggedTo;
                MatrixResult with RunResult; MinimalImage with MinimalStep, StepLevels, StepQualities, Window
of progress     ProgressListener, for `progress=` of the whole jobs

The modules below qrdali are internal and may change. docs/tutorials begins with the demo and has Python in
five minutes; docs/explanation/method.md explains the words. A name is imported when it is first used, so that
`import qrdali` takes no time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qrdali.version import __version__

if TYPE_CHECKING:
    from qrdali.data.index import Dataset
    from qrdali.errors import InputError, RunError
    from qrdali.workflows.images import entropy, quotient, read, reduce
    from qrdali.workflows.jobs import (
        adopt,
        build_mepi,
        compare,
        evaluate,
        index,
        log,
        predict,
        reproduce,
        train,
        write_report,
    )
    from qrdali.workflows.loader import Loader
    from qrdali.workflows.minimal import minimal
    from qrdali.workflows.run import Run
    from qrdali.workflows.schedule import Schedule

if TYPE_CHECKING:
    # Types of what these take and return: public, but not in `__all__`, so that help(qrdali) stays short.
    from qrdali.data.class_matching import ClassList as ClassList
    from qrdali.data.index import Index as Index
    from qrdali.data.relocation import Relocation as Relocation
    from qrdali.evaluation.consistency import ErrorConsistency as ErrorConsistency
    from qrdali.interfaces import Batch as Batch
    from qrdali.interfaces import ProgressListener as ProgressListener
    from qrdali.models import Preprocessing as Preprocessing
    from qrdali.runs.adoption import Adoption as Adoption
    from qrdali.runs.folder import BestModel as BestModel
    from qrdali.runs.settings import Settings as Settings
    from qrdali.schedule.epoch_schedule import Phase as Phase
    from qrdali.schedule.epoch_schedule import ScheduleEvent as ScheduleEvent
    from qrdali.workflows.compare import ComparedRun as ComparedRun
    from qrdali.workflows.compare import Comparison as Comparison
    from qrdali.workflows.log import LoggedTo as LoggedTo
    from qrdali.workflows.matrix_result import MatrixResult as MatrixResult
    from qrdali.workflows.matrix_result import RunResult as RunResult
    from qrdali.workflows.minimal_image import MinimalImage as MinimalImage
    from qrdali.workflows.minimal_image import MinimalStep as MinimalStep
    from qrdali.workflows.minimal_image import StepLevels as StepLevels
    from qrdali.workflows.minimal_image import StepQualities as StepQualities
    from qrdali.workflows.minimal_image import Window as Window
    from qrdali.workflows.predict import ImagePredictions as ImagePredictions
    from qrdali.workflows.report import WrittenReport as WrittenReport
    from qrdali.workflows.schedule import Epoch as Epoch

_MODULES = {
    "Dataset": "qrdali.data.index",
    "InputError": "qrdali.errors",
    "Loader": "qrdali.workflows.loader",
    "Run": "qrdali.workflows.run",
    "RunError": "qrdali.errors",
    "Schedule": "qrdali.workflows.schedule",
    "adopt": "qrdali.workflows.jobs",
    "build_mepi": "qrdali.workflows.jobs",
    "compare": "qrdali.workflows.jobs",
    "entropy": "qrdali.workflows.images",
    "evaluate": "qrdali.workflows.jobs",
    "index": "qrdali.workflows.jobs",
    "log": "qrdali.workflows.jobs",
    "minimal": "qrdali.workflows.minimal",
    "predict": "qrdali.workflows.jobs",
    "quotient": "qrdali.workflows.images",
    "read": "qrdali.workflows.images",
    "reduce": "qrdali.workflows.images",
    "reproduce": "qrdali.workflows.jobs",
    "train": "qrdali.workflows.jobs",
    "write_report": "qrdali.workflows.jobs",
}
_TYPES = {
    "Adoption": "qrdali.runs.adoption",
    "Batch": "qrdali.interfaces",
    "BestModel": "qrdali.runs.folder",
    "ClassList": "qrdali.data.class_matching",
    "ComparedRun": "qrdali.workflows.compare",
    "Comparison": "qrdali.workflows.compare",
    "Epoch": "qrdali.workflows.schedule",
    "ErrorConsistency": "qrdali.evaluation.consistency",
    "ImagePredictions": "qrdali.workflows.predict",
    "Index": "qrdali.data.index",
    "LoggedTo": "qrdali.workflows.log",
    "MatrixResult": "qrdali.workflows.matrix_result",
    "MinimalImage": "qrdali.workflows.minimal_image",
    "MinimalStep": "qrdali.workflows.minimal_image",
    "Phase": "qrdali.schedule.epoch_schedule",
    "Preprocessing": "qrdali.models",
    "ProgressListener": "qrdali.interfaces",
    "Relocation": "qrdali.data.relocation",
    "RunResult": "qrdali.workflows.matrix_result",
    "ScheduleEvent": "qrdali.schedule.epoch_schedule",
    "Settings": "qrdali.runs.settings",
    "StepLevels": "qrdali.workflows.minimal_image",
    "StepQualities": "qrdali.workflows.minimal_image",
    "Window": "qrdali.workflows.minimal_image",
    "WrittenReport": "qrdali.workflows.report",
}

__all__ = [
    "Dataset",
    "InputError",
    "Loader",
    "Run",
    "RunError",
    "Schedule",
    "__version__",
    "adopt",
    "build_mepi",
    "compare",
    "entropy",
    "evaluate",
    "index",
    "log",
    "minimal",
    "predict",
    "quotient",
    "read",
    "reduce",
    "reproduce",
    "train",
    "write_report",
]


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name) or _TYPES.get(name)
    if module is None:
        raise AttributeError(f"module 'qrdali' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(module), name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_TYPES})
