"""What the tests of this package share: two tiny chat models, a served page, a browser."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

# Tests load nothing from the hub; without this a mistake would go and look.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TRUTHGPT_PLUGINS_BLOCK"] = "native"

sys.path.insert(0, str(Path(__file__).parent))

import pytest
from browser import find_chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from truthgpt_plugin_gradio import DemoModel

CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


@pytest.fixture(scope="session", autouse=True)
def processes_begin_warm(warm_processes: ModuleType) -> None:
    """Let the commands that tests start begin with torch imported."""


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory of the test's own."""
    directory = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("TRUTHGPT_CACHE", str(directory))
    monkeypatch.setenv("TRUTHGPT_SETTINGS", str(directory / "settings"))
    return directory


def write_chat_model(directory: Path, seed: int) -> None:
    """Write a tiny model with a chat template."""
    from truthgpt_services.testing import write_tiny_model

    write_tiny_model(directory, seed=seed)
    directory.joinpath("chat_template.jinja").write_text(CHAT)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny chat model."""
    directory = tmp_path_factory.mktemp("models") / "base"
    write_chat_model(directory, 0)
    return directory


@pytest.fixture(scope="session")
def optimized(base: Path) -> Path:
    """What TruthGPT saved of the base, with a report; no step changed it."""
    from made_report import made_report

    from truthgpt_services import ModelService
    from truthgpt_services.results.io import JSON_NAME, report_json

    directory, service = base.with_name("optimized"), ModelService()
    directory.mkdir()
    model, tokenizer = service.load_model(str(base)), service.load_tokenizer(str(base))
    service.save_model(model, tokenizer, directory, source=str(base), steps=[])
    directory.joinpath(JSON_NAME).write_text(report_json(made_report()), encoding="utf-8")
    return directory


@pytest.fixture(scope="session")
def models(base: Path, optimized: Path) -> list[DemoModel]:
    """Both, loaded as the command does."""
    from truthgpt_plugin_gradio import load_models

    return load_models([str(base), str(optimized)])


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium, without a window."""
    found = find_chromium()
    if found is None:
        pytest.skip("chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def tab(browser: Browser) -> Iterator[Page]:
    """A tab of the browser, with nothing kept from before."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(60_000)
    yield context.new_page()
    context.close()
