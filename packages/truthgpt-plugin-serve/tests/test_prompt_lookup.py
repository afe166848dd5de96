"""A model that was optimized to look tokens up is served in batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from running import CHAT, running

from truthgpt_services import ModelService
from truthgpt_services.inference.speculation import PromptLookup
from truthgpt_services.models.recipe import SavedStep


def test_a_text_is_not_kept_out_of_the_passes_of_others(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The optimization `prompt_lookup` does not count here: the same text comes token by token."""
    looked: list[Any] = []
    decode = PromptLookup.decode

    def spy(self: PromptLookup, *given: Any) -> Any:
        looked.append(given)
        return decode(self, *given)

    monkeypatch.setattr(PromptLookup, "decode", spy)
    models = ModelService()
    step = SavedStep("prompt_lookup", "execution", {"tokens": 16}, "")
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
        assert not looked
        options = {"max_new_tokens": 8, "temperature": 0.0}
        text = server.service.generate(CHAT["messages"], options)
        assert answer["choices"][0]["message"]["content"] == text
        assert looked
