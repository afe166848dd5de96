"""Asking two models, without a page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from parrot import Gated, Parrot, demo_model

from truthgpt_core.errors import TruthGPTError
from truthgpt_core.plugin_system import get_plugin_manager
from truthgpt_plugin_gradio.answers import Answer, Answering, State

if TYPE_CHECKING:
    from pathlib import Path

    from truthgpt_plugin_gradio import DemoModel

pytestmark = pytest.mark.xdist_group("page")


def ask(models: list[DemoModel], question: str = "Hello", **options: object) -> list[Answer]:
    """The answers when they are over."""
    at_once = bool(options.pop("at_once", False))
    (*_, answers) = Answering().ask("tab", models, question, options, at_once=at_once)
    return answers


@pytest.mark.parametrize("at_once", [False, True])
def test_the_answer_is_what_the_service_says(models: list[DemoModel], at_once: bool) -> None:
    """In either order, each text is what its model generates, and the figures are of that text."""
    for answer, model in zip(ask(models, at_once=at_once, max_new_tokens=12), models, strict=True):
        said = model.service.generate(model.prompt("Hello"), {"max_new_tokens": 12})
        assert (answer.text, answer.state) == (said, State.OVER)
        assert answer.finish_reason in ("length", "eos_token")
        assert answer.is_chat
        assert 0 < answer.tokens <= 12
        assert answer.first_token_seconds is not None
        assert answer.first_token_seconds > 0


def test_one_after_the_other_shares_nothing(models: list[DemoModel]) -> None:
    """No answer was written while another one was."""
    assert [each.most_at_once for each in ask(models, max_new_tokens=4)] == [1, 1]


def test_at_once_the_answers_say_that_they_shared(base: Path) -> None:
    """Each knows that another one was written while it was."""
    from truthgpt_services import ModelService

    service, hooks = ModelService(), get_plugin_manager().hooks
    tokenizer = service.load_tokenizer(str(base))
    engines = [Gated(service.load_model(str(base)), hooks) for _ in range(2)]
    models = [demo_model(str(each), engine, tokenizer) for each, engine in enumerate(engines)]
    answering = Answering()
    asked = answering.ask("tab", models, "Hello", {"max_new_tokens": 4}, at_once=True)
    next(asked)
    # Neither can end before both have begun.
    while answering.count < 2:
        next(asked)
    for engine in engines:
        engine.gate.release()
    while not all(each.tokens for each in next(asked)):
        pass
    for engine in engines:
        engine.gate.release(100)
    (*_, answers) = asked
    assert [each.most_at_once for each in answers] == [2, 2]


def test_a_seed_gives_the_same_answer_again(models: list[DemoModel]) -> None:
    """What is sampled depends on the seed."""
    texts = [
        ask(models[:1], temperature=1.5, seed=seed, max_new_tokens=24)[0].text for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_one_that_fails_leaves_the_other_alone() -> None:
    """The error is said where the answer would be, and the next model answers."""
    failing = Parrot(error=TruthGPTError("No luck", hint="Try again."))
    one, other = ask([demo_model("a", failing), demo_model("b", Parrot("Fine"))])
    assert (one.error, one.state) == ("No luck. Try again.", State.OVER)
    assert other.text.strip() == "Fine"


def test_an_option_that_is_wrong_is_an_error_of_the_answer(models: list[DemoModel]) -> None:
    """What a page would not send is refused by the service in a sentence."""
    (answer,) = ask(models[:1], temperature=-1.0)
    assert "temperature" in answer.error


def test_an_iterator_that_is_closed_ends_its_answers(models: list[DemoModel]) -> None:
    """Who looks no more leaves nothing running, and the second model is not asked."""
    asked = Answering().ask("tab", models, "Hello", {"max_new_tokens": 300})
    answers = next(iter(asked))
    asked.close()  # type: ignore[attr-defined]
    for answer in answers:
        answer.write("Hello", {})
        assert answer.finish_reason == "cancelled"
    assert models[1].service.statistics.running == 0


def test_stopping_a_tab_that_asked_nothing_is_fine() -> None:
    """So is stopping all of them."""
    answering = Answering()
    answering.stop("tab")
    answering.stop_all()
    assert answering.count == 0
