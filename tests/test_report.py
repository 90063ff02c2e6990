"""`qrdali report`: figures from literals, several data sets and seeds, damage, hostile names."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import made
import numpy as np
import pytest
from click.testing import CliRunner

from qrdali.cli.main import cli
from qrdali.errors import InputError, RunError
from qrdali.report.build import build
from qrdali.report.tables import NOTHING, Cell, Table, number, probability, words


def right(*counts: int) -> "np.ndarray[Any, Any]":
    """`counts` of right and wrong answers, in turn."""
    return np.concatenate([np.full(count, i % 2 == 0) for i, count in enumerate(counts)])


@pytest.fixture
def four(tmp_path: Path) -> dict[str, Path]:
    """Shared, baseline, linear and adaptive of one network: test has 40 images, a reduced set 20."""
    base = tmp_path / "runs"
    return {
        "shared": made.run(base / "shared", [.1, .4, .5], {"val": right(10, 10), "test": right(20, 20), "small": right(5, 15)},
                           method="shared"),
        "baseline": made.run(base / "baseline", [.5, .6, .55], {"val": right(12, 8), "test": right(24, 16), "small": right(6, 14)}),
        # 30 right: 21 of the baseline's 24, and 9 of its errors; b = 3, c = 9.
        "linear": made.run(base / "linear", [.5, .45, .65], {"val": right(13, 7), "test": right(21, 3, 9, 7), "small": right(12, 8)},
                           letters="RC", method="linear", reduction="crop", sequence="paired-epochs"),
        "adaptive": made.run(base / "adaptive", [.5, .45, .5, .6], {"val": right(12, 8), "test": right(24, 16), "small": right(10, 10)},
                             letters="RRC", method="adaptive", reduction="crop", sequence="paired-rounds"),
    }


def table(told: dict[str, Any], slug: str) -> list[dict[str, Any]]:
    found = told["tables"][slug]
    return [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]


def test_accuracy_and_significance_are_those_of_the_rows(four: dict[str, Path], tmp_path: Path) -> None:
    told = build(list(four.values()), [], tmp_path / "out")
    rows = {row["method"]: row for row in table(told, "accuracy-1")}
    assert [rows[m]["val"] for m in rows] == [50, 60, 65, 60]
    assert [rows[m]["test"] for m in rows] == [50, 60, 75, 60]
    assert [rows[m]["small"] for m in rows] == [25, 30, 60, 50]
    assert (rows["linear"]["best epoch"], rows["linear"]["epochs"], rows["baseline"]["best epoch"]) == (2, 2, 1)
    assert rows["linear"]["test against baseline"] == pytest.approx(15)
    assert rows["baseline"]["test against baseline"] is None
    pairs = {(row["set"], row["run"]): row for row in table(told, "comparisons-1")}
    linear = pairs["test", "linear"]
    assert (linear["only baseline right"], linear["only run right"], linear["χ²"]) == (3, 9, 3)
    assert linear["p"] == pytest.approx(.083265, abs=1e-5)  # chi-square of 3 with one degree of freedom
    assert linear["p (exact)"] == pytest.approx(2 * (1 + 12 + 66 + 220) / 4096)
    # Of three comparisons on test this is the second smallest p after shared's (b = 4, c = 0: χ² = 4), so twice.
    assert pairs["test", "shared"]["p"] == pytest.approx(.0455, abs=1e-4)
    assert pairs["test", "shared"]["p (Holm)"] == pytest.approx(3 * .0455003, abs=1e-5)
    assert linear["p (Holm)"] == pytest.approx(2 * .083265, abs=1e-5)
    # Zero discordant pairs: statistic 0, p = 1.
    same = pairs["test", "adaptive"]
    assert (same["only baseline right"], same["only run right"], same["χ²"], same["p"], same["p (exact)"]) == (0, 0, 0, 1, 1)
    assert [row["method"] for row in table(told, "top-test-1")] == ["linear", "baseline", "adaptive"]
    assert "descriptive" in told["tables"]["top-test-1"]["notes"][0]


def test_the_files(four: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = build(list(four.values()), [], out)
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(told))
    slugs = set(told["tables"])
    assert {f.name for f in (out / "tables").iterdir()} == {f"{slug}.{kind}" for slug in slugs for kind in ("csv", "md", "tex")}
    figures = {f.stem for f in (out / "figures").iterdir()}
    assert {"joint-1", "cost-steps-1", "cost-seconds-1", "evolution-1-1", "evolution-1-4"} <= figures
    assert {f.suffix for f in (out / "figures").glob("joint-1.*")} == {".svg", ".png"}
    page = (out / "report.html").read_text()
    assert page.count("<figure id=") == len(figures)
    assert "http://" not in page.split("<body>")[0]
    before = {f.name: f.read_bytes() for f in (out / "figures").iterdir()}
    build(list(four.values()), [], out)  # a report may be made again
    assert {f.name: f.read_bytes() for f in (out / "figures").iterdir()} == before
    assert not list(tmp_path.glob(".out*"))


def test_seeds_of_one_configuration_are_one_line(tmp_path: Path) -> None:
    folders = []
    for seed, base, count in ((0, 20, 20), (1, 18, 24), (2, 20, 28)):
        folders.append(made.run(tmp_path / f"b{seed}", [.5], {"val": right(20, 20), "test": right(base, 40 - base)}, seed=seed))
        folders.append(made.run(tmp_path / f"f{seed}", [.5], {"val": right(20, 20), "test": right(count, 40 - count)}, seed=seed,
                                method="fixed", reduction="color", quality=.5))
    folders.append(made.run(tmp_path / "other", [.5], {"val": right(20, 20), "test": right(20, 20)}, method="fixed", reduction="color",
                            quality=.5, lr=.5))
    told = build(folders, [], tmp_path / "out")
    rows = table(told, "accuracy-1")
    assert [(row["method"], row["seeds"]) for row in rows] == [("baseline", 3), ("fixed 0.5 (lr=0.0)", 3), ("fixed 0.5 (lr=0.5)", 1)]
    assert [row["test"] for row in rows] == pytest.approx([145 / 3, 60, 50])
    assert rows[1]["test against baseline"] == pytest.approx((0 + 15 + 20) / 3)  # each against the baseline of its seed
    text = (tmp_path / "out" / "tables" / "accuracy-1.csv").read_text()
    found = list(csv.DictReader(io.StringIO(text)))
    assert float(found[1]["test sd"]) == pytest.approx(10)  # of 50, 60 and 70
    assert "60.0 ± 10.0" in (tmp_path / "out" / "tables" / "accuracy-1.md").read_text()
    # 6 and 8 more right and none lost: χ² = 6 and 8.
    assert "p &lt; .05 in 2 of 3" in (tmp_path / "out" / "report.html").read_text()
    # Of the run in another configuration the baseline is that of its seed.
    assert [row["p"] for row in table(told, "comparisons-1") if row["run"] == "other" and row["set"] == "test"] == [1]


def test_data_sets_and_networks_stand_apart(four: dict[str, Path], tmp_path: Path) -> None:
    other = made.run(tmp_path / "other", [.5], {"val": right(5, 5)}, data="/data/else", prefix="/else/")
    told = build([four["baseline"], four["linear"], other], [], tmp_path / "out")
    assert [row["method"] for row in table(told, "accuracy-1")] == ["baseline", "linear"]
    assert [row["method"] for row in table(told, "accuracy-2")] == ["baseline"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Accuracy: test_resnet at 32 px on shapes" in page
    assert "Accuracy: test_resnet at 32 px on else" in page


def test_missing_rows_are_named_with_the_command(four: dict[str, Path], tmp_path: Path) -> None:
    (four["linear"] / "predictions" / "test.parquet").unlink()
    (four["linear"] / "predictions" / "small.parquet").unlink()
    told = build(list(four.values()), [], tmp_path / "out")
    notes = told["tables"]["accuracy-1"]["notes"]
    assert any(f"qrdali evaluate --run {four['linear']} --data /data/shapes --split test" in note for note in notes)
    assert any(f"qrdali evaluate --run {four['linear']} --set small=FOLDER" in note for note in notes)
    assert next(row for row in table(told, "accuracy-1") if row["method"] == "linear")["test"] is None


def test_rows_of_other_images_are_not_compared(four: dict[str, Path], tmp_path: Path) -> None:
    made.rows(four["linear"], "test", right(30, 10), prefix="/moved/")
    told = build(list(four.values()), [], tmp_path / "out")
    assert {row["run"]: row["p"] for row in table(told, "comparisons-1") if row["set"] == "test"}["linear"] is None
    assert any("not of the same images" in note for note in told["tables"]["accuracy-1"]["notes"])


@pytest.mark.parametrize("cut", [b'{"epoch": 2, "ph', b'{"epoch": 2, "phase": "full", "val_accuracy": NaN}\n', b"\xff\xfe\n",
                                 b'{"epoch": -1, "phase": "full", "val_accuracy": 1}\n', b"[" * 100_000 + b"\n"])
def test_a_truncated_metrics_file_is_used_as_far_as_it_goes(four: dict[str, Path], tmp_path: Path, cut: bytes) -> None:
    file = four["baseline"] / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + lines[1] + cut)
    said: list[str] = []
    told = build(list(four.values()), [], tmp_path / "out", warn=said.append)
    assert len(said) == 1
    assert "line 3 is cut or damaged: the 2 lines before it are used" in said[0]
    assert table(told, "accuracy-1")[1]["epochs"] == 1


def test_what_cannot_be_reported(four: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="holds no run"):
        build([tmp_path], [], out)
    with pytest.raises(InputError, match="is given twice"):
        build([four["linear"], four["linear"].parent / "." / "linear"], [], out)
    with pytest.raises(InputError, match="is no MEPI set"):
        build([four["linear"]], [tmp_path], out)
    (four["linear"] / "predictions" / "test.parquet").write_bytes(b"PAR1no")
    with pytest.raises(RunError, match=r"test\.parquet cannot be read"):
        build([four["linear"]], [], out)
    (four["baseline"] / "metrics.jsonl").write_text("")
    with pytest.raises(RunError, match="no whole line"):
        build([four["baseline"]], [], out)
    assert not out.exists()
    out.mkdir()
    (out / "thesis.doc").write_text("mine")
    with pytest.raises(InputError, match="exists and is no report"):
        build([four["shared"]], [], out)
    assert [f.name for f in out.iterdir()] == ["thesis.doc"]


QUOTIENTS = {0: .1, 1: .2, 2: .3, 3: .4, 4: .5}


def test_quotients_of_two_runs_on_the_images_both_have(four: dict[str, Path], tmp_path: Path) -> None:
    one = made.mepis(tmp_path / "m" / "one", four["baseline"], {"color": QUOTIENTS, "crop": {}}, 10)
    other = made.mepis(tmp_path / "m" / "other", four["linear"], {"color": {1: .1, 2: .1, 3: .1, 4: .1, 5: .9}}, 10)
    told = build(list(four.values()), [other, one], tmp_path / "out")
    means = {row["set"]: row for row in table(told, "quotients")}
    assert (means["one"]["images"], means["one"]["with MEPI"]) == (10, 5)
    assert means["one"]["mean"] == pytest.approx(.3)
    # Classes are sample modulo 4: (.1 and .5), .2, .3, .4.
    assert means["one"]["mean over classes"] == pytest.approx(.3)
    assert means["other"]["mean over classes"] == pytest.approx((.1 + .5 + .1 + .1) / 4)
    pair, = table(told, "quotient-pairs")
    assert (pair["first"], pair["second"], pair["images"]) == ("one", "other", 4)
    assert pair["mean of first"] == pytest.approx(.35)
    assert pair["difference"] == pytest.approx(-.25)
    assert pair["Wilcoxon p"] == pytest.approx(.125)  # all four signs alike: 2 / 2^4
    shares = {row["set"]: row for row in table(told, "quotient-shares")}
    assert [shares["one"][f"≤ {x}"] for x in ("0.05", "0.1", "0.2", "0.5", "1")] == [0, 10, 20, 50, 50]
    by_class = {(row["class"], row["set"]): row["color"] for row in table(told, "quotients-by-class")}
    assert by_class["ant", "one"] == pytest.approx(.3)
    assert by_class["bee", "other"] == pytest.approx(.5)


def test_sets_with_other_options_are_not_compared(four: dict[str, Path], tmp_path: Path) -> None:
    one = made.mepis(tmp_path / "one", four["baseline"], {"color": QUOTIENTS}, 10)
    other = made.mepis(tmp_path / "other", four["linear"], {"color": QUOTIENTS}, 10, step=.25)
    told = build(list(four.values()), [one, other], tmp_path / "out")
    assert "quotient-pairs" not in told["tables"]
    third = made.mepis(tmp_path / "third", four["linear"], {"color": QUOTIENTS}, 10)
    told = build(list(four.values()), [one, other, third], tmp_path / "out")
    assert any("one and other are not compared: they differ in step" in note for note in told["tables"]["quotient-pairs"]["notes"])


def test_the_gallery_and_a_report_without_the_images(four: dict[str, Path], tmp_path: Path) -> None:
    images = tmp_path / "images"
    one = made.mepis(tmp_path / "one", four["baseline"], {"color": QUOTIENTS, "resolution": QUOTIENTS}, 10, images)
    build(list(four.values()), [one], tmp_path / "out", gallery_rows=4)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<article>") == 4
    assert page.count("data:image/webp") == 4 * 3
    assert page.count("crop: not searched") == 4
    assert "color: 10%, 40×30" in page
    for file in (*images.iterdir(), *one.glob("*/*/*.png")):
        file.unlink()
    told = build(list(four.values()), [one], tmp_path / "out", gallery_rows=4)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "data:image/webp" not in page
    assert page.count("no picture") == 4 * 5
    assert table(told, "quotients")[0]["mean"] == pytest.approx(.3)


def test_damaged_mepi_sets(four: dict[str, Path], tmp_path: Path) -> None:
    one = made.mepis(tmp_path / "one", four["baseline"], {"color": QUOTIENTS}, 10)
    whole = (one / "manifest.parquet").read_bytes()
    for name, content, message in (("manifest.parquet", whole[:99], "is damaged"), ("summary.json", b"[]", "holds no JSON object"),
                                   ("summary.json", b'{"color": {"images": "x"}}', "is damaged"), ("summary.json", b"{}", "no finished"),
                                   ("options.json", b"\xff", "cannot be read")):
        before = (one / name).read_bytes()
        (one / name).write_bytes(content)
        with pytest.raises((InputError, RunError), match=message):
            build([four["baseline"]], [one], tmp_path / "out")
        (one / name).write_bytes(before)


HOSTILE = ("<img src=x onerror=alert(1)>", "\x1b[31mred", "$\\frac$", "=HYPERLINK(1)")


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    folder = tmp_path / "<script>alert(1)<" / "script>\x1b]0;x\x07$\\frac$"
    base = made.run(folder, [.5, .6], {"val": right(2, 2), "test": right(3, 1), "set-crop-0.5": right(1, 1)}, classes=HOSTILE,
                    data='/data/"><b>', extra={"environment": {"<u>": "</table>", "gpu": "<i>\x1b"}, "network": {"gmacs": "<s>"},
                                               "tracked": {"<em>": .5}})
    other = made.run(tmp_path / "=1+1|`\\input{x}", [.5], {"val": right(2, 2), "test": right(1, 3)}, classes=HOSTILE, data='/data/"><b>',
                     method="random")
    one = made.mepis(tmp_path / "onerror=x <b>", base, {"color": QUOTIENTS}, 10, tmp_path / "images")
    said: list[str] = []
    result = CliRunner().invoke(cli, ["report", str(base), str(other), "--mepi", str(one), "--out", str(tmp_path / "out"),
                                      "--title", "<script>1</script>", "--json"])
    assert result.exception is None, result.exception
    assert not said
    page = (tmp_path / "out" / "report.html").read_text()
    body = page[page.index("<body>"):page.rindex("<script>")]
    for piece in ("<script", "<img src=x", "<b>", "<u>", "</table>\n</td>", "<i>", "<em>", "<s>"):
        assert piece not in body, piece
    assert body.count("<table") == body.count("</table>")
    assert "&lt;img src=x onerror=alert(1)&gt;" in body
    everything = [f.read_bytes() for f in (tmp_path / "out").rglob("*") if f.suffix in (".html", ".csv", ".md", ".tex", ".svg")]
    assert all(b"\x1b" not in text and b"\x07" not in text for text in everything)
    cells = [cell for f in (tmp_path / "out" / "tables").glob("*.csv") for line in csv.reader(f.open()) for cell in line]
    assert "'=HYPERLINK(1)" in cells
    assert not [cell for cell in cells if cell[:1] in ("=", "@")]
    assert "\x1b" not in result.stderr


def test_a_table_in_its_four_forms() -> None:
    made_table = Table("x", "A & B", ("name", "value_%", "p"), (
        (words("a|b_<c>"), number(1.25, ".1f", .5), probability(1e-9)),
        (words("=1"), NOTHING, probability(.04)), (words("-x"), number(None), probability(None))))
    assert made_table.csv() == "name,value_%,value_% sd,p\r\na|b_<c>,1.25,0.5,1e-09\r\n'=1,,,0.04\r\n'-x,,,\r\n"
    assert made_table.markdown() == (
        "### A & B\n\n| name | value\\_% | p |\n|---|---:|---:|\n"
        "| a\\|b\\_\\<c\\> | 1.2 ± 0.5 | 1.0e-09 |\n| =1 | – | 0.04 |\n| -x | – | – |\n")
    assert made_table.latex() == (
        "% A & B; needs booktabs\n\\begin{tabular}{lrr}\n\\toprule\nname & value\\_\\% & p \\\\\n\\midrule\n"
        "a|b\\_\\textless{}c\\textgreater{} & 1.2 $\\pm$ 0.5 & 1.0e-09 \\\\\n=1 & -- & 0.04 \\\\\n-x & -- & -- \\\\\n"
        "\\bottomrule\n\\end{tabular}\n")
    with pytest.raises(ValueError, match="has not 1 cells"):
        Table("x", "t", ("one",), ((Cell("a"), Cell("b")),))


def test_cost(four: dict[str, Path], tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (four["linear"] / "metrics.jsonl").read_text().splitlines()]
    for line in lines[1:]:
        line |= {"energy_joules": 1.8e6, "peak_memory_mb": 100 * line["epoch"], "memory_of": "gpu"}
    (four["linear"] / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    from qrdali.report.resources import Prices

    told = build(list(four.values()), [], tmp_path / "out", prices=Prices(.5, 360))
    rows = {row["run"]: row for row in table(told, "energy")}
    assert (rows["linear"]["kWh"], rows["linear"]["energy"], rows["linear"]["USD at 0.5/kWh"]) == (1, "measured", .5)
    # 4 seconds at 360 W.
    assert rows["baseline"]["kWh"] == pytest.approx(4 * 360 / 3.6e6)
    assert rows["baseline"]["energy"] == "stated, 360 W"
    assert rows["baseline"]["USD on a cloud Tesla K80"] == pytest.approx(4 / 3600 * .45)
    assert table(told, "networks")[0]["peak memory, MB"] == 200
    kinds = {row["epoch"]: row for row in table(told, "epoch-seconds")}
    assert kinds["crop"]["÷ full"] == 1
    # The slides' own tables: 350 W are 8.4 kWh and 1,428 CLP a day; a K80 costs 10.80 USD a day in the cloud.
    assert next(row for row in table(told, "cards") if row["card"] == "RTX 3090")["kWh a day"] == pytest.approx(8.4)
    assert [row["slides: CLP a day at 0.17/kWh"] for row in table(told, "cards")] == pytest.approx([1428, 1020, 1224])
    assert [row["USD a day"] for row in table(told, "cloud")] == pytest.approx([35.04, 10.8])
