"""The page, as a user has it before them in a browser."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from browser import ask, ask_and_wait, cards, open_page, wait_for
from made_report import made_report
from parrot import Gated, Parrot, demo_model
from serving import HOSTS, served

from truthgpt_core.errors import TruthGPTError
from truthgpt_core.plugin_system import get_plugin_manager

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser, Page

    from truthgpt_plugin_gradio import DemoModel

# One worker has the browser and the models.
pytestmark = [
    pytest.mark.xdist_group("page"),
    # gradio's own, of what it does with pandas in a thread.
    pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting':DeprecationWarning"),
]

HOSTILE = (
    "<script>window.hit = 1</script>",
    "<img src=x onerror='window.hit = 1'>",
    "</div></article><h1>mine</h1>",
    "${window.hit = 1} {{value}} {{#each value}}x{{/each}} `",
    "&lt;b&gt; &amp; \"quoted\" 'text'",
    "{% raw %} \\u003cscript\\u003e",
)


@pytest.fixture(scope="module")
def address(models: list[DemoModel], browser: Browser) -> Iterator[str]:
    """The page of the two tiny models."""
    with served(models) as address:
        yield address


@pytest.fixture(scope="module")
def gated(base: Path) -> DemoModel:
    """A model that answers as far as the test lets it."""
    from truthgpt_services import ModelService

    service = ModelService()
    engine = Gated(service.load_model(str(base)), get_plugin_manager().hooks)
    return demo_model("gated", engine, service.load_tokenizer(str(base)))


def open_gate(model: DemoModel, passes: int) -> None:
    """Let a model take so many passes."""
    engine: Any = model.service._setup.engine  # type: ignore[union-attr]
    engine.gate.release(passes)


def until(known: Callable[[], bool], tab: Page) -> None:
    """Wait until something holds."""
    ends = time.monotonic() + 60
    while not known():
        assert time.monotonic() < ends
        tab.wait_for_timeout(50)


def test_both_answers_are_shown_with_their_figures(address: str, tab: Page) -> None:
    """Speed, time to the first token, tokens and weights, of each model, and why it ended."""
    open_page(tab, address)
    assert all(ask_and_wait(tab, "Hello"))
    for card in cards(tab):
        text = card.inner_text()
        for figure in (r"[\d.,]+\s*tokens/s", r"First token\s+[\d.]+ m?s", r"Tokens\s+\d+"):
            assert re.search(figure, text), text
        assert "Weights in memory" in text
        assert "sharing" not in text
    assert "resident memory (RSS)" in tab.locator(".tg-memory").inner_text()


def test_the_same_model_saved_answers_the_same(address: str, tab: Page) -> None:
    """What no step changed says the same, so both columns hold what their model says."""
    open_page(tab, address)
    one, other = ask_and_wait(tab, "Hello")
    assert one == other


def test_enter_asks(address: str, tab: Page) -> None:
    """The question is asked with the key, too."""
    open_page(tab, address)
    tab.get_by_label("Question").fill("Hello")
    tab.get_by_label("Question").press("Enter")
    wait_for(tab, "over", 2)


def test_nothing_is_asked_without_a_question(address: str, tab: Page) -> None:
    """The page says what is missing, and no model is asked."""
    open_page(tab, address)
    ask(tab, "  ")
    tab.get_by_text("Write a question first.").wait_for()
    wait_for(tab, "empty", 2)


def test_at_once_the_page_says_that_speeds_are_shared(address: str, tab: Page) -> None:
    """Who lets both write at the same time reads so beside the choice."""
    open_page(tab, address)
    tab.get_by_label("Both at once").check()
    assert all(ask_and_wait(tab, "Hello"))
    assert "each speed is that of both running" in tab.locator("body").inner_text()


def test_the_report_is_beneath(address: str, tab: Page) -> None:
    """The report of the optimized model is there, as high as what it says."""
    open_page(tab, address)
    frame = tab.frame_locator("iframe.tg-report")
    frame.get_by_text("Nothing was accepted.").first.wait_for()
    inside = "page => page.contentDocument.documentElement.scrollHeight - page.clientHeight"
    tab.wait_for_function(f"Math.abs(({inside})(document.querySelector('iframe'))) < 3")


def test_the_losses_of_a_run_are_those_of_now(
    browser: Browser, tab: Page, models: list[DemoModel], tmp_path: Path
) -> None:
    """A run that goes on is drawn as far as it is whenever the page is loaded."""
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"kind": "step", "step": 1, "loss": 2.5}\n')
    with served(models, run=tmp_path) as address:
        open_page(tab, address)
        before = tab.locator(".tg-loss").get_attribute("src")
        with metrics.open("a") as file:
            file.write('{"kind": "step", "step": 2, "loss": 2.0}\n')
        open_page(tab, address)
        tab.wait_for_function(
            "before => document.querySelector('.tg-loss')?.src !== before", arg=before
        )


def test_another_model_can_be_chosen(address: str, tab: Page, base: Path) -> None:
    """The figures and the report are those of the chosen one, which may have no report."""
    open_page(tab, address)
    ask_and_wait(tab, "Hello")
    tab.locator("#optimized input").click()
    tab.get_by_role("option", name=str(base)).click()
    tab.get_by_text("This model has none.").wait_for()
    wait_for(tab, "empty", 2)


def test_nothing_is_asked_of_another_host(address: str, tab: Page) -> None:
    """No font, script, picture or count goes to or comes from anywhere but the page's server."""
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    open_page(tab, address)
    ask_and_wait(tab, "Hello")
    tab.locator("iframe.tg-report").scroll_into_view_if_needed()
    assert len(asked) > 10
    elsewhere = [url for url in asked if not url.startswith((address, "data:", "blob:", "about:"))]
    assert elsewhere == []
    # Nor by the server.
    assert "127.0.0.1" in HOSTS
    assert {"127.0.0.1", "localhost", "::1", "None"} >= HOSTS


def test_what_a_page_would_load_from_elsewhere_is_blocked(
    address: str, tab: Page, models: list[DemoModel]
) -> None:
    """Were something hostile in the page, it could reach no other server, not even one nearby."""
    open_page(tab, address)
    reach = "url => fetch(url, {mode: 'no-cors'}).then(() => 'reached', error => 'blocked')"
    with served(models) as elsewhere:
        assert [tab.evaluate(reach, each) for each in (address, elsewhere)] == [
            "reached",
            "blocked",
        ]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_written_is_text(browser: Browser, tab: Page, text: str) -> None:
    """A question and an answer with markup or templates are shown character by character."""
    models = [demo_model(text, Parrot()), demo_model("b", Parrot(error=TruthGPTError(text)))]
    with served(models) as address:
        open_page(tab, address)
        ask(tab, text)
        wait_for(tab, "over", 1)
        wait_for(tab, "failed", 1)
        assert tab.locator(".tg-answer").inner_text().strip() == text
        assert tab.locator(".tg-error").inner_text() == text
        assert tab.locator("#base input").input_value() == text
        assert tab.evaluate("window.hit") is None
        assert tab.locator("h1").count() == 1


def test_a_hostile_report_is_text(browser: Browser, tab: Page) -> None:
    """What a report says is shown, and no script of it runs, in the report or in the page."""
    text = " ".join(HOSTILE)
    result = {"variant": "baseline", "steps": [], "summary": text}
    model = demo_model("a", Parrot())
    reported = replace(model, spec="b", report=made_report(result=result))
    with served([model, reported]) as address:
        open_page(tab, address)
        frame = tab.frame_locator("iframe.tg-report")
        assert frame.locator("h1").inner_text() == text
        assert tab.evaluate("[window.hit, frames[0].hit]") == [None, None]


def test_stop_frees_the_row(browser: Browser, tab: Page, gated: DemoModel) -> None:
    """The first answer ends as it is, the second never begins, and nothing runs any more."""
    before = gated.service.statistics
    with served([gated, demo_model("other", Parrot())]) as address:
        open_page(tab, address)
        ask(tab, "Hello")
        open_gate(gated, 4)
        wait_for(tab, "writing", 1)
        assert tab.locator("#base input").is_disabled()
        assert tab.locator("#ask").is_disabled()
        tab.locator("#stop").click()
        until(lambda: _stopping(gated, before.cancelled), tab)
        wait_for(tab, "over", 2)
        assert "Stopped." in cards(tab)[0].inner_text()
        assert "Stopped." in cards(tab)[1].inner_text()
        assert gated.service.statistics.running == 0
        tab.wait_for_function("!document.querySelector('#ask').disabled")
        assert tab.locator("#base input").is_enabled()


@pytest.mark.parametrize("leave", ["reload", "close"])
def test_leaving_frees_the_row(browser: Browser, gated: DemoModel, leave: str) -> None:
    """An answer that nobody waits for any more is not written to its end."""
    before = gated.service.statistics
    context = browser.new_context()
    tab, other = context.new_page(), context.new_page()
    with served([gated, demo_model("other", Parrot())]) as address:
        open_page(tab, address)
        ask(tab, "Hello")
        open_gate(gated, 4)
        wait_for(tab, "writing", 1)
        getattr(tab, leave)()
        until(lambda: _stopping(gated, before.cancelled), other)
        until(lambda: gated.service.statistics.running == 0, other)
    context.close()


def _stopping(model: DemoModel, cancelled: int) -> bool:
    """Whether a text was ended; a pass more is taken if not, far from as many as it has tokens."""
    if model.service.statistics.cancelled > cancelled:
        return True
    open_gate(model, 1) if model.service.statistics.running else None
    time.sleep(0.5)
    return False


def test_two_tabs_are_answered(address: str, browser: Browser) -> None:
    """Both get their answers, whatever the order in which they are written."""
    context = browser.new_context()
    tabs = [context.new_page(), context.new_page()]
    for tab in tabs:
        open_page(tab, address)
    for number, tab in enumerate(tabs):
        ask(tab, f"Hello {number}")
    for tab in tabs:
        wait_for(tab, "over", 2)
        assert all(card.locator(".tg-answer").inner_text() for card in cards(tab))
    context.close()


def test_an_answer_that_cannot_be_given_is_one_error(address: str, tab: Page) -> None:
    """A question longer than the model can read is said so in its column, and the page goes on."""
    open_page(tab, address)
    ask(tab, "x" * 2000)
    wait_for(tab, "failed", 2)
    assert "the model holds 512" in tab.locator(".tg-error").first.inner_text()
    assert all(ask_and_wait(tab, "Hello"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits(address: str, browser: Browser, width: int, scheme: Any) -> None:
    """On a phone and a screen, in both color schemes, nothing is wider than the window."""
    context = browser.new_context(
        viewport={"width": width, "height": 844}, color_scheme=scheme, reduced_motion="reduce"
    )
    tab = context.new_page()
    open_page(tab, address)
    ask_and_wait(tab, "Hello")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    boxes = [box for card in cards(tab) if (box := card.bounding_box()) is not None]
    same = "x" if width < 640 else "y"
    assert abs(boxes[0][same] - boxes[1][same]) < 1
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(18, 21, 24)"}[scheme]
    context.close()
