"""`truthgpt serve keys`: API keys of the server."""

from __future__ import annotations

from pathlib import Path

import click

from truthgpt_core.paths import settings_dir


def default_file() -> Path:
    """Return the file that keys are in where none is named."""
    return settings_dir("serve-keys.json")


_file_option = click.option(
    "--file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File with the keys [default: in the settings directory].",
)


@click.group()
def keys() -> None:
    """API keys: who may use the server, and how much.

    Only hashes are stored. A server that runs notices changes within a second.
    """


@keys.command()
@click.argument("name")
@click.option("--tokens-per-minute", type=click.IntRange(min=1), help="Of prompts and answers.")
@click.option("--requests-per-minute", type=click.IntRange(min=1))
@click.option("--metrics", is_flag=True, help="A key for /metrics, and for nothing else.")
@_file_option
def add(
    name: str,
    tokens_per_minute: int | None,
    requests_per_minute: int | None,
    metrics: bool,
    file: Path | None,
) -> None:
    """Make a key for NAME and print it, this once."""
    from truthgpt_plugin_serve.keys import add_key

    secret = add_key(
        file or default_file(),
        name,
        scope="metrics" if metrics else "api",
        tokens_per_minute=tokens_per_minute,
        requests_per_minute=requests_per_minute,
    )
    click.echo(secret)


@keys.command(name="list")
@_file_option
def list_keys(file: Path | None) -> None:
    """Print the names of keys, and what each may use."""
    from truthgpt_plugin_serve.keys import read_keys

    for key in read_keys(file or default_file()):
        limits = [
            f"{limit} {what} a minute"
            for limit, what in (
                (key.tokens_per_minute, "tokens"),
                (key.requests_per_minute, "requests"),
            )
            if limit is not None
        ]
        click.echo("  ".join([key.name, key.scope, key.created, ", ".join(limits) or "no limits"]))


@keys.command()
@click.argument("name")
@_file_option
def revoke(name: str, file: Path | None) -> None:
    """Let the key of NAME open nothing any more."""
    from truthgpt_plugin_serve.keys import revoke_key

    revoke_key(file or default_file(), name)
    click.echo(f"The key of {name} is revoked")
