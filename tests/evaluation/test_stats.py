"""McNemar's test and Wilson's interval against published and hand-worked figures."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from qrdali.cli.main import cli
from qrdali.errors import InputError, RunError
from qrdali.evaluation.prediction_rows import read_rows
from qrdali.evaluation.stats import bootstrap_mean, holm, mcnemar, paired, wilson
from qrdali.workflows.compare import compare


def outcomes(a: int, b: int, c: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    first, second = (
        np.array([True] * (a + b) + [False] * (c + d)),
        np.array([True] * a + [False] * b + [True] * c + [False] * d),
    )
    order = np.random.default_rng(0).permutation(len(first))
    return first[order], second[order]


@pytest.mark.parametrize(
    ("table", "statistic", "p", "exact", "stars"),
    [
        # Agresti, Categorical Data Analysis, approval ratings: 794, 150, 86, 570: z² = 17.36.
        ((794, 150, 86, 570), 17.3559, 3.099e-5, 3.716e-5, "***"),
        ((10, 10, 2, 5), 64 / 12, 0.020921, 0.038574, "*"),
        ((0, 1, 0, 0), 1, 0.317311, 1, ""),
        ((5, 0, 0, 5), 0, 1, 1, ""),
        ((3, 7, 7, 3), 0, 1, 1, ""),
        # Both sides of each bound of chi-square with one degree of freedom: 3.8415, 6.6349, 10.8276.
        ((0, 100 + 14, 100, 0), 14**2 / 214, 0.3386, 0.3742, ""),
        ((0, 1039, 950, 0), 89**2 / 1989, 0.04596, None, "*"),
        ((0, 1036, 950, 0), 86**2 / 1986, 0.05363, None, ""),
        ((0, 1065, 950, 0), 115**2 / 2015, 0.01041, None, "*"),
        ((0, 1066, 950, 0), 116**2 / 2016, 0.00979, None, "**"),
        ((0, 1097, 950, 0), 147**2 / 2047, 0.001158, None, "**"),
        ((0, 1100, 950, 0), 150**2 / 2050, 0.000924, None, "***"),
    ],
)
def test_mcnemar(
    table: tuple[int, int, int, int], statistic: float, p: float, exact: float | None, stars: str
) -> None:
    result = mcnemar(*outcomes(*table))
    assert (result.a, result.b, result.c, result.d) == table
    assert result.statistic == pytest.approx(statistic, rel=1e-4)
    assert result.p_value == pytest.approx(p, rel=2e-3)
    if exact is not None:
        assert result.exact_p_value == pytest.approx(exact, rel=2e-3)
    assert result.stars == stars


def test_mcnemar_is_symmetric_and_refuses_other_images() -> None:
    first, second = outcomes(5, 9, 3, 4)
    one, other = mcnemar(first, second), mcnemar(second, first)
    assert (one.b, one.c) == (other.c, other.b)
    assert one.p_value == other.p_value
    with pytest.raises(ValueError, match="must be of the same images"):
        mcnemar(first, second[1:])


@pytest.mark.parametrize(
    ("correct", "images", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (10, 10, 0.7225, 1.0),
    ],
)
def test_wilson(correct: int, images: int, low: float, high: float) -> None:
    assert wilson(correct, images) == pytest.approx((low, high), abs=5e-5)


def rows(run: Path, correct: list[bool], paths: str = "/p/{}", name: str = "test") -> None:
    n = len(correct)
    (run / "predictions").mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.table(
            {
                "sample": list(range(n)),
                "path": [paths.format(i) for i in range(n)],
                "label": [1] * n,
                "prediction": [int(c) for c in correct],
                "correct": correct,
                "confidence": [0.5] * n,
            }
        ),
        run / "predictions" / f"{name}.parquet",
    )


def test_compare(tmp_path: Path) -> None:
    rows(tmp_path / "a", [True] * 20 + [False] * 7)
    rows(tmp_path / "b", [True] * 10 + [False] * 10 + [True] * 2 + [False] * 5)
    found = json.loads(
        CliRunner().invoke(cli, ["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json"]).stdout
    )
    assert [found[key] for key in "abcd"] == [10, 10, 2, 5]
    assert found["statistic"] == pytest.approx(5.3333, rel=1e-4)
    assert found["stars"] == "*"
    assert found["runs"][0]["accuracy"] == pytest.approx(20 / 27)
    said = CliRunner().invoke(cli, ["compare", str(tmp_path / "a"), str(tmp_path / "b")]).stderr
    assert "McNemar: statistic 5.3333, p = 0.0209 *; exact binomial p = 0.0386" in said
    assert "20 of 27" in said


def test_python_compares_without_a_word_what_the_command_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    rows(a, [True] * 20 + [False] * 7, name="mine")
    rows(b, [True] * 10 + [False] * 10 + [True] * 2 + [False] * 5, name="mine")
    comparison = compare(a, str(b), set="mine")
    assert capsys.readouterr() == ("", "")
    assert (comparison.a, comparison.b, comparison.c, comparison.d) == (10, 10, 2, 5)
    assert (comparison.set, comparison.images, comparison.stars) == ("mine", 27, "*")
    assert [one.run for one in comparison.runs] == [str(a), str(b)]
    assert [one.correct for one in comparison.runs] == [20, 12]
    assert comparison.runs[1].accuracy == 12 / 27
    assert comparison.runs[1].wilson_95 == wilson(12, 27)
    words = ["compare", str(a), str(b), "--set", "mine", "--json"]
    assert json.loads(CliRunner().invoke(cli, words).stdout) == comparison.to_json()
    with pytest.raises(InputError, match="has no rows of 'test'"):
        compare(a, b)


def test_compare_refuses(tmp_path: Path) -> None:
    def said(*words: str) -> str:
        result = CliRunner().invoke(cli, ["compare", *words])
        assert isinstance(result.exception, (InputError, RunError))
        return str(result.exception)

    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    rows(tmp_path / "a", [True, False])
    assert "has no rows of 'test': make them with `qrdali evaluate --run" in said(a, b)
    rows(tmp_path / "b", [True, False], "/q/{}")
    assert "not of the same images" in said(a, b)
    rows(tmp_path / "b", [True, False, True])
    assert "has 2, " in said(a, b)
    assert "give the name of a set" in said(a, b, "--set", "../../x")


@pytest.mark.parametrize("damage", ["text", "half", "columns", "types", "contradiction", "empty", "order"])
def test_damaged_rows_are_named(tmp_path: Path, damage: str) -> None:
    rows(tmp_path, [True, False, True])
    file = tmp_path / "predictions" / "test.parquet"
    table = pq.read_table(file)
    if damage == "text":
        file.write_text("no parquet")
    elif damage == "half":
        file.write_bytes(file.read_bytes()[:400])
    elif damage == "columns":
        pq.write_table(table.drop_columns(["label"]), file)
    elif damage == "types":
        pq.write_table(table.set_column(0, "sample", pa.array(["a", "b", "c"])), file)
    elif damage == "contradiction":
        pq.write_table(table.set_column(4, "correct", pa.array([True, True, True])), file)
    elif damage == "empty":
        pq.write_table(table.slice(0, 0), file)
    else:
        pq.write_table(table.take([1, 0, 2]), file)
    with pytest.raises(RunError, match=r"test.parquet (cannot be read|contradicts itself)"):
        read_rows(tmp_path, "test")


def test_holm() -> None:
    # Worked by hand: sorted .01 .02 .03 .04, times 4 3 2 1, made rising.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.9, 0.5]) == pytest.approx([1, 1, 1])
    # Aickin and Gensler, Am. J. Public Health 86 (1996) describe it;
    # R's p.adjust(c(.0001, .011, .021, .5), "holm") gives these.
    assert holm([0.0001, 0.011, 0.021, 0.5]) == pytest.approx([0.0004, 0.033, 0.042, 0.5])
    assert holm([]) == []


def test_bootstrap_of_a_mean() -> None:
    values = np.random.default_rng(1).normal(10, 2, 400)
    low, high = bootstrap_mean(values)
    # The normal interval of the same mean: ± 1.96 standard errors.
    error = 1.96 * values.std(ddof=1) / 20
    assert low == pytest.approx(values.mean() - error, abs=0.02)
    assert high == pytest.approx(values.mean() + error, abs=0.02)
    assert bootstrap_mean(values) == (low, high)  # the same every time
    assert bootstrap_mean(np.full(7, 0.25)) == (0.25, 0.25)
    assert bootstrap_mean(np.array([0.5])) == (0.5, 0.5)


def test_paired() -> None:
    # Wilcoxon, Biometrics Bulletin 1 (1945), Darwin's plants: W- = 24, n = 15; exact two-sided p = .0413.
    differences = np.array([49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48], float)
    result = paired(np.zeros(15), differences)
    assert (result.images, result.difference) == (15, pytest.approx(20.9333, abs=1e-4))
    assert result.p_value == pytest.approx(0.04126, abs=1e-5)
    assert result.low < result.difference < result.high
    same = paired(np.ones(3), np.ones(3))
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    with pytest.raises(ValueError, match="must be of the same images"):
        paired(np.ones(3), np.ones(2))
    with pytest.raises(ValueError, match="must be of the same images"):
        paired(np.ones(0), np.ones(0))


@pytest.mark.parametrize(("images", "gain", "most"), [(50_000, 388, 13_903), (50_000, 293, 7_928)])
def test_the_slides_stars(images: int, gain: int, most: int) -> None:
    """With at most so many discordant images the slides' net gains on ImageNet are ***, with two more not."""
    for discordant in (most, most + 2):
        # b + c has the gain's parity, or no whole b and c give it.
        c = (discordant + gain) // 2
        b = c - gain
        if b + c > most:
            assert mcnemar(*outcomes(images - b - c, b, c, 0)).stars == "**"
        else:
            assert mcnemar(*outcomes(images - b - c, b, c, 0)).stars == "***"


def test_the_slides_humanet_test_set_is_too_small_for_their_gain() -> None:
    """1,000 images, 74.8 against 74.9: one image more, which nothing makes significant."""
    assert mcnemar(*outcomes(748, 0, 1, 251)).stars == ""
    # 25,000 validation images, 74.364 against 75.556: 298 more are *** with up to 8,200 discordant images.
    for half, stars in ((8_200, "***"), (8_202, "**")):
        c = (half + 298) // 2
        assert mcnemar(*outcomes(25_000 - half, c - 298, c, 0)).stars == stars
