"""`qrdali report`: figures from literals, several data sets and seeds, damage, hostile names."""

import base64
import csv
import io
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_runs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from qrdali.cli.main import cli
from qrdali.errors import InputError, RunError
from qrdali.evaluation.stats import bootstrap_mean, wilson
from qrdali.interfaces import SilentListener
from qrdali.mepi.manifest import NEXT_SCHEMA, WRITTEN_SCHEMA
from qrdali.models import Preprocessing
from qrdali.report import groups
from qrdali.report.build import ReportOptions, build
from qrdali.report.resources import Prices
from qrdali.report.tables import NOTHING, Cell, Table, number, probability, words


class Warnings(SilentListener):
    """Keeps the warnings of a report."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def warn(self, text: str) -> None:
        self.texts.append(text)


def right(*counts: int) -> "np.ndarray[Any, Any]":
    """`counts` of right and wrong answers, in turn."""
    return np.concatenate([np.full(count, i % 2 == 0) for i, count in enumerate(counts)])


@pytest.fixture
def four(tmp_path: Path) -> dict[str, Path]:
    """Shared, baseline, linear and adaptive of one network: test has 40 images, a reduced set 20."""
    base = tmp_path / "runs"
    return {
        "shared": fake_runs.run(
            base / "shared",
            [0.1, 0.4, 0.5],
            {"val": right(10, 10), "test": right(20, 20), "small": right(5, 15)},
            method="shared",
        ),
        "baseline": fake_runs.run(
            base / "baseline",
            [0.5, 0.6, 0.55],
            {"val": right(12, 8), "test": right(24, 16), "small": right(6, 14)},
        ),
        # 30 right: 21 of the baseline's 24, and 9 of its errors; b = 3, c = 9.
        "linear": fake_runs.run(
            base / "linear",
            [0.5, 0.45, 0.65],
            {"val": right(13, 7), "test": right(21, 3, 9, 7), "small": right(12, 8)},
            letters="RC",
            method="linear",
            reduction="crop",
            sequence="paired-epochs",
        ),
        "adaptive": fake_runs.run(
            base / "adaptive",
            [0.5, 0.45, 0.5, 0.6],
            {"val": right(12, 8), "test": right(24, 16), "small": right(10, 10)},
            letters="RRC",
            method="adaptive",
            reduction="crop",
            sequence="paired-rounds",
        ),
    }


def table(report: dict[str, Any], slug: str) -> list[dict[str, Any]]:
    table = report["tables"][slug]
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


def test_accuracy_and_significance_are_those_of_the_rows(four: dict[str, Path], tmp_path: Path) -> None:
    report = build(list(four.values()), [], tmp_path / "out")
    rows = {row["method"]: row for row in table(report, "accuracy-1")}
    assert [rows[m]["val"] for m in rows] == [50, 60, 65, 60]
    assert [rows[m]["test"] for m in rows] == [50, 60, 75, 60]
    assert [rows[m]["small"] for m in rows] == [25, 30, 60, 50]
    assert (rows["linear"]["best epoch"], rows["linear"]["epochs"], rows["baseline"]["best epoch"]) == (
        2,
        2,
        1,
    )
    assert rows["linear"]["test against baseline"] == pytest.approx(15)
    assert rows["baseline"]["test against baseline"] is None
    pairs = {(row["set"], row["run"]): row for row in table(report, "comparisons-1")}
    linear = pairs["test", "linear"]
    assert linear["baseline"] == "baseline"
    assert (linear["only baseline right"], linear["only run right"], linear["χ²"]) == (3, 9, 3)
    assert linear["p"] == pytest.approx(0.083265, abs=1e-5)  # chi-square of 3 with one degree of freedom
    assert linear["p (exact)"] == pytest.approx(2 * (1 + 12 + 66 + 220) / 4096)
    # Of three comparisons on test this is the second smallest p after
    # shared's (b = 4, c = 0: χ² = 4), so twice.
    assert pairs["test", "shared"]["p"] == pytest.approx(0.0455, abs=1e-4)
    assert pairs["test", "shared"]["p (Holm)"] == pytest.approx(3 * 0.0455003, abs=1e-5)
    assert linear["p (Holm)"] == pytest.approx(2 * 0.083265, abs=1e-5)
    low, high = (100 * bound for bound in wilson(30, 40))
    with open(tmp_path / "out/tables/comparisons-1.csv", newline="") as file:
        (row,) = (row for row in csv.DictReader(file) if (row["set"], row["run"]) == ("test", "linear"))
    assert (float(row["95% low"]), float(row["95% high"])) == (low, high)
    # Zero discordant pairs: statistic 0, p = 1.
    same = pairs["test", "adaptive"]
    assert (
        same["only baseline right"],
        same["only run right"],
        same["χ²"],
        same["p"],
        same["p (exact)"],
    ) == (0, 0, 0, 1, 1)
    assert [row["method"] for row in table(report, "top-test-1")] == ["linear", "baseline", "adaptive"]
    assert "descriptive" in report["tables"]["top-test-1"]["notes"][0]


def test_the_files(four: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = build(list(four.values()), [], out)
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(report))
    slugs = set(report["tables"])
    assert {f.name for f in (out / "tables").iterdir()} == {
        f"{slug}.{kind}" for slug in slugs for kind in ("csv", "md", "tex")
    }
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
        folders.append(
            fake_runs.run(
                tmp_path / f"b{seed}",
                [0.5],
                {"val": right(20, 20), "test": right(base, 40 - base)},
                seed=seed,
            )
        )
        folders.append(
            fake_runs.run(
                tmp_path / f"f{seed}",
                [0.5],
                {"val": right(20, 20), "test": right(count, 40 - count)},
                seed=seed,
                method="fixed",
                reduction="color",
                quality=0.5,
            )
        )
    folders.append(
        fake_runs.run(
            tmp_path / "other",
            [0.5],
            {"val": right(20, 20), "test": right(20, 20)},
            method="fixed",
            reduction="color",
            quality=0.5,
            lr=0.5,
        )
    )
    report = build(folders, [], tmp_path / "out")
    rows = table(report, "accuracy-1")
    assert [(row["method"], row["seeds"]) for row in rows] == [
        ("baseline", 3),
        ("fixed 0.5 (lr=0.0)", 3),
        ("fixed 0.5 (lr=0.5)", 1),
    ]
    assert [row["test"] for row in rows] == pytest.approx([145 / 3, 60, 50])
    assert rows[1]["test against baseline"] == pytest.approx(
        (0 + 15 + 20) / 3
    )  # each against the baseline of its seed
    text = (tmp_path / "out" / "tables" / "accuracy-1.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert float(rows[1]["test sd"]) == pytest.approx(10)  # of 50, 60 and 70
    assert "60.0 ± 10.0" in (tmp_path / "out" / "tables" / "accuracy-1.md").read_text()
    # 6 and 8 more right and none lost: χ² = 6 and 8.
    assert "p &lt; .05 in 2 of 3" in (tmp_path / "out" / "report.html").read_text()
    # Of the run in another configuration the baseline is that of its seed.
    assert [
        row["p"] for row in table(report, "comparisons-1") if row["run"] == "other" and row["set"] == "test"
    ] == [1]


def test_data_sets_and_networks_stand_apart(four: dict[str, Path], tmp_path: Path) -> None:
    other = fake_runs.run(tmp_path / "other", [0.5], {"val": right(5, 5)}, data="/data/else", prefix="/else/")
    report = build([four["baseline"], four["linear"], other], [], tmp_path / "out")
    assert [row["method"] for row in table(report, "accuracy-1")] == ["baseline", "linear"]
    assert [row["method"] for row in table(report, "accuracy-2")] == ["baseline"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Accuracy: test_resnet at 32 px on shapes" in page
    assert "Accuracy: test_resnet at 32 px on else" in page


def test_missing_rows_are_named_with_the_command(four: dict[str, Path], tmp_path: Path) -> None:
    (four["linear"] / "predictions" / "test.parquet").unlink()
    (four["linear"] / "predictions" / "small.parquet").unlink()
    report = build(list(four.values()), [], tmp_path / "out")
    notes = report["tables"]["accuracy-1"]["notes"]
    assert any(
        f"qrdali evaluate --run {four['linear']} --data /data/shapes --split test" in note for note in notes
    )
    assert any(f"qrdali evaluate --run {four['linear']} --set small=FOLDER" in note for note in notes)
    assert next(row for row in table(report, "accuracy-1") if row["method"] == "linear")["test"] is None


def test_rows_of_other_images_are_not_compared(four: dict[str, Path], tmp_path: Path) -> None:
    fake_runs.rows(four["linear"], "test", right(30, 10), prefix="/moved/")
    report = build(list(four.values()), [], tmp_path / "out")
    assert {row["run"]: row["p"] for row in table(report, "comparisons-1") if row["set"] == "test"}[
        "linear"
    ] is None
    assert any("not of the same images" in note for note in report["tables"]["accuracy-1"]["notes"])


@pytest.mark.parametrize(
    "cut",
    [
        b'{"epoch": 2, "ph',
        b'{"epoch": 2, "phase": "full", "val_accuracy": NaN}\n',
        b"\xff\xfe\n",
        b'{"epoch": -1, "phase": "full", "val_accuracy": 1}\n',
        b"[" * 100_000 + b"\n",
    ],
)
def test_a_truncated_metrics_file_is_used_as_far_as_it_goes(
    four: dict[str, Path], tmp_path: Path, cut: bytes
) -> None:
    file = four["baseline"] / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + lines[1] + cut)
    warnings = Warnings()
    report = build(list(four.values()), [], tmp_path / "out", listener=warnings)
    assert len(warnings.texts) == 1
    assert "line 3 is cut or damaged: the 2 lines before it are used" in warnings.texts[0]
    assert table(report, "accuracy-1")[1]["epochs"] == 1


def test_what_cannot_be_reported(four: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="is not a run folder"):
        build([tmp_path], [], out)
    with pytest.raises(InputError, match="is given twice"):
        build([four["linear"], four["linear"].parent / "." / "linear"], [], out)
    with pytest.raises(InputError, match="is not a MEPI set"):
        build([four["linear"]], [tmp_path], out)
    (four["linear"] / "predictions" / "test.parquet").write_bytes(b"PAR1no")
    warnings = Warnings()
    build([four["linear"]], [], out, listener=warnings)
    assert "test.parquet cannot be read" in warnings.texts[0]
    shutil.rmtree(out)
    (four["baseline"] / "metrics.jsonl").write_text("")
    with pytest.raises(RunError, match="no whole line"):
        build([four["baseline"]], [], out)
    assert not out.exists()
    out.mkdir()
    (out / "thesis.doc").write_text("mine")
    with pytest.raises(InputError, match="exists and is not a report"):
        build([four["shared"]], [], out)
    (out / "report.json").write_text('{"qrdali": 1}')
    with pytest.raises(InputError, match="exists and is not a report"):
        build([four["shared"]], [], out)
    assert {f.name for f in out.iterdir()} == {"thesis.doc", "report.json"}


def test_a_run_that_is_not_ready_is_left_out(four: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    shutil.copy(four["linear"] / "config.toml", tmp_path / "new")
    (four["adaptive"] / "config.toml").write_text('method = "adaptive"\ndata = "x"\nseed = -3\n')
    warnings = Warnings()
    report = build([tmp_path / "new", *four.values()], [], tmp_path / "out", listener=warnings)
    assert [row["method"] for row in table(report, "accuracy-1")] == ["shared", "baseline", "linear"]
    assert "has no best/ yet" in warnings.texts[0]
    assert "adaptive/config.toml: seed = " in warnings.texts[1]


def test_settings_and_places_are_told_once(tmp_path: Path) -> None:
    here, there = {"torch": "2", "cpu": "this"}, {"torch": "3", "cpu": "that"}
    folders = [
        fake_runs.run(tmp_path / f"r{i}", [0.5], {}, seed=i, extra={"environment": there if i == 4 else here})
        for i in range(5)
    ]
    report = build(folders, [], tmp_path / "out")
    assert [(row["runs"], row["how many"], row["cpu"]) for row in table(report, "versions")] == [
        ("r0, r1, r2 and 1 more", 4, "this"),
        ("r4", 1, "that"),
    ]
    assert list(table(report, "configurations")[1]) == ["run", "seed"]
    common = {row["setting"]: row["value"] for row in table(report, "settings")}
    assert (common["method"], common["patience"], "seed" in common) == ("baseline", "3", False)


def test_a_run_with_its_start_only(tmp_path: Path) -> None:
    report = build([fake_runs.run(tmp_path / "only", [0.25], {})], [], tmp_path / "out")
    (row,) = table(report, "accuracy-1")
    assert (row["val"], row["epochs"]) == (25, 0)


def test_rows_and_curves_of_other_weights_are_left_out(four: dict[str, Path], tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    file = four["linear"] / "predictions" / "test.parquet"
    for epoch, shown in ((2, 75), (1, None)):
        pq.write_table(
            pq.read_table(file).replace_schema_metadata({"qrdali": json.dumps({"epoch": epoch})}), file
        )
        (four["linear"] / "curves").mkdir(exist_ok=True)
        (four["linear"] / "curves" / "test.json").write_text(
            json.dumps(
                {
                    "epoch": epoch,
                    "curves": {"color": {"quality": [1, 0.5], "accuracy": ["1", ".5"], "area": 1}},
                }
            )
        )
        warnings = Warnings()
        report = build(list(four.values()), [], tmp_path / "out", listener=warnings)
        assert next(row for row in table(report, "accuracy-1") if row["method"] == "linear")["test"] == shown
        assert (tmp_path / "out" / "figures" / "curve-1-3-1.svg").exists() == (shown is not None)
        assert [text.rpartition(" is of ")[2] for text in warnings.texts] == (
            [] if shown else ["epoch 1 and best/ of epoch 2: left out"] * 2
        )
    result = CliRunner().invoke(cli, ["compare", str(four["baseline"]), str(four["linear"])])
    assert isinstance(result.exception, InputError)
    assert "are of epoch 1, best/ is of epoch 2: make them with `qrdali evaluate --run" in str(
        result.exception
    )


def test_validation_by_phase_is_no_full_quality_accuracy(tmp_path: Path) -> None:
    for best, shown in (("C", 60), ("R", None)):
        accuracies = [0.3, 0.4, 0.6] if best == "C" else [0.3, 0.6, 0.4]
        folder = fake_runs.run(
            tmp_path / best, accuracies, {}, letters="RC", method="fixed", reduction="crop", monitor="phase"
        )
        report = build([folder], [], tmp_path / "out")
        assert table(report, "accuracy-1")[0]["val"] == shown
        assert any("--monitor phase" in note for note in report["tables"]["accuracy-1"]["notes"])


def test_mapped_rows_are_a_set_of_their_own(four: dict[str, Path], tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    folder = four["linear"] / "predictions"
    for name in ("val", "test"):
        mapped = {"qrdali": json.dumps({"epoch": 2, "classes": ["x", "y"], "map_rule": "sum"})}
        pq.write_table(
            pq.read_table(folder / f"{name}.parquet").replace_schema_metadata(mapped),
            folder / f"{name}-mapped-sum.parquet",
        )
    (folder / "test.parquet").unlink()
    report = build(list(four.values()), [], tmp_path / "out")
    rows = {row["method"]: row for row in table(report, "accuracy-1")}
    notes = report["tables"]["accuracy-1"]["notes"]
    assert any("--split test --class-map TSV --map-rule sum" in note for note in notes)
    assert rows["linear"]["test-mapped-sum"] == 75
    assert rows["linear"].get("test") is None


def test_the_baseline_that_agrees_most_and_a_run_without(tmp_path: Path) -> None:
    sets = {"val": right(20, 20), "test": right(20, 20)}
    folders = [
        fake_runs.run(tmp_path / "slow", [0.5], sets, lr=0.1),
        fake_runs.run(tmp_path / "fast", [0.5], {**sets, "test": right(30, 10)}, lr=0.5),
        fake_runs.run(
            tmp_path / "fixed",
            [0.5],
            {**sets, "test": right(30, 10)},
            lr=0.5,
            method="fixed",
            reduction="crop",
        ),
        fake_runs.run(tmp_path / "alone", [0.5], sets, lr=0.5, method="fixed", reduction="color", seed=7),
    ]
    report = build(folders, [], tmp_path / "out")
    row = next(row for row in table(report, "comparisons-1") if (row["run"], row["set"]) == ("fixed", "test"))
    assert (row["baseline"], row["difference"]) == ("fast", 0)
    assert any(
        "No baseline of the same seed is here for alone" in note
        for note in report["tables"]["accuracy-1"]["notes"]
    )


def test_the_joint_figure_takes_sets_that_all_have(four: dict[str, Path], tmp_path: Path) -> None:
    from qrdali.report.groups import group
    from qrdali.report.plots import joint, reduced_sets
    from qrdali.report.read import read_run

    fake_runs.rows(four["linear"], "mine", right(1, 0))
    fake_runs.rows(four["linear"], "val-crop-0.5", right(1, 0))
    (one_group,) = group([read_run(folder, name, lambda text: None) for name, folder in four.items()])
    assert reduced_sets(one_group) == ("small",)
    figure = joint(one_group, "x")
    assert figure is not None
    assert "4 configurations" in figure.alt
    fake_runs.rows(four["linear"], "small", right(12, 8), prefix="/elsewhere/")
    (one_group,) = group([read_run(folder, name, lambda text: None) for name, folder in four.items()])
    assert joint(one_group, "x") is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("test-set", "--set test-set=FOLDER"),
        ("test-crop-0.5", "--data D --split test --reduced 0.5"),
        ("val-color-0.05", "--data D --split val --reduced 0.05 --step 0.05"),
        ("test-crop-0.3", "--data D --split test --reduced 0.3 --step 0.1"),
    ],
)
def test_the_command_that_makes_a_set(name: str, expected: str) -> None:
    from qrdali.evaluation.prediction_rows import evaluate_command_for

    assert evaluate_command_for(name, "D") == expected


QUOTIENTS = {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4, 4: 0.5}


def test_quotients_of_two_runs_on_the_images_both_have(four: dict[str, Path], tmp_path: Path) -> None:
    one = fake_runs.mepis(tmp_path / "m" / "one", four["baseline"], {"color": QUOTIENTS, "crop": {}}, 10)
    other = fake_runs.mepis(
        tmp_path / "m" / "other", four["linear"], {"color": {1: 0.1, 2: 0.1, 3: 0.1, 4: 0.1, 5: 0.9}}, 10
    )
    report = build(list(four.values()), [other, one], tmp_path / "out")
    means = {row["set"]: row for row in table(report, "quotients-1") if row["reduction"] == "color"}
    assert (means["one"]["images"], means["one"]["with MEPI"]) == (10, 5)
    assert means["one"]["mean"] == pytest.approx(0.3)
    # Classes are sample modulo 4: (.1 and .5), .2, .3, .4.
    assert means["one"]["mean over classes"] == pytest.approx(0.3)
    assert means["other"]["mean over classes"] == pytest.approx((0.1 + 0.5 + 0.1 + 0.1) / 4)
    with open(tmp_path / "out/tables/quotients-1.csv", newline="") as file:
        row = next(row for row in csv.DictReader(file) if (row["reduction"], row["set"]) == ("color", "one"))
    for over, quotients in (("", [*QUOTIENTS.values()]), (" over classes", [0.3, 0.2, 0.3, 0.4])):
        assert [float(row[f"95% {end}{over}"]) for end in ("low", "high")] == pytest.approx(
            bootstrap_mean(np.array(quotients)), abs=1e-6
        )
    (pair,) = table(report, "quotient-pairs-1")
    assert (pair["first"], pair["second"], pair["images"]) == ("one", "other", 4)
    assert pair["mean of first"] == pytest.approx(0.35)
    assert pair["difference"] == pytest.approx(-0.25)
    assert pair["Wilcoxon p"] == pytest.approx(0.125)  # all four signs alike: 2 / 2^4
    shares = {row["set"]: row for row in table(report, "quotient-shares-1") if row["reduction"] == "color"}
    assert [shares["one"][f"≤ {x}"] for x in ("0.05", "0.1", "0.2", "0.5", "1")] == [0, 10, 20, 50, 50]
    by_class = {(row["class"], row["set"]): row["color"] for row in table(report, "quotients-by-class-1")}
    assert by_class["ant", "one"] == pytest.approx(0.3)
    assert by_class["bee", "other"] == pytest.approx(0.5)


def test_sets_with_other_options_are_not_compared(four: dict[str, Path], tmp_path: Path) -> None:
    one = fake_runs.mepis(tmp_path / "one", four["baseline"], {"color": QUOTIENTS}, 10)
    other = fake_runs.mepis(tmp_path / "other", four["linear"], {"color": QUOTIENTS}, 10, step=0.25)
    third = fake_runs.mepis(tmp_path / "third", four["linear"], {"color": QUOTIENTS}, 10)
    report = build(list(four.values()), [one, other, third], tmp_path / "out")
    assert [row["set"] for row in table(report, "quotients-1")] == ["one", "third"]
    assert [row["set"] for row in table(report, "quotients-2")] == ["other"]
    assert [(row["first"], row["second"]) for row in table(report, "quotient-pairs-1")] == [("one", "third")]
    assert "quotient-pairs-2" not in report["tables"]
    assert "Entropy quotients: step 0.25" in (tmp_path / "out" / "report.html").read_text()
    fourth = fake_runs.mepis(tmp_path / "fourth", four["linear"], {"color": QUOTIENTS}, 10, limit=None)
    fifth = fake_runs.mepis(tmp_path / "fifth", four["linear"], {"color": QUOTIENTS}, 10, limit=7)
    build(list(four.values()), [fourth, fifth], tmp_path / "limits")
    shown = (tmp_path / "limits" / "report.html").read_text()
    assert "Entropy quotients: all images<" in shown
    assert "Entropy quotients: limit 7<" in shown
    tails = [
        fake_runs.mepis(tmp_path / name, four["linear"], {"color": QUOTIENTS}, 10, **options)
        for name, options in (("old", {}), ("grid", {"tail": "none"}), ("below", {"tail": "full"}))
    ]
    report = build(list(four.values()), tails, tmp_path / "tails")
    assert [row["set"] for row in table(report, "quotients-1")] == ["old", "grid"]
    assert [row["set"] for row in table(report, "quotients-2")] == ["below"]
    assert "Entropy quotients: tail full<" in (tmp_path / "tails" / "report.html").read_text()


def test_the_gallery_and_a_report_without_the_images(four: dict[str, Path], tmp_path: Path) -> None:
    images = tmp_path / "images"
    one = fake_runs.mepis(
        tmp_path / "one", four["baseline"], {"color": QUOTIENTS, "resolution": QUOTIENTS}, 10, images
    )
    build(list(four.values()), [one], tmp_path / "out", ReportOptions(gallery_rows=4))
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<article>") == 4
    assert page.count("data:image/webp") == 4 * 3
    gallery = page[page.index('<section id="gallery"') :]
    assert gallery.count("<figure>") == 4 * 3  # no place for reductions that were not searched
    shown = json.loads((tmp_path / "out" / "report.json").read_text())["galleries"]["gallery-1"]
    assert len(shown["rows"]) == 4 * 3
    assert [row[2] for row in shown["rows"][:2]] == ["original", "color: 10%, 40×30"]
    assert "color: 10%, 40×30" in page
    for file in (*images.iterdir(), *one.glob("*/*/*.png")):
        file.unlink()
    report = build(list(four.values()), [one], tmp_path / "out", ReportOptions(gallery_rows=4))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "data:image/webp" not in page
    assert page.count("no picture") == 4 * 3
    assert table(report, "quotients-1")[0]["mean"] == pytest.approx(0.3)


def with_next_step(folder: Path, answers: dict[int, tuple[str, float] | None]) -> None:
    """Gives a set's manifest the columns on one step further: by sample, the answer and its confidence."""
    file = folder / "manifest.parquet"
    lines = pq.read_table(file).to_pylist()
    for line in lines:
        answer = answers.get(line["sample"])
        line |= dict.fromkeys(NEXT_SCHEMA.names) if answer is None else dict.fromkeys(NEXT_SCHEMA.names, 1)
        line["next_class"], line["next_confidence"] = answer or (None, None)
    pq.write_table(pa.Table.from_pylist(lines, WRITTEN_SCHEMA), file)


def test_the_gallery_shows_the_most_reduced_first_and_one_step_further(
    four: dict[str, Path], tmp_path: Path
) -> None:
    # Samples 0 and 4 are of one class, 1 and 5 of another; 5 is at the lowest state.
    quotients = {0: 0.5, 4: 0.2, 1: 0.3, 5: 0.01, 2: 0.25}
    one = fake_runs.mepis(tmp_path / "one", four["baseline"], {"color": quotients}, 10, tmp_path / "images")
    answers = {sample: (f"<b>answer {sample}", 0.375) for sample in quotients if sample != 5}
    with_next_step(one, {**answers, 5: None})

    def shown(rows: int) -> list[str]:
        build(list(four.values()), [one], tmp_path / "out", ReportOptions(gallery_rows=rows))
        page = (tmp_path / "out" / "report.html").read_text()
        return re.findall(r'class="count">(\d)\.png', page[page.index('class="gallery"') :])

    assert shown(3) == ["4", "2", "1"]  # of each class one, though 5 is the most reduced
    assert shown(5) == ["4", "2", "1", "0", "5"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("one step further: &lt;b&gt;answer 4, 38%") == 1
    assert page.count('class="further"') == 4


def test_tiny_pictures_are_embedded_pixel_by_pixel_and_large_ones_bounded(
    four: dict[str, Path], tmp_path: Path
) -> None:
    one = fake_runs.mepis(tmp_path / "one", four["baseline"], {"color": {0: 0.5}}, 10, tmp_path / "images")
    (file,) = one.glob("color/*/0.png")
    random = np.random.default_rng(0)

    def embedded(height: int, width: int) -> bool | list[int]:
        """Whether the page holds a picture's own pixels, or else the height and width that it holds."""
        pixels = random.integers(0, 256, (height, width, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(file)
        build(list(four.values()), [one], tmp_path / "out")
        uris = re.findall('data:image/webp;base64,([^"]*)', (tmp_path / "out" / "report.html").read_text())
        assert len(uris[1]) < 200_000
        shown = np.array(Image.open(io.BytesIO(base64.b64decode(uris[1]))).convert("RGB"))
        return np.array_equal(shown, pixels) or list(shown.shape[:2])

    assert embedded(1, 1) is True
    assert embedded(5, 7) is True
    assert embedded(900, 1200) == [210, 280]


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan")])
def test_a_confidence_one_step_further_that_cannot_be(
    four: dict[str, Path], tmp_path: Path, value: float
) -> None:
    one = fake_runs.mepis(tmp_path / "one", four["baseline"], {"color": QUOTIENTS}, 10)
    with_next_step(one, {0: ("ant", value)})
    with pytest.raises(RunError, match="next_confidence outside 0 to 1"):
        build(list(four.values()), [one], tmp_path / "out")


def test_damaged_mepi_sets(four: dict[str, Path], tmp_path: Path) -> None:
    one = fake_runs.mepis(tmp_path / "one", four["baseline"], {"color": QUOTIENTS}, 10)
    manifest = (one / "manifest.parquet").read_bytes()
    for name, content, message in (
        ("manifest.parquet", manifest[:99], "is damaged"),
        ("summary.json", b"[]", "holds no JSON object"),
        ("summary.json", b'{"color": {"images": "x"}}', "is damaged"),
        ("summary.json", b"{}", "no finished"),
        ("options.json", b"\xff", "cannot be read"),
    ):
        before = (one / name).read_bytes()
        (one / name).write_bytes(content)
        with pytest.raises((InputError, RunError), match=message):
            build([four["baseline"]], [one], tmp_path / "out")
        (one / name).write_bytes(before)


def test_a_set_without_any_mepi_counts(four: dict[str, Path], tmp_path: Path) -> None:
    one = fake_runs.mepis(tmp_path / "one", four["baseline"], {"color": QUOTIENTS}, 10)
    none = fake_runs.mepis(tmp_path / "none", four["linear"], {"color": {}}, 10)
    report = build(list(four.values()), [one, none], tmp_path / "out")
    row = next(row for row in table(report, "quotients-1") if row["set"] == "none")
    assert (row["images"], row["with MEPI"], row["mean"]) == (10, 0, None)
    assert next(row for row in table(report, "quotient-shares-1") if row["set"] == "none")["≤ 1"] == 0
    assert "quotient-pairs-1" not in report["tables"]


def test_of_equal_weights_the_folder_decides(four: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(
        four["shared"] / "best" / "model.safetensors", four["baseline"] / "best" / "model.safetensors"
    )
    (four["baseline"] / "best" / "SHA256SUMS").unlink()  # it has the sum of the weights that were there
    one = fake_runs.mepis(tmp_path / "one", four["baseline"], {"color": QUOTIENTS}, 10)
    report = build(list(four.values()), [one], tmp_path / "out")
    assert [row["run"] for row in table(report, "mepi-options")] == ["baseline"]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("label", None),
        ("sample", 1),
        ("quotient", 0.9),
        ("quotient", float("nan")),
        ("height", 0),
        ("entropy_full", 0),
        ("label", -1),
    ],
)
def test_manifests_that_contradict_themselves(
    four: dict[str, Path], tmp_path: Path, column: str, value: Any
) -> None:
    one = fake_runs.mepis(tmp_path / "one", four["baseline"], {"color": QUOTIENTS}, 10)
    rows = pq.read_table(one / "manifest.parquet").to_pylist()
    rows[0][column] = value
    pq.write_table(
        pa.Table.from_pylist(rows, pq.read_schema(one / "manifest.parquet")), one / "manifest.parquet"
    )
    with pytest.raises(RunError, match="is damaged"):
        build(list(four.values()), [one], tmp_path / "out")


def test_shares_in_the_gallery_have_no_exponent(four: dict[str, Path], tmp_path: Path) -> None:
    one = fake_runs.mepis(
        tmp_path / "one",
        four["baseline"],
        {"color": {0: 1.0, 1: 1.07, 2: 0.996, 3: 0.0012}},
        4,
        tmp_path / "images",
    )
    build(list(four.values()), [one], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert re.findall("color: [^,]*%", page) == [
        # in the alternative text and under the picture
        text
        for share in ("0.12", "100", "100", "107")  # most reduced first
        for text in [f"color: {share}%"] * 2
    ]


HOSTILE = ("<img src=x onerror=alert(1)>", "\x1b[31mred", "$\\frac$", "=HYPERLINK(1)")


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    folder = tmp_path / "<script>alert(1)<" / "script>\x1b]0;x\x07$\\frac$"
    base = fake_runs.run(
        folder,
        [0.5, 0.6],
        {"val": right(2, 2), "test": right(3, 1), "set-crop-0.5": right(1, 1)},
        classes=HOSTILE,
        data='/data/"><b>',
        extra={"environment": {"<u>": "</table>", "gpu": "<i>\x1b"}, "tracked": {"<em>": 0.5}},
    )
    (base / "curves").mkdir()
    (base / "curves" / "<i>.json").write_text(
        json.dumps({"curves": {"color": {"quality": [1], "accuracy": [1], "area": 1}}})
    )
    other = fake_runs.run(
        tmp_path / "=1+1|`\\input{x}",
        [0.5],
        {"val": right(2, 2), "test": right(1, 3)},
        classes=HOSTILE,
        data='/data/"><b>',
        method="random",
    )
    one = fake_runs.mepis(tmp_path / "onerror=x <b>", base, {"color": QUOTIENTS}, 10, tmp_path / "images")
    result = CliRunner().invoke(
        cli,
        [
            "report",
            str(base),
            str(other),
            "--mepi",
            str(one),
            "--out",
            str(tmp_path / "out"),
            "--title",
            "<script>1</script>",
            "--json",
        ],
    )
    assert result.exception is None, result.exception
    page = (tmp_path / "out" / "report.html").read_text()
    body = page[page.index("<body>") : page.rindex("<script>")]
    for piece in ("<script", "<img src=x", "<b>", "<u>", "</table>\n</td>", "<i>", "<em>"):
        assert piece not in body, piece
    assert body.count("<table") == body.count("</table>")
    assert "&lt;img src=x onerror=alert(1)&gt;" in body
    everything = [
        f.read_bytes()
        for f in (tmp_path / "out").rglob("*")
        if f.suffix in (".html", ".csv", ".md", ".tex", ".svg")
    ]
    assert all(b"\x1b" not in text and b"\x07" not in text for text in everything)
    cells = [
        cell
        for f in (tmp_path / "out" / "tables").glob("*.csv")
        for line in csv.reader(f.open())
        for cell in line
    ]
    assert "'=HYPERLINK(1)" in cells
    assert not [cell for cell in cells if cell[:1] in ("=", "@")]
    assert "\x1b" not in result.stderr


def test_a_table_in_its_four_forms() -> None:
    made_table = Table(
        "x",
        "A & B",
        ("name", "value_%", "p"),
        (
            (words("a|b_<c>"), number(1.25, ".1f", 0.5), probability(1e-9)),
            (words("=1"), NOTHING, probability(0.04)),
            (words("-x"), number(None), probability(None)),
        ),
        ("a\nnote",),
    )
    assert (
        made_table.csv() == "name,value_%,value_% sd,p\r\na|b_<c>,1.25,0.5,1e-09\r\n'=1,,,0.04\r\n'-x,,,\r\n"
    )
    assert made_table.markdown() == (
        "### A & B\n\n| name | value\\_% | p |\n|---|---:|---:|\n"
        "| a\\|b\\_\\<c\\> | 1.2 ± 0.5 | 1.0e-09 |\n| =1 | – | 0.04 |\n| -x | – | – |\n\na\nnote\n"
    )
    assert made_table.latex() == (
        "% A & B; needs booktabs\n% a?note\n\\begin{tabular}{lrr}\n\\toprule\nname & value\\_\\% & p "
        "\\tabularnewline\n\\midrule\n"
        "a|b\\_\\textless{}c\\textgreater{} & 1.2 $\\pm$ 0.5 & 1.0e-09 \\tabularnewline\n=1 & -- & 0.04 "
        "\\tabularnewline\n"
        "-x & -- & -- \\tabularnewline\n"
        "\\bottomrule\n\\end{tabular}\n"
    )
    with pytest.raises(ValueError, match="has not 1 cells"):
        Table("x", "t", ("one",), ((Cell("a"), Cell("b")),))


def test_cost(four: dict[str, Path], tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (four["linear"] / "metrics.jsonl").read_text().splitlines()]
    for line in lines[1:]:
        line |= {
            "energy_joules": 1.8e6,
            "peak_memory_mb": 100 * line["epoch"],
            "memory_of": "gpu",
            "seconds": 5 if line["phase"] == "reduced" else 2,
        }
    lines[1]["probe_energy_joules"] = 0.9e6
    (four["linear"] / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    report = build(list(four.values()), [], tmp_path / "out", ReportOptions(prices=Prices(0.5, 360)))
    rows = {row["run"]: row for row in table(report, "energy")}
    assert (rows["linear"]["kWh"], rows["linear"]["energy"], rows["linear"]["USD at 0.5/kWh"]) == (
        1.25,
        "measured",
        0.625,
    )
    # 4 seconds at 360 W.
    assert rows["baseline"]["kWh"] == pytest.approx(4 * 360 / 3.6e6)
    assert rows["baseline"]["energy"] == "stated, 360 W"
    assert rows["baseline"]["USD on a cloud Tesla K80"] == pytest.approx(4 / 3600 * 0.45)
    assert table(report, "networks")[0]["peak memory, MB"] == 200
    kinds = {row["epoch"]: row for row in table(report, "epoch-seconds")}
    assert kinds["crop"]["÷ full"] == pytest.approx(1.75)  # median of 5 ÷ 2 s and, of adaptive, 2 ÷ 2 s
    # The slides' own tables: 350 W are 8.4 kWh and 1,428 CLP a day; a K80 costs 10.80 USD a day in the cloud.
    assert next(row for row in table(report, "cards") if row["card"] == "RTX 3090")[
        "kWh a day"
    ] == pytest.approx(8.4)
    assert [row["slides: CLP a day at 0.17/kWh"] for row in table(report, "cards")] == pytest.approx(
        [1428, 1020, 1224]
    )
    assert [row["USD a day"] for row in table(report, "cloud")] == pytest.approx([35.04, 10.8])


@pytest.mark.parametrize(
    ("fit", "text"),
    [("whole", "resnet18 at 224 px"), ("center", "resnet18 at 224 px, center (57% of a 500×375 image)")],
)
def test_a_centre_crop_says_how_much_it_shows(fit: str, text: str) -> None:
    pre = Preprocessing(224, fit, 0.875, "bilinear", (0.5,) * 3, (0.5,) * 3)
    run = SimpleNamespace(trained=SimpleNamespace(model="resnet18", preprocessing=pre))
    assert groups._network(run) == text  # type: ignore[arg-type]
