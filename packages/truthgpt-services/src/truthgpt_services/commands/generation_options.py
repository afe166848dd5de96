"""Options of the commands that generate text: how tokens are chosen, and what runs the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from truthgpt_core.decoding import GenerationError, SamplingParams
from truthgpt_services.commands.values import named_values

Command = TypeVar("Command", bound=Callable[..., Any])

_SEEDS = click.IntRange(-(2**63), 2**64 - 1)


class _Number(click.FloatRange):
    """A number in a range that is one: NaN is below and above nothing."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the number."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def sampling_options(max_new_tokens: str) -> Callable[[Command], Command]:
    """Give a command the options that say how tokens are chosen.

    Args:
        max_new_tokens: what its help says of how long a text is by default.
    """
    return _together(
        click.option(
            "--stop", metavar="TEXT", multiple=True, help="End before TEXT; can be repeated."
        ),
        click.option(
            "--max-new-tokens",
            type=click.IntRange(min=1),
            help=f"At most [default: {max_new_tokens}].",
        ),
        click.option("--min-new-tokens", type=click.IntRange(min=0), help="At least [default: 0]."),
        click.option(
            "--temperature",
            type=_Number(min=0),
            help="0: the likeliest token [default: the model's, else 0].",
        ),
        click.option(
            "--top-k",
            type=click.IntRange(min=0),
            help="0: all tokens [default: the model's, else 0].",
        ),
        click.option(
            "--top-p",
            type=_Number(min=0, max=1, min_open=True),
            help="The likeliest tokens with this probability [default: the model's, else 1].",
        ),
        click.option(
            "--min-p",
            type=_Number(min=0, max=1),
            help="Tokens this times as probable as the likeliest [default: the model's, else 0].",
        ),
        click.option(
            "--repetition-penalty",
            type=_Number(min=0.001, max=1000),
            help="Divides logits of tokens in prompt and answer [default: the model's, else 1].",
        ),
        click.option(
            "--presence-penalty",
            type=_Number(min=-2, max=2),
            help="Subtracted for tokens in the answer [default: 0].",
        ),
        click.option(
            "--frequency-penalty",
            type=_Number(min=-2, max=2),
            help="Subtracted each time a token is in the answer [default: 0].",
        ),
        click.option(
            "--logit-bias",
            metavar="ID=NUMBER",
            multiple=True,
            help="Added to the logit of a token, -100 to 100; can be repeated.",
        ),
        click.option("--seed", type=_SEEDS, help="Of the random choice [default: 0]."),
    )


def model_options(command: Command) -> Command:
    """Give a command the options that say where a model runs, and with what."""
    return _together(
        click.option(
            "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ..."
        ),
        click.option("--engine", help="What runs the model: torch, native, ... [default: any]."),
    )(command)


def engine_options(command: Command) -> Command:
    """Give a command the options that say what runs the model."""
    return _together(
        click.option(
            "--option",
            "-o",
            "others",
            metavar="NAME=VALUE",
            multiple=True,
            help="An option of a plugin's engine, decoder or logits processor; can be repeated.",
        ),
        model_options,
    )(command)


def given_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were given, as the inference service takes them.

    Others are left to the model and to the service.

    Args:
        options: those of `sampling_options`, and further ones of `SamplingParams`, by name; None
            for what was not given.

    Raises:
        click.UsageError: one is wrong, or two do not go together.
    """
    if "" in options["stop"]:
        raise click.UsageError("--stop is empty.")
    biases: dict[int, float] = {}
    for text in options["logit_bias"]:
        token, _, number = text.partition("=")
        try:
            biases[int(token)] = float(number)
        except ValueError:
            raise click.UsageError(f"--logit-bias {text:.60}: it must be ID=NUMBER.") from None
    found = {**options, "logit_bias": biases or None, "stop": list(options["stop"]) or None}
    found = {name: value for name, value in found.items() if value is not None}
    try:
        SamplingParams(**found)
    except GenerationError as error:
        raise click.UsageError(str(error)) from None
    return found


def other_options(others: tuple[str, ...], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was given with `--option`, by name.

    Args:
        others: as click passes it on.
        options: those that have a click option of their own.

    Raises:
        click.UsageError: one of them has an option of its own, or is not NAME=VALUE.
    """
    given = named_values(others)
    if named := sorted(given.keys() & options.keys()):
        name = named[0]
        raise click.UsageError(f"--option {name}: write --{name.replace('_', '-')} instead.")
    return given


def _together(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        # Those above are applied last, and click lists them first.
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate
