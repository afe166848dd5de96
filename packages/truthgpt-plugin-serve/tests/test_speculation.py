"""A model that was optimized to guess tokens is served in batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from running import CHAT, running

from truthgpt_services import ModelService
from truthgpt_services.inference.speculation import Speculative
from truthgpt_services.models.recipe import SavedStep


@pytest.mark.parametrize("name", ["prompt_lookup", "draft_model"])
def test_a_text_is_not_kept_out_of_the_passes_of_others(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The optimization does not count here: the same text comes token by token."""
    guessed: list[Any] = []
    decode = Speculative.decode

    def spy(self: Speculative, *given: Any) -> Any:
        guessed.append(given)
        return decode(self, *given)

    monkeypatch.setattr(Speculative, "decode", spy)
    models = ModelService()
    settings = {"model": str(tiny)} if name == "draft_model" else {"tokens": 16}
    step = SavedStep(name, "execution", settings, "")
    models.save_model(
        models.load_model(str(tiny)),
        models.load_tokenizer(str(tiny)),
        tmp_path / "tiny",
        source="tiny",
        steps=[step],
    )
    with running(tmp_path / "tiny") as server:
        body = CHAT | {"max_tokens": 8, "temperature": 0}
        answer = server.post("/v1/chat/completions", body).json()
        assert not guessed
        options = {"max_new_tokens": 8, "temperature": 0.0}
        text = server.service.generate(CHAT["messages"], options)
        assert answer["choices"][0]["message"]["content"] == text
        assert guessed
