"""Writes the tables and plots of docs/performance.md from the files in benchmarks/results.

    python benchmarks/performance_page.py            # writes what has changed
    python benchmarks/performance_page.py --check    # exit status 1 if something would change

A table stands between `<!-- begin: NAME -->` and `<!-- end: NAME -->`; the text around it is written by hand.
Each table ends in a comment that says where in which file every figure is, which
tests/test_documented_figures.py checks. The column of a GPU is filled as soon as there is a file of the same
name with `-gpu` in place of `-cpu`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import performance_plots

ROOT = Path(__file__).parent.parent
RESULTS = Path("benchmarks/results")
PAGE, IMAGES = ROOT / "docs" / "performance.md", ROOT / "docs" / "images"
REGION = re.compile(r"<!-- begin: (\S+) -->\n(.*?)<!-- end: \1 -->", re.DOTALL)
ABSENT = "–"

Row = dict[str, Any]


class Column(NamedTuple):
    """A column of figures. keys: lead to a figure in the file, with {row} for the key of the row, and * for
    a factor behind them. spread: whether they lead to a median, a minimum and a maximum."""

    header: str
    keys: str
    digits: int = 2
    spread: bool = False
    on_gpu: bool = False


class Table(NamedTuple):
    """A table of one file. stem: of its name, before -cpu.json. first: the header of the rows. rows: the key
    of each by its label. repeat: the command that writes the file, where the file does not say it."""

    stem: str
    first: str
    rows: dict[str, str]
    columns: list[Column]
    repeat: str = ""


def result(stem: str, device: str) -> Row | None:
    """Returns what a result file holds, or None where there is none."""
    file = ROOT / RESULTS / f"{stem}-{device}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def value_at(data: Row, keys: str) -> float | None:
    """Returns the figure to which `keys` lead, or None where they do not."""
    path, _, factor = keys.partition(" * ")
    found: Any = data
    for key in path.split(" > "):
        try:
            found = found[int(key)] if isinstance(found, list) else found[key]
        except (KeyError, IndexError):
            return None
    return float(found) * float(factor or 1)


def cell(column: Column, keys: str, device: str, data: Row, marks: dict[str, list[str]]) -> str:
    """Returns the text of a cell, and notes in `marks` where each of its figures is."""

    def figure(found: str) -> str:
        value = value_at(data, found)
        if value is None:
            return ABSENT
        text = f"{value:,.{column.digits}f}"
        marks.setdefault(device, []).append(f"{text} = {found}")
        return text

    if not column.spread:
        return figure(keys)
    path, _, factor = keys.partition(" * ")
    behind = f" * {factor}" if factor else ""
    median, least, most = (figure(f"{path} > {name}{behind}") for name in ("median", "min", "max"))
    return median if median == ABSENT else f"{median} ({least} to {most})"


def machine_of(data: Row, repeat: str) -> str:
    """Returns on which machine, with which versions and by which command a file was measured."""
    facts = data["machine"]
    where = [f"{facts['cpu']}, {facts['cores']} cores", *([facts["gpu"]] if facts.get("gpu") else [])]
    versions = {"Python": facts["python"], "torch": facts["torch"], "DALI": facts["dali"]}
    versions |= data.get("versions", {})
    command = data.get("command", repeat)
    if isinstance(command, list):
        command = f"python {' '.join(command)}"
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{'; '.join(where)}; {listed}. `{command}`"


def render(table: Table) -> str:
    """Returns a table in Markdown, its machines, and the comment for the test of figures."""
    data = {device: found for device in ("cpu", "gpu") if (found := result(table.stem, device)) is not None}
    if "cpu" not in data:
        return f"{RESULTS}/{table.stem}-cpu.json has not been measured yet.\n"
    marks: dict[str, list[str]] = {}
    lines = [
        f"| {table.first} | {' | '.join(column.header for column in table.columns)} |",
        f"|---|{'---|' * len(table.columns)}",
    ]
    for label, row in table.rows.items():
        cells = []
        for column in table.columns:
            device = "gpu" if column.on_gpu else "cpu"
            keys = column.keys.replace("{row}", row)
            cells.append(cell(column, keys, device, data[device], marks) if device in data else ABSENT)
        lines.append(f"| {label} | {' | '.join(cells)} |")
    lines.append("")
    for device, found in data.items():
        name = f"{RESULTS}/{table.stem}-{device}.json"
        lines.append(f"`{name}`: {machine_of(found, table.repeat)}\n")
        if figures := marks.get(device):
            lines += [f"<!-- figures of {name}", *dict.fromkeys(figures), "-->", ""]
    return "\n".join(lines)


def tables() -> dict[str, list[Table]]:
    """Returns the tables of each region."""
    peers = result("peers", "cpu") or {}
    curves = (result("loader-curves", "cpu") or {"curves": dict.fromkeys(performance_plots.TITLES, ())})[
        "curves"
    ]
    names = list(peers.get("images_per_second", ()))
    combined = list(peers.get("speed_ratio_combination", ()))
    return {
        "peers": [peers_table([name for name in names if name in ("qrdali", *peers["speed_ratio"])])],
        "pixels": [pixels_table(list(peers.get("pixels", ())))],
        "reduced": [
            reduced_table(list(peers.get("time_reduced_over_full", ()))),
            combination_table(combined),
        ],
        **{f"curve-{name}": [curve_table(name, list(points))] for name, points in curves.items()},
        **jobs(),
        **limits(),
    }


def on_both(header: str, keys: str, digits: int = 2, *, spread: bool = False) -> list[Column]:
    """Returns a column of the CPU and one of the GPU."""
    return [
        Column(f"{header}, CPU", keys, digits, spread),
        Column(f"{header}, GPU", keys, digits, spread, on_gpu=True),
    ]


def peers_table(names: list[str]) -> Table:
    return Table(
        "peers",
        "loader",
        {name: name for name in names},
        [
            *on_both("images/s", "images_per_second > {row}", 0, spread=True),
            *on_both("qrdali is … times as fast", "speed_ratio > {row}", spread=True),
            Column("CPU seconds / 1,000 images", "cpu_seconds_per_1000_images > {row} > median"),
            Column("CPU time ÷ qrdali's", "cpu_time_ratio > {row}", spread=True),
        ],
    )


def pixels_table(names: list[str]) -> Table:
    return Table(
        "peers",
        "loader",
        {name: name for name in names},
        [
            Column("mean difference", "pixels > {row} > mean_difference", 3),
            Column("largest difference", "pixels > {row} > max_difference", 0),
        ],
    )


def reduced_table(names: list[str]) -> Table:
    return Table(
        "peers",
        "reduction at quality .5",
        {name: name for name in names},
        [
            *on_both("time ÷ full quality", "time_reduced_over_full > {row}", spread=True),
            Column("share of decoding alone", "share_of_decode_alone > qrdali {row}", spread=True),
            Column("CPU seconds / 1,000 images", "cpu_seconds_per_1000_images > qrdali {row} > median"),
        ],
    )


def combination_table(names: list[str]) -> Table:
    return Table(
        "peers",
        "combination at quality .5",
        {name: name for name in names},
        on_both("qrdali is … times as fast", "speed_ratio_combination > {row}", spread=True),
    )


def curve_table(name: str, points: list[str]) -> Table:
    keys = f"curves > {name} > {{row}} >"
    return Table(
        "loader-curves",
        performance_plots.TITLES[name],
        {text.replace("x", "×"): text for text in points},
        [
            Column("images/s", f"{keys} images_per_second > qrdali", 0, spread=True),
            Column("decoding alone", f"{keys} images_per_second > decode alone", 0, spread=True),
            *on_both("share", f"{keys} share_of_decode_alone", spread=True),
            Column("CPU seconds / 1,000", f"{keys} cpu_seconds_per_1000_images > qrdali > median"),
            Column("share by CPU time", f"{keys} share_of_decode_alone_by_cpu_time", spread=True),
        ],
    )


def jobs() -> dict[str, list[Table]]:
    """Returns the tables of training, the search for minimal images, and indexing."""
    reductions = ("color", "crop", "resolution", "combination")
    kinds = {f"epoch, {name}": name for name in reductions}
    kinds |= {f"probe, {name}": f"probe {name}" for name in reductions}
    models = ("squeezenet1_1", "test_resnet", "efficientnet_b3", "resnet152")
    files = {"plain JPEGs": "plain", "with EXIF": "with_exif", "progressive": "progressive"}
    scratch = {"squeezenet1_1": 25, "resnet152": 6, "efficientnet_b3": 6}
    return {
        "bench-loader": [
            Table(
                "loader",
                "qrdali is … times as fast as",
                {
                    name: f"qrdali full / {name}"
                    for name in ("torchvision, Pillow", "torchvision.io", "plain DALI")
                },
                on_both("ratio", "speed_ratio > {row}"),
            )
        ],
        "train": [
            Table(
                "train",
                "seconds ÷ a full epoch",
                kinds,
                [
                    *on_both("qrdali", "over_full > {row}"),
                    Column("thesis, RTX 3090", "thesis_over_full > {row}"),
                ],
            )
        ],
        "precision": [
            Table(
                "precision",
                "network",
                {name: name for name in models},
                [
                    Column("pixels", "models > {row} > input_size", 0),
                    *on_both("bf16 ÷ float32", "models > {row} > bf16, channels-last > ratio"),
                    *on_both("contiguous ÷ channels-last", "models > {row} > off, contiguous > ratio"),
                ],
                "python benchmarks/precision.py",
            )
        ],
        "mepi": [
            Table(
                "mepi",
                "reduction",
                {name: name for name in reductions},
                [
                    *on_both("images/s", "reductions > {row} > images_per_second"),
                    Column("naive search", "reductions > {row} > naive_images_per_second"),
                    *on_both("times as fast", "reductions > {row} > ratio"),
                    *on_both("÷ forward passes alone", "reductions > {row} > over_forward_alone"),
                ],
            )
        ],
        "index": [
            Table(
                "index",
                "files",
                files,
                [
                    Column("kB each", "{row} > mean_bytes * 1e-3", 0),
                    Column("time ÷ decoding by DALI", "{row} > index_over_dali"),
                    Column("time ÷ decoding by Pillow", "{row} > index_over_pillow"),
                ],
            )
        ],
        "scratch": [
            Table(
                "scratch",
                "network",
                {
                    f"{name}, {epochs} epochs": f"runs > {name} > val_accuracy > {epochs}"
                    for name, epochs in scratch.items()
                },
                [Column("validation accuracy", "{row}", 3)],
            )
        ],
    }


def limits() -> dict[str, list[Table]]:
    """Returns the tables of CPU time by that of what cannot be left out, of `benchmarks/limit.py`."""
    batches = {f"batches of {size} images": f"batch_{size}" for size in (32, 128)}
    searched = {name: f"reductions > {name}" for name in ("color", "resolution")}
    spent = "{row} > cpu_us_per_image"
    probed = {name: name for name in ("color", "resolution", "crop")}
    return {
        "limit-loader": [
            Table(
                "loader-limit",
                "loader",
                batches,
                [
                    Column("decoding alone, µs an image", f"{spent} > decode", 0),
                    Column("loader, µs an image", f"{spent} > loader", 0),
                    Column("decoding alone ÷ loader", "{row} > decode_over_loader"),
                ],
            )
        ],
        "limit-mepi": [
            Table(
                "mepi-limit",
                "search",
                searched,
                [
                    Column("÷ forward passes alone", "{row} > over_forward_alone"),
                    Column("without the PNG's encoding", "{row} > over_forward_without_encoding"),
                    Column("forward passes, s", "{row} > cpu_seconds > forward", 1),
                    Column("encoding of originals, s", "{row} > cpu_seconds > entropy", 1),
                    Column("encoding of minimal images, s", "{row} > cpu_seconds > png_bytes", 1),
                    Column("all, s", "{row} > cpu_seconds > all", 1),
                ],
            )
        ],
        "limit-probe": [
            Table(
                "probe-limit",
                "probe",
                probed,
                [
                    Column("forward passes alone, ms an image", f"{spent} > forward * 1e-3", 1),
                    Column("probe, ms an image", f"{spent} > probe * 1e-3", 1),
                    Column("÷ forward passes alone", "{row} > over_forward_alone"),
                ],
            )
        ],
        "limit-index": [
            Table(
                "index-limit",
                "index",
                {"all": "index_over_decode", "without the start": "index_over_decode_per_file"},
                [Column("÷ decoding alone", "{row}")],
            )
        ],
    }


def filled(file: Path, known: dict[str, str]) -> str:
    """Returns a page with its regions written anew; raises ValueError for a region that nobody fills."""

    def region(match: re.Match[str]) -> str:
        name = match[1]
        if name not in known:
            raise ValueError(f"{file.name} has the region {name!r}: there are {', '.join(sorted(known))}")
        return f"<!-- begin: {name} -->\n{known[name]}\n<!-- end: {name} -->"

    return REGION.sub(region, file.read_text(encoding="utf-8"))


def page() -> str:
    """Returns docs/performance.md with its regions written anew."""
    known = {name: "\n".join(render(table) for table in found) for name, found in tables().items()}
    return filled(PAGE, known)


def plots() -> dict[str, str]:
    """Returns each plot as SVG by the name of its file; one whose figures are not measured is left out."""
    found = {}
    for name, stem, draw in (
        ("performance-peers.svg", "peers", performance_plots.peers),
        ("performance-curves.svg", "loader-curves", performance_plots.curves),
    ):
        if (data := result(stem, "cpu")) is not None:
            found[name] = draw(data)
    return found


def write(words: list[str], description: str | None, wanted: dict[Path, str]) -> int:
    """Writes the files whose text is another, or with --check only names them; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing, say what would change")
    options = parser.parse_args(words)
    changed = [
        file for file, text in wanted.items() if not file.exists() or file.read_text(encoding="utf-8") != text
    ]
    for file in changed:
        if not options.check:
            file.write_text(wanted[file], encoding="utf-8")
        print(f"{file.relative_to(ROOT)} {'would change' if options.check else 'written'}")
    return 1 if changed and options.check else 0


def main(words: list[str]) -> int:
    return write(words, __doc__, {PAGE: page()} | {IMAGES / name: svg for name, svg in plots().items()})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
