"""The report in a real browser: no error, no sideways scrolling, texts as texts, filters that filter."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import chromium
import pytest
from report_runs import HOSTILE, invented

from steerback.report.gather import gather
from steerback.report.page import write_report

pytestmark = pytest.mark.skipif(
    chromium.binary() is None, reason="no Chromium here; apt-get install chromium"
)

OUTSIDE = """
[...document.querySelectorAll("body *")].filter(e =>
    e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".scroll, svg, .skip")
).map(e => e.outerHTML.slice(0, 80))
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    # one word that is longer than a phone is wide
    return write_report([invented(folder / "run", 60, words="and so on " + "w" * 300 + " ")]).path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Page]:
    with chromium.Page(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(autouse=True)
def _nothing_goes_wrong(browser: chromium.Page) -> Iterator[None]:
    browser.problems.clear()
    yield
    assert browser.problems == []


def choose(browser: chromium.Page, name: str, value: str) -> str:
    """Set a filter as a user would; the line that says how many trials are found."""
    browser.evaluate(
        f"{{ const e = document.forms.filters.elements[{name!r}]; e.value = {value!r};"
        "e.dispatchEvent(new Event('input', {bubbles: true})) }"
    )
    return str(browser.evaluate("document.getElementById('count').textContent"))


@pytest.mark.parametrize(
    ("width", "dark"), [(390, False), (390, True), (768, False), (1280, False)]
)
def test_page_fits_the_window(browser: chromium.Page, page: Path, width: int, dark: bool) -> None:
    browser.open(page, width, dark=dark)
    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.evaluate("innerWidth") == width
    assert browser.evaluate("document.scrollingElement.scrollWidth") <= width
    assert browser.evaluate(OUTSIDE) == []
    colour = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colour == ("rgb(20, 23, 26)" if dark else "rgb(255, 255, 254)")


def test_hostile_texts_are_shown(browser: chromium.Page, page: Path) -> None:
    browser.open(page, 1280)
    for text in HOSTILE[:5]:
        choose(browser, "words", text.split()[0])
        shown = browser.evaluate("document.getElementById('list').innerText")
        assert text in shown
    assert browser.evaluate("document.scripts.length") == 2
    assert browser.evaluate("document.images.length") == 0


def test_filters_count_what_the_data_say(browser: chromium.Page, page: Path) -> None:
    browser.open(page, 1280)
    assert choose(browser, "protocol", "=esr").startswith("60 of 120 trials, 1 to 20 shown")
    assert choose(browser, "flag", "restarted").startswith("19 of 120 trials")
    assert choose(browser, "flag", "missing").startswith("3 of 120 trials")
    browser.evaluate("document.forms.filters.reset()")
    browser.evaluate("new Promise(done => setTimeout(done, 50))")
    assert choose(browser, "words", "").startswith("120 of 120 trials")
    assert choose(browser, "words", "nowhere").startswith("0 of 120 trials")
    assert choose(browser, "words", "LET me start").startswith("20 of 120 trials")


@pytest.mark.parametrize(("order", "best"), [("gain", max), ("loss", min)])
def test_orders_put_the_extreme_first(
    browser: chromium.Page, page: Path, order: str, best: Callable[[Iterable[float]], float]
) -> None:
    browser.open(page, 1280)
    choose(browser, "order", order)
    scores = [r.verdict.scores for r in gather(page.parent).rows if r.verdict]
    extreme = best(s[1] - s[0] for s in scores if len(s) > 1)
    foot = browser.evaluate("document.querySelector('.trial footer').textContent")
    first, last = (float(x) for x in re.findall(r"scores: ([\d.]+), then ([\d.]+)", foot)[0])
    assert last - first == extreme


def test_pages_are_turned(browser: chromium.Page, page: Path) -> None:
    browser.open(page, 390)
    count = "document.getElementById('count').textContent"
    press = "document.querySelector('#pages [name={}]').click()"
    assert browser.evaluate("document.querySelectorAll('.trial').length") == 20
    browser.evaluate(press.format("next"))
    assert "21 to 40 shown" in browser.evaluate(count)
    browser.evaluate(press.format("previous"))
    assert "1 to 20 shown" in browser.evaluate(count)
    assert browser.evaluate("document.querySelector('#pages [name=previous]').disabled")


def test_seeds_and_commands_keep_every_digit(browser: chromium.Page, page: Path) -> None:
    browser.open(page, 1280)
    foot = browser.evaluate("document.querySelector('.trial footer').textContent")
    assert "seed 46116860184273" in foot
    assert "steerback replay" in foot


def test_everything_can_be_reached_by_keyboard(browser: chromium.Page, page: Path) -> None:
    browser.open(page, 390)
    wide = browser.evaluate(
        "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth)"
        ".map(e => [e.tabIndex, e.getAttribute('aria-label')])"
    )
    assert wide
    assert all(index == 0 and label for index, label in wide)
    unlabelled = (
        "[...document.querySelectorAll('select, input')].filter(e => !e.labels.length).length"
    )
    assert browser.evaluate(unlabelled) == 0
    pictures = "[...document.querySelectorAll('figure > svg')].every(s => s.ariaLabel)"
    assert browser.evaluate(pictures)


def test_a_link_to_a_trial_shows_it_alone(browser: chromium.Page, page: Path) -> None:
    browser.open(page, 1280)
    key = gather(page.parent).rows[7].trial.key
    found = browser.evaluate(
        f"new Promise(done => {{ location.hash = 'trial-{key}';"
        "setTimeout(() => done([document.getElementById('count').textContent,"
        "document.querySelector('.trial footer').textContent]), 50) })"
    )
    assert found[0].startswith("1 of ")
    assert key in found[1]
