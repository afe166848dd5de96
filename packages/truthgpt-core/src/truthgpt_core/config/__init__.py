"""Configuration: YAML files, overrides and environment into typed, validated sections.

`ConfigManager.load_config` reads training configurations, whose sections plugins register in a
`ConfigSections`. `load_yaml_model` reads any other file into a pydantic model of its own.
Nothing in a file names code to import.

Importing this package costs pydantic's import; the rest of the core does without it.
"""

from truthgpt_core.config.components import ComponentName
from truthgpt_core.config.errors import ConfigError, Origin, Problem
from truthgpt_core.config.loader import LoadedYaml, ResolvedRow, load_located, load_yaml_model
from truthgpt_core.config.manager import (
    ConfigManager,
    json_schema,
    plain_config,
    render_resolved,
)
from truthgpt_core.config.sections import (
    DTYPE_ALIASES,
    ConfigSections,
    Dtype,
    Fraction,
    Section,
    config_model,
    dtype_name,
    fraction,
    get_config_sections,
)

__all__ = [
    "DTYPE_ALIASES",
    "ComponentName",
    "ConfigError",
    "ConfigManager",
    "ConfigSections",
    "Dtype",
    "Fraction",
    "LoadedYaml",
    "Origin",
    "Problem",
    "ResolvedRow",
    "Section",
    "config_model",
    "dtype_name",
    "fraction",
    "get_config_sections",
    "json_schema",
    "load_located",
    "load_yaml_model",
    "plain_config",
    "render_resolved",
]
