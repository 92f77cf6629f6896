"""The page in a real browser: what a person sees, points at, types and clicks."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report.study import EVIL, EVIL_LAYER, LAYERS
from vshift.report import write_report

pytestmark = pytest.mark.browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-quic", "--window-size=1440,1000",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium with a fresh profile; without it the tests fail where CI says so."""
    if CHROMIUM is None or DRIVER is None:
        why = "needs chromium and chromedriver (Debian: chromium, chromium-driver)"
        if os.environ.get("VSHIFT_REQUIRE_BROWSER"):
            pytest.fail(why)
        pytest.skip(why)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    folder = tmp_path_factory.mktemp("browser")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.add_experimental_option(
        "prefs", {"download.default_directory": str(folder), "download.prompt_for_download": False}
    )
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.downloads = folder
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def page(browser: Any, study_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The report, opened once; every test leaves it as it was."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report([study_folder], path)
    light(browser)
    browser.get_log("performance")  # what the browser asked for by itself
    browser.get(path.as_uri())
    every = browser.execute_script("return document.querySelectorAll('.chart').length")
    assert every == 12
    wait(lambda: len(found(browser, ".chart[data-ready]")) == every)
    return browser


def light(browser: Any) -> None:
    features = [{"name": "prefers-color-scheme", "value": "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def wait(ready: Callable[[], Any], seconds: float = 20.0) -> Any:
    end = time.monotonic() + seconds
    while not (value := ready()):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)
    return value


def found(browser: Any, selector: str) -> list[Any]:
    return list(browser.find_elements("css selector", selector))


def texts(browser: Any, selector: str) -> list[str]:
    return list(
        browser.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector
        )
    )


def marks(page: Any, figure: str, kind: str = "symbol") -> int:
    return len(found(page, f"#figure-{figure} .role-mark.mark-{kind} > path"))


def click(page: Any, element: Any) -> None:
    """As a person does: with the mouse, on something in sight."""
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    element.click()


def hover(page: Any, element: Any) -> str:
    """The tooltip's text with the pointer on an element."""
    from selenium.webdriver import ActionChains

    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    ActionChains(page).move_to_element(element).perform()
    wait(lambda: found(page, "#vg-tooltip-element.visible"))
    return str(found(page, "#vg-tooltip-element")[0].text)


def test_every_figure_has_marks(page: Any) -> None:
    names = ("depth", "sites", "prediction", "scatter", "curves", "recalibration", "calibration")
    points = {name: marks(page, name) for name in names}
    assert points == {
        "depth": 5 * 4,  # configs × layers
        "sites": 5 * 4,
        "prediction": 3 * 3 + 1,  # runs of noisy arms × the layer that noise reaches
        "scatter": 4 * 3 + 1,
        "curves": 5 * 3,  # configs × epochs
        "recalibration": 5 * 3,  # configs × methods
        "calibration": 5 * 3,  # and Monte Carlo in place of swap, which has no scores
    }
    cells = {name: marks(page, name, "rect") for name in ("strengths", "epochs", "modes")}
    assert cells["epochs"] == 4 * 3
    assert cells["modes"] == 2 * 3
    assert cells["strengths"] == 3 * 4
    assert marks(page, "channels", "area") >= 5
    assert marks(page, "variances", "line") == 3


def test_pointing_at_a_mark_shows_layer_and_numbers(page: Any) -> None:
    point = found(
        page, "#figure-depth .mark-symbol > path[aria-label*='bn-0.5'][aria-label*='bn2']"
    )
    text = hover(page, point[0])
    for word in (LAYERS[1], "bn-0.5", "2.500", "predicted", "2.505", "inherited", "1.000", "n ("):
        assert word in text


def test_the_text_of_the_mode_matrix_can_be_read_on_its_cells(page: Any) -> None:
    from selenium.webdriver.support.ui import Select

    box = Select(found(page, "#figure-modes select")[0])
    chosen = box.first_selected_option.text
    for label, colour in (("arm-none", "black"), ("arm-bn-0.5", "white")):
        box.select_by_visible_text(label)
        cells = "#figure-modes .role-mark.mark-text text"
        wait(lambda c=colour, s=cells: {t.get_attribute("fill") for t in found(page, s)} == {c})
    box.select_by_visible_text(chosen)


def test_a_drop_down_chooses_another_kind_of_site(page: Any) -> None:
    from selenium.webdriver.support.ui import Select

    kinds = Select(next(s for s in found(page, "#figure-sites select") if "logits" in s.text))
    kinds.select_by_visible_text("logits")
    wait(lambda: marks(page, "sites") == 5)  # one per config
    kinds.select_by_visible_text("BN layers")
    values = Select(next(s for s in found(page, "#figure-sites select") if "mean" in s.text))
    values.select_by_visible_text("mean train-inference discrepancy")
    wait(lambda: marks(page, "sites") == 5 * 4)
    values.select_by_visible_text("shift ratio")


def test_the_axis_of_calibration_names_the_score_that_is_chosen(page: Any) -> None:
    from selenium.webdriver.support.ui import Select

    box = Select(found(page, "#figure-calibration select")[0])
    chosen = box.first_selected_option.text
    for score in ("NLL, nats", chosen):
        box.select_by_visible_text(score)
        title = f"{score} (lower is better)"
        wait(lambda title=title: title in texts(page, "#figure-calibration .mark-text text"))


def test_few_epochs_have_whole_ticks(page: Any) -> None:
    for figure in ("curves", "variances"):
        labels = texts(page, f"#figure-{figure} .role-axis-label text")
        assert [label for label in labels if label in ("1", "2", "3")] == ["1", "2", "3"]


def test_names_with_markup_show_as_text(page: Any) -> None:
    assert any(EVIL in text for text in texts(page, "#table-configs th"))
    assert any(EVIL in text for text in texts(page, "#figure-depth .legend button"))
    axis = texts(page, "#figure-recalibration .role-axis-label text")  # cut to their room
    assert any(text.startswith(EVIL[:12]) for text in axis)
    assert any(EVIL_LAYER in text for text in texts(page, "#figure-variances option"))
    evil = found(page, "#figure-depth .mark-symbol > path[aria-label*='alert(2)']")
    assert EVIL_LAYER in hover(page, evil[0])
    assert not found(page, "img")
    assert len(found(page, "script")) == 3  # the data, Vega and the page's own


def test_sorting_by_mouse_and_by_keyboard(page: Any) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    def first() -> str:
        return texts(page, "#table-configs tbody tr:not([hidden]) th")[0].strip()

    def heading() -> Any:
        (one,) = [h for h in found(page, "#table-configs thead th") if "test error" in h.text]
        return one

    click(page, heading().find_element("css selector", "button"))
    assert heading().get_attribute("aria-sort") == "ascending"
    assert first() == "arm-none"  # 10 % is less than 12 %: as numbers, not as text
    page.execute_script("arguments[0].focus()", heading().find_element("css selector", "button"))
    ActionChains(page).send_keys(Keys.ENTER).perform()
    assert heading().get_attribute("aria-sort") == "descending"
    assert first() == "arm-bn-0.5"
    # From one head to the next by Tab alone: the differences, +1.97 before +10.00, none at the end.
    ActionChains(page).send_keys(Keys.TAB, Keys.ENTER).perform()
    sorted_by = page.execute_script("return document.activeElement.closest('th').ariaSort")
    assert sorted_by == "ascending"
    names = [text.strip() for text in texts(page, "#table-configs tbody th")]
    assert names[:4] == [EVIL, "arm-conv-0.5", "arm-bn-0.3", "arm-bn-0.5"]


def test_search_filters_and_says_how_many(page: Any) -> None:
    box = found(page, "input[data-table=configs]")[0]
    box.send_keys("bn-0")
    shown = found(page, "#table-configs tbody tr:not([hidden])")
    assert {row.text.split()[0] for row in shown} == {"arm-bn-0.3", "arm-bn-0.5"}
    assert texts(page, "[data-count=configs]") == ["2 of 8 rows"]
    box.clear()
    box.send_keys(" ")
    assert len(found(page, "#table-configs tbody tr:not([hidden])")) == 8


def test_the_legend_toggles_a_config_in_every_figure(page: Any) -> None:
    def button(label: str) -> Any:
        return found(page, f"#figure-depth .legend button[data-label='{label}']")[0]

    click(page, button("arm-bn-0.5"))
    wait(lambda: marks(page, "depth") == 4 * 4)
    wait(lambda: marks(page, "scatter") == 3 * 3 + 1)
    assert button("arm-bn-0.5").get_attribute("aria-pressed") == "false"
    other = found(page, "#figure-curves .legend button[data-label='arm-bn-0.5']")[0]
    assert other.get_attribute("aria-pressed") == "false"
    click(page, button("arm-bn-0.5"))
    wait(lambda: marks(page, "depth") == 5 * 4)
    page.execute_script(
        "arguments[0].dispatchEvent(new MouseEvent('click', {shiftKey: true}))", button("arm-none")
    )
    wait(lambda: marks(page, "depth") == 4)
    click(page, found(page, "#figure-depth .legend button.all")[0])
    wait(lambda: marks(page, "depth") == 5 * 4)


def test_drop_downs_choose_the_layer(page: Any) -> None:
    from selenium.webdriver.support.ui import Select

    def lines() -> list[str | None]:
        return [p.get_attribute("d") for p in found(page, "#figure-variances .mark-line > path")]

    before = lines()
    box = Select(next(s for s in found(page, "#figure-variances select") if "bn1" in s.text))
    chosen = box.first_selected_option.text
    assert chosen == LAYERS[1]  # the most shifted one
    box.select_by_visible_text(LAYERS[0])
    wait(lambda: lines() != before)
    box.select_by_visible_text(chosen)
    wait(lambda: lines() == before)


def test_dark_and_light(page: Any) -> None:
    def colours() -> list[str]:
        script = """const body = getComputedStyle(document.body);
            const label = document.querySelector('#figure-depth .role-axis-label text');
            return [body.backgroundColor, getComputedStyle(label).fill]"""
        return list(page.execute_script(script))

    assert colours() == ["rgb(255, 255, 255)", "rgb(29, 33, 38)"]
    theme = found(page, "#theme")[0]
    click(page, theme)
    assert colours() == ["rgb(20, 23, 26)", "rgb(231, 234, 238)"]
    assert theme.text == "Light"
    click(page, theme)
    assert colours()[0] == "rgb(255, 255, 255)"


def test_figures_and_data_can_be_saved(page: Any) -> None:
    for kind in ("svg", "png", "csv"):
        button = found(page, f"#figure-depth [data-save={kind}]")[0]
        click(page, button)
        path = page.downloads / f"depth.{kind}"
        wait(lambda path=path: path.is_file() and path.stat().st_size)
    svg = (page.downloads / "depth.svg").read_text()
    assert "arm-bn-0.5" in svg  # the file has the legend, which on the page is not in the figure
    assert "<script>" not in svg
    assert (page.downloads / "depth.png").read_bytes().startswith(b"\x89PNG")
    lines = (page.downloads / "depth.csv").read_text().splitlines()
    assert len(lines) == 1 + 5 * 4
    assert "ratio" in lines[0].split(",")


def test_the_data_of_a_figure_is_a_table_on_the_page(page: Any) -> None:
    click(page, found(page, "#figure-scatter summary")[0])
    wait(lambda: found(page, "#figure-scatter .save tbody tr"))
    assert len(found(page, "#figure-scatter .save tbody tr")) == 13
    click(page, found(page, "#figure-scatter summary")[0])


def test_on_a_phone_nothing_sticks_out(page: Any) -> None:
    metrics = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        script = "return innerWidth === 390 && document.documentElement.scrollWidth <= 390"
        wait(lambda: page.execute_script(script))
        wide = """return [...document.querySelectorAll('.chart svg')]
            .filter(svg => svg.getBoundingClientRect().right > 390).length"""
        wait(lambda: page.execute_script(wide) == 0)
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_no_error_and_no_request_leaves_the_page(page: Any) -> None:
    """Runs last: what all of the tests above made the page do is in the logs."""
    assert [entry["message"] for entry in page.get_log("browser")] == []
    asked = []
    for entry in page.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.append(message["params"]["request"]["url"])
    local = ("file:", "blob:", "data:", "chrome:")  # chrome: its own first page
    assert any(url.endswith("report.html") for url in asked)  # the log does work
    assert [url for url in asked if not url.startswith(local)] == []
    assert len([url for url in asked if url.startswith("file:")]) == 1
    policy = "return document.querySelector('meta[http-equiv]').content"
    assert page.execute_script(policy).startswith("default-src 'none'; script-src 'sha256-")
