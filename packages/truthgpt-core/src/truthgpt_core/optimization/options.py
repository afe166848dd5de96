"""Options by name, checked by pydantic, and what is said of those that are wrong."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, ClassVar, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from truthgpt_core.errors import did_you_mean


class Options(BaseModel):
    """Base class of options: unknown names are refused, values are checked."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", frozen=True, validate_default=True
    )

    @model_validator(mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, given: Any) -> Any:
        """Take a single value for an option that has several: `skip=lm_head`."""
        if not isinstance(given, Mapping):
            return given
        several = {name for name, each in cls.model_fields.items() if _is_several(each.annotation)}
        return {
            name: [value] if name in several and isinstance(value, str | int | float) else value
            for name, value in given.items()
        }


OptionsT = TypeVar("OptionsT", bound=Options)


def wrong_options(name: str, options_type: type[Options], error: ValidationError) -> str:
    """Return in one line all that is wrong with options.

    Args:
        name: whose options they are.
        options_type: what they should have been.
        error: what pydantic said of them.
    """
    known = list(options_type.model_fields)
    messages = []
    for problem in error.errors():
        option = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            suggestion = did_you_mean(option, known)
            has = f"it has {', '.join(known)}" if known else "it has none"
            messages.append(f'there is no option "{option}" ({suggestion or has})')
        elif problem["type"] == "missing":
            messages.append(f'option "{option}" must be given')
        else:
            messages.append(f'option "{option}": {problem["msg"]}, not {problem["input"]!r}')
    return f'"{name}": ' + "; ".join(messages)


def _is_several(annotation: Any) -> bool:
    """Whether an option takes lists alone, or nothing."""
    if get_origin(annotation) in (Union, UnionType):
        kinds = [each for each in get_args(annotation) if each is not NoneType]
        return bool(kinds) and all(map(_is_several, kinds))
    return (get_origin(annotation) or annotation) in (list, tuple, set, frozenset)
