"""Networks of a matrix whose shared run is adopted instead of trained: `shared = { adopt = "resnet50" }`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qrdali.data.class_lists import classes_of
from qrdali.data.class_matching import ClassList, match_classes
from qrdali.errors import InputError, RunError, printable
from qrdali.files.changes import describe_changes
from qrdali.files.hashing import sha256_of
from qrdali.runs import folder as run_folder
from qrdali.runs.adoption import HUB, AdoptRequest, read_adoption
from qrdali.runs.published_weights import published

_Channel = Annotated[float, Field(ge=0, le=1)]
_Channels = Annotated[list[_Channel], Field(min_length=3, max_length=3)]


class _AdoptTable(BaseModel):
    """Holds the keys of a `shared` table that adopts; they are the options of `qrdali adopt`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    adopt: str = Field(min_length=1, max_length=200)
    weights: str = ""
    classes: str = ""
    mean: _Channels | None = None
    std: _Channels | None = None
    interpolation: Literal["", "bilinear", "bicubic"] = ""


def is_adopting(shared: dict[str, Any]) -> bool:
    """Returns whether a network's table `shared` says that its shared run is adopted."""
    return "adopt" in shared


def adopt_request(shared: dict[str, Any], model: str, input_size: int, fit: str) -> AdoptRequest:
    """Returns what is adopted by a network's table `shared`. input_size: 0 for the network's own.

    Raises InputError naming the key that is wrong: also for another network than `model`, which is what the
    runs after it train.
    """
    try:
        table = _AdoptTable(**shared)
    except (ValidationError, TypeError) as error:
        if isinstance(error, TypeError):
            raise InputError(f"shared: {printable(error)}") from None
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        message = first["msg"]
        if first["type"] == "extra_forbidden":
            message = "the shared run is adopted, not trained: leave it out"
        raise InputError(f"shared.{printable(key)}: {message}") from None
    if table.adopt != model:
        raise InputError(
            f"shared.adopt = {printable(table.adopt)!r}, and model is {printable(model)!r}: give the same "
            "network, which the runs after it train"
        )
    request = AdoptRequest(
        model,
        table.weights,
        table.classes,
        fit,
        input_size,
        tuple(table.mean or ()),
        tuple(table.std or ()),
        table.interpolation,
    )
    return request.with_absolute_paths()


def changed_request(request: AdoptRequest, folder: Path) -> list[str]:
    """Returns how an adopted run in `folder` differs from what would be adopted now; nothing if it is new."""
    if not run_folder.holds_run(folder):
        return []
    adoption = read_adoption(folder)
    if adoption is None:
        return ["method, which was trained → adopted"]
    changes = describe_changes(adoption.asked, request.as_dict())
    if not changes and request.is_file:
        try:
            digest = sha256_of(request.weights)
        except OSError:
            return []  # the file is not needed any more
        if digest != adoption.file_sha256:
            changes = [f"the SHA-256 of {printable(request.weights)} {adoption.file_sha256} → {digest}"]
    return changes


def require_files(request: AdoptRequest, folder: Path) -> None:
    """Raises InputError if a network that is yet to be adopted lacks its file of weights."""
    if request.is_file and not run_folder.holds_run(folder) and not Path(request.weights).is_file():
        raise InputError(f"shared.weights = {printable(request.weights)!r} is not a file")


def knows_classes(request: AdoptRequest, folder: Path, data: ClassList) -> bool:
    """Returns whether the network can be evaluated on data of these classes: whether its own include them.

    folder: of the adopted run, which need not be there yet. What cannot be said before it is adopted is taken
    to be so.
    """
    try:
        if run_folder.holds_run(folder):
            best = run_folder.describe_best(folder)
            own = ClassList(best.classes, best.readable)
        elif request.weights.startswith(HUB) and not request.classes:
            return True
        else:
            own = classes_of(request, published(request.model).outputs).classes
    except (InputError, RunError):
        return True  # whoever adopts it says what is wrong
    try:
        match_classes(data, own, "the data", "the network")
    except InputError:
        return False
    return True
