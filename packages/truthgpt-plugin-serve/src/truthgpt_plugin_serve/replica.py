"""The application from settings that are JSON, for clusters that make it in many processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truthgpt_core.cluster import same_everywhere
from truthgpt_plugin_serve.settings import Settings

if TYPE_CHECKING:
    from truthgpt_plugin_serve.app import Application

MAKE_APP = f"{__name__}:make_app"
"""What `Cluster.serve` is given."""

_PATHS = ("keys", "response_cache")


def replica_settings(models: Mapping[str, str], settings: Settings) -> dict[str, Any]:
    """Return what `make_app` is called with in each process, in JSON types.

    Paths are absolute: a process of a cluster has a directory of its own.

    Args:
        models: what is served, by name.
        settings: of the server.
    """
    found = asdict(settings)
    for name in _PATHS:
        if (path := getattr(settings, name)) is not None:
            found[name] = str(path.absolute())
    paths = {name: same_everywhere(model) for name, model in models.items()}
    return {"models": paths, "settings": found}


def make_app(given: Mapping[str, Any]) -> Application:
    """Load the models and return the application.

    Args:
        given: what `replica_settings` returned.

    Raises:
        TruthGPTError: a model cannot be loaded.
    """
    from truthgpt_plugin_serve.app import Application
    from truthgpt_plugin_serve.served_model import load_all

    fields = dict(given["settings"])
    for name in _PATHS:
        fields[name] = None if fields[name] is None else Path(fields[name])
    settings = Settings(**fields)
    served = load_all(given["models"], settings, lambda *_: None)
    return Application({each.name: each for each in served}, settings)
