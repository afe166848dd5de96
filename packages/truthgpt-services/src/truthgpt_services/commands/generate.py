"""`truthgpt generate`: text from a model, streamed."""

from __future__ import annotations

import click


@click.command(short_help="Generate text with a model, streamed as it is made.")
@click.argument("model")
@click.argument("prompt")
@click.option("--max-new-tokens", type=int, default=128, show_default=True, help="At most.")
@click.option(
    "--temperature", type=float, default=0.0, show_default=True, help="0: the likeliest token."
)
@click.option("--top-k", type=int, default=0, show_default=True, help="0: all tokens.")
@click.option("--top-p", type=float, default=1.0, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...")
def generate(model: str, prompt: str, device: str, **options: float) -> None:
    """Continue PROMPT with MODEL, which may be one that `truthgpt optimize` made.

    \b
      truthgpt generate build/demo "The future of AI is"
    """  # noqa: D301 - click wants the character, not its escape
    from truthgpt_services.commands.progress import shown_progress
    from truthgpt_services.importing import importing

    with importing():
        from truthgpt_services.inference.service import InferenceService
        from truthgpt_services.models.service import ModelService

    with shown_progress() as progress:
        progress("Loading the model", 0, 0)
        models = ModelService(progress=progress)
        loaded = models.load_model(model, {"device": device})
        tokenizer = models.load_tokenizer(model)
    service = InferenceService()
    service.configure(loaded, tokenizer)
    click.echo(prompt, nl=False)
    for piece in service.stream(prompt, options):
        click.echo(piece, nl=False)
    click.echo()
