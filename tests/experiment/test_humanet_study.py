"""configs/humanet-study.toml: the runs of humanet.toml with three seeds and all controls, and the committed
figures of its dry run."""

import json
import runpy
from pathlib import Path

import pytest

from qrdali.experiment.config import Matrix, read
from qrdali.experiment.expand import PlannedRun, expand

ROOT = Path(__file__).parents[2]
# A study differs from the slides' matrix in these alone.
OWN = {"out", "seeds", "runs", "evaluate", "mepi"}


def shipped(name: str) -> tuple[Matrix, list[PlannedRun]]:
    matrix = read(ROOT / "configs" / name)
    return matrix, expand(matrix, Path("d"))


def test_it_has_the_runs_of_humanet_for_each_seed_and_all_controls() -> None:
    matrix, runs = shipped("humanet-study.toml")
    _, plain = shipped("humanet.toml")
    names = {run.name for run in runs}
    for seed in matrix.seeds:
        for run in plain:
            network, _, name = run.name.partition("/")
            assert f"{network}/seed-{seed}/{name}" in names
    assert len(matrix.seeds) == 3
    extra = {run.name.rpartition("/")[2] for run in runs} - {run.name.rpartition("/")[2] for run in plain}
    assert {"baseline-matched", "sham-paired-rounds", "sham-paired-epochs"} <= extra
    for method in ("random", "fixed"):
        for reduction in matrix.runs.reductions:
            assert {f"{method}-paired-rounds-{reduction}", f"{method}-paired-epochs-{reduction}"} <= {
                run.name.rpartition("/")[2] for run in runs
            }
    assert set(matrix.runs.controls) == {"sham", "random", "matched", "randaugment"}
    assert matrix.evaluate.reduced == 0.5


def test_all_else_is_as_in_humanet() -> None:
    study, plain = shipped("humanet-study.toml")[0], shipped("humanet.toml")[0]
    assert study.model_dump(exclude=OWN) == plain.model_dump(exclude=OWN)
    assert study.runs.fixed.settings() == plain.runs.fixed.settings()


@pytest.mark.parametrize("name", ["humanet.toml", "humanet-study.toml"])
def test_the_committed_figures_are_those_of_a_dry_run(name: str) -> None:
    script = runpy.run_path(str(ROOT / "benchmarks" / "dry_run.py"))
    recorded = json.loads((ROOT / "benchmarks/results/dry-run.json").read_text())
    assert recorded["matrices"][name] == script["figures"](name)
