"""`truthgpt chat`: talking with a model in the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from truthgpt_core.cli.terminal import say
from truthgpt_core.decoding import GenerationError
from truthgpt_core.errors import TruthGPTError
from truthgpt_services.commands.generation_options import (
    engine_options,
    given_options,
    other_options,
    sampling_options,
)
from truthgpt_services.commands.values import named_values

if TYPE_CHECKING:
    from truthgpt_core.decoding import Engine
    from truthgpt_services.chat.conversation import Conversation
    from truthgpt_services.chat.speaker import Speaker
    from truthgpt_services.services.inference_service import InferenceService
    from truthgpt_services.services.model_service import ModelService

_SOURCES = "model_source_factory"
_REMOTE = "openai"
"""The model source of `--url`, and the prefix of its models."""

_LEAST_KEPT = 4096
"""Tokens of a conversation that stay in an engine which does not say how many it can have."""


@click.command(short_help="Talk with a model in the terminal.")
@click.argument("model", required=False)
@click.option("--url", help="Talk with a model behind this OpenAI-compatible URL.")
@click.option("--model", "name", metavar="NAME", help="The name of the model at --url.")
@click.option("--system", metavar="TEXT", help="A system message before the conversation.")
@sampling_options("1024, or what the context has room for")
@engine_options
def chat(
    model: str | None,
    url: str | None,
    name: str | None,
    system: str | None,
    others: tuple[str, ...],
    device: str,
    engine: str | None,
    **options: Any,
) -> None:
    """Talk with MODEL, which may be one that `truthgpt optimize` made.

    Answers are streamed; below each are its tokens, its speed and how full the context is.
    Ctrl-C stops an answer, Ctrl-D or /exit leaves. /help lists what else there is: another answer,
    a second model beside the first, saving the conversation.

    Standard input that is no terminal has a message in each line, and standard output the
    answers.

    \b
      truthgpt chat build/demo
      truthgpt chat build/demo --system "Answer in one sentence." --temperature 0.7
      truthgpt chat --url http://127.0.0.1:8000/v1
      cat questions.txt | truthgpt chat build/demo > answers.txt
    """  # noqa: D301 - click wants the character, not its escape
    spec = _spec(model, url, name)
    given = other_options(others, options)
    options = given_options(options)
    from truthgpt_services.chat.conversation import Conversation
    from truthgpt_services.chat.loop import answer_lines, talk
    from truthgpt_services.chat.session import Session
    from truthgpt_services.chat.slash_commands import SlashCommands

    def load_other(spec: str) -> Speaker:
        return load_speaker(spec, Conversation(), device, engine, dict(requested), beside=speaker)

    # Engines take their options out of those that were given.
    requested = dict(given)
    speaker = load_speaker(spec, Conversation(system), device, engine, given)
    options |= given
    speaker.check(options)
    session = Session(speaker, options)
    commands = SlashCommands(session, load_other, _value)
    if sys.stdin is None or not sys.stdin.isatty():
        answer_lines(session, commands)
        return
    length = speaker.engine.context_length
    holds = "" if length is None else f", with a context of {length:,} tokens"
    say(f"{spec} on the engine {speaker.engine.name}{holds}.", err=True)
    say("/help lists commands, Ctrl-D leaves.", err=True)
    talk(session, commands)


def load_speaker(
    spec: str,
    conversation: Conversation,
    device: str,
    engine: str | None,
    given: dict[str, Any],
    *,
    beside: Speaker | None = None,
) -> Speaker:
    """Load a model that takes part in a chat.

    Args:
        spec: as the user names the model.
        conversation: what it begins with.
        device: in torch's notation, or "auto".
        engine: the name of the engine that is wanted; None for any.
        given: options by name; the engine takes those that it knows out of it.
        beside: the model that the inference service of the application generates with already.

    Raises:
        TruthGPTError: it cannot be loaded, or cannot hold conversations.
    """
    from truthgpt_core.application import get_application
    from truthgpt_services.chat.speaker import Speaker
    from truthgpt_services.commands.progress import display_progress
    from truthgpt_services.importing import importing

    application = get_application()
    with importing():
        from truthgpt_services.services.opened_model import open_model

        models: ModelService = application.get_service("model_service")
        service: InferenceService = application.get_service("inference_service")
        if beside is not None:
            # One generates with one model.
            service = type(service)(application.plugins, application.events)
    if spec.startswith(f"{_REMOTE}:") and _REMOTE not in application.factories[_SOURCES]:
        raise TruthGPTError(
            "Models behind a URL need a plugin that is not installed",
            hint="Install it: pip install truthgpt-plugin-openai.",
        )
    with display_progress() as progress:
        progress("Loading the model", 0, 0)
        models.progress = progress
        opened = open_model(
            models,
            spec,
            device=device,
            engine=engine,
            given=given,
            look=lambda directory, tokenizer: _check_template(spec, tokenizer, conversation),
        )
    made, tokenizer = opened.engine, opened.tokenizer
    if opened.directory is None and tokenizer is not None:
        _check_template(spec, tokenizer, conversation)
    service.configure(made, tokenizer, {"prefix_cache_tokens": _kept_tokens(made)})
    speaker = Speaker(spec, made, tokenizer, service, application.plugins)
    speaker.conversation = conversation
    return speaker


def _spec(model: str | None, url: str | None, name: str | None) -> str:
    """Return which model is meant."""
    if url is None:
        if name is not None:
            raise click.UsageError("--model names a model at --url. Others come without --model.")
        if model is None:
            raise click.UsageError("Missing argument 'MODEL', or --url URL.")
        return model
    if model is not None:
        raise click.UsageError(f"{model:.200} and --url are two models; /compare has a second.")
    if name is not None and "#" in url:
        raise click.UsageError("The URL names a model, and so does --model.")
    return f"{_REMOTE}:{url.removeprefix(f'{_REMOTE}:')}" + ("" if name is None else f"#{name}")


def _check_template(spec: str, tokenizer: Any, conversation: Conversation) -> None:
    """See that a model can hold a conversation, with its system message."""
    from truthgpt_services.inference.prompts import has_template, read_prompt

    hint = f"truthgpt generate {spec} --raw TEXT continues a text without one."
    if not has_template(tokenizer):
        raise GenerationError(
            f"{spec} has no chat template, so it cannot hold a conversation", hint=hint
        )
    question = {"role": "user", "content": "?"}
    try:
        read_prompt(tokenizer, conversation.for_model([question]), "The conversation")
    except GenerationError as error:
        raise GenerationError(error.message, hint=hint) from None


def _kept_tokens(engine: Engine) -> int:
    """Return how many tokens stay in the engine: a whole conversation, for the next message."""
    return max(engine.context_length or 0, _LEAST_KEPT)


def _value(text: str) -> Any:
    return named_values([f"value={text}"])["value"]
