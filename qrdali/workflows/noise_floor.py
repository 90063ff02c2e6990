"""How far runs of one configuration differ by their seeds alone, from the rows of `evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qrdali.errors import InputError, RunError, printable
from qrdali.files.atomic import write_whole
from qrdali.interfaces import JobControl


@dataclass(frozen=True)
class NoiseFloors:
    """Holds the noise floors of runs.

    floors: an object for each figure of each configuration with several seeds, baselines first, as `--json`
    prints them. sentences: what each says. csv: the table of all.
    """

    floors: tuple[dict[str, Any], ...]
    sentences: tuple[str, ...]
    csv: str

    def to_json(self) -> dict[str, Any]:
        """Returns the object that `qrdali noise-floor --json` prints."""
        return {"floors": list(self.floors)}


def noise_floor(
    runs: Sequence[Path],
    *,
    mepi: Sequence[Path] = (),
    csv: Path | None = None,
    control: JobControl = JobControl(),
) -> NoiseFloors:
    """Compares runs that differ by their seeds alone: every two of one configuration are an A/A pair.

    runs: run folders; those of configurations with one seed are passed over. mepi: MEPI sets of theirs, for
    the spread of quotients. csv: a file for the table, replaced if it is there. Raises InputError where no
    configuration has two seeds with rows of the same images, naming the command that makes what is missing,
    and RunError for damaged runs or a csv that cannot be written.
    """
    from qrdali.report import noise
    from qrdali.report.findings.noise import finding
    from qrdali.report.groups import group
    from qrdali.report.inputs import read_inputs

    known, sets = read_inputs(list(runs), list(mepi), control.listener)
    groups = group(known)
    measured = noise.measure(groups, sets)
    if not measured:
        raise InputError(_what_is_missing(groups))
    several = len(groups) > 1
    sentences = [
        finding(f"{one.group.network} on {one.group.data}: " if several else "", one) for one in measured
    ]
    table = noise.table(measured, "noise-floor")
    text = table.csv() if table else ""
    if csv is not None:
        try:
            write_whole(csv, text.encode())
        except (OSError, ValueError) as error:  # the second for a path that names no file
            raise RunError(f"{printable(csv)} cannot be written: {printable(error)}") from None
    return NoiseFloors(
        tuple(one.to_json() for one in measured),
        tuple(f"{sentence.about}{sentence.text}" for sentence in sentences),
        text,
    )


def _what_is_missing(groups: Sequence[Any]) -> str:
    """Returns why there is no noise floor, and what makes one."""
    import shlex

    from qrdali.report.findings.noise import another_seed, first_to_repeat
    from qrdali.report.noise import networks_of

    repeated = next((c for one in groups for c in one.configurations if len(c.runs) > 1), None)
    if repeated is not None:
        run = repeated.runs[0]
        if len(set(networks_of(repeated.runs))) == 1:
            return (
                f"the {len(repeated.runs)} runs of {repeated.label} hold the same weights, so that they are "
                "one network: seeds that improve on their start, or begin with others, have a noise floor"
            )
        data = shlex.quote(run.settings.data or "DATASET")
        return (
            f"the {len(repeated.runs)} runs of {repeated.label} have no rows of the same images: evaluate "
            f"each with `qrdali evaluate --run {shlex.quote(str(run.folder))} --data {data} --split test` "
            "and the like"
        )
    run = next((run for one in groups if (run := first_to_repeat(one)) is not None), None)
    if run is None:
        return "a noise floor takes runs that were trained here: adopted networks have no seeds"
    return (
        "a noise floor takes two runs or more that differ by their seeds alone, and here every "
        f"configuration has one: train another seed of {run.name} with `{another_seed(run)}`, evaluate it "
        f"as {run.name} was, and give both"
    )
