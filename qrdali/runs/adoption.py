"""What config.toml says of a run that was adopted instead of trained: from what, and the SHA-256."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qrdali.errors import RunError, printable
from qrdali.files.atomic import write_whole
from qrdali.models import Preprocessing
from qrdali.runs.folder import ADOPTED
from qrdali.runs.settings import DEFINITIONS, read_toml

HUB = "hf_hub:"  # before the name of a repository of the Hugging Face hub
IMAGENET = "imagenet"  # the classes of ImageNet, or of the part of it that has as many as the network outputs
# timm's names of the parts of ImageNet for which networks are published.
SUBSETS = (
    "imagenet-1k",
    "imagenet-12k",
    "imagenet-21k-goog",
    "imagenet-21k-miil",
    "imagenet-22k",
    "imagenet-22k-ms",
)
_Digest = Field("", pattern="^([0-9a-f]{64})?$")


@dataclass(frozen=True)
class AdoptRequest:
    """Says which network is adopted; "" and () are what was not said.

    model: its name in timm or torchvision. weights: a file, or hf_hub: and a repository; "" for the published
    ones. classes: "imagenet" or another subset's name, a data set's folder or a TSV file. fit: "whole" or
    "center". input_size: pixels, 0 for the network's own. mean, std: of three channels, in 0 … 1.
    interpolation: "bilinear" or "bicubic".
    """

    model: str
    weights: str = ""
    classes: str = ""
    fit: str = "whole"
    input_size: int = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    interpolation: str = ""

    def with_absolute_paths(self) -> AdoptRequest:
        """Returns the request with absolute paths of its files."""
        names_classes = not self.classes or self.classes in (IMAGENET, *SUBSETS)
        return replace(
            self,
            weights=str(Path(self.weights).absolute()) if self.is_file else self.weights,
            classes=self.classes if names_classes else str(Path(self.classes).absolute()),
        )

    @property
    def is_file(self) -> bool:
        """Returns whether the weights are a file."""
        return bool(self.weights) and not self.weights.startswith(HUB)

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values, as TOML holds them."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}


class Adoption(BaseModel):
    """Holds the table [adopted] of a run's config.toml.

    source: "published" by timm or torchvision, a "file", or a repository of the Hugging Face "hub". weights:
    their name or the file's path. sha256: of best/model.safetensors; file_sha256: of the file they were read
    from, "" where timm or torchvision read it. part: the key of that file under which they stood, "" for the
    file itself. classes: where the names come from. parameters, gmacs: as `models.describe` counts them, None
    where it cannot. asked: the request.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    source: Literal["published", "file", "hub"]
    weights: str = Field(max_length=4096)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    file_sha256: str = _Digest
    part: str = Field("", max_length=200)
    classes: str = Field(max_length=4096)
    parameters: int | None = Field(None, ge=0, le=1 << 53)
    gmacs: float | None = Field(None, ge=0, le=1e15)
    asked: dict[str, Any] = {}

    @property
    def text(self) -> str:
        """Returns where the weights come from, for a line."""
        what = {"published": "the published weights", "file": "the file", "hub": "the repository"}[
            self.source
        ]
        part = f", its {self.part}" if self.part else ""
        return printable(f"{what} {self.weights}{part}")


def read_adoption(folder: Path) -> Adoption | None:
    """Returns what a run was adopted from, None for a run that was trained.

    Raises InputError if config.toml cannot be read, RunError for a table [adopted] that cannot be.
    """
    values = read_toml(folder / "config.toml")
    if values.get("method") != ADOPTED:
        return None
    try:
        return Adoption.model_validate(values.get("adopted"))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(("adopted", *map(str, first["loc"])))
        raise RunError(f"{printable(folder / 'config.toml')}: {printable(key)}: {first['msg']}") from None


def write_adopted_config(file: Path, model: str, preprocessing: Preprocessing, adoption: Adoption) -> None:
    """Writes the config.toml of an adopted run: the settings that apply to it, and the table [adopted]."""
    values = {
        "method": ADOPTED,
        "data": "",  # it was trained on none that is known here
        "model": model,
        "input_size": preprocessing.input_size,
        "fit": preprocessing.fit,
        "definitions": DEFINITIONS,
        "adopted": adoption.model_dump(exclude_none=True),
    }
    write_whole(file, tomli_w.dumps(values).encode())
