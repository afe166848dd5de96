"""`truthgpt batch`: a file of prompts of any size into a file of answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from truthgpt_core.cli.terminal import say
from truthgpt_core.errors import TruthGPTError
from truthgpt_core.paths import display_path
from truthgpt_services.commands.generation_options import (
    given_options,
    model_options,
    other_options,
    sampling_options,
)


@click.command(short_help="Generate an answer to each prompt of a file; resumable.")
@click.argument("model")
@click.argument("prompts", type=click.Path(path_type=Path))
@click.option(
    "--output",
    "-o",
    required=True,
    type=click.Path(path_type=Path),
    help="The file to write, one JSON line for each prompt, in their order.",
)
@click.option("--system", metavar="TEXT", help="A system message where a record has none.")
@click.option("--raw", is_flag=True, help="Continue texts as they are: no chat template.")
@sampling_options("128")
@click.option(
    "--option",
    "others",
    metavar="NAME=VALUE",
    multiple=True,
    help="Another generation option, or one of a plugin; can be repeated.",
)
@click.option(
    "--max-batch-size",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Texts that are generated at once.",
)
@model_options
@click.option(
    "--on",
    metavar="CLUSTER",
    help="Generate on a cluster of a plugin, such as ray, or ray:OPTION=VALUE,...",
)
@click.option(
    "--replicas",
    type=click.IntRange(min=1),
    help="Processes of the cluster, each with a model of its own [default: 1].",
)
@click.option("--overwrite", is_flag=True, help="Replace the output, if there is one.")
@click.option("--fail-fast", is_flag=True, help="End at the first record that has no answer.")
def batch(
    model: str,
    prompts: Path,
    output: Path,
    system: str | None,
    raw: bool,
    others: tuple[str, ...],
    max_batch_size: int,
    device: str,
    engine: str | None,
    on: str | None,
    replicas: int | None,
    overwrite: bool,
    fail_fast: bool,
    **options: Any,
) -> None:
    """Generate an answer with MODEL to each record of PROMPTS, a file of JSON Lines.

    A record is {"prompt": "..."} or {"messages": [...]}, with an "id" and with "options" of its own
    if wanted. All lines are checked before anything is generated. After an interruption, the same
    command goes on where it was.

    \b
      truthgpt batch build/demo prompts.jsonl -o answers.jsonl
      truthgpt batch build/demo prompts.jsonl -o answers.jsonl --temperature 0.7 --top-k 40
    """  # noqa: D301 - click wants the character, not its escape
    from truthgpt_core.application import get_application
    from truthgpt_core.cluster import Replicas, make_cluster
    from truthgpt_core.decoding import SAMPLING_OPTIONS, SamplingParams
    from truthgpt_services.commands.progress import display_progress
    from truthgpt_services.data.prompt_records import refuse_options
    from truthgpt_services.services.batch_job import BatchRequest, run_batch

    if raw and system is not None:
        raise click.UsageError("--system is part of a conversation, and --raw has none.")
    if replicas is not None and on is None:
        raise click.UsageError("--replicas needs --on, which says where they are.")
    given = other_options(others, options)
    chosen = given_options(options)
    chosen |= {name: given.pop(name) for name in SAMPLING_OPTIONS if name in given}
    try:
        refuse_options(chosen)
        SamplingParams(**chosen)
    except TruthGPTError as error:
        raise click.UsageError(str(error)) from None
    request = BatchRequest(
        model=model,
        prompts=prompts,
        output=output,
        options=chosen,
        given=given,
        system=system,
        raw=raw,
        device=device,
        engine=engine,
        max_batch_size=max_batch_size,
        overwrite=overwrite,
        fail_fast=fail_fast,
    )
    cluster = None
    if on is not None:
        plugins = get_application().plugins
        plugins.activate_all()
        cluster = make_cluster(on, plugins.factories["cluster_factory"])
    count = Replicas(least=replicas or 1, most=replicas or 1)
    try:
        with display_progress() as progress:
            result = run_batch(request, cluster=cluster, replicas=count, progress=progress)
    except KeyboardInterrupt:
        say("truthgpt: What is done is kept: the same command goes on.", err=True)
        raise
    say(f"Wrote {display_path(output)}: {_summary(result)}")
    if result.failed:
        raise TruthGPTError(
            f"{result.failed:,} of {result.records:,} records have no answer",
            hint=f'In {display_path(output)} they have an "error".',
        )


def _summary(result: Any) -> str:
    parts = [f"{result.records:,} records"]
    if result.kept:
        parts.append(f"{result.kept:,} of them from before")
    if result.seconds > 0:
        done = result.records - result.kept
        parts.append(f"{done / result.seconds:.3g} records/s")
        parts.append(f"{result.tokens / result.seconds:.3g} tokens/s")
    return ", ".join(parts)
