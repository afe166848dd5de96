"""What `truthgpt` activates; it imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from truthgpt_core.hookspecs import hookimpl
from truthgpt_core.plugin_system import Plugin

if TYPE_CHECKING:
    from truthgpt_core.dynamic_factory import DynamicFactory

_CLUSTER = "truthgpt_plugin_ray.cluster:RayCluster"


class RayPlugin(Plugin):
    """Brings the cluster `ray`."""

    @property
    def name(self) -> str:
        """Its name."""
        return "ray"

    @property
    def version(self) -> str:
        """The version of its distribution."""
        return version("truthgpt-plugin-ray")

    @hookimpl
    def register_components(self, factories: Mapping[str, DynamicFactory[Any]]) -> None:
        """Register the cluster, which is imported when `--on ray` asks for it."""
        factories["cluster_factory"].register_lazy(
            "ray",
            partial(resolve_name, _CLUSTER),
            describe=_CLUSTER.replace(":", "."),
            target=_CLUSTER,
        )
