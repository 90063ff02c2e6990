"""The settings of what is trained on what: the start, the reductions of a method, and when it ends."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from qrdali.reduction.names import DISTORTIONS, SEARCHED, ReductionName
from qrdali.runs.number_or_word import NumberOrWord
from qrdali.runs.option import PATIENT, REDUCED, Option, Topic

MAX_BATCH: Final = 1 << 20  # images of a batch: DALI counts the bytes of labels and the like in 32 bits
# "adopted" is the method of a run that was not trained here.
Method = Literal["shared", "baseline", "fixed", "linear", "adaptive", "random", "adopted"]


class SettingsGroup(BaseModel):
    """Holds some of a run's settings: frozen, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class StartSettings(SettingsGroup):
    """Says what is trained on what. Paths are text."""

    method: Annotated[Method, Field(description="The training method.")]
    data: Annotated[
        str,
        Option(Topic.START, is_path=True),
        Field(description="Data set made by `qrdali data index`; --resume knows it."),
    ]
    root: Annotated[str, Option(Topic.START, metavar="[OLD=]NEW")] = Field(
        "", description="Where the images of --data are now, if they moved since they were indexed."
    )
    model: Annotated[
        str, Option(Topic.START, default="squeezenet1_1, or that of --init", is_of_start=True)
    ] = Field("squeezenet1_1", description="Name from `qrdali models`.")
    init: Annotated[str, Option(Topic.START, is_path=True)] = Field(
        "", description="Start from the best/ of this run."
    )
    pretrained: Annotated[bool, Option(Topic.START)] = Field(
        False, description="Start from published weights."
    )


class ReductionSettings(SettingsGroup):
    """Says what reduced epochs reduce and how far; of the methods that have them."""

    reduction: Annotated[
        ReductionName,
        Option(Topic.REDUCTION, REDUCED, metavar="NAME", method_default="combination"),
    ] = Field(
        "none",
        description=f"What R epochs reduce: {', '.join(SEARCHED)}; a distortion, not for adaptive: "
        f"{', '.join(DISTORTIONS)}; or none, the sham control.",
    )
    tail: Annotated[NumberOrWord, Option(Topic.REDUCTION, ("linear", "adaptive"), metavar="none|full|N")] = (
        Field("none", max_length=4, description="Levels below the grid, each of half the quality.")
    )
    step: Annotated[float, Option(Topic.REDUCTION, REDUCED)] = Field(
        0.25, gt=0, le=0.5, description="Grid of qualities, 1/n."
    )
    sequence: Annotated[str, Option(Topic.REDUCTION, REDUCED, method_default="paired-epochs")] = Field(
        "C", description="paired-epochs, paired-rounds or a pattern such as CCCCCCCR."
    )
    same_order: Annotated[bool, Option(Topic.REDUCTION, REDUCED)] = Field(
        False, description="The epochs of a pair differ in reductions only."
    )
    quality: Annotated[float, Option(Topic.REDUCTION, ("fixed",))] = Field(
        0.5, gt=0, le=1, description="Quality of R epochs, a level of --step."
    )
    direction: Annotated[Literal["down", "up"], Option(Topic.REDUCTION, ("linear",))] = Field(
        "down", description="From the first level down, or from the lowest up."
    )
    low: Annotated[float, Option(Topic.REDUCTION, ("random",))] = Field(
        0.25, gt=0, le=1, description="Lowest quality, a level of --step."
    )
    high: Annotated[float, Option(Topic.REDUCTION, ("random",))] = Field(
        1.0, gt=0, le=1, description="Highest quality."
    )
    feedback: Annotated[Literal["probe", "online"], Option(Topic.REDUCTION, ("adaptive",))] = Field(
        "probe", description="Ask the network about every neighbour, or use its training predictions."
    )
    prefer: Annotated[Literal["confidence", "entropy"], Option(Topic.REDUCTION, ("adaptive",))] = Field(
        "confidence", description="Which correct neighbour is taken."
    )
    windows: Annotated[Literal[5, 9], Option(Topic.REDUCTION, ("adaptive",))] = Field(
        5, description="Candidate windows of a crop."
    )
    probe_batch_size: Annotated[
        int,
        Option(Topic.REDUCTION, ("adaptive",), default="16 on a CPU, twice --batch-size on a GPU"),
    ] = Field(0, ge=0, le=MAX_BATCH, description="Candidates per forward pass of a probe.")


class EndSettings(SettingsGroup):
    """Says when a stage and the run end."""

    patience: Annotated[int, Option(Topic.END, PATIENT)] = Field(
        3, ge=1, description="Units without improvement before the end."
    )
    epochs: Annotated[int, Option(Topic.END, ("shared",))] = Field(10, ge=1, description="Number of epochs.")
    max_epochs: Annotated[int, Option(Topic.END, PATIENT)] = Field(
        300, ge=1, description="Bound of the whole run."
    )
    monitor: Annotated[Literal["full", "phase"], Option(Topic.END, PATIENT)] = Field(
        "full", description="Validate on full quality, or on that of the epoch."
    )
    restore_best: Annotated[
        bool,
        Option(Topic.END, PATIENT, help="Keep the last weights instead of the best when patience ends."),
    ] = Field(True, description="Return to the best weights when patience ends.")
    match: Annotated[str, Option(Topic.END, ("baseline",), is_path=True)] = Field(
        "", description="Take as many optimizer steps as this run took, without patience."
    )
    match_steps: int = Field(0, ge=0, description="The number of steps that --match took; 0: no limit.")
