"""The page that asks two models the same question, and the command `truthgpt demo`.

    with listening("127.0.0.1", 7860) as where:
        serve(make_app(load_models(["build/demo"])), where)

What is here is imported when it is first used: importing this package imports neither gradio nor
torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from truthgpt_plugin_gradio.models import DemoModel, find_run, load_models
    from truthgpt_plugin_gradio.server import listening, make_app, serve

__all__ = ["DemoModel", "find_run", "listening", "load_models", "make_app", "serve"]

_MODULES = {
    "DemoModel": "models",
    "find_run": "models",
    "listening": "server",
    "load_models": "models",
    "make_app": "server",
    "serve": "server",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
