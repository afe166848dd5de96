"""`truthgpt train`: from a configuration to a trained model."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from truthgpt_core.errors import TruthGPTError

if TYPE_CHECKING:
    from truthgpt_services.training.assemble import Assembled
    from truthgpt_services.training.checkpoints import Found


@click.command(short_help="Train or fine-tune a model, as a YAML file says.")
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--resume", is_flag=True, help="Go on from the newest whole checkpoint.")
@click.option(
    "--set",
    "-s",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Set a value, written as in YAML; may be repeated, the later goes before the earlier.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...")
def train(config: Path, resume: bool, overrides: tuple[str, ...], device: str) -> None:
    """Train or fine-tune a model, as the YAML file CONFIG says.

    Its output_dir gets checkpoints, metrics.jsonl, loss.svg and, in the end, the trained
    model as the directory "model", which every other command takes. SIGTERM and Ctrl-C save a
    checkpoint and leave; Ctrl-C twice leaves at once. --resume goes on after anything.

    \b
      truthgpt train examples/train.yaml
      truthgpt train examples/train.yaml --resume
      truthgpt train examples/train.yaml --set training.learning_rate=1e-4
    """  # noqa: D301 - click wants the character, not its escape
    from truthgpt_services.training.errors import TrainingInterrupted

    try:
        _train(config, resume, overrides, device)
    except TrainingInterrupted as interrupted:
        again = ["truthgpt", *sys.argv[1:], *([] if resume else ["--resume"])]
        click.echo(f"truthgpt: {interrupted.message}", err=True)
        if interrupted.checkpoint is not None:
            click.echo(f"To go on: {' '.join(again)}", err=True)
        click.get_current_context().exit(128 + interrupted.number)
    except KeyboardInterrupt:
        # At once: not even a checkpoint that is being written is waited for.
        click.echo("truthgpt: left at once; what was saved before is whole", err=True)
        sys.stdout.flush()
        os._exit(130)


def _train(path: Path, resume: bool, overrides: tuple[str, ...], device: str) -> None:
    from truthgpt_core.config import ConfigManager
    from truthgpt_core.event_system import get_event_emitter
    from truthgpt_core.plugin_system import get_plugin_manager
    from truthgpt_services.commands.progress import shown_progress
    from truthgpt_services.training.assemble import assemble, save_trained
    from truthgpt_services.training.signals import StopSignals
    from truthgpt_services.training.watching import (
        MetricsFile,
        ProgressLine,
        TensorBoardLog,
        sample,
    )

    plugins = get_plugin_manager()
    plugins.activate_all()
    config = ConfigManager.load_config(path, overrides)
    output = Path(config.output_dir)
    _refuse_to_mix(output, resume)
    with StopSignals() as signals, shown_progress() as progress:
        signals.leave_at_once(True)
        assembled = assemble(config, plugins, device=device, progress=progress)
        service = assembled.service
        found = service.resume() if resume else None
    _tell_found(found, resume)
    emitter = get_event_emitter()
    run_device = next(assembled.model.parameters()).device
    listeners: list[Any] = [
        MetricsFile(output / "metrics.jsonl", after=service.progress.step, emitter=emitter),
        TensorBoardLog(output / "tensorboard", emitter),
        ProgressLine(emitter, assembled.total_steps, run_device),
    ]

    def show_samples() -> None:
        prompts, tokens = config.training.sample_prompts, config.training.sample_tokens
        for text in sample(assembled.model, assembled.tokenizer, prompts, tokens):
            click.echo(f"  | {' '.join(text.split())}")

    try:
        metrics = service.run(on_evaluated=show_samples)
    finally:
        for listener in listeners:
            listener.close()
        _draw(output)
    save_trained(
        assembled.model, assembled.tokenizer, output / "model", source=config.model.name_or_path
    )
    _show_result(assembled, metrics, output)


def _refuse_to_mix(output: Path, resume: bool) -> None:
    from truthgpt_services.training.checkpoints import CheckpointStore

    if not resume and CheckpointStore(output / "checkpoints").all():
        raise TruthGPTError(
            f"{output} has the checkpoints of another run",
            hint="Add --resume to go on with it, or --set output_dir=DIR to begin another.",
        )


def _tell_found(found: Found | None, resume: bool) -> None:
    for skipped in found.skipped if found is not None else ():
        click.echo(f"truthgpt: passed over {skipped.path}: {skipped.reason}", err=True)
    if found is not None and found.path is not None:
        click.echo(f"Going on from {found.path}", err=True)
    elif resume:
        click.echo("There is no checkpoint yet: training begins at the beginning", err=True)


def _draw(output: Path) -> None:
    from truthgpt_services.training.loss_plot import loss_plot
    from truthgpt_services.training.watching import read_metrics

    (output / "loss.svg").write_text(
        loss_plot(read_metrics(output / "metrics.jsonl")), encoding="utf-8"
    )


def _show_result(assembled: Assembled, metrics: dict[str, float], output: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from truthgpt_services.report.formatting import number
    from truthgpt_services.training.watching import read_metrics

    rows = [row for row in read_metrics(output / "metrics.jsonl") if row["kind"] == "evaluation"]
    table = Table(title="Training")
    table.add_column("")
    table.add_column("first", justify="right")
    table.add_column("last", justify="right")
    for name, key in (("validation loss", "loss"), ("validation perplexity", "perplexity")):
        if rows and rows[0].get(key) is not None and rows[-1].get(key) is not None:
            table.add_row(name, number(rows[0][key], 4), number(rows[-1][key], 4))
    if "loss" in metrics:
        table.add_row("training loss of the last epoch", "", number(metrics["loss"], 4))
    table.add_row("steps", "", number(metrics["step"]))
    table.add_row("tokens", "", number(metrics["tokens"]))
    Console().print(table)
    click.echo(f"The model is in {output / 'model'}")
