"""The sections of a training configuration, which plugins register, and types for their fields."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PydanticUndefinedAnnotation,
    PydanticUserError,
    ValidationError,
    create_model,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from truthgpt_core.errors import TruthGPTError
from truthgpt_core.transaction import record_undo

# What ConfigManager has besides its sections.
_RESERVED: Final = frozenset({"load_config", "origin"})
# Two underscores in a row divide keys in the names of environment variables.
_SECTION_NAME: Final = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*")


class Section(BaseModel):
    """A base for sections: keys that are not fields are errors, and values do not change."""

    # Plugins name their sections and keys: `model_zoo` is as good a name as any.
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class CoreConfig(Section):
    """What every training configuration holds."""

    output_dir: str = Field(
        default="runs", min_length=1, description="The directory for checkpoints and metrics."
    )
    seed: int = Field(
        default=42, ge=0, lt=2**32, description="What all random number generators start from."
    )


# Compared by identity: the same section may be registered several times.
@dataclass(frozen=True, eq=False, slots=True)
class _Registration:
    model: type[BaseModel]
    required: bool
    has_defaults: bool


class ConfigSections:
    """The sections that a training configuration may have, besides what the core itself reads."""

    def __init__(self) -> None:
        self._registered: dict[str, list[_Registration]] = {}
        self._lock = threading.Lock()

    def register(self, name: str, model: type[BaseModel], *, required: bool = False) -> None:
        """Add a top-level section to the files that `ConfigManager.load_config` reads.

        A file may leave out a section that is not required: its value is then the model's
        defaults, or None if the model cannot be made of defaults alone. The same model may be
        registered under the same name again. Undone with the transaction that is under way
        (see `truthgpt_core.transaction`); what was registered before is in force again then.

        Args:
            name: the key: lower-case letters, digits and single underscores between them.
            model: what the section has to be. Keys it does not name are errors unless its
                `model_config` says `extra="allow"`; `Section` is a base to derive it from.
            required: whether every file has to have the section.

        Raises:
            TruthGPTError: the name is taken, reserved or not a name, or `model` is not a
                pydantic model or an unfinished one.
        """
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            raise TruthGPTError(
                f'the model of the configuration section "{name}" is not a pydantic model'
            )
        if not _SECTION_NAME.fullmatch(name):
            raise TruthGPTError(
                f'"{name}" cannot name a configuration section',
                hint="Use lower-case letters, digits and single underscores.",
            )
        # An attribute of a model would hide the section, or the section it.
        if name in _RESERVED or hasattr(BaseModel, name):
            raise TruthGPTError(f'the name "{name}" is reserved and cannot name a section')
        made = _Registration(model, required, _has_defaults(name, model))
        with self._lock:
            before = self._registered.get(name, [])
            taken = "the core" if name in CoreConfig.model_fields else None
            if before and before[-1].model is not model:
                taken = f"{before[-1].model.__module__}.{before[-1].model.__qualname__}"
            if taken is not None:
                raise TruthGPTError(f'the configuration section "{name}" is taken by {taken}')
            self._registered[name] = [*before, made]
        record_undo(lambda: self._withdraw(name, made))

    def _withdraw(self, name: str, made: _Registration) -> None:
        with self._lock:
            left = [each for each in self._registered[name] if each is not made]
            if left:
                self._registered[name] = left
            else:
                del self._registered[name]

    def _fields(self) -> dict[str, Any]:
        """Return the fields of the sections, as pydantic takes them."""
        with self._lock:
            newest = {name: each[-1] for name, each in self._registered.items()}
        fields: dict[str, Any] = {}
        for name, section in newest.items():
            if section.required:
                fields[name] = (section.model, ...)
            elif section.has_defaults:
                fields[name] = (section.model, Field(default_factory=section.model))
            else:
                fields[name] = (section.model | None, None)
        return fields


_default = ConfigSections()


def get_config_sections() -> ConfigSections:
    """Return the default sections, which are used where no others are given."""
    return _default


def config_model(sections: ConfigSections) -> type[CoreConfig]:
    """Return the model of a whole file.

    Args:
        sections: those that are registered at this moment become its fields.
    """
    return create_model(
        "TruthGPTConfig",
        __base__=CoreConfig,
        __doc__="A TruthGPT training configuration.",
        **sections._fields(),
    )


def _has_defaults(name: str, model: type[BaseModel]) -> bool:
    try:
        # Only making it tells: a validator may ask for one of two keys.
        model()
    except ValidationError:
        return False
    except (PydanticUserError, PydanticUndefinedAnnotation) as error:
        raise TruthGPTError(
            f'the model of the configuration section "{name}" cannot be used: {error.message}'
        ) from error
    return True


# Types of fields

_PERCENT: Final = r"^\s*[-+]?(\d+(\.\d*)?|\.\d+)\s*%\s*$"

DTYPE_ALIASES: Final[Mapping[str, str]] = {
    "fp32": "float32",
    "float": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
}
"""Short names of dtypes, in lower case, and the names that torch has for them."""


def dtype_name(given: str) -> str:
    """Return torch's name of a dtype that may be given by a short name, else the text itself.

    Args:
        given: such as `bf16`, `half`, `torch.float16` or `float32`.
    """
    plain = given.strip().removeprefix("torch.")
    return DTYPE_ALIASES.get(plain.lower(), plain)


def fraction(given: str) -> float:
    """Return the number that a text stands for: `0.02`, or `2%`.

    Args:
        given: a number, or one followed by a percent sign.

    Raises:
        ValueError: it is neither.
    """
    if re.match(_PERCENT, given):
        return float(given.strip().rstrip("%")) / 100
    return float(given)


@dataclass(frozen=True, slots=True)
class _AlsoText:
    """Lets a value be written as a text of some form too."""

    read: Callable[[str], Any]
    describe: Callable[[JsonSchemaValue], JsonSchemaValue]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        def read(value: Any) -> Any:
            return self.read(value) if isinstance(value, str) else value

        return core_schema.no_info_before_validator_function(read, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return self.describe(handler(schema))


def _or_percent(schema: JsonSchemaValue) -> JsonSchemaValue:
    return {"anyOf": [schema, {"type": "string", "pattern": _PERCENT}]}


def _or_short_name(schema: JsonSchemaValue) -> JsonSchemaValue:
    return {**schema, "enum": [*schema.get("enum", ()), *DTYPE_ALIASES]}


Fraction: TypeAlias = Annotated[
    float,
    _AlsoText(lambda text: fraction(text) if re.match(_PERCENT, text) else text, _or_percent),
]
"""A number that may be written as a percentage: `0.02` or `2%`. Bounds stand in its `Field`."""

Dtype: TypeAlias = Annotated[
    Literal["auto", "float32", "float16", "bfloat16"], _AlsoText(dtype_name, _or_short_name)
]
"""A dtype by torch's name or a short one (`fp16`, `bf16`, `fp32`, `half`); torch's is kept."""
