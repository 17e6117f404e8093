"""Reports in a real browser: they need no network, sort their tables, show their pictures, and fit a phone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytl.pages import render

selenium = pytest.importorskip("selenium")
CHROMIUM = next((path for name in ("chromium", "google-chrome", "chrome") if (path := shutil.which(name))), None)
DRIVER = shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver here")

QUIET = (  # no window, and no calls home
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    os.environ["SE_OFFLINE"] = "true"
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for option in QUIET:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options, Service(DRIVER))
    yield chrome
    chrome.quit()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of `pytl analyze`, of a study of its own."""
    from test_transferability import METHODS, QUICK

    from pytl.study.comparison import Study, run
    from pytl.transferability import Asked, analyse
    from pytl.transferability import report as page

    folder = tmp_path_factory.mktemp("page")
    run(Study(data="digits:mirrored", methods=METHODS, out=folder, seeds=2, epochs=1, record=2))
    asked = Asked((1, 2, 4), QUICK, stage_count=1, stage_measure="linear")
    return page.write(analyse([folder], folder / "analysis", asked), folder / "analysis")


def shown(browser: Any, page: Path, width: int) -> None:
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get_log("performance")
    browser.get(page.as_uri())


def column(browser: Any, table: str, number: int) -> list[str]:
    script = (
        "return [...document.querySelector(arguments[0]).tBodies[0].rows].map(r => r.cells[arguments[1]].innerText)"
    )
    return browser.execute_script(script, table, number)


@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_fits_its_screen_and_loads_nothing_else(browser: Any, report: Path, width: int) -> None:
    shown(browser, report, width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    asked = [line["message"] for line in browser.get_log("performance") if "requestWillBeSent" in line["message"]]
    assert asked
    assert not [message for message in asked if '"url":"http' in message]
    assert browser.get_log("browser") == []


def test_all_pictures_are_seen_and_described(browser: Any, report: Path) -> None:
    shown(browser, report, 1200)
    pictures = browser.execute_script(
        "return [...document.images].map(i => [i.alt, i.complete && i.naturalWidth, i.getBoundingClientRect().width])"
    )
    assert len(pictures) > 8
    for alt, natural, width in pictures:
        assert alt
        assert natural > 400
        assert width > 200


def test_letters_are_legible_on_a_phone(browser: Any, report: Path) -> None:
    shown(browser, report, 390)
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('p, td, th, li, h2')].map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 13


def test_a_table_is_sorted_by_the_head_that_is_clicked(browser: Any, report: Path) -> None:
    shown(browser, report, 1200)
    head = browser.find_element("css selector", "#runs th:nth-child(4)")
    for sign, order in ((1, "ascending"), (-1, "descending")):
        head.click()
        values = [float(text) for text in column(browser, "#runs table", 3)]
        assert values == sorted(values, reverse=sign < 0)
        assert head.get_attribute("aria-sort") == order


def test_a_table_is_sorted_from_the_keyboard_as_text(browser: Any, report: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    shown(browser, report, 1200)
    browser.find_element("css selector", "#runs th:nth-child(2)").send_keys(Keys.ENTER)
    methods = column(browser, "#runs table", 1)
    assert methods == sorted(methods)


def test_numbers_sort_by_value_and_gaps_go_last(browser: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_bytes(render("pytl", "page.html", {}))
    cells = ["10", "9.5 (1 to 20)", "–", "-3", "1e3"]
    rows = "".join(f"<tr><td>{cell}</td></tr>" for cell in cells)
    table = f"<table><thead><tr><th>n</th></tr></thead><tbody>{rows}</tbody></table>"
    page.write_text(page.read_text().replace("<main>", f"<main>{table}"))
    shown(browser, page, 800)
    browser.find_element("css selector", "th").click()
    assert column(browser, "table", 0) == ["-3", "9.5 (1 to 20)", "10", "1e3", "–"]
