"""`truthgpt generate`: text from a model, streamed."""

from __future__ import annotations

import json
import math
import sys
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from truthgpt_core.decoding import DEFAULT_NEW_TOKENS
from truthgpt_core.terminal_text import harmless, visible
from truthgpt_services.commands.generation_options import (
    engine_options,
    given_options,
    other_options,
    sampling_options,
)
from truthgpt_services.commands.prompt_input import read_prompt_text

if TYPE_CHECKING:
    from pathlib import Path

    from truthgpt_core.decoding import Engine, TokenLogprobs
    from truthgpt_services.inference.text import TextStream
    from truthgpt_services.services.inference_service import InferenceService
    from truthgpt_services.services.model_service import ModelService


@click.command(short_help="Generate text with a model, streamed as it is made.")
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("-f", "--file", metavar="FILE", help="Read the prompt from FILE; - is stdin.")
@click.option("--system", metavar="TEXT", help="A system message before the prompt.")
@click.option("--raw", is_flag=True, help="Continue the prompt as it is: no chat template.")
@sampling_options("128")
@click.option(
    "-n", type=click.IntRange(min=1, max=1024), help="Write so many texts, of SEED and those after."
)
@click.option(
    "--logprobs",
    metavar="K",
    type=click.IntRange(min=0, max=1000),
    help="With --json: log-probabilities of tokens, and of the K likeliest beside each.",
)
@click.option(
    "--prompt-logprobs",
    metavar="K",
    type=click.IntRange(min=0, max=1000),
    help="The same for the tokens of the prompt.",
)
@click.option(
    "--json-schema",
    metavar="FILE",
    help="Write JSON that this schema allows: a file, or the schema itself if it begins with {.",
)
@click.option("--regex", metavar="REGEX", help="Write text that matches this, as a whole.")
@click.option("--grammar", metavar="FILE", help="Write a sentence of this grammar (Lark).")
@engine_options
@click.option("--json", "as_json", is_flag=True, help="Print text, tokens and timings as JSON.")
def generate(
    model: str,
    prompt: str | None,
    file: str | None,
    system: str | None,
    raw: bool,
    device: str,
    engine: str | None,
    as_json: bool,
    others: tuple[str, ...],
    **options: Any,
) -> None:
    """Answer or continue PROMPT with MODEL, which may be one that `truthgpt optimize` made.

    A model that was made for conversations is asked PROMPT through its chat template, and its
    answer is printed. Any other continues PROMPT, and so does every model with --raw. PROMPT is
    read from standard input if it is - or if there is none; with -f FILE it comes after the
    text of FILE.

    \b
      truthgpt generate build/demo "What is the capital of France?"
      truthgpt generate build/demo --raw "The future of AI is"
      truthgpt generate build/demo -f notes.txt "Summarize this."
      truthgpt generate build/demo "Name a city." -n 3 --temperature 0.8
      cat question.txt | truthgpt generate build/demo --json
    """  # noqa: D301 - click wants the character, not its escape
    if raw and system is not None:
        raise click.UsageError("--system is part of a conversation, and --raw has none.")
    for name in ("logprobs", "prompt_logprobs"):
        if options[name] is not None and not as_json:
            raise click.UsageError(f"--{name.replace('_', '-')} needs --json, which prints them.")
    given = other_options(others, options)
    schema = options["json_schema"]
    if schema is not None and not schema.lstrip().startswith("{"):
        options["json_schema"] = read_prompt_text(None, schema)
    if options["grammar"] is not None:
        options["grammar"] = read_prompt_text(None, options["grammar"])
    options = given_options(options)
    prompt_text = read_prompt_text(prompt, file)
    from truthgpt_core.application import get_application
    from truthgpt_services.commands.progress import display_progress
    from truthgpt_services.importing import importing

    application = get_application()
    with importing():
        from truthgpt_services.inference.prompts import (
            as_conversation,
            check_length,
            has_template,
            read_prompt,
        )
        from truthgpt_services.models.loading import load_config
        from truthgpt_services.services.opened_model import open_model

        models: ModelService = application.get_service("model_service")
        service: InferenceService = application.get_service("inference_service")

    began = perf_counter()
    with display_progress() as progress:
        progress("Loading the model", 0, 0)
        models.progress = progress
        read: Any = None

        def check_prompt(directory: Path, tokenizer: Any) -> None:
            nonlocal read
            read = read_prompt(
                tokenizer, prompt_text if raw else as_conversation(tokenizer, prompt_text, system)
            )
            check_length(
                read, load_config(directory), options.get("max_new_tokens", DEFAULT_NEW_TOKENS)
            )

        opened = open_model(
            models, model, device=device, engine=engine, given=given, look=check_prompt
        )
    made, tokenizer = opened.engine, opened.tokenizer
    if read is None:
        read = _prompt_for(made, prompt_text, system, raw=raw)
    options |= given
    service.configure(made, tokenizer)
    if raw and has_template(tokenizer):
        click.echo("truthgpt: --raw: the chat template of the model was not applied.", err=True)
    loading = perf_counter() - began
    several = options.get("n", 1) > 1
    streams = service.streams(read, options) if several else [service.stream(read, options)]
    if as_json:
        found = [
            _as_json("".join(each), each, tokenizer, model=model, loading=loading, options=options)
            for each in streams
        ]
        click.echo(json.dumps(found if "n" in options else found[0], ensure_ascii=False, indent=2))
    else:
        for number, each in enumerate(streams):
            if number:
                click.echo("---")
            _print_text(each, prompt_text)
    for each in streams:
        _warn(each, options)


def _warn(stream: TextStream, options: dict[str, Any]) -> None:
    """Say what the text of an answer does not."""
    if not stream.text:
        what = "Nothing was generated: the model ended the text at once."
        if stream.stopped_by is not None:
            what = f'Nothing was generated before "{harmless(stream.stopped_by)}".'
        click.echo(f"truthgpt: {what}", err=True)
    elif stream.finish_reason == "length" and options.keys() & {
        "json_schema",
        "regex",
        "grammar",
    }:
        click.echo(
            "truthgpt: The text was cut off, so it does not have the form that was asked for. "
            "--max-new-tokens lets it be longer.",
            err=True,
        )


def _prompt_for(engine: Engine, prompt_text: str, system: str | None, *, raw: bool) -> Any:
    """Return the prompt for an engine that did not load the model from a directory."""
    from truthgpt_services.inference.prompts import as_conversation

    if raw:
        return prompt_text
    if engine.tokenizer is not None:
        return as_conversation(engine.tokenizer, prompt_text, system)
    begin = [] if system is None else [{"role": "system", "content": system}]
    return [*begin, {"role": "user", "content": prompt_text}]


def _print_text(stream: TextStream, prompt_text: str) -> None:
    terminal = _is_terminal()
    if terminal and not stream.prompt.is_chat:
        click.echo(visible(prompt_text), nl=False)
    for piece in stream:
        click.echo(visible(piece) if terminal else piece, nl=False)
    click.echo()


def _is_terminal() -> bool:
    return sys.stdout.isatty()


def _logprob(found: TokenLogprobs, tokenizer: Any) -> dict[str, Any]:
    def described(token: int, logprob: float | None) -> dict[str, Any]:
        # JSON has no infinity.
        known = logprob if logprob is not None and math.isfinite(logprob) else None
        return {"token": token, "text": tokenizer.decode([token]), "logprob": known}

    top = [described(*each) for each in found.top]
    return described(found.token, found.logprob) | {"top": top}


def _as_json(
    text: str,
    stream: TextStream,
    tokenizer: Any,
    *,
    model: str,
    loading: float,
    options: dict[str, Any],
) -> dict[str, Any]:
    scores: dict[str, Any] = {
        name: [_logprob(each, tokenizer) for each in getattr(stream, name)]
        for name in ("logprobs", "prompt_logprobs")
        if name in options
    }
    first, seconds = stream.first_token_seconds, stream.seconds
    # The token that ends a text is decoded as well.
    after_first = len(stream.tokens) - 1 + (stream.finish_reason == "eos_token")
    rate = after_first / (seconds - first) if first is not None and after_first > 0 else None
    return {
        "model": model,
        "text": text,
        "finish_reason": stream.finish_reason,
        "stopped_by": stream.stopped_by,
        "chat_template": stream.prompt.is_chat,
        "prompt": stream.prompt.text,
        "tokens": {
            "prompt": len(stream.prompt.tokens),
            "generated": len(stream.tokens),
            "prompt_ids": list(stream.prompt.tokens),
            "generated_ids": stream.tokens,
        },
        "timings": {
            "load_seconds": loading,
            "first_token_seconds": first,
            "seconds": seconds,
            "tokens_per_second": rate,
        },
        "options": options,
        **scores,
    }
