"""`truthgpt optimize`: the main job."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from truthgpt_core.cli.terminal import say
from truthgpt_services.commands.values import fraction, metric_option


@click.command(short_help="Make a model faster and smaller, and measure whether it worked.")
@click.argument("model", required=False)
@click.option(
    "--apply",
    "applied",
    multiple=True,
    metavar="NAME[:OPTION=VALUE,...]",
    help="Optimizations, separated by commas; may be repeated. The order does not matter. "
    "NAME:help lists the options of one.",
)
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Directory for the result.")
@click.option("--overwrite", is_flag=True, help="Replace the output, if TruthGPT wrote it.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="YAML file with the same keys; what the command line says goes before it.",
)
@click.option("--device", help="Where to run: auto (default), cpu, cuda, cuda:1, ...")
@click.option("--engine", help="What runs the models: torch, native, ... [default: any].")
@click.option("--dtype", help="dtype of the baseline: auto (as stored, the default), bfloat16, ...")
@click.option("--text", help="Text file to measure quality on [default: Python's own help topics].")
@click.option(
    "--context",
    type=int,
    help="Tokens of the prompt that is timed, and after which decoding is [default: 128].",
)
@click.option("--rounds", type=int, help="How many times the models of a launch take turns.")
@click.option("--launches", type=int, help="Processes of each model before a first decision.")
@click.option("--max-launches", type=int, help="The same at most, while that is undecided.")
@click.option("--budget", type=float, help="Seconds that timing one step may take.")
@click.option(
    "--quick",
    is_flag=True,
    default=None,
    help="Measure so little that no gain in speed is claimed.",
)
@click.option(
    "--step-timeout",
    type=float,
    help="Seconds that making, loading or one run of a model may take before it has failed "
    "[default: 7200].",
)
@click.option("--seed", type=int, help="For whatever is random.")
@click.option("--max-kl", type=float, help="Mean KL divergence a step may cost, nats per token.")
@click.option("--max-perplexity-ratio", type=float, help="Perplexity a step may cost, as a ratio.")
@click.option(
    "--max-flips",
    type=fraction,
    help="Share of tokens that may flip, as 0.01 or 1% [default: any].",
)
@click.option(
    "--min-gain", type=fraction, help="How much faster or smaller it must be, as 0.02 or 2%."
)
@click.option(
    "--max-slowdown",
    type=fraction,
    help="How much slower it may read prompts or decode, beyond noise, as 0.05 or 5%.",
)
@metric_option
@click.option("--gain", help="What counts as a gain: any (default), speed or size.")
@click.option(
    "--keep-all",
    is_flag=True,
    default=None,
    help="Accept every step that can be applied; the report says which would be rejected.",
)
@click.option("--full", is_flag=True, help="Print the whole report and not only what it came to.")
def optimize(
    model: str | None,
    applied: tuple[str, ...],
    output: Path | None,
    overwrite: bool,
    config: Path | None,
    full: bool,
    **given: Any,
) -> None:
    """Make MODEL faster and smaller, and measure whether it worked.

    MODEL is a directory, a .gguf file, package:PACKAGE/FILE or a hub id.

    Each optimization is measured against the model as it was, on this machine. One
    that makes it neither faster nor smaller, or costs too much quality, is rejected.
    What it costs is named beside what it gains. The output directory gets the model,
    report.json and report.html.

    \b
      truthgpt optimize MODEL --apply quantize,compile -o DIR
      truthgpt optimize MODEL --apply quantize:scheme=int8,skip=lm_head -o DIR
    """  # noqa: D301 - click wants the character, not its escape
    from truthgpt_core.application import get_application
    from truthgpt_core.optimization import help_requests
    from truthgpt_core.optimization.option_help import option_lines
    from truthgpt_services.commands.progress import display_progress
    from truthgpt_services.optimizing.pipeline import optimize as run
    from truthgpt_services.optimizing.request import applied_on_command_line, read_request

    if names := help_requests(applied):
        for name in names:
            say("\n".join(option_lines(name, get_application().plugins.optimization_class(name))))
        return
    overrides: dict[str, Any] = {
        name: value for name, value in given.items() if value not in (None, ())
    }
    if model is not None:
        overrides["model"] = model
    if output is not None:
        overrides["output"] = str(output)
    plugins = get_application().plugins
    request = read_request(config, overrides, applied_on_command_line(applied, plugins), plugins)
    with display_progress() as progress:
        report = run(
            request,
            plugins,
            overwrite=overwrite,
            command=["truthgpt", *sys.argv[1:]],
            progress=progress,
            warn=lambda sentence: click.echo(sentence, err=True),
        )
    from rich.console import Console

    from truthgpt_services.report.terminal import print_next, print_report, print_short_report

    assert request.output is not None
    console = Console()
    if full:
        print_report(report, console)
        print_next(report, request.output, console)
    else:
        print_short_report(report, request.output, console)
