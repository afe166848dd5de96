"""Configuration: YAML files, overrides and environment into typed, validated sections.

`ConfigManager.load_config` reads training configurations, to which plugins add sections with
`register_section`. `load_yaml_model` reads any other file into a pydantic model of its own.
Nothing in a file names code to import.

Importing this package costs pydantic's import; the rest of the core does without it.
"""

from truthgpt_core.config.components import ComponentName
from truthgpt_core.config.errors import MAX_PROBLEMS, ConfigError, Origin, Problem
from truthgpt_core.config.loader import (
    LoadedYaml,
    ResolvedRow,
    load_located,
    load_yaml_model,
)
from truthgpt_core.config.manager import (
    ConfigManager,
    json_schema,
    plain_config,
    render_resolved,
)
from truthgpt_core.config.overrides import ENVIRONMENT_PREFIX
from truthgpt_core.config.sections import (
    ConfigSections,
    CoreConfig,
    DataSection,
    ModelSection,
    Section,
    TrainingSection,
    config_model,
    get_config_sections,
)
from truthgpt_core.config.values import DTYPE_ALIASES, Dtype, Fraction, dtype_name, fraction
from truthgpt_core.config.yaml_nodes import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_INTEGER_CHARACTERS,
    MAX_NODES,
)

__all__ = [
    "DTYPE_ALIASES",
    "ENVIRONMENT_PREFIX",
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_INTEGER_CHARACTERS",
    "MAX_NODES",
    "MAX_PROBLEMS",
    "ComponentName",
    "ConfigError",
    "ConfigManager",
    "ConfigSections",
    "CoreConfig",
    "DataSection",
    "Dtype",
    "Fraction",
    "LoadedYaml",
    "ModelSection",
    "Origin",
    "Problem",
    "ResolvedRow",
    "Section",
    "TrainingSection",
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
