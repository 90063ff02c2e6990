"""The figures of table.json and table.md, computed from the rows of `experiment.py` and from nothing else.

    python benchmarks/experiment_table.py benchmarks/results/experiment

writes table.json and table.md anew from rows.jsonl beside them; machine and settings stay as they are.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from qrdali.evaluation.stats import Cluster, clustered_difference, holm

REDUCED = ("color", "crop", "resolution", "combination")
# Columns of a row that have no mean.
_ASIDE = ("run", "seed", "seconds", "phases", "val_accuracies")
_COUNTED = ("epochs", "optimizer steps", "forward images")

Row = dict[str, Any]


def summary(rows: list[Row], settings: dict[str, str]) -> dict[str, Any]:
    """Returns the figures of table.json.

    rows: one per run and seed. Beside its accuracies and counts each has `phases`, a letter per epoch (S for
    the start's weights, C, R), and `val_accuracies`, one for each. settings: the options of the experiment.
    """
    classes = int(settings.get("classes", 20))
    figures = {"pairs": pairs(rows), "against sham": against_sham(rows), "runs": means(rows)}
    if settings["shuffled"] == "True":
        figures["above chance"] = above_chance(rows, int(settings["test"]) * classes, classes)
    return figures


def means(rows: list[Row]) -> dict[str, dict[str, Any]]:
    """Returns mean and standard deviation over seeds (n - 1; 0 of a single one) of every column, by run."""
    result: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(row["run"] for row in rows):
        of_run = [row for row in rows if row["run"] == name]
        result[name] = {"seeds": len(of_run)}
        for column in (key for key in of_run[0] if key not in _ASIDE):
            values = [row[column] for row in of_run]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            result[name][column] = {"mean": round(statistics.mean(values), 4), "sd": round(spread, 4)}
    return result


def pairs(rows: list[Row]) -> dict[str, Any]:
    """Returns how much more validation accuracy rises from an R epoch to the C epoch after it in runs of
    paired epochs with a reduction than in the sham, whose R epochs are not reduced; of all runs, and of each
    reduction.

    Two-sided and clustered by run, within seeds: `clustered_difference`. rise: mean over pairs, in points.
    """
    shams = [row for row in rows if row["run"] == "sham epochs"]
    reduced = [row for row in rows if " epochs " in row["run"]]
    kinds = {"all": reduced}
    kinds |= {name: [row for row in reduced if row["run"].endswith(f" {name}")] for name in REDUCED}
    return {name: _against_sham(of_kind, shams) for name, of_kind in kinds.items() if of_kind}


def against_sham(rows: list[Row]) -> dict[str, Any]:
    """Returns by reduction how runs do on the test set reduced as they were trained, and on the full one.

    Each is compared with the sham of its seed and sequence. "above": how many of "runs" are above it; "gain":
    the mean difference by method; "full": the largest difference on the full test set by seed.
    """
    sham = {(row["run"].split()[1], row["seed"]): row for row in rows if row["run"].startswith("sham ")}
    result: dict[str, Any] = {}
    for reduction in REDUCED:
        own = [(row, *row["run"].split()[:2]) for row in rows if row["run"].split()[2:] == [reduction]]
        own = [(row, method, sequence) for row, method, sequence in own if (sequence, row["seed"]) in sham]
        if not own:
            continue
        column = f"test {reduction} .5"
        gains: dict[str, list[float]] = {}
        full: dict[str, list[float]] = {}
        for row, method, sequence in own:
            other = sham[sequence, row["seed"]]
            gains.setdefault(method, []).append(row[column] - other[column])
            full.setdefault(str(row["seed"]), []).append(row["test"] - other["test"])
        every = [gain for of_method in gains.values() for gain in of_method]
        result[reduction] = {
            "runs": len(every),
            "above": sum(gain > 0 for gain in every),
            "gain": {method: round(statistics.mean(of_method), 4) for method, of_method in gains.items()},
            "full": {seed: round(max(of_seed), 4) for seed, of_seed in full.items()},
        }
    return result


def _against_sham(reduced: list[Row], shams: list[Row]) -> dict[str, Any]:
    ours, theirs = ([_cluster(row) for row in kind] for kind in (reduced, shams))
    tested = asdict(clustered_difference(ours, theirs))
    tested["difference"] = round(100 * tested["difference"], 4)
    return {"rise": _mean_rise(ours), "rise of sham": _mean_rise(theirs), **tested}


def _cluster(row: Row) -> Cluster:
    """Returns the rises of a run of paired epochs; an R epoch at its end has no pair."""
    accuracies = np.array(row["val_accuracies"], float)
    reduced = [i for i in range(len(accuracies) - 1) if row["phases"][i : i + 2] == "RC"]
    return Cluster(row["seed"], accuracies[[i + 1 for i in reduced]] - accuracies[reduced])


def _mean_rise(clusters: list[Cluster]) -> float | None:
    rises = np.concatenate([cluster.differences for cluster in clusters] or [np.empty(0)])
    return round(100 * float(rises.mean()), 4) if len(rises) else None


def above_chance(rows: list[Row], images: int, classes: int) -> dict[str, Any]:
    """Returns how many runs lie above chance on test at p < .05, for the best and for the last weights.

    One-sided binomial, before and after Holm's correction.
    """
    result: dict[str, Any] = {}
    for column in ("test", "test last"):
        p = [
            float(binomtest(round(row[column] * images), images, 1 / classes, alternative="greater").pvalue)
            for row in rows
        ]
        result[column] = {
            "runs": len(p),
            "p < .05": sum(x < 0.05 for x in p),
            "after Holm": sum(x < 0.05 for x in holm(p)),
            "smallest p": min(p),
            "highest": max(row[column] for row in rows),
            "mean": statistics.mean(row[column] for row in rows),
        }
    return result


def markdown(runs: dict[str, dict[str, Any]]) -> str:
    """Returns table.md of what `means` returns."""
    columns = [column for column in next(iter(runs.values())) if column != "seeds"]
    lines = ["| run | seeds | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for name, figures in runs.items():
        cells = [
            f"{figures[column]['mean']:,.0f}"
            if column in _COUNTED
            else f"{figures[column]['mean']:.3f} ± {figures[column]['sd']:.3f}"
            for column in columns
        ]
        lines.append(f"| {name} | {figures['seeds']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def read_rows(folder: Path) -> list[Row]:
    """Returns the rows of rows.jsonl; [] where there is none yet."""
    file = folder / "rows.jsonl"
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []


def write(folder: Path, made_by: dict[str, Any]) -> None:
    """Writes table.json and table.md from rows.jsonl. made_by: machine and settings."""
    figures = summary(read_rows(folder), made_by["settings"])
    (folder / "table.json").write_text(json.dumps({**made_by, **figures}, indent=1) + "\n", "utf-8")
    (folder / "table.md").write_text(markdown(figures["runs"]), "utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="holds rows.jsonl and table.json")
    folder = parser.parse_args().folder
    table = json.loads((folder / "table.json").read_text("utf-8"))
    write(folder, {key: table[key] for key in ("machine", "settings")})
    return 0


if __name__ == "__main__":
    sys.exit(main())
