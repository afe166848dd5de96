"""What the tests of this package share: a tiny chat model, and servers of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Tests load nothing from the hub; without this a mistake would go and look.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("OPENAI_API_KEY", None)

sys.path.insert(0, str(Path(__file__).parent))

from collections.abc import Iterator

import openai
import pytest
from running import Running, running

from truthgpt_services.testing import write_tiny_model

TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Directories of the session's own, in place of the user's."""
    directory = tmp_path_factory.mktemp("settings")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRUTHGPT_CACHE", str(directory / "cache"))
        patch.setenv("TRUTHGPT_SETTINGS", str(directory / "settings"))
        yield directory


@pytest.fixture(autouse=True)
def own_settings(settings: Path) -> Path:
    """Every test has them."""
    return settings


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, settings: Path) -> Path:
    """A directory with a tiny chat model."""
    directory = tmp_path_factory.mktemp("models") / "tiny"
    write_tiny_model(directory, chat_template=TEMPLATE)
    return directory


@pytest.fixture(scope="session")
def server(tiny: Path) -> Iterator[Running]:
    """A server of the tiny model, with default settings."""
    with running(tiny) as found:
        yield found


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    """The official client."""
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as made:
        yield made
