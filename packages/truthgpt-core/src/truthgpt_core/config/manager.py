"""ConfigManager: a training configuration, typed, that knows where its values come from."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from pydantic import BaseModel

from truthgpt_core.config.components import Factories, lookup_in
from truthgpt_core.config.errors import comes_with, suggest
from truthgpt_core.config.json_schema import file_schema
from truthgpt_core.config.loader import LoadedYaml, ResolvedRow, load_located
from truthgpt_core.config.sections import (
    ConfigSections,
    CoreConfig,
    config_model,
    get_config_sections,
)

_UNKNOWN_SECTION = "If a plugin defines it, that plugin is not installed or not active."

KNOWN_SECTIONS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("architecture", "data", "lora", "model", "training"), "truthgpt-services"),
    **{name: f"truthgpt-plugin-{name}" for name in ("mlflow", "tensorboard", "trackio", "wandb")},
}
"""Sections that are known to exist, and the distributions that have them; for hints only."""


class ConfigManager:
    """A loaded training configuration; its sections are its attributes.

    They are those that are registered in the `ConfigSections` that it was loaded with, under
    the same names.

    Args:
        loaded: what was read; use `load_config` to read it.
    """

    def __init__(self, loaded: LoadedYaml[CoreConfig]) -> None:
        self._loaded = loaded

    @classmethod
    def load_config(
        cls,
        path: str | os.PathLike[str],
        overrides: Sequence[str] = (),
        *,
        environment: Mapping[str, str] | None = None,
        factories: Factories | None = None,
        sections: ConfigSections | None = None,
    ) -> ConfigManager:
        """Read a training configuration.

        Priority, from the lowest: defaults, the file, variables named
        `TRUTHGPT_CONFIG__section__key`, `overrides`.

        Args:
            path: the YAML file.
            overrides: `section.key=value` texts with YAML values, the later over the earlier.
            environment: the variables; those of the process unless given.
            factories: what names of components, such as `training.scheduler`, are checked
                against: `PluginManager.factories`. None for those that are published, which are
                those of `get_plugin_manager()`. Where nothing is registered, any name passes.
            sections: the sections that the file may have: `PluginManager.sections`. None for
                those of `get_config_sections()`.

        Returns:
            The configuration.

        Raises:
            ConfigError: all that is wrong, with `file:line:column` for each.
        """
        return cls(
            load_located(
                path,
                config_model(sections or get_config_sections()),
                overrides,
                os.environ if environment is None else environment,
                factories=factories,
                section_hint=_section_hint,
            )
        )

    @property
    def output_dir(self) -> str:
        """The directory for checkpoints and metrics, as it was written."""
        return self._loaded.value.output_dir

    @property
    def seed(self) -> int:
        """What all random number generators start from."""
        return self._loaded.value.seed

    def origin(self, path: str) -> str:
        """Return where the value at a dotted path comes from.

        Args:
            path: such as `training.learning_rate`.

        Returns:
            `file:line:column`, `environment NAME`, `override N` (from 1) or `default`.

        Raises:
            TruthGPTError: there is no such key.
        """
        return self._loaded.origin(path)

    def __getattr__(self, name: str) -> Any:
        # Only what is not an attribute otherwise comes here: the sections.
        if not name.startswith("_"):
            names = type(self._loaded.value).model_fields
            if name in names:
                return getattr(self._loaded.value, name)
            hint = _section_hint(name, suggest(name, names))
            raise AttributeError(f'the configuration has no section "{name}". {hint}')
        raise AttributeError(name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *type(self._loaded.value).model_fields})

    def __repr__(self) -> str:
        return f"<ConfigManager {self._loaded.root.origin.source}>"


def plain_config(config: ConfigManager) -> dict[str, Any]:
    """Return all values in force as plain JSON: mappings, lists, texts, numbers, None.

    Args:
        config: what `ConfigManager.load_config` returned.
    """
    return config._loaded.value.model_dump(mode="json")


def render_resolved(config: ConfigManager | LoadedYaml[Any]) -> Iterator[ResolvedRow]:
    """Yield every value in force with its dotted path and its origin, in the order of the model.

    Args:
        config: what `ConfigManager.load_config` or `load_located` returned.
    """
    loaded = config._loaded if isinstance(config, ConfigManager) else config
    return loaded.rows()


def json_schema(
    model: type[BaseModel] | None = None,
    *,
    factories: Factories | None = None,
    sections: ConfigSections | None = None,
) -> dict[str, Any]:
    """Return the JSON Schema of a configuration file, for editors.

    Args:
        model: the type of the file; training configurations unless given.
        factories: where names of components are looked up, as for `ConfigManager.load_config`;
            those that are registered are the only ones that the schema allows.
        sections: those of training configurations, as for `ConfigManager.load_config`.

    Returns:
        A schema of draft 2020-12, as plain dicts.
    """
    model = model or config_model(sections or get_config_sections())
    return file_schema(model, lookup_in(factories))


def _section_hint(name: str, suggestion: str | None) -> str:
    """Return what to do about a section that no plugin has registered."""
    if name in KNOWN_SECTIONS:
        return comes_with(KNOWN_SECTIONS[name])
    return f"{suggestion} {_UNKNOWN_SECTION}" if suggestion else _UNKNOWN_SECTION
