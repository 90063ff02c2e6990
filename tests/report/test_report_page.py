"""The report's page in a real browser: `tests/browser.sh` installs one where it may."""

import base64
import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_runs
import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from qrdali.report.build import ReportOptions, build

BROWSER = next(
    (path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None
)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no chromium with chromedriver: tests/browser.sh installs them"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    draw = np.random.default_rng(0)
    classes = ("<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "a" * 200, "dög")
    sets = [{name: draw.random(40) < p for name in ("val", "test", "crop-0.5")} for p in (0.5, 0.6, 0.9)]
    tracked = {"tracked": {"crop-0.5": 0.5}}
    base = fake_runs.run(root / "baseline", [0.5, 0.6, 0.4], sets[0], classes=classes, extra=tracked)
    runs = [
        base,
        fake_runs.run(
            root / "<b>linear",
            [0.5, 0.4, 0.7, 0.5, 0.8],
            sets[1],
            classes=classes,
            letters="RC",
            method="linear",
            reduction="crop",
            extra=tracked,
        ),
        fake_runs.run(
            root / "fixed",
            [0.5, *[0.4] * 11, 0.9],
            sets[2],
            classes=classes,
            letters="RC",
            method="fixed",
            reduction="color",
            extra=tracked,
        ),
    ]
    quotients = {
        r: {i: 0.1 * (i + 1) for i in range(8)} for r in ("color", "crop", "resolution", "combination")
    }
    mepis = [
        fake_runs.mepis(root / f"mepi-{i}", run, quotients, 10, root / "images")
        for i, run in enumerate(runs[:2])
    ]
    build(runs, mepis, root / "out", ReportOptions("A <report> & more"))
    return root / "out" / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER or ""
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
    ):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def opened(browser: webdriver.Chrome, page: Path, width: int, scheme: str) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # what came before
    browser.get(page.as_uri())
    # A click scrolls to its place and does not wait for a smooth scroll to end.
    browser.execute_script("document.documentElement.style.scrollBehavior = 'auto'")
    browser.execute_script("for (const image of document.images) image.loading = 'eager'")
    browser.execute_async_script(
        "Promise.all([...document.images].map(i => i.decode())).then(arguments[0], arguments[0])"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_the_page(browser: webdriver.Chrome, page: Path, width: int, scheme: str) -> None:
    opened(browser, page, width, scheme)
    assert browser.get_log("browser") == []
    requests = [
        m["params"]["request"]["url"]
        for entry in browser.get_log("performance")
        if (m := json.loads(entry["message"])["message"])["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in requests if not url.startswith("data:")] == [page.as_uri()]
    assert browser.title == "A <report> & more"
    # No sideways scroll of the page, however wide its tables are.
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    seen = browser.execute_script("""return [...document.images].filter(i => i.checkVisibility()).map(i => {
        const box = i.getBoundingClientRect();
        const source = i.currentSrc.slice(0, 20);
        return [i.complete && i.naturalWidth, box.width, box.height, box.right, source, i.alt] })""")
    assert len(seen) == len(list((page.parent / "figures").glob("*.svg"))) + 2 * 8 * 5
    for natural, wide, high, edge, source, alt in seen:
        assert natural > 0
        assert wide > 40
        assert high > 20
        assert edge <= width
        assert source.startswith("data:image/")
        assert alt
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(28, 25, 23)"}[scheme]
    picture = browser.execute_script(
        "return [...document.querySelectorAll('#figure-joint-1 img')].find(i => i.checkVisibility()).src"
    )
    svg = base64.b64decode(picture.split(",")[1]).decode()
    assert ("#1c1917" in svg and "#ffffff" not in svg) == (scheme == "dark")


def column(browser: webdriver.Chrome, table: str, number: int) -> list[str]:
    texts: list[str] = browser.execute_script(
        "return [...document.querySelectorAll(arguments[0] + ' tbody tr')]"
        ".map(r => r.cells[arguments[1]].textContent)",
        f"#table-{table}",
        number,
    )
    return texts


def test_no_column_is_cut(browser: webdriver.Chrome, page: Path) -> None:
    opened(browser, page, 1280, "light")
    # At 1280 px all tables that are open fit; at 320 px a note says that some are to be moved sideways.
    out_of_sight = """return [...document.querySelectorAll('.scroll')]
        .filter(e => e.checkVisibility() && e.scrollWidth > e.clientWidth)
        .map(e => [e.ariaLabel, e.previousElementSibling.checkVisibility()])"""
    assert browser.execute_script(out_of_sight) == []
    opened(browser, page, 320, "light")
    narrow = browser.execute_script(out_of_sight)
    assert narrow
    assert all(is_told for _, is_told in narrow)
    assert not browser.execute_script(
        "return [...document.querySelectorAll('td')].filter(e => e.checkVisibility()"
        " && e.scrollWidth > e.clientWidth + 1).map(e => e.textContent)"
    )


def test_every_figure_names_its_rows(browser: webdriver.Chrome, page: Path) -> None:
    opened(browser, page, 1280, "light")
    every = browser.execute_script("return [...document.querySelectorAll('.source')].map(e => e.textContent)")
    shown = len(browser.find_elements(By.CSS_SELECTOR, ".figures figure, .gallery"))
    assert len(every) == shown + len(browser.find_elements(By.CSS_SELECTOR, ".scroll"))
    report = json.loads((page.parent / "report.json").read_text())
    for text in every:
        kind, slug = text.removeprefix("Rows: report.json, ").split(", ")
        assert report[kind][slug]["rows"], text


@pytest.mark.parametrize("width", [320, 768, 1280])
def test_findings_come_first_and_their_links_open_what_is_folded(
    browser: webdriver.Chrome, page: Path, width: int
) -> None:
    opened(browser, page, width, "light")
    assert browser.find_elements(By.CSS_SELECTOR, "h2")[0].text == "Findings"
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    table = browser.find_element(By.ID, "table-finding-tests-1")
    assert table.get_attribute("open") is None
    browser.find_element(By.CSS_SELECTOR, '.findings a[href="#table-finding-tests-1"]').click()
    assert table.get_attribute("open") == "true"
    # No sentence is cut or runs out of its place.
    assert browser.execute_script(
        "return [...document.querySelectorAll('.findings li')].every(e => e.scrollWidth <= e.clientWidth)"
    )


def test_tables_sort(browser: webdriver.Chrome, page: Path) -> None:
    opened(browser, page, 1400, "light")
    heads = [head.text for head in browser.find_elements(By.CSS_SELECTOR, "#table-accuracy-1 th")]
    test, method = heads.index("test"), heads.index("method")
    button = browser.find_elements(By.CSS_SELECTOR, "#table-accuracy-1 th button")[test]
    before = column(browser, "accuracy-1", test)
    button.click()
    assert column(browser, "accuracy-1", test) == sorted(before, key=float, reverse=True)
    button.click()
    assert column(browser, "accuracy-1", test) == sorted(before, key=float) != before[::-1]
    assert (
        browser.find_elements(By.CSS_SELECTOR, "#table-accuracy-1 th")[test].get_attribute("aria-sort")
        == "ascending"
    )
    browser.find_elements(By.CSS_SELECTOR, "#table-accuracy-1 th button")[method].click()
    assert column(browser, "accuracy-1", method) == ["baseline", "fixed 0.5", "linear"]
    # By number, not by text: 280, 560, 1,680.
    heads = [head.text for head in browser.find_elements(By.CSS_SELECTOR, "#table-energy th")]
    images = heads.index("forward images")
    for expected in (["1,680", "560", "280"], ["280", "560", "1,680"]):
        browser.execute_script(
            "arguments[0].click()", browser.find_elements(By.CSS_SELECTOR, "#table-energy th button")[images]
        )
        assert column(browser, "energy", images) == expected
    # Rows without a value stay last, whichever way.
    against, last = (
        browser.find_elements(By.CSS_SELECTOR, "#table-accuracy-1 th button")[-1],
        len(column(browser, "accuracy-1", 0)) - 1,
    )
    for _ in range(2):
        against.click()
        assert (
            browser.execute_script(
                "return arguments[0].closest('table').tBodies[0].rows[arguments[1]]"
                ".lastElementChild.textContent",
                against,
                last,
            )
            == "–"
        )


def test_names_stay_text_and_nothing_else_runs(browser: webdriver.Chrome, page: Path) -> None:
    opened(browser, page, 1400, "light")
    assert browser.execute_script("return document.scripts.length") == 1
    assert not browser.find_elements(By.CSS_SELECTOR, "b, img[src=x]")
    assert "<img src=x onerror=alert(1)>" in browser.find_element(By.TAG_NAME, "main").text
    # The page's policy refuses what somebody might put into it later: nobody knocks at this port.
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(1)
        browser.execute_script(
            """const s = document.createElement('script');
            s.textContent = 'window.ran = 1';
            document.body.append(s);
            const i = document.createElement('img');
            i.src = 'http://127.0.0.1:' + arguments[0] + '/x.png';
            document.body.append(i)""",
            server.getsockname()[1],
        )
        with pytest.raises(TimeoutError):
            server.accept()
    assert browser.execute_script("return window.ran") is None
    assert "Content Security Policy" in " ".join(entry["message"] for entry in browser.get_log("browser"))


def test_paper_is_light_whatever_the_screen_is(browser: webdriver.Chrome, page: Path) -> None:
    opened(browser, page, 1400, "dark")
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": dark})
    shown = browser.execute_script(
        "return [...document.querySelectorAll('.figures img')]"
        ".filter(i => i.checkVisibility()).map(i => i.className)"
    )
    assert shown
    assert set(shown) == {"light"}
    assert (
        browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        == "rgb(255, 255, 255)"
    )
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_tables_of_many_columns_are_small_on_paper_and_keep_their_heads(
    browser: webdriver.Chrome, page: Path
) -> None:
    """Chromium paints no button in the header that it repeats on every page: the head is text there."""
    opened(browser, page, 1400, "light")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    shown = browser.execute_script(
        "return [...document.querySelectorAll('table')].map(t => [t.querySelectorAll('thead th').length, "
        "parseFloat(getComputedStyle(t).fontSize), getComputedStyle(t.querySelector('th button')).display])"
    )
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    points = {columns: size * 3 / 4 for columns, size, _ in shown}
    assert {display for _, _, display in shown} == {"contents"}
    wide = [columns for columns in points if columns >= 14]
    assert wide
    for columns, size in points.items():
        expected = 4.5 if columns >= 16 else 5.5 if columns >= 12 else 6.5 if columns >= 9 else 7.5
        assert size == pytest.approx(expected, abs=0.01)


def test_it_prints_what_is_folded(browser: webdriver.Chrome, page: Path) -> None:
    opened(browser, page, 1400, "dark")
    browser.execute_script("""window.seen = 0;
        window.addEventListener('beforeprint', () => {
            window.seen = document.querySelectorAll('details:not([open])').length + 1 })""")
    printed = base64.b64decode(
        browser.execute_cdp_cmd("Page.printToPDF", {"paperWidth": 8.27, "paperHeight": 11.69})["data"]
    )
    assert printed.startswith(b"%PDF")
    assert len(printed) > 100_000
    assert browser.execute_script("return window.seen") == 1
    assert browser.execute_script("return document.querySelectorAll('details[open]').length") == 0


def test_the_keyboard_reaches_tables(browser: webdriver.Chrome, page: Path) -> None:
    opened(browser, page, 390, "light")
    regions: list[Any] = browser.find_elements(By.CSS_SELECTOR, ".scroll")
    assert regions
    assert all(
        region.get_attribute("tabindex") == "0" and region.get_attribute("aria-label") for region in regions
    )
    wide = [
        r
        for r in regions
        if browser.execute_script("return arguments[0].scrollWidth > arguments[0].clientWidth", r)
    ]
    assert wide, "no table is wider than a phone: this test shows nothing"
