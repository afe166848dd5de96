"""A user in front of the page."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page


def find_chromium() -> str | None:
    """Return where chromium is; None if it is not installed."""
    named = os.environ.get("CHROMIUM")
    found = (shutil.which(each) for each in ("chromium", "chromium-browser", "google-chrome"))
    return named or next(filter(None, found), None)


def open_page(tab: Page, address: str) -> None:
    """Open the page and wait until it can be used."""
    tab.goto(address)
    tab.locator("#ask").wait_for()


def ask(tab: Page, question: str) -> None:
    """Type a question and ask it."""
    tab.get_by_label("Question").fill(question)
    tab.locator("#ask").click()


def cards(tab: Page) -> list[Locator]:
    """The columns of the page."""
    return tab.locator(".tg-card").all()


def wait_for(tab: Page, state: str, count: int) -> None:
    """Wait until so many answers are in a state."""
    script = f"document.querySelectorAll('.tg-card[data-state={state}]').length === {count}"
    tab.wait_for_function(script)


def ask_and_wait(tab: Page, question: str) -> list[str]:
    """Ask, and return the two answers when they are over."""
    ask(tab, question)
    wait_for(tab, "over", 2)
    return [card.locator(".tg-answer").inner_text() for card in cards(tab)]
