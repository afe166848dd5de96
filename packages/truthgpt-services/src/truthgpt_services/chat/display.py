"""Showing answers as they come, and below each what it took and why it ended."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence

import click

from truthgpt_core.decoding import GenerationError
from truthgpt_core.terminal_text import harmless, visible
from truthgpt_services.chat.columns import LEAST_WIDTH, print_columns, side_by_side
from truthgpt_services.chat.speaker import Answer
from truthgpt_services.formatting import number, seconds

_Stops = type[BaseException] | tuple[()]
"""What ends an answer, and nothing else."""


def show(answers: Sequence[Answer], *, interactive: bool) -> None:
    """Print answers to standard output, and what there is to say of each to standard error.

    Two are side by side on a terminal that is wide enough, and one after the other elsewhere. In
    the end all of them are over.

    Args:
        answers: those of all models to one question.
        interactive: Ctrl-C ends the answer that is printed, and nothing else.

    Raises:
        GenerationError: one could not be generated, or not to its end.
        KeyboardInterrupt: the user stopped it, and `interactive` is False.
    """
    stops = KeyboardInterrupt if interactive else ()
    try:
        if len(answers) > 1 and (width := _width()) >= LEAST_WIDTH:
            _show_in_columns(answers, width, stops)
        else:
            _show_in_turn(answers, stops)
    finally:
        for each in answers:
            each.interrupt()


def _show_in_columns(answers: Sequence[Answer], width: int, stops: _Stops) -> None:
    failed = None
    try:
        names = [each.speaker.name for each in answers]
        print_columns(names, answers, width, lambda text: click.echo(text, nl=False))
    except GenerationError as error:
        failed = error
    except stops:
        pass
    for each in answers:
        each.interrupt()
    for line in side_by_side(["\n".join(_notes(each)) for each in answers], width):
        click.secho(line, err=True, dim=True)
    if failed is not None:
        raise failed


def _show_in_turn(answers: Sequence[Answer], stops: _Stops) -> None:
    terminal = sys.stdout.isatty()
    for each in answers:
        if len(answers) > 1:
            if each is not answers[0] and terminal:
                click.echo()
            click.secho(f"{harmless(each.speaker.name)}:", bold=True)
        failed = None
        try:
            for piece in each:
                click.echo(visible(piece) if terminal else piece, nl=False)
        except GenerationError as error:
            failed = error
        except stops:
            pass
        each.interrupt()
        if each.interrupted or not (terminal and each.text.endswith("\n")):
            click.echo()
        for note in _notes(each):
            click.secho(note, err=True, dim=True)
        if failed is not None:
            raise failed


def _notes(answer: Answer) -> Iterator[str]:
    """Yield what an answer took, and what its text does not say."""
    yield _what_it_took(answer)
    if answer.interrupted and answer.text:
        yield "Stopped. The text so far is kept; /regenerate asks again."
    elif answer.interrupted:
        yield "Stopped before anything was generated."
    elif answer.filled_context:
        yield "Cut off: the context of the model is full. /clear begins anew; /save FILE keeps it."
    elif answer.is_cut_off:
        yield f"Cut off: /set max_new_tokens {2 * answer.most} allows more."
    elif not answer.text:
        yield "Nothing was generated: the model ended the text at once."
    if answer.text and answer.text == answer.previous:
        yield "The same answer again; with /set temperature 0.8 there are others."


def _what_it_took(answer: Answer) -> str:
    tokens, first = len(answer.stream.tokens), answer.first_seconds
    after = None if first is None else answer.seconds - first
    # The token that ends a text is decoded as well.
    decoded = tokens - answer.first_tokens + (answer.stream.finish_reason == "eos_token")
    parts = []
    if tokens:
        parts.append(f"{tokens:,} token{'s' if tokens > 1 else ''}")
    if tokens and decoded and after:
        parts.append(f"{number(decoded / after)} tokens/s")
    if first is not None:
        parts.append(f"first after {seconds(first)}")
    if not tokens:
        # An engine that chooses tokens itself does not say how many.
        parts.append(f"{seconds(answer.seconds)} in all")
    if prompt := len(answer.stream.prompt.tokens):
        limit = answer.speaker.engine.context_length
        holds = f" of {limit:,}" if limit is not None else ""
        parts.append(f"context {prompt + tokens:,}{holds}")
    return ", ".join(parts)


def _width() -> int:
    """Return how many characters the terminal has in a line; 0 if there is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
