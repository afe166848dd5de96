"""`truthgpt train`: from a configuration to a trained model."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from truthgpt_core.cli.terminal import say
from truthgpt_core.errors import TruthGPTError
from truthgpt_core.paths import expanded

if TYPE_CHECKING:
    from truthgpt_core.config import ConfigManager
    from truthgpt_core.event_system import EventEmitter
    from truthgpt_core.training import TrainingBackend
    from truthgpt_services.services.model_service import ModelService
    from truthgpt_services.services.training_job import Assembled, TrainingJob
    from truthgpt_services.training.checkpoints import Found
    from truthgpt_services.training.config_sections import TrainingSection
    from truthgpt_services.training.signals import StopSignals


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

    Its output_dir gets checkpoints, metrics.jsonl, loss.svg and, in the end, the trained model as
    the directory "model", which every other command takes. SIGTERM and Ctrl-C save a checkpoint and
    leave; Ctrl-C twice leaves at once. --resume goes on after anything. `truthgpt config schema`
    has every key of CONFIG.

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
        say(f"truthgpt: {interrupted.message}", err=True)
        if interrupted.checkpoint is not None:
            say(f"To go on: {' '.join(again)}", err=True)
        click.get_current_context().exit(128 + interrupted.number)
    except KeyboardInterrupt:
        # At once: not even a checkpoint that is being written is waited for.
        click.echo("truthgpt: left at once; what was saved before is whole", err=True)
        sys.stdout.flush()
        os._exit(130)


def _train(path: Path, resume: bool, overrides: tuple[str, ...], device: str) -> None:
    from truthgpt_core.application import get_application
    from truthgpt_core.config import ConfigManager
    from truthgpt_services.importing import importing

    application = get_application()
    plugins = application.plugins
    plugins.activate_all()
    config = ConfigManager.load_config(
        path, overrides, factories=plugins.factories, sections=plugins.sections
    )
    with importing():
        job: TrainingJob = application.get_service("training_job")
        from truthgpt_services.training.distributed import choose_backend
    _refuse_to_mix(expanded(config.output_dir), resume)
    with job.training.signals as signals:
        with signals.at_once():
            backend = choose_backend(config.training, plugins)
            assembled = _assemble(config, job, device, backend, signals)
            found = assembled.service.resume() if resume else None
        if backend.is_main:
            signals.say = _say_at_once
            _tell_found(found, resume)
            _tell_run(assembled, config)
        _run(config, assembled, job.models, application.events)
        _save(config, job, assembled, signals)
    backend.close()
    if backend.is_main:
        _show_result(expanded(config.output_dir))


def _assemble(
    config: ConfigManager,
    job: TrainingJob,
    device: str,
    backend: TrainingBackend,
    signals: StopSignals,
) -> Assembled:
    from truthgpt_core.optimization import no_progress
    from truthgpt_services.commands.progress import display_progress

    with display_progress() if backend.is_main else nullcontext(no_progress) as display:

        def progress(what: str, done: int, total: int) -> None:
            signals.heed()
            display(what, done, total)

        return job.assemble(config, device=device, progress=progress, backend=backend)


def _run(
    config: ConfigManager, assembled: Assembled, models: ModelService, emitter: EventEmitter
) -> None:
    from truthgpt_services.formatting import visible
    from truthgpt_services.training.metrics_log import MetricsFile, ProgressLine, sample

    training: TrainingSection = config.training
    output, service, backend = expanded(config.output_dir), assembled.service, assembled.backend
    # Before listeners write there: what is in it may be another run's, under way.
    service.open()
    listeners: list[Any] = []
    if backend.is_main:
        run_device = next(assembled.model.parameters()).device
        step = service.progress.step
        listeners = [
            MetricsFile(output / "metrics.jsonl", after=step, emitter=emitter),
            ProgressLine(emitter, assembled.total_steps, run_device),
        ]

    def show_samples() -> None:
        prompts, tokens = training.sample_prompts, training.sample_tokens
        # By all processes, each of which may hold a part of the model alone.
        texts = sample(assembled.model, models.engine_of, assembled.tokenizer, prompts, tokens)
        for text in texts:
            if backend.is_main:
                click.echo(f"  | {visible(' '.join(text.split()))}")

    # Who evaluates once in an epoch may have texts that take longer than a few steps.
    often = training.eval_steps is not None
    try:
        service.run(on_evaluated=show_samples, first_and_last=often)
    finally:
        for listener in listeners:
            listener.close()
        if backend.is_main:
            _draw(output)


def _save(
    config: ConfigManager, job: TrainingJob, assembled: Assembled, signals: StopSignals
) -> None:
    from truthgpt_services.training.checkpoints import CheckpointStore

    output = expanded(config.output_dir)
    last = CheckpointStore(output / "checkpoints").path_of(assembled.service.progress.step)
    with signals.at_once(saved=last):
        job.save(assembled, output / "model", source=config.model.name_or_path)


def _refuse_to_mix(output: Path, resume: bool) -> None:
    from truthgpt_services.training.checkpoints import CheckpointStore

    if not resume and CheckpointStore(output / "checkpoints").all():
        raise TruthGPTError(
            f"{output} has the checkpoints of another run",
            hint="Add --resume to go on with it, or --set output_dir=DIR to begin another.",
        )


def _tell_found(found: Found | None, resume: bool) -> None:
    for skipped in found.skipped if found is not None else ():
        say(f"truthgpt: passed over {skipped.path}: {skipped.reason}", err=True)
    if found is not None and found.path is not None:
        say(f"Going on from {found.path}", err=True)
    elif resume:
        click.echo("There is no checkpoint yet: training begins at the beginning", err=True)


def _tell_run(assembled: Assembled, config: ConfigManager) -> None:
    from truthgpt_services.training.precision import choose_precision
    from truthgpt_services.training.summary import describe_run

    training: TrainingSection = config.training
    if assembled.data_note is not None:
        click.echo(f"{config.data.dataset}: {assembled.data_note}", err=True)
    device = next(assembled.model.parameters()).device
    lines = describe_run(
        assembled.model,
        assembled.train_loader,
        assembled.val_loader,
        training,
        precision=choose_precision(training.precision, device),
        total_steps=assembled.total_steps,
    )
    for line in lines:
        say(line, err=True)


def _say_at_once(name: str) -> None:
    # Not through a stream, which the signal may have interrupted in the middle of writing.
    os.write(
        2,
        f"\ntruthgpt: {name}: saving after this step; Ctrl-C again leaves at once\n".encode(),
    )


def _draw(output: Path) -> None:
    from truthgpt_services.report.loss_plot import loss_plot
    from truthgpt_services.training.metrics_log import read_metrics

    (output / "loss.svg").write_text(
        loss_plot(read_metrics(output / "metrics.jsonl")), encoding="utf-8"
    )


def _show_result(output: Path) -> None:
    from rich.console import Console

    from truthgpt_services.training.metrics_log import read_metrics
    from truthgpt_services.training.summary import print_result

    print_result(read_metrics(output / "metrics.jsonl"), Console())
    say(f"The model is in {output / 'model'}, a plot of its losses in {output / 'loss.svg'}")
