"""Hours of SIGKILLs: `make soak`, or `python tests/soak.py --minutes 60`.

Every case is run once to its end and again killed up to --kills times at random moments, and what both leave
is compared: weights, optimizer, generators, rows and MEPIs by hash, metrics less times, and the log of every
batch's samples and pixels. One line of JSON per case goes into WORK/cases.jsonl; the same command goes on
after the last of them. A case that fails is told and does not end the rest.
"""

import argparse
import json
import random
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kill_helpers import Case, Outcome, killed
from soak_cases import Ground, commands, training


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--minutes", type=float, default=60, help="no case is begun after that  [default: 60]"
    )
    parser.add_argument("--kills", type=int, default=3, help="at most, of each case  [default: 3]")
    parser.add_argument(
        "--rounds",
        type=int,
        default=1,
        help="times that all cases are taken, with other moments  [default: 1]",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the order of cases and of the moments")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--work", type=Path, default=Path("soak"), help="folder to work in  [default: soak]")
    parser.add_argument("--note", default="", help="goes into the result")
    args = parser.parse_args()
    begun = time.monotonic()
    noted, ground = args.work / "cases.jsonl", _ground(args.work)
    now = args.work.absolute() / "case" / "now"
    cases = [case for case in (*commands(ground, now), *training(ground, now)) if args.only in case.name]
    rows = _noted(noted)
    for round_ in range(args.rounds):
        order = list(cases)
        random.Random(f"{args.seed} {round_}").shuffle(order)
        for case in order:
            seed = f"{args.seed}.{round_}"
            if any((row["name"], row["seed"]) == (case.name, seed) for row in rows):
                continue
            if time.monotonic() - begun > 60 * args.minutes:
                break
            row = _attempt(case, now.parent, seed, args.kills)
            rows.append(row)
            with open(noted, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(
                f"[{len(rows)}/{len(cases) * args.rounds}] {case.name}: {_told(row)}",
                file=sys.stderr,
                flush=True,
            )
    json.dump(_result(rows, len(cases) * args.rounds, args), sys.stdout, indent=1)
    print()
    sys.exit(any(row["differences"] for row in rows))


def _ground(work: Path) -> Ground:
    """Made anew by every call: it is a function of nothing but the code."""
    shutil.rmtree(work / "ground", ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    return Ground(work.absolute() / "ground")


def _noted(file: Path) -> list[dict[str, Any]]:
    """The cases that are done; a line cut short is not."""
    rows = []
    for line in file.read_text("utf-8").splitlines() if file.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _attempt(case: Case, folder: Path, seed: str, kills: int) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)
    begun = time.monotonic()
    try:
        found = killed(case, folder, seed, kills, timed=True)
    except Exception as error:  # whatever it is, it is this case's result
        found = Outcome(case.name, 0, 0, 0, 0, [f"{type(error).__name__}: {error}"])
    return {**asdict(found), "seed": seed, "seconds": round(time.monotonic() - begun, 1)}


def _result(rows: list[dict[str, Any]], cases: int, args: argparse.Namespace) -> dict[str, Any]:
    from qrdali.workflows.bench_loader import machine

    kinds: dict[str, dict[str, int]] = {}
    for row in rows:
        words = row["name"].split()
        kind = kinds.setdefault(
            " ".join(words[:2]) if words[0] in ("train", "data") else words[0],
            {"cases": 0, "kills": 0, "begun": 0, "redone": 0, "most_redone_after_a_kill": 0, "different": 0},
        )
        kind["cases"] += 1
        kind["different"] += bool(row["differences"])
        kind["most_redone_after_a_kill"] = max(kind["most_redone_after_a_kill"], row["longest"])
        for key in ("kills", "begun", "redone"):
            kind[key] += row[key]
    return {
        "machine": machine(),
        "note": args.note,
        "seed": args.seed,
        "cases": cases,
        "cases_done": len(rows),
        "with_ema": sum(row["name"].endswith(" ema") for row in rows),
        "kills": sum(row["kills"] for row in rows),
        "cases_that_differ": [row["name"] for row in rows if row["differences"]],
        "minutes": round(sum(row["seconds"] for row in rows) / 60, 1),
        "of_each_kind": dict(sorted(kinds.items())),
        "each": {f"{row['name']}, seed {row['seed']}": _told(row) for row in rows},
    }


def _told(row: dict[str, Any]) -> str:
    return "; ".join([f"{row['kills']} kills, {row['redone']} of {row['begun']} redone", *row["differences"]])


if __name__ == "__main__":
    main()
