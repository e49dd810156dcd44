"""The page in a browser: what a reader sees, presses and copies."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from tests.report.sample import NASTY, nasty, sample
from torch_qsgd.report.content import Report
from torch_qsgd.report.figures_spectra import spectra
from torch_qsgd.report.numbers import amount

WIDE, NARROW = (1280, 900), (390, 844)

#: Text of plots that is cut off, and labels of one axis that lie on each other.
STUMBLES = """
const found = [];
for (const plot of document.querySelectorAll(".plot")) {
  const box = plot.getBoundingClientRect();
  const texts = [...plot.querySelectorAll("svg text")].filter((t) => t.textContent.trim());
  for (const text of texts) {
    const r = text.getBoundingClientRect();
    if (r.left < box.left - 1 || r.right > box.right + 1 || r.top < box.top - 1
        || r.bottom > box.bottom + 1)
      found.push(`${plot.id}: cut off: ${text.textContent}`);
  }
  for (const group of plot.querySelectorAll(".xaxislayer-above, .yaxislayer-above, .infolayer")) {
    const boxes = [...group.querySelectorAll("text")].filter((t) => t.textContent.trim())
      .map((t) => [t.textContent, t.getBoundingClientRect()]);
    boxes.forEach(([a, r], i) => boxes.slice(i + 1).forEach(([b, s]) => {
      if (r.left < s.right && s.left < r.right && r.top < s.bottom - 2 && s.top < r.bottom - 2)
        found.push(`${plot.id}: ${a} lies on ${b}`);
    }));
  }
}
return found;
"""


def size(browser: Any, width: int, height: int) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def scheme(browser: Any, wanted: str) -> None:
    feature = {"name": "prefers-color-scheme", "value": wanted}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def visit(browser: Any, report: Report, path: Path, width: tuple[int, int] = WIDE) -> None:
    path.write_text(report.to_html(), encoding="utf-8")
    scheme(browser, "light")
    size(browser, *width)
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # what was before is not this page's
    browser.get(path.as_uri())
    open_all(browser)


def open_all(browser: Any) -> None:
    """Open what is folded, and wait until the page is drawn with it."""
    browser.execute_async_script(
        "document.querySelectorAll('details').forEach((d) => { d.open = true });"
        "requestAnimationFrame(() => requestAnimationFrame(() => arguments[0]()))"
    )


def complaints(browser: Any) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] != "INFO"]


def rows(browser: Any, table: str) -> list[list[str]]:
    found: list[list[str]] = browser.execute_script(
        "return [...document.querySelectorAll(`#${arguments[0]} tbody tr`)]"
        ".map((row) => [...row.cells].map((cell) => cell.textContent.trim()))",
        table,
    )
    return found


@pytest.fixture(scope="module")
def opened(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A browser that shows the sample's page."""
    visit(browser, sample(), tmp_path_factory.mktemp("page") / "audit.html")
    return browser


def test_it_opens_without_a_complaint_and_without_the_network(opened: Any) -> None:
    assert complaints(opened) == []
    events = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    asked = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert any(url.endswith("audit.html") for url in asked)  # requests are seen
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


def test_every_figure_is_drawn(opened: Any) -> None:
    sizes = opened.execute_script(
        "return Object.fromEntries([...document.querySelectorAll('.plot')].map((plot) => {"
        " const box = plot.querySelector('.main-svg')?.getBoundingClientRect();"
        " return [plot.id, box ? [box.width, box.height] : null]; }))"
    )
    expected = opened.execute_script(
        "return Object.keys(JSON.parse(document.getElementById('plots').textContent).figures)"
    )
    assert sorted(sizes) == sorted(expected)
    assert len(sizes) >= 15
    for key, found in sizes.items():
        assert found is not None, key
        assert min(found) > 90, (key, found)


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_it_fits_a_laptop_and_a_phone(opened: Any, width: tuple[int, int]) -> None:
    size(opened, *width)
    opened.refresh()
    open_all(opened)
    inner, there = opened.execute_script(
        "return [window.innerWidth, document.documentElement.scrollWidth]"
    )
    assert inner == width[0]
    assert there <= inner
    assert opened.execute_script(STUMBLES) == []
    size(opened, *WIDE)


def test_the_verdicts_are_those_of_the_json(opened: Any) -> None:
    plain = json.loads(json.dumps(sample().to_json(), allow_nan=False))
    shown = rows(opened, "verdicts")
    assert {row[0]: re.sub("^[✓✗?] ", "", row[1]) for row in shown} == plain["verdicts"]
    icons = {"holds": "✓", "breaks": "✗", "cannot tell": "?"}
    assert all(
        row[1] == f"{icons[plain['verdicts'][row[0]]]} {plain['verdicts'][row[0]]}" for row in shown
    )
    found = rows(opened, "findings")
    assert len(found) == len(plain["findings"])
    for row, finding in zip(found, plain["findings"], strict=True):
        value, limit = (float(finding[k]) for k in ("value", "threshold"))
        expected = "not measured" if math.isnan(value) else amount(value)
        span = ""
        if finding["low"] is not None:
            span = f"{amount(float(finding['low']))} to {amount(float(finding['high']))}"
        assert row == [
            finding["quantity"],
            finding["assumption"],
            expected,
            finding["unit"],
            span,
            f"{finding['relation']} {amount(limit)}",
            f"{icons[finding['verdict']]} {finding['verdict']}",
            finding["sentence"],
        ]
        assert read(row[2]) == pytest.approx(value, rel=5e-3, nan_ok=True)


def read(text: str) -> float:
    """A number as the page writes it, read without the code that wrote it."""
    if text == "not measured":
        return math.nan
    plain = text.replace("\u202f", "").replace("−", "-").replace("∞", "inf")
    mantissa, _, power = plain.partition("×10")
    return float(mantissa) * 10.0 ** int(
        power.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")) or 0
    )


def test_the_slider_goes_through_the_spectra(opened: Any) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    history = sample().monitor
    assert history is not None
    expected = spectra(history)
    assert expected is not None
    slider = opened.find_element(By.CSS_SELECTOR, "input[data-moves=spectra]")
    assert slider.accessible_name == "Spectrum"
    curves = "return document.getElementById('spectra').data.map((trace) => trace.y)"
    heard = []
    for place in range(len(expected.frames)):
        frame = expected.frames[place]
        assert opened.execute_script(curves) == [trace["y"] for trace in frame.data]
        says = opened.find_element(By.CSS_SELECTOR, ".slider output").text
        assert frame.label in says
        assert frame.says in says
        assert slider.get_attribute("aria-valuetext") == frame.label
        legend = opened.find_element(By.CSS_SELECTOR, "#figure-spectra .legend").text
        assert frame.data[3]["name"] in legend
        heard.append(says)
        slider.send_keys(Keys.ARROW_RIGHT)
    assert len(set(heard)) == len(history.records) >= 5
    slider.send_keys(Keys.HOME)
    assert opened.execute_script(curves)[0] == expected.frames[0].data[0]["y"]
    assert complaints(opened) == []


def test_what_a_phone_does_not_show_at_once_is_said(opened: Any) -> None:
    size(opened, *NARROW)
    opened.refresh()
    folded, top = opened.execute_script(
        "const long = document.querySelector('details.long');"
        "return [!long.open, document.querySelector('.plot').getBoundingClientRect().top]"
    )
    assert folded
    assert top < 4 * NARROW[1]
    open_all(opened)
    boxes = (
        "return [...document.querySelectorAll('.scroll')].map((box) => [box.scrollWidth"
        " > box.clientWidth + 2, box.classList.contains('more'),"
        " box.nextElementSibling.checkVisibility()])"
    )
    seen = opened.execute_async_script(
        "const done = arguments[0]; setTimeout(() => done((() => {" + boxes + "})()), 200)"
    )
    assert {tuple(box) for box in seen} == {(True, True, True), (False, False, False)}
    ended = opened.execute_async_script(
        "const done = arguments[0];"
        "const boxes = [...document.querySelectorAll('.scroll.more')];"
        "boxes.forEach((box) => { box.scrollLeft = box.scrollWidth });"
        "setTimeout(() => done(document.querySelectorAll('.scroll.more').length), 200)"
    )
    assert ended == 0
    size(opened, *WIDE)
    opened.refresh()
    assert opened.execute_script("return document.querySelector('details.long').open")
    open_all(opened)


def test_dark_and_light_follow_the_reader(opened: Any) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    script = (
        "const plot = document.getElementById('curves');"
        "return [getComputedStyle(document.body).backgroundColor,"
        " getComputedStyle(plot.querySelector('.main-svg')).backgroundColor,"
        " getComputedStyle(plot.querySelector('.xtick text')).fill,"
        " getComputedStyle(plot.querySelector('.js-line')).stroke]"
    )

    def seen() -> list[str]:
        """Colours once the plots have followed the page."""
        same = lambda driver: len(set(driver.execute_script(script)[:2])) == 1  # noqa: E731
        WebDriverWait(opened, 5, 0.05).until(same)
        colours: list[str] = opened.execute_script(script)
        return colours

    light = seen()
    scheme(opened, "dark")
    dark = seen()
    scheme(opened, "light")
    assert seen() == light
    assert light[0] == "rgb(255, 255, 255)"
    assert all(a != b for a, b in zip(light, dark, strict=True))
    for page in (light, dark):
        assert contrast(page[0], page[2]) > 7
        assert contrast(page[0], page[3]) > 3


def contrast(one: str, other: str) -> float:
    """The ratio that the Web Content Accessibility Guidelines define."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_tables_are_copied_with_all_digits(opened: Any) -> None:
    from selenium.webdriver.common.by import By

    allow = {"permissions": ["clipboardReadWrite"]}
    opened.execute_cdp_cmd("Browser.grantPermissions", allow)
    opened.find_element(By.CSS_SELECTOR, "[data-copies=findings]").click()
    copied = opened.execute_async_script(
        "const done = arguments[0];"
        "setTimeout(() => navigator.clipboard.readText().then(done, (e) => done(String(e))), 100)"
    )
    lines = [line.split("\t") for line in copied.split("\n")]
    assert lines[0][:4] == ["measure", "assumption", "value", "unit"]
    assert {len(line) for line in lines} == {8}
    findings = sample().findings
    values = [float(line[2]) for line in lines[1:]]
    assert values == pytest.approx([f.value for f in findings], rel=1e-15, nan_ok=True)
    assert [line[6] for line in lines[1:]] == [f.verdict for f in findings]
    assert "copied" in opened.find_element(By.CSS_SELECTOR, ".said").text
    assert complaints(opened) == []


def test_text_is_never_read_as_html(browser: Any, tmp_path: Path) -> None:
    visit(browser, nasty(), tmp_path / "nasty.html")
    assert complaints(browser) == []
    assert browser.title == NASTY
    scripts = browser.execute_script(
        "return [...document.scripts].filter((s) => s.textContent.startsWith('alert')).length"
    )
    assert scripts == 0
    assert browser.execute_script("return document.querySelectorAll('main b').length") == 0
    said = browser.execute_script(
        "return document.querySelector('#figure-curves .legend').textContent"
    )
    assert NASTY in said
    labels = browser.execute_script(
        "return [...document.querySelectorAll('#pruning .ytick text')].map((t) => t.textContent)"
    )
    assert any(label.startswith("</script>") for label in labels)


def test_one_spectrum_has_no_slider(browser: Any, tmp_path: Path) -> None:
    report = sample()
    assert report.monitor is not None
    report.monitor.records, report.monitor.windows = report.monitor.records[:1], []
    visit(browser, report, tmp_path / "one.html", NARROW)
    assert browser.execute_script("return document.querySelectorAll('input').length") == 0
    assert (
        browser.execute_script("return document.querySelectorAll('#spectra .js-line').length") > 2
    )
    assert browser.execute_script(STUMBLES) == []
    assert complaints(browser) == []
