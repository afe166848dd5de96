"""`truthgpt demo`: a page that asks two models the same question."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="Ask two models the same question, in the browser.")
@click.argument("models", nargs=-1, required=True, metavar="[BASE] OPTIMIZED...")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to serve at.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=7860,
    show_default=True,
    help="0: one that is free.",
)
@click.option("--engine", help="What runs the models: torch, native, ... [default: any].")
@click.option(
    "--run-dir",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Draw the losses of this run of `truthgpt train` [default: that of a model].",
)
def demo(
    models: tuple[str, ...], host: str, port: int, engine: str | None, run_dir: Path | None
) -> None:
    """Serve a page that asks BASE and OPTIMIZED the same question.

    Both answers stream side by side, with their speed, their time to the first token and their
    memory, and the report of OPTIMIZED is beneath. BASE is the model that OPTIMIZED was made from,
    if it is not given. Of several models, the page lets you choose two. They are all loaded.

    The page is served to this machine alone, unless --host says otherwise. There is no password.

    \b
      truthgpt demo build/demo
      truthgpt demo MODEL build/int8 build/int4 --port 8000
    """  # noqa: D301 - click wants the character, not its escape
    from truthgpt_services.importing import importing

    with importing():
        from truthgpt_plugin_gradio.models import find_run, load_models
        from truthgpt_plugin_gradio.server import LOCAL_HOSTS, listening, make_app, serve
        from truthgpt_services.commands.progress import display_progress

    if run_dir is not None:
        find_run([], run_dir)
    with listening(host, port) as where:
        with display_progress() as progress:
            loaded = load_models(models, engine=engine, progress=progress)
        hosts = LOCAL_HOSTS if host in LOCAL_HOSTS else ["*"]
        serve(make_app(loaded, find_run(loaded, run_dir), hosts=hosts), where)
