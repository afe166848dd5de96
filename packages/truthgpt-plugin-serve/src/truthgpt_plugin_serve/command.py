"""`truthgpt serve`: models behind OpenAI's protocol."""

from __future__ import annotations

import ipaddress
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from truthgpt_core.cluster import Replicas
from truthgpt_core.errors import UsageError
from truthgpt_plugin_serve.errors import ServeError
from truthgpt_plugin_serve.key_commands import default_file, keys
from truthgpt_plugin_serve.settings import Settings
from truthgpt_services.commands.generation_options import model_options
from truthgpt_services.commands.values import named_values

if TYPE_CHECKING:
    from collections.abc import Mapping

    from truthgpt_plugin_serve.served_model import ServedModel

_DEFAULTS = Settings()


class _Serve(click.Command):
    """A command with a group beside its arguments: `truthgpt serve keys`."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> click.Context:
        if args[:1] == ["keys"]:
            return keys.make_context(f"{info_name} keys", args[1:], parent=parent, **extra)
        return super().make_context(info_name, args, parent=parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        return super().invoke(ctx) if ctx.command is self else ctx.command.invoke(ctx)


@click.command(cls=_Serve, short_help="Serve models to clients of OpenAI's protocol.")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@model_options
@click.option(
    "--option",
    "-o",
    "others",
    metavar="NAME=VALUE",
    multiple=True,
    help="An option of a plugin's engine; can be repeated.",
)
@click.option(
    "--max-batch-size",
    type=click.IntRange(min=1),
    default=_DEFAULTS.max_batch_size,
    show_default=True,
    help="Texts that each model generates at once.",
)
@click.option(
    "--max-waiting",
    type=click.IntRange(min=0),
    default=_DEFAULTS.max_waiting,
    show_default=True,
    help="Further texts that may wait; more get 429.",
)
@click.option(
    "--prefix-cache-tokens",
    type=click.IntRange(min=0),
    default=_DEFAULTS.prefix_cache_tokens,
    show_default=True,
    help="Tokens kept of texts that ended, for prompts that begin alike.",
)
@click.option(
    "--response-cache",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep answers here, and give them again [default: no].",
)
@click.option(
    "--default-max-tokens",
    type=click.IntRange(min=1),
    default=_DEFAULTS.default_max_tokens,
    show_default=True,
    help="Of an answer in a chat, where the client does not say.",
)
@click.option(
    "--request-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=_DEFAULTS.request_timeout,
    show_default=True,
    help="Seconds after which a request fails.",
)
@click.option(
    "--send-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=_DEFAULTS.send_timeout,
    show_default=True,
    help="Seconds after which a client that takes nothing of its answer is given up.",
)
@click.option(
    "--keys",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File with API keys [default: that of truthgpt serve keys, if there is one].",
)
@click.option("--insecure", is_flag=True, help="Listen at another address without API keys.")
@click.option(
    "--drain-timeout",
    type=click.FloatRange(min=0),
    default=_DEFAULTS.drain_timeout,
    show_default=True,
    help="Seconds for answers to end after SIGTERM.",
)
@click.option("--no-check", is_flag=True, help="Do not compare the models with their reports.")
@click.option("--log-prompts", is_flag=True, help="Write prompts and answers into the log.")
@click.option("--on", "cluster", metavar="CLUSTER", help="Serve with a cluster: ray, ...")
@click.option(
    "--replicas", type=click.IntRange(min=1), default=1, help="Processes of the cluster, at least."
)
@click.option(
    "--max-replicas", type=click.IntRange(min=1), help="At most, under load [default: --replicas]."
)
def serve(
    models: tuple[str, ...],
    host: str,
    port: int,
    others: tuple[str, ...],
    insecure: bool,
    no_check: bool,
    cluster: str | None,
    replicas: int,
    max_replicas: int | None,
    **given: Any,
) -> None:
    """Serve each MODEL, or NAME=MODEL, at http://127.0.0.1:8000/v1.

    Clients of OpenAI's protocol work with it: /v1/chat/completions, /v1/completions,
    /v1/responses, /v1/models. Before a model that truthgpt optimize saved answers requests, it is
    compared with its report. The log is JSON, on standard output.

    \b
      truthgpt serve build/demo
      truthgpt serve small=build/demo large=Qwen/Qwen3-4B --engine native
      truthgpt serve build/demo --on ray --replicas 2
      truthgpt serve keys add alice
    """  # noqa: D301 - click wants the character, not its escape
    if given["keys"] is None and default_file().exists():
        given["keys"] = default_file()
    if given["keys"] is None and not insecure and not _is_local(host):
        raise UsageError(
            f"Anyone who reaches {host} could use the models",
            hint="Make a key with truthgpt serve keys add NAME, or accept that with --insecure.",
        )
    settings = Settings(given=named_values(others), check=not no_check, any_host=insecure, **given)
    from truthgpt_services.importing import importing

    with importing():
        from truthgpt_plugin_serve.app import Application
        from truthgpt_plugin_serve.keys import KeyRing
        from truthgpt_plugin_serve.logs import log_to_stdout
        from truthgpt_plugin_serve.served_model import split_names
        from truthgpt_plugin_serve.server import Server, bind, raise_file_limit
        from truthgpt_plugin_serve.tracing import tracer_from_environment

    # What can be wrong is found before a model is loaded, which takes long.
    named = split_names(models)
    tracer = tracer_from_environment()
    if settings.keys is not None and not len(KeyRing(settings.keys)):
        named_file = shlex.quote(str(settings.keys))
        raise UsageError(
            f"{settings.keys} has no API keys",
            hint=f"truthgpt serve keys add NAME --file {named_file} makes one.",
        )
    if cluster is not None:
        how = Replicas(least=replicas, most=max_replicas or replicas)
        _serve_on(cluster, how, named, settings, host, port)
        return
    with bind(host, port) as listening:
        served = _load(named, settings)
        log_to_stdout()
        raise_file_limit(4 * settings.max_requests)
        application = Application({each.name: each for each in served}, settings, tracer)
        address = f"[{host}]" if ":" in host else host
        url = f"http://{address}:{listening.getsockname()[1]}/v1"
        names = ", ".join(f"{each.name} ({each.engine.name})" for each in served)
        click.echo(f"Serving {names} at {url}", err=True)
        if settings.keys is not None:
            click.echo(f"API keys are needed: {settings.keys}", err=True)
        server = Server(application, settings, host, port)
        server.run(sockets=[listening])
    if server.failure is not None:
        raise ServeError(
            f"The server stopped: {server.failure}",
            hint="Its log says why. Where it is a service, it is started again.",
        )


def _load(models: Mapping[str, str], settings: Settings) -> list[ServedModel]:
    from truthgpt_plugin_serve.served_model import load_all
    from truthgpt_services.commands.progress import display_progress

    with display_progress() as progress:
        return load_all(models, settings, progress)


def _serve_on(
    cluster: str, replicas: Replicas, models: Mapping[str, str], settings: Settings, *at: Any
) -> None:
    """Serve with the processes of a cluster, until a signal says to stop."""
    import signal
    import threading

    from truthgpt_core.application import get_application
    from truthgpt_core.cluster import make_cluster
    from truthgpt_plugin_serve.replica import MAKE_APP, replica_settings

    application = get_application()
    application.plugins.activate_all()
    chosen = make_cluster(cluster, application.factories["cluster_factory"])
    host, port = at
    stopped = threading.Event()
    made = replica_settings(models, settings)
    with chosen.serve(MAKE_APP, made, host=host, port=port, replicas=replicas) as url:
        # Not before: clusters have handlers of their own, which end the process at once.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopped.set())
        click.echo(f"Serving {', '.join(models)} on {cluster} at {url}/v1", err=True)
        stopped.wait()


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
