"""The explorer in a real browser: what a reader clicks, types and slides, against the records' own
numbers."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cser_bench.report.explorer.page import experiment_tables, explorer_page
from cser_bench.report.explorer.steps import (
    scored_models,
    scored_name,
    step_models,
    timings_table,
)
from cser_bench.report.frame import Frames, read_frames
from cser_bench.report.labels import with_short_labels
from cser_bench.report.speed.cost_model import Compute, period_seconds
from cser_bench.report.speed.workload_model import SpeedStudy, read_study, seconds_at

selenium = pytest.importorskip("selenium")

from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

pytestmark = pytest.mark.whole

RESULTS = Path(__file__).parents[2] / "results"
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)
WIDTHS = (380, 900, 1600)
DDP = "DDP (fp32)"


@pytest.fixture(scope="module")
def frames() -> Frames:
    return with_short_labels(
        read_frames(RESULTS / "reference" / "fashion_mnist_regime")
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> SpeedStudy:
    """The shipped study, with the shipped sessions of scored methods."""
    folder = tmp_path_factory.mktemp("study")
    for name in ("speedups", "scored_speedups"):
        for path in (RESULTS / name).glob("*.json"):
            shutil.copy(path, folder)
    return read_study(folder)


def html_of(frames: Frames, study: SpeedStudy) -> str:
    models = [*scored_models(study, frames), *step_models(study)]
    return explorer_page(frames, models, timings_table(study))


@pytest.fixture(scope="module")
def page(
    frames: Frames, study: SpeedStudy, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("explorer") / "report.html"
    path.write_text(html_of(frames, study))
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    chromium = shutil.which("chromium")
    chromedriver = shutil.which("chromedriver")
    if not (chromium and chromedriver):
        assert not os.environ.get("CI_REQUIRES_BROWSER"), (
            "chromium and chromedriver must be installed here"
        )
        pytest.skip("there is no chromium with its chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        *FLAGS.split(),
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(flag)
    options.set_capability(
        "goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"}
    )
    driver = webdriver.Chrome(
        options=options, service=webdriver.ChromeService(chromedriver)
    )
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser: webdriver.Chrome, page: Path) -> webdriver.Chrome:
    look(browser, 1600, dark=False)
    browser.get(page.as_uri())
    return browser


def look(browser: webdriver.Chrome, width: int, dark: bool) -> None:
    size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def find(browser: webdriver.Chrome, css: str) -> Any:
    return browser.find_element(By.CSS_SELECTOR, css)


def details(browser: webdriver.Chrome) -> str:
    return str(find(browser, "dialog[open]").text)


def fifteen_digits(value: Any) -> str:
    """Write a number as the page shows it: beyond these digits a sum in binary is not sure."""
    return f"{float(value):.15g}"


def test_nothing_is_loaded(opened: webdriver.Chrome) -> None:
    logged = [
        json.loads(entry["message"])["message"]
        for entry in opened.get_log("performance")
    ]
    asked = [
        each["params"]["request"]["url"]
        for each in logged
        if each["method"] == "Network.requestWillBeSent"
    ]
    assert asked
    fetched = [url for url in asked if re.match("(http|ws)s?:", url)]
    assert not fetched
    assert (
        opened.execute_script("return performance.getEntriesByType('resource').length")
        == 0
    )
    assert not opened.get_log("browser"), "the console says nothing"


def test_titles_and_labels_are_texts_and_nothing_else(
    browser: webdriver.Chrome, frames: Frames, tmp_path: Path
) -> None:
    """Not a tag, nor the name of a part of the page."""
    hostile = (
        "</title></h1><script>window.ran = true</script><img src=x onerror='window.ran = "
        "true'> & @script@ {{ 7 * 7 }}"
    )
    experiment = frames.experiment.model_copy(update={"title": hostile})
    rows = frames.rows.assign(
        label=[f"{label} {hostile}" for label in frames.rows["label"]]
    )
    path = tmp_path / "report.html"
    changed = replace(frames, experiment=experiment, rows=rows)
    path.write_text(explorer_page(changed))
    browser.get_log("browser")
    browser.get(path.as_uri())
    assert browser.title == hostile
    assert find(browser, "h1").text == hostile
    assert find(browser, "#methods .checks label").text.endswith(hostile)
    assert browser.execute_script("return window.ran") is None
    assert not browser.get_log("browser"), "the console says nothing"


def test_a_point_opens_the_runs_behind_it(
    opened: webdriver.Chrome, frames: Frames
) -> None:
    """With the mouse; closing gives the focus back to where it was."""
    find(opened, "#methods [data-all=true]").click()
    mark = find(opened, "[data-chart=loss] .mark[aria-label^='M-CSER top-k,']")
    mark.find_element(By.CSS_SELECTOR, ".halo").click()
    said = details(opened)
    of_row = frames.runs[frames.runs["row"] == "mcser-96"]
    for run in of_row.itertuples():
        assert str(run.run_id) in said
        assert fifteen_digits(run.score) in said
        assert fifteen_digits(run.train_loss) in said
    command = "python -m harness run fashion_mnist_regime --rows mcser-96 --seeds 1 2 3"
    assert command in said
    assert "reset interval\n24" in said
    opened.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not opened.find_elements(By.CSS_SELECTOR, "dialog[open]")


def test_keys_alone_reach_points_and_tables(opened: webdriver.Chrome) -> None:
    def focused() -> dict[str, Any]:
        script = (
            "const e = document.activeElement; return {...e.dataset, id: e.id, text: "
            "e.ariaLabel ?? e.textContent}"
        )
        found: dict[str, Any] = opened.execute_script(script)
        return found

    seen = []
    for _ in range(80):
        opened.switch_to.active_element.send_keys(Keys.TAB)
        seen.append(focused())
        if "mark" in seen[-1]:
            break
    assert seen[0]["text"] == "Skip to the figures"
    first = seen[-1]
    opened.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    second = focused()
    assert second["mark"] != first["mark"]
    assert find(opened, "#loss .hint").text == second["text"]
    opened.switch_to.active_element.send_keys(Keys.ENTER)
    assert focused()["id"] == "close"
    opened.switch_to.active_element.send_keys(Keys.ENTER)
    assert focused()["mark"] == second["mark"]


def test_everything_that_takes_the_focus_has_a_name(opened: webdriver.Chrome) -> None:
    nodes = opened.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    for node in nodes:
        of = {
            each["name"]: each["value"].get("value")
            for each in node.get("properties", [])
        }
        if of.get("focusable") and node["role"]["value"] not in (
            "RootWebArea",
            "generic",
            "main",
            "tabpanel",
        ):
            assert node["name"]["value"].strip(), (
                node["role"]["value"],
                node["backendDOMNodeId"],
            )
    heads = [
        int(e.tag_name[1])
        for e in opened.find_elements(By.CSS_SELECTOR, "h1, main h2, main h3")
    ]
    assert heads[0] == 1
    for before, after in pairwise(heads):
        assert after - before <= 1


def test_tables_hold_every_line_with_the_same_digits(
    opened: webdriver.Chrome, frames: Frames
) -> None:
    """What the page would save as CSV, of every table, is the frame's own."""
    tables = {
        name: table for name, table in experiment_tables(frames).items() if len(table)
    }
    assert {"rows", "runs", "tuning", "scores", "pairs"} <= tables.keys()
    for name, table in tables.items():
        saved = opened.execute_script(
            f"return csvOf(TABLES.{name}, Object.keys(TABLES.{name}[0]))"
        )
        shown, own = (
            pd.read_csv(StringIO(text)) for text in (saved, table.to_csv(index=False))
        )
        pd.testing.assert_frame_equal(
            shown, own[list(shown)], check_dtype=False, check_exact=True
        )


def test_a_row_with_a_partition_of_its_own_has_a_page() -> None:
    """Its cell is a table of settings, which no other column has."""
    own = read_frames(RESULTS / "study_perceptron_bounds")
    rows = experiment_tables(own)["rows"]
    partitions = rows.set_index("row")["partition"]
    assert partitions.notna().sum() == 1
    assert "reshuffled" in partitions["alone_all"]["kind"]
    assert "reshuffled" in explorer_page(own)


def test_tables_are_sorted_and_filtered(
    opened: webdriver.Chrome, frames: Frames
) -> None:
    find(opened, "#tab-runs").click()
    find(opened, "#filter").send_keys("mcser seed=2")
    wanted = frames.runs[
        frames.runs["row"].str.contains("mcser") & (frames.runs["seed"] == 2)
    ]
    ids = [
        row.text.split()[2]
        for row in opened.find_elements(By.CSS_SELECTOR, "#table tbody tr")
    ]
    assert ids == wanted["run_id"].to_list()
    assert f"{len(wanted)} of {len(frames.runs)} lines" in find(opened, "#count").text
    find(opened, "#filter").clear()
    find(opened, "#filter").send_keys("score>0.5")
    for order in (True, False):
        find(opened, "#table [data-sort=score]").click()
        cells = opened.find_elements(By.CSS_SELECTOR, "#table td:nth-child(5)")
        shown = [float(cell.get_attribute("textContent") or "") for cell in cells]
        assert shown == sorted(shown, reverse=not order)
        assert len(shown) > 10
    assert find(opened, "#table [aria-sort=descending]").text.startswith("score")


def test_the_filter_shown_as_an_example_finds_something_in_every_table(
    opened: webdriver.Chrome,
) -> None:
    box = find(opened, "#filter")
    for tab in opened.find_elements(By.CSS_SELECTOR, "[role=tab]"):
        tab.click()
        example = box.get_attribute("placeholder").partition("or ")[2]
        box.clear()
        box.send_keys(example)
        assert opened.find_elements(By.CSS_SELECTOR, "#table tbody tr"), (
            tab.text,
            example,
        )


def test_heads_are_one_tab_stop_and_lines_another(opened: webdriver.Chrome) -> None:
    stops = "#table [data-sort]:not([tabindex='-1']), #table [data-open]:not([tabindex='-1'])"
    head, line = opened.find_elements(By.CSS_SELECTOR, stops)
    opened.execute_script("arguments[0].focus()", head)
    opened.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    second = opened.find_elements(By.CSS_SELECTOR, "#table [data-sort]")[1]
    assert opened.switch_to.active_element == second
    opened.switch_to.active_element.send_keys(Keys.TAB)
    assert opened.switch_to.active_element == line
    opened.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    assert opened.switch_to.active_element.get_attribute("data-open") == "1"


def test_every_row_shows_its_verdict(opened: webdriver.Chrome, frames: Frames) -> None:
    rows = experiment_tables(frames)["rows"]
    is_judged = rows["verdict"].notna()
    judged = rows[is_judged].iloc[0]
    heads = [
        head.text for head in opened.find_elements(By.CSS_SELECTOR, "#table thead th")
    ]
    assert heads[2] == "verdict"
    find(opened, "#filter").send_keys(judged["row"])
    assert find(opened, "#table tbody td:nth-child(3)").text == judged["verdict"]


def test_the_address_keeps_what_was_chosen(
    browser: webdriver.Chrome, page: Path
) -> None:
    def state() -> list[str]:
        script = "return [...choices()].map(([name, value]) => `${name}=${value}`)"
        return list(browser.execute_script(script))

    look(browser, 1600, dark=False)
    browser.get(page.as_uri())
    assert "#" not in browser.current_url
    find(browser, "#methods input[value='local SGD']").click()
    find(browser, "#relative option[value=absolute]").click()
    find(browser, "#tab-runs").click()
    find(browser, "#table [data-sort=score]").click()
    find(browser, "#filter").send_keys("mcser seed=2")
    slider = "const e = document.getElementById('rate'); e.value = 0.4;"
    browser.execute_script(
        slider + "e.dispatchEvent(new Event('input', { bubbles: true }))"
    )
    chosen = state()
    address = browser.current_url
    assert "relative=absolute" in address
    assert "filter=mcser" in address
    browser.get("about:blank")
    browser.get(address)
    assert state() == chosen
    assert find(browser, "#table [aria-sort]").text.startswith("score")


@pytest.mark.parametrize("name", ["gpt_text", "gpt_text_methods"])
def test_a_page_opens_on_what_was_found(
    browser: webdriver.Chrome, tmp_path: Path, name: str
) -> None:
    """All declared rows are drawn, most of them within the axis, where all lie beyond four margins."""
    frames = with_short_labels(read_frames(RESULTS / "reference" / name))
    path = tmp_path / "report.html"
    path.write_text(explorer_page(frames))
    look(browser, 1600, dark=False)
    browser.get(path.as_uri())
    is_beyond: dict[str, bool] = {}
    for mark in browser.find_elements(By.CSS_SELECTOR, "[data-chart=loss] .mark"):
        description = str(mark.get_attribute("aria-label"))
        label, _, _ = description.partition(", ratio")
        is_beyond[label] = "beyond" in str(mark.get_attribute("class"))
    declared = {str(frames.row(contrast.row)["label"]) for contrast in frames.contrasts}
    assert declared <= is_beyond.keys()
    within = [label for label in declared if not is_beyond[label]]
    assert len(within) >= 0.75 * len(declared)


def test_a_method_is_switched_off_and_on(opened: webdriver.Chrome) -> None:
    def marks() -> set[str]:
        found = opened.find_elements(By.CSS_SELECTOR, "[data-chart=loss] .mark")
        return {
            re.split(", ratio", mark.get_attribute("aria-label"))[0] for mark in found
        }

    find(opened, "#methods [data-all=true]").click()
    everything = marks()
    find(opened, "#methods input[value='local SGD']").click()
    assert everything - marks() == {"local SGD"}
    find(opened, "#methods [data-all='']").click()
    assert not marks()
    assert "Nothing is switched on" in find(opened, "[data-chart=loss]").text


def test_a_plot_is_relative_or_absolute(
    opened: webdriver.Chrome, frames: Frames
) -> None:
    find(opened, "#methods [data-all=true]").click()
    means = frames.runs.groupby("row")["score"].mean()
    gap = 100 * (means["mcser-96"] - means["sgd"])
    label = find(
        opened, "[data-chart=loss] .mark[aria-label^='M-CSER top-k,']"
    ).get_attribute("aria-label")
    assert f"accuracy drop {-gap:.2f} points against SGD" in label
    assert f": {100 * means['mcser-96']:.2f} %" in label
    axis = "[data-chart=loss] text.axis:nth-of-type(1n+2)"
    before = [each.text for each in opened.find_elements(By.CSS_SELECTOR, axis)]
    find(opened, "#relative option[value=absolute]").click()
    after = [each.text for each in opened.find_elements(By.CSS_SELECTOR, axis)]
    assert after != before
    assert "the margin, 0.50 points" in find(opened, "[data-chart=loss]").text


MODELLED = """
const [rates, slower] = arguments, seconds = (model, method, rate, factor) =>
    stepSeconds(model, method, rate, factor * (model.forward_seconds + model.backward_seconds));
const lines = (model) => model.methods.flatMap((method) => rates.flatMap((rate) => slower.map((factor) =>
    [model.name, method.name, rate, factor, seconds(model, method, rate, factor)])));
return DATA.models.flatMap(lines);"""


def test_step_times_are_the_models(opened: webdriver.Chrome, study: SpeedStudy) -> None:
    """The page's step of every method agrees with the model's within 1 %, off the grid of rates too."""
    rates = [3.3e7, 4.7e8, 1e9, 7.7e9, 1e10, 2.5e10, 1e11]
    slower = [0.5, 1.0, 3.0]
    shown = opened.execute_script(MODELLED, rates, slower)
    for work, model in study.models.items():
        scored = {
            each.name: each for session in study.sessions for each in session.methods
        }
        for name, method, rate, factor, seconds in shown:
            network = model.network(rate)
            assert network is not None
            if name == work:
                assert seconds == pytest.approx(
                    seconds_at(model, method, rate, factor), rel=0.01
                )
            elif name == scored_name(work):
                compute = Compute(
                    factor * model.workload.forward_seconds,
                    factor * model.workload.backward_seconds,
                )
                wanted = period_seconds(
                    compute, scored[method].messages, scored[method].period, network
                )
                assert seconds == pytest.approx(wanted, rel=0.01)
    names = {name for name, *_ in shown}
    assert names == {*study.models, scored_name("resnet50_v100")}
    assert len(shown) > 1_500


def test_sliders_move_step_times(opened: webdriver.Chrome) -> None:
    def slide(name: str, place: float) -> dict[str, tuple[float, float]]:
        """Milliseconds and speed-up of each method shown, with a slider at a place between 0 and
        1."""
        slider = (
            "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
        )
        opened.execute_script(
            slider + "e.dispatchEvent(new Event('input'))", name, place
        )
        found = {}
        for line in opened.find_elements(By.CSS_SELECTOR, "#speed-table tbody tr"):
            cells = [
                cell.text.replace(",", "")
                for cell in line.find_elements(By.CSS_SELECTOR, "th, td")
            ]
            found[cells[0]] = (float(cells[1]), float(cells[2]))
        return found

    slow = slide("rate", 0.45)
    fast = slide("rate", 0.95)
    assert slow[DDP][0] > 2 * fast[DDP][0]
    assert slow[DDP][1] < fast[DDP][1]
    assert (
        find(opened, "#rate").get_attribute("aria-valuetext")
        == find(opened, "#rate-text").text
    )
    assert slide("compute", 0.9)[DDP][0] > 2 * fast[DDP][0]
    find(opened, "#speed-baseline option[value=ddp]").click()
    assert slide("rate", 0.6)[DDP][1] == 1


LABELS = """
const boxOf = (text) => {
    const box = text.getBoundingClientRect(), around = text.closest("figure").getBoundingClientRect();
    const inside = box.left >= around.left && box.right <= around.right + 1;
    return [box.left, box.top + 2, box.right, box.bottom - 2, inside, text.textContent];
};
return [...document.querySelectorAll("figure")].map((each) => [...each.querySelectorAll(".tag, .note")].map(boxOf));
"""

COLOURS = """
const draw = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const rgb = (colour) => {
    draw.fillStyle = colour; draw.fillRect(0, 0, 1, 1);
    return [...draw.getImageData(0, 0, 1, 1).data];
};
const all = (css, name) => [...document.querySelectorAll(css)].map((each) => rgb(getComputedStyle(each)[name]));
const texts = [...all("h1, #about, .hint, tbody button", "color"), ...all("figure text", "fill")];
return [...all("body", "backgroundColor"), ...texts];
"""


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_is_readable_at_every_width(
    browser: webdriver.Chrome, page: Path, width: int, dark: bool
) -> None:
    """Nothing runs out of the page, labels lie apart, and text stands out from its ground (WCAG's
    4.5 to 1)."""
    look(browser, width, dark)
    browser.get(page.as_uri())
    assert (
        browser.execute_script("return document.documentElement.scrollWidth") <= width
    )
    for chart in browser.execute_script(LABELS):
        for place, (left, top, right, bottom, inside, text) in enumerate(chart):
            assert inside, text
            for other in chart[:place]:
                assert (
                    left >= other[2]
                    or other[0] >= right
                    or top >= other[3]
                    or other[1] >= bottom
                ), (text, other[5])
    names = [
        len(browser.find_elements(By.CSS_SELECTOR, css))
        for css in ("figure .tag", "figure .legend span")
    ]
    num_beside, num_below = names
    if width < 560:
        assert num_beside == 0 and num_below > 0, "names stand below narrow charts"
    else:
        assert num_beside > num_below, (
            "beside lines in wide ones, but where no room is left"
        )
    ground, *texts = browser.execute_script(COLOURS)
    find(browser, "#theme").click()
    assert browser.execute_script(COLOURS)[0] != ground, (
        "the switch turns dark into light"
    )
    assert (sum(ground[:3]) < 150) == dark
    assert len(texts) > 50
    assert min(contrast(ground, text) for text in texts) >= 4.5


def contrast(one: list[int], other: list[int]) -> float:
    def luminance(colour: list[int]) -> float:
        shares = [value / 255 for value in colour[:3]]
        red, green, blue = (
            s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    both = [luminance(one), luminance(other)]
    low, high = sorted(both)
    return (high + 0.05) / (low + 0.05)
