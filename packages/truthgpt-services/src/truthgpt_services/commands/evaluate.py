"""`truthgpt eval`: one model measured alone."""

from __future__ import annotations

import sys
from contextlib import nullcontext, redirect_stdout
from typing import Any

import click

from truthgpt_services.commands.values import metric_option


@click.command(
    name="eval", short_help="Measure one model: speed, memory and how well it predicts a text."
)
@click.argument("model")
@click.option("--text", help="Text file to measure quality on [default: Python's own help topics].")
@click.option("--device", help="Where to run: auto (default), cpu, cuda, cuda:1, ...")
@click.option("--engine", help="What runs the model: torch, native, ... [default: any].")
@click.option("--dtype", help="dtype of the weights: auto (as stored, the default), bfloat16, ...")
@click.option(
    "--context",
    type=int,
    help="Tokens of the prompt that is timed, and after which decoding is [default: 128].",
)
@click.option("--rounds", type=int, help="How many times it is timed in each launch.")
@click.option("--launches", type=int, help="How many processes time it, one after the other.")
@click.option("--quick", is_flag=True, default=None, help="Measure less, in a single launch.")
@click.option(
    "--step-timeout",
    type=float,
    help="Seconds that loading or one run of a model may take before it has failed "
    "[default: 7200].",
)
@metric_option
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON, and nothing else.")
def evaluate(model: str, as_json: bool, **given: Any) -> None:
    """Measure MODEL as it is, as `truthgpt optimize` measures its baseline.

    MODEL is a directory, one that `truthgpt optimize` made included, a .gguf file,
    package:PACKAGE/FILE or a hub id.

    \b
      truthgpt eval MODEL
      truthgpt eval MODEL --json > before.json
    """  # noqa: D301 - click wants the character, not its escape
    from truthgpt_core.application import get_application
    from truthgpt_services.commands.progress import display_progress
    from truthgpt_services.optimizing.evaluate_one import evaluate as run
    from truthgpt_services.optimizing.request import read_measuring

    overrides = {name: value for name, value in given.items() if value not in (None, ())}
    request = read_measuring({"model": model, **overrides})
    # What a plugin prints is not part of the JSON.
    redirection = redirect_stdout(sys.stderr) if as_json else nullcontext()
    with redirection, display_progress() as progress:
        report = run(
            request,
            get_application().plugins,
            command=["truthgpt", *sys.argv[1:]],
            progress=progress,
        )
    if as_json:
        from truthgpt_services.results.io import report_json

        click.echo(report_json(report), nl=False)
        return
    from rich.console import Console

    from truthgpt_services.report.tables import print_evaluation

    print_evaluation(report, Console())
