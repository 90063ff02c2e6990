"""Computes what the experiment on photographs shows, from the rows of its runs and from nothing else.

    python benchmarks/photographs/evidence.py photographs-runs --images photographs --network small \
        --out benchmarks/results/photographs

writes NETWORK.json, its figures, and NETWORK-rows.parquet, from which `--from-rows` computes them again:

    python benchmarks/photographs/evidence.py --from-rows --network small --out benchmarks/results/photographs

`--add-to OTHER` adds the runs of another experiment on the same images to those of the network OTHER. A run
that is in both, such as the baseline, must have given the same answers in both.

Images of one thing are no independent samples. So intervals and p values resample things, each with all of
its images and all seeds: the networks are taken as they are. Beside them stand the differences of each seed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import bootstrap, permutation_test

from qrdali.evaluation.seeded_differences import seeds_p_value
from qrdali.evaluation.stats import holm
from qrdali.workflows.bench_loader import machine

SETS = ("test", "test-color-0.5", "test-crop-0.5", "test-resolution-0.5", "test-combination-0.5")
RESAMPLES = 9999
PERMUTATIONS = 99_999  # of a p value, which Holm's correction multiplies with its error
SCHEMA = pa.schema(
    [
        ("run", pa.dictionary(pa.int16(), pa.string())),
        ("seed", pa.int16()),
        ("measure", pa.dictionary(pa.int16(), pa.string())),  # a set, or "quotient REDUCTION"
        ("sample", pa.int32()),
        ("thing", pa.dictionary(pa.int16(), pa.string())),
        ("value", pa.float32()),  # 1 for right and 0 for wrong, or the entropy quotient
    ]
)

Values = npt.NDArray[np.float64]


def rows_of(out: Path, network: str, images: Path) -> pa.Table:
    """Returns a row per run, seed, measure and image. out: of `qrdali reproduce`; images: of build.py."""
    lines = (images / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    things = {line["file"]: line["object"] for line in map(json.loads, lines)}
    tables = []
    for run, seed, folder in runs_of(out / "runs" / network):
        for name in SETS:
            read = pq.read_table(
                folder / "predictions" / f"{name}.parquet", columns=["sample", "path", "correct"]
            )
            tables.append(_table(run, seed, name, read, "correct", things))
        manifest = out / "mepi" / network / f"seed-{seed}" / run / "manifest.parquet"
        if manifest.exists():
            read = pq.read_table(manifest, columns=["sample", "path", "reduction", "quotient"])
            for reduction in sorted(set(read["reduction"].to_pylist())):
                some = read.filter(pa.compute.equal(read["reduction"], reduction))
                tables.append(_table(run, seed, f"quotient {reduction}", some, "quotient", things))
    if not tables:
        raise SystemExit(f"evidence.py: {out / 'runs' / network} has no evaluated runs")
    return pa.concat_tables(tables).unify_dictionaries()


def runs_of(folder: Path) -> Iterator[tuple[str, int, Path]]:
    """Yields name, seed and folder of each run that is evaluated on all sets."""
    for run in sorted(folder.glob("seed-*/*")):
        if all((run / "predictions" / f"{name}.parquet").exists() for name in SETS):
            yield run.name, int(run.parent.name.removeprefix("seed-")), run


def joined(table: pa.Table, more: pa.Table) -> pa.Table:
    """Returns the rows of both tables, once where a run has values of one measure and seed in both.

    Raises SystemExit where those differ: the two are not of the same network.
    """
    known, added = Rows(table).values, Rows(more).values
    twice = set()
    for (run, measure), of_seeds in added.items():
        for seed, values in of_seeds.items():
            before = known.get((run, measure), {}).get(seed)
            if before is not None and before != values:
                raise SystemExit(
                    f"evidence.py: {run}, seed {seed}, {measure}: other values than those of before"
                )
            if before is not None:
                twice.add((run, seed, measure))
    keys = zip(*(more[name].to_pylist() for name in ("run", "seed", "measure")), strict=True)
    new = more.filter(pa.array([key not in twice for key in keys]))
    return pa.concat_tables([table, new]).unify_dictionaries()


def _table(
    run: str, seed: int, measure: str, read: pa.Table, column: str, things: dict[str, str]
) -> pa.Table:
    # Where a data set is indexed, paths are below its root or absolute; the builder's are below its folder.
    names = ["/".join(Path(path).parts[-3:]) for path in read["path"].to_pylist()]
    count = len(names)
    columns = {
        "run": pa.array([run] * count),
        "seed": pa.array([seed] * count),
        "measure": pa.array([measure] * count),
        "sample": read["sample"],
        "thing": pa.array([things[name] for name in names]),
        "value": read[column].cast(pa.float32()),
    }
    return pa.table(columns).cast(SCHEMA)


class Rows:
    """Holds the values of all runs: for each run, measure and seed the images', by their number."""

    def __init__(self, table: pa.Table) -> None:
        columns = {name: table[name].to_pylist() for name in table.column_names}
        self.values: dict[tuple[str, str], dict[int, dict[int, float]]] = defaultdict(
            lambda: defaultdict(dict)
        )
        self.things: dict[int, str] = {}
        for run, seed, measure, sample, thing, value in zip(*columns.values(), strict=True):
            self.values[run, measure][seed][sample] = value
            self.things[sample] = thing
        self.runs = sorted({run for run, _ in self.values})

    def means(self, run: str, measure: str) -> dict[int, float]:
        """Returns the mean over images of each seed."""
        return {
            seed: float(np.mean([*of.values()])) for seed, of in sorted(self.values[run, measure].items())
        }

    def difference(self, run: str, other: str, measure: str) -> dict[str, Any] | None:
        """Returns by how much `run` exceeds `other`, seed by seed on the images that both have.

        The difference is the mean over all images of all seeds: a seed with more images that both have counts
        more.
        """
        ours, theirs = self.values.get((run, measure)), self.values.get((other, measure))
        if not ours or not theirs or run == other:
            return None
        by_thing: dict[str, list[float]] = defaultdict(list)
        by_seed = []
        images: set[int] = set()
        for seed in sorted(ours.keys() & theirs.keys()):
            both = sorted(ours[seed].keys() & theirs[seed].keys())
            of_seed = [ours[seed][sample] - theirs[seed][sample] for sample in both]
            by_seed.append(float(np.mean(of_seed)))
            images.update(both)
            for sample, value in zip(both, of_seed, strict=True):
                by_thing[self.things[sample]].append(value)
        sums = np.array([sum(values) for values in by_thing.values()])
        counts = np.array([len(values) for values in by_thing.values()], np.float64)
        low, high = interval(sums, counts)
        return {
            "run": run,
            "against": other,
            "measure": measure,
            "images": len(images),
            "things": len(sums),
            "difference": round(float(sums.sum() / counts.sum()), 4),
            "interval": [round(low, 4), round(high, 4)],
            "p": p_value(sums),
            "by_seed": [round(value, 4) for value in by_seed],
            "p_over_seeds": seeds_p_value(by_seed, 1e-6),
        }


def _ratio(sums: Values, counts: Values, axis: int = -1) -> Values:
    ratio: Values = sums.sum(axis=axis) / counts.sum(axis=axis)
    return ratio


def interval(sums: Values, counts: Values) -> tuple[float, float]:
    """Returns the 95% interval (low, high) of the mean over images, by scipy's BCa bootstrap of things.

    sums, counts: of each thing, the sum over its images in all seeds and their number; [things].
    """
    if len(sums) < 2 or np.ptp(sums / counts) == 0:
        value = float(sums.sum() / counts.sum())
        return value, value
    found = bootstrap(
        (sums, counts),
        _ratio,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(0),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def p_value(sums: Values) -> float:
    """Returns the two-sided p value of a permutation of the signs of things' sums: no difference is 1."""
    if not sums.any():
        return 1.0
    found = permutation_test(
        (sums,),
        np.sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        batch=10_000,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def controls_of(run: str, runs: Sequence[str]) -> dict[str, str]:
    """Returns the runs that `run` is compared with, by what each of them answers.

    runs: the names of all runs. Where no random control is in the sequence of `run`, that in paired epochs is
    taken. Random runs train on reduced images too, so they have the other controls.
    """
    method, sequence, reduction = _parts(run)
    if method in ("linear", "adaptive", "fixed", "random"):
        controls = {"baseline": "baseline", "sham": f"sham-{sequence}", "matched": "baseline-matched"}
        if method != "random":
            random = f"random-{sequence}-{reduction}"
            controls["random"] = random if random in runs else f"random-paired-epochs-{reduction}"
        return controls
    return {"baseline": {"shared": "shared"}, "shared": {}}.get(run, {"baseline": "baseline"})


def _parts(run: str) -> tuple[str, str, str]:
    found = re.fullmatch(r"([a-z]+)-(paired-rounds|paired-epochs)(?:-([a-z]+))?", run)
    return (found[1], found[2], found[3] or "none") if found else (run, "", "none")


def measures_of(run: str) -> tuple[str, ...]:
    """Returns what a run is judged by: the full set, and that of its own reduction."""
    reduction = _parts(run)[2]
    return ("test",) if reduction == "none" else ("test", f"test-{reduction}-0.5")


def figures(rows: Rows) -> dict[str, Any]:
    """Returns accuracies of all runs, differences of P1 and of P2. Holm's correction is over each family."""
    accuracies = {run: {name: list(rows.means(run, name).values()) for name in SETS} for run in rows.runs}
    means = {run: {name: float(np.mean(of)) for name, of in sets.items()} for run, sets in accuracies.items()}
    families: dict[str, list[dict[str, Any]]] = {}
    for run in rows.runs:
        for why, other in controls_of(run, rows.runs).items():
            for measure in measures_of(run):
                family = f"{'full' if measure == 'test' else 'reduced'} against {why}"
                if (row := rows.difference(run, other, measure)) is not None:
                    families.setdefault(family, []).append(row)
    measures = sorted({measure for _, measure in rows.values if measure.startswith("quotient")})
    for measure in measures:
        for run in rows.runs:
            if (row := rows.difference(run, "baseline", measure)) is not None:
                families.setdefault("quotient against baseline", []).append(row)
    for of_family in families.values():
        for row, p in zip(of_family, holm([row["p"] for row in of_family]), strict=True):
            row["p_holm"] = float(p)
    quotients = {
        measure.removeprefix("quotient "): {
            run: list(rows.means(run, measure).values()) for run in rows.runs if (run, measure) in rows.values
        }
        for measure in measures
    }
    return {
        "accuracies": accuracies,
        "mean_accuracies": means,
        "quotients": quotients,
        "differences": families,
    }


def schedules_of(out: Path, network: str) -> dict[str, list[dict[str, int]]]:
    """Returns how long each run trained and when its best was found, by run, in the order of seeds."""
    found: dict[str, list[dict[str, int]]] = defaultdict(list)
    for run, _, folder in runs_of(out / "runs" / network):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
        best = json.loads((folder / "best" / "state.json").read_text("utf-8"))
        found[run].append({"epochs": lines[-1]["epoch"], "best_epoch": best["epoch"]})
    return dict(found)


def rounded(value: Any) -> Any:
    """Returns `value` with all floats in it rounded to four places; of a smaller one a digit is left."""
    if isinstance(value, dict):
        return {key: rounded(of) for key, of in value.items()}
    if isinstance(value, list):
        return [rounded(of) for of in value]
    return (round(value, 4) or float(f"{value:.0e}")) if isinstance(value, float) else value


def _joined_facts(kept: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Returns machine, command, note and schedules of two experiments. Raises SystemExit for two machines."""
    if kept["machine"] != more["machine"]:
        raise SystemExit(f"evidence.py: these are runs of another machine: {more['machine']}")
    facts = {
        key: "; ".join(dict.fromkeys(text for text in (kept[key], more[key]) if text))
        for key in ("command", "note")
    }
    return {"machine": kept["machine"], **facts, "schedules": more["schedules"] | kept["schedules"]}


def main(words: Sequence[str] | None = None, say: Callable[[str], object] = print) -> None:
    """Runs the computation with the arguments of this process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="?", help="the experiment's folder")
    parser.add_argument("--images", type=Path, help="the folder that build.py wrote")
    parser.add_argument("--network", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--from-rows", action="store_true", help="compute anew from the rows in --out")
    parser.add_argument(
        "--experiment", default="experiment.toml", help="the file of the runs, in benchmarks/photographs"
    )
    parser.add_argument("--add-to", metavar="OTHER", default="", help="the network whose runs these join")
    parser.add_argument("--note", default="")
    args = parser.parse_args(words)
    network = args.add_to or args.network
    rows_file, file = args.out / f"{network}-rows.parquet", args.out / f"{network}.json"
    kept = json.loads(file.read_text("utf-8")) if args.from_rows or args.add_to else {}
    if args.from_rows:
        facts = {key: kept[key] for key in ("machine", "command", "note", "schedules")}
        table = pq.read_table(rows_file)
    else:
        if args.runs is None or args.images is None:
            parser.error("give the experiment's folder and --images, or --from-rows")
        table = rows_of(args.runs, args.network, args.images)
        facts = {
            "machine": machine(),
            "command": f"qrdali reproduce benchmarks/photographs/{args.experiment} --workers 2",
            "note": args.note,
            "schedules": schedules_of(args.runs, args.network),
        }
        if args.add_to:
            table = joined(pq.read_table(rows_file), table)
            facts = _joined_facts(kept, facts)
        args.out.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, rows_file, compression="zstd", compression_level=19)
    text = json.dumps(rounded(facts | figures(Rows(table))), indent=1)
    # A list of figures on one line each.
    text = re.sub(r"\[\s+([^][{}\"]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)
    file.write_text(text + "\n", "utf-8")
    say(f"{file}: {table.num_rows:,} rows")


if __name__ == "__main__":
    sys.exit(main())
