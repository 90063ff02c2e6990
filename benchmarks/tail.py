"""What the levels below the grid are worth: minimal images of one run with and without them; JSON on stdout.

    python benchmarks/tail.py --run RUN --data DATASET --split test > tail.json

Per reduction, for --tail none and full: the mean quotient of the MEPIs, with and without those that ended at
the lowest state there is, the share that ended there, evaluations per image and images per second.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq

import qrdali
from qrdali.cli.terminal import TerminalListener
from qrdali.workflows.bench_loader import machine

FIGURES = (
    "images",
    "without_mepi",
    "mean_quotient",
    "mean_quotient_above_void",
    "lowest_state_share",
    "images_per_second",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--note", default="", help="what the figures are of, for who reads the file")
    args = parser.parse_args()
    result: dict[str, object] = {
        "machine": machine(),
        "command": f"python {' '.join(sys.argv)}",
        "note": args.note,
        "model": qrdali.Run(args.run).best.model,
    }
    for tail in ("none", "full"):
        with TemporaryDirectory() as scratch:
            summaries = qrdali.build_mepi(
                args.run,
                args.data,
                split=args.split,
                limit=args.limit,
                tail=tail,
                out=scratch,
                progress=TerminalListener(),
            )
            rows = pq.read_table(Path(scratch) / "manifest.parquet").to_pylist()
        result[tail] = {
            reduction: {
                **{name: summary[name] for name in FIGURES},
                "evaluations_per_mepi": _mean(
                    [row["evaluations"] for row in rows if row["reduction"] == reduction]
                ),
            }
            for reduction, summary in summaries.items()
        }
    print(json.dumps(result, indent=1))


def _mean(values: list[int]) -> float | None:
    return round(sum(values) / len(values), 2) if values else None


if __name__ == "__main__":
    main()
